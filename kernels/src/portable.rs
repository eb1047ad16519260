//! The kernels for every processor: the portable body as the compiler makes it.

use half::{bf16, f16};

use crate::isa::{Isa, Kernels};
use crate::lanes::Portable;
use crate::rows::{Ahead, Block, Rows};
use crate::{accumulate, convert, exp, score};

macro_rules! shells {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:path;)*) => {$(
        fn $name($($arg: $type),*) {
            $body(Portable, $($arg),*);
        }
    )*};
}

shells! {
    fn score(queries: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, scores: &mut [f32])
        = score::score_block;
    fn accumulate(weights: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, out: &mut [f32])
        = accumulate::accumulate_block;
    fn max_per_head(scores: &[f32], heads: usize, max: &mut [f32]) = exp::max_per_head;
    fn exp_weights(scores: &mut [f32], heads: usize, shift: &[f32], sums: &mut [f32]) = exp::exp_weights;
    fn softcap(scores: &mut [f32], cap: f32) = exp::softcap;
    fn widen(rows: Rows<'_>, out: &mut [f32]) = convert::widen;
    fn narrow_f16(from: &[f32], to: &mut [f16]) = convert::narrow_f16;
    fn narrow_bf16(from: &[f32], to: &mut [bf16]) = convert::narrow_bf16;
}

pub(crate) fn kernels() -> &'static Kernels {
    static KERNELS: Kernels = Kernels {
        isa: Isa::Portable,
        score,
        accumulate,
        max_per_head,
        exp_weights,
        softcap,
        widen,
        narrow_f16,
        narrow_bf16,
    };
    &KERNELS
}
