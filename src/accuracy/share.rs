//! The rule of `Budget::Bytes`: that of `Budget::Even` with the tau that the steering has found, under a cap.

use super::Steering;
use super::steering::{CALL_MAX, TAU_MIN};
use longwave_query::{Attempt, EvenTau, Next, TauRule};

/// Reads with the tau that a share is steered to. A share that was never asked for has none yet: each KV head then starts
/// with little and lowers its tau until it has read about the share. The calls after it start from what that took.
pub(super) struct ShareRule {
    tau: f32,
    share: f64,
    /// Where the share is steered.
    steered: Option<EvenTau>,
}

/// The first attempt at a share that is not steered yet is made with this many times the tau that is guessed.
const START: f64 = 2.0;
/// A KV head that has read so much of its share is not tried again.
const FILLED: f64 = 0.9;
/// Bytes go about with this power of 1 / tau.
const POWER: f64 = 0.45;

impl ShareRule {
    pub(super) fn new(steering: &Steering, share: f64) -> Self {
        let steered = steering.is_steered(share).then(|| EvenTau::new(steering.tau(share)));
        ShareRule { tau: (START * steering.tau(share)) as f32, share, steered }
    }
}

impl TauRule for ShareRule {
    fn start(&self, position: usize, kv_head: usize) -> Option<f32> {
        self.steered.map_or(Some(self.tau), |rule| rule.start(position, kv_head))
    }

    fn next(&self, attempt: &Attempt<'_>) -> Next {
        if let Some(rule) = &self.steered {
            return rule.next(attempt);
        }
        let filled = attempt.bytes_share / self.share;
        if filled >= FILLED || f64::from(attempt.tau) <= TAU_MIN {
            return Next::Accept;
        }
        // A part of the bytes is read at any tau, so this falls short rather than too far.
        let tau = f64::from(attempt.tau) * filled.max(0.1).powf(1.0 / POWER);
        Next::Lower(tau.max(TAU_MIN) as f32)
    }

    fn bytes_share_max(&self) -> Option<f64> {
        Some(CALL_MAX * self.share)
    }
}
