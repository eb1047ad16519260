//! The profile of a model: learnt by the commits of its contexts, used by the first segments of the next, and done
//! without where it cannot be used.

use crate::sample::{
    Kv, Sample, as_backend, faults, memory_store, model, query_view, small_options, store_on,
};
use longwave::index::ladder::MomentSource;
use longwave::storage::{MemoryBackend, Profile, ProfileShape, profile_path, read_profile};
use longwave::{
    Answer, Budget, ClusterOptions, Context, ContextOptions, Dtype, Durability, ModelSpec, Store,
};

pub const TOKENS: usize = 1600;

pub fn spec() -> ModelSpec {
    model([2, 6, 32, 16], Dtype::F16, 1)
}

pub fn options() -> ContextOptions {
    small_options()
        .with_segment_rows(700, 100)
        .with_clusters(ClusterOptions { tokens_per_cluster: 16, ..ClusterOptions::ladder() })
        .with_sample_positions(40)
}

/// Queries that look along a few dimensions, other ones in each KV head, so that it matters which metric keys are
/// clustered and coded in.
pub fn narrow_queries(seed: u64, n: usize, model: &ModelSpec) -> Vec<f32> {
    let (dim, group) = (model.key_dim, model.query_heads / model.kv_heads);
    let mut sample = Sample::new(seed ^ 0xfa11);
    let size = |i: usize| {
        let (element, head) = (i % dim, i / dim % model.query_heads / group);
        if (element + 3 * head) % dim < 6 { 3.2 } else { 0.15 }
    };
    (0..n * model.query_heads * dim).map(|i| size(i) * sample.number()).collect()
}

/// Appends and seals; nothing is observed.
pub fn fill(context: &mut Context, tokens: usize) -> Kv {
    let kv = Kv::new(61, tokens, context.model());
    kv.append(context, 0, 0..tokens);
    context.seal().unwrap();
    kv
}

/// Source and positions of the moment of each segment's ladder.
pub fn moments(context: &mut Context) -> Vec<(MomentSource, u32)> {
    let snapshot = context.snapshot().unwrap();
    let segments = snapshot.segments(0).unwrap();
    let ladders = segments.iter().map(|segment| segment.ladder().unwrap().unwrap());
    ladders.map(|ladder| (ladder.moment_source(), ladder.moment_positions())).collect()
}

/// Relative error of the answers to twelve narrow queries, root mean square over the heads, and the bytes read for them.
pub fn error(context: &mut Context, tau: f64) -> (f64, u64) {
    let (model, snapshot) = (context.model().clone(), context.snapshot().unwrap());
    let (mut off, mut all, mut bytes) = (0.0, 0.0, 0);
    for seed in 700..712 {
        let queries = narrow_queries(seed, 1, &model);
        let ask = |budget| snapshot.attend(0, &query_view(&queries, &model), &budget).unwrap();
        let (answer, exact): (Answer, Answer) = (ask(Budget::Tau(tau)), ask(Budget::Exact));
        bytes += answer.report.traffic.bytes();
        for (a, e) in answer.output.iter().zip(&exact.output) {
            off += f64::from(a - e).powi(2);
            all += f64::from(*e).powi(2);
        }
    }
    ((off / all).sqrt(), bytes)
}

fn observe(context: &mut Context, first_position: u64, n: usize) {
    let model = context.model().clone();
    let queries = narrow_queries(first_position, n, &model);
    context.observe_at(0, first_position, &query_view(&queries, &model)).unwrap();
}

fn stored(store: &Store) -> Option<Profile> {
    let model = spec();
    let shape = ProfileShape {
        identity: model.digest(),
        layers: model.layers as u32,
        kv_heads: model.kv_heads as u32,
        key_dim: model.key_dim as u32,
    };
    read_profile(store.backend().as_ref(), &shape).unwrap()
}

fn positions(store: &Store) -> u32 {
    stored(store).map_or(0, |profile| profile.layers[0].positions)
}

fn commit(context: &mut Context) {
    context.commit(Durability::Strict).unwrap();
}

#[test]
fn a_first_segment_is_built_with_what_other_contexts_observed() {
    let (store, model) = (memory_store(), spec());
    let mut early = store.create_with("early", &model, options()).unwrap();
    fill(&mut early, TOKENS);
    assert_eq!(moments(&mut early)[0], (MomentSource::Identity, 0));
    observe(&mut early, 0, 30);
    commit(&mut early);

    let mut late = store.create_with("late", &model, options()).unwrap();
    fill(&mut late, TOKENS);
    // 30 positions of 3 query heads a KV head; three segments.
    assert_eq!(moments(&mut late), [(MomentSource::Profile, 90); 3]);
    let (without, with) = (error(&mut early, 0.05), error(&mut late, 0.03));
    assert!(with.0 < without.0 && with.1 < without.1, "{with:?} with the profile, {without:?} without");

    // What a context knows itself goes first; another model knows nothing of this one.
    let mut own = store.create_with("own", &model, options()).unwrap();
    observe(&mut own, 0, 5);
    fill(&mut own, TOKENS);
    assert_eq!(moments(&mut own)[0], (MomentSource::Context, 15));
    let mut other = spec();
    other.identity.rope = "theta 500000".into();
    let mut other = store.create_with("other", &other, options()).unwrap();
    fill(&mut other, TOKENS);
    assert_eq!(moments(&mut other)[0], (MomentSource::Identity, 0));
}

#[test]
fn commits_add_what_is_new_and_the_same_calls_the_same_bytes() {
    let run = || {
        let (memory, model) = (MemoryBackend::new(), spec());
        let store = store_on(&as_backend(&memory));
        let mut context = store.create_with("learning", &model, options()).unwrap();
        assert_eq!(stored(&store), None, "nothing was observed");
        let mut found = Vec::new();
        for (first, n) in [(0, 10), (10, 5), (15, 0), (15, 12)] {
            (n > 0).then(|| observe(&mut context, first, n));
            commit(&mut context);
            found.push(positions(&store));
        }
        // Fewer than 16 new positions wait for more.
        assert_eq!(found, [10, 10, 10, 27]);
        drop(context);
        let mut context = store.context("learning", &model).unwrap();
        commit(&mut context);
        assert_eq!(positions(&store), 27, "what a reopened context holds was added before");
        observe(&mut context, 27, 2);
        commit(&mut context);
        let mut second = store.create_with("second", &model, options()).unwrap();
        observe(&mut second, 0, 3);
        commit(&mut second);
        assert_eq!(positions(&store), 27 + 2 + 3);
        memory.contents(&profile_path(&model.digest())).unwrap()
    };
    assert!(run() == run());
}

#[test]
fn a_damaged_profile_is_done_without_reported_and_made_good() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let backend = as_backend(&memory);
    let store = store_on(&backend);
    let mut context = store.create_with("first", &model, options()).unwrap();
    observe(&mut context, 0, 20);
    commit(&mut context);
    let path = profile_path(&model.digest());
    let mut bytes = memory.contents(&path).unwrap();
    bytes[200] ^= 1;
    memory.replace(&path, &bytes).unwrap();
    assert!(matches!(&faults(&backend)[..], [fault] if fault.starts_with(&path)), "{:?}", faults(&backend));

    let mut second = store.create_with("second", &model, options()).unwrap();
    fill(&mut second, TOKENS);
    assert_eq!(moments(&mut second)[0], (MomentSource::Identity, 0));
    commit(&mut second);
    assert!(store.snapshot("first").is_ok() && store.snapshot("second").is_ok());
    assert_eq!(faults(&backend).len(), 1, "nothing was learnt, nothing is written");
    observe(&mut second, 0, 4);
    commit(&mut second);
    assert_eq!((faults(&backend), positions(&store)), (Vec::new(), 4));
}

#[test]
fn a_profile_of_a_newer_build_is_left_alone() {
    let (memory, model) = (MemoryBackend::new(), spec());
    let store = store_on(&as_backend(&memory));
    let mut context = store.create_with("first", &model, options()).unwrap();
    observe(&mut context, 0, 20);
    commit(&mut context);
    let path = profile_path(&model.digest());
    let mut newer = memory.contents(&path).unwrap();
    newer[10] = 2;
    let sum = xxhash_rust::xxh3::xxh3_64(&newer[..12]) as u32;
    newer[12..16].copy_from_slice(&sum.to_le_bytes());
    memory.replace(&path, &newer).unwrap();
    observe(&mut context, 20, 20);
    fill(&mut context, TOKENS);
    commit(&mut context);
    assert!(memory.contents(&path).unwrap() == newer);
    assert_eq!(store.snapshot("first").unwrap().length(0).unwrap(), TOKENS as u64);
}
