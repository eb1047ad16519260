//! Arithmetic of Longwave.
//!
//! Every operation is written once, over eight lanes of `f32` or over either eight or sixteen, and compiled once for each instruction
//! set behind a thin shell; those that read rows are written for sixteen lanes by themselves. [`Kernels`] is the table of them that is chosen when the
//! process first asks. Rows are read in the type
//! they are stored in (f16, bf16, f32); arithmetic is in `f32`. [`oracle`] has the same operations in `f64`, with
//! bounds on how far the kernels may be off.
//!
//! Layouts, everywhere: queries and outputs `[head][dim]`, scores and weights `[row][head]`, rows `[row][dim]`, all
//! contiguous. Logarithms are natural.

mod accumulate;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics need it; the module says what safety rests on")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics need it; the module says what safety rests on")]
mod avx512;
mod block;
pub mod codec;
mod convert;
mod dtype;
mod exp;
mod fused;
mod isa;
pub mod ladder;
mod lanes;
pub mod oracle;
mod portable;
mod rows;
mod score;
#[cfg(target_arch = "x86_64")]
mod shells;
mod state;
mod weigh;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use half::{bf16, f16};

pub use crate::codec::rotate;
pub use crate::dtype::{Dtype, UnknownDtype};
pub use crate::isa::{Isa, IsaError, Kernels};
pub use crate::rows::{DIM_MAX, DIM_STEP, Rows, is_supported_dim};
pub use crate::state::AttentionState;
