//! Small segments that become large ones, by a call and in the background.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, memory_store, merging_store_on, model, own_key_queries, queries,
    query_view, small_options, store_on,
};
use crate::truth::{check_exact, check_own_values};
use longwave::storage::{Crash, MemoryBackend};
use longwave::{Band, Budget, Context, Dtype, Durability, LayerKind, ModelSpec, Snapshot, Store};
use std::time::{Duration, Instant};

const LAYERS: usize = 2;
const ROWS: usize = 260;

fn spec() -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

fn rows() -> Vec<Kv> {
    (0..LAYERS).map(|layer| Kv::scattered(800 + layer as u64, ROWS, &spec())).collect()
}

/// A prompt of 60 rows, and the rest decoded: sealed in 48, then 16 at a time. Queries are observed on the way.
fn decoded(store: &Store, kv: &[Kv]) -> Context {
    let mut context = store.create_with("decoded", &spec(), small_options()).unwrap();
    for token in std::iter::once(0..60).chain((60..ROWS).map(|token| token..token + 1)) {
        kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut context, layer, token.clone()));
        let asked = queries(token.start as u64, 1, &spec());
        context.observe(0, &query_view(&asked, &spec())).unwrap();
    }
    context.seal().unwrap();
    context
}

fn bounds(snapshot: &Snapshot, layer: usize) -> Vec<(u64, usize)> {
    snapshot
        .segments(layer)
        .unwrap()
        .iter()
        .map(|segment| (segment.first_position(), segment.rows()))
        .collect()
}

fn check(snapshot: &Snapshot, kv: &[Kv]) {
    for (layer, kv) in kv.iter().enumerate() {
        let length = snapshot.length(layer).unwrap() as usize;
        let own = own_key_queries(kv, &spec(), 0..length);
        let answer = snapshot.attend(layer, &query_view(&own, &spec()), &Budget::Exact).unwrap();
        check_own_values(&spec(), kv, 0..length, &answer);
        let asked = queries(77, 2, &spec());
        let answer = snapshot.attend(layer, &query_view(&asked, &spec()), &Budget::Tau(0.0)).unwrap();
        check_exact(&spec(), layer, kv, length as u64, &asked, &answer);
    }
}

#[test]
fn small_segments_become_large_ones_and_hold_the_same_rows() {
    let (memory, kv) = (MemoryBackend::new(), rows());
    let store = store_on(&as_backend(&memory));
    let mut context = decoded(&store, &kv);
    context.commit(Durability::Strict).unwrap();
    let before = context.snapshot().unwrap();
    let mut expected = vec![(3, 48)];
    expected.extend((0..12).map(|i| (51 + 16 * i, 16)));
    expected.push((243, 12));
    assert_eq!([bounds(&before, 0), bounds(&before, 1)], [expected.clone(), expected]);
    let asked = queries(5, 2, &spec());
    let answer = |snapshot: &Snapshot| {
        bits(&snapshot.attend(0, &query_view(&asked, &spec()), &Budget::Tau(0.01)).unwrap())
    };
    let old = answer(&before);

    assert_eq!(context.compact(None).unwrap(), 2 * 8);
    let merged = [(3, 48), (51, 48), (99, 48), (147, 48), (195, 48), (243, 12)];
    let after = context.snapshot().unwrap();
    assert_eq!([bounds(&after, 0), bounds(&after, 1)], [merged, merged]);
    check(&after, &kv);
    assert_eq!(answer(&before), old, "an older snapshot goes on");
    assert_eq!(context.compact(None).unwrap(), 0, "there is nothing left to merge");

    context.commit(Durability::Strict).unwrap();
    assert_eq!(answer(&before), old, "also when its files are gone");
    let named = store.manifest("decoded").unwrap().files("decoded");
    let left = memory.after(Crash::Kill);
    let segments: Vec<String> = left.files().into_iter().filter(|file| file.ends_with(".segment")).collect();
    assert_eq!(segments.len(), 12);
    assert!(segments.iter().all(|file| named.contains(file)), "{segments:?}");
    assert_eq!(faults(&as_backend(&left)), Vec::<String>::new());
    let reopened = store_on(&as_backend(&left)).snapshot("decoded").unwrap();
    assert_eq!(bounds(&reopened, 0), merged);
    assert_eq!(answer(&reopened), answer(&after));
    check(&reopened, &kv);
}

#[test]
fn what_audits_have_shown_is_kept_and_one_layer_is_merged_alone() {
    let kv = rows();
    let mut context = decoded(&memory_store(), &kv);
    let asked = queries(3, 40, &spec());
    context.audit(0, &query_view(&asked, &spec())).unwrap();
    // Whatever band the queries fall into.
    let known = |context: &mut Context| -> Vec<usize> {
        let snapshot = context.snapshot().unwrap();
        let calibration = snapshot.calibration(0).unwrap();
        Band::all().map(|band| calibration.audits(band, 1)).collect()
    };
    let before = known(&mut context);
    assert!(before.iter().any(|audits| *audits > 0), "{before:?}");
    assert_eq!(context.compact(Some(0)).unwrap(), 8);
    assert_eq!(known(&mut context), before);
    assert_eq!(bounds(&context.snapshot().unwrap(), 1).len(), 14);
}

#[test]
fn a_cut_inside_a_merged_segment_keeps_the_rows_before_it() {
    let (memory, kv) = (MemoryBackend::new(), rows());
    let store = store_on(&as_backend(&memory));
    let mut context = decoded(&store, &kv);
    context.compact(None).unwrap();
    context.commit(Durability::Strict).unwrap();
    context.truncate(120).unwrap();
    check(&context.snapshot().unwrap(), &kv);
    context.commit(Durability::Strict).unwrap();
    check(&store.snapshot("decoded").unwrap(), &kv);
    for token in 120..200 {
        kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut context, layer, token..token + 1));
    }
    context.seal().unwrap();
    context.compact(None).unwrap();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let snapshot = store.snapshot("decoded").unwrap();
    assert_eq!(snapshot.length(1).unwrap(), 200);
    check(&snapshot, &kv);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn full_runs_are_merged_in_the_background() {
    let (memory, kv) = (MemoryBackend::new(), rows());
    let store = merging_store_on(&as_backend(&memory));
    let mut context = decoded(&store, &kv);
    let (merged, patience) = ([(3, 48), (51, 48), (99, 48), (147, 48), (195, 48), (243, 12)], Instant::now());
    while bounds(&context.snapshot().unwrap(), 0) != merged {
        assert!(
            patience.elapsed() < Duration::from_secs(60),
            "{:?}",
            bounds(&context.snapshot().unwrap(), 0)
        );
        std::thread::yield_now();
    }
    check(&context.snapshot().unwrap(), &kv);
    context.commit(Durability::Flushed).unwrap();
    drop(context);
    check(&store.snapshot("decoded").unwrap(), &kv);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}
