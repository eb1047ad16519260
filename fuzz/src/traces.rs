//! What `longwave import` reads.

use crate::trace::Trace;
use longwave::{Dtype, Store, StoreOptions};
use safetensors::tensor::{Dtype as TensorDtype, TensorView, serialize};
use std::collections::HashMap;

/// What parses is as large as it says, and becomes a context or is refused.
pub(crate) fn trace(bytes: &[u8]) {
    let Ok(trace) = Trace::parse(bytes.to_vec()) else { return };
    for &number in &trace.layers {
        let Ok(layer) = trace.layer(number) else { continue };
        assert_eq!(layer.keys.len(), trace.tokens * trace.kv_heads * trace.key_dim);
        assert_eq!(layer.values.len(), trace.tokens * trace.kv_heads * trace.value_dim);
        assert_eq!(layer.queries.len(), trace.queries * trace.query_heads * trace.key_dim);
        let _ = layer.check_finite(Dtype::F16);
    }
    let store = Store::in_memory(StoreOptions::default()).expect("a store in memory");
    let _ = store.create("imported", &trace.model(Dtype::Bf16, &trace.layers));
}

/// Two layers of unequal numbers, in three element types.
pub(crate) fn trace_seeds() -> Vec<Vec<u8>> {
    [(TensorDtype::F32, 4), (TensorDtype::F16, 2), (TensorDtype::BF16, 2)]
        .map(|(dtype, size)| seed(dtype, size))
        .into()
}

fn seed(dtype: TensorDtype, size: usize) -> Vec<u8> {
    let metadata = [
        ("tokens", "5"),
        ("queries", "2"),
        ("head_dim", "8"),
        ("kv_heads", "2"),
        ("query_heads", "4"),
        ("rope_theta", "10000.0"),
        ("first_query_position", "3"),
    ];
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let shapes = [("key", [5, 2, 8]), ("value", [5, 2, 16]), ("query", [2, 4, 8])];
    let names = [0, 3].iter().flat_map(|layer| {
        shapes.iter().map(move |(part, shape)| (format!("layers.{layer}.{part}"), shape.to_vec()))
    });
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = names
        .map(|(name, shape)| {
            let len = shape.iter().product::<usize>() * size;
            (name, shape, (0..len).map(|at| (at % 61) as u8).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            TensorView::new(dtype, shape.clone(), bytes).expect("as many bytes as the shape asks for"),
        )
    });
    serialize(views.collect::<Vec<_>>(), Some(metadata)).expect("a sound file")
}
