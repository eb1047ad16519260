//! Which contexts go when a store is over its bounds.

use crate::sample::{Kv, as_backend, faults, model, small_options, store_on};
use longwave::storage::MemoryBackend;
use longwave::{Context, Dtype, Durability, EvictionOrder, ModelSpec, Retention, Store};

fn spec() -> ModelSpec {
    model([2, 2, 16, 8], Dtype::F16, 1)
}

fn make(store: &Store, name: &str, rows: usize) -> Context {
    let mut context = store.create_with(name, &spec(), small_options()).unwrap();
    Kv::new(1, rows, &spec()).append(&mut context, 0, 0..rows);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    context
}

/// Contexts that were used in this order, an hour apart.
fn aged(memory: &MemoryBackend, names: &[&str]) {
    for (hours, name) in (1_u64..).zip(names) {
        memory.replace(&format!("contexts/{name}/used"), &(1_000_000 + 3600 * hours).to_le_bytes()).unwrap();
    }
}

fn gone(store: &Store, policy: &Retention, dry_run: bool) -> Vec<String> {
    store.retain(policy, dry_run).unwrap().evicted.into_iter().map(|evicted| evicted.name).collect()
}

#[test]
fn the_least_recently_used_go_first_and_pinned_ones_stay() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    for (name, rows) in [("d", 100), ("a", 300), ("c", 150), ("b", 60)] {
        make(&store, name, rows);
    }
    aged(&memory, &["b", "d", "a", "c"]);
    let two = Retention::unbounded(EvictionOrder::LeastRecentlyUsed).with_contexts_max(2);
    let files = memory.files();
    assert_eq!(gone(&store, &two, true), ["b", "d"]);
    assert_eq!(memory.files(), files, "a dry run removes nothing");
    store.pin("b", true).unwrap();
    assert!(store.is_pinned("b").unwrap() && !store.is_pinned("a").unwrap());
    let dry = store.retain(&two, true).unwrap();
    assert_eq!((dry.kept, dry.contexts), (vec!["b".to_owned()], 2));
    // A use is one, a look is none.
    drop(store.snapshot("d").unwrap());
    assert_eq!(gone(&store, &two, false), ["a", "c"]);
    assert_eq!(store.contexts().unwrap(), ["b", "d"]);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
    store.rename("b", "e").unwrap();
    assert!(store.is_pinned("e").unwrap());
    store.pin("e", false).unwrap();
    let _writer = store.context("d", &spec()).unwrap();
    aged(&memory, &["d", "e"]);
    let none = Retention::unbounded(EvictionOrder::LeastRecentlyUsed).with_contexts_max(0);
    let retained = store.retain(&none, false).unwrap();
    assert_eq!((retained.kept, retained.contexts), (vec!["d".to_owned()], 1), "it has a writer");
}

#[test]
fn bytes_are_counted_once_and_freed_with_the_last_that_names_them() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let mut parent = make(&store, "parent", 300);
    let mut child = parent.fork("child").unwrap();
    Kv::new(9, 340, &spec()).append(&mut child, 0, 300..340);
    child.seal().unwrap();
    child.commit(Durability::Strict).unwrap();
    drop((parent, child));
    make(&store, "other", 90);
    let all = store.retain(&Retention::unbounded(EvictionOrder::LeastRecentlyUsed), true).unwrap();
    let on_disk = |memory: &MemoryBackend| -> u64 {
        let files =
            memory.files().into_iter().filter(|f| f.starts_with("segments/") || f.starts_with("logs/"));
        files.map(|file| memory.contents(&file).unwrap().len() as u64).sum()
    };
    assert_eq!((all.contexts, all.bytes), (3, on_disk(&memory)));
    aged(&memory, &["parent", "child", "other"]);
    let policy = Retention::unbounded(EvictionOrder::LeastRecentlyUsed).with_bytes_max(all.bytes - 1);
    let retained = store.retain(&policy, false).unwrap();
    let names: Vec<&str> = retained.evicted.iter().map(|evicted| evicted.name.as_str()).collect();
    // The parent frees its log alone: enough.
    assert_eq!(names, ["parent"]);
    assert!(retained.evicted[0].bytes < 40_000 && retained.evicted[0].bytes > 0);
    assert_eq!(retained.bytes, on_disk(&memory));
    let retained = store.retain(&policy.with_bytes_max(retained.bytes / 2), false).unwrap();
    assert_eq!(retained.evicted.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["child"]);
    assert_eq!((retained.contexts, retained.bytes), (1, on_disk(&memory)));
}

#[test]
fn what_is_cheap_to_compute_again_goes_first() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let mut long = make(&store, "long", 700);
    make(&store, "short", 90);
    make(&store, "middle", 300);
    // Its files stay for the fork, so that its removal frees next to nothing.
    drop(long.fork("twin").unwrap());
    drop(long);
    aged(&memory, &["middle", "long", "twin", "short"]);
    let policy = Retention::unbounded(EvictionOrder::RecomputePerByte).with_contexts_max(1);
    let evicted = store.retain(&policy, true).unwrap().evicted;
    assert_eq!(evicted.iter().map(|e| e.name.as_str()).collect::<Vec<_>>()[..2], ["short", "middle"]);
    assert!(evicted[0].cost < evicted[1].cost);
}
