//! Forks, cuts, removal, renaming and collection.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, logits, memory_store, model, queries, query_view, small_options,
    store_on,
};
use crate::truth::check_exact;
use longwave::storage::{Backend, Crash, MemoryBackend};
use longwave::{Budget, Context, Dtype, Durability, Error, LayerKind, ModelSpec, Snapshot, Store};
use std::ops::Range;

const LAYERS: usize = 3;
const ROWS: usize = 400;

fn spec() -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly, LayerKind::SlidingWindow(40)];
    model.sink_logits = vec![logits(2, &model), vec![], vec![]];
    model
}

fn kv(seed: u64, model: &ModelSpec) -> Vec<Kv> {
    (0..LAYERS).map(|layer| Kv::new(seed + layer as u64, ROWS, model)).collect()
}

fn append(context: &mut Context, kv: &[Kv], tokens: Range<usize>) {
    kv.iter().enumerate().for_each(|(layer, kv)| kv.append(context, layer, tokens.clone()));
    context.extend_tokens(&tokens.map(|token| id(kv, token)).collect::<Vec<_>>()).unwrap();
}

/// Other rows are those of another text.
fn id(kv: &[Kv], token: usize) -> u32 {
    kv[0].keys[token * kv[0].kv_heads * kv[0].key_dim].to_bits()
}

/// Rows one by one, with queries that are observed and learnt from.
fn decode(context: &mut Context, kv: &[Kv], tokens: Range<usize>) {
    let model = context.model().clone();
    for token in tokens {
        append(context, kv, token..token + 1);
        // What a call reads, and so what it teaches, depends on the segments that are there.
        while (0..LAYERS).any(|layer| {
            let unsealed = context.length(layer).unwrap() - context.sealed_rows(layer).unwrap();
            unsealed >= 3 + 5 + 16
        }) {
            drop(context.snapshot().unwrap());
            std::thread::yield_now();
        }
        for layer in 0..LAYERS {
            let asked = queries(token as u64, 1, &model);
            context.attend(layer, &query_view(&asked, &model), &Budget::Bytes(0.2)).unwrap();
        }
    }
}

fn all_bits(snapshot: &Snapshot) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for layer in 0..LAYERS {
        for positions in [1, 5] {
            let asked = queries(layer as u64, positions, snapshot.model());
            for budget in [Budget::Exact, Budget::RETROINFER, Budget::Tau(0.05), Budget::Bytes(0.2)] {
                let answer = snapshot.attend(layer, &query_view(&asked, snapshot.model()), &budget).unwrap();
                all.push(bits(&answer));
            }
        }
    }
    all
}

fn check(snapshot: &Snapshot, kv: &[Kv], length: usize) {
    assert_eq!(snapshot.tokens(), (0..length).map(|token| id(kv, token)).collect::<Vec<_>>());
    for (layer, kv) in kv.iter().enumerate() {
        assert_eq!(snapshot.length(layer).unwrap(), length as u64);
        let asked = queries(11, length.min(3), snapshot.model());
        let answer = snapshot.attend(layer, &query_view(&asked, snapshot.model()), &Budget::Exact).unwrap();
        check_exact(snapshot.model(), layer, kv, length as u64, &asked, &answer);
    }
}

/// A context with bulk segments, decode segments and a tail.
fn filled(store: &Store, name: &str, kv: &[Kv], end: usize) -> Context {
    let mut context = store.create_with(name, &spec(), small_options()).unwrap();
    append(&mut context, kv, 0..150);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    decode(&mut context, kv, 150..end);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    context
}

fn kv_files(memory: &MemoryBackend) -> Vec<String> {
    let files = memory.files().into_iter();
    files.filter(|file| file.starts_with("segments/") || file.starts_with("logs/")).collect()
}

fn named(store: &Store) -> Vec<String> {
    let names = store.contexts().unwrap();
    let mut files: Vec<String> =
        names.iter().flat_map(|name| store.manifest(name).unwrap().files(name)).collect();
    files.sort();
    files.dedup();
    files
}

#[test]
fn a_fork_copies_nothing_and_goes_its_own_way() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let (ours, theirs) = (kv(1, &model), kv(900, &model));
    let mut parent = filled(&store, "parent", &ours, 230);
    let (before, answers) = (kv_files(&memory), all_bits(&parent.snapshot().unwrap()));
    let mut fork = parent.fork("child").unwrap();
    assert_eq!(kv_files(&memory), before, "files that a fork writes");
    assert!(all_bits(&fork.snapshot().unwrap()) == answers);
    assert!(all_bits(&store.snapshot("child").unwrap()) == answers);
    let origin = store.manifest("child").unwrap().origin.unwrap();
    assert_eq!((origin.context_id, origin.length), (store.manifest("parent").unwrap().context_id, 230));
    // Both go on from the same rows, each with its own.
    let mixed: Vec<Kv> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.joined(230, theirs)).collect();
    decode(&mut parent, &ours, 230..330);
    decode(&mut fork, &mixed, 230..310);
    parent.seal().unwrap();
    parent.commit(Durability::Strict).unwrap();
    fork.commit(Durability::Strict).unwrap();
    check(&store.snapshot("parent").unwrap(), &ours, 330);
    check(&store.snapshot("child").unwrap(), &mixed, 310);
    // The fork survives all that becomes of its parent.
    parent.truncate(20).unwrap();
    parent.commit(Durability::Strict).unwrap();
    check(&parent.snapshot().unwrap(), &ours, 20);
    drop((parent, fork));
    store.remove("parent").unwrap();
    assert!(matches!(store.snapshot("parent"), Err(Error::ContextMissing { .. })));
    store.collect(false).unwrap();
    assert_eq!(kv_files(&memory), named(&store));
    check(&store.snapshot("child").unwrap(), &mixed, 310);
    let mut fork = store.context("child", &model).unwrap();
    decode(&mut fork, &mixed, 310..340);
    fork.commit(Durability::Strict).unwrap();
    let after = store_on(&as_backend(&memory.after(Crash::DropUnsynced)));
    check(&after.snapshot("child").unwrap(), &mixed, 340);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn forks_of_forks_and_of_committed_contexts_read_the_same_rows() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(5, &model);
    let parent = filled(&store, "a", &kv, 200);
    // Beside the writer, at any length: in the tail, in segments, in the sinks.
    for (name, length) in
        [("all", None), ("tail", Some(199)), ("inside", Some(77)), ("sinks", Some(2)), ("none", Some(0))]
    {
        let mut fork = store.fork("a", name, &model, length).unwrap();
        let length = length.unwrap_or(200) as usize;
        if length > 0 {
            check(&fork.snapshot().unwrap(), &kv, length);
            check(&store.snapshot(name).unwrap(), &kv, length);
        }
        let next = length + 30;
        decode(&mut fork, &kv, length..next);
        fork.commit(Durability::Flushed).unwrap();
        let mut again = fork.fork(&format!("{name}-again")).unwrap();
        drop(fork);
        decode(&mut again, &kv, next..next + 3);
        again.commit(Durability::None).unwrap();
        check(&store.snapshot(name).unwrap(), &kv, next);
        check(&store.snapshot(&format!("{name}-again")).unwrap(), &kv, next + 3);
    }
    assert!(matches!(store.fork("a", "all", &model, None), Err(Error::ContextExists { .. })));
    assert!(matches!(store.fork("b", "new", &model, None), Err(Error::ContextMissing { .. })));
    assert!(matches!(store.fork("a", "long", &model, Some(201)), Err(Error::Invalid { .. })));
    assert!(!store.contains("long").unwrap());
    drop(parent);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn a_cut_context_has_the_bits_of_one_that_never_went_further() {
    let model = spec();
    let kv = kv(3, &model);
    for (length, sealed) in [
        (229, false),
        (200, true),
        (177, true),
        (150, true),
        (101, false),
        (60, true),
        (2, false),
        (0, false),
    ] {
        for reopened in [false, true] {
            let memory = MemoryBackend::new();
            let store = store_on(&as_backend(&memory));
            // The profile of a store knows what its contexts have asked: each has its own.
            let mut short = memory_store().create_with("short", &model, small_options()).unwrap();
            if length > 0 {
                append(&mut short, &kv, 0..length.min(150));
            }
            decode(&mut short, &kv, 150..length.max(150));
            short.commit(Durability::Strict).unwrap();
            let mut cut = store.create_with("cut", &model, small_options()).unwrap();
            append(&mut cut, &kv, 0..150);
            decode(&mut cut, &kv, 150..length.max(150));
            cut.commit(Durability::Strict).unwrap();
            decode(&mut cut, &kv, length.max(150)..300);
            if sealed {
                cut.seal().unwrap();
            }
            cut.commit(Durability::Strict).unwrap();
            if reopened {
                drop(cut);
                // What the store has learnt of the model is not cut with the context.
                for profile in memory.files().iter().filter(|file| file.starts_with("profiles/")) {
                    memory.remove(profile).unwrap();
                }
                cut = store.context("cut", &model).unwrap();
            }
            cut.truncate(length as u64).unwrap();
            if length > 5 {
                check(&cut.snapshot().unwrap(), &kv, length);
                let place = format!("cut at {length}, sealed {sealed}, reopened {reopened}");
                assert!(
                    all_bits(&cut.snapshot().unwrap()) == all_bits(&short.snapshot().unwrap()),
                    "{place}"
                );
            }
            for context in [&mut short, &mut cut] {
                decode(context, &kv, length..length + 40);
                context.seal().unwrap();
            }
            let bits = all_bits(&short.snapshot().unwrap());
            assert!(
                all_bits(&cut.snapshot().unwrap()) == bits,
                "decoded after a cut at {length}, {reopened}"
            );
            cut.commit(Durability::Strict).unwrap();
            drop(cut);
            assert!(all_bits(&store.snapshot("cut").unwrap()) == bits, "committed after a cut at {length}");
            let cut = store.context("cut", &model).unwrap();
            let mut short = short;
            for layer in 0..LAYERS {
                let sample = store.snapshot("cut").unwrap();
                let expected = short.snapshot().unwrap();
                assert_eq!(sample.sampled_queries(layer).unwrap(), expected.sampled_queries(layer).unwrap());
            }
            drop(cut);
            assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
        }
    }
}

#[test]
fn a_cut_inside_a_segment_writes_no_rows_and_stays_readable() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(8, &model);
    let mut context = filled(&store, "long", &kv, 260);
    let before = kv_files(&memory);
    // Deeper and deeper, committed each time, with rows appended in between.
    let mut length = 260;
    for cut in [230, 141, 120, 61, 30, 4, 1] {
        context.truncate(cut as u64).unwrap();
        context.commit(Durability::Strict).unwrap();
        assert!(kv_files(&memory).iter().all(|file| before.contains(file)), "cut at {cut}");
        check(&store.snapshot("long").unwrap(), &kv, cut);
        length = cut;
    }
    for (more, cut) in [(90, 50), (120, 100), (40, 70), (200, 130)] {
        decode(&mut context, &kv, length..length + more);
        context.commit(Durability::Strict).unwrap();
        check(&store.snapshot("long").unwrap(), &kv, length + more);
        context.truncate(cut).unwrap();
        length = cut as usize;
        context.commit(Durability::Strict).unwrap();
        drop(context);
        context = store.context("long", &model).unwrap();
        check(&context.snapshot().unwrap(), &kv, length);
    }
    drop(context);
    store.collect(false).unwrap();
    assert_eq!(kv_files(&memory), named(&store));
    assert!(matches!(
        store.context("long", &model).unwrap().truncate(length as u64 + 1),
        Err(Error::Invalid { .. })
    ));
}

#[test]
fn many_cuts_keep_the_number_of_logs_bounded() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(8, &model);
    let mut context = filled(&store, "guess", &kv, 170);
    for _ in 0..40 {
        // A guess of three tokens, of which one is right.
        let length = context.length(0).unwrap() as usize;
        decode(&mut context, &kv, length..length + 3);
        context.commit(Durability::Flushed).unwrap();
        context.truncate(length as u64 + 1).unwrap();
        let manifest = store.manifest("guess").unwrap();
        assert!(manifest.row_logs.len() <= 18 && manifest.meta_logs.len() <= 18, "{manifest:?}");
    }
    context.commit(Durability::Strict).unwrap();
    check(&store.snapshot("guess").unwrap(), &kv, 210);
    assert_eq!(kv_files(&memory), named(&store));
}

#[test]
fn a_context_is_renamed_and_removed_whole_or_not_at_all() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let (kv, other) = (kv(4, &model), kv(14, &model));
    let mut first = filled(&store, "first", &kv, 200);
    assert!(matches!(
        store.rename("first", "second"),
        Err(Error::Storage(longwave::storage::Error::Locked { .. }))
    ));
    assert!(matches!(store.remove("first"), Err(Error::Storage(longwave::storage::Error::Locked { .. }))));
    let snapshot = first.snapshot().unwrap();
    drop(first);
    drop(filled(&store, "taken", &other, 160));
    assert!(matches!(store.rename("first", "taken"), Err(Error::ContextExists { .. })));
    assert!(matches!(store.rename("none", "second"), Err(Error::ContextMissing { .. })));
    store.rename("first", "second").unwrap();
    assert_eq!(store.contexts().unwrap(), ["second", "taken"]);
    for crash in [Crash::Kill, Crash::DropUnsynced, Crash::KeepContents, Crash::KeepNames] {
        let after = store_on(&as_backend(&memory.after(crash)));
        assert_eq!(after.contexts().unwrap(), ["second", "taken"]);
        check(&after.snapshot("second").unwrap(), &kv, 200);
    }
    assert_eq!(store.manifest("second").unwrap().name, "second");
    check(&snapshot, &kv, 200);
    let mut second = store.context("second", &model).unwrap();
    decode(&mut second, &kv, 200..210);
    second.commit(Durability::Strict).unwrap();
    drop(second);
    store.remove("second").unwrap();
    assert_eq!(kv_files(&memory), named(&store), "files of a removed context");
    assert_eq!(store.contexts().unwrap(), ["taken"]);
    let after = store_on(&as_backend(&memory.after(Crash::DropUnsynced)));
    assert_eq!(after.contexts().unwrap(), ["taken"]);
    drop(filled(&store, "second", &kv, 170));
    check(&store.snapshot("second").unwrap(), &kv, 170);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn collection_removes_what_nothing_names_and_leaves_writers_alone() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(4, &model);
    let mut parent = filled(&store, "parent", &kv, 200);
    let child = parent.fork("child").unwrap();
    // A writer at work holds segments that no manifest names.
    append(&mut parent, &kv, 200..330);
    parent.seal().unwrap();
    let collected = store.collect(false).unwrap();
    assert!(collected.files.is_empty() && collected.in_use > 0, "{collected:?}");
    parent.commit(Durability::Strict).unwrap();
    check(&store.snapshot("parent").unwrap(), &kv, 330);
    // What it has replaced stays for the child, until the child is gone.
    drop(child);
    store.remove("child").unwrap();
    let dry = store.collect(true).unwrap();
    assert!(!dry.files.is_empty() && dry.bytes > 0);
    assert!(dry.files.iter().all(|file| memory.files().contains(file)));
    assert_eq!(store.collect(false).unwrap(), dry);
    assert_eq!(kv_files(&memory), named(&store));
    assert_eq!(store.collect(false).unwrap(), Default::default());
    // Without forks the writer removes what it replaces itself.
    decode(&mut parent, &kv, 330..360);
    parent.seal().unwrap();
    parent.commit(Durability::Strict).unwrap();
    assert_eq!(kv_files(&memory), named(&store));
    // A writer that died leaves files above what its manifest knows.
    append(&mut parent, &kv, 360..400);
    parent.seal().unwrap();
    let dead = memory.after(Crash::Kill);
    let left = store_on(&as_backend(&dead));
    assert!(kv_files(&dead) != named(&left));
    left.collect(false).unwrap();
    assert_eq!(kv_files(&dead), named(&left));
    check(&left.snapshot("parent").unwrap(), &kv, 360);
}

/// A collection has locks until what it found is removed; here that takes longer than any pause between two tries.
#[test]
fn a_slow_collection_is_waited_for_and_a_writer_is_not() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(4, &model);
    drop(filled(&store, "old", &kv, 200));
    let lock = |path: &str| memory.lock(path).unwrap();
    let beside = |action: &dyn Fn()| {
        let (references, context) = (lock("longwave.lock"), lock("contexts/old/lock"));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(150));
                drop(context);
                drop(references);
            });
            action();
        });
    };
    beside(&|| assert_eq!(store.context("old", &model).unwrap().length(0).unwrap(), 200));
    beside(&|| store.rename("old", "new").unwrap());
    store.rename("new", "old").unwrap();
    // Without a collection whoever has the lock is a writer, and stays one.
    let writer = lock("contexts/old/lock");
    assert!(matches!(store.remove("old"), Err(Error::Storage(longwave::storage::Error::Locked { .. }))));
    drop(writer);
    beside(&|| store.remove("old").unwrap());
    assert!(store.contexts().unwrap().is_empty());
}

#[test]
fn collection_refuses_when_a_manifest_is_unreadable_or_lost() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(4, &model);
    drop(filled(&store, "whole", &kv, 200));
    drop(filled(&store, "hurt", &kv, 200));
    let files = kv_files(&memory);
    for damage in [Some(b"garbage".as_slice()), None] {
        let hurt = memory.after(Crash::Kill);
        match damage {
            Some(bytes) => hurt.replace("contexts/hurt/manifest", bytes).unwrap(),
            None => hurt.remove("contexts/hurt/manifest").unwrap(),
        }
        let error = store_on(&as_backend(&hurt)).collect(false).unwrap_err();
        assert!(error.to_string().contains("contexts/hurt/manifest"), "{error}");
        assert_eq!(kv_files(&hurt), files);
        assert!(!faults(&as_backend(&hurt)).is_empty());
    }
}

#[test]
fn a_generation_is_never_given_twice() {
    use longwave::storage::fault::{FaultBackend, Injection, InjectionKind};
    let model = spec();
    let kv = kv(4, &model);
    let (mut seen, mut failed) = (Vec::new(), 0);
    for at in 0..150 {
        let memory = MemoryBackend::new();
        let mut context = store_on(&as_backend(&memory)).create_with("g", &model, small_options()).unwrap();
        append(&mut context, &kv, 0..30);
        context.commit(Durability::Strict).unwrap();
        drop(context);
        let injection = Injection { at, kind: InjectionKind::DoneButFails, then_dead: false };
        let faulty: std::sync::Arc<dyn Backend> =
            std::sync::Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
        let Ok(store) = Store::on_backend(faulty, Default::default()) else { continue };
        let Ok(mut context) = store.context("g", &model) else { continue };
        append(&mut context, &kv, 30..31);
        if context.commit(Durability::Strict).is_ok() {
            continue;
        }
        failed += 1;
        let on_disk = store_on(&as_backend(&memory)).manifest("g").unwrap();
        append(&mut context, &kv, 31..33);
        if context.commit(Durability::Strict).is_ok() {
            let next = store_on(&as_backend(&memory)).manifest("g").unwrap();
            assert!(next.generation > on_disk.generation, "operation {at}");
            seen.push(on_disk.generation);
        }
    }
    assert!(failed > 5 && seen.contains(&2) && seen.contains(&3), "{failed} failures, {seen:?}");
}

#[test]
fn a_snapshot_outlives_a_writer_that_commits_nothing_and_a_rebuild() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = kv(4, &model);
    let mut context = store.create_with("brief", &model, small_options()).unwrap();
    append(&mut context, &kv, 0..200);
    context.seal().unwrap();
    let uncommitted = context.snapshot().unwrap();
    drop(context);
    let mut context = store.context("brief", &model).unwrap();
    assert!(kv_files(&memory).is_empty(), "what it wrote is removed");
    check_rows(&uncommitted, &kv, 200);
    append(&mut context, &kv, 0..200);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let mut context = store.context("brief", &model).unwrap();
    let old = context.snapshot().unwrap();
    context.rebuild(None).unwrap();
    context.commit(Durability::Strict).unwrap();
    check_rows(&old, &kv, 200);
}

fn check_rows(snapshot: &Snapshot, kv: &[Kv], length: usize) {
    assert_eq!(snapshot.tokens().len(), length);
    check(snapshot, kv, length);
}
