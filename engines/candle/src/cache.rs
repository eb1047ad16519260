//! What the model needs of a KV cache, and the exact one in memory.

use crate::attention::{AttentionShape, attend_causal};
use crate::{Error, Result};

/// A KV cache as the model sees it.
///
/// For each chunk of tokens and each layer in order the model calls [`KvCache::append`], then [`KvCache::attend`] with
/// the queries of the same tokens. Rows are token-major and, for keys and queries, after RoPE.
pub trait KvCache {
    /// Tokens held, that is, the position of the next one. Between chunks all layers hold the same number.
    fn tokens(&self) -> usize;

    /// Adds the rows of new tokens to a layer: `keys` and `values`, both `[n, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// If the layer does not exist, the lengths do not fit, or the cache fails.
    fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()>;

    /// Attention of the layer's last `n` positions, each over the rows up to its own: `queries` and `output` are
    /// `[n, query_heads, head_dim]`; queries are not scaled yet.
    ///
    /// # Errors
    /// If the layer does not exist, the lengths do not fit, or the cache fails.
    fn attend(&mut self, layer: usize, queries: &[f32], output: &mut [f32]) -> Result<()>;
}

impl<C: KvCache + ?Sized> KvCache for &mut C {
    fn tokens(&self) -> usize {
        (**self).tokens()
    }

    fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        (**self).append(layer, keys, values)
    }

    fn attend(&mut self, layer: usize, queries: &[f32], output: &mut [f32]) -> Result<()> {
        (**self).attend(layer, queries, output)
    }
}

/// Rows in memory as f32, attention exact.
#[derive(Clone, Debug)]
pub struct MemoryCache {
    shape: AttentionShape,
    layers: Vec<Rows>,
}

/// One layer's rows, `[tokens, kv_heads, head_dim]` each.
#[derive(Clone, Debug)]
struct Rows {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl MemoryCache {
    /// An empty cache with room for `capacity` tokens; it grows beyond, at the cost of copying.
    #[must_use]
    pub fn new(shape: AttentionShape, layers: usize, capacity: usize) -> Self {
        let room = || Vec::with_capacity(capacity * shape.kv_width());
        Self { shape, layers: (0..layers).map(|_| Rows { keys: room(), values: room() }).collect() }
    }

    /// The shape that all layers share.
    #[must_use]
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// A layer's keys and values so far, `[tokens, kv_heads, head_dim]` each.
    #[must_use]
    pub fn rows(&self, layer: usize) -> Option<(&[f32], &[f32])> {
        self.layers.get(layer).map(|rows| (&*rows.keys, &*rows.values))
    }

    fn layer(&mut self, layer: usize) -> Result<&mut Rows> {
        let layers = self.layers.len();
        self.layers.get_mut(layer).ok_or(Error::Layer { layer, layers })
    }
}

impl KvCache for MemoryCache {
    fn tokens(&self) -> usize {
        self.layers.first().map_or(0, |rows| rows.keys.len() / self.shape.kv_width())
    }

    fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        whole("keys", keys.len(), self.shape.kv_width())?;
        if values.len() != keys.len() {
            return Err(Error::Elements { what: "values", expected: keys.len(), found: values.len() });
        }
        let rows = self.layer(layer)?;
        rows.keys.extend_from_slice(keys);
        rows.values.extend_from_slice(values);
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: &[f32], output: &mut [f32]) -> Result<()> {
        let shape = self.shape;
        whole("queries", queries.len(), shape.query_width())?;
        if output.len() != queries.len() {
            return Err(Error::Elements { what: "output", expected: queries.len(), found: output.len() });
        }
        let rows = self.layer(layer)?;
        let held = rows.keys.len() / shape.kv_width() * shape.query_width();
        if queries.len() > held {
            return Err(Error::Elements {
                what: "queries of held rows",
                expected: held,
                found: queries.len(),
            });
        }
        attend_causal(shape, &rows.keys, &rows.values, queries, output);
        Ok(())
    }
}

fn whole(what: &'static str, found: usize, width: usize) -> Result<()> {
    if found.is_multiple_of(width) { Ok(()) } else { Err(Error::Elements { what, expected: width, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape { query_heads: 2, kv_heads: 1, head_dim: 8 };

    #[test]
    fn layers_are_apart_and_the_first_token_reads_itself() {
        let mut cache = MemoryCache::new(SHAPE, 2, 1);
        let (first, second): (Vec<f32>, Vec<f32>) = ((0..8).map(|i| i as f32).collect(), vec![5.0; 8]);
        cache.append(0, &second, &first).unwrap();
        cache.append(1, &first, &second).unwrap();
        assert_eq!(cache.tokens(), 1);
        let mut output = [0.0; 16];
        cache.attend(0, &[0.5; 16], &mut output).unwrap();
        assert_eq!(output, [&*first, &*first].concat()[..]);
        assert_eq!(cache.rows(1).unwrap(), (&*first, &*second));
        assert_eq!(cache.rows(2), None);
    }

    #[test]
    fn wrong_lengths_and_layers_change_nothing() {
        let mut cache = MemoryCache::new(SHAPE, 1, 4);
        cache.append(0, &[1.0; 8], &[2.0; 8]).unwrap();
        assert!(matches!(cache.append(0, &[1.0; 7], &[1.0; 7]), Err(Error::Elements { what: "keys", .. })));
        assert!(matches!(
            cache.append(0, &[1.0; 8], &[1.0; 16]),
            Err(Error::Elements { what: "values", .. })
        ));
        assert!(matches!(cache.append(1, &[1.0; 8], &[1.0; 8]), Err(Error::Layer { layer: 1, layers: 1 })));
        // Two positions' queries, but one row.
        assert!(cache.attend(0, &[1.0; 32], &mut [0.0; 32]).is_err());
        assert!(cache.attend(0, &[1.0; 16], &mut [0.0; 8]).is_err());
        assert_eq!(cache.tokens(), 1);
        assert_eq!(cache.rows(0).unwrap(), (&[1.0; 8][..], &[2.0; 8][..]));
    }
}
