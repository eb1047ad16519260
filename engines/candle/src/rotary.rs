//! Rotary position embedding on interleaved pairs, as GGUF files of the Llama family have them.

/// Rotates pairs of neighbouring elements by an angle that grows with the position.
///
/// Pair `i` of a row at position `p` turns by `p * base^(-2i / rotated) / divisor[i]` radians. Elements from `rotated`
/// on stay as they are.
#[derive(Clone, Debug)]
pub struct Rotary {
    base: f64,
    frequencies: Vec<f64>,
}

impl Rotary {
    /// A rotation of the first `rotated` elements of a head with the given base ("theta").
    ///
    /// `divisors` are the model's own long-context factors, one a pair, or none.
    ///
    /// # Panics
    /// If `rotated` is odd, or `divisors` are given and are not `rotated / 2`.
    #[must_use]
    pub fn new(base: f64, rotated: usize, divisors: Option<&[f32]>) -> Self {
        assert!(rotated.is_multiple_of(2), "rotary pairs need an even number of elements, not {rotated}");
        if let Some(divisors) = divisors {
            assert_eq!(divisors.len(), rotated / 2, "one divisor a pair");
        }
        let frequency = |pair: usize| {
            let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[pair]));
            base.powf(-((2 * pair) as f64) / rotated as f64) / divisor
        };
        Self { base, frequencies: (0..rotated / 2).map(frequency).collect() }
    }

    /// The base ("theta") of the frequencies.
    #[must_use]
    pub fn base(&self) -> f64 {
        self.base
    }

    /// Rotates `rows` `[tokens, heads, dim]` in place; the first token stands at `first_position`.
    ///
    /// # Panics
    /// If `rows` is not a whole number of tokens, or `dim` is smaller than the rotated part.
    pub fn rotate(&self, rows: &mut [f32], heads: usize, dim: usize, first_position: usize) {
        assert!(rows.len().is_multiple_of(heads * dim), "ragged rows");
        assert!(dim >= 2 * self.frequencies.len(), "the head is smaller than its rotated part");
        let mut turns = vec![(0.0f32, 0.0f32); self.frequencies.len()];
        for (token, row) in rows.chunks_exact_mut(heads * dim).enumerate() {
            // In f64: at position 10^6 an f32 angle is off by more than 0.01 radians.
            let position = (first_position + token) as f64;
            for (turn, frequency) in turns.iter_mut().zip(&self.frequencies) {
                let (sine, cosine) = (position * frequency).sin_cos();
                *turn = (sine as f32, cosine as f32);
            }
            for head in row.chunks_exact_mut(dim) {
                for (pair, &(sine, cosine)) in head.chunks_exact_mut(2).zip(&turns) {
                    let (even, odd) = (pair[0], pair[1]);
                    pair[0] = even * cosine - odd * sine;
                    pair[1] = even * sine + odd * cosine;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_position_and_frequency() {
        // Two tokens from position 3, two heads of dimension 6, of which 4 turn; base 100: frequencies 1 and 0.1.
        let rotary = Rotary::new(100.0, 4, None);
        let original: Vec<f32> = (0..24).map(|i| i as f32 * 0.5 - 3.0).collect();
        let mut rows = original.clone();
        rotary.rotate(&mut rows, 2, 6, 3);
        for (token, position) in [(0, 3.0f64), (1, 4.0)] {
            for head in 0..2 {
                let at = (token * 2 + head) * 6;
                for (pair, frequency) in [(0, 1.0f64), (1, 0.1)] {
                    let (even, odd) =
                        (f64::from(original[at + 2 * pair]), f64::from(original[at + 2 * pair + 1]));
                    let (sine, cosine) = (position * frequency).sin_cos();
                    assert!((f64::from(rows[at + 2 * pair]) - (even * cosine - odd * sine)).abs() < 1e-5);
                    assert!((f64::from(rows[at + 2 * pair + 1]) - (even * sine + odd * cosine)).abs() < 1e-5);
                }
                assert_eq!(rows[at + 4..at + 6], original[at + 4..at + 6], "the rest of the head stays");
            }
        }
    }

    #[test]
    fn divisors_slow_their_pair_down() {
        let mut rows = [1.0, 0.0, 1.0, 0.0];
        Rotary::new(1.0, 4, Some(&[2.0, 8.0])).rotate(&mut rows, 1, 4, 4);
        let expected = [2.0f32.cos(), 2.0f32.sin(), 0.5f32.cos(), 0.5f32.sin()];
        for (found, expected) in rows.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{rows:?}");
        }
    }

    #[test]
    fn dot_products_depend_on_the_distance_alone() {
        let rotary = Rotary::new(10_000.0, 8, None);
        let (query, key) =
            ([0.3f32, -1.0, 0.7, 0.2, 1.1, 0.4, -0.6, 0.9], [1.0f32, 0.5, -0.2, 0.8, 0.1, -0.7, 0.6, 0.3]);
        let product = |query_at, key_at| {
            let (mut query, mut key) = (query, key);
            rotary.rotate(&mut query, 1, 8, query_at);
            rotary.rotate(&mut key, 1, 8, key_at);
            query.iter().zip(&key).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((product(25, 7) - product(100_018, 100_000)).abs() < 1e-4);
        assert!((product(25, 7) - product(25, 8)).abs() > 1e-2);
    }
}
