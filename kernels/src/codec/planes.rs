//! Codes of rows in two planes of 2 bits an element, of which the first may be read alone.

use half::f16;

use super::code4::{Sums, check_dim, normalised, record_len, root_mean_square};
use super::levels::{HALF_LEVELS4, LEVELS4, nearest};
use crate::isa::Kernels;
use crate::lanes::{EightLanes, Portable};
use crate::rows::DIM_STEP;

/// How much of a row's code is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The first plane: 2 bits an element.
    Half,
    /// Both planes: 4 bits an element.
    Whole,
}

impl Depth {
    /// Bytes of a record of a row of `dim` elements that are read, from its first.
    pub const fn len(self, dim: usize) -> usize {
        match self {
            Depth::Half => dim / 4 + 2,
            Depth::Whole => record_len(dim),
        }
    }

    /// Mean squared error that is left of a Gaussian of unit variance.
    pub const fn distortion(self) -> f32 {
        match self {
            Depth::Half => 0.1203,
            Depth::Whole => 0.0095,
        }
    }
}

/// Codes the row `z` with the scales `sigma`, which are positive, into `record`, of [`record_len`] bytes.
///
/// The codes are the nearest levels after the row has been brought to unit mean square, in units of `sigma`, or to less
/// where elements far beyond the levels would be cut off; the factor
/// is the one that leaves the least squared error where the whole code is read. A factor beyond what a binary16 holds
/// takes its largest; a row of zeros has factor 0, and so has a row with an element that is not finite.
///
/// # Panics
/// If the dimension is not supported, or the lengths do not fit it.
pub fn encode_planes(z: &[f32], sigma: &[f32], record: &mut [u8]) {
    let dim = z.len();
    check_dim(dim, sigma);
    assert!(record.len() == record_len(dim), "a record of {} bytes for {dim}", record.len());
    encode_rows(Portable, z, sigma, record);
}

impl Kernels {
    /// [`encode_planes`] of rows of as many elements as there are scales, `[rows, dim]`, one record behind the other. The
    /// same bits on every instruction set.
    ///
    /// # Panics
    /// As [`encode_planes`]; if `rows` are not whole rows.
    pub fn encode_planes(&self, rows: &[f32], sigma: &[f32], records: &mut [u8]) {
        let dim = sigma.len();
        check_dim(dim, sigma);
        let count = rows.len() / dim;
        assert!(rows.len() == count * dim, "{} elements are not whole rows of {dim}", rows.len());
        assert!(records.len() == count * record_len(dim), "{} bytes for {count} records", records.len());
        (self.encode_planes)(rows, sigma, records);
    }
}

/// The body of [`Kernels::encode_planes`], whose checks hold.
#[inline(always)]
pub(crate) fn encode_rows<L: EightLanes>(isa: L, rows: &[f32], sigma: &[f32], records: &mut [u8]) {
    let dim = sigma.len();
    for (z, record) in rows.chunks_exact(dim).zip(records.chunks_exact_mut(record_len(dim))) {
        let (factor, planes) = record.split_at_mut(2);
        factor.copy_from_slice(&encode_row(isa, z, sigma, planes).to_le_bytes());
    }
}

/// Where the largest element of a row is beyond this, in units of its root mean square, wider units are tried: the outermost of the 16
/// levels is at 2.7, and what is cut off of an element is no noise that the row's factor tells of.
const PEAK_MAX: f64 = 3.2;
/// Each unit tried is the one before times this, ...
const WIDER: f64 = 1.25;
/// ... until the largest element is no more than this, well within the levels.
const PEAK_LEAST: f64 = 2.0;
/// Mean squared error of an element between the levels, in units of these.
const BETWEEN_LEVELS: f32 = 0.007;

/// The unit, beside sigma, that the levels of a row are multiples of: its root mean square, or a wider one in which less is expected
/// to be left of a row with elements beyond all levels.
#[inline(always)]
fn best_unit(z: &[f32], sigma: &[f32]) -> f64 {
    let mut unit = root_mean_square(z, sigma);
    let (mut best, peak) = (unit, f64::from(peak(z, sigma)));
    // A row that is not finite is coded as nothing in any unit.
    if peak > PEAK_MAX * unit && peak.is_finite() {
        let mut least = expected_left(z, sigma, unit as f32);
        while peak > PEAK_LEAST * unit {
            unit *= WIDER;
            let left = expected_left(z, sigma, unit as f32);
            if left < least {
                (best, least) = (unit, left);
            }
        }
    }
    best
}

/// About what squared error levels in this unit leave: what is cut off, and what is left between levels. Coding the row in each unit
/// would tell, and takes many times as long.
#[inline(always)]
fn expected_left(z: &[f32], sigma: &[f32], unit: f32) -> f32 {
    let (reach, between) = (LEVELS4[15] * unit, BETWEEN_LEVELS * unit * unit);
    let mut sums = [0.0f32; DIM_STEP];
    for (z, sigma) in z.as_chunks::<DIM_STEP>().0.iter().zip(sigma.as_chunks::<DIM_STEP>().0) {
        for lane in 0..DIM_STEP {
            let over = z[lane].abs() - reach * sigma[lane];
            let over = if over > 0.0 { over } else { 0.0 };
            sums[lane] += over * over + between * sigma[lane] * sigma[lane];
        }
    }
    sums.into_iter().sum()
}

/// The largest of `z / sigma` without its sign; a NaN is passed over.
#[inline(always)]
fn peak(z: &[f32], sigma: &[f32]) -> f32 {
    let mut peaks = [0.0f32; DIM_STEP];
    for (z, sigma) in z.as_chunks::<DIM_STEP>().0.iter().zip(sigma.as_chunks::<DIM_STEP>().0) {
        for lane in 0..DIM_STEP {
            let x = z[lane].abs() / sigma[lane];
            peaks[lane] = if x > peaks[lane] { x } else { peaks[lane] };
        }
    }
    peaks.into_iter().fold(0.0, f32::max)
}

/// Codes of one row; returns its factor.
#[inline(always)]
fn encode_row<L: EightLanes>(isa: L, z: &[f32], sigma: &[f32], planes: &mut [u8]) -> f16 {
    let exact = encode_in(isa, best_unit(z, sigma), (z, sigma), planes).least_squares();
    if exact.is_finite() { f16::from_f64(exact.min(f16::MAX.to_f64())) } else { f16::ZERO }
}

/// Codes of one row in units of sigma and `unit`, and what its factor follows from.
#[inline(always)]
fn encode_in<L: EightLanes>(isa: L, unit: f64, (z, sigma): (&[f32], &[f32]), planes: &mut [u8]) -> Sums {
    let (high, low) = planes.split_at_mut(z.len() / 4);
    let mut sums = Sums::default();
    let (rows, _) = z.as_chunks::<DIM_STEP>();
    let (scales, _) = sigma.as_chunks::<DIM_STEP>();
    let planes = high.as_chunks_mut::<2>().0.iter_mut().zip(low.as_chunks_mut::<2>().0);
    for ((z, sigma), (high, low)) in rows.iter().zip(scales).zip(planes) {
        let codes = u64::from_le_bytes(nearest(4, &normalised(z, sigma, unit)));
        (*high, *low) = (gathered(codes >> 2), gathered(codes));
        let mut coded = [0.0; DIM_STEP];
        isa.store(isa.mul(isa.load(sigma), isa.load_whole(high, low)), &mut coded);
        for lane in 0..DIM_STEP {
            sums.add(lane, z[lane], coded[lane]);
        }
    }
    sums
}

/// The lowest two bits of each of eight bytes, one behind the other.
#[inline(always)]
fn gathered(bytes: u64) -> [u8; 2] {
    let pairs = bytes & 0x0303_0303_0303_0303;
    let fours = (pairs | pairs >> 6) & 0x000f_000f_000f_000f;
    let eights = (fours | fours >> 12) & 0x0000_00ff_0000_00ff;
    ((eights | eights >> 24) as u16).to_le_bytes()
}

/// Decodes a record of [`encode_planes`] with the same scales, as far as `depth` says.
///
/// # Panics
/// If the dimension, that of `out`, is not supported, or the lengths do not fit it.
pub fn decode_planes(record: &[u8], sigma: &[f32], depth: Depth, out: &mut [f32]) {
    let dim = out.len();
    check_dim(dim, sigma);
    assert!(record.len() == record_len(dim), "a record of {} bytes for {dim}", record.len());
    let (factor, planes) = record.split_at(2);
    let (high, low) = planes.split_at(dim / 4);
    let factor = f16::from_le_bytes([factor[0], factor[1]]).to_f32();
    for (i, (out, sigma)) in out.iter_mut().zip(sigma).enumerate() {
        let bits = |plane: &[u8]| usize::from(plane[i / 4] >> (i % 4 * 2) & 3);
        let level = match depth {
            Depth::Half => HALF_LEVELS4[bits(high)],
            Depth::Whole => LEVELS4[bits(high) << 2 | bits(low)],
        };
        *out = factor * sigma * level;
    }
}
