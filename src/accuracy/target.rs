//! The rule of `Budget::Error`: tau falls until the answers keep to the target.

use super::calibration::{Band, Calibration, Multipliers, floored};
use longwave_query::{Attempt, Next, TauRule};

/// Lowers tau until the query heads of a group keep to the target with the confidence asked for. That is a share of
/// answers, so it is the mean over the heads that counts: their bytes are shared, and a head that is surely far below
/// the target makes up for one that just misses its own quantile.
///
/// The first attempt reads little. What it predicts says how far tau has to fall, so that the second mostly is the
/// answer: most of what the first has read is read by the second as well, and a byte counts once.
pub(super) struct TargetRule<'a> {
    calibration: &'a Calibration,
    multipliers: Multipliers,
    group: usize,
    target: f32,
    confidence: f64,
}

/// The first attempt is made where the typical bound is this many times the target: one that is made in vain costs less
/// than one that reads more than the answer needs.
const START: f32 = 2.0;
/// Predictions are searched down to this share of themselves, in steps of this factor.
const SCALE_MIN: f32 = 1e-3;
const SCALE_STEP: f32 = 0.98;
/// A next attempt lowers tau at least so far.
const FALL_MIN: f32 = 0.95;

impl<'a> TargetRule<'a> {
    pub(super) fn new(calibration: &'a Calibration, group: usize, target: f64, confidence: f64) -> Self {
        let multipliers = calibration.multipliers(confidence);
        TargetRule { calibration, multipliers, group, target: rounded_down(target), confidence }
    }

    /// The multipliers of a group in a band, if all are known.
    fn of_group(&self, band: Band, kv_head: usize) -> Option<impl Iterator<Item = f32>> {
        let first = band.index() * self.calibration.query_heads() + kv_head * self.group;
        let multipliers = &self.multipliers[first..first + self.group];
        multipliers.iter().all(Option::is_some).then(|| multipliers.iter().flatten().copied())
    }

    fn is_known(&self, band: Band, kv_head: usize) -> bool {
        self.of_group(band, kv_head).is_some()
    }

    /// Bands that can be bounded, by falling tau.
    fn bands(&self, kv_head: usize) -> impl Iterator<Item = Band> {
        Band::all().filter(move |&band| self.is_known(band, kv_head))
    }

    /// The largest typical bound of the group.
    fn typical(&self, band: Band, kv_head: usize) -> f32 {
        let heads = kv_head * self.group..;
        let bounds = self.of_group(band, kv_head).into_iter().flatten().zip(heads);
        bounds.map(|(multiplier, head)| multiplier * self.calibration.typical(band, head)).fold(0.0, f32::max)
    }

    /// Whether the group would keep to the target if the predictions of an attempt, in a band, were `scale` times what
    /// they are.
    fn keeps(&self, band: Band, attempt: &Attempt<'_>, scale: f32) -> bool {
        let limits = attempt.predicted.iter().map(|&predicted| self.target / (scale * floored(predicted)));
        let first = attempt.kv_head * self.group;
        let missed = self.calibration.exceedance(band, first, limits, self.confidence);
        missed.is_some_and(|missed| missed <= 1.0 - self.confidence)
    }

    /// The largest factor on the predictions with which the group would keep to the target.
    fn scale_kept(&self, band: Band, attempt: &Attempt<'_>) -> f32 {
        let (mut kept, mut missed) = (SCALE_MIN, 1.0f32);
        while kept < SCALE_STEP * missed {
            let scale = (kept * missed).sqrt();
            *if self.keeps(band, attempt, scale) { &mut kept } else { &mut missed } = scale;
        }
        kept
    }

    /// The power of tau that predictions of a group go with below a band, as audits have seen it.
    fn power(&self, band: Band, kv_head: usize) -> f32 {
        let below = self.bands(kv_head).filter(|&below| below > band).take(2).last();
        let power = below.map_or(f32::NAN, |below| {
            let log = |band, head| self.calibration.typical(band, head).ln();
            let heads = kv_head * self.group..(kv_head + 1) * self.group;
            let falls: f32 = heads.map(|head| log(band, head) - log(below, head)).sum();
            falls / self.group as f32 / (band.tau() / below.tau()).ln() as f32
        });
        if power.is_finite() { power.clamp(0.5, 1.0) } else { 0.7 }
    }
}

impl TauRule for TargetRule<'_> {
    fn start(&self, _position: usize, kv_head: usize) -> Option<f32> {
        let near = |&band: &Band| self.typical(band, kv_head) <= START * self.target;
        let start = self.bands(kv_head).find(near).or_else(|| self.bands(kv_head).last());
        start.map(|band| band.tau() as f32)
    }

    fn next(&self, attempt: &Attempt<'_>) -> Next {
        let kv_head = attempt.kv_head;
        let known = |tau: f32| Band::of(f64::from(tau)).filter(|&band| self.is_known(band, kv_head));
        let Some(band) = known(attempt.tau) else { return Next::Exact };
        if self.keeps(band, attempt, 1.0) {
            return Next::Accept;
        }
        let fall = self.scale_kept(band, attempt).powf(1.0 / self.power(band, kv_head)).min(FALL_MIN);
        let wanted = attempt.tau * fall;
        if known(wanted).is_some() {
            return Next::Lower(wanted);
        }
        // Nothing is known of answers at this tau: the next lower one of which something is, or the lowest.
        let lower = || self.bands(kv_head).map(|band| band.tau() as f32).filter(|&tau| tau < attempt.tau);
        let next = lower().find(|&tau| tau <= wanted).or_else(|| lower().last());
        next.map_or(Next::Exact, Next::Lower)
    }
}

/// The target as the nearest f32 that is no larger, so that a bound never reads as missing it.
pub(super) fn rounded_down(target: f64) -> f32 {
    let nearest = target as f32;
    if f64::from(nearest) > target { nearest.next_down() } else { nearest }
}
