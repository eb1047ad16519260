//! The layer that speed is measured on: what the command line says of it, its model and its synthetic rows.

use super::synthetic::Synthetic;
use anyhow::Result;
use half::f16;
use longwave::{Context, Dtype, LayerKind, ModelIdentity, ModelSpec, Store, StoreOptions, TensorView};
use std::sync::Arc;

/// Rows generated and appended at a time: those of a segment of bulk ingestion.
const CHUNK: usize = 8192;
const SEED: u64 = 20;
/// Most queries that are timed. Those that a context observes come behind them.
pub(super) const QUERIES_MAX: i64 = 1 << 20;
/// Queries that a context observes before its rows come: they give the ladder its metric.
const OBSERVED: usize = 128;

#[derive(clap::Args)]
pub(crate) struct Layer {
    /// Tokens of the context.
    #[arg(long, default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(super) tokens: u32,
    /// KV heads.
    #[arg(long, default_value_t = 8)]
    pub(super) kv_heads: usize,
    /// Query heads, a multiple of the KV heads.
    #[arg(long, default_value_t = 32)]
    pub(super) query_heads: usize,
    /// Elements of a key, and of a value.
    #[arg(long, default_value_t = 128)]
    pub(super) head_dim: usize,
    /// Threads to work on; as many as the machine has by default.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Keys and values `[kv_heads, count, dim]` of the positions from `first` on.
pub(super) struct Chunk {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) keys: Vec<f16>,
    pub(super) values: Vec<f16>,
}

impl Layer {
    pub(super) fn pool(&self) -> Result<Arc<rayon::ThreadPool>> {
        let threads = self.threads.map_or(0, usize::from);
        Ok(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?))
    }

    /// Options of a store that attends on `pool` and seals on as many threads.
    pub(super) fn store_options(pool: &Arc<rayon::ThreadPool>) -> StoreOptions {
        let mut options = StoreOptions::default();
        options.pool = Some(Arc::clone(pool));
        options.sealing_threads = pool.current_num_threads();
        options
    }

    pub(super) fn model(&self, kind: LayerKind) -> ModelSpec {
        ModelSpec {
            identity: ModelIdentity { weights: [0; 32], tokenizer: [0; 32], rope: "synthetic".into() },
            layers: 1,
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            key_dim: self.head_dim,
            value_dim: self.head_dim,
            dtype: Dtype::F16,
            scale: self.scale(),
            softcap: None,
            layer_kinds: vec![kind],
            sink_logits: Vec::new(),
        }
    }

    pub(super) fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// Refuses a geometry that cannot be worked with, before anything is generated.
    pub(super) fn check(&self) -> Result<()> {
        Store::in_memory(StoreOptions::default())?.create("bench", &self.model(LayerKind::Clustered))?;
        Ok(())
    }

    pub(super) fn synthetic(&self) -> Synthetic {
        Synthetic::new(SEED, self.kv_heads, self.head_dim)
    }

    /// Bytes of all keys and values, in 16 bits.
    pub(super) fn kv_bytes(&self) -> u64 {
        let row = 2 * self.kv_heads * self.head_dim * Dtype::F16.size_of();
        u64::from(self.tokens) * row as u64
    }

    /// All rows, a chunk at a time.
    pub(super) fn chunks<'a>(&self, synthetic: &'a Synthetic) -> impl Iterator<Item = Chunk> + use<'a> {
        let tokens = self.tokens as usize;
        (0..tokens).step_by(CHUNK).map(move |first| {
            let count = CHUNK.min(tokens - first);
            let (keys, values) = synthetic.rows(first, count);
            Chunk { first, count, keys, values }
        })
    }

    /// Queries `[query_heads, dim]` that are known before the rows come.
    pub(super) fn observed(&self, synthetic: &Synthetic) -> Vec<Vec<f32>> {
        // Those that are timed have lower numbers.
        let numbers = (0..OBSERVED).map(|number| QUERIES_MAX as usize + 1 + number);
        numbers.map(|number| synthetic.query(number, self.query_heads)).collect()
    }

    pub(super) fn observe(&self, synthetic: &Synthetic, context: &mut Context) -> Result<()> {
        for (position, query) in self.observed(synthetic).iter().enumerate() {
            context.observe_at(0, position as u64, &self.query_view(query))?;
        }
        Ok(())
    }

    pub(super) fn append(&self, context: &mut Context, chunk: &Chunk) -> Result<()> {
        let view = |rows| TensorView::head_major(rows, chunk.count, self.kv_heads, self.head_dim);
        Ok(context.append(0, &view(&chunk.keys[..]), &view(&chunk.values[..]))?)
    }

    pub(super) fn query_view<'a>(&self, query: &'a [f32]) -> TensorView<'a> {
        TensorView::token_major(query, 1, self.query_heads, self.head_dim)
    }
}
