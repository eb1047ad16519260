//! Rows in 4 bits an element.

use half::f16;

use super::levels::{LEVELS4, nearest};
use crate::rows::{DIM_STEP, is_supported_dim};

/// Bytes of the record of a row of `dim` elements.
pub const fn record_len(dim: usize) -> usize {
    dim / 2 + 2
}

/// Panics where a row or its scales are not of one supported dimension.
#[track_caller]
pub(super) fn check_dim(dim: usize, sigma: &[f32]) {
    assert!(is_supported_dim(dim), "dimension {dim} is not supported");
    assert!(sigma.len() == dim, "expected {dim} scales, found {}", sigma.len());
}

/// Codes the row `z` with the scales `sigma`, which are positive, into `record`.
///
/// The codes are the nearest levels after the row has been brought to unit mean square, in units of `sigma`. With
/// `least_squares` the factor is the one that leaves the least squared error; it shrinks the row. Without, the coded row
/// has the same product with the row as the row itself, so that scores along the row are kept, with the factor capped
/// at three times the root mean square. A factor beyond what a binary16 holds takes its largest; a row of zeros has
/// factor 0, and so has a row with an element that is not finite.
///
/// # Panics
/// If the dimension is not supported, or the lengths do not fit it.
pub fn encode4(z: &[f32], sigma: &[f32], least_squares: bool, record: &mut [u8]) {
    check_dim(z.len(), sigma);
    assert!(record.len() == record_len(z.len()), "a record of {} bytes for {}", record.len(), z.len());
    let (codes, factor) = record.split_at_mut(z.len() / 2);
    let rms = root_mean_square(z, sigma);
    let mut sums = Sums::default();
    let (rows, _) = z.as_chunks::<DIM_STEP>();
    let (scales, _) = sigma.as_chunks::<DIM_STEP>();
    let (codes, _) = codes.as_chunks_mut::<4>();
    for ((z, sigma), codes) in rows.iter().zip(scales).zip(codes) {
        let nearest = nearest(4, &normalised(z, sigma, rms));
        for (pair, byte) in codes.iter_mut().enumerate() {
            *byte = nearest[2 * pair] | nearest[2 * pair + 1] << 4;
        }
        for lane in 0..DIM_STEP {
            sums.add(lane, z[lane], sigma[lane] * LEVELS4[usize::from(nearest[lane])]);
        }
    }
    let exact = if least_squares { sums.least_squares() } else { sums.same_product().min(3.0 * rms) };
    let stored = if exact.is_finite() { f16::from_f64(exact.min(f16::MAX.to_f64())) } else { f16::ZERO };
    factor.copy_from_slice(&stored.to_le_bytes());
}

/// Decodes a record of [`encode4`] with the same scales.
///
/// # Panics
/// If the dimension, that of `out`, is not supported, or the lengths do not fit it.
pub fn decode4(record: &[u8], sigma: &[f32], out: &mut [f32]) {
    check_dim(out.len(), sigma);
    assert!(record.len() == record_len(out.len()), "a record of {} bytes for {}", record.len(), out.len());
    let (codes, factor) = record.split_at(out.len() / 2);
    let factor = f16::from_le_bytes([factor[0], factor[1]]).to_f32();
    let (pairs, _) = out.as_chunks_mut::<2>();
    let (scales, _) = sigma.as_chunks::<2>();
    for ((pair, sigma), byte) in pairs.iter_mut().zip(scales).zip(codes) {
        pair[0] = factor * sigma[0] * LEVELS4[usize::from(byte & 15)];
        pair[1] = factor * sigma[1] * LEVELS4[usize::from(byte >> 4)];
    }
}

/// Root mean square of `z / sigma`; a floor keeps it from 0.
#[inline(always)]
pub(super) fn root_mean_square(z: &[f32], sigma: &[f32]) -> f64 {
    let mut squares = [0.0f64; DIM_STEP];
    let (rows, rest) = z.as_chunks::<DIM_STEP>();
    let (scales, rest_scales) = sigma.as_chunks::<DIM_STEP>();
    for (z, sigma) in rows.iter().zip(scales) {
        for lane in 0..DIM_STEP {
            let x = f64::from(z[lane]) / f64::from(sigma[lane]);
            squares[lane] += x * x;
        }
    }
    for ((square, z), sigma) in squares.iter_mut().zip(rest).zip(rest_scales) {
        let x = f64::from(*z) / f64::from(*sigma);
        *square += x * x;
    }
    (squares.iter().sum::<f64>() / z.len().max(1) as f64).max(1e-18).sqrt()
}

/// Eight elements in units of sigma and `unit`, which is as a rule the row's root mean square.
#[inline(always)]
pub(super) fn normalised(z: &[f32; 8], sigma: &[f32; 8], unit: f64) -> [f32; 8] {
    let mut x = [0.0; 8];
    for (x, (z, sigma)) in x.iter_mut().zip(z.iter().zip(sigma)) {
        *x = (f64::from(*z) / (f64::from(*sigma) * unit)) as f32;
    }
    x
}

/// What a factor follows from, summed in lanes so that it vectorises.
#[derive(Default)]
pub(super) struct Sums {
    row: [f64; 8],
    product: [f64; 8],
    coded: [f64; 8],
}

impl Sums {
    /// Adds an element of the row and the one that it is coded as under a factor of 1.
    #[inline(always)]
    pub(super) fn add(&mut self, lane: usize, row: f32, coded: f32) {
        let (row, coded) = (f64::from(row), f64::from(coded));
        self.row[lane] += row * row;
        self.product[lane] += row * coded;
        self.coded[lane] += coded * coded;
    }

    /// The factor that leaves the least squared error.
    #[inline(always)]
    pub(super) fn least_squares(&self) -> f64 {
        ratio(self.product.iter().sum(), self.coded.iter().sum())
    }

    /// The factor that keeps the row's product with itself.
    fn same_product(&self) -> f64 {
        ratio(self.row.iter().sum(), self.product.iter().sum())
    }
}

#[inline(always)]
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}
