//! Fused exact attention: scores, weights and values of sixteen rows while they are in the first-level cache.

use crate::block::{Ahead, BLOCK_ROWS};
use crate::isa::Kernels;
use crate::rows::{Matrix, Pick, Rows};
use crate::score::check_heads;
use crate::state::{AttentionState, Parts};
use crate::weigh::{LANE_HEADS, LaneSums};

/// Rows that are summed by themselves before they are merged into the state, so that over any length rounding grows
/// with the number of spans.
const SPAN_ROWS: usize = 64 * BLOCK_ROWS;

/// Rows from which on it pays to ask for more than the next block.
const LEAD_ROWS: usize = 16 * BLOCK_ROWS;

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
        let (scores, aligned_queries, mut span) = divide(scratch, heads, queries.len(), values.dim());
        // A copy that begins with a cache line: half of the loads from queries at any other place would straddle two.
        aligned_queries.copy_from_slice(queries);
        let queries = &*aligned_queries;

        let listed = keys.is_listed();
        // In a short run too much would be asked for too late.
        let lead = if keys.len() < LEAD_ROWS { 0 } else { self.lead };
        let mut next = keys.from(0).zip(values.from(0));
        let mut start = 0;
        span.reset();
        let mut lanes = LaneSums::new();
        while let Some((key_block, value_block)) = next {
            let scores = &mut scores[..key_block.count * heads];
            next = keys.from(start + BLOCK_ROWS).zip(values.from(start + BLOCK_ROWS));
            // Values are asked for while scores are computed, and the keys of the block after them while these are summed.
            let asked = start + lead * BLOCK_ROWS;
            let (during_scores, during_values) = match &next {
                Some((keys, values)) if listed => Ahead::halves(keys, values),
                None if listed => (Ahead::whole(&value_block), Ahead::NOTHING),
                _ => (values.ahead_at(asked), keys.ahead_at(asked + BLOCK_ROWS)),
            };
            (self.score)(queries, heads, &key_block, during_scores, scores);
            if let Some(cap) = softcap {
                self.softcap(scores, cap);
            }
            if heads <= LANE_HEADS {
                lanes.weigh(self, scores, &mut span);
            } else {
                span.weigh(self, scores, None);
            }
            (self.accumulate)(scores, heads, &value_block, during_values, span.output);
            start += BLOCK_ROWS;
            if start.is_multiple_of(SPAN_ROWS) || next.is_none() {
                lanes.fold(&mut span);
                state.parts().merge(span.max, span.sum, span.output);
                span.reset();
                lanes = LaneSums::new();
            }
        }
    }
}

/// Divides working memory into a block's scores, a copy of the queries and the parts of a span, each of which begins
/// with a cache line.
fn divide(
    scratch: &mut Vec<f32>,
    heads: usize,
    queries: usize,
    value_dim: usize,
) -> (&mut [f32], &mut [f32], Parts<'_>) {
    const LINE: usize = 64 / size_of::<f32>();
    let lengths = [BLOCK_ROWS * heads, queries, heads * value_dim, heads, heads, heads];
    let padded = lengths.map(|length| length.next_multiple_of(LINE));
    let needed = LINE + padded.iter().sum::<usize>();
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    let start = scratch.as_ptr().align_offset(64).min(LINE);
    let mut rest = &mut scratch[start..];
    let [scores, queries, output, max, sum, risen] = std::array::from_fn(|part| {
        let (taken, left) = std::mem::take(&mut rest).split_at_mut(padded[part]);
        rest = left;
        &mut taken[..lengths[part]]
    });
    (scores, queries, Parts { max, sum, output, risen })
}
