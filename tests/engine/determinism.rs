//! The same input gives the same bytes and the same bits, whatever the threads.

use crate::sample::{Kv, UNEQUAL, bits, logits, model, queries, query_view, small_options};
use longwave::storage::{Backend, ColumnKind, MemoryBackend};
use longwave::{Budget, Dtype, Durability, LayerKind, ModelSpec, RowForm, Snapshot, Store, StoreOptions};
use std::sync::Arc;

fn spec(softcap: Option<f32>) -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, 3);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::SlidingWindow(300), LayerKind::Clustered];
    model.sink_logits = vec![vec![], logits(1, &model), logits(2, &model)];
    model.softcap = softcap;
    model
}

/// Rows of the last layer are kept as codes.
fn build(threads: usize, sealing_threads: usize, softcap: Option<f32>) -> (MemoryBackend, Snapshot) {
    let memory = MemoryBackend::new();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut options = StoreOptions::default();
    options.pool = Some(Arc::new(pool));
    options.sealing_threads = sealing_threads;
    let store = Store::on_backend(Arc::new(memory.clone()) as Arc<dyn Backend>, options).unwrap();
    let model = spec(softcap);
    let settings = small_options().with_segment_rows(2500, 64);
    let settings = settings.with_layer_rows(vec![RowForm::Full, RowForm::Full, RowForm::Codes]);
    let mut context = store.create_with("same", &model, settings).unwrap();
    for layer in 0..3 {
        let kv = Kv::new(20 + layer as u64, 6200, &model);
        kv.append(&mut context, layer, 0..6000);
        for token in 6000..6200 {
            kv.append(&mut context, layer, token..token + 1);
        }
    }
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let snapshot = store.snapshot("same").unwrap();
    // Some pages are cold, the same ones in each.
    for layer in 0..3 {
        for segment in snapshot.segments(layer).unwrap() {
            memory.set_cold(segment.segment().path(), |page| page % 3 > 0).unwrap();
        }
    }
    (memory, snapshot)
}

/// At this one so many clusters are opened that threads share those of a head, where there are more threads than heads.
const SMALL_TAU: f64 = 3e-5;

/// The bytes of every column of every segment.
fn columns(snapshot: &Snapshot) -> Vec<(u64, ColumnKind, Vec<u8>)> {
    let mut all = Vec::new();
    for layer in 0..snapshot.model().layers {
        for segment in snapshot.segments(layer).unwrap() {
            for column in segment.segment().columns() {
                let bytes = segment.segment().column(column.kind).unwrap().all().unwrap().to_vec();
                all.push((segment.first_position(), column.kind, bytes));
            }
        }
    }
    all
}

fn answers(snapshot: &Snapshot) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for layer in 0..3 {
        for positions in [1, 7, 40] {
            let queries = queries(layer as u64, positions, snapshot.model());
            let from_disk = Budget::FromDisk { tau: SMALL_TAU, bytes: 200 << 12 };
            let taus = [Budget::Tau(0.003), Budget::Tau(SMALL_TAU)];
            for budget in [Budget::Exact, Budget::RETROINFER, from_disk].into_iter().chain(taus) {
                let answer =
                    snapshot.attend(layer, &query_view(&queries, snapshot.model()), &budget).unwrap();
                all.push(bits(&answer));
                all.push(answer.report.disk.iter().map(|disk| (disk.bytes >> 12) as u32).collect());
            }
        }
    }
    all
}

#[test]
fn threads_and_repetition_change_neither_bytes_nor_bits() {
    the_same_with_any_threads(None);
}

#[test]
fn nor_do_they_under_a_soft_cap() {
    the_same_with_any_threads(Some(9.0));
}

fn the_same_with_any_threads(softcap: Option<f32>) {
    let (_, first) = build(1, 1, softcap);
    let (expected, expected_columns) = (answers(&first), columns(&first));
    assert!(expected_columns.len() > 3 * 3 * 3, "rows and index of several segments");
    assert!(answers(&first) == expected, "the same snapshot again");
    let queries = queries(0, 1, first.model());
    let plan = first.explain(0, &query_view(&queries, first.model()), &Budget::Tau(SMALL_TAU)).unwrap();
    let opened: Vec<usize> = plan.heads.iter().map(|head| head.read.len()).collect();
    assert!(opened.iter().all(|&opened| opened >= 256), "{opened:?} clusters");
    for (threads, sealing_threads) in [(1, 2), (2, 1), (2, 2), (4, 0)] {
        let (_, other) = build(threads, sealing_threads, softcap);
        assert!(columns(&other) == expected_columns, "columns with {sealing_threads} sealing threads");
        assert!(answers(&other) == expected, "answers with {threads} threads");
    }
}

#[test]
fn segments_that_wait_together_are_built_as_one_after_the_other() {
    let model = model(UNEQUAL, Dtype::F16, 2);
    let settings = small_options().with_segment_rows(1000, 64);
    // Beside the three rows that are never sealed and the five of the window.
    let ends = [1008, 2008, 3008, 4008, 5008];
    let build = |ends: &[usize]| {
        let store = Store::in_memory(StoreOptions::default()).unwrap();
        let mut context = store.create_with("waiting", &model, settings.clone()).unwrap();
        let mut start = 0;
        for &end in ends {
            for layer in 0..2 {
                Kv::new(31 + layer as u64, 5008, &model).append(&mut context, layer, start..end);
                // It has waited until two are left, and no longer.
                let waited_for = ((end - start) / 1000).saturating_sub(2) * 1000;
                assert_eq!(
                    context.sealed_rows(layer).unwrap(),
                    (start.saturating_sub(8) + waited_for) as u64
                );
            }
            context.seal().unwrap();
            start = end;
        }
        columns(&context.snapshot().unwrap())
    };
    let together = build(&ends[4..]);
    let rows = together.iter().filter(|(_, kind, _)| *kind == ColumnKind::KEYS);
    assert_eq!(rows.map(|(first, ..)| *first).collect::<Vec<_>>()[..5], [3, 1003, 2003, 3003, 4003]);
    assert!(together == build(&ends), "the bases that a layer's first segment sets are those of all");
}

#[test]
fn files_of_the_same_content_differ_in_identifiers_only() {
    let ((first, _), (second, _)) = (build(2, 2, None), build(1, 1, None));
    let (names, others) = (first.files(), second.files());
    assert_eq!(names.len(), others.len());
    // A manifest lists the segments' names, which are made from identifiers.
    for (name, other) in names.iter().zip(&others).filter(|(name, _)| !name.ends_with("manifest")) {
        let (bytes, other_bytes) = (first.contents(name).unwrap(), second.contents(other).unwrap());
        assert_eq!(bytes.len(), other_bytes.len(), "{name} and {other}");
        let differ = bytes.iter().zip(&other_bytes).filter(|(a, b)| a != b).count();
        // One identifier of 16 bytes, and the checksum of the header that it is in; in a log, of each record.
        let most = if name.ends_with(".log") { 100 } else { 24 };
        assert!(differ <= most, "{name}: {differ} of {} bytes differ", bytes.len());
    }
}
