//! Exact attention in float64 over the rows as they are stored: what every method is compared with.

use crate::trace::{Trace, TraceLayer, stored};
use longwave::Dtype;

/// Stored rows of one layer, up to the first query, per KV head and row-major.
pub(crate) struct Reference {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Reference {
    pub(crate) fn new(trace: &Trace, rows: &TraceLayer, dtype: Dtype) -> Self {
        let take = |data: &[f32], dim: usize, head: usize| -> Vec<f64> {
            let of_head = data.chunks_exact(dim).skip(head).step_by(trace.kv_heads);
            of_head.take(trace.first_query_position).flatten().map(|&x| f64::from(stored(x, dtype))).collect()
        };
        Reference {
            keys: (0..trace.kv_heads).map(|head| take(&rows.keys, trace.key_dim, head)).collect(),
            values: (0..trace.kv_heads).map(|head| take(&rows.values, trace.value_dim, head)).collect(),
        }
    }

    /// The outputs `[query_heads, value_dim]` of recorded query `query`.
    pub(crate) fn attend(&self, trace: &Trace, rows: &TraceLayer, query: usize) -> Vec<f64> {
        let group = trace.query_heads / trace.kv_heads;
        let mut output = Vec::with_capacity(trace.query_heads * trace.value_dim);
        for head in 0..trace.query_heads {
            let start = (query * trace.query_heads + head) * trace.key_dim;
            let q: Vec<f64> =
                rows.queries[start..start + trace.key_dim].iter().map(|&x| f64::from(x)).collect();
            let (keys, values) = (&self.keys[head / group], &self.values[head / group]);
            let scale = (trace.key_dim as f64).powf(-0.5);
            let scores: Vec<f64> = keys
                .chunks_exact(trace.key_dim)
                .map(|key| scale * key.iter().zip(&q).map(|(k, q)| k * q).sum::<f64>())
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut total, mut sum) = (0.0, vec![0.0; trace.value_dim]);
            for (score, value) in scores.iter().zip(values.chunks_exact(trace.value_dim)) {
                let weight = (score - top).exp();
                total += weight;
                sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
            }
            output.extend(sum.iter().map(|sum| sum / total));
        }
        output
    }
}
