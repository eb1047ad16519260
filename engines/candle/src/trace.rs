//! Recording attention traces: the rows and the last queries of chosen layers, as files that `longwave import` and
//! `longwave eval` read.
//!
//! A trace is a safetensors file of f16 tensors, keys and queries after RoPE with interleaved pairs:
//!
//! | tensor | shape |
//! |---|---|
//! | `layers.{i}.key`, `layers.{i}.value` | `[tokens, kv_heads, head_dim]` |
//! | `layers.{i}.query` | `[queries, query_heads, head_dim]`, of the last `queries` positions |
//!
//! Its metadata are the strings `tokens`, `queries`, `head_dim`, `kv_heads`, `query_heads`, `rope_theta` and
//! `first_query_position`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::f16;
use safetensors::tensor::{Dtype, View};

use crate::attention::AttentionShape;
use crate::{Error, KvCache, MemoryCache, Model, Result};

/// What to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceOptions {
    /// The layers to keep, from 0, in any order.
    pub layers: Vec<usize>,
    /// Number of last positions whose queries to keep.
    pub queries: usize,
}

/// Recorded rows and queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    shape: AttentionShape,
    tokens: usize,
    queries: usize,
    rope_base: f64,
    layers: BTreeMap<usize, LayerTrace>,
}

/// One layer's part of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerTrace {
    /// `[tokens, kv_heads, head_dim]`.
    pub keys: Vec<f16>,
    /// `[tokens, kv_heads, head_dim]`.
    pub values: Vec<f16>,
    /// `[queries, query_heads, head_dim]`.
    pub queries: Vec<f16>,
}

impl Trace {
    /// Runs a model over `ids` with an exact cache and records what passes; layers behind the last one wanted are
    /// not computed. `progress` is told the number of tokens done after each chunk.
    ///
    /// # Errors
    /// If a layer does not exist or none is asked for, there are more queries than ids, or the model fails.
    pub fn record(
        model: &Model,
        ids: &[u32],
        options: &TraceOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let layers = options.layers.iter().max().map_or(0, |last| last + 1);
        if layers == 0 {
            return Err(Error::value("layers", "at least one", "none"));
        }
        if options.queries == 0 || options.queries > ids.len() {
            return Err(Error::value("queries", format!("1 to {}", ids.len()), options.queries));
        }
        let shape = model.attention_shape();
        let trace = Self {
            shape,
            tokens: ids.len(),
            queries: options.queries,
            rope_base: model.rope_base(),
            layers: options.layers.iter().map(|&layer| (layer, LayerTrace::default())).collect(),
        };
        let mut recorder = Recorder { cache: MemoryCache::new(shape, layers, ids.len()), trace };
        model.prefill_layers(ids, &mut recorder, layers, progress)?;
        Ok(recorder.trace)
    }

    /// The recorded layers, by number.
    #[must_use]
    pub fn layers(&self) -> &BTreeMap<usize, LayerTrace> {
        &self.layers
    }

    /// Writes the trace to a new file, or over an old one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let AttentionShape { query_heads, kv_heads, head_dim } = self.shape;
        let tensors = self.layers.iter().flat_map(|(layer, rows)| {
            let tensor = |kind, count, heads, elements| {
                (format!("layers.{layer}.{kind}"), Elements { shape: [count, heads, head_dim], elements })
            };
            [
                tensor("key", self.tokens, kv_heads, &rows.keys),
                tensor("value", self.tokens, kv_heads, &rows.values),
                tensor("query", self.queries, query_heads, &rows.queries),
            ]
        });
        let metadata = [
            ("tokens", self.tokens.to_string()),
            ("queries", self.queries.to_string()),
            ("head_dim", head_dim.to_string()),
            ("kv_heads", kv_heads.to_string()),
            ("query_heads", query_heads.to_string()),
            // Debug keeps the point of a whole number, as Python's str does.
            ("rope_theta", format!("{:?}", self.rope_base)),
            ("first_query_position", (self.tokens - self.queries).to_string()),
        ];
        let metadata: HashMap<String, String> =
            metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        safetensors::serialize_to_file(tensors, Some(metadata), path)
            .map_err(|error| Error::trace(path, error))
    }
}

/// A cache that notes what passes on its way to the exact one.
struct Recorder {
    cache: MemoryCache,
    trace: Trace,
}

impl KvCache for Recorder {
    fn tokens(&self) -> usize {
        self.cache.tokens()
    }

    fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        if let Some(rows) = self.trace.layers.get_mut(&layer) {
            rows.keys.extend(keys.iter().copied().map(f16::from_f32));
            rows.values.extend(values.iter().copied().map(f16::from_f32));
        }
        self.cache.append(layer, keys, values)
    }

    fn attend(&mut self, layer: usize, queries: &[f32], output: &mut [f32]) -> Result<()> {
        let (shape, first_kept) = (self.trace.shape, self.trace.tokens - self.trace.queries);
        if let Some(rows) = self.trace.layers.get_mut(&layer) {
            let end = rows.keys.len() / shape.kv_width();
            let first = end - queries.len() / shape.query_width();
            let skipped = first_kept.clamp(first, end) - first;
            let kept = &queries[skipped * shape.query_width()..];
            rows.queries.extend(kept.iter().copied().map(f16::from_f32));
        }
        self.cache.attend(layer, queries, output)
    }
}

/// A tensor of a trace as safetensors wants it.
struct Elements<'a> {
    shape: [usize; 3],
    elements: &'a [f16],
}

impl View for Elements<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.elements.iter().flat_map(|element| element.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    const SHAPE: AttentionShape = AttentionShape { query_heads: 4, kv_heads: 2, head_dim: 8 };

    fn recorder(tokens: usize, queries: usize, layer: usize) -> Recorder {
        let layers = BTreeMap::from([(layer, LayerTrace::default())]);
        let trace = Trace { shape: SHAPE, tokens, queries, rope_base: 100_000.0, layers };
        Recorder { cache: MemoryCache::new(SHAPE, layer + 1, tokens), trace }
    }

    /// Rows of `count` positions from `first`; every element tells its position.
    fn rows(first: usize, count: usize, width: usize, offset: f32) -> Vec<f32> {
        (first..first + count).flat_map(|position| vec![position as f32 + offset; width]).collect()
    }

    #[test]
    fn the_last_queries_are_kept_wherever_chunks_end() {
        for chunks in [vec![7], vec![3, 4], vec![4, 1, 1, 1], vec![6, 1]] {
            let mut recorder = recorder(7, 3, 1);
            let mut first = 0;
            for count in chunks {
                for layer in 0..2 {
                    let offset = layer as f32 * 0.5;
                    let (keys, values) =
                        (rows(first, count, 16, offset), rows(first, count, 16, offset + 0.25));
                    recorder.append(layer, &keys, &values).unwrap();
                    let queries = rows(first, count, 32, offset);
                    recorder.attend(layer, &queries, &mut vec![0.0; queries.len()]).unwrap();
                }
                first += count;
            }
            let f16s = |elements: Vec<f32>| elements.into_iter().map(f16::from_f32).collect::<Vec<_>>();
            let expected = LayerTrace {
                keys: f16s(rows(0, 7, 16, 0.5)),
                values: f16s(rows(0, 7, 16, 0.75)),
                queries: f16s(rows(4, 3, 32, 0.5)),
            };
            assert_eq!(recorder.trace.layers, BTreeMap::from([(1, expected)]));
        }
    }

    #[test]
    fn the_file_has_the_names_shapes_and_metadata_of_the_format() {
        let mut recorder = recorder(5, 2, 3);
        recorder.append(3, &rows(0, 5, 16, 0.0), &rows(0, 5, 16, 0.5)).unwrap();
        recorder.attend(3, &rows(0, 5, 32, 0.25), &mut [0.0; 160]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.safetensors");
        recorder.trace.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let expected = [
            ("tokens", "5"),
            ("queries", "2"),
            ("head_dim", "8"),
            ("kv_heads", "2"),
            ("query_heads", "4"),
            ("rope_theta", "100000.0"),
            ("first_query_position", "3"),
        ];
        assert_eq!(metadata, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, shape, elements) in [
            ("layers.3.key", [5, 2, 8], rows(0, 5, 16, 0.0)),
            ("layers.3.value", [5, 2, 8], rows(0, 5, 16, 0.5)),
            ("layers.3.query", [2, 4, 8], rows(3, 2, 32, 0.25)),
        ] {
            let tensor = file.tensor(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F16, &shape[..]), "{name}");
            let bytes: Vec<u8> = elements.iter().flat_map(|&e| f16::from_f32(e).to_le_bytes()).collect();
            assert_eq!(tensor.data(), bytes, "{name}");
        }
        assert_eq!(file.len(), 3);
    }
}
