//! Quantiles against their definition, and coverage of what was not audited.

use super::*;

/// Values between 0 and 1, evenly spread.
fn uniform(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// Head `h` errs by up to `h + 1` times the prediction.
fn audited(seed: u64, heads: usize, audits: usize, band: Band) -> Calibration {
    let mut calibration = Calibration::new(heads);
    let draws = uniform(seed, heads * audits);
    for draws in draws.chunks_exact(heads) {
        let heads = draws.iter().enumerate().map(|(h, x)| (h, 0.01, 0.01 * x * (h + 1) as f32)).collect();
        calibration.record(&BandErrors { band, bytes_share: 0.05, heads }, Audit::Asked);
    }
    calibration
}

fn errors(band: Band, heads: Vec<(usize, f32, f32)>) -> BandErrors {
    BandErrors { band, bytes_share: 0.05, heads }
}

#[test]
fn bands_are_a_grid_and_taus_between_go_to_the_nearest() {
    assert_eq!(Band::all().len(), BANDS);
    for band in Band::all() {
        assert_eq!(Band::of(band.tau()), Some(band));
        assert_eq!(Band::of(band.tau() as f32 as f64 * 1.15), Some(band), "{band:?}");
    }
    assert_eq!(Band::of(0.0016).map(Band::index), Some(8));
    assert_eq!([Band::of(0.05), Band::of(5e-5), Band::of(0.0), Band::of(f64::NAN)], [None; 4]);
}

#[test]
fn the_rank_is_the_first_that_is_sure_enough() {
    // 1 - 0.95^45 is the first above 0.9.
    assert_eq!((rank(44, 0.95), rank(45, 0.95)), (None, Some(45)));
    assert_eq!((rank(229, 0.99), rank(230, 0.99)), (None, Some(230)));
    assert_eq!(rank(0, 0.5), None);
    // Binomial(4, 0.5): 1/16, 5/16, 11/16, 15/16.
    assert_eq!(rank(4, 0.5), Some(4));
    let found = |n| [0.8, 0.95, 0.99].iter().all(|&c| are_enough(n, c) == rank(n, c).is_some());
    assert!((0..400).all(found));
    // Against sums of exact binomial terms.
    let mut terms = vec![1.0f64];
    for n in 1..=60 {
        let at = |terms: &[f64], k: usize| terms.get(k).copied().unwrap_or(0.0);
        let below = |k: usize| k.checked_sub(1).map_or(0.0, |k| at(&terms, k));
        terms = (0..=n).map(|k| at(&terms, k) * 0.2 + below(k) * 0.8).collect();
        let mut sum = 0.0;
        let expected = (1..=n).find(|k| {
            sum += terms[k - 1];
            sum >= SURENESS
        });
        assert_eq!(rank(n, 0.8), expected, "{n}");
    }
}

#[test]
fn a_bound_covers_its_share_of_what_was_not_audited_for_nine_draws_of_ten() {
    let band = Band::of(0.0016).unwrap();
    let draws = 200;
    let held = (0..draws)
        .filter(|&seed| audited(seed + 1, 1, 100, band).multiplier(band, 0, 0.9).unwrap() >= 0.9)
        .count();
    // At least 0.9 of the draws, less four standard deviations of their count.
    assert!(held as f64 >= 0.9 * draws as f64 - 4.0 * (0.09 * draws as f64).sqrt(), "{held} of {draws}");
}

#[test]
fn heads_with_few_audits_take_those_of_their_layer_and_never_another_band() {
    let band = Band::of(0.0032).unwrap();
    let few = audited(3, 4, 20, band);
    // 20 audits are too few for a head, 80 are enough for the layer: all heads share one multiplier.
    let pooled: Vec<_> = (0..4).map(|head| few.multiplier(band, head, 0.95)).collect();
    assert!(pooled.iter().all(|m| m.is_some() && *m == pooled[0]), "{pooled:?}");
    let many = audited(3, 4, 90, band);
    let own: Vec<f32> = (0..4).map(|head| many.multiplier(band, head, 0.95).unwrap()).collect();
    assert!(own.is_sorted() && own[0] <= 1.01 && own[3] > 3.0, "{own:?}");
    let none = |band| (0..4).all(|head| many.multiplier(band, head, 0.95).is_none());
    assert!(Band::all().filter(|&other| other != band).all(none));
    assert!(audited(3, 4, 5, band).multiplier(band, 0, 0.95).is_none());
}

#[test]
fn the_exceedance_goes_with_the_multiplier() {
    let band = Band::of(0.0032).unwrap();
    let many = audited(5, 3, 100, band);
    let multiplier = many.multiplier(band, 2, 0.95).unwrap();
    let exceedance = |band, first, limits: &[f32]| many.exceedance(band, first, limits.iter().copied(), 0.95);
    assert!(exceedance(band, 2, &[multiplier]).unwrap() <= 0.05);
    assert!(exceedance(band, 2, &[0.0]).unwrap() > 0.99);
    // Never 0: that nothing above was seen does not say that there is nothing.
    assert_eq!(exceedance(band, 2, &[1e6]), Some(1.0 / 101.0));
    assert_eq!(exceedance(band, 1, &[1e6, 1e6]), Some(1.0 / 201.0));
    assert_eq!(exceedance(band, 1, &[1e6, 0.0]), Some(101.0 / 201.0));
    assert_eq!(exceedance(Band::of(0.0064).unwrap(), 2, &[1e6]), None);
    // Of a group it is the mean, each head with its own limit: heads 0 and 2 err by up to 1 and 3 times the prediction.
    let found = many.exceedance(band, 0, [0.5, 1e6, 1.5].into_iter(), 0.95).unwrap();
    assert!((found - 1.0 / 3.0).abs() < 0.1, "{found}");
    // Too few of each head's own: those of the layer, of which a third of thirds are above 2.
    let few = audited(5, 3, 30, band);
    let found = few.exceedance(band, 0, [2.0, 1e6].into_iter(), 0.95).unwrap();
    assert!((found - (10.0 + 2.0) / 182.0).abs() < 0.04, "{found}");
    assert_eq!(audited(5, 3, 14, band).exceedance(band, 0, [2.0, 1e6].into_iter(), 0.95), None);
}

#[test]
fn the_window_forgets_and_what_is_no_number_bounds_nothing() {
    let band = Band::of(0.0008).unwrap();
    let mut calibration = audited(7, 2, WINDOW + 5, band);
    assert_eq!(calibration.audits(band, 1), WINDOW);
    let before = calibration.multiplier(band, 1, 0.95);
    for _ in 0..WINDOW {
        calibration.record(&errors(band, vec![(1, 0.01, 0.3)]), Audit::Asked);
    }
    assert_ne!(calibration.multiplier(band, 1, 0.95), before);
    assert!((calibration.multiplier(band, 1, 0.95).unwrap() / 30.0 - 1.0).abs() < 2e-3);
    for odd in [(1, 0.01, f32::NAN), (1, 0.01, f32::INFINITY), (1, f32::NAN, f32::NAN)] {
        (0..WINDOW).for_each(|_| calibration.record(&errors(band, vec![odd]), Audit::Asked));
        assert!(calibration.multiplier(band, 1, 0.95).unwrap() > 6e4, "{odd:?}");
    }
    assert_eq!(floored(f32::NAN), f32::INFINITY);
}

#[test]
fn replayed_queries_count_until_calls_have_said_enough() {
    let band = Band::of(0.0032).unwrap();
    let mut calibration = Calibration::new(2);
    let both = |ratio: f32| errors(band, vec![(0, 0.01, 0.01 * ratio), (1, 0.01, 0.02 * ratio)]);
    let known =
        |calibration: &Calibration, head| (calibration.audits(band, head), calibration.audits_of_calls(band));
    (0..60).for_each(|_| calibration.record(&both(1.0), Audit::Replayed));
    assert_eq!(known(&calibration, 0), (60, 0));
    (0..47).for_each(|_| calibration.record(&both(3.0), Audit::Asked));
    assert_eq!(known(&calibration, 1), (107, 47));
    // From the 48th of a head on only its calls count.
    calibration.record(&errors(band, vec![(1, 0.01, 0.03)]), Audit::Asked);
    assert_eq!([known(&calibration, 0), known(&calibration, 1)], [(107, 48), (48, 48)]);
    // What is replayed once calls were audited is not told apart from them: it stands behind.
    calibration.record(&both(5.0), Audit::Replayed);
    assert_eq!(known(&calibration, 1), (49, 49));
    let other = Band::of(0.0016).unwrap();
    assert!(calibration.is_empty_in(other) && !calibration.is_empty_in(band));
}

/// Calls whose ratios are `shift` times those of the audits that the multipliers rest on.
#[test]
fn the_correction_follows_what_calls_show() {
    let band = Band::of(0.0016).unwrap();
    for (shift, least, most) in [(1.4f32, 0.94, 0.96), (1.0, 0.95, 0.99), (0.5, 0.999, 1.0), (1.4, 0.0, 0.8)]
    {
        let corrected = least > 0.0;
        let mut calibration = audited(2, 9, 100, band);
        let (mut missed, mut asked) = (0.0, 0.0);
        for (call, draws) in uniform(99, 9 * 600).chunks_exact(9).enumerate() {
            let found: Vec<(usize, f32, f32)> =
                (0..9).zip(draws).map(|(h, x)| (h, 0.01, shift * 0.01 * x * (h + 1) as f32)).collect();
            if call >= 100 {
                let bound = |head| calibration.multiplier(band, head, 0.95).unwrap() * 0.01;
                missed += found.iter().filter(|(head, _, actual)| *actual > bound(*head)).count() as f32;
                asked += 9.0;
            }
            if corrected {
                calibration.follow(&errors(band, found));
            }
        }
        let covered = 1.0 - missed / asked;
        assert!((least..=most).contains(&covered), "{covered} at {shift}, corrected: {corrected}");
    }
    let mut calibration = audited(2, 9, 100, band);
    let limit = calibration.multiplier(band, 3, 0.95).unwrap();
    let before = calibration.exceedance(band, 3, [limit].into_iter(), 0.95).unwrap();
    (0..200).for_each(|_| calibration.follow(&errors(band, vec![(0, 0.01, f32::NAN)])));
    assert_eq!(calibration.correction, CORRECTION_MAX);
    assert!(calibration.exceedance(band, 3, [limit].into_iter(), 0.95).unwrap() > 10.0 * before);
    // A band in which nothing is bounded teaches nothing.
    calibration.follow(&errors(Band::of(0.0002).unwrap(), vec![(0, 0.01, 0.0)]));
    assert_eq!(calibration.correction, CORRECTION_MAX);
}
