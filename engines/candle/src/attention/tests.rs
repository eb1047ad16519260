use super::*;

/// Reproducible numbers in -1..1 without a pattern.
fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Largest difference to attention in f64, over the largest output.
fn error(shape: AttentionShape, tokens: usize, count: usize, sharpness: f32) -> f64 {
    let keys = noise(1, tokens * shape.kv_width());
    let values = noise(2, tokens * shape.kv_width());
    let queries: Vec<f32> = noise(3, count * shape.query_width()).iter().map(|q| q * sharpness).collect();
    let mut output = vec![f32::NAN; queries.len()];
    attend_causal(shape, &keys, &values, &queries, &mut output);
    let dim = shape.head_dim;
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    for index in 0..count {
        for head in 0..shape.query_heads {
            let query = &queries[(index * shape.query_heads + head) * dim..][..dim];
            let row = |token: usize| (token * shape.kv_heads + head / shape.group()) * dim;
            let seen = tokens - count + index + 1;
            let dot = |token| {
                let key = &keys[row(token)..][..dim];
                query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                    / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = (0..seen).map(dot).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for element in 0..dim {
                let values = (0..seen).map(|token| weights[token] * f64::from(values[row(token) + element]));
                let expected = values.sum::<f64>() / sum;
                let found = f64::from(output[(index * shape.query_heads + head) * dim + element]);
                worst = worst.max((found - expected).abs());
                largest = largest.max(expected.abs());
            }
        }
    }
    // `max` drops NaN.
    assert!(output.iter().all(|element| element.is_finite()));
    worst / largest
}

#[test]
fn blocks_and_tiles_of_every_kind_agree_with_f64() {
    let shape = AttentionShape { query_heads: 6, kv_heads: 2, head_dim: 8 };
    for (tokens, count) in
        [(1, 1), (7, 7), (TILE, 1), (TILE + 1, 3), (BLOCK + 5, BLOCK + 5), (700, BLOCK + 31)]
    {
        let error = error(shape, tokens, count, 1.0);
        assert!(error < 5e-6, "{count} queries over {tokens} rows: {error}");
    }
}

#[test]
fn spans_merge_also_where_a_query_sees_nothing_of_the_last() {
    let shape = AttentionShape { query_heads: 2, kv_heads: 1, head_dim: 16 };
    // The block crosses the edge between two spans: its first queries see no key of the second.
    assert!(error(shape, SPAN + 20, 50, 1.0) < 5e-6);
    assert!(error(shape, 2 * SPAN + 3, 1, 1.0) < 5e-6);
}

#[test]
fn sharp_softmax_does_not_overflow() {
    let shape = AttentionShape { query_heads: 3, kv_heads: 3, head_dim: 24 };
    // Scores up to several hundred.
    assert!(error(shape, 400, 40, 300.0) < 1e-4);
}

#[test]
fn exponential_is_close_and_never_negative() {
    let mut x = 0.0f32;
    while x > -86.0 {
        let expected = f64::from(x).exp();
        let error = (f64::from(exponential(x)) - expected).abs() / expected;
        assert!(error < 4e-7, "exp({x}): {error}");
        x -= 0.007_3;
    }
    assert_eq!(exponential(0.0), 1.0);
    assert!((0.0..1e-37).contains(&exponential(MASKED)));
}
