//! Conversion between the stored types and `f32`.

use half::{bf16, f16};

use crate::isa::Kernels;
use crate::lanes::EightLanes;
use crate::rows::{Element, Rows};

impl Kernels {
    /// Widens every element; exact. A binary16 that is not a number becomes quiet.
    ///
    /// # Panics
    /// If `out` is not as long as `rows`.
    pub fn widen(&self, rows: Rows<'_>, out: &mut [f32]) {
        check_lengths(rows.len(), out.len());
        (self.widen)(rows, out);
    }

    /// Narrows to binary16: to nearest, ties to even; too large becomes infinite.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn narrow_f16(&self, from: &[f32], to: &mut [f16]) {
        check_lengths(from.len(), to.len());
        (self.narrow_f16)(from, to);
    }

    /// Narrows to bfloat16: to nearest, ties to even; too large becomes infinite.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn narrow_bf16(&self, from: &[f32], to: &mut [bf16]) {
        check_lengths(from.len(), to.len());
        (self.narrow_bf16)(from, to);
    }
}

#[track_caller]
fn check_lengths(from: usize, to: usize) {
    assert!(from == to, "cannot convert {from} elements into {to}");
}

#[inline(always)]
pub(crate) fn widen<L: EightLanes>(isa: L, rows: Rows<'_>, out: &mut [f32]) {
    match rows {
        Rows::F16(elements) => widen_elements(isa, elements, f16::ZERO, out),
        Rows::Bf16(elements) => widen_elements(isa, elements, bf16::ZERO, out),
        Rows::F32(elements) => out.copy_from_slice(elements),
    }
}

#[inline(always)]
fn widen_elements<L: EightLanes, T: Element>(isa: L, elements: &[T], zero: T, out: &mut [f32]) {
    let (vectors, rest) = elements.as_chunks::<8>();
    let (out, out_rest) = out.as_chunks_mut::<8>();
    for (from, to) in vectors.iter().zip(out) {
        isa.store(T::load(isa, from), to);
    }
    let (mut from, mut to) = ([zero; 8], [0.0; 8]);
    from[..rest.len()].copy_from_slice(rest);
    isa.store(T::load(isa, &from), &mut to);
    out_rest.copy_from_slice(&to[..rest.len()]);
}

macro_rules! narrow {
    ($name:ident, $type:ident, $store:ident) => {
        #[inline(always)]
        pub(crate) fn $name<L: EightLanes>(isa: L, from: &[f32], to: &mut [$type]) {
            let (vectors, rest) = from.as_chunks::<8>();
            let (to, to_rest) = to.as_chunks_mut::<8>();
            for (from, to) in vectors.iter().zip(to) {
                isa.$store(isa.load(from), to);
            }
            let (mut from, mut to) = ([0.0; 8], [$type::ZERO; 8]);
            from[..rest.len()].copy_from_slice(rest);
            isa.$store(isa.load(&from), &mut to);
            to_rest.copy_from_slice(&to[..rest.len()]);
        }
    };
}

narrow!(narrow_f16, f16, store_f16);
narrow!(narrow_bf16, bf16, store_bf16);
