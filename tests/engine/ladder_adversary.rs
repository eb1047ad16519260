//! Rows made to mislead the method `longwave`: it answers well, or says that it does not. Islands of nearly equal rows that
//! fill several clusters, or share one, are left out: docs/accuracy.md says how often those mislead it.

use crate::reference::{Case, case_options, centred};
use crate::sample::{Kv, Sample, model, queries, query_view, round};
use longwave::{Budget, ClusterOptions, Dtype, ModelSpec};

const SINKS: usize = 3;
const TOKENS: usize = SINKS + 512 + 8;
const ISLAND: usize = 32;
const TAUS: [f64; 4] = [0.5, 0.05, 0.005, 0.0005];

fn spec(dtype: Dtype) -> ModelSpec {
    model([2, 4, 24, 16], dtype, 1)
}

/// Keys in clusters far from each other, each `spread` wide: 32 rows one after the other.
fn islands(seed: u64, model: &ModelSpec, spread: f32) -> Kv {
    islands_of(seed, model, [spread, 0.6])
}

/// The same, keys and values as wide as said.
fn islands_of(seed: u64, model: &ModelSpec, [keys, values]: [f32; 2]) -> Kv {
    let mut kv = Kv::new(seed, 0, model);
    for token in 0..TOKENS {
        for head in 0..model.kv_heads {
            let mut row = Sample::new(seed ^ (token as u64) << 20 ^ (head as u64) << 44);
            let island = (token.saturating_sub(SINKS) / ISLAND) as u64;
            let mut centre = Sample::new(seed ^ 5 ^ island << 9 ^ (head as u64) << 30);
            let mut near = |wide: f32| 2.0 * centre.number() + wide * row.number();
            kv.keys.extend((0..model.key_dim).map(|_| round(model.dtype, near(keys))));
            kv.values.extend((0..model.value_dim).map(|_| round(model.dtype, near(values))));
        }
    }
    kv
}

fn build(model: &ModelSpec, kv: Kv, tokens_per_cluster: u32) -> Case {
    let options = case_options()
        .with_exact_rows(SINKS as u32, 5)
        .with_segment_rows(256, 128)
        .with_clusters(ClusterOptions { tokens_per_cluster, ..ClusterOptions::ladder() });
    Case::sealed(model.clone(), options, kv, &queries(3, 8, model), TOKENS)
}

/// What is wrong with the answer at one tau. An error is told when its prediction is above a tenth of it; predictions
/// count as 1e-5 at least, as for bounds, and errors that the rounding of scores and sums explains do not count. Errors
/// are against the longer of answer and truth: an answer much too long cannot be wrong by more than itself.
fn untold(case: &Case, queries: &[f32], tau: f64) -> Option<String> {
    let (model, view) = (&case.model, query_view(queries, &case.model));
    let exact = case.snapshot.attend(0, &view, &Budget::Exact).unwrap();
    let answer = case.snapshot.attend(0, &view, &Budget::Tau(tau)).unwrap();
    assert!(answer.output.iter().chain(&answer.lse).all(|x| x.is_finite()), "tau {tau}: {answer:?}");
    let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|x| x * x).sum::<f64>().sqrt();
    let longest =
        case.kv.values.chunks_exact(model.value_dim).map(|v| norm(&mut v.iter().map(|&x| f64::from(x))));
    let longest = longest.fold(0.0, f64::max);
    for head in 0..model.query_heads {
        let place = head * model.value_dim..(head + 1) * model.value_dim;
        let pairs = || answer.output[place.clone()].iter().zip(&exact.output[place.clone()]);
        let off = norm(&mut pairs().map(|(a, e)| f64::from(*a) - f64::from(*e)));
        let lengths =
            [norm(&mut pairs().map(|(a, _)| f64::from(*a))), norm(&mut pairs().map(|(_, e)| f64::from(*e)))];
        let error = off / lengths[0].max(lengths[1]);
        let rounding = 8.0 * f64::from(f32::EPSILON) * (1.0 + highest(case, queries, head)) * longest;
        let predicted = f64::from(answer.report.predicted_error[head]);
        assert!(predicted.is_finite(), "tau {tau}, head {head}: predicted {predicted}");
        if off > rounding && predicted.max(1e-5) <= error / 10.0 {
            return Some(format!("tau {tau}, head {head}: error {error:.1e}, predicted {predicted:.1e}"));
        }
    }
    None
}

/// The largest size of a score of one query head.
fn highest(case: &Case, queries: &[f32], head: usize) -> f64 {
    let (dim, kv_head) = (case.model.key_dim, head / case.group());
    let query = &queries[head * dim..][..dim];
    let keys = case.kv.keys.chunks_exact(dim).skip(kv_head).step_by(case.model.kv_heads);
    let products =
        keys.map(|key| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>());
    products.map(f64::abs).fold(0.0, f64::max) * f64::from(case.model.scale)
}

/// Sharp and blunt queries at every tau.
fn judge(name: &str, case: &Case) {
    for sharp in [0.5f32, 1.0, 4.0] {
        for seed in 0..3 {
            let asked: Vec<f32> = queries(seed, 1, &case.model).iter().map(|x| sharp * x).collect();
            for tau in TAUS {
                let found = untold(case, &asked, tau);
                assert!(found.is_none(), "{name}, queries {seed} times {sharp}: {}", found.unwrap());
            }
        }
    }
}

#[test]
fn equal_keys() {
    let model = spec(Dtype::F16);
    let mut kv = islands(6, &model, 0.3);
    let (first, others) = kv.keys.split_at_mut(2 * 24);
    others.chunks_exact_mut(2 * 24).for_each(|keys| keys.copy_from_slice(first));
    judge("equal keys", &build(&model, kv, 32));
}

#[test]
fn huge_norms() {
    let model = spec(Dtype::F32);
    for scale in [10.0, 30.0, 100.0] {
        let mut kv = islands(7, &model, 0.3);
        kv.keys.iter_mut().for_each(|key| *key *= scale);
        judge(&format!("keys times {scale}"), &build(&model, kv, 32));
    }
    for scale in [30.0, 1e3, 1e6, 1e12] {
        let mut kv = islands(7, &model, 0.3);
        kv.values.iter_mut().for_each(|value| *value *= scale);
        judge(&format!("values times {scale}"), &build(&model, kv, 32));
        let mut kv = islands(8, &model, 0.3);
        kv.values.chunks_exact_mut(16).step_by(37).flatten().for_each(|value| *value *= scale);
        judge(&format!("some values times {scale}"), &build(&model, kv, 32));
    }
}

#[test]
fn clusters_of_one_and_of_two() {
    let model = spec(Dtype::Bf16);
    for tokens_per_cluster in [1, 2] {
        let kv = centred(9, TOKENS, &model, [0.2, 1.0]);
        judge(&format!("clusters of {tokens_per_cluster}"), &build(&model, kv, tokens_per_cluster));
    }
}

#[test]
fn values_of_zero_and_values_that_cancel() {
    let model = spec(Dtype::F16);
    let islands = || islands(10, &model, 0.3);
    let zeros = |kept: &dyn Fn(usize) -> bool| {
        let mut kv = islands();
        let rows = kv.values.chunks_exact_mut(2 * 16).enumerate();
        rows.filter(|(token, _)| !kept(*token)).for_each(|(_, values)| values.fill(0.0));
        build(&model, kv, 32)
    };
    judge("no values", &zeros(&|_| false));
    judge("values in the tail alone", &zeros(&|token| !(SINKS..TOKENS - 9).contains(&token)));
    judge("values in one row alone", &zeros(&|token| token == 200));
    let mut kv = islands();
    for (token, values) in kv.values.chunks_exact_mut(2 * 16).enumerate() {
        let sign = if token % 2 == 0 { 1.0 } else { -1.0 };
        values.iter_mut().for_each(|x| *x = round(model.dtype, sign + 1e-3 * *x));
    }
    judge("values that cancel", &build(&model, kv, 32));
}

/// Moves the row `token` of every head, and its island with it, so that the first query of the head's group scores the
/// island `level` above all others, and the row `rise` above that. Both queries of the group become that one.
fn aim(model: &ModelSpec, kv: &mut Kv, asked: &mut [f32], token: usize, level: f32, rise: f32) {
    for head in 0..model.kv_heads {
        let query: Vec<f32> = asked[head * 2 * 24..][..24].to_vec();
        asked[(head * 2 + 1) * 24..][..24].copy_from_slice(&query);
        let dot = |key: &[f32]| key.iter().zip(&query).map(|(k, q)| k * q).sum::<f32>() * model.scale;
        let place = |token: usize| (token * model.kv_heads + head) * 24;
        let scores: Vec<f32> = (0..TOKENS).map(|token| dot(&kv.keys[place(token)..][..24])).collect();
        let top = scores.iter().copied().fold(f32::MIN, f32::max);
        let first = SINKS + (token - SINKS) / ISLAND * ISLAND;
        let mean = scores[first..first + ISLAND].iter().sum::<f32>() / ISLAND as f32;
        for row in first..first + ISLAND {
            let shift = top + level - mean + if row == token { rise } else { 0.0 };
            let key = &mut kv.keys[place(row)..][..24];
            let along = shift / (query.iter().map(|q| q * q).sum::<f32>() * model.scale);
            key.iter_mut().zip(&query).for_each(|(k, q)| *k = round(model.dtype, *k + along * q));
        }
    }
}

/// One row that a query is after, far from its cluster.
fn outlier(seed: u64, spread: f32, token: usize, level: f32, rise: f32) -> Option<String> {
    let model = spec(Dtype::F32);
    let mut kv = islands(seed, &model, spread);
    let mut asked = queries(seed ^ 8, 1, &model);
    aim(&model, &mut kv, &mut asked, token, level, rise);
    let case = build(&model, kv, 32);
    TAUS.into_iter().find_map(|tau| untold(&case, &asked, tau))
}

/// From a cluster that matters by itself to one that only this row makes matter.
#[test]
fn one_row_far_from_its_tight_cluster() {
    let cases = [(0.0, 5.0), (-3.0, 8.0), (-8.0, 9.0), (-10.0, 30.0), (-20.0, 22.0)];
    for (level, rise) in cases.into_iter().chain([(-20.0, 30.0), (-50.0, 52.0), (-50.0, 60.0)]) {
        for spread in [0.02, 0.1] {
            let found = outlier(5, spread, 130, level, rise);
            assert!(
                found.is_none(),
                "spread {spread}, {rise} above a cluster at {level}: {}",
                found.unwrap()
            );
        }
    }
}

#[test]
fn one_row_with_all_the_mass() {
    for rise in [30.0, 60.0, 200.0, 3000.0] {
        let found = outlier(11, 0.3, 300, 0.0, rise);
        assert!(found.is_none(), "{rise} above all: {}", found.unwrap());
    }
}

/// From 0 to below 1, mostly in the middle.
fn share(draw: &mut Sample) -> f32 {
    ((draw.number() / 3.0 + 1.0) / 2.0).clamp(0.0, 0.9999)
}

/// Between powers of ten.
fn power(draw: &mut Sample, [from, to]: [f32; 2]) -> f32 {
    10f32.powf(from + (to - from) * share(draw))
}

/// What is wrong with islands of rows as different or as nearly equal as the draw says, of keys short or far longer than a
/// model's, for queries blunt or sharp.
fn searched(seed: u64, widths: [f32; 2], scales: [f32; 2]) -> Option<String> {
    let model = spec(Dtype::F32);
    let mut draw = Sample::new(seed);
    let spreads = [power(&mut draw, widths), power(&mut draw, widths)];
    let (scale, sharp) = (power(&mut draw, scales), power(&mut draw, [-0.5, 0.7]));
    let mut kv = islands_of(seed, &model, spreads);
    kv.keys.iter_mut().for_each(|key| *key *= scale);
    let case = build(&model, kv, 32);
    (0..3).find_map(|query| {
        let asked: Vec<f32> = queries(seed ^ query << 7, 1, &model).iter().map(|x| sharp * x).collect();
        let found = TAUS.into_iter().find_map(|tau| untold(&case, &asked, tau))?;
        Some(format!("seed {seed}: islands {spreads:?} wide, keys times {scale}, queries {sharp}: {found}"))
    })
}

fn search(widths: [f32; 2], scales: [f32; 2]) -> Vec<String> {
    (1..=120).filter_map(|seed| searched(seed * 7919, widths, scales)).collect()
}

#[test]
fn rows_that_are_nearly_equal() {
    let found = search([-4.0, -1.0], [-0.5, 0.5]);
    assert!(found.is_empty(), "{} of 120:\n{}", found.len(), found.join("\n"));
}

/// Three to ten thousand times as long as a model's.
#[test]
fn keys_of_any_length() {
    let found = search([-2.0, 0.3], [0.5, 4.0]);
    assert!(found.is_empty(), "{} of 120:\n{}", found.len(), found.join("\n"));
}
