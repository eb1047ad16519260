//! Whole calls on the rows of a real model: SmolLM2-135M-Instruct reads this repository's documents, and its own queries are asked of
//! both methods by the CPU, by the (emulated) device, and divided between them at every proportion.
//!
//! `LONGWAVE_MODEL` names the GGUF file.

use longwave::{
    Budget, ClusterOptions, ContextOptions, Dtype, Durability, LayerView, QueryBatch, Snapshot, Store,
    StoreOptions, TensorView,
};
use longwave_candle::stored::model_spec;
use longwave_candle::trace::{LayerTrace, Trace, TraceOptions};
use longwave_candle::{Model, ModelFile, ModelOptions, Tokenizer};
use longwave_gpu::cache::{BlockCache, LeastRecentlyUsed, RowKind, StoredRows};
use longwave_gpu::placement::Machine;
use longwave_gpu::{Caches, Device, Division, Sources, Tier, TierAnswer};
use longwave_gpu_emulation::install;
use std::sync::Arc;

/// Text of a kind that the constants were not set on.
const TEXT: [&str; 2] = [include_str!("../../docs/durability.md"), include_str!("../../docs/accuracy.md")];
const TOKENS: usize = 1536;
const LAYERS: [usize; 2] = [2, 9];
/// Positions whose queries are asked, the last ones.
const POSITIONS: usize = 3;
const RETROINFER: Budget = Budget::RETROINFER;
const LADDER: Budget = Budget::LONGWAVE;
const MACHINE: Machine = Machine {
    transfer_bytes_per_s: 20e9,
    device_bytes_per_s: 2000e9,
    host_bytes_per_s: 10e9,
    launch_s: 10e-6,
    transfer_s: 10e-6,
};

fn recorded() -> (longwave::ModelSpec, Trace) {
    let path = std::env::var_os("LONGWAVE_MODEL").expect("LONGWAVE_MODEL names the model file");
    let mut file = ModelFile::open(path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let model = Model::load(&mut file, ModelOptions::default()).unwrap();
    let ids = tokenizer.encode(&TEXT.concat()).unwrap();
    assert!(ids.len() >= TOKENS, "{} tokens", ids.len());
    let options = TraceOptions { layers: LAYERS.to_vec(), queries: 64 };
    let trace = Trace::record(&model, &ids[..TOKENS], &options, &mut |_| {}).unwrap();
    (model_spec(&model, &tokenizer, Dtype::F16), trace)
}

/// A context that holds one layer of the trace, with the index of a budget's method.
fn stored(spec: &longwave::ModelSpec, rows: &LayerTrace, budget: &Budget) -> Snapshot {
    let store = Store::in_memory(StoreOptions::default()).unwrap();
    let spec = longwave::ModelSpec { layers: 1, ..spec.clone() };
    let options = match budget {
        Budget::Tau(_) => ContextOptions::default(),
        _ => ContextOptions::default().with_clusters(ClusterOptions::retroinfer()).with_ladder(false),
    };
    let mut context = store.create_with("real", &spec, options).unwrap();
    let (heads, dim) = (spec.kv_heads, spec.key_dim);
    // The queries before those that are asked: the metric of a context that has been used.
    let known = rows.queries.len() / (spec.query_heads * dim) - POSITIONS;
    let queries = TensorView::token_major(
        &rows.queries[..known * spec.query_heads * dim],
        known,
        spec.query_heads,
        dim,
    );
    context.observe_at(0, (TOKENS - known - POSITIONS) as u64, &queries).unwrap();
    // Sealed before the last rows come, as while decoding: no summary stands for what the oldest query has in its window.
    let (sealed, row) = (TOKENS - 4 * POSITIONS, heads * dim);
    for part in [0..sealed, sealed..TOKENS] {
        let tokens = part.len();
        let of = |rows: &'_ [half::f16]| rows[part.start * row..part.end * row].to_vec();
        let (keys, values) = (of(&rows.keys), of(&rows.values));
        let view = |rows| TensorView::token_major(rows, tokens, heads, dim);
        context.append(0, &view(&keys[..]), &view(&values[..])).unwrap();
        context.seal().unwrap();
    }
    context.commit(Durability::None).unwrap();
    context.snapshot().unwrap()
}

fn sources(snapshot: &Snapshot) -> Sources {
    let (segments, shape) = (snapshot.shared_segments(0).unwrap(), snapshot.view(0).unwrap().shape);
    let source = |kind| Arc::new(StoredRows::new(shape, kind, &segments));
    let (clusters, codes, rows) = (source(RowKind::Clusters), source(RowKind::Codes), source(RowKind::Full));
    Sources { clusters, codes, rows }
}

/// A tier with room for everything that a call reads.
fn tier(device: &Arc<Device>, dim: usize) -> Tier {
    let cache = |slots, rows, dim| {
        Some(Arc::new(BlockCache::new(device, Box::new(LeastRecentlyUsed), slots, rows, dim).unwrap()))
    };
    let (clusters, codes, rows) = (cache(600, 8, dim), cache(6000, 1, dim / 4 + 1), cache(600, 1, dim));
    Tier::new(device, MACHINE, Caches { clusters, codes, rows }, 1 << 20).unwrap()
}

fn settle(tier: &Tier) {
    let Caches { clusters, codes, rows } = tier.caches();
    [clusters, codes, rows].into_iter().flatten().for_each(|cache| cache.settle());
}

/// The bound: 1e-5 of the output's length for each head, and 1e-5 of the log-sum-exp.
fn expect(
    view: &LayerView<'_>,
    batch: &QueryBatch<'_>,
    budget: &Budget,
    answer: &TierAnswer,
    what: &str,
) -> f32 {
    let expected = longwave_query::attend(view, batch, budget).unwrap();
    let (dim, mut worst) = (view.shape.value_dim, 0.0f32);
    for (head, (found, expected)) in answer.output.chunks(dim).zip(expected.output.chunks(dim)).enumerate() {
        let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let off = length(&mut found.iter().zip(expected).map(|(a, b)| a - b))
            / length(&mut expected.iter().copied());
        assert!(off <= 1e-5, "{what}: head {head} is off by {off} of its length");
        worst = worst.max(off);
    }
    for (found, expected) in answer.lse.iter().zip(&expected.lse) {
        assert!(
            (found - expected).abs() <= 1e-5 * (1.0 + expected.abs()),
            "{what}: lse {found} for {expected}"
        );
    }
    worst
}

#[test]
#[ignore = "needs the model file: cargo xtask test fetches it and runs this"]
fn real_rows_are_answered_alike_by_both_sides_at_every_proportion() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let (spec, trace) = recorded();
    let mut worst = 0.0f32;
    for (layer, rows) in trace.layers() {
        let queries: Vec<f32> = rows.queries.iter().map(|q| q.to_f32()).collect();
        let row = spec.query_heads * spec.key_dim;
        for budget in [LADDER, RETROINFER] {
            let snapshot = stored(&spec, rows, &budget);
            let view = snapshot.view(0).unwrap();
            assert!(view.segments.iter().map(|segment| segment.rows()).sum::<usize>() > 1000);
            let tier = tier(&device, spec.key_dim);
            for positions in [1, POSITIONS] {
                let data = &queries[queries.len() - positions * row..];
                let batch = QueryBatch { data, first_position: (TOKENS - positions) as u64, positions };
                for per_mille in (0..=1000).step_by(100) {
                    let division = Division::HostPerMille(per_mille);
                    let what = format!(
                        "layer {layer}, {budget}, {positions} positions, {per_mille} of 1000 on the CPU"
                    );
                    let answer = tier.attend(0, &view, &batch, &budget, division).unwrap();
                    assert!(answer.report.placement.is_some(), "{what}");
                    worst = worst.max(expect(&view, &batch, &budget, &answer, &what));
                    if per_mille == 500 {
                        // From here on, most is in slots.
                        tier.note(u64::from(per_mille), &answer.report.wanted, &sources(&snapshot));
                        settle(&tier);
                    }
                }
            }
            let metrics = tier.metrics();
            assert_eq!((metrics.calls_device, metrics.calls_host, metrics.fallbacks), (22, 0, 0));
            assert!(metrics.bytes.iter().all(|&bytes| bytes > 0), "{metrics}");
        }
    }
    println!("the sides differ by {worst:.1e} of an output's length at most");
}
