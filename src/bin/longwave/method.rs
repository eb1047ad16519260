//! Methods as the command line names them.

use anyhow::{Result, bail};
use longwave::Budget;

/// A method that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MethodName {
    Exact,
    Retroinfer,
}

/// What `retroinfer` reads and estimates.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Shares {
    /// Share of the clusters that `retroinfer` reads, 0 to 1.
    #[arg(long, default_value_t = 0.018)]
    retrieve: f64,
    /// Share of the clusters that `retroinfer` estimates, 0 to 1.
    #[arg(long, default_value_t = 0.232)]
    estimate: f64,
}

impl MethodName {
    /// The budget of the method.
    pub(crate) fn budget(self, shares: &Shares) -> Result<Budget> {
        let budget = match self {
            MethodName::Exact => Budget::Exact,
            MethodName::Retroinfer => {
                Budget::RetroInfer { retrieve: shares.retrieve, estimate: shares.estimate }
            }
        };
        match budget.fault() {
            Some(fault) => bail!("expected {fault}"),
            None => Ok(budget),
        }
    }
}
