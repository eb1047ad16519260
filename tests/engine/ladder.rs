//! The method `longwave`: accuracy against exact attention, what it says of its error, and the budgets built on that.

use crate::sample::{Kv, bits, logits, memory_store, model, queries, query_view, round, small_options};
use longwave::{Answer, Budget, ClusterOptions, Context, Dtype, Durability, ModelSpec, Store};

const TOKENS: usize = 1800;

pub fn spec() -> ModelSpec {
    let mut model = model([3, 6, 24, 16], Dtype::F16, 1);
    model.softcap = Some(25.0);
    // Large enough to take a good share of the softmax.
    model.sink_logits = vec![logits(4, &model).iter().map(|logit| logit + 7.0).collect()];
    model
}

/// A sealed context whose metric comes from queries of the kind that are asked.
pub fn sealed(store: &Store, model: &ModelSpec) -> Context {
    let settings = small_options()
        .with_segment_rows(700, 100)
        .with_clusters(ClusterOptions { tokens_per_cluster: 16, ..ClusterOptions::ladder() });
    let mut context = store.create_with("ladder", model, settings).unwrap();
    let early = queries(90, 8, model);
    context.observe_at(0, 0, &query_view(&early, model)).unwrap();
    let mut kv = Kv::new(31, TOKENS, model);
    // Real keys share a mean that is large against their spread.
    for (i, x) in kv.keys.iter_mut().enumerate() {
        *x = round(model.dtype, *x + 2.0 * (0.7 * (i % model.key_dim) as f32).sin());
    }
    kv.append(&mut context, 0, 0..TOKENS);
    context.seal().unwrap();
    context
}

/// Relative error of each query head; 0 where both answers are 0.
pub fn errors(answer: &Answer, exact: &Answer, dim: usize) -> Vec<f64> {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let pairs = answer.output.chunks_exact(dim).zip(exact.output.chunks_exact(dim));
    pairs
        .map(|(answer, exact)| {
            let off: f64 = answer.iter().zip(exact).map(|(a, e)| square(a - e)).sum();
            if off == 0.0 { 0.0 } else { (off / exact.iter().map(|&e| square(e)).sum::<f64>()).sqrt() }
        })
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn errors_fall_and_bytes_grow_as_tau_falls() {
    let model = spec();
    let store = memory_store();
    let mut context = sealed(&store, &model);
    let mut last = (f64::INFINITY, 0);
    for tau in [0.05, 0.01, 0.002, 0.0004, 0.00002] {
        let (mut all, mut predicted, mut bytes) = (Vec::new(), Vec::new(), 0);
        for seed in 0..12 {
            let queries = queries(seed, 1, &model);
            let view = query_view(&queries, &model);
            let exact = context.attend(0, &view, &Budget::Exact).unwrap();
            let answer = context.attend(0, &view, &Budget::Tau(tau)).unwrap();
            assert_eq!(answer.report.predicted_error.len(), model.query_heads);
            assert!(answer.report.predicted_error.iter().all(|predicted| predicted.is_finite()));
            all.extend(errors(&answer, &exact, model.value_dim));
            predicted.extend(answer.report.predicted_error.iter().map(|&x| f64::from(x)));
            bytes += answer.report.traffic.bytes();
            for (mine, exact) in answer.lse.iter().zip(&exact.lse) {
                assert!((mine - exact).abs() < 0.5, "log-sum-exp {mine} against {exact}");
            }
        }
        assert!(mean(&all) < last.0 && bytes > last.1, "tau {tau}: error {} at {bytes} bytes", mean(&all));
        let ratio = mean(&all) / mean(&predicted);
        assert!(
            (0.75..1.33).contains(&ratio),
            "tau {tau}: {} against a predicted {}",
            mean(&all),
            mean(&predicted)
        );
        last = (mean(&all), bytes);
    }
    assert!(last.0 < 2e-3, "error {} at the smallest tau", last.0);
}

#[test]
fn a_tau_of_zero_is_exact_attention() {
    let model = spec();
    let store = memory_store();
    let mut context = sealed(&store, &model);
    let queries = queries(5, 3, &model);
    let view = query_view(&queries, &model);
    let exact = context.attend(0, &view, &Budget::Exact).unwrap();
    assert_eq!(bits(&context.attend(0, &view, &Budget::Tau(0.0)).unwrap()), bits(&exact));
}

#[test]
fn several_positions_are_answered_as_one_by_one_where_no_segment_is_cut() {
    let model = spec();
    let store = memory_store();
    let context = &mut sealed(&store, &model);
    let both = queries(8, 2, &model);
    let view = query_view(&both, &model);
    let exact = context.attend(0, &view, &Budget::Exact).unwrap();
    let answer = context.attend(0, &view, &Budget::Tau(0.00002)).unwrap();
    let off = errors(&answer, &exact, model.value_dim);
    assert!(off.iter().all(|error| *error < 0.02), "{off:?}");
    assert_eq!(answer.report.positions.len(), 2);
}

#[test]
fn nothing_is_bounded_before_audits_and_error_budgets_read_everything() {
    let model = spec();
    let store = memory_store();
    let mut context = sealed(&store, &model);
    let queries = queries(6, 1, &model);
    let view = query_view(&queries, &model);
    let snapshot = context.snapshot().unwrap();
    let answer = snapshot.attend(0, &view, &Budget::Tau(0.002)).unwrap();
    assert!(answer.report.bound.iter().all(Option::is_none), "{:?}", answer.report.bound);
    let budget = Budget::Error { target: 0.05, confidence: 0.95 };
    let answer = snapshot.attend(0, &view, &budget).unwrap();
    let exact = snapshot.attend(0, &view, &Budget::Exact).unwrap();
    assert!(errors(&answer, &exact, model.value_dim).iter().all(|error| *error < 1e-5));
    assert!(answer.report.taus.iter().all(|&tau| tau == 0.0), "{:?}", answer.report.taus);
}

#[test]
fn bounds_hold_after_audits_meet_targets_and_come_back_with_the_context() {
    let model = spec();
    let store = memory_store();
    let mut context = sealed(&store, &model);
    for seed in 100..160 {
        let queries = queries(seed, 1, &model);
        context.audit(0, &query_view(&queries, &model)).unwrap();
    }
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let snapshot = store.snapshot("ladder").unwrap();
    let (target, mut within, mut covered, mut count, mut spent, mut full) = (0.05, 0, 0, 0, 0, 0);
    for seed in 0..60 {
        let queries = queries(seed, 1, &model);
        let view = query_view(&queries, &model);
        let exact = snapshot.attend(0, &view, &Budget::Exact).unwrap();
        let answer = snapshot.attend(0, &view, &Budget::Tau(0.0032)).unwrap();
        for (error, bound) in errors(&answer, &exact, model.value_dim).iter().zip(&answer.report.bound) {
            covered += usize::from(*error <= f64::from(bound.expect("calibrated")));
        }
        let budget = Budget::Error { target, confidence: 0.95 };
        let answer = snapshot.attend(0, &view, &budget).unwrap();
        for (error, bound) in errors(&answer, &exact, model.value_dim).iter().zip(&answer.report.bound) {
            assert!(f64::from(bound.expect("calibrated")) <= target + 1e-6, "{bound:?}");
            within += usize::from(*error <= target);
            count += 1;
        }
        spent += answer.report.traffic.bytes();
        full += exact.report.traffic.bytes();
    }
    // 360 answers at 0.95: four standard deviations below.
    assert!(covered * 100 >= count * 90, "{covered} of {count} covered");
    assert!(within * 100 >= count * 90, "{within} of {count} within the target");
    assert!(spent < full, "{spent} of {full} bytes");
}

#[test]
fn a_soft_cap_that_bites_is_applied_to_a_row_once() {
    let model = ModelSpec { softcap: Some(2.5), ..spec() };
    let store = memory_store();
    let mut context = sealed(&store, &model);
    let (mut actual, mut predicted) = (Vec::new(), Vec::new());
    for seed in 0..12 {
        let sharp: Vec<f32> = queries(seed, 1, &model).iter().map(|x| 8.0 * x).collect();
        let view = query_view(&sharp, &model);
        let exact = context.attend(0, &view, &Budget::Exact).unwrap();
        let answer = context.attend(0, &view, &Budget::Tau(0.004)).unwrap();
        let position = &answer.report.positions[0];
        assert!(position.rows_coded > 0 && position.rows_scanned > position.rows_coded, "{position:?}");
        actual.extend(errors(&answer, &exact, model.value_dim));
        predicted.extend(answer.report.predicted_error.iter().map(|&x| f64::from(x)));
    }
    // Most scores lie above the cap, where little is uncertain. A centroid capped before its rows' residuals are added
    // would take half a nat off them, and the error would exceed its prediction.
    assert!(mean(&actual) < mean(&predicted), "{} against {}", mean(&actual), mean(&predicted));
}

#[test]
fn the_soonest_way_is_every_row_at_a_small_tau_and_the_ladder_at_a_large_one() {
    let model = spec();
    let store = memory_store();
    let mut context = sealed(&store, &model);
    let queries = queries(7, 1, &model);
    let view = query_view(&queries, &model);
    let exact = context.attend(0, &view, &Budget::Exact).unwrap();
    // At 0.001 the rows that matter cost the ladder more than all of the 1,800; at 50 none matters.
    let soonest = context.attend(0, &view, &Budget::Soonest(0.001)).unwrap();
    assert_eq!(bits(&soonest), bits(&exact));
    assert_eq!((soonest.report.traffic, &soonest.report.taus[..]), (exact.report.traffic, &[0.0; 3][..]));
    assert!(soonest.report.bound.iter().all(|&bound| bound == Some(0.0)), "{:?}", soonest.report.bound);
    let plan = context.explain(0, &view, &Budget::Soonest(0.001)).unwrap();
    assert_eq!(plan, context.explain(0, &view, &Budget::Exact).unwrap());

    let ladder = context.attend(0, &view, &Budget::Tau(50.0)).unwrap();
    let soonest = context.attend(0, &view, &Budget::Soonest(50.0)).unwrap();
    assert_eq!(bits(&soonest), bits(&ladder));
    assert_ne!(bits(&soonest), bits(&exact));
    assert_eq!(soonest.report.taus, [50.0; 3]);
    let plan = context.explain(0, &view, &Budget::Soonest(50.0)).unwrap();
    assert_eq!(plan, context.explain(0, &view, &Budget::Tau(50.0)).unwrap());
}

#[test]
fn clusters_are_larger_far_behind_the_start_where_there_is_a_ladder() {
    let model = model([1, 2, 8, 8], Dtype::F16, 1);
    let clusters = |ladder: bool| {
        let clusters = ClusterOptions { split_factor: None, ..ClusterOptions::ladder() };
        let settings = small_options()
            .with_segment_rows(8000, 8000)
            .with_exact_rows(0, 1)
            .with_clusters(clusters)
            .with_ladder(ladder);
        let mut context = memory_store().create_with("long", &model, settings).unwrap();
        Kv::new(5, 32_001, &model).append(&mut context, 0, 0..32_001);
        context.seal().unwrap();
        let budget = if ladder { Budget::Tau(0.01) } else { Budget::RETROINFER };
        let queries = queries(6, 1, &model);
        let plan = context.explain(0, &query_view(&queries, &model), &budget).unwrap();
        plan.heads[0].clusters
    };
    // Three segments of 8000 rows begin before 16,384, and one behind it.
    assert_eq!((clusters(true), clusters(false)), (3 * 250 + 125, 4 * 250));
}

#[test]
fn where_much_error_is_predicted_lower_taus_are_tried() {
    let model = spec();
    let store = memory_store();
    let mut context = sealed(&store, &model);
    let (tau, group) = (0.02, model.query_heads / model.kv_heads);
    let (mut again, mut further, mut predicted) = (0, 0, [0.0f32; 2]);
    for seed in 0..24 {
        // Sharper queries have other predictions.
        let scale = [1.0, 2.0, 4.0][seed as usize % 3];
        let asked: Vec<f32> = queries(seed, 1, &model).iter().map(|x| scale * x).collect();
        let view = query_view(&asked, &model);
        let snapshot = context.snapshot().unwrap();
        let fixed = snapshot.attend(0, &view, &Budget::Tau(tau)).unwrap().report;
        let even = snapshot.attend(0, &view, &Budget::Even(tau)).unwrap().report;
        let (mut lowered, mut halved) = (0, 0);
        for (unit, &used) in even.taus.iter().enumerate() {
            let heads = unit * group..(unit + 1) * group;
            let largest = fixed.predicted_error[heads.clone()].iter().copied().fold(0.0, f32::max);
            let usual = 1.25 * (tau as f32).powf(0.64);
            assert_eq!(used < tau as f32, largest > usual, "{used} where {largest} was predicted");
            // Lower than half only by halves, which end where less is predicted or at a sixteenth.
            let left = even.predicted_error[heads.clone()].iter().copied().fold(0.0, f32::max);
            assert!(left <= 2.0 * usual || used == tau as f32 / 16.0, "{left} left at {used}");
            assert!(used >= tau as f32 / 16.0);
            halved += u64::from(used < 0.5 * tau as f32);
            if used < tau as f32 {
                lowered += 1;
                for (sum, report) in predicted.iter_mut().zip([&fixed, &even]) {
                    *sum += report.predicted_error[heads.clone()].iter().sum::<f32>();
                }
            } else {
                assert_eq!(even.predicted_error[heads.clone()], fixed.predicted_error[heads]);
            }
        }
        let attempts = even.attempts - fixed.attempts - lowered;
        assert!((halved..=3 * halved).contains(&attempts), "{attempts} further attempts for {halved}");
        again += lowered;
        further += halved;
    }
    assert!((8..64).contains(&again), "{again} of 72 were tried again");
    assert!((1..again / 2).contains(&further), "{further} of {again} were tried a third time");
    assert!(predicted[1] < 0.95 * predicted[0], "{predicted:?}");
}
