//! Squared norms of rows in 4 bits.

use half::f16;

use super::forms::{Codes, Form, Pairs, Records};
use crate::isa::Kernels;
use crate::lanes::EightLanes;
use crate::rows::DIM_STEP;

impl Kernels {
    /// `norms[row] = Σ_i (factor[row] * level[row][i] * sigma[i] + add[i])²` for every coded row: the squared norm of what
    /// [`decode4`](crate::codec::decode4) makes of it, moved by `add`.
    ///
    /// # Panics
    /// If the dimension, that of `sigma`, is not supported, `add` is not as long, `records` are not whole records of
    /// [`encode4`](crate::codec::encode4), or `norms` is not one number for each.
    pub fn squared_norms4(&self, sigma: &[f32], add: &[f32], records: &[u8], norms: &mut [f32]) {
        let records = Records::new(records, sigma.len(), Form::Pairs, None);
        assert!(add.len() == sigma.len(), "{} numbers to add to rows of {}", add.len(), sigma.len());
        assert!(norms.len() == records.len, "{} norms of {} rows", norms.len(), records.len);
        (self.squared_norms4)(sigma, add, records, norms);
    }
}

/// Eight rows at a time: their sums are added up together.
#[inline(always)]
pub(crate) fn squared_norms4<L: EightLanes>(
    isa: L,
    sigma: &[f32],
    add: &[f32],
    records: Records<'_>,
    norms: &mut [f32],
) {
    let (sigma, add) = (sigma.as_chunks::<DIM_STEP>().0, add.as_chunks::<DIM_STEP>().0);
    for (part, norms) in norms.chunks_mut(8).enumerate() {
        let mut sums = [isa.splat(0.0); 8];
        for (row, sum) in sums.iter_mut().enumerate().take(norms.len()) {
            let (codes, factor) = Pairs::of(records.record(part * 8 + row), records.dim);
            let factor = isa.splat(f16::from_le_bytes(factor).to_f32_const());
            for v in 0..sigma.len() {
                let scale = isa.mul(factor, isa.load(&sigma[v]));
                let x = isa.mul_add(codes.load(isa, v), scale, isa.load(&add[v]));
                *sum = isa.mul_add(x, x, *sum);
            }
        }
        isa.store_first(isa.sum_each(sums), norms);
    }
}
