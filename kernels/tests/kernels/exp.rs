use longwave_kernels::oracle::{self, EXP_ERROR, SOFTCAP_ERROR, UNIT};

use crate::isas::every_isa;
use crate::sample::{Sample, bits};

#[test]
fn exponentials_keep_their_relative_error_over_the_whole_range() {
    // Every 499th number of both signs, from the smallest subnormal to -87 and 88: about 4 million.
    let negative = (0..=(-87.0f32).to_bits()).skip(0x8000_0000).step_by(499).map(f32::from_bits);
    let positive = (0..=88.0f32.to_bits()).step_by(499).map(f32::from_bits);
    let xs: Vec<f32> = negative.chain(positive).chain([-87.0, 88.0, 0.0, -0.0]).collect();
    for kernels in every_isa() {
        let mut weights = xs.clone();
        let mut sum = [0.0];
        kernels.exp_weights(&mut weights, 1, &[0.0], &mut sum);
        let mut worst = 0.0f64;
        for (&x, &weight) in xs.iter().zip(&weights) {
            let exact = f64::from(x).exp();
            let error = (f64::from(weight) / exact - 1.0).abs();
            assert!(error <= EXP_ERROR, "{}: exp({x:e}) is {weight:e}, off by {error:e}", kernels.isa());
            worst = worst.max(error);
        }
        println!("{}: largest relative error of exp 2^{:.2}", kernels.isa(), worst.log2());
    }
}

#[test]
fn exponentials_outside_the_range_vanish_or_saturate() {
    for kernels in every_isa() {
        let below = f32::from_bits((-87.0f32).to_bits() + 1);
        let mut weights =
            [f32::NEG_INFINITY, f32::MIN, -1000.0, -88.0, below, 89.0, f32::MAX, f32::INFINITY, f32::NAN];
        kernels.exp_weights(&mut weights, 1, &[0.0], &mut [0.0]);
        assert_eq!(bits(&weights[..5]), [0; 5], "{}", kernels.isa());
        let saturated = 88f64.exp();
        for weight in &weights[5..8] {
            assert!(
                (f64::from(*weight) / saturated - 1.0).abs() <= EXP_ERROR,
                "{} {weight:e}",
                kernels.isa()
            );
        }
        assert!(weights[8].is_nan(), "{}: NaN must not be hidden", kernels.isa());
    }
}

#[test]
fn weights_sums_and_maxima_of_every_shape() {
    for heads in (1..=20).chain([64, 1030]) {
        for count in (0..=40).chain([300, 1000]) {
            if heads * count > 50_000 {
                continue;
            }
            let mut sample = Sample::new((heads * 1000 + count) as u64);
            // Each head has its own range; one row in seven is masked, and one head throughout.
            let scores: Vec<f32> = (0..heads * count)
                .map(|place| {
                    let (row, head) = (place / heads, place % heads);
                    let score = sample.number(30.0) + head as f32;
                    if row % 7 == 3 || head == 5 { f32::NEG_INFINITY } else { score }
                })
                .collect();
            let floor: Vec<f32> =
                (0..heads).map(|head| if head % 3 == 1 { 25.0 } else { f32::NEG_INFINITY }).collect();
            for kernels in every_isa() {
                let context = format!("{} {heads} heads, {count} rows", kernels.isa());
                let mut max = floor.clone();
                kernels.max_per_head(&scores, heads, &mut max);
                let of_head = |head: usize| scores.iter().skip(head).step_by(heads).copied();
                for head in 0..heads {
                    assert_eq!(max[head], of_head(head).fold(floor[head], f32::max), "{context}");
                }

                let mut weights = scores.clone();
                let before: Vec<f32> = (0..heads).map(|head| head as f32).collect();
                let mut sums = before.clone();
                kernels.exp_weights(&mut weights, heads, &max, &mut sums);
                for (place, &weight) in weights.iter().enumerate() {
                    let (exact, bound) = oracle::weight(scores[place], max[place % heads]);
                    assert!((f64::from(weight) - exact).abs() <= bound, "{context}, place {place}");
                }
                // The sums are of the weights as they came out: at most 256 additions and one for each 256 rows.
                let roundings = (count.min(256) + 4 + count / 256 + 1) as f64;
                for head in 0..heads {
                    let exact: f64 = f64::from(before[head])
                        + weights.iter().skip(head).step_by(heads).map(|&w| f64::from(w)).sum::<f64>();
                    let bound = 1.01 * roundings * UNIT * exact;
                    assert!((f64::from(sums[head]) - exact).abs() <= bound, "{context}, head {head}");
                }
            }
        }
    }
}

#[test]
fn a_head_that_is_masked_throughout_weighs_nothing() {
    for kernels in every_isa() {
        let mut scores = [f32::NEG_INFINITY; 3 * 5];
        let mut sums = [0.0; 3];
        kernels.exp_weights(&mut scores, 3, &[f32::NEG_INFINITY; 3], &mut sums);
        assert_eq!(bits(&scores), [0; 15], "{}", kernels.isa());
        assert_eq!(sums, [0.0; 3]);
    }
}

#[test]
fn the_soft_cap_keeps_its_error_sign_and_masks() {
    let mut sample = Sample::new(77);
    for cap in [0.5f32, 30.0, 50.0] {
        for count in 0..=40 {
            let mut scores = sample.numbers(count, 4.0 * cap);
            if count > 4 {
                scores[1] = f32::NEG_INFINITY;
                scores[2] = -0.0;
                scores[3] = 1e-42;
                scores[4] = -3e38;
            }
            for kernels in every_isa() {
                let mut capped = scores.clone();
                kernels.softcap(&mut capped, cap);
                for (&score, &capped) in scores.iter().zip(&capped) {
                    let exact = oracle::softcap(f64::from(score), f64::from(cap));
                    if exact == f64::NEG_INFINITY {
                        assert_eq!(capped, f32::NEG_INFINITY);
                        continue;
                    }
                    let error = (f64::from(capped) - exact).abs();
                    assert!(
                        error <= SOFTCAP_ERROR * f64::from(cap),
                        "{} {score:e}: {error:e}",
                        kernels.isa()
                    );
                    assert_eq!(capped.is_sign_negative(), score.is_sign_negative());
                }
            }
        }
    }
}
