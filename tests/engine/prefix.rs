//! Which context begins as a text does.

use crate::sample::{Kv, as_backend, faults, model, queries, query_view, small_options, store_on};
use crate::truth::check_exact;
use longwave::storage::{Backend, Crash, MemoryBackend};
use longwave::{Budget, Context, Dtype, Durability, ModelSpec, Store};

const ROWS: usize = 500;

fn spec() -> ModelSpec {
    model([2, 2, 16, 8], Dtype::F16, 1)
}

fn ids(seed: u32, range: std::ops::Range<u32>) -> Vec<u32> {
    range.map(|token| token.wrapping_mul(2_654_435_761) ^ seed << 7).collect()
}

fn fill(context: &mut Context, kv: &Kv, ids: &[u32]) {
    let start = context.length(0).unwrap() as usize;
    kv.append(context, 0, start..start + ids.len());
    context.extend_tokens(ids).unwrap();
    context.commit(Durability::Strict).unwrap();
}

fn make(store: &Store, name: &str, ids: &[u32]) {
    let kv = Kv::new(1, ROWS, &spec());
    fill(&mut store.create_with(name, &spec(), small_options()).unwrap(), &kv, ids);
}

fn found(store: &Store, wanted: &[u32]) -> Option<(String, u64)> {
    let found = store.match_prefix(&spec(), wanted).unwrap()?;
    Some((found.context, found.length))
}

#[test]
fn the_longest_prefix_is_found_to_the_token() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    assert_eq!(found(&store, &ids(1, 0..100)), None);
    make(&store, "a", &ids(1, 0..300));
    make(&store, "b", &[ids(1, 0..170), ids(2, 0..200)].concat());
    make(&store, "short", &ids(3, 0..40));
    let mut silent = store.create_with("silent", &spec(), small_options()).unwrap();
    Kv::new(1, ROWS, &spec()).append(&mut silent, 0, 0..300);
    silent.commit(Durability::Strict).unwrap();
    // Another process that has never seen the index.
    for store in [store.clone(), store_on(&as_backend(&memory))] {
        assert_eq!(found(&store, &ids(1, 0..500)), Some(("a".into(), 300)));
        assert_eq!(found(&store, &ids(1, 0..233)), Some(("a".into(), 233)));
        let to_b = |end: usize| [ids(1, 0..170), ids(2, 0..200)].concat()[..end].to_vec();
        assert_eq!(found(&store, &to_b(370)), Some(("b".into(), 370)));
        // Inside the block in which both differ.
        assert_eq!(found(&store, &to_b(175)), Some(("b".into(), 175)));
        assert_eq!(found(&store, &[to_b(171), ids(9, 0..50)].concat()), Some(("b".into(), 171)));
        assert_eq!(found(&store, &ids(1, 0..171)), Some(("a".into(), 171)));
        assert_eq!(found(&store, &ids(3, 0..41)), Some(("short".into(), 40)));
        assert_eq!(found(&store, &ids(4, 0..200)), None);
        assert_eq!(found(&store, &[]), None);
        let mut other = spec();
        other.identity.weights[3] ^= 1;
        assert_eq!(store.match_prefix(&other, &ids(1, 0..300)).unwrap(), None);
        let matched = store.match_prefix(&spec(), &ids(1, 0..300)).unwrap().unwrap();
        assert!(matched.bytes > 300 * 2 * (16 + 8) * 2 && matched.load.is_some(), "{matched:?}");
        let part = store.match_prefix(&spec(), &ids(1, 0..60)).unwrap().unwrap();
        assert!(part.bytes < matched.bytes && part.context_length >= 300);
    }
    let bound = small_options().with_extra("tenant 7");
    fill(
        &mut store.create_with("tenant", &spec(), bound).unwrap(),
        &Kv::new(1, ROWS, &spec()),
        &ids(1, 0..400),
    );
    assert_eq!(found(&store, &ids(1, 0..400)), Some(("a".into(), 300)));
    let theirs = |extra: &str| store.match_prefix_with(&spec(), extra.as_bytes(), &ids(1, 0..400)).unwrap();
    assert_eq!(theirs("tenant 7").map(|found| (found.context, found.length)), Some(("tenant".into(), 400)));
    assert_eq!(theirs("tenant 8"), None);
}

#[test]
fn a_match_is_opened_as_a_fork_that_goes_on() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    make(&store, "manual", &ids(1, 0..300));
    let wanted = [ids(1, 0..211), ids(5, 0..60)].concat();
    let matched = store.match_prefix(&model, &wanted).unwrap().unwrap();
    let mut chat = store.open_prefix(&matched, "chat", &model, &wanted).unwrap();
    assert_eq!(chat.tokens(), &wanted[..211]);
    let kv = Kv::new(1, ROWS, &model).joined(211, &Kv::new(6, ROWS, &model));
    fill(&mut chat, &kv, &wanted[211..]);
    let asked = queries(3, 2, &model);
    let answer = chat.attend(0, &query_view(&asked, &model), &Budget::Exact).unwrap();
    check_exact(&model, 0, &kv, 271, &asked, &answer);
    // The fork is found as well, by what both have and by what it alone has, and when the other is gone.
    assert_eq!(found(&store, &[&wanted[..], &[1, 2]].concat()), Some(("chat".into(), 271)));
    assert_eq!(found(&store, &ids(1, 0..300)), Some(("manual".into(), 300)));
    drop(chat);
    store.remove("manual").unwrap();
    for store in [store.clone(), store_on(&as_backend(&memory))] {
        assert_eq!(found(&store, &ids(1, 0..300)), Some(("chat".into(), 211)));
        assert_eq!(found(&store, &ids(1, 0..100)), Some(("chat".into(), 100)));
    }
    store.rename("chat", "talk").unwrap();
    assert_eq!(found(&store, &wanted), Some(("talk".into(), 271)));
    // What a match says is compared with the context once more.
    let stale = longwave::PrefixMatch { context: "talk".into(), length: 300, ..matched };
    let again = store.open_prefix(&stale, "again", &model, &ids(1, 0..300)).unwrap();
    assert_eq!(again.tokens(), ids(1, 0..211));
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn decoding_cutting_and_reopening_keep_the_index_right() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let kv = Kv::new(1, ROWS, &model);
    let mut context = store.create_with("life", &model, small_options()).unwrap();
    fill(&mut context, &kv, &ids(1, 0..120));
    for token in 120..200 {
        fill(&mut context, &kv, &ids(1, token..token + 1));
    }
    drop(context);
    assert_eq!(found(&store, &ids(1, 0..400)), Some(("life".into(), 200)));
    let mut context = store.context("life", &model).unwrap();
    context.truncate(150).unwrap();
    assert_eq!(found(&store, &ids(1, 0..400)), Some(("life".into(), 200)), "not committed");
    fill(&mut context, &kv, &ids(8, 0..100));
    assert_eq!(found(&store, &ids(1, 0..400)), Some(("life".into(), 150)));
    assert_eq!(found(&store, &[ids(1, 0..150), ids(8, 0..140)].concat()), Some(("life".into(), 250)));
    drop(context);
    assert_eq!(found(&store_on(&as_backend(&memory)), &ids(1, 0..400)), Some(("life".into(), 150)));
}

#[test]
fn an_index_that_is_lost_torn_or_wrong_is_made_anew() {
    let memory = MemoryBackend::new();
    make(&store_on(&as_backend(&memory)), "a", &ids(1, 0..300));
    make(&store_on(&as_backend(&memory)), "b", &ids(2, 0..200));
    let whole = memory.contents("prefixes.log").unwrap();
    let mut cases: Vec<Option<Vec<u8>>> = vec![None, Some(Vec::new()), Some(b"not a log".to_vec())];
    cases.extend((1..40).map(|cut| Some(whole[..whole.len() * cut / 40].to_vec())));
    cases.extend((0..whole.len()).step_by(37).map(|at| {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        Some(flipped)
    }));
    for (case, bytes) in cases.into_iter().enumerate() {
        let hurt = memory.after(Crash::Kill);
        match bytes {
            Some(bytes) => hurt.replace("prefixes.log", &bytes).unwrap(),
            None => hurt.remove("prefixes.log").unwrap(),
        }
        let store = store_on(&as_backend(&hurt));
        assert_eq!(found(&store, &ids(1, 0..301)), Some(("a".into(), 300)), "case {case}");
        assert_eq!(found(&store, &ids(2, 0..150)), Some(("b".into(), 150)), "case {case}");
        make(&store, "c", &ids(3, 0..90));
        assert_eq!(found(&store, &ids(3, 0..300)), Some(("c".into(), 90)), "case {case}");
        assert_eq!(faults(&as_backend(&hurt)), Vec::<String>::new());
    }
}
