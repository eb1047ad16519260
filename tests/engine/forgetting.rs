//! What a context forgets: clusters that no query finds important are demoted, and their rows dropped.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, model, own_key_queries, queries, query_view, small_options,
    store_on,
};
use crate::truth::{Pool, check_head, scores};
use longwave::storage::{Crash, MemoryBackend, read_manifest};
use longwave::{
    Answer, Budget, Context, ContextOptions, Dtype, Durability, Error, Forgetting, LayerKind, LayerSegment,
    ModelSpec, Snapshot, Store,
};
use std::collections::BTreeSet;

const LAYERS: usize = 2;
const ROWS: usize = 260;
/// Sealed rows end here: the window stays.
const SEALED_END: u64 = 255;
/// Rows that are asked for again and again, and one that is asked for rarely, but often enough.
const HOT: [usize; 3] = [20, 21, 140];
const NEEDLE: usize = 77;
const STEPS: u32 = 24;

fn spec() -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

fn rows() -> Vec<Kv> {
    (0..LAYERS).map(|layer| Kv::scattered(900 + layer as u64, ROWS, &spec())).collect()
}

fn options(forgetting: Forgetting) -> ContextOptions {
    small_options().with_forgetting(forgetting)
}

fn filled(store: &Store, name: &str, kv: &[Kv], options: ContextOptions) -> Context {
    let mut context = store.create_with(name, &spec(), options).unwrap();
    kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut context, layer, 0..ROWS));
    context.extend_tokens(&(0..ROWS as u32).collect::<Vec<_>>()).unwrap();
    context.seal().unwrap();
    context
}

/// Queries that give one row nearly all of their softmax.
fn own(kv: &Kv, row: usize) -> Vec<f32> {
    own_key_queries(kv, &spec(), row..row + 1).iter().map(|x| x * 14.0 / 400.0).collect()
}

fn ask(context: &mut Context, kv: &Kv, row: usize, budget: &Budget) -> Answer {
    context.attend(0, &query_view(&own(kv, row), &spec()), budget).unwrap()
}

/// How far each head of an answer to [`own`] is from the value of its row, relative to it.
fn off(kv: &Kv, row: usize, answer: &Answer) -> Vec<f32> {
    let (group, dim) = (spec().query_heads / spec().kv_heads, spec().value_dim);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let heads = answer.output.chunks_exact(dim).enumerate();
    heads
        .map(|(head, output)| {
            let value = &kv.values[(row * spec().kv_heads + head / group) * dim..][..dim];
            norm(&mut output.iter().zip(value).map(|(a, b)| a - b)) / norm(&mut value.iter().copied())
        })
        .collect()
}

fn check_near(kv: &Kv, row: usize, answer: &Answer) {
    let off = off(kv, row, answer);
    assert!(off.iter().all(|off| *off < 0.1), "row {row}: {off:?}");
}

/// As many queries as it takes to demote what none of them finds important.
fn age(context: &mut Context, kv: &Kv) {
    for step in 0..2 * STEPS as usize {
        let row = if step % 11 == 5 { NEEDLE } else { HOT[step % HOT.len()] };
        ask(context, kv, row, &Budget::Tau(0.004));
    }
}

/// Positions of layer 0 that are there, before `end`.
fn present(snapshot: &Snapshot, end: u64) -> Vec<u64> {
    let sealed = |segment: &&LayerSegment| -> Vec<u64> {
        (0..segment.rows() as u32).map(|rank| segment.position(rank)).collect()
    };
    let segments = snapshot.segments(0).unwrap();
    let all = (0..3).chain(segments.iter().flat_map(sealed)).chain(SEALED_END.min(end)..end);
    let all: Vec<u64> = all.collect();
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
    all
}

/// Panics unless answers of layer 0 are exact attention over the rows that are there.
fn check_left(snapshot: &Snapshot, kv: &Kv, present: &[u64]) {
    let asked = queries(31, 2, &spec());
    let answer = snapshot.attend(0, &query_view(&asked, &spec()), &Budget::Exact).unwrap();
    let length = snapshot.length(0).unwrap();
    for at in 0..2 {
        for head in 0..spec().kv_heads {
            let mut pool = Pool::default();
            let seen = present.iter().filter(|&&position| position < length - 1 + at as u64);
            seen.for_each(|&position| pool.push_rows(kv, head, position..position + 1));
            check_head(&spec(), 0, (at, head), &asked, pool, &answer);
        }
    }
}

/// The clusters that hold a row of more than an equal share, by float64: numbered through the heads.
fn important(snapshot: &Snapshot, kv: &Kv, asked: &[f32], margin: f64) -> Vec<BTreeSet<u32>> {
    let (model, position) = (spec(), ROWS as u64 - 1);
    let group = model.query_heads / model.kv_heads;
    let mut shares = Vec::new();
    for head in 0..model.kv_heads {
        let mut pool = Pool::default();
        pool.push_rows(kv, head, 0..position + 1);
        let mine = &asked[head * group * model.key_dim..(head + 1) * group * model.key_dim];
        let scores = scores(&model, mine, &pool.keys).values;
        let total: Vec<f64> =
            (0..group).map(|g| scores.iter().skip(g).step_by(group).map(|score| score.exp()).sum()).collect();
        shares.push(
            scores
                .chunks_exact(group)
                .map(|row| {
                    row.iter().zip(&total).map(|(score, total)| score.exp() / total).fold(0.0, f64::max)
                })
                .collect::<Vec<f64>>(),
        );
    }
    let mut all = Vec::new();
    for segment in snapshot.segments(0).unwrap() {
        let ladder = segment.ladder().unwrap().unwrap();
        let column = segment.segment().column(longwave::storage::ColumnKind::POSITIONS).unwrap();
        let ranks = column.all().unwrap().as_chunks::<4>().0;
        let mut found = BTreeSet::new();
        for (head, shares) in shares.iter().enumerate() {
            let first = ladder.postings().first_cluster(head) as u32;
            for (cluster, bounds) in (first..).zip(ladder.postings().offsets(head).unwrap().windows(2)) {
                let rows =
                    head * segment.rows() + bounds[0] as usize..head * segment.rows() + bounds[1] as usize;
                let mut positions =
                    ranks[rows].iter().map(|rank| segment.position(u32::from_le_bytes(*rank)));
                if positions.any(|position| shares[position as usize] > margin / (position_count() as f64)) {
                    found.insert(cluster);
                }
            }
        }
        all.push(found);
    }
    all
}

fn position_count() -> u64 {
    ROWS as u64
}

#[test]
fn a_call_finds_the_clusters_important_that_float64_does() {
    let store = store_on(&as_backend(&MemoryBackend::new()));
    let kv: Vec<Kv> = (0..LAYERS).map(|layer| Kv::new(70 + layer as u64, ROWS, &spec())).collect();
    let mut context = filled(&store, "c", &kv, options(Forgetting::Demote { steps: 1000 }));
    let snapshot = context.snapshot().unwrap();
    for seed in 0..6 {
        let asked = queries(seed, 1, &spec());
        let least = important(&snapshot, &kv[0], &asked, 1.001);
        // Scores that are known by a sketch are off by a little.
        let surely = important(&snapshot, &kv[0], &asked, 1.5);
        let most = important(&snapshot, &kv[0], &asked, 0.999);
        assert!(least.iter().all(|found| !found.is_empty()) && least != vec![BTreeSet::new(); least.len()]);
        for budget in [Budget::Exact, Budget::RETROINFER, Budget::Tau(0.0005)] {
            let answer = context.attend(0, &query_view(&asked, &spec()), &budget).unwrap();
            let found = answer.important.unwrap();
            for (segment, found) in found.into_iter().enumerate() {
                let found: BTreeSet<u32> = found.into_iter().collect();
                if budget == Budget::Exact {
                    assert!(found.is_superset(&least[segment]), "{segment}: {found:?}, {:?}", least[segment]);
                    assert!(found.is_subset(&most[segment]), "{segment}: {found:?}, {:?}", most[segment]);
                } else if budget != Budget::RETROINFER {
                    // What is not looked at closely counts as important rather than not.
                    assert!(
                        found.is_superset(&surely[segment]),
                        "{segment}: {found:?}, {:?}",
                        surely[segment]
                    );
                    let clusters = snapshot.segments(0).unwrap()[segment].ladder().unwrap().unwrap();
                    assert!(found.len() < clusters.postings().clusters(), "all of {segment}");
                }
            }
        }
    }
    let unwatched =
        snapshot.attend(0, &query_view(&queries(1, 1, &spec()), &spec()), &Budget::Exact).unwrap();
    assert_eq!(unwatched.important, None, "readers teach nothing");
}

#[test]
fn what_no_query_finds_important_is_demoted_and_comes_back_when_one_does() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let kv = rows();
    let mut context = filled(&store, "c", &kv, options(Forgetting::Demote { steps: STEPS }));
    let fresh = context.forgotten(0).unwrap();
    assert_eq!((fresh.steps, fresh.clusters_demoted), (0, 0));
    age(&mut context, &kv[0]);
    let aged = context.forgotten(0).unwrap();
    assert_eq!(aged.steps, 2 * u64::from(STEPS));
    assert!(aged.clusters_demoted * 2 > aged.clusters && aged.clusters_demoted < aged.clusters, "{aged:?}");
    for row in HOT.into_iter().chain([NEEDLE]) {
        let answer = ask(&mut context, &kv[0], row, &Budget::Tau(0.004));
        check_near(&kv[0], row, &answer);
    }
    // A row that is demoted: `exact` has it, the ladder finds it by its summary, and the next call reads it.
    let lost = 200;
    let mut unasked = context.snapshot().unwrap();
    let exact = unasked.attend(0, &query_view(&own(&kv[0], lost), &spec()), &Budget::Exact).unwrap();
    check_near(&kv[0], lost, &exact);
    let first = ask(&mut context, &kv[0], lost, &Budget::Tau(0.004));
    assert!(first.report.demoted_clusters > 0, "{:?}", first.report);
    // The answer says that it is not to be trusted.
    let wrong = off(&kv[0], lost, &first);
    for (off, predicted) in wrong.iter().zip(&first.report.predicted_error) {
        assert!(*off < 0.1 || *predicted > 0.1, "off by {off}, predicted {predicted}");
    }
    assert!(wrong.iter().any(|off| *off > 0.2), "a demoted cluster was opened: {wrong:?}");
    let second = ask(&mut context, &kv[0], lost, &Budget::Tau(0.004));
    assert!(second.report.demoted_clusters < first.report.demoted_clusters);
    check_near(&kv[0], lost, &second);

    // It is state of the context: committed, forked, reopened and switched off.
    context.commit(Durability::Strict).unwrap();
    let aged = context.forgotten(0).unwrap();
    unasked = context.snapshot().unwrap();
    let cold = own(&kv[0], 100);
    let answer = |snapshot: &Snapshot| {
        let answer = snapshot.attend(0, &query_view(&cold, &spec()), &Budget::Tau(0.004)).unwrap();
        (bits(&answer), answer.report.demoted_clusters)
    };
    let expected = answer(&unasked);
    assert!(expected.1 > 0);
    let fork = context.fork("fork").unwrap();
    assert_eq!(fork.forgotten(0).unwrap(), aged);
    drop((context, fork));
    for name in ["c", "fork"] {
        assert_eq!(answer(&store.snapshot(name).unwrap()), expected, "{name}");
        let mut reopened = store.context(name, &spec()).unwrap();
        assert_eq!(reopened.forgotten(0).unwrap(), aged);
        assert_eq!(reopened.options().forgetting, Forgetting::Demote { steps: STEPS });
        reopened.set_forgetting(Forgetting::Never).unwrap();
        assert_eq!(answer(&reopened.snapshot().unwrap()).1, 0);
        reopened.commit(Durability::Strict).unwrap();
    }
    assert_eq!(answer(&store.snapshot("c").unwrap()).1, 0);
}

/// A context of which most rows were dropped, committed; and its positions.
fn dropped(store: &Store, kv: &[Kv]) -> (Context, Vec<u64>) {
    let mut context = filled(store, "c", kv, options(Forgetting::Drop { steps: STEPS }));
    context.commit(Durability::Strict).unwrap();
    age(&mut context, &kv[0]);
    context.forget(None).unwrap();
    context.commit(Durability::Strict).unwrap();
    let left = present(&context.snapshot().unwrap(), ROWS as u64);
    (context, left)
}

#[test]
fn rows_that_are_demoted_in_every_head_are_dropped_and_their_disk_is_freed() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let kv = rows();
    let whole = filled(&store, "whole", &kv, small_options()).snapshot().unwrap();
    let (mut context, left) = dropped(&store, &kv);
    let gone = context.forgotten(0).unwrap().rows_dropped;
    assert_eq!(left.len() as u64 + gone, ROWS as u64);
    assert!(gone > ROWS as u64 / 4, "{gone} rows");
    assert_eq!(context.forgotten(1).unwrap().rows_dropped, 0, "a layer that is never clustered keeps all");
    assert_eq!(context.length(0).unwrap(), ROWS as u64, "positions stay");

    let snapshot = context.snapshot().unwrap();
    check_left(&snapshot, &kv[0], &left);
    for row in HOT.into_iter().chain([NEEDLE]) {
        assert!(left.contains(&(row as u64)));
        let answer = ask(&mut context, &kv[0], row, &Budget::Tau(0.004));
        check_near(&kv[0], row, &answer);
        assert_eq!(answer.report.dropped_rows, gone);
        assert!(answer.report.bound.iter().all(Option::is_none), "{:?}", answer.report.bound);
    }
    let within = Budget::Error { target: 0.05, confidence: 0.9 };
    let answer = ask(&mut context, &kv[0], NEEDLE, &within);
    assert!(answer.report.bound.iter().all(Option::is_none), "nobody knows what is gone");

    let bytes = |name: &str| -> u64 {
        let manifest = store.manifest(name).unwrap();
        manifest.layers[0].segments.iter().map(|segment| segment.file_len).sum()
    };
    drop(whole);
    let mut other = filled(&store, "other", &kv, small_options());
    other.commit(Durability::Strict).unwrap();
    assert!(bytes("c") < bytes("other"), "{} of {} bytes", bytes("c"), bytes("other"));
    let named = store.manifest("c").unwrap().files("c");
    let maker = &named.iter().find(|file| file.ends_with(".segment")).unwrap()["segments/".len()..][..32];
    let files = memory.files();
    let own = files.iter().filter(|file| file.starts_with(&format!("segments/{maker}")));
    assert!(own.clone().count() > 0 && own.clone().all(|file| named.contains(file)), "{files:?}");
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
    assert!(store.check(None).faults.is_empty());

    // What is gone is no prefix of the text any more.
    let ids: Vec<u32> = (0..ROWS as u32).collect();
    let found = store.match_prefix(&spec(), &ids).unwrap();
    assert_eq!(found.map(|found| found.context), Some("other".into()));
    let asked = queries(8, 1, &spec());
    let answer = |snapshot: &Snapshot, budget: &Budget| {
        bits(&snapshot.attend(0, &query_view(&asked, &spec()), budget).unwrap())
    };
    context.commit(Durability::Strict).unwrap();
    let expected = [Budget::Exact, Budget::Tau(0.01), Budget::RETROINFER]
        .map(|budget| answer(&context.snapshot().unwrap(), &budget));
    let fork = context.fork("fork").unwrap();
    drop((context, fork));
    for name in ["c", "fork"] {
        let reopened = store.snapshot(name).unwrap();
        assert_eq!(present(&reopened, ROWS as u64), left);
        let found =
            [Budget::Exact, Budget::Tau(0.01), Budget::RETROINFER].map(|budget| answer(&reopened, &budget));
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_context_that_has_dropped_rows_is_cut_anywhere_and_goes_on() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let kv = rows();
    let (context, left) = dropped(&store, &kv);
    drop(context);
    let start = memory.after(Crash::Kill);
    let gap = (4..ROWS as u64).find(|position| !left.contains(position)).unwrap();
    for length in [0, 2, 3, 5, gap, gap + 1, 51, 78, 100, 141, 147, 200, 254, 255, 258] {
        let memory = start.after(Crash::Kill);
        let store = store_on(&as_backend(&memory));
        let mut context = store.context("c", &spec()).unwrap();
        context.truncate(length).unwrap();
        let expected: Vec<u64> = left.iter().copied().filter(|&position| position < length).collect();
        let check = |context: &mut Context, expected: &[u64], length: u64| {
            let snapshot = context.snapshot().unwrap();
            assert_eq!(snapshot.length(0).unwrap(), length);
            if length > 2 {
                check_left(&snapshot, &kv[0], expected);
            }
        };
        check(&mut context, &expected, length);
        context.commit(Durability::Strict).unwrap();
        drop(context);
        let mut context = store.context("c", &spec()).unwrap();
        check(&mut context, &expected, length);
        // It goes on as the same text.
        let (from, to) = (length as usize, ROWS);
        kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut context, layer, from..to));
        context.extend_tokens(&(from as u32..to as u32).collect::<Vec<_>>()).unwrap();
        let grown: Vec<u64> = expected.iter().copied().chain(length..ROWS as u64).collect();
        context.seal().unwrap();
        check(&mut context, &grown, ROWS as u64);
        context.compact(None).unwrap();
        check(&mut context, &grown, ROWS as u64);
        context.rebuild(None).unwrap();
        context.commit(Durability::Strict).unwrap();
        drop(context);
        check(&mut store.context("c", &spec()).unwrap(), &grown, ROWS as u64);
        assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new(), "cut at {length}");
        let collected = store.collect(true).unwrap();
        assert_eq!(collected.files, Vec::<String>::new(), "cut at {length}");
    }
}

#[test]
fn half_of_a_segment_is_dropped_in_the_background() {
    let store = store_on(&as_backend(&MemoryBackend::new()));
    let kv = rows();
    let mut context = filled(&store, "c", &kv, options(Forgetting::Drop { steps: STEPS }));
    let patience = std::time::Instant::now();
    while context.forgotten(0).unwrap().rows_dropped == 0 {
        assert!(patience.elapsed().as_secs() < 60);
        ask(&mut context, &kv[0], HOT[0], &Budget::Tau(0.004));
    }
    let snapshot = context.snapshot().unwrap();
    check_left(&snapshot, &kv[0], &present(&snapshot, ROWS as u64));
    let answer = ask(&mut context, &kv[0], HOT[0], &Budget::Tau(0.004));
    check_near(&kv[0], HOT[0], &answer);
}

#[test]
fn a_policy_is_refused_where_it_means_nothing_and_its_manifest_has_a_version_of_its_own() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let refused = store.create_with("a", &spec(), options(Forgetting::Drop { steps: 0 })).unwrap_err();
    assert!(matches!(refused, Error::Invalid { what: "forgetting.steps", .. }), "{refused}");
    let mut plain = small_options();
    plain.ladder = false;
    let refused =
        store.create_with("a", &spec(), plain.with_forgetting(Forgetting::Demote { steps: 9 })).unwrap_err();
    assert!(matches!(refused, Error::Invalid { what: "forgetting", .. }), "{refused}");
    for (name, forgetting, version) in [("b", Forgetting::Never, 2), ("c", Forgetting::Drop { steps: 9 }, 3)]
    {
        drop(store.create_with(name, &spec(), options(forgetting)).unwrap());
        let bytes = memory.contents(&format!("contexts/{name}/manifest")).unwrap();
        assert_eq!(u16::from_le_bytes([bytes[10], bytes[11]]), version);
        read_manifest(&memory, &format!("contexts/{name}")).unwrap();
    }
}
