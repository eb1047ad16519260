//! What is tried again, and how often.

use super::*;
use crate::accuracy::Audit;
use crate::accuracy::calibration::BandErrors;

const TAU: f64 = 0.0016;

/// Audits of two KV heads of two query heads each, in every band: predictions of `predicted`, off by up to twice.
fn audited(predicted: f32) -> Calibration {
    let mut calibration = Calibration::new(4);
    for band in Band::all() {
        for audit in 0..64 {
            let actual = predicted * audit as f32 / 32.0;
            let heads = (0..4).map(|head| (head, predicted, actual)).collect();
            calibration.record(&BandErrors { band, bytes_share: 0.05, heads }, Audit::Asked);
        }
    }
    calibration
}

/// The taus of the attempts of the second KV head, whose predictions are `predicted` at first and fall as errors do.
fn attempts(calibration: &Calibration, predicted: [f32; 2]) -> Vec<f32> {
    let rule = GuardRule::new(calibration, TAU);
    let mut taus = vec![rule.start(0, 1).unwrap()];
    loop {
        let tau = taus[taus.len() - 1];
        let fallen = predicted.map(|predicted| predicted * (tau / TAU as f32).powf(POWER));
        let attempt = Attempt { position: 0, kv_head: 1, tau, predicted: &fallen, bytes_share: 0.1 };
        match rule.next(&attempt) {
            Next::Accept => return taus,
            Next::Lower(lower) => taus.push(lower),
            Next::Exact => panic!("nothing is read in full"),
        }
        assert!(taus.len() < 10, "{taus:?}");
    }
}

#[test]
fn what_is_usual_is_accepted_and_what_stands_out_is_tried_again() {
    let calibration = audited(0.01);
    let usual = attempts(&calibration, [0.01, 0.05]);
    assert_eq!(usual, [TAU as f32]);
    // One head of the group is enough. A bound of twice the prediction is allowed to be 0.15.
    let taus = attempts(&calibration, [0.01, 0.12]);
    assert_eq!(taus.len(), 2, "{taus:?}");
    let fallen = 2.0 * 0.12 * (taus[1] / TAU as f32).powf(POWER);
    assert!((0.13..0.16).contains(&fallen), "{fallen}");
}

#[test]
fn tau_falls_to_an_eighth_and_no_lower() {
    let taus = attempts(&audited(0.01), [5.0, 0.01]);
    assert!(taus.len() > 2 && taus.is_sorted_by(|a, b| a > b), "{taus:?}");
    assert_eq!(taus.last(), Some(&(TAU as f32 / 8.0)));
}

#[test]
fn nothing_is_tried_again_unaudited_or_where_all_is_as_bad() {
    assert_eq!(attempts(&Calibration::new(4), [5.0, 5.0]), [TAU as f32]);
    assert_eq!(attempts(&audited(0.1), [0.09, 0.08]), [TAU as f32]);
}
