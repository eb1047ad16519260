//! Seeded models, keys and values, all of them asymmetric: heads, dimensions, rows and layers all differ.

use half::{bf16, f16};
use longwave::{
    Answer, ClusterOptions, Compaction, Context, ContextOptions, Dtype, ModelIdentity, ModelSpec, Rows,
    Store, StoreOptions, TensorView,
};
use longwave_storage::check::{CheckOptions, check_store};
use longwave_storage::{Backend, MemoryBackend};
use std::ops::Range;
use std::sync::Arc;

/// Whether the tests are to run their full figures and not a sample of them: `cargo xtask crash` asks for it.
pub fn is_full() -> bool {
    std::env::var_os("LONGWAVE_TESTS").is_some_and(|asked| asked == "full")
}

/// splitmix64.
pub struct Sample(u64);

impl Sample {
    pub fn new(seed: u64) -> Sample {
        Sample(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x1357_9bdf)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Near enough to normal, with deviation 1.
    pub fn number(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..3).map(|_| uniform(self.bits())).sum()
    }

    pub fn numbers(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.number() * scale).collect()
    }
}

/// `[kv_heads, query_heads, key_dim, value_dim]`.
pub const UNEQUAL: [usize; 4] = [3, 6, 24, 16];

pub fn model(
    [kv_heads, query_heads, key_dim, value_dim]: [usize; 4],
    dtype: Dtype,
    layers: usize,
) -> ModelSpec {
    ModelSpec {
        identity: ModelIdentity { weights: [3; 32], tokenizer: [5; 32], rope: "theta 10000".into() },
        layers,
        query_heads,
        kv_heads,
        key_dim,
        value_dim,
        dtype,
        scale: (key_dim as f32).sqrt().recip(),
        softcap: None,
        layer_kinds: vec![],
        sink_logits: vec![],
    }
}

/// Learned sink logits of one layer.
pub fn logits(seed: u64, model: &ModelSpec) -> Vec<f32> {
    Sample::new(seed).numbers(model.query_heads, 1.5)
}

/// Small segments: sinks 3, window 5, 48 rows in bulk and 16 in decoding, bulk from 8 rows on.
pub fn small_options() -> ContextOptions {
    let mut options = ContextOptions::default()
        .with_clusters(ClusterOptions { tokens_per_cluster: 6, ..ClusterOptions::retroinfer() })
        .with_exact_rows(3, 5)
        .with_segment_rows(48, 16)
        .with_sample_positions(9);
    options.bulk_append_rows = 8;
    options
}

pub fn memory_store() -> Store {
    store_on(&as_backend(&MemoryBackend::new()))
}

/// A store whose segments are merged only by a call: what is read then depends on positions alone.
pub fn store_on(backend: &Arc<dyn Backend>) -> Store {
    let mut options = StoreOptions::default();
    options.compaction = Compaction::Never;
    Store::on_backend(Arc::clone(backend), options).unwrap()
}

/// A store as it is by default: segments are merged in the background.
pub fn merging_store_on(backend: &Arc<dyn Backend>) -> Store {
    Store::on_backend(Arc::clone(backend), StoreOptions::default()).unwrap()
}

pub fn as_backend(memory: &MemoryBackend) -> Arc<dyn Backend> {
    Arc::new(memory.clone())
}

/// Keys and values of one layer as the store holds them, as f32: `[tokens, kv_heads, dim]`.
#[derive(Clone, Debug)]
pub struct Kv {
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl Kv {
    /// Rows around a few centres per head that change slowly with the position, as post-RoPE keys do. A row depends on
    /// the seed and its position alone.
    pub fn new(seed: u64, tokens: usize, model: &ModelSpec) -> Kv {
        let ModelSpec { kv_heads, key_dim, value_dim, dtype, .. } = *model;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for token in 0..tokens {
            for head in 0..kv_heads {
                let mut row = Sample::new(seed ^ (token as u64) << 20 ^ (head as u64) << 44);
                let mut centre = Sample::new(
                    seed ^ 77 ^ row.below(7) as u64 ^ (head as u64) << 9 ^ (token as u64 / 90) << 30,
                );
                keys.extend((0..key_dim).map(|_| round(dtype, centre.number() + 0.5 * row.number())));
                values.extend((0..value_dim).map(|_| round(dtype, 0.6 * centre.number() + row.number())));
            }
        }
        Kv { kv_heads, key_dim, value_dim, keys, values }
    }

    /// Rows whose keys have one length and point everywhere, so that a query along one key sees that row alone.
    pub fn scattered(seed: u64, tokens: usize, model: &ModelSpec) -> Kv {
        let mut kv = Kv::new(seed, tokens, model);
        for (at, key) in kv.keys.chunks_exact_mut(model.key_dim).enumerate() {
            let mut row = Sample::new(seed ^ 0xd1 ^ (at as u64) << 17);
            key.fill_with(|| row.number());
            let norm = key.iter().map(|x| x * x).sum::<f32>().sqrt();
            key.iter_mut().for_each(|x| *x = round(model.dtype, *x * 2.0 / norm));
        }
        kv
    }

    /// The first `tokens` rows of this, then those of `other`.
    pub fn joined(&self, tokens: usize, other: &Kv) -> Kv {
        let join = |ours: &[f32], theirs: &[f32], dim: usize| {
            let at = tokens * self.kv_heads * dim;
            [&ours[..at], &theirs[at..]].concat()
        };
        Kv {
            keys: join(&self.keys, &other.keys, self.key_dim),
            values: join(&self.values, &other.values, self.value_dim),
            ..*self
        }
    }

    pub fn tokens(&self) -> usize {
        self.keys.len() / self.kv_heads / self.key_dim
    }

    pub fn keys(&self, tokens: Range<usize>) -> TensorView<'_> {
        let row = self.kv_heads * self.key_dim;
        let data = &self.keys[tokens.start * row..tokens.end * row];
        TensorView::token_major(data, tokens.len(), self.kv_heads, self.key_dim)
    }

    pub fn values(&self, tokens: Range<usize>) -> TensorView<'_> {
        let row = self.kv_heads * self.value_dim;
        let data = &self.values[tokens.start * row..tokens.end * row];
        TensorView::token_major(data, tokens.len(), self.kv_heads, self.value_dim)
    }

    /// Appends `tokens` to a layer.
    pub fn append(&self, context: &mut Context, layer: usize, tokens: Range<usize>) {
        context.append(layer, &self.keys(tokens.clone()), &self.values(tokens)).unwrap();
    }
}

/// The nearest number of the type.
pub fn round(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        Dtype::F32 => x,
    }
}

/// Queries `[n, query_heads, key_dim]` that attend to some rows much more than to others.
pub fn queries(seed: u64, n: usize, model: &ModelSpec) -> Vec<f32> {
    Sample::new(seed ^ 0xbeef).numbers(n * model.query_heads * model.key_dim, 1.6)
}

pub fn query_view<'a>(queries: &'a [f32], model: &ModelSpec) -> TensorView<'a> {
    let row = model.query_heads * model.key_dim;
    TensorView::token_major(queries, queries.len() / row, model.query_heads, model.key_dim)
}

/// Queries along the keys of `positions` of a [`Kv::scattered`]: the answer to each is the value of its row.
pub fn own_key_queries(kv: &Kv, model: &ModelSpec, positions: Range<usize>) -> Vec<f32> {
    let group = model.query_heads / model.kv_heads;
    let mut queries = Vec::new();
    for token in positions {
        for head in 0..model.query_heads {
            let start = (token * model.kv_heads + head / group) * model.key_dim;
            let key = &kv.keys[start..start + model.key_dim];
            let norm: f32 = key.iter().map(|x| x * x).sum();
            // The score of the own key is 400, that of any other row of another direction far less.
            queries.extend(key.iter().map(|x| x * 400.0 / norm / model.scale));
        }
    }
    queries
}

/// The bits of an answer.
pub fn bits(answer: &Answer) -> Vec<u32> {
    answer.output.iter().chain(&answer.lse).map(|x| x.to_bits()).collect()
}

/// Everything wrong that `fsck` finds, as text. Files that nothing names are not wrong.
pub fn faults(backend: &Arc<dyn Backend>) -> Vec<String> {
    let options = CheckOptions { segment: Some(longwave::index::validate), ..CheckOptions::default() };
    check_store(backend, &options).faults.iter().map(ToString::to_string).collect()
}

/// Owned rows of any type.
pub enum Numbers {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Numbers {
    pub fn of(dtype: Dtype, numbers: &[f32]) -> Numbers {
        match dtype {
            Dtype::F16 => Numbers::F16(numbers.iter().map(|&x| f16::from_f32(x)).collect()),
            Dtype::Bf16 => Numbers::Bf16(numbers.iter().map(|&x| bf16::from_f32(x)).collect()),
            Dtype::F32 => Numbers::F32(numbers.to_vec()),
        }
    }

    pub fn rows(&self) -> Rows<'_> {
        match self {
            Numbers::F16(numbers) => Rows::F16(numbers),
            Numbers::Bf16(numbers) => Rows::Bf16(numbers),
            Numbers::F32(numbers) => Rows::F32(numbers),
        }
    }
}
