//! Longwave as the model's KV cache.

use crate::attention::AttentionShape;
use crate::spent::{AuditedAnswer, Spent};
use crate::{Error, KvCache, MemoryCache, Model, Result, Tokenizer};
use longwave::{
    Answer, Budget, ClusterOptions, Context, ContextOptions, Dtype, ModelIdentity, ModelSpec, TensorView,
};

/// What Longwave asks to know of the model.
#[must_use]
pub fn model_spec(model: &Model, tokenizer: &Tokenizer, dtype: Dtype) -> ModelSpec {
    let (identity, shape) = (model.identity(tokenizer), model.attention_shape());
    let wide = |digest: u128| {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&digest.to_le_bytes());
        bytes
    };
    ModelSpec {
        identity: ModelIdentity {
            weights: wide(identity.weights_digest),
            tokenizer: wide(identity.tokenizer_digest),
            rope: format!(
                "base {}, {} dims, interleaved",
                identity.rope_base,
                model.hyperparameters().rotary_dim
            ),
        },
        layers: model.hyperparameters().layers,
        query_heads: shape.query_heads,
        kv_heads: shape.kv_heads,
        key_dim: shape.head_dim,
        value_dim: shape.head_dim,
        dtype,
        scale: (shape.head_dim as f32).powf(-0.5),
        softcap: None,
        layer_kinds: Vec::new(),
        sink_logits: Vec::new(),
    }
}

/// How a context of a comparison is stored: each method reads the index that it was published with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// Longwave's own.
    Ladder,
    /// RetroInfer's: smaller clusters, no ladder.
    RetroInfer,
}

impl Index {
    /// Both.
    pub const ALL: [Index; 2] = [Index::Ladder, Index::RetroInfer];

    /// A name to tell contexts apart by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Index::Ladder => "ladder",
            Index::RetroInfer => "retroinfer",
        }
    }

    /// Options of a context with this index.
    #[must_use]
    pub fn options(self) -> ContextOptions {
        match self {
            Index::Ladder => ContextOptions::default(),
            Index::RetroInfer => {
                ContextOptions::default().with_clusters(ClusterOptions::retroinfer()).with_ladder(false)
            }
        }
    }
}

/// The cache of a prefill: attention is exact over f32 rows in memory, and Longwave takes the same rows.
#[derive(Debug)]
pub struct PrefillCache<'a> {
    contexts: &'a mut [Context],
    memory: MemoryCache,
}

impl<'a> PrefillCache<'a> {
    /// A cache that fills every one of `contexts`, which must be empty, with room for `capacity` tokens in memory.
    #[must_use]
    pub fn new(contexts: &'a mut [Context], shape: AttentionShape, layers: usize, capacity: usize) -> Self {
        Self { contexts, memory: MemoryCache::new(shape, layers, capacity) }
    }
}

impl KvCache for PrefillCache<'_> {
    fn tokens(&self) -> usize {
        self.memory.tokens()
    }

    fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        for context in &mut *self.contexts {
            append_rows(context, self.memory.shape(), layer, keys, values)?;
        }
        self.memory.append(layer, keys, values)
    }

    fn attend(&mut self, layer: usize, queries: &[f32], output: &mut [f32]) -> Result<()> {
        let shape = self.memory.shape();
        let positions = queries.len() / shape.query_width();
        let view = TensorView::token_major(queries, positions, shape.query_heads, shape.head_dim);
        for context in &mut *self.contexts {
            context.observe(layer, &view).map_err(cache)?;
        }
        self.memory.attend(layer, queries, output)
    }
}

/// What a context has forgotten, over all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgot {
    /// Clusters of the segments, over all KV heads.
    pub clusters: u64,
    /// Those of them that are demoted.
    pub demoted: u64,
    /// Rows of each KV head that were ever appended.
    pub rows: u64,
    /// Those of them that were dropped.
    pub dropped: u64,
}

/// The cache of decoding: every attention call is answered by Longwave under one budget.
#[derive(Debug)]
pub struct StoredCache {
    context: Context,
    shape: AttentionShape,
    budget: Budget,
    audit_every: Option<usize>,
    calls: usize,
    spent: Spent,
}

impl StoredCache {
    /// A cache that goes on from `context`. With `audit_every` set, that many tokens apart, all layers of a token are
    /// also answered exactly and compared.
    #[must_use]
    pub fn new(context: Context, shape: AttentionShape, budget: Budget, audit_every: Option<usize>) -> Self {
        Self { context, shape, budget, audit_every, calls: 0, spent: Spent::default() }
    }

    /// What was read so far.
    #[must_use]
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    /// What the context has forgotten by now, once the rows are dropped that may be.
    ///
    /// # Errors
    /// If a segment cannot be read or written.
    pub fn forgot(&mut self) -> Result<Forgot> {
        self.context.forget(None).map_err(cache)?;
        let mut forgot = Forgot::default();
        for layer in 0..self.context.model().layers {
            let of_layer = self.context.forgotten(layer).map_err(cache)?;
            forgot.clusters += of_layer.clusters;
            forgot.demoted += of_layer.clusters_demoted;
            forgot.rows += self.context.length(layer).map_err(cache)?;
            forgot.dropped += of_layer.rows_dropped;
        }
        Ok(forgot)
    }

    fn audited(&self) -> bool {
        let token = self.calls / self.context.model().layers;
        self.audit_every.is_some_and(|every| token.is_multiple_of(every))
    }
}

impl KvCache for StoredCache {
    fn tokens(&self) -> usize {
        self.context.length(0).map_or(0, |rows| rows as usize)
    }

    fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        append_rows(&mut self.context, self.shape, layer, keys, values)
    }

    fn attend(&mut self, layer: usize, queries: &[f32], output: &mut [f32]) -> Result<()> {
        let AttentionShape { query_heads, head_dim, .. } = self.shape;
        let positions = queries.len() / self.shape.query_width();
        let view = TensorView::token_major(queries, positions, query_heads, head_dim);
        let answer = self.context.attend(layer, &view, &self.budget).map_err(cache)?;
        if answer.output.len() != output.len() {
            return Err(Error::Elements {
                what: "output",
                expected: answer.output.len(),
                found: output.len(),
            });
        }
        if self.audited() {
            // Asked of a snapshot, from which a context that forgets does not learn what is important.
            let snapshot = self.context.snapshot().map_err(cache)?;
            let exact = snapshot.attend(layer, &view, &Budget::Exact).map_err(cache)?;
            self.spent.audited(layer, compared(&answer, &exact.output, head_dim));
        }
        self.spent.read(layer, answer.report.bytes_share());
        self.calls += 1;
        output.copy_from_slice(&answer.output);
        Ok(())
    }
}

/// Each query head of an answer beside the exact one.
fn compared(answer: &Answer, exact: &[f32], head_dim: usize) -> Vec<AuditedAnswer> {
    let pairs = answer.output.chunks_exact(head_dim).zip(exact.chunks_exact(head_dim));
    let (predicted, bounds) = (&answer.report.predicted_error, &answer.report.bound);
    let audited = pairs.enumerate().map(|(head, (output, exact))| AuditedAnswer {
        error: relative_error(output, exact),
        predicted: predicted.get(head).map(|&error| error.into()),
        bound: bounds.get(head).copied().flatten().map(Into::into),
    });
    audited.collect()
}

/// `|output - exact| / |exact|`.
fn relative_error(output: &[f32], exact: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = output.iter().zip(exact).map(|(&o, &e)| square(f64::from(o) - f64::from(e))).sum();
    (off / exact.iter().map(|&e| square(f64::from(e))).sum::<f64>()).sqrt()
}

fn append_rows(
    context: &mut Context,
    shape: AttentionShape,
    layer: usize,
    keys: &[f32],
    values: &[f32],
) -> Result<()> {
    let tokens = keys.len() / shape.kv_width();
    let view = |rows| TensorView::token_major(rows, tokens, shape.kv_heads, shape.head_dim);
    context.append(layer, &view(keys), &view(values)).map_err(cache)
}

/// An error of Longwave as an error of the cache.
pub fn cache(error: longwave::Error) -> Error {
    Error::Cache(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_counted_over_all_layers() {
        let shape = AttentionShape { query_heads: 2, kv_heads: 1, head_dim: 16 };
        let spec = ModelSpec {
            identity: ModelIdentity { weights: [1; 32], tokenizer: [2; 32], rope: "none".to_owned() },
            layers: 2,
            query_heads: 2,
            kv_heads: 1,
            key_dim: 16,
            value_dim: 16,
            dtype: Dtype::F32,
            scale: 0.25,
            softcap: None,
            layer_kinds: Vec::new(),
            sink_logits: Vec::new(),
        };
        let store = longwave::Store::in_memory(longwave::StoreOptions::default()).unwrap();
        let options = ContextOptions::default().with_forgetting(longwave::Forgetting::Demote { steps: 2 });
        let mut context = store.create_with("forgetful", &spec, options).unwrap();
        let rows = 1500;
        // Sixteen groups of keys, each along a dimension of its own.
        let at =
            |row: usize, i: usize| if row % 16 == i { 8.0 } else { (row * 31 + i * 7) as f32 % 5.0 * 0.1 };
        let keys: Vec<f32> = (0..rows * 16).map(|place| at(place / 16, place % 16)).collect();
        for layer in 0..2 {
            append_rows(&mut context, shape, layer, &keys, &keys).unwrap();
        }
        context.seal().unwrap();
        let mut cache = StoredCache::new(context, shape, Budget::Tau(0.01), None);
        let before = cache.forgot().unwrap();
        assert!(before.clusters >= 16 && before.clusters.is_multiple_of(2), "{before:?}");
        assert_eq!((before.demoted, before.rows, before.dropped), (0, 3000, 0));
        let query: Vec<f32> = (0..32).map(|place| if place % 16 == 3 { 9.0 } else { 0.0 }).collect();
        for _ in 0..4 {
            cache.attend(1, &query, &mut [0.0; 32]).unwrap();
        }
        let after = cache.forgot().unwrap();
        assert!((before.clusters / 4..before.clusters / 2).contains(&after.demoted), "{after:?}");
        assert_eq!(Forgot { demoted: 0, ..after }, before);
    }

    #[test]
    fn errors_are_relative() {
        assert_eq!(relative_error(&[3.0, 0.0], &[0.0, 4.0]), 1.25);
    }
}
