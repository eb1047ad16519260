//! Sixteen lanes: bodies of the kernels that read rows, for instruction sets with vectors as wide and registers enough.
//!
//! They are the same operations as in [`score`](crate::score) and [`accumulate`](crate::accumulate). With twice the lanes and the registers a block of
//! sixteen rows takes other shapes: sixteen accumulators, and loops with room for prefetches.

mod accumulate;
mod score;

pub(crate) use accumulate::sum_group;
pub(crate) use score::{ROWS, score_group, totals};

use crate::codec::Scanning;
use crate::lanes::Lanes;
use crate::rows::Element;

/// Sixteen lanes beside eight on one instruction set, of which a value of the implementing type is the proof.
pub(crate) trait Wide: Scanning<16> {
    /// Eight lanes, with zeros in the upper eight.
    fn above_zeros(self, x: <Self::Eight as Lanes>::V) -> Self::V;
    /// The lower eight lanes.
    fn lower(self, x: Self::V) -> <Self::Eight as Lanes>::V;
}

/// Vector `w` of sixteen elements of a row; of its last eight alone, with zeros behind, where there are no more.
#[inline(always)]
pub(crate) fn load_of<I: Wide, T: Element>(isa: I, row: &[[T; 8]], w: usize) -> I::V {
    match row.as_flattened().as_chunks().0.get(w) {
        Some(elements) => T::load(isa, elements),
        None => isa.above_zeros(T::load(isa.eight(), &row[2 * w])),
    }
}
