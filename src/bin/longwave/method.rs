//! Methods as the command line names them.

use anyhow::{Result, bail};
use longwave::{Budget, ClusterOptions, ContextOptions};

/// Thresholds of `longwave` that are compared where none is asked for.
pub(crate) const TAUS: [f64; 3] = [0.0032, 0.0016, 0.0008];

/// A method that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MethodName {
    Exact,
    Longwave,
    Retroinfer,
}

/// What `retroinfer` may spend.
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
    /// The budgets asked for: one a method, and for `longwave` one a tau.
    pub(crate) fn budgets(self, taus: &[f64], shares: &Shares) -> Result<Vec<Budget>> {
        let budgets = match self {
            MethodName::Exact => vec![Budget::Exact],
            MethodName::Longwave => taus.iter().map(|&tau| Budget::Tau(tau)).collect(),
            MethodName::Retroinfer => {
                vec![Budget::RetroInfer { retrieve: shares.retrieve, estimate: shares.estimate }]
            }
        };
        checked(budgets)
    }
}

/// `longwave` at each tau as it is, and with each cap on the bytes that come from disk.
pub(crate) fn capped(taus: &[f64], disk_bytes: &[u64]) -> Result<Vec<Budget>> {
    let budgets = taus.iter().flat_map(|&tau| {
        let caps = disk_bytes.iter().map(move |&bytes| Budget::FromDisk { tau, bytes });
        std::iter::once(Budget::Tau(tau)).chain(caps)
    });
    checked(budgets.collect())
}

/// Threshold of a budget that has one for all answers.
pub(crate) fn tau_of(budget: &Budget) -> Option<f64> {
    match *budget {
        Budget::Tau(tau) | Budget::Soonest(tau) | Budget::Even(tau) | Budget::FromDisk { tau, .. } => {
            Some(tau)
        }
        _ => None,
    }
}

/// Its cap on the bytes that come from disk.
pub(crate) fn disk_bytes_of(budget: &Budget) -> Option<u64> {
    if let Budget::FromDisk { bytes, .. } = *budget { Some(bytes) } else { None }
}

/// Refuses budgets that are out of their range.
pub(crate) fn checked(budgets: Vec<Budget>) -> Result<Vec<Budget>> {
    match budgets.iter().find_map(Budget::fault) {
        Some(fault) => bail!("expected {fault}"),
        None => Ok(budgets),
    }
}

/// The index that a method reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum IndexKind {
    /// Clusters in the query metric, with the resolution ladder.
    Ladder,
    /// Clusters as RetroInfer has them.
    Clusters,
}

impl IndexKind {
    /// The index of a budget's own method. `exact` needs none, and takes the simpler one.
    pub(crate) fn of(budget: &Budget) -> Self {
        if budget.method() == longwave::Method::Longwave { IndexKind::Ladder } else { IndexKind::Clusters }
    }

    /// Options of a context with this index, of `tokens` per cluster if that is asked for.
    pub(crate) fn options(self, tokens: Option<u32>) -> ContextOptions {
        let ladder = self == IndexKind::Ladder;
        let mut clusters = if ladder { ClusterOptions::ladder() } else { ClusterOptions::retroinfer() };
        clusters.tokens_per_cluster = tokens.unwrap_or(clusters.tokens_per_cluster);
        ContextOptions::default().with_clusters(clusters).with_ladder(ladder)
    }
}
