//! Taus by KV head: heads whose audits found larger errors than are usual at a tau are answered with a lower one.

use super::calibration::{Band, Calibration};
use longwave_query::{Attempt, Next, TauRule};

/// The bound that is usual at a tau, this times a power of tau: between the bounds of most heads and those of the worst, on two
/// texts and all layers of one model.
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
        let usual = USUAL * tau.powf(POWER);
        let share = |first: usize| {
            let bounds = (first..first + group).filter_map(|head| calibration.usual_bound(band, head));
            let most = bounds.fold(0.0, f32::max);
            (usual / f64::from(most)).powf(POWER_OF_EXCESS).clamp(LEAST, 1.0) as f32
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
        let usual = (USUAL * TAU.powf(POWER)) as f32;
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
    fn what_was_not_audited_keeps_to_tau() {
        let of_another = audited([9.0; 6], Band::of(2.0 * TAU).unwrap());
        for (calibration, tau) in [(&Calibration::new(6), TAU), (&of_another, TAU), (&of_another, 0.5)] {
            let balance = Balance::new(calibration, 2, tau);
            assert!((0..3).all(|head| balance.tau(0.25, head) == 0.25), "{tau}");
            assert_eq!(balance.lowest(tau), tau);
        }
    }
}
