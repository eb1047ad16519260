//! Methods as the command line names them.

use anyhow::{Context, Result, bail};
use longwave::Budget;

/// A method that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MethodName {
    Exact,
    Longwave,
    Retroinfer,
}

/// What methods may spend.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shares {
    /// Thresholds of `longwave`, separated by commas: smaller ones read more and are more accurate.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0032, 0.0016, 0.0008])]
    tau: Vec<f64>,
    /// Share of the clusters that `retroinfer` reads, 0 to 1.
    #[arg(long, default_value_t = 0.018)]
    retrieve: f64,
    /// Share of the clusters that `retroinfer` estimates, 0 to 1.
    #[arg(long, default_value_t = 0.232)]
    estimate: f64,
}

impl MethodName {
    /// The budgets asked for: one a method, and for `longwave` one a tau.
    pub(crate) fn budgets(self, shares: &Shares) -> Result<Vec<Budget>> {
        let budgets = match self {
            MethodName::Exact => vec![Budget::Exact],
            MethodName::Longwave => shares.tau.iter().map(|&tau| Budget::Tau(tau)).collect(),
            MethodName::Retroinfer => {
                vec![Budget::RetroInfer { retrieve: shares.retrieve, estimate: shares.estimate }]
            }
        };
        match budgets.iter().find_map(Budget::fault) {
            Some(fault) => bail!("expected {fault}"),
            None => Ok(budgets),
        }
    }

    /// The first of [`Self::budgets`].
    pub(crate) fn budget(self, shares: &Shares) -> Result<Budget> {
        self.budgets(shares)?.first().copied().context("expected a tau")
    }
}
