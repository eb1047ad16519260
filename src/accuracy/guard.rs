//! Second attempts for answers that are likely much worse than others at their tau.

use super::CONFIDENCE;
use super::calibration::{Band, Calibration, Multipliers, floored};
use longwave_query::{Attempt, FixedTau, Next, TauRule};

/// One tau for all, but for answers whose bound is large and far above what is usual: they are tried again with a lower tau, and few are
/// much worse than the others. A head without a bound is left alone, so nothing is tried again where nothing was audited.
pub(super) struct GuardRule {
    inner: FixedTau,
    tau: f32,
    query_heads: usize,
    multipliers: Multipliers,
    /// Bounds above this are tried again.
    limit: f32,
}

/// What bounds may be at any tau, or else so many times the usual bound in their layer.
const LIMIT: f32 = 0.15;
const USUAL: f32 = 1.3;
/// Errors go about with this power of tau.
const POWER: f32 = 0.75;
/// The next attempt lowers tau by a factor between these, and all attempts together by no more than the last.
const FALL: [f32; 2] = [0.25, 0.7];
const FALL_MAX: f32 = 0.125;

impl GuardRule {
    pub(super) fn new(calibration: &Calibration, tau: f64) -> Self {
        let (multipliers, query_heads) = (calibration.multipliers(CONFIDENCE), calibration.query_heads());
        let usual = Band::of(tau).map_or(0.0, |band| usual(calibration, &multipliers, band));
        let limit = LIMIT.max(USUAL * usual);
        GuardRule { inner: FixedTau::new(tau), tau: tau as f32, query_heads, multipliers, limit }
    }

    /// The largest bound of the group's heads, in units of the limit.
    fn excess(&self, attempt: &Attempt<'_>) -> f32 {
        let Some(band) = Band::of(attempt.tau.into()) else { return 0.0 };
        let first = band.index() * self.query_heads + attempt.kv_head * attempt.predicted.len();
        let heads = self.multipliers[first..].iter().zip(attempt.predicted);
        heads.map(|(factor, &error)| factor.unwrap_or(0.0) * floored(error)).fold(0.0, f32::max) / self.limit
    }
}

/// The bound that half of a layer's heads typically have in a band. Where all are as bad, that is what tau was asked to mean.
fn usual(calibration: &Calibration, multipliers: &Multipliers, band: Band) -> f32 {
    let heads = calibration.query_heads();
    let of_head = |head: usize| {
        multipliers[band.index() * heads + head].map(|factor| factor * calibration.typical(band, head))
    };
    let mut bounds: Vec<f32> = (0..heads).filter_map(of_head).collect();
    bounds.sort_by(f32::total_cmp);
    bounds.get(bounds.len() / 2).copied().unwrap_or(0.0)
}

impl TauRule for GuardRule {
    fn start(&self, position: usize, kv_head: usize) -> Option<f32> {
        self.inner.start(position, kv_head)
    }

    fn next(&self, attempt: &Attempt<'_>) -> Next {
        let (excess, least) = (self.excess(attempt), FALL_MAX * self.tau);
        if excess <= 1.0 || attempt.tau <= least {
            return Next::Accept;
        }
        let fall = excess.powf(-1.0 / POWER).clamp(FALL[0], FALL[1]);
        Next::Lower((fall * attempt.tau).max(least))
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
