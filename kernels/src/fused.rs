//! Fused exact attention: scores, weights and values of sixteen rows while they are in the first-level cache.

use crate::isa::Kernels;
use crate::rows::{Ahead, BLOCK_ROWS, Matrix, Pick, Rows};
use crate::score::check_heads;
use crate::state::{AttentionState, Parts};

/// Rows that are summed by themselves before they are merged into the state, so that over any length rounding grows
/// with the number of spans.
const SPAN_ROWS: usize = 64 * BLOCK_ROWS;

impl Kernels {
    /// Exact attention: the state takes in every row, with score `query[head] · keys[row]`, capped to
    /// `cap * tanh(score / cap)` where there is a `softcap`.
    ///
    /// `queries` is `[heads, key_dim]`, already scaled; `keys` and `values` have the same number of rows. `scratch` is
    /// working memory, enlarged where it is too short; what it holds does not matter.
    ///
    /// Calls that split the rows at multiples of 1024 give the same bits as one call; other splits the same up to
    /// rounding.
    ///
    /// # Panics
    /// If a shape does not fit: dimensions, the state's heads, whole rows, as many keys as values.
    #[expect(clippy::too_many_arguments, reason = "one attention call; a struct would only rename them")]
    pub fn attend_rows(
        &self,
        state: &mut AttentionState,
        queries: &[f32],
        key_dim: usize,
        keys: Rows<'_>,
        values: Rows<'_>,
        softcap: Option<f32>,
        scratch: &mut Vec<f32>,
    ) {
        let keys = Matrix::new(keys, key_dim, Pick::All);
        let values = Matrix::new(values, state.value_dim(), Pick::All);
        self.attend(state, queries, keys, values, softcap, scratch);
    }

    /// Like [`Kernels::attend_rows`], over the listed rows of keys and values, in the order of the list.
    ///
    /// # Panics
    /// As [`Kernels::attend_rows`]; and, before anything is touched, if an index is out of range.
    #[expect(clippy::too_many_arguments, reason = "one attention call; a struct would only rename them")]
    pub fn attend_gathered(
        &self,
        state: &mut AttentionState,
        queries: &[f32],
        key_dim: usize,
        keys: Rows<'_>,
        values: Rows<'_>,
        indices: &[u32],
        softcap: Option<f32>,
        scratch: &mut Vec<f32>,
    ) {
        let keys = Matrix::new(keys, key_dim, Pick::Listed(indices));
        let values = Matrix::new(values, state.value_dim(), Pick::Listed(indices));
        self.attend(state, queries, keys, values, softcap, scratch);
    }

    fn attend(
        &self,
        state: &mut AttentionState,
        queries: &[f32],
        keys: Matrix<'_>,
        values: Matrix<'_>,
        softcap: Option<f32>,
        scratch: &mut Vec<f32>,
    ) {
        let heads = state.heads();
        check_heads(heads, queries.len(), keys.dim(), "queries");
        assert!(keys.len() == values.len(), "{} keys for {} values", keys.len(), values.len());
        let lengths = [BLOCK_ROWS * heads, heads, heads, heads, heads * values.dim()];
        let needed = lengths.iter().sum();
        if scratch.len() < needed {
            scratch.resize(needed, 0.0);
        }
        let (scores, rest) = scratch.split_at_mut(lengths[0]);
        let (max, rest) = rest.split_at_mut(heads);
        let (sum, rest) = rest.split_at_mut(heads);
        let (risen, rest) = rest.split_at_mut(heads);
        let mut span = Parts { max, sum, risen, output: &mut rest[..lengths[4]] };

        let mut next = keys.first().zip(values.first());
        let mut start = 0;
        span.reset();
        while let Some((key_block, value_block)) = next {
            let scores = &mut scores[..key_block.count * heads];
            next = keys.after(start).zip(values.after(start));
            let (during_scores, during_values) = match (&next, keys.is_listed()) {
                (Some((keys, values)), true) => Ahead::halves(keys, values),
                (Some((keys, _)), false) => (Ahead::whole(&value_block), Ahead::whole(keys)),
                (None, _) => (Ahead::whole(&value_block), Ahead::NOTHING),
            };
            (self.score)(queries, heads, &key_block, during_scores, scores);
            if let Some(cap) = softcap {
                self.softcap(scores, cap);
            }
            span.weigh(self, scores, None);
            (self.accumulate)(scores, heads, &value_block, during_values, span.output);
            start += BLOCK_ROWS;
            if start % SPAN_ROWS == 0 || next.is_none() {
                state.parts().merge(span.max, span.sum, span.output);
                span.reset();
            }
        }
    }
}
