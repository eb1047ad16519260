//! Saving what is intact: the rows before the damage, with their own content, and everything where there is none.

use crate::fixtures::{NEWEST, fixture};
use crate::sample::{
    Kv, as_backend, bits, faults, memory_store, model, own_key_queries, queries, query_view, small_options,
    store_on,
};
use crate::truth::{check_exact, check_own_values};
use longwave::storage::{ColumnKind, Crash, Expected, MemoryBackend, Segment, segment_path};
use longwave::{Budget, Dtype, Durability, LayerKind, ModelSpec, Salvaged, Store, salvage};

const ROWS: usize = 150;

fn spec() -> ModelSpec {
    let mut model = model([2, 4, 16, 8], Dtype::F32, 3);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::Absent, LayerKind::ExactOnly];
    model
}

fn rows() -> Vec<Kv> {
    (0..3).map(|layer| Kv::scattered(500 + layer, ROWS, &spec())).collect()
}

/// Sinks 0..3, segments 3..51, 51..99 and 99..145 in bulk, a window.
fn damaged_store() -> MemoryBackend {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let (spec, kv) = (spec(), rows());
    let mut context = store.create_with("long", &spec, small_options()).unwrap();
    for layer in [0, 2] {
        kv[layer].append(&mut context, layer, 0..ROWS);
    }
    context.observe(0, &query_view(&queries(4, 40, &spec), &spec)).unwrap();
    context.extend_tokens(&(0..ROWS as u32).map(|token| 5 * token).collect::<Vec<_>>()).unwrap();
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    memory
}

fn flip(memory: &MemoryBackend, file: &str, at: usize) {
    let mut bytes = memory.contents(file).unwrap();
    bytes[at] ^= 0x10;
    memory.replace(file, &bytes).unwrap();
}

fn segment_file(memory: &MemoryBackend, layer: usize, number: usize) -> String {
    let manifest = store_on(&as_backend(memory)).manifest("long").unwrap();
    segment_path(&manifest.layers[layer].segments[number].file)
}

/// Salvages, and checks that the rows that were kept are those rows.
fn saved(memory: &MemoryBackend) -> (Salvaged, Store) {
    let store = memory_store();
    let mut found = salvage(&as_backend(memory), &store).unwrap();
    assert_eq!(found.len(), 1);
    let found = found.remove(0);
    assert_eq!((found.name.as_str(), found.rows_committed), ("long", Some(ROWS as u64)));
    assert_eq!(faults(store.backend()), Vec::<String>::new());
    assert_eq!(store.contains("long").unwrap(), found.rows_kept > 0);
    if found.rows_kept > 0 {
        let (snapshot, kept) = (store.snapshot("long").unwrap(), found.rows_kept as usize);
        for layer in [0, 2] {
            assert_eq!(snapshot.length(layer).unwrap() as usize, kept);
            let asked = own_key_queries(&rows()[layer], &spec(), 0..kept);
            let answer = snapshot.attend(layer, &query_view(&asked, &spec()), &Budget::Exact).unwrap();
            check_own_values(&spec(), &rows()[layer], 0..kept, &answer);
        }
        let ids: Vec<u32> = (0..kept as u32).map(|token| 5 * token).collect();
        assert_eq!(snapshot.tokens(), if found.token_ids { &ids[..] } else { &[] });
    }
    (found, store)
}

#[test]
fn an_intact_store_is_copied_as_it_is() {
    let memory = fixture(NEWEST);
    let store = memory_store();
    let found = salvage(&as_backend(&memory), &store).unwrap();
    let told: Vec<(&str, u64, bool, bool)> = found
        .iter()
        .map(|context| (context.name.as_str(), context.rows_kept, context.whole, context.token_ids))
        .collect();
    let expected = [
        ("branch", 52, true, true),
        ("forgetful", 130, true, true),
        ("plain", 41, true, false),
        ("reduced", 80, true, false),
        ("small", 80, true, true),
    ];
    assert_eq!(told, expected);
    let original = store_on(&as_backend(&memory));
    let answer = |store: &Store, name: &str| {
        let snapshot = store.snapshot(name).unwrap();
        let asked = queries(1, 2, snapshot.model());
        bits(&snapshot.attend(0, &query_view(&asked, snapshot.model()), &Budget::Exact).unwrap())
    };
    for name in ["branch", "forgetful", "plain", "reduced", "small"] {
        assert_eq!(store.manifest(name).unwrap(), original.manifest(name).unwrap());
        assert_eq!(answer(&store, name), answer(&original, name));
        assert_eq!(store.is_pinned(name).unwrap(), name == "branch");
    }
    assert_eq!(faults(store.backend()), Vec::<String>::new());
    let found = store.match_prefix(store.snapshot("small").unwrap().model(), &[7, 10, 13, 1]).unwrap();
    assert_eq!(found.map(|found| found.length), Some(3));
    assert!(salvage(&as_backend(&memory), &store).unwrap_err().to_string().contains("an empty store"));
    // What contexts share stays shared, and is whose it was.
    store.remove("small").unwrap();
    store.collect(false).unwrap();
    assert_eq!(answer(&store, "branch"), answer(&original, "branch"));
}

#[test]
fn rows_of_a_cut_segment_are_kept_and_the_parent_stays_whole() {
    let memory = fixture(NEWEST).after(Crash::Kill);
    let original = store_on(&as_backend(&memory));
    let own = original.manifest("branch").unwrap().row_logs.last().unwrap().path("branch");
    // The rows that the branch appended to its first layer.
    flip(&memory, &own, 96 + 48 + 1);
    let store = memory_store();
    let found = salvage(&as_backend(&memory), &store).unwrap();
    let told: Vec<_> = found.iter().map(|found| (found.rows_kept, found.whole, found.faults.len())).collect();
    assert_eq!(told, [(47, false, 1), (130, true, 0), (41, true, 0), (80, true, 0), (80, true, 0)]);
    let branch = store.snapshot("branch").unwrap();
    let (spec, kv) = (branch.model().clone(), Kv::new(70, 80, branch.model()));
    let asked = queries(3, 2, &spec);
    let answer = branch.attend(0, &query_view(&asked, &spec), &Budget::Exact).unwrap();
    check_exact(&spec, 0, &kv, 47, &asked, &answer);
    assert_eq!(branch.tokens(), &original.snapshot("small").unwrap().tokens()[..47]);
    assert_eq!(faults(store.backend()), Vec::<String>::new());
}

#[test]
fn rows_before_a_damaged_row_are_kept() {
    let memory = damaged_store();
    let file = segment_file(&memory, 2, 1);
    let identity = store_on(&as_backend(&memory)).manifest("long").unwrap().model.identity;
    let segment = Segment::open(as_backend(&memory), &file, &Expected::of_model(identity)).unwrap();
    let keys = segment.column(ColumnKind::KEYS).unwrap().info().offset as usize;
    // The second block of the keys: it begins with row 16 of the second head, 48 rows of 64 bytes behind the first.
    flip(&memory, &file, keys + 4096 + 5);
    let (found, store) = saved(&memory);
    assert_eq!((found.rows_kept, found.whole, found.token_ids), (67, false, true));
    assert_eq!(found.faults.len(), 1);
    assert_eq!((found.faults[0].file.as_str(), found.faults[0].column.as_deref()), (&*file, Some("keys")));
    // The other store is written on.
    let mut context = store.context("long", &spec()).unwrap();
    for layer in [0, 2] {
        rows()[layer].append(&mut context, layer, 67..ROWS);
    }
    context.extend_tokens(&(67..ROWS as u32).collect::<Vec<_>>()).unwrap();
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
}

#[test]
fn a_damaged_index_costs_no_row() {
    let memory = damaged_store();
    let file = segment_file(&memory, 0, 0);
    let identity = store_on(&as_backend(&memory)).manifest("long").unwrap().model.identity;
    let segment = Segment::open(as_backend(&memory), &file, &Expected::of_model(identity)).unwrap();
    let centroids = segment.columns().find(|column| column.name == "index.centroid").unwrap().offset;
    flip(&memory, &file, centroids as usize + 1);
    let (found, store) = saved(&memory);
    assert_eq!((found.rows_kept, found.whole, found.token_ids), (ROWS as u64, false, true));
    assert!(store.snapshot("long").unwrap().segments(0).unwrap().len() > 1);
    assert!(!store.snapshot("long").unwrap().sampled_queries(0).unwrap().is_empty());
}

#[test]
fn damaged_logs_cost_what_was_in_the_record() {
    let logs = |memory: &MemoryBackend, end: &str| {
        memory.files().into_iter().find(|file| file.ends_with(end)).unwrap()
    };
    // The last record holds the window of the last layer; the first its sinks, without which nothing can be asked.
    for (from_the_end, kept) in [(1, 145), (usize::MAX, 0)] {
        let memory = damaged_store();
        let file = logs(&memory, ".rows.log");
        let len = memory.contents(&file).unwrap().len();
        flip(&memory, &file, if from_the_end == 1 { len - 1 } else { 96 + 48 + 1 });
        assert_eq!(saved(&memory).0.rows_kept, kept);
    }
    let memory = damaged_store();
    flip(&memory, &logs(&memory, ".meta.log"), 96 + 48 + 1);
    let (found, _) = saved(&memory);
    assert_eq!((found.rows_kept, found.token_ids), (ROWS as u64, false));
}

#[test]
fn a_context_without_a_manifest_is_lost_and_the_others_are_not() {
    let memory = fixture(NEWEST).after(Crash::Kill);
    flip(&memory, "contexts/small/manifest", 200);
    let store = memory_store();
    let found = salvage(&as_backend(&memory), &store).unwrap();
    assert_eq!(store.contexts().unwrap(), ["branch", "forgetful", "plain", "reduced"]);
    assert_eq!((found[4].rows_committed, found[4].rows_kept, found[4].faults.len()), (None, 0, 1));
    assert!(found[..4].iter().all(|context| context.whole));
}

/// What lies behind dropped rows is no prefix of the text.
#[test]
fn of_a_damaged_context_that_has_dropped_rows_those_before_them_are_kept() {
    let memory = fixture(NEWEST).after(Crash::Kill);
    let original = store_on(&as_backend(&memory));
    let own = original.manifest("forgetful").unwrap().row_logs.last().unwrap().path("forgetful");
    let segments = original.snapshot("forgetful").unwrap();
    let there: Vec<u64> = segments
        .segments(0)
        .unwrap()
        .iter()
        .flat_map(|segment| (0..segment.rows() as u32).map(|rank| segment.position(rank)).collect::<Vec<_>>())
        .collect();
    let first_gap = (3..).find(|position| !there.contains(position)).unwrap();
    // A row of the window, in the last record of the log.
    let len = memory.contents(&own).unwrap().len();
    flip(&memory, &own, len - 5);
    let store = memory_store();
    let found = salvage(&as_backend(&memory), &store).unwrap();
    assert_eq!((found[1].name.as_str(), found[1].rows_kept, found[1].whole), ("forgetful", first_gap, false));
    let kept = store.snapshot("forgetful").unwrap();
    let (spec, kv) = (kept.model().clone(), Kv::scattered(271, 130, kept.model()));
    let asked = queries(3, 2, &spec);
    let answer = kept.attend(0, &query_view(&asked, &spec), &Budget::Exact).unwrap();
    check_exact(&spec, 0, &kv, first_gap, &asked, &answer);
}
