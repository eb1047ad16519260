//! Which tau each position and KV head is answered with.

/// An answer under way: one position and KV head, as read with one tau.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Index of the position in the batch.
    pub position: usize,
    /// The KV head.
    pub kv_head: usize,
    /// The tau that was read with.
    pub tau: f32,
    /// Predicted relative error of each query head of the group.
    pub predicted: &'a [f32],
    /// What the position and KV head has read so far, with all attempts, as a share of its sealed rows at 16 bits. It counts
    /// what [`TauRule::bytes_share_max`] does.
    pub bytes_share: f64,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// It is the answer.
    Accept,
    /// It is tried again with this tau, which must be lower.
    Lower(f32),
    /// Every row is read.
    Exact,
}

/// Chooses the taus of a call. It is asked from several threads, in no fixed order, so it may not learn from its answers
/// during the call.
pub trait TauRule: Sync {
    /// The tau of the first attempt; `None` reads every row at once.
    fn start(&self, position: usize, kv_head: usize) -> Option<f32>;

    /// What becomes of an attempt.
    fn next(&self, attempt: &Attempt<'_>) -> Next;

    /// Most bytes of index and rows that a position and KV head may touch, as a share of its sealed rows at 16 bits.
    /// Where the next step would exceed it, tau is raised first. It does not count rows that no summary stands for,
    /// and centroids are scored whatever it says.
    fn bytes_share_max(&self) -> Option<f64> {
        None
    }

    /// Most bytes of codes and full rows that the call may fetch from disk, over all positions and KV heads: whole 4 KiB pages
    /// that are not in memory, of which every position and KV head may fetch an even part. Where what was chosen lies on
    /// more, rows are left to coarser resolutions. Summaries and sketches are read whatever it says, and so are rows that no
    /// summary stands for; the latter count.
    fn disk_bytes_max(&self) -> Option<u64> {
        None
    }
}

/// The same tau for all, with caps if asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedTau {
    tau: f32,
    bytes_share_max: Option<f64>,
    disk_bytes_max: Option<u64>,
}

impl FixedTau {
    /// One tau for every position and KV head. 0 reads every row.
    pub fn new(tau: f64) -> Self {
        FixedTau { tau: tau as f32, bytes_share_max: None, disk_bytes_max: None }
    }

    /// Caps the bytes; see [`TauRule::bytes_share_max`].
    pub fn capped(mut self, bytes_share_max: f64) -> Self {
        self.bytes_share_max = Some(bytes_share_max);
        self
    }

    /// Caps the bytes that come from disk; see [`TauRule::disk_bytes_max`].
    pub fn from_disk(mut self, bytes_max: u64) -> Self {
        self.disk_bytes_max = Some(bytes_max);
        self
    }
}

impl TauRule for FixedTau {
    fn start(&self, _position: usize, _kv_head: usize) -> Option<f32> {
        (self.tau > 0.0).then_some(self.tau)
    }

    fn next(&self, _attempt: &Attempt<'_>) -> Next {
        Next::Accept
    }

    fn bytes_share_max(&self) -> Option<f64> {
        self.bytes_share_max
    }

    fn disk_bytes_max(&self) -> Option<u64> {
        self.disk_bytes_max
    }
}

/// One tau for all, and a lower one for a KV head whose answer predicts far more error than is usual at it: it is answered once
/// more, with the tau that brings the prediction down to the usual one, but no less than a part of the first. Where that still
/// predicts twice the usual, tau is halved again, down to a sixteenth.
///
/// Heads that spread their attention over most of the context err by more than others at any tau, and their predictions say so.
/// What they read more is read less of by all, at the same bytes: the mean error stays, and its tail gets shorter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvenTau {
    tau: f32,
}

/// What is predicted at most without a second attempt, over [`POWER`] of tau: of real traces one KV head in six predicts more.
const USUAL: f32 = 1.25;
/// Predictions go about with this power of tau.
const POWER: f32 = 0.64;
/// The least tau of a second attempt, over that of the first; of each further one, over that of the one before.
const LEAST: f32 = 0.5;
/// What a second attempt predicts at most without a further one, over what is usual at the first tau. Few predict more; an answer
/// that says of itself that it is far off is not left at that.
const FAR_OFF: f32 = 2.0;
/// Further attempts end at this tau, over that of the first.
const LEAST_FAR_OFF: f32 = 1.0 / 16.0;

impl EvenTau {
    /// A tau for every position and KV head, above 0.
    pub fn new(tau: f64) -> Self {
        EvenTau { tau: (tau as f32).max(f32::MIN_POSITIVE) }
    }
}

impl TauRule for EvenTau {
    fn start(&self, _position: usize, _kv_head: usize) -> Option<f32> {
        Some(self.tau)
    }

    fn next(&self, attempt: &Attempt<'_>) -> Next {
        let usual = USUAL * self.tau.powf(POWER);
        let predicted = attempt.predicted.iter().copied().fold(0.0, f32::max);
        // Where a cap has raised tau, a lower one would be raised as well.
        if attempt.tau > self.tau || predicted <= usual {
            return Next::Accept;
        }
        if attempt.tau == self.tau {
            return Next::Lower(self.tau * (usual / predicted).powf(1.0 / POWER).max(LEAST));
        }
        if predicted > FAR_OFF * usual && attempt.tau > LEAST_FAR_OFF * self.tau {
            Next::Lower(attempt.tau * LEAST)
        } else {
            Next::Accept
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_prediction_lowers_tau_to_half_and_one_that_stays_far_off_further() {
        let rule = EvenTau::new(0.01);
        let usual = USUAL * 0.01f32.powf(POWER);
        let next = |tau: f32, predicted: &[f32]| {
            rule.next(&Attempt { position: 0, kv_head: 0, tau, predicted, bytes_share: 0.1 })
        };
        assert_eq!(rule.start(3, 1), Some(0.01));
        assert_eq!(next(0.01, &[0.2 * usual, usual]), Next::Accept);
        let Next::Lower(tau) = next(0.01, &[0.2 * usual, 1.2 * usual]) else { panic!("accepted") };
        assert!((tau.powf(POWER) * 1.2 / 0.01f32.powf(POWER) - 1.0).abs() < 1e-4, "{tau}");
        assert_eq!(next(0.01, &[20.0 * usual, usual]), Next::Lower(0.005));
        // What was tried again is the answer, unless it is far off; and so is what a cap has cut short.
        assert_eq!(next(0.006, &[1.9 * usual, 0.3 * usual]), Next::Accept);
        assert_eq!(next(0.006, &[0.3 * usual, 2.1 * usual]), Next::Lower(0.003));
        assert_eq!(next(0.01 / 8.0, &[2.1 * usual]), Next::Lower(0.01 / 16.0));
        assert_eq!(next(0.01 / 16.0, &[20.0 * usual]), Next::Accept);
        assert_eq!(next(0.014, &[20.0 * usual]), Next::Accept);
    }
}
