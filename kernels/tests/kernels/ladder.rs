//! The ladder's arithmetic against its definitions in `f64`, at every tail length.

use longwave_kernels::ladder::{ClusterWeights, Estimated, GainOf, Limits, Spread, Uncertain};

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

#[test]
fn clusters_weigh_what_the_definition_says() {
    let mut sample = Sample::new(31);
    let limits = Limits { deviations: 3.0, rise: 80.0, centre: 20.0, spread: 10.0 };
    for count in 0..35 {
        let (centres, within) = (sample.numbers(count, 30.0), variances(&mut sample, count));
        let counts: Vec<f32> = (0..count).map(|_| 1.0 + sample.below(90) as f32).collect();
        let top = 4.25;
        for kernels in every_isa() {
            let [mut above, mut mass, mut estimate] = [(); 3].map(|()| vec![f32::NAN; count]);
            let spread = Spread { centres: &centres, within: &within, counts: &counts, top };
            let mut weights = ClusterWeights { above: &mut above, mass: &mut mass, estimate: &mut estimate };
            kernels.weigh_clusters(&spread, &limits, &mut weights);
            for i in 0..count {
                let (within, count) = (f64::from(within[i]), f64::from(counts[i]));
                let over = f64::from(centres[i] - top);
                let rise = within.min(3.0 * within.sqrt()).min(80.0);
                // What is left when 1 is taken from an exponential near 1 has that exponential's rounding.
                close(above[i], rise.exp_m1(), 2.5e-7, "above");
                close(mass[i], count * over.min(20.0).exp(), 1e-37, "mass");
                let uncertain = (over + (within / 4.0).min(1.0)).min(10.0);
                close(estimate[i], count * uncertain.exp(), 1e-37, "estimate");
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
        let (weights, on_mean) = (positive(&mut sample, 3.0), sample.numbers(count, 3.0));
        let (off, spread, error) =
            (positive(&mut sample, 7.0), positive(&mut sample, 0.5), positive(&mut sample, 0.1));
        let within = variances(&mut sample, count);
        let closed: Vec<f32> = (0..count).map(|i| (i % 3 != 1) as u8 as f32).collect();
        let counts: Vec<f32> = (0..count).map(|_| 1.0 + sample.below(90) as f32).collect();
        let estimated = Estimated {
            weights: &weights,
            on_mean: &on_mean,
            closed: &closed,
            within: &within,
            off: &off,
            value_spread: &spread,
            mean_error: &error,
            counts: &counts,
            scale: 0.125,
        };
        for kernels in every_isa() {
            let mut shifts = vec![f32::NAN; count];
            let found = kernels.cluster_noise(&estimated, &mut shifts);
            let mut expected = 0.0;
            for i in 0..count {
                let of = |slice: &[f32]| f64::from(slice[i]);
                let (share, within) = (of(&weights) * of(&closed) * 0.125, of(&within).min(2.0));
                let noise = within.exp_m1() * (of(&off) + of(&spread)) + of(&spread);
                expected += share * share / of(&counts) * noise;
                expected += (of(&on_mean) * 0.125).powi(2) * of(&error);
                close(shifts[i], share * (within / 4.0).exp_m1(), 1e-37, "shift");
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
            close(sums.noise, expected[2], 3e-7 * expected[1] + 1e-36, "noise");
            let most = |of: &[f32]| of.iter().copied().fold(0.0, f32::max);
            assert_eq!((sums.weight_max, sums.deviation_max), (most(&weights), most(&deviations)));
            assert_eq!(kernels.sum_rows(&weights, &deviations), sums, "{:?}", kernels.isa());
        }
    }
}

#[test]
fn gains_are_those_of_the_definition_and_add_up() {
    let mut sample = Sample::new(34);
    for count in 0..35 {
        let deviations: Vec<f32> = variances(&mut sample, count).iter().map(|v| v.sqrt()).collect();
        let weights: Vec<f32> = (0..count).map(|_| sample.number(2.0).abs()).collect();
        let before: Vec<f32> = (0..count).map(|_| sample.number(1.0).abs()).collect();
        let kinds =
            [GainOf::Key { deviations: 1.5, rise: 30.0 }, GainOf::Value { deviations: 1.5, rise: 30.0 }];
        for (kernels, kind) in every_isa().into_iter().flat_map(|k| kinds.map(|kind| (k, kind))) {
            let mut gains = before.clone();
            let rows = Uncertain { weights: &weights, deviations: &deviations, reach: 0.375 };
            kernels.row_gains(rows, kind, &mut gains);
            for i in 0..count {
                let deviation = f64::from(deviations[i]);
                let wide = (1.5 * deviation).min(30.0);
                let factor = match kind {
                    GainOf::Key { .. } => wide.exp_m1(),
                    GainOf::Value { .. } => deviation.powi(2).min(wide).exp(),
                };
                let gain = (f64::from(weights[i]) * 0.375 * factor).powi(2);
                close(gains[i], f64::from(before[i]) + gain, 1e-6, "gain");
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
        refused(&|| assert!(kernels.sum_rows(&[1.0; 3], &[1.0; 4]).weight >= 0.0));
        let rows = Uncertain { weights: &[1.0; 3], deviations: &[1.0; 3], reach: 1.0 };
        refused(&|| kernels.row_gains(rows, GainOf::Key { deviations: 1.0, rise: 1.0 }, &mut [0.0; 2]));
    }
}
