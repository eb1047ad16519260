//! Attention traces: safetensors files with the keys, values and last queries of some layers of a model.
//!
//! Tensors, for each recorded layer `i`: `layers.{i}.key` and `layers.{i}.value` `[tokens, kv_heads, dim]`, keys after
//! RoPE, and `layers.{i}.query` `[queries, query_heads, dim]`, the queries of the last positions. Metadata:
//! `tokens`, `queries`, `head_dim`, `kv_heads`, `query_heads`, `rope_theta`, `first_query_position`.

use anyhow::{Context as _, Result, bail, ensure};
use longwave::{Dtype, LAYERS_MAX, LayerKind, ModelIdentity, ModelSpec};
use safetensors::{Dtype as TensorDtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// An opened trace.
pub(crate) struct Trace {
    bytes: Vec<u8>,
    digest: [u8; 32],
    /// Recorded layers, rising.
    pub(crate) layers: Vec<usize>,
    pub(crate) tokens: usize,
    pub(crate) queries: usize,
    pub(crate) kv_heads: usize,
    pub(crate) query_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) first_query_position: usize,
    rope_theta: String,
}

/// One layer of a trace as f32, all `[token, head, element]`.
pub(crate) struct TraceLayer {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) queries: Vec<f32>,
}

impl Trace {
    pub(crate) fn open(path: &Path) -> Result<Trace> {
        let bytes = std::fs::read(path).with_context(|| format!("reading trace {}", path.display()))?;
        Self::parse(bytes).with_context(|| format!("trace {}", path.display()))
    }

    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Trace> {
        let (_, metadata) = SafeTensors::read_metadata(&bytes).context("not a safetensors file")?;
        let none = HashMap::new();
        let metadata = metadata.metadata().as_ref().unwrap_or(&none);
        let text = |key: &str| metadata.get(key).with_context(|| format!("metadata `{key}` is missing"));
        let number = |key: &str| -> Result<usize> {
            let value = text(key)?;
            value.parse().with_context(|| format!("metadata `{key}`: expected a number, found {value:?}"))
        };
        let mut trace = Trace {
            digest: Sha256::digest(&bytes).into(),
            layers: Vec::new(),
            tokens: number("tokens")?,
            queries: number("queries")?,
            kv_heads: number("kv_heads")?,
            query_heads: number("query_heads")?,
            key_dim: number("head_dim")?,
            value_dim: 0,
            first_query_position: number("first_query_position")?,
            rope_theta: text("rope_theta")?.clone(),
            bytes: Vec::new(),
        };
        let tensors = SafeTensors::deserialize(&bytes).context("not a safetensors file")?;
        for name in tensors.names() {
            if let Some(layer) = name.strip_prefix("layers.").and_then(|rest| rest.strip_suffix(".key")) {
                trace.layers.push(layer.parse().with_context(|| format!("tensor {name}: no layer number"))?);
            }
        }
        trace.layers.sort_unstable();
        let first = *trace.layers.first().context("no tensor `layers.{i}.key`")?;
        trace.value_dim = *tensors.tensor(&format!("layers.{first}.value"))?.shape().last().unwrap_or(&0);
        for &layer in &trace.layers {
            for (part, shape) in trace.shapes() {
                let name = format!("layers.{layer}.{part}");
                let tensor = tensors.tensor(&name).with_context(|| format!("tensor {name} is missing"))?;
                ensure!(
                    tensor.shape() == shape,
                    "tensor {name}: expected shape {shape:?}, found {:?}",
                    tensor.shape()
                );
            }
        }
        let Trace { tokens, queries, first_query_position, kv_heads, query_heads, .. } = trace;
        let last = trace.layers.last().copied().unwrap_or_default();
        ensure!(last < LAYERS_MAX, "layer {last}: expected layers below {LAYERS_MAX}");
        ensure!(
            kv_heads > 0 && query_heads > 0 && query_heads % kv_heads == 0,
            "{query_heads} query heads do not share {kv_heads} KV heads evenly"
        );
        ensure!(trace.key_dim > 0 && trace.value_dim > 0, "rows without elements");
        ensure!(
            queries > 0 && first_query_position.checked_add(queries) == Some(tokens),
            "queries {queries} from position {first_query_position} do not end at token {tokens}"
        );
        trace.bytes = bytes;
        Ok(trace)
    }

    fn shapes(&self) -> [(&'static str, [usize; 3]); 3] {
        [
            ("key", [self.tokens, self.kv_heads, self.key_dim]),
            ("value", [self.tokens, self.kv_heads, self.value_dim]),
            ("query", [self.queries, self.query_heads, self.key_dim]),
        ]
    }

    /// Reads one layer.
    pub(crate) fn layer(&self, layer: usize) -> Result<TraceLayer> {
        let tensors = SafeTensors::deserialize(&self.bytes)?;
        let read = |part: &str| -> Result<Vec<f32>> {
            let name = format!("layers.{layer}.{part}");
            numbers(&tensors.tensor(&name)?).with_context(|| format!("tensor {name}"))
        };
        Ok(TraceLayer { keys: read("key")?, values: read("value")?, queries: read("query")? })
    }

    /// The model of the trace, with the layers that are stored under their own numbers. The file's digest stands for
    /// the weights, which a trace does not name.
    pub(crate) fn model(&self, dtype: Dtype, layers: &[usize]) -> ModelSpec {
        let count = layers.iter().max().map_or(0, |last| last + 1);
        let kind = |layer| if layers.contains(&layer) { LayerKind::Clustered } else { LayerKind::Absent };
        ModelSpec {
            identity: ModelIdentity {
                weights: self.digest,
                tokenizer: [0; 32],
                rope: format!("theta {}", self.rope_theta),
            },
            layers: count,
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            dtype,
            scale: (self.key_dim as f32).powf(-0.5),
            softcap: None,
            layer_kinds: (0..count).map(kind).collect(),
            sink_logits: Vec::new(),
        }
    }

    /// The layers asked for, or all that the trace holds.
    pub(crate) fn chosen_layers(&self, asked: &[usize]) -> Result<Vec<usize>> {
        if let Some(missing) = asked.iter().find(|layer| !self.layers.contains(layer)) {
            bail!("layer {missing} is not in the trace, which holds {:?}", self.layers);
        }
        Ok(if asked.is_empty() { self.layers.clone() } else { asked.to_vec() })
    }
}

impl TraceLayer {
    /// Refuses numbers that are not finite, or become so in rows of `dtype`.
    pub(crate) fn check_finite(&self, dtype: Dtype) -> Result<()> {
        let parts = [
            ("key", &self.keys, dtype),
            ("value", &self.values, dtype),
            ("query", &self.queries, Dtype::F32),
        ];
        for (part, data, dtype) in parts {
            if let Some(at) = data.iter().position(|&x| !stored(x, dtype).is_finite()) {
                bail!("{part}: element {at} is {}, which is not finite as {dtype}", data[at]);
            }
        }
        Ok(())
    }
}

/// A number as it is stored.
pub(crate) fn stored(x: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
        Dtype::F32 => x,
    }
}

fn numbers(tensor: &TensorView<'_>) -> Result<Vec<f32>> {
    let data = tensor.data();
    Ok(match tensor.dtype() {
        TensorDtype::F16 => {
            data.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        TensorDtype::BF16 => {
            data.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
        }
        TensorDtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        other => bail!("expected f16, bf16 or f32, found {other:?}"),
    })
}
