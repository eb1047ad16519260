//! What calls have spent is counted head by head, kept with the context, and changes no answer.

use crate::ladder::{sealed, spec};
use crate::sample::{bits, queries, query_view};
use longwave::{
    AuditOptions, Band, Budget, Context, Durability, Error, ModelSpec, Spending, Store, StoreOptions,
};
use longwave_storage::{
    Backend, Error as StorageError, MemoryBackend, context_dir, read_manifest, write_manifest,
};
use std::sync::Arc;

fn store_with(audits: AuditOptions) -> Store {
    let mut options = StoreOptions::default();
    options.audits = audits;
    Store::in_memory(options).unwrap()
}

/// The answer's report, as far as it is counted: bytes and taus by KV head, predicted errors by query head.
struct Counted {
    shares: Vec<f64>,
    taus: Vec<f64>,
    predicted: Vec<f64>,
}

fn ask(context: &mut Context, model: &ModelSpec, seed: u64, budget: &Budget) -> Counted {
    let queries = queries(seed, 1, model);
    let report = context.attend(0, &query_view(&queries, model), budget).unwrap().report;
    let full = report.sealed_bytes_16bit as f64 / model.kv_heads as f64;
    assert_eq!(report.head_bytes.iter().sum::<u64>(), report.traffic.bytes());
    Counted {
        shares: report.head_bytes.iter().map(|&bytes| bytes as f64 / full).collect(),
        taus: report.taus.iter().map(|&tau| tau.into()).collect(),
        predicted: report.predicted_error.iter().map(|&error| error.into()).collect(),
    }
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found}, not {expected}");
}

#[test]
fn means_are_those_of_the_reports() {
    let model = spec();
    let mut context = sealed(&store_with(AuditOptions::none()), &model);
    assert_eq!(context.spending(0).unwrap().calls(), 0);
    let taus = [0.0064, 0.0016, 0.0004];
    let counted: Vec<Counted> =
        (0..).zip(taus).map(|(seed, tau)| ask(&mut context, &model, seed, &Budget::Tau(tau))).collect();
    // Other methods do not count.
    ask(&mut context, &model, 7, &Budget::Exact);
    ask(&mut context, &model, 8, &Budget::RETROINFER);
    let spending = context.spending(0).unwrap();
    assert_eq!((spending.calls(), spending.query_heads().len()), (3, model.query_heads));
    for (head, found) in spending.kv_heads().iter().enumerate() {
        assert_near(found.bytes_share, counted.iter().map(|call| call.shares[head]).sum::<f64>() / 3.0);
        assert_near(found.tau, counted.iter().map(|call| call.taus[head]).sum::<f64>() / 3.0);
    }
    for (head, found) in spending.query_heads().iter().enumerate() {
        let sum: f64 = counted.iter().map(|call| call.predicted[head]).sum();
        assert_near(found.predicted_error(), sum / 3.0);
        assert_eq!((found.audits(), found.error_mean()), (0, None));
    }
    let [first, second] = [0, 1].map(|head| spending.kv_heads()[head].bytes_share);
    assert!(first > 0.0 && first != second);
}

#[test]
fn audited_calls_count_in_the_band_that_they_were_answered_in() {
    let model = spec();
    let mut context = sealed(&store_with(AuditOptions::inline(1.0)), &model);
    for seed in 0..40 {
        ask(&mut context, &model, seed, &Budget::Tau(0.0016));
    }
    let errors = |context: &Context| -> Vec<f64> {
        context.spending(0).unwrap().query_heads().iter().map(|head| head.error_mean().unwrap()).collect()
    };
    let coarse = errors(&context);
    let spending = context.spending(0).unwrap();
    for head in spending.query_heads() {
        assert_eq!(head.audits(), 40);
        assert!(head.error_p95() >= head.error_mean(), "{head:?}");
    }
    // The predictions were about right, so the measured errors are about as large.
    let ratio = coarse.iter().sum::<f64>()
        / spending.query_heads().iter().map(|head| head.predicted_error()).sum::<f64>();
    assert!((0.3..5.0).contains(&ratio), "{ratio}");
    // Replayed queries are no calls.
    let replayed = queries(900, 3, &model);
    assert!(context.audit(0, &query_view(&replayed, &model)).unwrap() > 0);
    assert_eq!(errors(&context), coarse);

    // An `Error` budget audits all bands; the errors of one count for each head.
    let target = Budget::Error { target: 0.1, confidence: 0.9 };
    let counted = ask(&mut context, &model, 50, &target);
    let group = model.query_heads / model.kv_heads;
    for (head, spent) in context.spending(0).unwrap().query_heads().iter().enumerate() {
        let in_a_band = Band::of(counted.taus[head / group]).is_some();
        assert_eq!(spent.audits(), 40 + usize::from(in_a_band), "head {head}");
    }
}

#[test]
fn spending_is_kept_with_the_commit_and_goes_on_from_there() {
    let model = spec();
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    let mut options = StoreOptions::default();
    options.audits = AuditOptions::inline(1.0);
    let store = Store::on_backend(Arc::clone(&backend), options).unwrap();
    let mut context = sealed(&store, &model);
    context.commit(Durability::Strict).unwrap();
    assert!(store.manifest("ladder").unwrap().state.is_empty());
    for seed in 0..5 {
        ask(&mut context, &model, seed, &Budget::Tau(0.0016));
    }
    let spent: Spending = context.spending(0).unwrap().clone();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    assert_eq!(store.snapshot("ladder").unwrap().spending(0).unwrap(), &spent);
    let mut context = store.context("ladder", &model).unwrap();
    assert_eq!(context.spending(0).unwrap(), &spent);
    ask(&mut context, &model, 5, &Budget::Tau(0.0016));
    assert_eq!((context.spending(0).unwrap().calls(), spent.calls()), (6, 5));
    // Readers spend nothing on the context.
    let snapshot = context.snapshot().unwrap();
    let asked = queries(6, 1, &model);
    snapshot.attend(0, &query_view(&asked, &model), &Budget::Tau(0.0016)).unwrap();
    assert_eq!(snapshot.spending(0).unwrap().calls(), 6);
    drop((context, snapshot));

    // Another version, and other bytes, are told apart.
    let damaged = |change: &dyn Fn(&mut longwave_storage::StateRecord)| {
        let mut manifest = read_manifest(&*backend, &context_dir("ladder")).unwrap();
        change(manifest.state.iter_mut().find(|record| record.kind == 2).unwrap());
        write_manifest(&*backend, &context_dir("ladder"), &manifest, Durability::Strict).unwrap();
        store.snapshot("ladder").unwrap_err()
    };
    let error = damaged(&|record| record.bytes.truncate(50));
    let Error::Storage(StorageError::Corrupt { column, offset, .. }) = &error else { panic!("{error}") };
    assert_eq!((column.as_deref(), *offset <= 50), (Some("spending"), true), "{error}");
    let error = damaged(&|record| record.version = 9);
    assert!(matches!(error, Error::Storage(StorageError::Version { found: 9, .. })), "{error}");
}

#[test]
fn answers_do_not_depend_on_what_was_spent() {
    let model = spec();
    let mut fresh = sealed(&store_with(AuditOptions::none()), &model);
    let mut used = sealed(&store_with(AuditOptions::none()), &model);
    (0..4).for_each(|seed| drop(ask(&mut used, &model, seed, &Budget::Tau(0.0064))));
    let asked = queries(9, 1, &model);
    let answer = |context: &mut Context| {
        bits(&context.attend(0, &query_view(&asked, &model), &Budget::Tau(0.0016)).unwrap())
    };
    assert_eq!(answer(&mut fresh), answer(&mut used));
}
