//! Which tau spends how much: the control loop of `Budget::Bytes`.

use super::calibration::{Band, BandErrors};
use longwave_query::Report;

/// Shares that a layer is steered for at a time; the one asked for least lately goes.
pub(crate) const SHARES_MAX: usize = 8;
/// A call may read this many times the share it is asked to keep on average.
pub(crate) const CALL_MAX: f64 = 4.0;
pub(crate) const TAU_MIN: f64 = 1e-6;
pub(crate) const TAU_MAX: f64 = 1.0;
/// How strongly one call's share moves tau. Bytes go about with the square root of 1 / tau, and calls differ: the first
/// calls move it more, by this over their number.
const GAIN: f64 = 0.5;
const GAIN_FIRST: f64 = 2.0;
/// Calls over which an excess is paid back.
const PAY_BACK: f64 = 16.0;

/// The steering of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Steering {
    /// The latest asked for comes first.
    pub(crate) courses: Vec<Course>,
}

/// How one share is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Course {
    pub(crate) share: f64,
    pub(crate) tau: f64,
    /// What was read above the share since it was first asked for, in units of the share.
    pub(crate) excess: f64,
    /// Calls that it was learnt from, up to [`CALLS_MAX`]; none of a guess.
    pub(crate) calls: u32,
}

/// Calls of a course are not counted further.
pub(crate) const CALLS_MAX: u32 = 1 << 16;

impl Steering {
    /// The tau to spend `share` with: as steered so far, or as a neighbouring share suggests.
    pub(crate) fn tau(&self, share: f64) -> f64 {
        let far = |course: &&Course| (course.share / share).ln().abs();
        let nearest = self.courses.iter().min_by(|a, b| far(a).total_cmp(&far(b)));
        // A layer that was never steered starts where typical layers of models are.
        let (known, tau) = nearest.map_or((0.035, 0.0016), |course| (course.share, course.tau));
        if known == share { tau } else { (tau * (known / share).powi(2)).clamp(TAU_MIN, TAU_MAX) }
    }

    /// Whether a call was asked to spend `share` before.
    pub(crate) fn is_steered(&self, share: f64) -> bool {
        self.courses.iter().any(|course| course.share == share && course.calls > 0)
    }

    /// Takes what audits have read for a first guess, where nothing was steered yet. It is off as far as queries of the
    /// sample, asked at the end, read other than the next ones.
    pub(crate) fn begin(&mut self, audits: &[BandErrors]) {
        if !self.courses.is_empty() {
            return;
        }
        // An octave apart, around what is mostly asked for.
        for band in Band::all().filter(|band| band.index() % 2 == 0 && (2..=14).contains(&band.index())) {
            let shares = audits.iter().filter(|audit| audit.band == band).map(|audit| audit.bytes_share);
            let (count, sum) = shares.fold((0, 0.0), |(count, sum), share| (count + 1, sum + share));
            let share = sum / f64::from(count.max(1));
            if share > 0.0 && share <= 1.0 {
                self.courses.push(Course { share, tau: band.tau(), excess: 0.0, calls: 0 });
            }
        }
    }

    /// Learns what a call that was asked to spend `share` has read.
    pub(crate) fn learn(&mut self, share: f64, report: &Report) {
        self.learn_from(share, report.bytes_share(), &report.taus);
    }

    /// That it has read `spent`, with these taus: those of [`Self::tau`], or what the first call has found.
    pub(super) fn learn_from(&mut self, share: f64, spent: f64, taus: &[f32]) {
        let tau = if self.is_steered(share) { self.tau(share) } else { mean(taus) };
        let known = self.courses.iter().position(|course| course.share == share);
        let course = known.map_or(Course { share, tau, excess: 0.0, calls: 0 }, |at| self.courses.remove(at));
        let mut course = Course { tau, calls: (course.calls + 1).min(CALLS_MAX), ..course };
        let ratio = (spent / share).clamp(0.01, 100.0);
        course.excess = (course.excess + ratio - 1.0).clamp(-1e6, 1e6);
        let wanted = (1.0 - course.excess / PAY_BACK).clamp(0.5, 1.5);
        let gain = GAIN.max(GAIN_FIRST / f64::from(course.calls));
        course.tau = (tau * (ratio / wanted).powf(gain)).clamp(TAU_MIN, TAU_MAX);
        self.courses.insert(0, course);
        self.courses.truncate(SHARES_MAX);
    }
}

/// The geometric mean of taus; a tau of 0 has read everything and counts as the smallest.
fn mean(taus: &[f32]) -> f64 {
    let logs = taus.iter().map(|&tau| f64::from(tau).clamp(TAU_MIN, TAU_MAX).ln());
    (logs.sum::<f64>() / taus.len().max(1) as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes go with tau^-0.45, around a level that differs from the first guess and from call to call.
    fn spend(tau: f64, level: f64, call: u64) -> f64 {
        let noise = ((call * 2654435761 % 1000) as f64 / 1000.0 - 0.5) * 0.8;
        (level * (tau / 0.0016).powf(-0.45) * noise.exp()).min(1.0)
    }

    #[test]
    fn the_running_mean_holds_on_layers_that_differ() {
        for level in [0.005, 0.035, 0.25] {
            let mut steering = Steering::default();
            let spent = (0..400).map(|call| {
                let tau = steering.tau(0.05);
                let spent = spend(tau, level, call).min(CALL_MAX * 0.05);
                steering.learn_from(0.05, spent, &[tau as f32]);
                spent
            });
            let mean = spent.sum::<f64>() / 400.0;
            assert!((mean / 0.05 - 1.0).abs() < 0.05, "{mean} at {level}");
        }
    }

    #[test]
    fn audits_give_the_first_guess_and_nothing_later() {
        let mut steering = Steering::default();
        let level = 0.2;
        let audited = |noise: f64| {
            let share = move |tau: f64| (level * noise * (tau / 0.0016).powf(-0.45)).min(1.0);
            Band::all().map(move |band| BandErrors {
                band,
                bytes_share: share(band.tau()),
                heads: vec![(0, 0.1, 0.1)],
            })
        };
        let audits: Vec<BandErrors> = audited(0.8).chain(audited(1.2)).collect();
        steering.begin(&audits);
        for share in [0.06, 0.1, 0.23] {
            let expected = 0.0016 * (level / share).powf(1.0 / 0.45);
            let found = steering.tau(share);
            assert!((found / expected).ln().abs() < 0.15, "{found}, not {expected}, at {share}");
        }
        steering.learn_from(0.1, 0.1, &[0.002]);
        assert!(steering.is_steered(0.1) && !steering.is_steered(0.06));
        let steered = steering.clone();
        steering.begin(&audits[..17]);
        assert_eq!(steering, steered);
        assert!(steering.courses.len() <= SHARES_MAX && steering.courses[0].share == 0.1);
        let mut blind = Steering::default();
        blind.begin(&[]);
        assert_eq!(blind, Steering::default());
    }

    #[test]
    fn shares_are_steered_apart_and_few_are_kept() {
        let mut steering = Steering::default();
        for call in 0..100 {
            for share in [0.02, 0.08] {
                let tau = steering.tau(share);
                steering.learn_from(share, spend(tau, 0.035, call), &[tau as f32]);
            }
        }
        assert!(steering.tau(0.02) > 4.0 * steering.tau(0.08));
        assert_eq!(steering.courses.len(), 2);
        (1..20).for_each(|i| steering.learn_from(f64::from(i) / 1000.0, 0.01, &[0.01]));
        assert_eq!(steering.courses.len(), SHARES_MAX);
        assert_eq!(steering.courses[0].share, 0.019);
    }
}
