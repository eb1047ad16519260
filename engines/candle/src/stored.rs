//! Longwave as the model's KV cache.

use crate::attention::AttentionShape;
use crate::{Error, KvCache, MemoryCache, Model, Result, Tokenizer};
use longwave::{Budget, Context, Dtype, ModelIdentity, ModelSpec, TensorView};

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

/// What the calls of a [`StoredCache`] read, and how far they were off where they were audited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spent {
    /// Share of the 16-bit KV bytes that each call read.
    pub bytes_shares: Vec<f64>,
    /// `|o' - o| / |o|` against exact attention, for each query head of each audited call.
    pub errors: Vec<f64>,
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
            let exact = self.context.attend(layer, &view, &Budget::Exact).map_err(cache)?;
            let pairs = answer.output.chunks_exact(head_dim).zip(exact.output.chunks_exact(head_dim));
            self.spent.errors.extend(pairs.map(|(output, exact)| relative_error(output, exact)));
        }
        self.spent.bytes_shares.push(answer.report.bytes_share());
        self.calls += 1;
        output.copy_from_slice(&answer.output);
        Ok(())
    }
}

impl Spent {
    /// Mean share of the 16-bit KV bytes that a call read.
    #[must_use]
    pub fn bytes_share(&self) -> f64 {
        mean(&self.bytes_shares)
    }

    /// Mean of the audited errors.
    #[must_use]
    pub fn error_mean(&self) -> f64 {
        mean(&self.errors)
    }

    /// The error that 95 of 100 audited answers stay below.
    #[must_use]
    pub fn error_p95(&self) -> f64 {
        let mut sorted = self.errors.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
            .get((0.95 * sorted.len().saturating_sub(1) as f64).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
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
    fn errors_are_relative_and_summarised() {
        assert_eq!(relative_error(&[3.0, 0.0], &[0.0, 4.0]), 1.25);
        let spent = Spent { bytes_shares: vec![0.1, 0.3], errors: (0..=100).rev().map(f64::from).collect() };
        assert_eq!((spent.bytes_share(), spent.error_mean(), spent.error_p95()), (0.2, 50.0, 95.0));
        assert!(Spent::default().error_p95().is_nan());
    }
}
