//! The ladder's arithmetic against its definitions in `f64`, at every tail length.

use longwave_kernels::ladder::{
    ClusterWeights, Estimated, GainOf, Limits, Probed, Rest, RestSums, Risen, RowSums, Spread, Uncertain,
};

use crate::DIMS;
use crate::isas::every_isa;
use crate::sample::Sample;

/// Scores are up to 60 and their roundings add up before an exponential: 60 * 2^-22, and those of the result.
const EXPONENTIAL: f64 = 3e-5;

fn close(found: f32, expected: f64, floor: f64, what: &str) {
    let off = (f64::from(found) - expected).abs();
    assert!(off <= EXPONENTIAL * expected.abs() + floor, "{what}: {found} for {expected}");
}

/// Variances from none to far beyond every limit.
fn variances(sample: &mut Sample, count: usize) -> Vec<f32> {
    let scale = [0.0, 1e-6, 0.01, 0.3, 2.0, 9.0, 400.0, 9000.0];
    (0..count).map(|_| sample.number(1.0).abs() * scale[sample.below(scale.len())]).collect()
}

const LIMITS: Limits = Limits { deviations: [2.5, 3.25], far: [5.5, 6.5], rise: 80.0, centre: 20.0 };

/// How far above its estimate a score in a cluster may lie.
fn rise(within: f64) -> f64 {
    let (near, far) = (within.clamp(2.5 * within.sqrt(), 3.25 * within.sqrt()), 5.5 * within.sqrt() - 6.5);
    near.max(far).min(80.0)
}

#[test]
fn clusters_weigh_what_the_definition_says() {
    let mut sample = Sample::new(31);
    for count in 0..35 {
        let (centres, spreads) = (sample.numbers(count, 30.0), variances(&mut sample, count));
        let counts: Vec<f32> = (0..count).map(|_| 1.0 + sample.below(90) as f32).collect();
        let (top, unit) = (4.25, 0.75);
        let before = sample.numbers(count, 40.0);
        let spread = Spread { centres: &centres, spreads: &spreads, unit, counts: &counts, top };
        for kernels in every_isa() {
            let [mut within, mut mass, mut estimate, mut shift] = [(); 4].map(|()| vec![f32::NAN; count]);
            let mut weights = ClusterWeights {
                within: &mut within,
                mass: &mut mass,
                estimate: &mut estimate,
                shift: &mut shift,
            };
            kernels.weigh_clusters(&spread, &LIMITS, &mut weights);
            let total = kernels.sum_masses(&spread, &LIMITS);
            let mut most = before.clone();
            kernels.raise_most(&spread, &LIMITS, -1.5, &mut most);
            let mut sum = 0.0;
            for i in 0..count {
                assert_eq!(within[i], unit * spreads[i]);
                let (within, count) = (f64::from(within[i]), f64::from(counts[i]));
                let over = f64::from(centres[i] - top);
                let weight = count * over.min(20.0).exp();
                sum += weight;
                close(mass[i], weight, 1e-37, "mass");
                let allowed = weight * (within / 4.0).min(1.0).exp();
                close(estimate[i], allowed, 1e-37, "estimate");
                close(shift[i], allowed * (within / 4.0).min(0.5).exp_m1(), 1e-37, "shift");
                let expected = f64::from(before[i]).max(over - 1.5 + rise(within));
                // Three additions of numbers below 130.
                assert!((f64::from(most[i]) - expected).abs() < 3e-5, "most: {} for {expected}", most[i]);
            }
            close(total, sum, 1e-36, "sum of the masses");
        }
    }
}

#[test]
fn the_rest_sums_to_what_the_definition_says_and_leaves_out_what_could_hold_more() {
    let mut sample = Sample::new(37);
    for count in 0..35 {
        let (centres, spreads) = (sample.numbers(count, 30.0), variances(&mut sample, count));
        let counts: Vec<f32> = (0..count).map(|_| 1.0 + sample.below(90) as f32).collect();
        let values: Vec<f32> = (0..count).map(|_| sample.number(0.5).abs()).collect();
        // Some lie at the bound itself, and some are no number: neither is left out.
        let mut most = sample.numbers(count, 3.0);
        most.iter_mut().skip(2).step_by(5).for_each(|most| *most = 0.25);
        most.iter_mut().skip(4).step_by(9).for_each(|most| *most = f32::NAN);
        let (top, unit, least, shared) = (4.25, 0.75, 0.25, 1.25);
        let spread = Spread { centres: &centres, spreads: &spreads, unit, counts: &counts, top };
        let rest = Rest { most: &most, least, value_spread: &values, shared };
        let mut expected = [0.0f64; 5];
        for i in (0..count).filter(|&i| most[i].is_nan() || most[i] <= least) {
            let (within, count) = (f64::from(unit * spreads[i]), f64::from(counts[i]));
            let estimate = count * (f64::from(centres[i] - top).min(20.0) + (within / 4.0).min(1.0)).exp();
            let whole = within.min(2.0).exp();
            expected[0] += estimate;
            expected[1] += estimate * (within / 4.0).min(0.5).exp_m1();
            let common = (2.0 * within).min(f64::from(shared));
            expected[2] += estimate.powi(2) * (within.min(2.0).exp_m1() / count + common);
            expected[3] += estimate.powi(2) * whole * f64::from(values[i]) / count;
            expected[4] += estimate.powi(2);
        }
        for kernels in every_isa() {
            let sums = kernels.sum_rest(&spread, &LIMITS, &rest);
            let found = [sums.weight, sums.shift, sums.along, sums.inside, sums.squared];
            for (number, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                // Squares have the error of the exponential twice.
                let squares = if number < 2 { 0.0 } else { EXPONENTIAL * expected };
                close(found, expected, squares + 1e-36, "sum over the rest");
            }
            let none = kernels.sum_rest(&spread, &LIMITS, &Rest { least: f32::NEG_INFINITY, ..rest });
            let numbers = most.iter().all(|most| !most.is_nan());
            assert!(!numbers || none == RestSums::default(), "{:?}: {none:?}", kernels.isa());
        }
    }
}

#[test]
fn opening_a_cluster_gains_what_the_definition_says() {
    let mut sample = Sample::new(36);
    for count in 0..35 {
        let positive = |sample: &mut Sample, most: f32| -> Vec<f32> {
            (0..count).map(|_| sample.number(most).abs()).collect()
        };
        let (mass, off) = (positive(&mut sample, 3.0), positive(&mut sample, 7.0));
        let (inside, before) = (positive(&mut sample, 0.5), positive(&mut sample, 1.0));
        // Beyond this a square does not fit.
        let within: Vec<f32> = variances(&mut sample, count).into_iter().map(|w| w.min(75.0)).collect();
        let counts: Vec<f32> = (0..count).map(|_| 1.0 + sample.below(90) as f32).collect();
        let [m, w, o, i, c] = [&mass, &within, &off, &inside, &counts];
        let probed = Probed { mass: m, within: w, off: o, inside: i, counts: c, scale: 0.375 };
        for kernels in every_isa() {
            let mut gains = before.clone();
            kernels.probe_gains(&probed, &LIMITS, &mut gains);
            for at in 0..count {
                let of = |slice: &[f32]| f64::from(slice[at]);
                // What is left when 1 is taken from an exponential near 1 has that exponential's rounding.
                let above = rise(of(&within)).exp_m1();
                let row = of(&mass) * 0.375 / of(&counts);
                let reach = of(&off) + of(&inside);
                let expected = of(&before) + (row * above).powi(2) * reach;
                let rounding = 2.0 * row.powi(2) * above * 2.5e-7 * reach;
                close(gains[at], expected, rounding + 1e-12, "gain");
            }
        }
    }
}

#[test]
fn clusters_leave_the_noise_of_the_definition() {
    let mut sample = Sample::new(32);
    for count in 0..35 {
        let positive = |sample: &mut Sample, most: f32| -> Vec<f32> {
            (0..count).map(|_| sample.number(most).abs()).collect()
        };
        let weights = positive(&mut sample, 3.0);
        let (off, spread, error) =
            (positive(&mut sample, 7.0), positive(&mut sample, 0.5), positive(&mut sample, 0.1));
        let within = variances(&mut sample, count);
        let counts: Vec<f32> = (0..count).map(|_| 1.0 + sample.below(90) as f32).collect();
        let estimated = Estimated {
            weights: &weights,
            within: &within,
            off: &off,
            value_spread: &spread,
            mean_error: &error,
            counts: &counts,
            shared: 0.75,
            scale: 0.125,
        };
        for kernels in every_isa() {
            let found = kernels.cluster_noise(&estimated);
            let mut expected = 0.0;
            for i in 0..count {
                let of = |slice: &[f32]| f64::from(slice[i]);
                let (share, inside) = (of(&weights) * 0.125, of(&within).min(2.0));
                let noise = inside.exp_m1() * (of(&off) + of(&spread)) + of(&spread);
                let common = (2.0 * of(&within)).min(0.75) * of(&off);
                expected += share * share * (noise / of(&counts) + common + of(&error));
            }
            close(found, expected, 1e-37, "noise");
        }
    }
}

#[test]
fn rows_weigh_and_sum_as_the_definition_says() {
    let mut sample = Sample::new(33);
    for count in 0..70 {
        let deviations: Vec<f32> = variances(&mut sample, count).iter().map(|v| v.sqrt()).collect();
        let mut scores = sample.numbers(count, 30.0);
        // A place that weighs nothing, and one that the limit holds.
        scores.iter_mut().skip(3).step_by(11).for_each(|score| *score = f32::NEG_INFINITY);
        let (top, most) = (12.5, 10.0);
        for kernels in every_isa() {
            let mut weights = scores.clone();
            let sums = kernels.weigh_rows(&mut weights, &deviations, top, most);
            let mut expected = [0.0f64; 3];
            for i in 0..count {
                let variance = f64::from(deviations[i]).powi(2);
                let over = f64::from(scores[i]) + (variance / 2.0).min(1.0) - f64::from(top);
                let weight = over.min(f64::from(most)).exp();
                // Below what a weight can be, it is none.
                close(weights[i], weight, 1e-37, "weight");
                expected[0] += weight;
                expected[1] += weight * weight;
                expected[2] += weight * weight * variance.min(4.0).exp_m1();
            }
            close(sums.weight, expected[0], 1e-36, "sum");
            close(sums.squared, expected[1], 1e-36, "sum of squares");
            close(sums.noise, expected[2], 2e-5 * expected[2] + 1e-36, "noise");
            let most = |of: &[f32]| of.iter().copied().fold(0.0, f32::max);
            assert_eq!((sums.weight_max, sums.deviation_max), (most(&weights), most(&deviations)));
            // Of two heads, the second of which starts three places behind the first's last row.
            let second = |plane: &[f32]| [&vec![9.0; count + 3], plane].concat();
            let (stride, mut found) = (count + 3, [RowSums::default(); 2]);
            kernels.sum_rows(&second(&weights), &second(&deviations), count, stride, &mut found);
            assert_eq!((found[1], found[0].weight), (sums, 9.0 * count as f32), "{:?}", kernels.isa());
        }
    }
}

#[test]
fn gains_are_those_of_the_definition_summed_over_the_heads() {
    let mut sample = Sample::new(34);
    for count in 0..35 {
        let (heads, stride) = (1 + count % 5, count + 2);
        let places = heads * stride;
        let deviations: Vec<f32> = variances(&mut sample, places).iter().map(|v| v.sqrt()).collect();
        let weights: Vec<f32> = (0..places).map(|_| sample.number(2.0).abs()).collect();
        let reach: Vec<f32> = (0..heads).map(|_| sample.number(1.0).abs()).collect();
        let kinds =
            [GainOf::Key { deviations: 1.5, rise: 30.0 }, GainOf::Value { deviations: 1.5, rise: 30.0 }];
        for (kernels, kind) in every_isa().into_iter().flat_map(|k| kinds.map(|kind| (k, kind))) {
            let mut gains = vec![f32::NAN; count];
            let rows = Uncertain { weights: &weights, deviations: &deviations, stride, reach: &reach };
            kernels.row_gains(rows, kind, &mut gains);
            for (row, &gain) in gains.iter().enumerate() {
                let of_head = |head: usize| {
                    let at = head * stride + row;
                    let deviation = f64::from(deviations[at]);
                    let wide = (1.5 * deviation).min(30.0);
                    let factor = match kind {
                        GainOf::Key { .. } => wide.exp_m1(),
                        GainOf::Value { .. } => deviation.powi(2).min(wide).exp(),
                    };
                    (f64::from(weights[at]) * f64::from(reach[head]) * factor).powi(2)
                };
                close(gain, (0..heads).map(of_head).sum(), 1e-6, "gain");
            }
        }
    }
}

#[test]
fn rows_rise_above_their_centroid_as_the_definition_says() {
    let mut sample = Sample::new(38);
    for count in 0..35 {
        let deviations: Vec<f32> = variances(&mut sample, count).iter().map(|v| v.sqrt()).collect();
        let weights: Vec<f32> = (0..count).map(|_| sample.number(2.0).abs()).collect();
        // Some lie beyond what counts, on either side.
        let scores = sample.numbers(count, 9.0);
        let (centre, most, variance) = (2.5, 6.0, 2.0);
        let (mut expected, mut terms) = ([0.0f64; 2], 0.0);
        for ((&weight, &score), &deviation) in weights.iter().zip(&scores).zip(&deviations) {
            let (weight, above) = (f64::from(weight), f64::from(score) - f64::from(centre));
            let squared = f64::from(deviation).powi(2);
            let rise = (above + squared.min(f64::from(variance))).clamp(-f64::from(most), f64::from(most));
            expected[0] += weight * rise;
            expected[1] += above * above + squared;
            terms += weight * (above.abs() + squared.min(f64::from(variance)));
        }
        let [weights, scores, deviations] = [&weights, &scores, &deviations];
        for kernels in every_isa() {
            let risen = Risen { weights, scores, deviations, centre, most, variance };
            let found = kernels.sum_rises(&risen);
            // Five roundings of each term, and those of adding up eight sums of up to five, or sixteen of three.
            let rounding = 26.0 / f64::from(1u32 << 24);
            for ((found, expected), size) in found.into_iter().zip(expected).zip([terms, expected[1]]) {
                let off = (f64::from(found) - expected).abs();
                assert!(off <= rounding * size, "{count} rows: {found} for {expected}");
            }
        }
    }
}

#[test]
fn rows_of_integers_score_within_rounding() {
    let mut sample = Sample::new(35);
    for (dim, heads) in DIMS.into_iter().zip((1..=11).cycle()) {
        let count = 1 + dim % 13;
        let rows: Vec<i8> = (0..count * dim).map(|_| sample.bits() as i8).collect();
        let queries = sample.numbers(heads * dim, 2.0);
        for kernels in every_isa() {
            let mut scores = vec![f32::NAN; count * heads];
            kernels.scores_i8(&queries, heads, dim, &rows, &mut scores);
            for (place, score) in scores.iter().enumerate() {
                let (row, head) = (place / heads, place % heads);
                let products =
                    (0..dim).map(|i| f64::from(queries[head * dim + i]) * f64::from(rows[row * dim + i]));
                let exact: f64 = products.clone().sum();
                let bound = (dim / 8 + 8) as f64 / (1u64 << 24) as f64 * products.map(f64::abs).sum::<f64>();
                assert!((f64::from(*score) - exact).abs() <= 1.01 * bound, "{dim} {place}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_panics() {
    for kernels in every_isa() {
        let refused = |act: &dyn Fn()| {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err());
        };
        refused(&|| kernels.scores_i8(&[1.0; 16], 2, 8, &[1; 12], &mut [0.0; 4]));
        refused(&|| assert!(kernels.weigh_rows(&mut [1.0; 3], &[1.0; 2], 0.0, 1.0).weight >= 0.0));
        refused(&|| kernels.sum_rows(&[1.0; 6], &[1.0; 7], 3, 4, &mut [RowSums::default(); 2]));
        refused(&|| kernels.sum_rows(&[1.0; 8], &[1.0; 8], 3, 2, &mut [RowSums::default(); 2]));
        let rows = Uncertain { weights: &[1.0; 3], deviations: &[1.0; 3], stride: 2, reach: &[1.0; 2] };
        let (scores, deviations) = (&[1.0; 3][..], &[1.0; 2][..]);
        let risen = Risen { weights: &[1.0; 3], scores, deviations, centre: 0.0, most: 1.0, variance: 1.0 };
        refused(&|| assert!(kernels.sum_rises(&risen)[0] > 0.0));
        refused(&|| kernels.row_gains(rows, GainOf::Key { deviations: 1.0, rise: 1.0 }, &mut [0.0; 2]));
    }
}
