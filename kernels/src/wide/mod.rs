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

/// Sixteen lanes of `f32` on one instruction set, of which a value of the implementing type is the proof; see [`Lanes`].
pub(crate) trait Wide: Copy {
    /// The sixteen lanes.
    type W: Copy;
    /// Eight lanes on the same processor.
    type Eight: Lanes;

    fn eight(self) -> Self::Eight;
    fn splat(self, x: f32) -> Self::W;
    fn load(self, from: &[[f32; 8]; 2]) -> Self::W;
    fn load_f16(self, from: &[[f16; 8]; 2]) -> Self::W;
    fn load_bf16(self, from: &[[bf16; 8]; 2]) -> Self::W;
    fn store(self, x: Self::W, to: &mut [[f32; 8]; 2]);
    /// Eight lanes, with zeros in the upper eight.
    fn above_zeros(self, x: <Self::Eight as Lanes>::V) -> Self::W;
    /// The lower eight lanes.
    fn lower(self, x: Self::W) -> <Self::Eight as Lanes>::V;
    fn add(self, a: Self::W, b: Self::W) -> Self::W;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// The sum over the lanes of each of sixteen vectors, every one in the same order of additions.
    fn sum_each(self, x: [Self::W; 16]) -> Self::W;
}

/// An element type that a kernel can load sixteen of.
pub(crate) trait WideElement: crate::rows::Element {
    fn load_wide<I: Wide>(isa: I, elements: &[[Self; 8]; 2]) -> I::W;

    /// Vector `w` of sixteen elements of a row; of its last eight alone, with zeros behind, where there are no more.
    #[inline(always)]
    fn load_of<I: Wide>(isa: I, row: &[[Self; 8]], w: usize) -> I::W {
        let (pairs, odd) = row.as_chunks::<2>();
        match pairs.get(w) {
            Some(pair) => Self::load_wide(isa, pair),
            None => isa.above_zeros(Self::load(isa.eight(), &odd[0])),
        }
    }
}

impl WideElement for f16 {
    #[inline(always)]
    fn load_wide<I: Wide>(isa: I, elements: &[[f16; 8]; 2]) -> I::W {
        isa.load_f16(elements)
    }
}

impl WideElement for bf16 {
    #[inline(always)]
    fn load_wide<I: Wide>(isa: I, elements: &[[bf16; 8]; 2]) -> I::W {
        isa.load_bf16(elements)
    }
}

impl WideElement for f32 {
    #[inline(always)]
    fn load_wide<I: Wide>(isa: I, elements: &[[f32; 8]; 2]) -> I::W {
        isa.load(elements)
    }
}
