//! Finding the tau that reads a given share of the bytes.

use super::layer::Layer;
use anyhow::{Result, bail, ensure};
use longwave::Budget;

/// How near the share must come, relative to itself.
const TOLERANCE: f64 = 0.005;
/// Taus that are looked at.
const LEAST: f64 = 1e-9;
const MOST: f64 = 1e3;
const STEPS_MAX: usize = 60;

/// The tau of [`Budget::Even`] at which the mean share of the bytes over all layers and asked queries is `share`: what
/// [`Budget::Bytes`] steers to.
pub(super) fn tau_of_share(layers: &[Layer<'_>], share: f64) -> Result<f64> {
    ensure!(share.is_finite() && share > 0.0, "expected --bytes above 0, not {share}");
    find_tau(share, |tau| {
        let (mut sum, mut count) = (0.0, 0);
        for layer in layers {
            for asked in layer.ask(&Budget::Even(tau), longwave::CONFIDENCE)? {
                sum += asked.samples.first().map_or(0.0, |sample| sample.bytes_share);
                count += 1;
            }
        }
        Ok(sum / f64::from(count.max(1)))
    })
}

/// Bisects over the logarithm of tau. Shares fall as tau grows, in steps where no other row or cluster is read.
fn find_tau(share: f64, mut measure: impl FnMut(f64) -> Result<f64>) -> Result<f64> {
    let near = |found: f64| (found / share - 1.0).abs() <= TOLERANCE;
    let mut tau = super::TAUS[1];
    let first = measure(tau)?;
    if near(first) {
        return Ok(tau);
    }
    // A bracket: `reads_more` reads more than the share, `reads_less` less.
    let factor = if first > share { 8.0 } else { 0.125 };
    let (mut reads_more, mut reads_less) = (tau, tau);
    loop {
        tau *= factor;
        let found = measure(tau)?;
        if near(found) {
            return Ok(tau);
        }
        if !(LEAST..=MOST).contains(&tau) {
            bail!("no tau reads {share} of the bytes: {tau:.0e} reads {found:.4}");
        }
        *(if found > share { &mut reads_more } else { &mut reads_less }) = tau;
        if (found > share) != (first > share) {
            break;
        }
    }
    for _ in 0..STEPS_MAX {
        tau = (reads_more * reads_less).sqrt();
        let found = measure(tau)?;
        // Where one more row is a large step, no tau is nearer.
        if near(found) || reads_less / reads_more < 1.0001 {
            break;
        }
        *(if found > share { &mut reads_more } else { &mut reads_less }) = tau;
    }
    Ok(tau)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tau_of_a_share_is_found_from_both_sides() {
        for share in [0.02, 0.0316, 0.3] {
            let mut calls = 0;
            let tau = find_tau(share, |tau| {
                calls += 1;
                Ok(0.01 + 0.001 / tau.sqrt())
            });
            let found = 0.01 + 0.001 / tau.unwrap().sqrt();
            assert!((found / share - 1.0).abs() <= TOLERANCE, "{found} for {share}");
            assert!(calls < 20, "{calls} calls for {share}");
        }
    }

    #[test]
    fn a_share_below_what_is_always_read_cannot_be_had() {
        let error = find_tau(0.005, |tau| Ok(0.01 + 0.001 / tau.sqrt())).unwrap_err().to_string();
        assert!(error.contains("no tau reads 0.005"), "{error}");
        assert!(find_tau(2.0, |_| Ok(1.2)).is_err());
    }
}
