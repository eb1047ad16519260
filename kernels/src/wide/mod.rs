//! Sixteen lanes: bodies of the kernels that read rows, for instruction sets with vectors as wide and registers enough.
//!
//! They are the same operations as in [`score`](crate::score) and [`accumulate`](crate::accumulate). With twice the lanes and the registers a block of
//! sixteen rows takes other shapes: sixteen accumulators, and loops with room for prefetches.

mod accumulate;
mod score;

pub(crate) use accumulate::accumulate_block;
use half::{bf16, f16};
pub(crate) use score::score_block;

use crate::lanes::Lanes;
use crate::rows::Element;

/// Sixteen lanes beside eight on one instruction set, of which a value of the implementing type is the proof.
pub(crate) trait Wide: Lanes<16> {
    /// Eight lanes on the same processor.
    type Eight: Lanes;

    fn eight(self) -> Self::Eight;
    /// Eight lanes, with zeros in the upper eight.
    fn above_zeros(self, x: <Self::Eight as Lanes>::V) -> Self::V;
    /// The lower eight lanes.
    fn lower(self, x: Self::V) -> <Self::Eight as Lanes>::V;
}

/// An element type that a kernel can load sixteen of.
pub(crate) trait WideElement: Element {
    fn load_wide<I: Wide>(isa: I, elements: &[Self; 16]) -> I::V;

    /// Vector `w` of sixteen elements of a row; of its last eight alone, with zeros behind, where there are no more.
    #[inline(always)]
    fn load_of<I: Wide>(isa: I, row: &[[Self; 8]], w: usize) -> I::V {
        match row.as_flattened().as_chunks().0.get(w) {
            Some(elements) => Self::load_wide(isa, elements),
            None => isa.above_zeros(Self::load(isa.eight(), &row[2 * w])),
        }
    }
}

impl WideElement for f16 {
    #[inline(always)]
    fn load_wide<I: Wide>(isa: I, elements: &[f16; 16]) -> I::V {
        isa.load_f16(elements)
    }
}

impl WideElement for bf16 {
    #[inline(always)]
    fn load_wide<I: Wide>(isa: I, elements: &[bf16; 16]) -> I::V {
        isa.load_bf16(elements)
    }
}

impl WideElement for f32 {
    #[inline(always)]
    fn load_wide<I: Wide>(isa: I, elements: &[f32; 16]) -> I::V {
        isa.load(elements)
    }
}
