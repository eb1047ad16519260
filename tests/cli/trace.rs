//! A trace as a model would leave it, small and asymmetric in everything.

use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;

pub(crate) const KV_HEADS: usize = 2;
pub(crate) const QUERY_HEADS: usize = 6;
pub(crate) const KEY_DIM: usize = 16;
pub(crate) const VALUE_DIM: usize = 8;

/// What the file is made of; tests change a field to make a bad one.
pub(crate) struct Trace {
    pub(crate) layers: Vec<usize>,
    pub(crate) tokens: usize,
    pub(crate) queries: usize,
    /// Written over the metadata of a good trace.
    pub(crate) metadata: Vec<(&'static str, &'static str)>,
    /// An element of the first layer's keys that is replaced.
    pub(crate) key_element: Option<(usize, f32)>,
    pub(crate) without: Option<&'static str>,
}

impl Default for Trace {
    fn default() -> Self {
        Trace {
            layers: vec![1, 4],
            tokens: 700,
            queries: 60,
            metadata: Vec::new(),
            key_element: None,
            without: None,
        }
    }
}

impl Trace {
    /// The file's bytes.
    pub(crate) fn file(&self) -> Vec<u8> {
        let mut tensors = Vec::new();
        for &layer in &self.layers {
            let mut keys = clustered(layer, self.tokens, KV_HEADS, KEY_DIM, 1.0);
            if let Some((at, value)) = self.key_element.filter(|_| layer == self.layers[0]) {
                keys[at] = value;
            }
            let values = clustered(100 ^ layer, self.tokens, KV_HEADS, VALUE_DIM, 1.0);
            let queries = clustered(layer, self.queries, QUERY_HEADS, KEY_DIM, 2.0);
            tensors.push((format!("layers.{layer}.key"), [self.tokens, KV_HEADS, KEY_DIM], keys));
            tensors.push((format!("layers.{layer}.value"), [self.tokens, KV_HEADS, VALUE_DIM], values));
            tensors.push((format!("layers.{layer}.query"), [self.queries, QUERY_HEADS, KEY_DIM], queries));
        }
        tensors.retain(|(name, _, _)| Some(name.as_str()) != self.without);
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, _, data)| data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (name.clone(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        safetensors::serialize(views, Some(self.metadata())).unwrap()
    }

    fn metadata(&self) -> HashMap<String, String> {
        let numbers = [
            ("tokens", self.tokens),
            ("queries", self.queries),
            ("head_dim", KEY_DIM),
            ("kv_heads", KV_HEADS),
            ("query_heads", QUERY_HEADS),
            ("first_query_position", self.tokens - self.queries),
        ];
        let numbers = numbers.map(|(key, value)| (key.to_string(), value.to_string()));
        let texts = [("rope_theta".to_string(), "10000.0".to_string())].into_iter();
        let changed = self.metadata.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        numbers.into_iter().chain(texts).chain(changed).collect()
    }
}

/// Numbers `[rows, heads, dim]`: each row near one of twelve centres, which depend on the layer and not on the head
/// count, so that queries look for clusters of keys.
fn clustered(seed: usize, rows: usize, heads: usize, dim: usize, size: f32) -> Vec<f32> {
    let mut data = Vec::with_capacity(rows * heads * dim);
    for row in 0..rows {
        for head in 0..heads {
            let topic = (row / 7 + 5 * head) % 12;
            for element in 0..dim {
                let centre = unit(&[seed, topic, element]);
                let noise = unit(&[seed, rows, row, head, element]);
                data.push(size * (2.0 * centre + 0.5 * noise));
            }
        }
    }
    data
}

/// A number between -1 and 1 that depends on `parts` alone.
fn unit(parts: &[usize]) -> f32 {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| (*part as u64).to_le_bytes()).collect();
    let hash = xxhash_rust::xxh3::xxh3_64(&bytes) >> 40;
    hash as f32 / (1 << 23) as f32 - 1.0
}
