//! Snapshots and readers beside a writer.

use crate::sample::{
    Kv, UNEQUAL, bits, memory_store, model, own_key_queries, queries, query_view, small_options,
};
use crate::truth::{check_exact, check_own_values};
use longwave::{Budget, Dtype, Durability, Error, Snapshot, Store, StoreOptions};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn assert_send_and_sync<T: Send + Sync>(_: &T) {}

#[test]
fn a_snapshot_never_changes() {
    let model = model(UNEQUAL, Dtype::F16, 2);
    let kv = Kv::new(4, 600, &model);
    let store = memory_store();
    let mut context = store.create_with("growing", &model, small_options()).unwrap();
    let mut kept: Vec<(u64, Snapshot, Vec<u32>)> = Vec::new();
    let asked = queries(1, 3, &model);
    let bits_of =
        |snapshot: &Snapshot| bits(&snapshot.attend(0, &query_view(&asked, &model), &Budget::Exact).unwrap());
    for (step, size) in [3, 1, 100, 1, 1, 60, 9, 200, 1].into_iter().enumerate() {
        let start = context.length(0).unwrap() as usize;
        for layer in 0..2 {
            kv.append(&mut context, layer, start..start + size);
        }
        context.extend_tokens(&vec![step as u32; size]).unwrap();
        let snapshot = context.snapshot().unwrap();
        kept.push(((start + size) as u64, snapshot.clone(), bits_of(&snapshot)));
        if step % 2 == 0 {
            context.seal().unwrap();
            context.commit(Durability::None).unwrap();
        }
    }
    drop(context);
    drop(store);
    for (length, snapshot, expected) in kept {
        assert_eq!(snapshot.length(0).unwrap(), length);
        assert_eq!(snapshot.tokens().len(), length as usize);
        assert_eq!(bits_of(&snapshot), expected);
        let answer = snapshot.attend(0, &query_view(&asked, &model), &Budget::Exact).unwrap();
        check_exact(&model, 0, &kv, length, &asked, &answer);
    }
}

#[test]
fn readers_see_whole_states_while_the_writer_goes_on() {
    let model = model([2, 2, 16, 8], Dtype::F16, 2);
    let kv: Vec<Kv> = (0..2).map(|layer| Kv::scattered(layer, 500, &model)).collect();
    let mut context = memory_store().create_with("shared", &model, small_options()).unwrap();
    let reader = context.reader().unwrap();
    assert_send_and_sync(&reader);
    let (done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (reader, model, kv, done, answers) = (reader.clone(), &model, &kv, &done, &answers);
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let snapshot = reader.latest();
                    let length = snapshot.length(0).unwrap() as usize;
                    assert_eq!(snapshot.length(1).unwrap() as usize, length, "layers of one moment");
                    assert!(length >= last, "{length} rows after {last}");
                    last = length;
                    if length == 0 {
                        continue;
                    }
                    let positions = length - length.min(1 + 40 * thread)..length;
                    let queries = own_key_queries(&kv[thread % 2], model, positions.clone());
                    let budget = if thread == 2 { Budget::RETROINFER } else { Budget::Exact };
                    let answer = snapshot.attend(thread % 2, &query_view(&queries, model), &budget).unwrap();
                    // The last row is in the window: every method reads it.
                    let row = model.query_heads * model.value_dim;
                    if budget == Budget::Exact {
                        check_own_values(model, &kv[thread % 2], positions, &answer);
                    } else {
                        assert_eq!(answer.output.len(), positions.len() * row);
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for token in 0..500 {
            for (layer, kv) in kv.iter().enumerate() {
                kv.append(&mut context, layer, token..token + 1);
            }
            context.publish().unwrap();
            if token % 40 == 7 {
                context.commit(Durability::None).unwrap();
            }
            while answers.load(Ordering::Relaxed) < token / 4 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(reader.latest().length(0).unwrap(), 500);
    drop(context);
    assert_eq!(reader.latest().length(1).unwrap(), 500);
}

#[test]
fn a_reader_sees_what_was_published_and_nothing_newer() {
    let model = model(UNEQUAL, Dtype::F16, 1);
    let kv = Kv::new(1, 50, &model);
    let mut context = memory_store().create_with("published", &model, small_options()).unwrap();
    kv.append(&mut context, 0, 0..10);
    let reader = context.reader().unwrap();
    assert_eq!(reader.latest().length(0).unwrap(), 10);
    kv.append(&mut context, 0, 10..30);
    assert_eq!(reader.latest().length(0).unwrap(), 10);
    context.publish().unwrap();
    assert_eq!(reader.latest().length(0).unwrap(), 30);
    assert_eq!(reader.latest().generation(), 1);
    kv.append(&mut context, 0, 30..50);
    context.commit(Durability::None).unwrap();
    assert_eq!((reader.latest().length(0).unwrap(), reader.latest().generation()), (50, 2));
}

#[test]
fn another_store_handle_reads_commits_beside_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let model = model([2, 4, 16, 8], Dtype::F16, 1);
    let kv = Kv::scattered(3, 600, &model);
    let writer = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let mut context = writer.create_with("both", &model, small_options()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
            let mut generation = 0;
            while !done.load(Ordering::Acquire) {
                // Logs and manifests are replaced all the time; a reader starts again where it must.
                let snapshot = store.snapshot("both").unwrap();
                assert!(snapshot.generation() >= generation);
                generation = snapshot.generation();
                let length = snapshot.length(0).unwrap() as usize;
                if length > 0 {
                    let queries = own_key_queries(&kv, &model, 0..length);
                    let answer = snapshot.attend(0, &query_view(&queries, &model), &Budget::Exact).unwrap();
                    check_own_values(&model, &kv, 0..length, &answer);
                }
                assert!(
                    matches!(store.context("both", &model), Err(Error::Storage(_))),
                    "locked by the writer"
                );
            }
        });
        for token in 0..600 {
            kv.append(&mut context, 0, token..token + 1);
            if token % 3 == 0 {
                context.commit(Durability::None).unwrap();
            }
        }
        done.store(true, Ordering::Release);
    });
}
