//! How much a call may read, and by which method.

use std::fmt;

/// What one attention call may spend.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// Read every row.
    Exact,
    /// The resolution ladder: a step down is taken where its expected contribution to the relative error of the
    /// output exceeds this threshold. 0 reads everything in full.
    Tau(f64),
    /// The resolution ladder at this threshold, above 0, or every row where that is expected to be sooner: in short
    /// contexts, whose rows come faster than the choice between them.
    Soonest(f64),
    /// The resolution ladder at this threshold, above 0, and once more at a lower one, down to half, where a KV head's answer
    /// predicts more error than is usual at it, and at still lower ones where that predicts far more: what [`Budget::Bytes`] does
    /// with the tau that it has steered to. See [`crate::EvenTau`].
    Even(f64),
    /// The resolution ladder, at most this share (above 0, to 1) of the bytes that exact attention over 16-bit rows
    /// reads: the tau of [`Budget::Even`] is steered so that the running mean over calls holds, and no call reads more than a few
    /// times the share. Needs the state of a context.
    Bytes(f64),
    /// The resolution ladder, with tau lowered until the error bound meets the target, down to exact. Where the bound
    /// is not calibrated the answer is exact. Needs the state of a context.
    Error {
        /// Most relative error `|o' - o| / |o|` of a query head's output.
        target: f64,
        /// Share of the answers that keep to it, above 0 and below 1.
        confidence: f64,
    },
    /// The resolution ladder at this threshold, of whose codes and full rows at most so many bytes come from disk: for
    /// contexts larger than memory. Rows in memory are read as the threshold says; of those that are not, the ones that
    /// matter most, and the others are estimated, which the predicted error counts. Answers depend on what is in memory.
    /// On Linux a process that neither owns the files nor may write to them cannot tell: to it all is in memory, and nothing is capped.
    FromDisk {
        /// The threshold, above 0.
        tau: f64,
        /// Most bytes that one call fetches, over all positions and KV heads, each of which has an even part: whole 4 KiB
        /// pages that are not in memory. See [`crate::TauRule::disk_bytes_max`] for what it leaves out.
        bytes: u64,
    },
    /// RetroInfer's tripartite attention (arXiv 2505.02922): read the clusters of highest softmax share whole,
    /// estimate the next ones by their summaries, drop the rest.
    RetroInfer {
        /// Share of the clusters that are read, 0 to 1.
        retrieve: f64,
        /// Share of the clusters that are estimated, 0 to 1.
        estimate: f64,
    },
}

impl Budget {
    /// The resolution ladder at a tau that leaves a mean error of 0.02 to 0.04 on real traces of 8K to 32K tokens.
    pub const LONGWAVE: Budget = Budget::Tau(0.0016);

    /// RetroInfer with the shares it was published with: 1.8 % read, the next 23.2 % estimated.
    pub const RETROINFER: Budget = Budget::RetroInfer { retrieve: 0.018, estimate: 0.232 };

    /// The method this budget is for.
    pub fn method(&self) -> Method {
        match self {
            Budget::Exact => Method::Exact,
            Budget::Tau(_)
            | Budget::Soonest(_)
            | Budget::Even(_)
            | Budget::Bytes(_)
            | Budget::Error { .. }
            | Budget::FromDisk { .. } => Method::Longwave,
            Budget::RetroInfer { .. } => Method::RetroInfer,
        }
    }

    /// What is wrong with the numbers of this budget, if anything is.
    pub fn fault(&self) -> Option<String> {
        match *self {
            Budget::Exact => None,
            Budget::Tau(tau) => {
                (!(tau.is_finite() && tau >= 0.0)).then(|| format!("a tau of 0 or more, not {tau}"))
            }
            Budget::Soonest(tau) | Budget::Even(tau) | Budget::FromDisk { tau, .. } => {
                (!(tau.is_finite() && tau > 0.0)).then(|| format!("a tau above 0, not {tau}"))
            }
            Budget::Bytes(share) => {
                (!(share > 0.0 && share <= 1.0)).then(|| format!("a share above 0, to 1, not {share}"))
            }
            Budget::Error { target, confidence } => {
                let fine = target.is_finite() && target > 0.0 && confidence > 0.0 && confidence < 1.0;
                (!fine).then(|| {
                    format!(
                        "a target above 0 and a confidence between 0 and 1, not target {target} and confidence \
                         {confidence}"
                    )
                })
            }
            Budget::RetroInfer { retrieve, estimate } => {
                let share = 0.0..=1.0;
                let fine = share.contains(&retrieve) && share.contains(&estimate);
                (!fine).then(|| {
                    format!("shares between 0 and 1, not retrieve {retrieve} and estimate {estimate}")
                })
            }
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::LONGWAVE
    }
}

/// A composition of operators that answers a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Reads every row.
    Exact,
    /// The resolution ladder.
    Longwave,
    /// RetroInfer's tripartite attention.
    RetroInfer,
}

impl Method {
    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Exact => "exact",
            Method::Longwave => "longwave",
            Method::RetroInfer => "retroinfer",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Exact => f.write_str("all"),
            Budget::Tau(tau) => write!(f, "tau={tau}"),
            Budget::Soonest(tau) => write!(f, "soonest,tau={tau}"),
            Budget::Even(tau) => write!(f, "even,tau={tau}"),
            Budget::Bytes(share) => write!(f, "bytes={share}"),
            Budget::Error { target, confidence } => write!(f, "error={target},confidence={confidence}"),
            Budget::FromDisk { tau, bytes } => write!(f, "from-disk={bytes},tau={tau}"),
            Budget::RetroInfer { retrieve, estimate } => write!(f, "retrieve={retrieve},estimate={estimate}"),
        }
    }
}
