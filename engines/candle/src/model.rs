//! The Llama forward pass: RMS norm, rotary attention with grouped query heads, SwiGLU.
//!
//! Matrix products are candle's, on weights kept as f32 in the layout of the file, `[out, in]`. Everything between
//! them is a plain loop over f32 rows. The model holds no state: what it remembers is in the [`KvCache`].

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::attention::{AttentionShape, exponential};
use crate::gguf::{Hyperparameters, ModelFile, ModelIdentity};
use crate::rotary::Rotary;
use crate::{Error, KvCache, Result, Tokenizer};

/// Tokens that prefill computes at a time.
pub const CHUNK: usize = 512;

/// How to run a model other than its file says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelOptions {
    /// Base ("theta") of the RoPE frequencies; the file's if absent. A larger one stretches the model to contexts
    /// beyond its training length.
    pub rope_base: Option<f64>,
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    hyperparameters: Hyperparameters,
    weights_digest: u128,
    rotary: Rotary,
    /// `[vocabulary, width]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Model {
    /// Reads all weights of a model file and dequantises them to f32.
    ///
    /// # Errors
    /// If a hyperparameter or tensor is missing, out of bounds or unknown, or the file cannot be read.
    pub fn load(file: &mut ModelFile, options: ModelOptions) -> Result<Self> {
        let hyperparameters = file.hyperparameters()?;
        let Hyperparameters { width, rotary_dim, vocabulary, .. } = hyperparameters;
        let divisors = match file.has_tensor("rope_freqs.weight") {
            true => Some(file.vector("rope_freqs.weight", rotary_dim / 2)?),
            false => None,
        };
        let rope_base = options.rope_base.unwrap_or(hyperparameters.rope_base);
        if !(rope_base.is_finite() && rope_base >= 1.0) {
            return Err(Error::value("RoPE base", "a finite number of at least 1", rope_base));
        }
        let embedding = file.tensor("token_embd.weight", &[vocabulary, width])?;
        let head = match file.has_tensor("output.weight") {
            true => Linear::read(file, "output.weight", vocabulary, width)?,
            false => Linear::new(&embedding)?,
        };
        let layers = (0..hyperparameters.layers).map(|layer| Layer::read(file, &hyperparameters, layer));
        let layers = layers.collect::<Result<_>>()?;
        let norm = file.vector("output_norm.weight", width)?;
        file.check_all_read()?;
        let rotary = Rotary::new(rope_base, rotary_dim, divisors.as_deref());
        Ok(Self {
            weights_digest: file.weights_digest(),
            rotary,
            embedding,
            layers,
            norm,
            head,
            hyperparameters,
        })
    }

    /// The numbers that shape the model, as its file has them.
    #[must_use]
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyperparameters
    }

    /// Shape of the attention that a [`KvCache`] for this model must have.
    #[must_use]
    pub fn attention_shape(&self) -> AttentionShape {
        let Hyperparameters { query_heads, kv_heads, head_dim, .. } = self.hyperparameters;
        AttentionShape { query_heads, kv_heads, head_dim }
    }

    /// Base ("theta") of the RoPE frequencies in use.
    #[must_use]
    pub fn rope_base(&self) -> f64 {
        self.rotary.base()
    }

    /// What a stored cache must agree on before this model may use it.
    #[must_use]
    pub fn identity(&self, tokenizer: &Tokenizer) -> ModelIdentity {
        ModelIdentity {
            weights_digest: self.weights_digest,
            tokenizer_digest: tokenizer.digest(),
            rope_base: self.rope_base(),
        }
    }

    /// Runs all layers over `ids` in chunks and returns the hidden state of the last token, `[width]`, or nothing if
    /// there are no ids. `progress` is told the number of tokens done after each chunk.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or the cache or a matrix product fails. After an error the cache may hold
    /// a part of a chunk.
    pub fn prefill(
        &self,
        ids: &[u32],
        cache: &mut dyn KvCache,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        self.prefill_layers(ids, cache, self.layers.len(), progress)
    }

    /// As [`Model::prefill`], but stops each chunk after the first `layers` layers.
    ///
    /// # Errors
    /// As [`Model::prefill`]; and if the model has fewer layers.
    pub fn prefill_layers(
        &self,
        ids: &[u32],
        cache: &mut dyn KvCache,
        layers: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        if layers > self.layers.len() {
            return Err(Error::Layer { layer: layers - 1, layers: self.layers.len() });
        }
        let mut last = Vec::new();
        for (index, chunk) in ids.chunks(CHUNK).enumerate() {
            let hidden = self.forward(chunk, cache, layers)?;
            last = hidden[hidden.len() - self.hyperparameters.width..].to_vec();
            progress(index * CHUNK + chunk.len());
        }
        Ok(last)
    }

    /// Runs one token and returns the logits of the next, `[vocabulary]`.
    ///
    /// # Errors
    /// As [`Model::prefill`].
    pub fn step(&self, id: u32, cache: &mut dyn KvCache) -> Result<Vec<f32>> {
        let hidden = self.forward(&[id], cache, self.layers.len())?;
        self.logits(&hidden)
    }

    /// Logits `[n, vocabulary]` of hidden states `[n, width]` after all layers.
    ///
    /// # Errors
    /// If `hidden` is not whole rows, or the matrix product fails.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let width = self.hyperparameters.width;
        if !hidden.len().is_multiple_of(width) {
            return Err(Error::Elements { what: "hidden states", expected: width, found: hidden.len() });
        }
        let mut normed = vec![0.0; hidden.len()];
        rms_norm(hidden, &self.norm, self.hyperparameters.norm_epsilon, &mut normed);
        self.head.apply(&normed)
    }

    /// Hidden states `[n, width]` of `ids` after the first `layers` layers.
    fn forward(&self, ids: &[u32], cache: &mut dyn KvCache, layers: usize) -> Result<Vec<f32>> {
        let Hyperparameters { width, query_heads, kv_heads, head_dim, norm_epsilon, .. } =
            self.hyperparameters;
        let first_position = cache.tokens();
        let mut hidden = self.embed(ids)?;
        let mut normed = vec![0.0; ids.len() * width];
        let mut attended = vec![0.0; ids.len() * query_heads * head_dim];
        for (index, layer) in self.layers[..layers].iter().enumerate() {
            rms_norm(&hidden, &layer.attention_norm, norm_epsilon, &mut normed);
            let mut queries = layer.query.apply(&normed)?;
            let mut keys = layer.key.apply(&normed)?;
            let values = layer.value.apply(&normed)?;
            self.rotary.rotate(&mut queries, query_heads, head_dim, first_position);
            self.rotary.rotate(&mut keys, kv_heads, head_dim, first_position);
            cache.append(index, &keys, &values)?;
            cache.attend(index, &queries, &mut attended)?;
            add(&mut hidden, &layer.output.apply(&attended)?);
            rms_norm(&hidden, &layer.feed_forward_norm, norm_epsilon, &mut normed);
            let mut inner = layer.gate.apply(&normed)?;
            gate(&mut inner, &layer.up.apply(&normed)?);
            add(&mut hidden, &layer.down.apply(&inner)?);
        }
        Ok(hidden)
    }

    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let vocabulary = self.hyperparameters.vocabulary;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::Token { id, vocabulary });
        }
        let rows = self.embedding.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)?;
        Ok(rows.flatten_all()?.to_vec1()?)
    }
}

impl Layer {
    fn read(file: &mut ModelFile, hyperparameters: &Hyperparameters, layer: usize) -> Result<Self> {
        let &Hyperparameters { width, feed_forward, query_heads, kv_heads, head_dim, .. } = hyperparameters;
        let (query_width, kv_width) = (query_heads * head_dim, kv_heads * head_dim);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        Ok(Self {
            attention_norm: file.vector(&name("attn_norm"), width)?,
            query: Linear::read(file, &name("attn_q"), query_width, width)?,
            key: Linear::read(file, &name("attn_k"), kv_width, width)?,
            value: Linear::read(file, &name("attn_v"), kv_width, width)?,
            output: Linear::read(file, &name("attn_output"), width, query_width)?,
            feed_forward_norm: file.vector(&name("ffn_norm"), width)?,
            gate: Linear::read(file, &name("ffn_gate"), feed_forward, width)?,
            up: Linear::read(file, &name("ffn_up"), feed_forward, width)?,
            down: Linear::read(file, &name("ffn_down"), width, feed_forward)?,
        })
    }
}

/// A matrix that rows are multiplied with.
#[derive(Debug)]
struct Linear {
    /// `[in, out]`: the file's `[out, in]` seen transposed, not moved.
    transposed: Tensor,
}

impl Linear {
    fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self { transposed: weight.t()? })
    }

    fn read(file: &mut ModelFile, name: &str, out: usize, input: usize) -> Result<Self> {
        Self::new(&file.tensor(name, &[out, input])?)
    }

    /// `[n, in]` to `[n, out]`.
    fn apply(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let width = self.transposed.dim(0)?;
        let rows = Tensor::from_slice(rows, (rows.len() / width, width), &Device::Cpu)?;
        Ok(rows.matmul(&self.transposed)?.flatten_all()?.to_vec1()?)
    }
}

/// `row / rms(row) * weight` for each row of `weight.len()` elements.
fn rms_norm(rows: &[f32], weight: &[f32], epsilon: f32, normed: &mut [f32]) {
    let width = weight.len();
    normed.par_chunks_mut(width).zip(rows.par_chunks(width)).with_min_len(16).for_each(|(normed, row)| {
        let squares: f64 = row.iter().map(|&element| f64::from(element) * f64::from(element)).sum();
        let scale = (squares / width as f64 + f64::from(epsilon)).sqrt().recip() as f32;
        for ((normed, element), weight) in normed.iter_mut().zip(row).zip(weight) {
            *normed = element * scale * weight;
        }
    });
}

/// `silu(gate) * up`, in place of `gate`.
fn gate(gate: &mut [f32], up: &[f32]) {
    const MIN_LEN: usize = 1 << 14;
    gate.par_iter_mut().zip(up).with_min_len(MIN_LEN).for_each(|(gate, up)| {
        // exp(-|x|) cannot overflow: silu(x) = x / (1 + e) above zero and x * e / (1 + e) below.
        let e = exponential(-gate.abs());
        let share = if *gate > 0.0 { 1.0 } else { e };
        *gate = *gate * share / (1.0 + e) * up;
    });
}

fn add(sum: &mut [f32], terms: &[f32]) {
    sum.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
}

#[cfg(test)]
#[path = "model/tests.rs"]
mod tests;
