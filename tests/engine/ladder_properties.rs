//! What holds of the method `longwave` whatever the rows: exact at tau 0, better as tau falls, blind to the order of
//! tokens.

use crate::ladder::errors;
use crate::reference::{Case, case_options, centred};
use crate::sample::{Kv, Sample, bits, logits, model, queries, query_view, round};
use longwave::{Answer, Budget, ClusterOptions, Dtype, ModelSpec};
use proptest::prelude::*;

fn ask(case: &Case, queries: &[f32], budget: &Budget) -> Answer {
    case.snapshot.attend(0, &query_view(queries, &case.model), budget).unwrap()
}

/// Models of unequal shapes, with and without what a layer may do to its logits.
#[derive(Clone, Debug)]
struct Any {
    shape: [usize; 4],
    dtype: Dtype,
    softcap: Option<f32>,
    sink_logits: bool,
    seed: u64,
    tokens: usize,
}

impl Any {
    fn any() -> impl Strategy<Value = Any> {
        let shapes =
            prop::sample::select(vec![[3, 6, 24, 16], [1, 4, 16, 40], [2, 2, 72, 8], [2, 8, 40, 24]]);
        let dtypes = prop::sample::select(vec![Dtype::F16, Dtype::Bf16, Dtype::F32]);
        let softcap = prop::option::of(1.5f32..20.0);
        (shapes, dtypes, softcap, any::<bool>(), any::<u64>(), 400usize..700).prop_map(
            |(shape, dtype, softcap, sink_logits, seed, tokens)| Any {
                shape,
                dtype,
                softcap,
                sink_logits,
                seed,
                tokens,
            },
        )
    }

    fn case(&self) -> Case {
        let mut model = model(self.shape, self.dtype, 1);
        model.softcap = self.softcap;
        model.sink_logits = if self.sink_logits { vec![logits(self.seed, &model)] } else { vec![] };
        let kv = centred(self.seed, self.tokens, &model, [0.2, 1.0]);
        let observed = queries(self.seed ^ 7, 6, &model);
        Case::new(model, case_options(), kv, &observed)
    }
}

fn fixed(cases: u32) -> ProptestConfig {
    let rng_seed = prop::test_runner::RngSeed::Fixed(11);
    ProptestConfig { cases, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(fixed(12))]

    #[test]
    fn at_a_tau_of_zero_the_answer_is_exact(any in Any::any(), seed: u64, positions in 1usize..4) {
        let case = any.case();
        let queries = queries(seed, positions, &case.model);
        let exact = ask(&case, &queries, &Budget::Exact);
        prop_assert_eq!(bits(&ask(&case, &queries, &Budget::Tau(0.0))), bits(&exact));
        // Next to 0 the whole ladder is climbed.
        let answer = ask(&case, &queries, &Budget::Tau(1e-30));
        let off = errors(&answer, &exact, case.model.value_dim);
        prop_assert!(off.iter().all(|&error| error < 1e-5), "{off:?}");
        prop_assert!(answer.report.predicted_error.iter().all(|&error| error < 1e-5), "{:?}", answer.report.predicted_error);
        prop_assert!(answer.report.positions.iter().all(|position| position.rows_read > 0));
    }

    #[test]
    fn the_error_and_its_prediction_fall_as_tau_falls(any in Any::any(), seed: u64) {
        let case = any.case();
        let mut last = [f64::INFINITY; 2];
        let mut first = None;
        for tau in [0.3, 0.05, 0.008, 0.0012, 0.0002] {
            let mut sums = [0.0; 2];
            for call in 0..6 {
                let queries = queries(seed ^ call, 1, &case.model);
                let exact = ask(&case, &queries, &Budget::Exact);
                let answer = ask(&case, &queries, &Budget::Tau(tau));
                sums[0] += errors(&answer, &exact, case.model.value_dim).iter().sum::<f64>();
                sums[1] += answer.report.predicted_error.iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            prop_assert!(sums[0] < last[0] && sums[1] < last[1], "tau {tau}: {sums:?} after {last:?}");
            first.get_or_insert(sums);
            last = sums;
        }
        let first = first.unwrap();
        prop_assert!(last[0] < 0.1 * first[0] && last[1] < 0.1 * first[1], "{first:?} to {last:?}");
    }
}

const SEGMENT: usize = 240;
const CLUSTER: usize = 12;

/// Two segments of clusters that no clustering can miss: twelve rows each around centres far from each other, the second
/// segment's rows in the order `order`.
fn islands(seed: u64, model: &ModelSpec, sinks: usize, order: &[usize]) -> Kv {
    let sorted = |token: usize| match token.checked_sub(sinks + SEGMENT) {
        Some(row) if row < SEGMENT => sinks + SEGMENT + order[row],
        _ => token,
    };
    let mut kv = Kv::new(seed, 0, model);
    for token in (0..sinks + 2 * SEGMENT + 9).map(sorted) {
        for head in 0..model.kv_heads {
            let mut row = Sample::new(seed ^ (token as u64) << 20 ^ (head as u64) << 44);
            let island = (token.saturating_sub(sinks) / CLUSTER) as u64;
            let mut centre = Sample::new(seed ^ 5 ^ island << 9 ^ (head as u64) << 30);
            kv.keys.extend(
                (0..model.key_dim).map(|_| round(model.dtype, 4.0 * centre.number() + 0.4 * row.number())),
            );
            kv.values.extend(
                (0..model.value_dim).map(|_| round(model.dtype, centre.number() + 0.5 * row.number())),
            );
        }
    }
    kv
}

/// An order of the segment's rows that mixes clusters among themselves and rows within them: every clustering begins
/// with one row of each.
fn shuffled(seed: u64) -> Vec<usize> {
    let mut random = Sample::new(seed);
    let mut shuffle = |count: usize| {
        let mut order: Vec<usize> = (0..count).collect();
        (1..count).for_each(|i| order.swap(i, random.below(i + 1)));
        order
    };
    let islands = shuffle(SEGMENT / CLUSTER);
    islands
        .into_iter()
        .flat_map(|island| shuffle(CLUSTER).into_iter().map(move |row| island * CLUSTER + row))
        .collect()
}

#[test]
fn the_order_of_a_segments_tokens_changes_nothing_beyond_rounding() {
    let mut model = model([2, 6, 24, 16], Dtype::F16, 1);
    model.softcap = Some(30.0);
    let options = case_options()
        .with_segment_rows(SEGMENT as u32, 90)
        .with_clusters(ClusterOptions { tokens_per_cluster: CLUSTER as u32, ..ClusterOptions::ladder() });
    let observed = queries(9, 8, &model);
    let of = |order: &[usize]| {
        let kv = islands(70, &model, 3, order);
        let tokens = kv.tokens();
        Case::sealed(model.clone(), options.clone(), kv, &observed, tokens)
    };
    let straight = of(&(0..SEGMENT).collect::<Vec<_>>());
    for seed in 0..3 {
        let mixed = of(&shuffled(seed));
        for case in [&straight, &mixed] {
            // The labels are those of the islands.
            let view = case.segments()[1].ladder().unwrap().unwrap();
            for head in 0..model.kv_heads {
                let offsets = view.postings().offsets(head).unwrap();
                assert!(offsets.iter().enumerate().all(|(c, &offset)| offset as usize == c * CLUSTER));
            }
        }
        for (number, tau) in [0.001, 0.02, 0.3].into_iter().enumerate() {
            let queries: Vec<f32> = queries(40 + number as u64, 1, &model).iter().map(|x| 0.5 * x).collect();
            let (one, other) =
                (ask(&straight, &queries, &Budget::Tau(tau)), ask(&mixed, &queries, &Budget::Tau(tau)));
            let off = errors(&one, &other, model.value_dim);
            assert!(off.iter().all(|&off| off < 1e-5), "{off:?}");
            for (one, other) in one.report.predicted_error.iter().zip(&other.report.predicted_error) {
                assert!((one / other - 1.0).abs() < 1e-4, "{one} {other}");
            }
            // Rows lie elsewhere, in other pages.
            let mut traffic = [one.report.traffic, other.report.traffic];
            traffic.iter_mut().for_each(|traffic| traffic.pages = 0);
            assert_eq!(traffic[0], traffic[1]);
            assert!(bits(&one) != bits(&ask(&straight, &queries, &Budget::Exact)));
        }
    }
}
