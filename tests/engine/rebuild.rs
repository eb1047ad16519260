//! Segments that are built again once the context's queries are known: by a call, and in the background.

use crate::profile::{TOKENS, error, fill, moments, narrow_queries, options, spec};
use crate::sample::{as_backend, bits, faults, memory_store, query_view, store_on};
use crate::truth::check_exact;
use longwave::index::ladder::MomentSource;
use longwave::storage::{MemoryBackend, segment_path};
use longwave::{Budget, Context, Durability, Error, Rebuild, Snapshot, Store};
use std::time::{Duration, Instant};

const TAU: f64 = 0.05;

/// A sealed context that has observed nothing: three segments built with the identity.
fn blind(store: &Store, rebuild: Rebuild) -> Context {
    let mut context = store.create_with("blind", &spec(), options().with_rebuild(rebuild)).unwrap();
    fill(&mut context, TOKENS);
    assert_eq!(moments(&mut context), [(MomentSource::Identity, 0); 3]);
    context
}

fn observe(context: &mut Context, positions: std::ops::Range<u64>) {
    let model = context.model().clone();
    for position in positions {
        let queries = narrow_queries(position, 1, &model);
        context.observe_at(0, position, &query_view(&queries, &model)).unwrap();
    }
}

fn answers(snapshot: &Snapshot) -> Vec<Vec<u32>> {
    let budgets = [Budget::Exact, Budget::Tau(TAU), Budget::Tau(0.001), Budget::RETROINFER];
    let queries = narrow_queries(900, 1, snapshot.model());
    let ask = |budget| snapshot.attend(0, &query_view(&queries, snapshot.model()), budget).unwrap();
    budgets.iter().map(|budget| bits(&ask(budget))).collect()
}

fn segment_files(memory: &MemoryBackend) -> Vec<String> {
    memory.files().into_iter().filter(|file| file.contains(".segment")).collect()
}

fn named(store: &Store) -> Vec<String> {
    let manifest = store.manifest("blind").unwrap();
    let mut files: Vec<String> =
        manifest.layers[0].segments.iter().map(|segment| segment_path(&segment.file)).collect();
    files.sort();
    files
}

#[test]
fn a_rebuild_takes_the_contexts_own_metric_and_answers_stay_right() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let backend = as_backend(&memory);
    let store = store_on(&backend);
    let mut context = blind(&store, Rebuild::Never);
    context.commit(Durability::Strict).unwrap();
    observe(&mut context, 0..30);
    let audited = narrow_queries(500, 20, &model);
    context.audit(0, &query_view(&audited, &model)).unwrap();
    let (before, blind_error, old) =
        (context.snapshot().unwrap(), error(&mut context, TAU), segment_files(&memory));
    let expected = answers(&before);

    assert_eq!(context.rebuild(None).unwrap(), 3);
    assert_eq!(moments(&mut context), [(MomentSource::Context, 90); 3]);
    assert!(context.calibration(0).unwrap().is_empty(), "ratios of the old index");
    assert_eq!(answers(&before), expected, "a snapshot never changes");
    // Fewer bytes are needed for a smaller error.
    let found = error(&mut context, 0.7 * TAU);
    let fell = found.0 < blind_error.0 && 10 * found.1 < 9 * blind_error.1;
    assert!(fell, "error and bytes {found:?} after {blind_error:?}");
    let kv = crate::sample::Kv::new(61, TOKENS, &model);
    let queries = narrow_queries(901, 2, &model);
    let answer = context.attend(0, &query_view(&queries, &model), &Budget::Exact).unwrap();
    check_exact(&model, 0, &kv, TOKENS as u64, &queries, &answer);

    // The last commit has its files until the next.
    assert!(old.iter().all(|file| segment_files(&memory).contains(file)) && named(&store) == old);
    assert_eq!(faults(&backend), Vec::<String>::new());
    context.commit(Durability::Strict).unwrap();
    assert_eq!(segment_files(&memory), named(&store));
    assert!(named(&store).iter().all(|file| !old.contains(file)));
    assert_eq!(answers(&before), expected, "nor when its files are gone");
    let live = answers(&context.snapshot().unwrap());
    drop(context);
    assert_eq!(answers(&store_on(&backend).snapshot("blind").unwrap()), live);
    assert_eq!(faults(&backend), Vec::<String>::new());
}

#[test]
fn segments_after_a_rebuild_share_its_basis() {
    let (store, model) = (memory_store(), spec());
    let mut context = blind(&store, Rebuild::Never);
    observe(&mut context, 0..30);
    assert_eq!(context.rebuild(Some(0)).unwrap(), 3);
    let kv = crate::sample::Kv::new(61, TOKENS + 120, &model);
    for token in TOKENS..TOKENS + 120 {
        kv.append(&mut context, 0, token..token + 1);
    }
    context.seal().unwrap();
    let snapshot = context.snapshot().unwrap();
    let segments = snapshot.segments(0).unwrap();
    let digests: Vec<u64> =
        segments.iter().map(|segment| segment.ladder().unwrap().unwrap().digest()).collect();
    assert!(digests.len() > 3 && digests.iter().all(|digest| *digest == digests[0]), "{digests:x?}");
}

#[test]
fn a_flushed_commit_removes_what_was_replaced_and_one_that_waits_for_nothing_keeps_it() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let mut context = blind(&store, Rebuild::Never);
    context.commit(Durability::Strict).unwrap();
    let old = named(&store);
    observe(&mut context, 0..20);
    context.rebuild(None).unwrap();
    context.commit(Durability::None).unwrap();
    assert!(named(&store) != old && segment_files(&memory).len() == 6);
    context.commit(Durability::Flushed).unwrap();
    assert_eq!(segment_files(&memory), named(&store));
    // A power loss now must not bring back the commit whose files are gone.
    let after = memory.after(longwave::storage::Crash::DropUnsynced);
    assert_eq!(faults(&as_backend(&after)), Vec::<String>::new());
}

#[test]
fn what_cannot_be_read_is_not_built_again_and_nothing_is_lost() {
    let memory = MemoryBackend::new();
    let backend = as_backend(&memory);
    let mut context = blind(&store_on(&backend), Rebuild::Never);
    observe(&mut context, 0..20);
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let store = store_on(&backend);
    let file = &named(&store)[1];
    let good = memory.contents(file).unwrap();
    let mut bad = good.clone();
    bad[5000] ^= 8;
    memory.replace(file, &bad).unwrap();
    let mut context = store.context("blind", &spec()).unwrap();
    let error = context.rebuild(None).unwrap_err();
    assert!(matches!(error, Error::Storage(longwave::storage::Error::Corrupt { .. })), "{error}");
    context.commit(Durability::Strict).unwrap();
    drop(context);
    memory.replace(file, &good).unwrap();
    let store = store_on(&backend);
    let mut context = store.context("blind", &spec()).unwrap();
    assert_eq!(segment_files(&memory), named(&store), "nothing half done stays");
    assert_eq!(moments(&mut context)[0].0, MomentSource::Identity);
    assert_eq!(context.rebuild(None).unwrap(), 3);
}

/// Looks until the background has built the segments again.
fn wait_for(context: &mut Context, source: MomentSource) {
    let patience = Instant::now();
    while moments(context).iter().any(|(found, _)| *found != source) {
        assert!(patience.elapsed() < Duration::from_secs(120), "{:?}", moments(context));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_background_builds_again_when_enough_is_observed_and_only_then() {
    let store = memory_store();
    let mut context = blind(&store, Rebuild::WhenObserved { positions: 12 });
    observe(&mut context, 0..11);
    let identity = store.manifest("blind").unwrap().context_id;
    context.commit(Durability::Strict).unwrap();
    let files = named(&store);
    assert_eq!(moments(&mut context)[0].0, MomentSource::Identity);
    drop(context);
    // The option is the context's own, and what was observed counts.
    let mut context = store.context("blind", &spec()).unwrap();
    assert_eq!(context.options().rebuild, Rebuild::WhenObserved { positions: 12 });
    assert_eq!(moments(&mut context)[0].0, MomentSource::Identity);
    observe(&mut context, 11..12);
    wait_for(&mut context, MomentSource::Context);
    assert_eq!(moments(&mut context), [(MomentSource::Context, 36); 3]);
    context.commit(Durability::Strict).unwrap();
    assert!(named(&store).iter().all(|file| !files.contains(file)));
    assert_eq!(store.manifest("blind").unwrap().context_id, identity);

    // Once: more queries do not bring it about again.
    let files = named(&store);
    observe(&mut context, 12..40);
    drop(context);
    let mut context = store.context("blind", &spec()).unwrap();
    observe(&mut context, 12..40);
    context.snapshot().unwrap();
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    assert_eq!(named(&store), files);
}

#[test]
fn a_context_can_be_dropped_while_it_is_built_again() {
    let memory = MemoryBackend::new();
    let backend = as_backend(&memory);
    let store = store_on(&backend);
    let mut context = blind(&store, Rebuild::WhenObserved { positions: 5 });
    context.commit(Durability::Strict).unwrap();
    let before = named(&store);
    observe(&mut context, 0..5);
    drop(context);
    assert_eq!((faults(&backend), named(&store)), (Vec::new(), before.clone()));
    let mut context = store.context("blind", &spec()).unwrap();
    assert_eq!(segment_files(&memory), before, "what was written is removed");
    observe(&mut context, 0..6);
    wait_for(&mut context, MomentSource::Context);
}
