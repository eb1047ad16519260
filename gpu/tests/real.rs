//! Whole calls on the rows of a real model: SmolLM2-135M-Instruct reads this repository's documents, and its own queries are asked of
//! both methods by the CPU, by the (emulated) device, and divided between them at every proportion.
//!
//! `LONGWAVE_MODEL` names the GGUF file. Where `LONGWAVE_TRACE` names a trace in f16 (`longwave-candle trace`), its rows and queries
//! are asked as well: those of a longer text, say.

use half::f16;
use longwave::{
    Answer, Budget, ClusterOptions, ContextOptions, Dtype, Durability, LayerKind, LayerView, ModelSpec,
    QueryBatch, Snapshot, Store, StoreOptions, TensorView,
};
use longwave_candle::stored::model_spec;
use longwave_candle::trace::{LayerTrace, Trace, TraceOptions};
use longwave_candle::{Model, ModelFile, ModelOptions, Tokenizer};
use longwave_gpu::cache::{BlockCache, LeastRecentlyUsed, RowKind, StoredRows};
use longwave_gpu::placement::Machine;
use longwave_gpu::{Caches, Device, Division, Sources, Tier, TierAnswer};
use longwave_gpu_emulation::install;
use longwave_kernels::codec::Depth;
use safetensors::SafeTensors;
use std::path::Path;
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

/// Layers of a text, by number, and the model that read it.
struct Recorded {
    spec: ModelSpec,
    tokens: usize,
    layers: Vec<(usize, LayerTrace)>,
}

fn recorded() -> Recorded {
    let path = std::env::var_os("LONGWAVE_MODEL").expect("LONGWAVE_MODEL names the model file");
    let mut file = ModelFile::open(path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let model = Model::load(&mut file, ModelOptions::default()).unwrap();
    let ids = tokenizer.encode(&TEXT.concat()).unwrap();
    assert!(ids.len() >= TOKENS, "{} tokens", ids.len());
    let options = TraceOptions { layers: LAYERS.to_vec(), queries: 64 };
    let trace = Trace::record(&model, &ids[..TOKENS], &options, &mut |_| {}).unwrap();
    let layers = trace.layers().iter().map(|(&layer, rows)| (layer, rows.clone())).collect();
    Recorded { spec: model_spec(&model, &tokenizer, Dtype::F16), tokens: TOKENS, layers }
}

/// The layers of a trace's file; what they do not say of the model is as `like` has it.
fn read(path: &Path, like: &ModelSpec) -> Recorded {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let part = |layer: usize, part: &str| -> (Vec<usize>, Vec<f16>) {
        let tensor = tensors.tensor(&format!("layers.{layer}.{part}")).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F16);
        let numbers = tensor.data().as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
        (tensor.shape().to_vec(), numbers)
    };
    let numbers = tensors.names().into_iter().filter_map(|name| {
        name.strip_prefix("layers.").and_then(|rest| rest.strip_suffix(".key")).map(|n| n.parse().unwrap())
    });
    let (mut layers, mut tokens) = (Vec::new(), 0);
    for number in numbers {
        let [(shape, keys), (_, values), (_, queries)] =
            ["key", "value", "query"].map(|name| part(number, name));
        assert_eq!(shape[1..], [like.kv_heads, like.key_dim], "rows of another model");
        tokens = shape[0];
        layers.push((number, LayerTrace { keys, values, queries }));
    }
    layers.sort_by_key(|(number, _)| *number);
    Recorded { spec: like.clone(), tokens, layers }
}

/// A context that holds one layer of the trace, with the index of a budget's method.
fn stored(spec: &ModelSpec, rows: &LayerTrace, budget: &Budget) -> Snapshot {
    let store = Store::in_memory(StoreOptions::default()).unwrap();
    let spec = ModelSpec { layers: 1, layer_kinds: vec![LayerKind::Clustered], ..spec.clone() };
    let options = match budget {
        Budget::Tau(_) => ContextOptions::default(),
        _ => ContextOptions::default().with_clusters(ClusterOptions::retroinfer()).with_ladder(false),
    };
    let mut context = store.create_with("real", &spec, options).unwrap();
    let (heads, dim) = (spec.kv_heads, spec.key_dim);
    let all = rows.keys.len() / (heads * dim);
    // The queries before those that are asked: the metric of a context that has been used.
    let known = rows.queries.len() / (spec.query_heads * dim) - POSITIONS;
    let queries = TensorView::token_major(
        &rows.queries[..known * spec.query_heads * dim],
        known,
        spec.query_heads,
        dim,
    );
    context.observe_at(0, (all - known - POSITIONS) as u64, &queries).unwrap();
    // Sealed before the last rows come, as while decoding: no summary stands for what the oldest query has in its window.
    let (sealed, row) = (all - 4 * POSITIONS, heads * dim);
    for part in [0..sealed, sealed..all] {
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
    let (clusters, codes, rows) = (cache(1200, 8, dim), cache(12000, 1, dim / 4 + 1), cache(1200, 1, dim));
    Tier::new(device, MACHINE, Caches { clusters, codes, rows }, 1 << 20).unwrap()
}

fn settle(tier: &Tier) {
    let Caches { clusters, codes, rows } = tier.caches();
    [clusters, codes, rows].into_iter().flatten().for_each(|cache| cache.settle());
}

/// Rows of some thousands that one side reads and the other does not, since rounding decides on which side of its threshold a gain lies.
const APART_MAX: u64 = 4;

/// By how much the sides differ at most, of an output's length: where they chose the same rows, and where they did not. A gain
/// that lies within rounding of its threshold may make them choose otherwise, the more often the more rows there are.
#[derive(Clone, Copy, Debug, Default)]
struct Off {
    calls: usize,
    alike: f32,
    others: usize,
    otherwise: f32,
}

/// By how many clusters, codes and full rows, at least, the device has read others than the CPU.
fn rows_apart(found: &TierAnswer, expected: &Answer, dim: usize) -> u64 {
    let (rows, traffic) = (&found.report.rows, expected.report.traffic);
    // What half a code and the whole of it share counts once.
    let halves = rows[0] - found.report.again[0];
    let [half, whole] = [Depth::Half, Depth::Whole].map(|depth| depth.len(dim) as u64);
    let opened: u64 = expected.report.positions.iter().map(|position| position.clusters_read).sum();
    // Rows that are read anyway have their keys read as well as their values.
    let more_keys = |keys: u64, values: u64| keys as i64 - values as i64;
    let row = 2 * dim as u64;
    let of_full = more_keys(row * rows[2], row * rows[5]).abs_diff(more_keys(traffic.keys, traffic.values));
    opened.abs_diff(found.report.opened)
        + (halves * half + rows[1] * whole).abs_diff(traffic.key_codes).div_ceil(half)
        + (rows[3] * half + rows[4] * whole).abs_diff(traffic.value_codes).div_ceil(half)
        + of_full.div_ceil(row)
}

impl Off {
    /// The bound: 1e-5 of the output's length for each head, and 1e-5 of the log-sum-exp; for the ladder tau where the sides chose
    /// otherwise.
    fn expect(
        &mut self,
        view: &LayerView<'_>,
        batch: &QueryBatch<'_>,
        budget: &Budget,
        answer: &TierAnswer,
        what: &str,
    ) {
        let expected = longwave_query::attend(view, batch, budget).unwrap();
        let dim = view.shape.value_dim;
        let (bound, is_alike) = match *budget {
            Budget::Tau(tau) => match rows_apart(answer, &expected, dim) {
                0 => (1e-5, true),
                apart => {
                    assert!(apart <= APART_MAX, "{what}: {apart} others were read");
                    (tau as f32, false)
                }
            },
            _ => (1e-5, true),
        };
        self.calls += 1;
        self.others += usize::from(!is_alike);
        let worst = if is_alike { &mut self.alike } else { &mut self.otherwise };
        for (head, (found, expected)) in
            answer.output.chunks(dim).zip(expected.output.chunks(dim)).enumerate()
        {
            let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let off = length(&mut found.iter().zip(expected).map(|(a, b)| a - b))
                / length(&mut expected.iter().copied());
            assert!(off <= bound, "{what}: head {head} is off by {off} of its length");
            *worst = worst.max(off);
        }
        for (found, expected) in answer.lse.iter().zip(&expected.lse) {
            assert!(
                (found - expected).abs() <= bound * (1.0 + expected.abs()),
                "{what}: lse {found} for {expected}"
            );
        }
    }
}

/// Asks every layer at every proportion.
fn ask_at_every_proportion(device: &Arc<Device>, Recorded { spec, tokens, layers }: &Recorded) -> Off {
    let mut off = Off::default();
    for (layer, rows) in layers {
        let queries: Vec<f32> = rows.queries.iter().map(|q| q.to_f32()).collect();
        let row = spec.query_heads * spec.key_dim;
        for budget in [LADDER, RETROINFER] {
            let snapshot = stored(spec, rows, &budget);
            let view = snapshot.view(0).unwrap();
            assert!(view.segments.iter().map(|segment| segment.rows()).sum::<usize>() > 1000);
            let tier = tier(device, spec.key_dim);
            for positions in [1, POSITIONS] {
                let data = &queries[queries.len() - positions * row..];
                let batch = QueryBatch { data, first_position: (tokens - positions) as u64, positions };
                for per_mille in (0..=1000).step_by(100) {
                    let division = Division::HostPerMille(per_mille);
                    let what = format!(
                        "layer {layer}, {budget}, {positions} positions, {per_mille} of 1000 on the CPU"
                    );
                    let answer = tier.attend(0, &view, &batch, &budget, division).unwrap();
                    assert!(answer.report.placement.is_some(), "{what}");
                    off.expect(&view, &batch, &budget, &answer, &what);
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
    off
}

#[test]
#[ignore = "needs the model file: cargo xtask test fetches it and runs this"]
fn real_rows_are_answered_alike_by_both_sides_at_every_proportion() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let recorded = recorded();
    if let Some(path) = std::env::var_os("LONGWAVE_TRACE") {
        let trace = read(Path::new(&path), &recorded.spec);
        println!("{} rows: {:?}", trace.tokens, ask_at_every_proportion(&device, &trace));
    }
    let off = ask_at_every_proportion(&device, &recorded);
    println!("{} rows: {off:?}", recorded.tokens);
    // All proportions of a question have the same gains: one near its threshold tells in all eleven.
    assert!(4 * off.others <= off.calls, "the sides chose otherwise in {} of {}", off.others, off.calls);
}
