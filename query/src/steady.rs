//! The rows that are read one by one whatever the budget, for callers that answer the rest elsewhere.

use crate::error::Error;
use crate::view::{LayerSegment, LayerView, QueryBatch};
use crate::work::{HeadQueries, Source, pieces, read_piece};
use longwave_kernels::{AttentionState, Kernels};

/// What stands for the rows of a segment that are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summaries {
    /// The index at full resolution, which the method `retroinfer` reads.
    Index,
    /// The ladder.
    Ladder,
}

/// The segments of a layer, in its order.
#[derive(Clone, Debug)]
pub struct Divided<'a> {
    /// Segments whose summaries may stand for their rows.
    pub summarised: Vec<&'a LayerSegment>,
    /// Segments that are read row by row: a query sees only a part of them, or has rows of them in its window, or they have no
    /// summaries of the kind.
    pub plain: Vec<&'a LayerSegment>,
}

impl<'a> LayerView<'a> {
    /// Divides the segments for queries of which the oldest stands at position `oldest`.
    ///
    /// # Errors
    /// [`Error::Storage`] when an index cannot be read or is corrupt.
    pub fn divided(&self, oldest: u64, summaries: Summaries) -> Result<Divided<'a>, Error> {
        let mut divided = Divided { summarised: Vec::new(), plain: Vec::new() };
        for &segment in &self.segments {
            let stand = self.summaries_hold(segment, oldest)
                && match summaries {
                    Summaries::Index => segment.index()?.is_some(),
                    Summaries::Ladder => segment.ladder()?.is_some(),
                };
            if stand { divided.summarised.push(segment) } else { divided.plain.push(segment) }
        }
        Ok(divided)
    }
}

/// Reads the rows of `plain` segments and of the tail for one query position (an index into the batch) and KV head, with the
/// causal mask and the sliding window. Learned sink logits are left to the caller.
///
/// # Errors
/// [`Error::Storage`] when rows cannot be read or are corrupt.
///
/// # Panics
/// If there is no such position or head.
pub fn read_steady(
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    plain: &[&LayerSegment],
    (position, kv_head): (usize, usize),
) -> Result<AttentionState, Error> {
    let kernels = Kernels::get();
    let mine = HeadQueries::gather(view, queries, kv_head, position..position + 1);
    let mut state = AttentionState::new(mine.heads, view.shape.value_dim);
    let mut scratch = Vec::new();
    let segments = plain.iter().flat_map(|segment| pieces(kv_head, Source::Segment(segment)));
    for piece in segments.chain(view.blocks.iter().flat_map(|block| pieces(kv_head, Source::Block(block)))) {
        read_piece(kernels, view, &mine, &piece, &mut state, &mut scratch)?;
    }
    Ok(state)
}
