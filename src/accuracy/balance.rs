//! Taus by KV head: heads whose audits found larger errors than are usual at a tau are answered with a lower one.

use super::calibration::{Band, Calibration};
use longwave_query::{Attempt, Next, TauRule};

/// The bound that is usual at a tau, this times a power of tau: between the bounds of most heads and those of the worst, on two
/// texts and all layers of one model. Heads of another may all be worse, and then all read more, or none.
const USUAL: f64 = 3.0;
/// See [`USUAL`]. Errors go with this power of tau.
const POWER: f64 = 0.64;
/// Tau falls with this power of what a bound is above the usual one. Errors go with a lower power of tau than 1, so that heads that
/// err much still err more than others do: bytes are better spent there than on making all alike.
const POWER_OF_EXCESS: f64 = 0.7;
/// The least share of tau that a head is answered with.
const LEAST: f64 = 0.25;

/// The share of a tau that each KV head is answered with.
pub(super) struct Balance {
    /// One a KV head; those that are not there are answered with the tau itself.
    shares: Vec<f32>,
}

impl Balance {
    /// The same tau for all.
    pub(super) fn even() -> Self {
        Balance { shares: Vec::new() }
    }

    /// What audits in the band of `tau` say of each group of `group` query heads: the one that errs most counts. A head of
    /// which they say nothing keeps to tau.
    pub(super) fn new(calibration: &Calibration, group: usize, tau: f64) -> Self {
        let Some(band) = Band::of(tau) else { return Self::even() };
        // That of the band, as the audited bounds are: within a band the share stays the same.
        let usual = USUAL * band.tau().powf(POWER);
        // No answer goes below the last band, where nothing is audited.
        let least = LEAST.max(Band::all().next_back().map_or(0.0, Band::tau) / tau).min(1.0);
        let share = |first: usize| {
            let bounds = (first..first + group).filter_map(|head| calibration.usual_bound(band, head));
            let most = bounds.fold(0.0, f32::max);
            (usual / f64::from(most)).powf(POWER_OF_EXCESS).clamp(least, 1.0) as f32
        };
        Balance { shares: (0..calibration.query_heads()).step_by(group).map(share).collect() }
    }

    /// The tau of a KV head.
    pub(super) fn tau(&self, tau: f32, kv_head: usize) -> f32 {
        tau * self.shares.get(kv_head).copied().unwrap_or(1.0)
    }

    /// The lowest tau of any.
    pub(super) fn lowest(&self, tau: f64) -> f64 {
        tau * f64::from(self.shares.iter().copied().fold(1.0, f32::min))
    }
}

/// The rule of `Budget::Balanced`.
pub(super) struct BalancedTau {
    tau: f32,
    balance: Balance,
}

impl BalancedTau {
    pub(super) fn new(calibration: &Calibration, group: usize, tau: f64) -> Self {
        BalancedTau { tau: tau as f32, balance: Balance::new(calibration, group, tau) }
    }
}

impl TauRule for BalancedTau {
    fn start(&self, _position: usize, kv_head: usize) -> Option<f32> {
        Some(self.balance.tau(self.tau, kv_head))
    }

    fn next(&self, _attempt: &Attempt<'_>) -> Next {
        Next::Accept
    }
}

#[cfg(test)]
mod tests {
    use super::super::calibration::{Audit, BandErrors};
    use super::*;

    const TAU: f64 = 0.0032;

    /// Three groups of two heads: the errors of head `h` are up to `errors[h]`, a tenth of which is predicted.
    fn audited(errors: [f32; 6], band: Band) -> Calibration {
        let mut calibration = Calibration::new(6);
        for audit in 1..=60 {
            let of = |(head, &error): (usize, &f32)| (head, error / 10.0, error * audit as f32 / 60.0);
            let heads = errors.iter().enumerate().map(of).collect();
            calibration.record(&BandErrors { band, bytes_share: 0.03, heads }, Audit::Asked);
        }
        calibration
    }

    #[test]
    fn heads_that_err_more_than_is_usual_get_lower_taus() {
        let usual = (USUAL * Band::of(TAU).unwrap().tau().powf(POWER)) as f32;
        let errors = [0.3, 0.9, 2.0, 0.1, 0.2, 40.0].map(|times| times * usual);
        let calibration = audited(errors, Band::of(TAU).unwrap());
        let rule = BalancedTau::new(&calibration, 2, TAU);
        let taus = [0, 1, 2].map(|head| f64::from(rule.start(5, head).unwrap()) / TAU);
        // The bound of a head is one of its largest errors; nothing goes below a quarter.
        assert!((taus[0] - 1.0).abs() < 1e-6 && (taus[2] - LEAST).abs() < 1e-6, "{taus:?}");
        assert!((taus[1] - 0.5f64.powf(POWER_OF_EXCESS)).abs() < 0.02, "{taus:?}");
        assert!((rule.balance.lowest(TAU) / TAU - LEAST).abs() < 1e-6);
    }

    #[test]
    fn taus_rise_with_the_tau_asked_for_and_stay_where_audits_are() {
        // Every band was audited, with errors that go with tau as they usually do; those of head 2 are five times the usual.
        let mut calibration = Calibration::new(3);
        for (band, audit) in Band::all().flat_map(|band| (1..=60).map(move |audit| (band, audit))) {
            let usual = (USUAL * band.tau().powf(POWER)) as f32;
            let of = |(head, times)| (head, usual / 10.0, times * usual * audit as f32 / 60.0);
            let heads = [(0, 0.5), (1, 1.0), (2, 5.0)].map(of).to_vec();
            calibration.record(&BandErrors { band, bytes_share: 0.03, heads }, Audit::Asked);
        }
        let taus = (0..60).map(|step| 0.03 * 0.9f64.powi(step)).filter(|&tau| Band::of(tau).is_some());
        let answered = |tau: f64| BalancedTau::new(&calibration, 1, tau).start(0, 2).unwrap();
        let answered: Vec<f32> = taus.map(answered).collect();
        assert!(answered.len() > 50 && answered.is_sorted_by(|a, b| a >= b), "{answered:?}");
        assert!(answered.iter().all(|&tau| Band::of(f64::from(tau)).is_some()), "{answered:?}");
    }

    #[test]
    fn a_shift_of_all_calls_is_no_reason_to_read_more() {
        let band = Band::of(TAU).unwrap();
        let mut calibration =
            audited([1.0; 6].map(|times| times * (USUAL * band.tau().powf(POWER)) as f32), band);
        let before = [0, 1, 2].map(|head| Balance::new(&calibration, 2, TAU).tau(1.0, head));
        let missed =
            BandErrors { band, bytes_share: 0.03, heads: (0..6).map(|head| (head, 0.01, 9.0)).collect() };
        (0..20).for_each(|_| calibration.follow(std::slice::from_ref(&missed)));
        assert!(calibration.correction > 1.0);
        let after = [0, 1, 2].map(|head| Balance::new(&calibration, 2, TAU).tau(1.0, head));
        assert!(
            before.iter().zip(after).all(|(before, after)| (before - after).abs() < 1e-5),
            "{before:?}, {after:?}"
        );
    }

    #[test]
    fn what_was_not_audited_keeps_to_tau() {
        let of_another = audited([9.0; 6], Band::of(2.0 * TAU).unwrap());
        for (calibration, tau) in [(&Calibration::new(6), TAU), (&of_another, TAU), (&of_another, 0.5)] {
            let balance = Balance::new(calibration, 2, tau);
            assert!((0..3).all(|head| balance.tau(0.25, head) == 0.25), "{tau}");
            assert_eq!(balance.lowest(tau), tau);
        }
    }
}
