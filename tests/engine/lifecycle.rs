//! Appending, sealing, committing and reopening: the same rows give the same answers all along.

use crate::sample::{
    Kv, Sample, UNEQUAL, as_backend, bits, faults, memory_store, merging_store_on, model, own_key_queries,
    queries, query_view, small_options, store_on,
};
use crate::truth::{check_exact, check_own_values};
use half::f16;
use longwave::storage::{Backend, Crash, FileBackend, MemoryBackend};
use longwave::{Budget, Context, Dtype, Durability, LayerKind, ModelSpec, Snapshot, Store, StoreOptions};
use std::sync::Arc;

/// A clustered layer, an exact-only one, a sliding one, and one without KV.
fn spec() -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, 4);
    model.layer_kinds =
        vec![LayerKind::Clustered, LayerKind::ExactOnly, LayerKind::SlidingWindow(40), LayerKind::Absent];
    model
}

const PRESENT: usize = 3;

fn rows(model: &ModelSpec, tokens: usize) -> Vec<Kv> {
    (0..PRESENT).map(|layer| Kv::new(7 + layer as u64, tokens, model)).collect()
}

fn append(context: &mut Context, kv: &[Kv], tokens: std::ops::Range<usize>) {
    kv.iter().enumerate().for_each(|(layer, kv)| kv.append(context, layer, tokens.clone()));
}

/// The bits of all answers of a snapshot: every layer, both methods, one position and many.
fn all_bits(snapshot: &Snapshot) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for layer in 0..PRESENT {
        for positions in [1, 6, 90] {
            let queries = queries(layer as u64, positions, snapshot.model());
            for budget in [Budget::Exact, Budget::RETROINFER] {
                let answer = snapshot.attend(layer, &query_view(&queries, snapshot.model()), &budget);
                all.push(bits(&answer.unwrap()));
            }
        }
    }
    all
}

#[test]
fn a_commit_and_a_reopening_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let model = spec();
    let kv = rows(&model, 900);
    let sizes = [400, 1, 1, 19, 5, 130, 1, 7, 2, 90, 1, 1, 200];
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let mut context = store.create_with("steps", &model, small_options()).unwrap();
    let mut end = 0;
    for (step, size) in sizes.into_iter().enumerate() {
        append(&mut context, &kv, end..end + size);
        end += size;
        if step % 3 == 0 {
            context.seal().unwrap();
        }
        // Before the commit, from memory; after it, through the files.
        context.commit(Durability::None).unwrap();
        let before = context.snapshot().unwrap();
        let committed = Store::open(dir.path(), StoreOptions::default()).unwrap().snapshot("steps").unwrap();
        if before.segments(0).unwrap().len() == committed.segments(0).unwrap().len() {
            assert!(all_bits(&before) == all_bits(&committed), "after step {step}");
        }
        // A writer that goes on from the files goes on with the same bits.
        if step % 4 == 2 {
            drop(context);
            context = store.context("steps", &model).unwrap();
            let reopened = all_bits(&context.snapshot().unwrap());
            assert!(reopened == all_bits(&committed), "reopened after step {step}");
        }
        assert_eq!(committed.length(0).unwrap(), end as u64);
        assert_eq!(committed.length(3).unwrap(), 0);
        assert_eq!(committed.generation(), step as u64 + 2);
    }
    let queries = queries(3, 5, &model);
    for (layer, kv) in kv.iter().enumerate() {
        let answer = context.attend(layer, &query_view(&queries, &model), &Budget::Exact).unwrap();
        check_exact(&model, layer, kv, end as u64, &queries, &answer);
    }
    drop(context);
    let backend: Arc<dyn Backend> = Arc::new(FileBackend::new(dir.path()));
    assert_eq!(faults(&backend), Vec::<String>::new());
    assert_eq!(store.contexts().unwrap(), ["steps"]);
}

#[test]
fn an_uncommitted_state_has_the_bits_of_its_commit() {
    let model = spec();
    let kv = rows(&model, 500);
    // The window reaches over a block's end: blocks that a seal has cut and those of a reopened tail must agree.
    for sealed in [333, 97, 260, 480] {
        let store = memory_store();
        let mut context = store.create_with("cut", &model, small_options().with_exact_rows(3, 120)).unwrap();
        append(&mut context, &kv, 0..sealed);
        context.seal().unwrap();
        let end = sealed + 1 + (500 - sealed) / 70 * 7;
        append(&mut context, &kv, sealed..end);
        context.seal().unwrap();
        for token in end..end + 11 {
            append(&mut context, &kv, token..token + 1);
        }
        context.seal().unwrap();
        let before = all_bits(&context.snapshot().unwrap());
        context.commit(Durability::Strict).unwrap();
        assert!(all_bits(&context.snapshot().unwrap()) == before);
        assert!(all_bits(&store.snapshot("cut").unwrap()) == before);
        drop(context);
        assert!(all_bits(&store.context("cut", &model).unwrap().snapshot().unwrap()) == before);
    }
}

#[test]
fn nothing_is_lost_while_sealing_goes_on_behind_decoding() {
    let model = spec();
    let kv: Vec<Kv> = (0..PRESENT).map(|layer| Kv::scattered(layer as u64, 700, &model)).collect();
    let store = merging_store_on(&as_backend(&MemoryBackend::new()));
    let mut context = store.create_with("decode", &model, small_options()).unwrap();
    let mut sealed = Vec::new();
    for token in 0..700 {
        append(&mut context, &kv, token..token + 1);
        for (layer, kv) in kv.iter().enumerate() {
            let positions = token + 1 - (token + 1).min(30)..token + 1;
            let queries = own_key_queries(kv, &model, positions.clone());
            let answer = context.attend(layer, &query_view(&queries, &model), &Budget::Exact).unwrap();
            check_own_values(&model, kv, positions, &answer);
        }
        sealed.push(context.sealed_rows(0).unwrap());
        if token % 50 == 33 {
            // Whatever is pending, the commit is whole.
            context.commit(Durability::None).unwrap();
            let snapshot = store.snapshot("decode").unwrap();
            let queries = own_key_queries(&kv[1], &model, 0..token + 1);
            let answer = snapshot.attend(1, &query_view(&queries, &model), &Budget::Exact).unwrap();
            check_own_values(&model, &kv[1], 0..token + 1, &answer);
        }
    }
    assert!(sealed.is_sorted());
    context.seal().unwrap();
    assert_eq!(context.sealed_rows(0).unwrap(), 700 - 3 - 5);
    // Decoding seals 16 rows at a time, and three times as many are merged: the bounds depend on positions alone.
    let bounds = |context: &mut Context| -> Vec<_> {
        let snapshot = context.snapshot().unwrap();
        snapshot.segments(0).unwrap().iter().map(|s| (s.first_position(), s.rows())).collect()
    };
    let found = bounds(&mut context);
    assert!(
        found.iter().all(|(first, rows)| (first - 3) % 16 == 0 && [4, 16, 48].contains(rows)),
        "{found:?}"
    );
    assert!(found.iter().any(|(_, rows)| *rows == 48), "{found:?}");
    context.compact(None).unwrap();
    let mut expected: Vec<_> = (0..14).map(|i| (3 + 48 * i, 48)).collect();
    expected.push((3 + 48 * 14, 20));
    assert_eq!(bounds(&mut context), expected);
}

#[test]
fn the_default_options_seal_bulk_and_decoding_as_documented() {
    let model = model([1, 2, 8, 8], Dtype::F16, 1);
    let kv = Kv::new(1, 12_000, &model);
    let mut context = memory_store().create("defaults", &model).unwrap();
    for start in (0..9000).step_by(500) {
        kv.append(&mut context, 0, start..start + 500);
    }
    context.commit(Durability::None).unwrap();
    assert_eq!(context.sealed_rows(0).unwrap(), 8192);
    for token in 9000..12_000 {
        kv.append(&mut context, 0, token..token + 1);
    }
    context.seal().unwrap();
    let snapshot = context.snapshot().unwrap();
    let bounds: Vec<_> =
        snapshot.segments(0).unwrap().iter().map(|s| (s.first_position(), s.rows())).collect();
    let end = 12_000 - 64 - (4 + 8192 + 3 * 1024);
    assert_eq!(bounds, [(4, 8192), (8196, 1024), (9220, 1024), (10_244, 1024), (11_268, end)]);
    let queries = queries(2, 1, &model);
    let answer = snapshot.attend(0, &query_view(&queries, &model), &Budget::Exact).unwrap();
    check_exact(&model, 0, &kv, 12_000, &queries, &answer);
}

#[test]
fn the_row_log_stays_short() {
    let model = spec();
    let kv = rows(&model, 620);
    let memory = MemoryBackend::new();
    let store = store_on(&(Arc::new(memory.clone()) as Arc<dyn Backend>));
    let mut context = store.create_with("log", &model, small_options()).unwrap();
    append(&mut context, &kv, 0..100);
    context.seal().unwrap();
    let row_bytes = 3 * 3 * (24 + 16) * 2;
    for token in 100..620 {
        append(&mut context, &kv, token..token + 1);
        if token % 16 == 0 {
            context.seal().unwrap();
        }
        context.commit(Durability::None).unwrap();
        let logs: Vec<String> =
            memory.files().into_iter().filter(|file| file.ends_with(".rows.log")).collect();
        // One of the last commit; before it, one of the last durable commit.
        assert!(logs.len() <= 2, "{logs:?}");
        for len in logs.iter().map(|log| memory.contents(log).unwrap().len()) {
            // Sinks, window and at most 16 rows that are not sealed, with a header each at the worst.
            assert!(len < 200 + (3 + 5 + 17) * (row_bytes + 3 * 100), "{len} bytes at token {token}");
        }
        if token % 100 == 50 {
            context.commit(Durability::Flushed).unwrap();
            let logs = memory.files().into_iter().filter(|file| file.ends_with(".rows.log")).count();
            assert_eq!(logs, 1);
        }
    }
}

#[test]
fn token_ids_and_sampled_queries_come_back() {
    let model = spec();
    let kv = rows(&model, 300);
    let ids: Vec<u32> = (0..300u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let store = memory_store();
    let mut context = store.create_with("meta", &model, small_options()).unwrap();
    let mut asked: Vec<Vec<Vec<f32>>> = vec![Vec::new(); PRESENT];
    for (start, end) in [(0, 80), (80, 81), (81, 200), (200, 201), (201, 300)] {
        append(&mut context, &kv, start..end);
        context.extend_tokens(&ids[start..end]).unwrap();
        for (layer, asked) in asked.iter_mut().enumerate() {
            let queries = Sample::new(layer as u64 * 7 + end as u64).numbers((end - start) * 6 * 24, 2.0);
            asked.extend(queries.chunks(6 * 24).map(<[f32]>::to_vec));
            if end % 2 == 0 {
                context.observe(layer, &query_view(&queries, &model)).unwrap();
            } else {
                context.attend(layer, &query_view(&queries, &model), &Budget::RETROINFER).unwrap();
            }
        }
        context.commit(Durability::Strict).unwrap();
        if end == 200 {
            drop(context);
            context = store.context("meta", &model).unwrap();
        }
    }
    assert_eq!(context.tokens(), ids);
    let (live, stored) = (context.snapshot().unwrap(), store.snapshot("meta").unwrap());
    assert_eq!(stored.tokens(), ids);
    for (layer, asked) in asked.iter().enumerate() {
        let sample = stored.sampled_queries(layer).unwrap();
        assert_eq!(sample, live.sampled_queries(layer).unwrap());
        assert_eq!(sample.len(), 9);
        assert!(sample.is_sorted_by_key(|(position, _)| *position));
        for (position, queries) in sample {
            let expected: Vec<f16> = asked[*position as usize].iter().map(|&x| f16::from_f32(x)).collect();
            assert_eq!(*queries, expected, "layer {layer}, position {position}");
        }
        // The same positions on every layer, and not only the oldest.
        assert!(sample.iter().zip(stored.sampled_queries(0).unwrap()).all(|(a, b)| a.0 == b.0));
        assert!(sample.iter().any(|(position, _)| *position > 150));
    }
    assert!(stored.sampled_queries(3).unwrap().is_empty());
}

#[test]
fn contexts_of_a_store_are_apart() {
    let store = memory_store();
    let (small, large) = (model([1, 2, 8, 16], Dtype::Bf16, 1), model(UNEQUAL, Dtype::F32, 2));
    let mut first = store.create_with("first", &small, small_options()).unwrap();
    let mut second = store.create_with("second", &large, small_options()).unwrap();
    let (of_first, of_second) = (Kv::new(1, 90, &small), Kv::new(2, 150, &large));
    of_first.append(&mut first, 0, 0..90);
    of_second.append(&mut second, 0, 0..150);
    of_second.append(&mut second, 1, 0..150);
    first.seal().unwrap();
    second.seal().unwrap();
    second.commit(Durability::Strict).unwrap();
    first.commit(Durability::Strict).unwrap();
    drop((first, second));
    assert_eq!(store.contexts().unwrap(), ["first", "second"]);
    let snapshots = [(&small, &of_first, "first"), (&large, &of_second, "second")];
    for (model, kv, name) in snapshots {
        let snapshot = store.snapshot(name).unwrap();
        assert_eq!(snapshot.model(), model);
        let queries = queries(5, 2, model);
        let answer = snapshot.attend(0, &query_view(&queries, model), &Budget::Exact).unwrap();
        check_exact(model, 0, kv, kv.tokens() as u64, &queries, &answer);
    }
}

#[test]
fn what_was_not_committed_is_gone_and_leaves_no_file() {
    let model = spec();
    let kv = rows(&model, 400);
    let memory = MemoryBackend::new();
    let backend: Arc<dyn Backend> = Arc::new(memory.clone());
    let store = store_on(&backend);
    let mut context =
        store.create_with("dropped", &model, small_options().with_segment_rows(200, 16)).unwrap();
    append(&mut context, &kv, 0..150);
    context.commit(Durability::Strict).unwrap();
    for round in 0..3 {
        let committed = all_bits(&context.snapshot().unwrap());
        append(&mut context, &kv, 150..400);
        // Dropped with segments written, being written and queued.
        if round == 1 {
            context.seal().unwrap();
        }
        drop(context);
        let files = memory.files();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_eq!(memory.files(), files, "a dropped context writes on");
        context = store.context("dropped", &model).unwrap();
        assert_eq!(context.length(0).unwrap(), 150);
        assert!(all_bits(&context.snapshot().unwrap()) == committed, "round {round}");
    }
    let named =
        store.manifest("dropped").unwrap().layers.iter().map(|layer| layer.segments.len()).sum::<usize>();
    let segments = memory.files().iter().filter(|file| file.contains(".segment")).count();
    assert_eq!(segments, named);
    // Numbers of files go on above those that were dropped: what is appended now is served from its own files.
    append(&mut context, &kv, 150..300);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    let queries = queries(3, 4, &model);
    let answer =
        store.snapshot("dropped").unwrap().attend(0, &query_view(&queries, &model), &Budget::Exact).unwrap();
    check_exact(&model, 0, &kv[0], 300, &queries, &answer);
    assert_eq!(faults(&backend), Vec::<String>::new());
}

#[test]
fn a_strict_commit_covers_the_weaker_ones_before_it() {
    let model = spec();
    let kv = rows(&model, 90);
    for reopened in [false, true] {
        let memory = MemoryBackend::new();
        let store = store_on(&(Arc::new(memory.clone()) as Arc<dyn Backend>));
        let mut context = store.create_with("weak", &model, small_options()).unwrap();
        append(&mut context, &kv, 0..90);
        context.extend_tokens(&[5; 90]).unwrap();
        context.commit(Durability::None).unwrap();
        if reopened {
            drop(context);
            context = store.context("weak", &model).unwrap();
        }
        // Nothing is left to write, but what was written is not on the device yet.
        context.commit(Durability::Strict).unwrap();
        let before = all_bits(&context.snapshot().unwrap());
        for crash in [Crash::DropUnsynced, Crash::KeepNames, Crash::KeepContents] {
            let left: Arc<dyn Backend> = Arc::new(memory.after(crash));
            assert_eq!(faults(&left), Vec::<String>::new(), "{crash:?}, reopened {reopened}");
            let snapshot = store_on(&left).snapshot("weak").unwrap();
            assert!(all_bits(&snapshot) == before, "{crash:?}, reopened {reopened}");
            assert_eq!(snapshot.tokens(), [5; 90]);
        }
    }
}
