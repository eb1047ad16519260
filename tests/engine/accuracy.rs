//! Audits, bounds and the budgets that live on them, through the public API.

use crate::ladder::{sealed, spec};
use crate::sample::{bits, memory_store, model, queries, query_view, store_on};
use longwave::{
    Answer, AuditOptions, BANDS, Band, Budget, Context, Durability, Error, ModelSpec, Store, StoreOptions,
};
use longwave_storage::{
    Backend, Error as StorageError, Manifest, MemoryBackend, StateRecord, context_dir, read_manifest,
    write_manifest,
};
use std::sync::Arc;

const TARGET: Budget = Budget::Error { target: 0.05, confidence: 0.95 };

fn store_with(audits: AuditOptions) -> Store {
    let mut options = StoreOptions::default();
    options.audits = audits;
    Store::in_memory(options).unwrap()
}

fn ask(context: &mut Context, model: &ModelSpec, seed: u64, budget: &Budget) -> Answer {
    let queries = queries(seed, 1, model);
    context.attend(0, &query_view(&queries, model), budget).unwrap()
}

fn audits(context: &Context, tau: f64) -> usize {
    context.calibration(0).unwrap().audits(Band::of(tau).unwrap(), 0)
}

#[test]
fn a_share_of_the_calls_is_audited_in_the_band_they_were_answered_in() {
    let model = spec();
    let mut context = sealed(&store_with(AuditOptions::inline(1.0)), &model);
    for seed in 0..5 {
        ask(&mut context, &model, seed, &Budget::Tau(0.0032));
    }
    assert_eq!((audits(&context, 0.0032), audits(&context, 0.0016)), (5, 0));
    ask(&mut context, &model, 6, &Budget::Exact);
    ask(&mut context, &model, 7, &Budget::RETROINFER);
    ask(&mut context, &model, 8, &Budget::Tau(3.0));
    assert_eq!(audits(&context, 0.0032), 5);
    // An `Error` budget needs all bands.
    ask(&mut context, &model, 9, &TARGET);
    assert_eq!((audits(&context, 0.0032), audits(&context, 0.0016)), (6, 1));

    let mut silent = sealed(&store_with(AuditOptions::none()), &model);
    (0..5).for_each(|seed| drop(ask(&mut silent, &model, seed, &TARGET)));
    assert!(silent.calibration(0).unwrap().is_empty());
}

#[test]
fn audits_behind_a_call_find_what_audits_inside_it_find() {
    let model = spec();
    let mut options = AuditOptions::default();
    (options.share, options.time_share) = (1.0, 1e6);
    let mut behind = sealed(&store_with(options), &model);
    let mut inside = sealed(&store_with(AuditOptions::inline(1.0)), &model);
    for seed in 0..6 {
        ask(&mut behind, &model, seed, &Budget::Tau(0.0016));
        behind.finish_audits();
        ask(&mut inside, &model, seed, &Budget::Tau(0.0016));
    }
    assert_eq!(audits(&inside, 0.0016), 6);
    assert_eq!(behind.calibration(0).unwrap(), inside.calibration(0).unwrap());
}

#[test]
fn error_budgets_are_exact_until_there_are_enough_audits_and_read_less_then() {
    let model = spec();
    let mut context = sealed(&store_with(AuditOptions::inline(1.0 / 64.0)), &model);
    let exact = ask(&mut context, &model, 0, &Budget::Exact).report.traffic.bytes();
    // Every exact answer to it is audited: 6 heads times 8 audits are more than 45.
    let calls: Vec<Answer> = (1..20).map(|seed| ask(&mut context, &model, seed, &TARGET)).collect();
    let first = calls.iter().position(|answer| answer.report.taus.iter().any(|&tau| tau > 0.0)).unwrap();
    assert!((2..12).contains(&first), "{first}");
    for answer in &calls[..first] {
        assert!(answer.report.bound.iter().all(|bound| *bound == Some(0.0)), "{:?}", answer.report.bound);
    }
    for answer in &calls[first..] {
        let report = &answer.report;
        let bounds: Vec<f32> = report.bound.iter().map(|bound| bound.unwrap()).collect();
        assert!(
            bounds.iter().all(|&bound| bound == 0.0 || (0.0499999..=0.05).contains(&f64::from(bound))),
            "{bounds:?}"
        );
        assert_eq!((report.confidence, report.bound.len()), (Some(0.95), model.query_heads));
        assert!(report.attempts >= model.kv_heads as u64);
    }
    let last: u64 = calls[first..].iter().map(|answer| answer.report.traffic.bytes()).sum();
    assert!(last < exact * (calls.len() - first) as u64, "{last} bytes over {} calls", calls.len() - first);
}

#[test]
fn bytes_of_several_attempts_count_once() {
    let model = spec();
    let mut context = sealed(&memory_store(), &model);
    for seed in 100..160 {
        let queries = queries(seed, 1, &model);
        context.audit(0, &query_view(&queries, &model)).unwrap();
    }
    let mut retried = 0;
    for seed in 0..20 {
        let answer = ask(&mut context, &model, seed, &Budget::Error { target: 0.01, confidence: 0.9 });
        // However often it was tried: no more than all there is, and centroids once.
        let report = &answer.report;
        retried += report.attempts - model.kv_heads as u64;
        let traffic = report.traffic;
        let exact = ask(&mut context, &model, seed, &Budget::Exact).report.traffic;
        assert!(traffic.keys <= exact.keys && traffic.values <= exact.values, "{traffic:?} of {exact:?}");
        let whole = ask(&mut context, &model, seed, &Budget::Tau(1e-9)).report.traffic;
        assert!(traffic.sketches <= whole.sketches && traffic.value_means <= whole.value_means);
        assert_eq!(traffic.centroids, whole.centroids);
    }
    assert!(retried > 0);
}

#[test]
fn the_running_mean_of_bytes_holds_and_no_call_exceeds_its_cap() {
    let model = spec();
    let mut context = sealed(&store_with(AuditOptions::none()), &model);
    let widest = ask(&mut context, &model, 0, &Budget::Tau(1e-5)).report.bytes_share();
    let least = ask(&mut context, &model, 0, &Budget::Tau(1.0)).report.bytes_share();
    let share = (least * widest).sqrt();
    let spent: Vec<f64> = (0..150)
        .map(|seed| ask(&mut context, &model, seed, &Budget::Bytes(share)).report.bytes_share())
        .collect();
    let mean = spent.iter().sum::<f64>() / spent.len() as f64;
    assert!((mean / share - 1.0).abs() < 0.1, "{mean} for {share}");
    assert!(spent.iter().all(|&spent| spent <= 4.0 * share * 1.001), "{spent:?}");

    // A cap that binds: little more than what is read at any tau. What it cuts short has no bound.
    let tight = least / 3.9;
    let answer = sealed(&memory_store(), &model)
        .snapshot()
        .unwrap()
        .attend(0, &query_view(&queries(3, 1, &model), &model), &Budget::Bytes(tight))
        .unwrap();
    assert!(answer.report.bytes_share() <= 4.0 * tight * 1.001, "{} of {tight}", answer.report.bytes_share());
    assert!(answer.report.capped.iter().any(|&capped| capped));
    assert!(answer.report.bound.iter().all(Option::is_none));
}

#[test]
fn a_steered_share_is_asked_as_even_is_at_its_tau() {
    let model = spec();
    let mut context = sealed(&store_with(AuditOptions::none()), &model);
    let mut again = 0;
    for seed in 0..24 {
        let snapshot = context.snapshot().unwrap();
        let answer = ask(&mut context, &model, seed, &Budget::Bytes(0.2));
        let tau = answer.report.taus.iter().copied().fold(0.0, f32::max);
        let capped = answer.report.capped.iter().any(|&capped| capped);
        // The first call looks for a tau, and a head tells the steered one only where it was not tried again.
        if seed > 0 && !capped && (answer.report.attempts as usize) < 2 * answer.report.taus.len() {
            let asked = queries(seed, 1, &model);
            let even = snapshot.attend(0, &query_view(&asked, &model), &Budget::Even(tau.into())).unwrap();
            assert_eq!((bits(&even), &even.report.taus), (bits(&answer), &answer.report.taus), "call {seed}");
            again += answer.report.attempts as usize - answer.report.taus.len();
        }
    }
    assert!(again > 0, "no KV head was tried again");
}

#[test]
fn a_reopened_context_bounds_and_steers_as_before_and_calibrates_from_its_own_queries() {
    let model = spec();
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    let mut context = sealed(&store_on(&backend), &model);
    (0..40).for_each(|seed| drop(ask(&mut context, &model, seed, &Budget::Bytes(0.2))));
    assert_eq!(context.calibrate(None, 9).unwrap() % BANDS, 0);
    context.finish_audits();
    context.commit(Durability::Strict).unwrap();
    let asked = queries(77, 1, &model);
    let answers = |snapshot: &longwave::Snapshot| {
        [Budget::Tau(0.0016), Budget::Bytes(0.2), Budget::Bytes(0.1), TARGET].map(|budget| {
            let answer = snapshot.attend(0, &query_view(&asked, &model), &budget).unwrap();
            (bits(&answer), answer.report.bound.clone(), answer.report.taus.clone())
        })
    };
    let before = answers(&context.snapshot().unwrap());
    drop(context);
    let store = store_on(&backend);
    assert_eq!(answers(&store.snapshot("ladder").unwrap()), before);
    let mut again = store.context("ladder", &model).unwrap();
    assert_eq!(answers(&again.snapshot().unwrap()), before);
    // The state is carried by commits that learn nothing.
    again.commit(Durability::Strict).unwrap();
    assert_eq!(answers(&store.snapshot("ladder").unwrap()), before);
}

#[test]
fn the_same_calls_learn_the_same_at_any_number_of_threads() {
    let model = spec();
    let learnt = [1, 3].map(|threads| {
        let mut options = StoreOptions::default();
        options.audits = AuditOptions::inline(0.5);
        options.pool = Some(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()));
        let mut context = sealed(&Store::in_memory(options).unwrap(), &model);
        let budgets = [TARGET, Budget::Bytes(0.15), Budget::Tau(0.0016)];
        let answers: Vec<_> = (0..30)
            .map(|seed| {
                let answer = ask(&mut context, &model, seed, &budgets[seed as usize % 3]);
                (bits(&answer), answer.report.bound, answer.report.taus, answer.report.traffic)
            })
            .collect();
        (answers, context.calibration(0).unwrap().clone())
    });
    assert!(learnt[0] == learnt[1]);
}

/// Rewrites the state of the context's manifest.
fn with_state(backend: &Arc<dyn Backend>, change: impl Fn(&mut Vec<StateRecord>)) -> Manifest {
    let dir = context_dir("ladder");
    let mut manifest = read_manifest(backend.as_ref(), &dir).unwrap();
    change(&mut manifest.state);
    write_manifest(backend.as_ref(), &dir, &manifest, Durability::Strict).unwrap();
    manifest
}

#[test]
fn state_that_is_damaged_or_newer_is_an_error_and_unknown_state_is_carried_along() {
    let model = spec();
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    let mut context = sealed(&store_on(&backend), &model);
    ask(&mut context, &model, 1, &Budget::Bytes(0.2));
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let store = store_on(&backend);

    let unknown = StateRecord { kind: 0x7777, version: 3, bytes: vec![1, 2, 3] };
    with_state(&backend, |state| state.push(unknown.clone()));
    store.context("ladder", &model).unwrap().commit(Durability::Strict).unwrap();
    let state = store.manifest("ladder").unwrap().state;
    assert!(state.len() == 3 && state.contains(&unknown), "{state:?}");

    with_state(&backend, |state| state[0].bytes.truncate(30));
    let error = store.context("ladder", &model).unwrap_err();
    let Error::Storage(StorageError::Corrupt { column: Some(column), .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(column, "calibration");
    with_state(&backend, |state| state[0].version = 9);
    let error = store.snapshot("ladder").unwrap_err();
    assert!(matches!(error, Error::Storage(StorageError::Version { found: 9, .. })), "{error}");
}

#[test]
fn budgets_out_of_range_are_refused() {
    let mut context = sealed(&memory_store(), &model([2, 6, 32, 24], longwave::Dtype::F16, 1));
    let model = context.model().clone();
    let error = |target, confidence| Budget::Error { target, confidence };
    let budgets = [0.0, -0.1, 1.5, f64::NAN].map(Budget::Bytes);
    let errors = [(0.0, 0.9), (f64::NAN, 0.9), (f64::INFINITY, 0.9), (0.1, 0.0), (0.1, 1.0), (0.1, f64::NAN)];
    for budget in budgets.into_iter().chain(errors.map(|(target, confidence)| error(target, confidence))) {
        let queries = queries(1, 1, &model);
        let refused = context.attend(0, &query_view(&queries, &model), &budget);
        assert!(matches!(refused, Err(Error::Invalid { what: "budget", .. })), "{budget}");
    }
}
