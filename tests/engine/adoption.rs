//! Segments of the same model and text are stored once, whoever seals them.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, model, queries, query_view, small_options, store_on,
};
use crate::truth::check_exact;
use longwave::storage::fault::{FaultBackend, Injection, InjectionKind};
use longwave::storage::{Backend, Crash, MemoryBackend};
use longwave::{Budget, Context, ContextOptions, Dtype, Durability, LayerKind, ModelSpec, Snapshot, Store};
use std::io::ErrorKind;
use std::sync::Arc;

const LAYERS: usize = 2;
const ROWS: usize = 230;

fn spec() -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

fn rows() -> Vec<Kv> {
    (0..LAYERS).map(|layer| Kv::new(40 + layer as u64, ROWS, &spec())).collect()
}

/// Token ids of a text that differs from the first one from position `own` on.
fn ids(own: usize) -> Vec<u32> {
    (0..ROWS).map(|at| at as u32 * 3 + u32::from(at >= own)).collect()
}

fn ingested(store: &Store, name: &str, kv: &[Kv], ids: &[u32], options: ContextOptions) -> Context {
    let mut context = store.create_with(name, &spec(), options).unwrap();
    kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut context, layer, 0..ROWS));
    context.extend_tokens(ids).unwrap();
    context.seal().unwrap();
    context
}

fn segments(store: &Store, name: &str) -> Vec<String> {
    let manifest = store.manifest(name).unwrap();
    manifest.files(name).into_iter().filter(|file| file.ends_with(".segment")).collect()
}

fn segments_there(memory: &MemoryBackend) -> usize {
    memory.files().iter().filter(|file| file.ends_with(".segment")).count()
}

fn check(snapshot: &Snapshot, kv: &[Kv]) {
    for (layer, kv) in kv.iter().enumerate() {
        let asked = queries(layer as u64, 2, &spec());
        let answer = snapshot.attend(layer, &query_view(&asked, &spec()), &Budget::Exact).unwrap();
        check_exact(&spec(), layer, kv, ROWS as u64, &asked, &answer);
    }
}

#[test]
fn the_same_text_ingested_twice_is_stored_once() {
    let (memory, kv) = (MemoryBackend::new(), rows());
    let store = store_on(&as_backend(&memory));
    let mut first = ingested(&store, "first", &kv, &ids(ROWS), small_options());
    first.commit(Durability::Strict).unwrap();
    let there = segments_there(&memory);
    assert_eq!(there, 2 * 5);
    let mut second = ingested(&store, "second", &kv, &ids(ROWS), small_options());
    let asked = queries(9, 1, &spec());
    let answer = |snapshot: &Snapshot| {
        bits(&snapshot.attend(0, &query_view(&asked, &spec()), &Budget::Tau(0.01)).unwrap())
    };
    let before = second.snapshot().unwrap();
    let expected = answer(&before);
    second.commit(Durability::Strict).unwrap();
    assert_eq!(segments(&store, "second"), segments(&store, "first"));
    assert_eq!(segments_there(&memory), there, "its own are gone");
    assert_eq!(answer(&before), expected, "an older snapshot goes on");
    check(&second.snapshot().unwrap(), &kv);
    check(&store.snapshot("second").unwrap(), &kv);
    // Whatever becomes of the first one.
    first.rebuild(None).unwrap();
    first.commit(Durability::Strict).unwrap();
    drop(first);
    store.remove("first").unwrap();
    store.collect(false).unwrap();
    check(&store.snapshot("second").unwrap(), &kv);
    assert_eq!(segments_there(&memory), there);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
    drop(second);
    store.remove("second").unwrap();
    store.collect(false).unwrap();
    assert_eq!(segments_there(&memory), 0);
}

#[test]
fn what_differs_is_not_shared() {
    let kv = rows();
    let other_model = || {
        let mut other = spec();
        other.identity.weights = [9; 32];
        other
    };
    // The bounds of segments: 3, 51, 99, 147, 195, 225.
    let cases: [(&str, Vec<u32>, ContextOptions, ModelSpec, usize); 6] = [
        ("the rest of the text", ids(150), small_options(), spec(), 3),
        ("the first token", ids(0), small_options(), spec(), 0),
        ("extra bytes", ids(ROWS), small_options().with_extra(*b"tenant"), spec(), 0),
        ("settings", ids(ROWS), small_options().with_sample_positions(7), spec(), 0),
        ("model", ids(ROWS), small_options(), other_model(), 0),
        ("no token ids", vec![], small_options(), spec(), 0),
    ];
    for (what, ids_of_second, options, model, shared) in cases {
        let memory = MemoryBackend::new();
        let store = store_on(&as_backend(&memory));
        ingested(&store, "first", &kv, &ids(ROWS), small_options()).commit(Durability::Strict).unwrap();
        let mut second = store.create_with("second", &model, options).unwrap();
        kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut second, layer, 0..ROWS));
        second.extend_tokens(&ids_of_second).unwrap();
        second.seal().unwrap();
        second.commit(Durability::Flushed).unwrap();
        let theirs = segments(&store, "first");
        let same = segments(&store, "second").iter().filter(|file| theirs.contains(file)).count();
        assert_eq!(same, LAYERS * shared, "{what}");
        check(&second.snapshot().unwrap(), &kv);
    }
}

/// The process dies at every operation of the commit that takes segments over, or one of them fails; then the first
/// context goes, and everything that nothing names.
#[test]
fn taking_over_can_end_anywhere() {
    let kv = rows();
    let start = {
        let memory = MemoryBackend::new();
        let store = store_on(&as_backend(&memory));
        ingested(&store, "first", &kv, &ids(ROWS), small_options()).commit(Durability::Strict).unwrap();
        memory.after(Crash::Kill)
    };
    let run = |backend: &Arc<dyn Backend>, counted: &FaultBackend| -> Result<(u64, u64), longwave::Error> {
        let store = store_on(backend);
        let mut second = store.create_with("second", &spec(), small_options())?;
        kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut second, layer, 0..ROWS));
        second.extend_tokens(&ids(ROWS))?;
        second.seal()?;
        let before = counted.operations();
        second.commit(Durability::Strict)?;
        let commit = (before, counted.operations());
        drop(second);
        store.remove("first")?;
        store.collect(false)?;
        Ok(commit)
    };
    let faulty = |memory: &MemoryBackend, injection: Option<Injection>| {
        let faulty = Arc::new(FaultBackend::new(as_backend(memory), injection));
        let backend: Arc<dyn Backend> = Arc::clone(&faulty) as Arc<dyn Backend>;
        (faulty, backend)
    };
    let memory = start.after(Crash::Kill);
    let (counted, backend) = faulty(&memory, None);
    let (first, end) = run(&backend, &counted).unwrap();
    assert!(end - first > 10, "{first} to {end}");
    let mut points = 0;
    for at in first..end {
        for (kind, then_dead) in [
            (InjectionKind::Fail { error: ErrorKind::StorageFull }, true),
            (InjectionKind::DoneButFails, true),
            (InjectionKind::Fail { error: ErrorKind::StorageFull }, false),
        ] {
            let memory = start.after(Crash::Kill);
            let (counted, backend) = faulty(&memory, Some(Injection { at, kind, then_dead }));
            let ended = run(&backend, &counted);
            for crash in [Crash::Kill, Crash::DropUnsynced, Crash::KeepNames, Crash::Torn { seed: at }] {
                let left = memory.after(crash);
                let place = format!("{kind:?} at {at}, {crash:?}");
                let store = store_on(&as_backend(&left));
                if ended.is_ok() {
                    assert!(store.contains("second").unwrap(), "{place}");
                }
                if store.contains("second").unwrap() {
                    let snapshot =
                        store.snapshot("second").unwrap_or_else(|error| panic!("{place}: {error}"));
                    if snapshot.length(0).unwrap() > 0 {
                        check(&snapshot, &kv);
                    }
                    // Opening for writing removes what its writer left, and nothing that counts.
                    drop(store.context("second", &spec()).unwrap());
                }
                if store.contains("first").unwrap() {
                    check(&store.snapshot("first").unwrap(), &kv);
                    store.remove("first").unwrap();
                }
                store.collect(false).unwrap_or_else(|error| panic!("{place}: {error}"));
                if store.contains("second").unwrap() {
                    let snapshot = store.snapshot("second").unwrap();
                    if snapshot.length(0).unwrap() > 0 {
                        check(&snapshot, &kv);
                    }
                }
                assert_eq!(faults(&as_backend(&left)), Vec::<String>::new(), "{place}");
                points += 1;
            }
        }
    }
    println!("crash points: {points} (segments of another context taken over)");
}
