//! The rows and queries of a measurement as a file, for programs that are to be measured on the same ones.

use super::layer::Layer;
use anyhow::{Context as _, Result};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// Writes a safetensors file: `keys` and `values` `[kv_heads, tokens, head_dim]` in f16, `queries`
/// `[1 + count, query_heads, head_dim]` in f32, not scaled; the first is the one that is not timed.
pub(super) fn write(layer: &Layer, count: usize, path: &Path) -> Result<()> {
    let synthetic = layer.synthetic();
    let (tokens, dim) = (layer.tokens as usize, layer.head_dim);
    let mut keys = vec![f16::ZERO; layer.kv_heads * tokens * dim];
    let mut values = keys.clone();
    for chunk in layer.chunks(&synthetic) {
        let part = chunk.count * dim;
        for (rows, to) in [(&chunk.keys, &mut keys), (&chunk.values, &mut values)] {
            for (rows, to) in rows.chunks_exact(part).zip(to.chunks_exact_mut(tokens * dim)) {
                to[chunk.first * dim..][..part].copy_from_slice(rows);
            }
        }
    }
    let queries: Vec<f32> =
        (0..=count).flat_map(|number| synthetic.query(number, layer.query_heads)).collect();
    let view = |dtype, shape: [usize; 3], bytes| TensorView::new(dtype, shape.to_vec(), bytes);
    let rows = [layer.kv_heads, tokens, dim];
    let tensors = [
        ("keys", view(Dtype::F16, rows, bytemuck::cast_slice(&keys))?),
        ("values", view(Dtype::F16, rows, bytemuck::cast_slice(&values))?),
        ("queries", view(Dtype::F32, [1 + count, layer.query_heads, dim], bytemuck::cast_slice(&queries))?),
    ];
    safetensors::serialize_to_file(tensors, None, path).with_context(|| format!("writing {}", path.display()))
}
