//! Sketches: about one bit a dimension of a key less its centroid.

use super::code4::{Sums, check_dim, normalised, root_mean_square};
use super::levels::{factor_code, factor_of_code, level, nearest};
use crate::isa::Kernels;
use crate::lanes::{Lanes, Portable};
use crate::rows::DIM_STEP;

/// Rows of a block of sketches.
pub const BLOCK_ROWS: usize = 32;

/// How a sketch distributes its bits, and where they lie.
///
/// The dimensions with 4 bits come first, then those with 2, then those with 1, then those with none. A row is a string
/// of half bytes: each holds the code of one 4-bit dimension, of two 2-bit dimensions (the first in the lower bits) or
/// of four 1-bit dimensions (the first in the lowest bit), and one of zeros follows where they are odd in number.
/// Byte b of a row holds half byte 2b in its low half and half byte 2b + 1 in its high half.
///
/// A cluster's record is its rows in blocks of 32; the last block has the rest.
/// A block of r rows is [`SketchLayout::bytes`] columns of r bytes, column b with byte b of every row, and then a column
/// of r logarithmic factor codes ([`factor_code`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchLayout {
    dim: usize,
    fours: usize,
    twos: usize,
    ones: usize,
}

impl SketchLayout {
    /// The layout for these bits of each dimension, or `None` where a sketch cannot have them: they must be 4, 2, 1 or
    /// 0, never ascend, with an even number of 2s and a multiple of four 1s, and be of a supported dimension.
    pub fn checked(bits: &[u8]) -> Option<SketchLayout> {
        let count = |wanted: u8| bits.iter().filter(|&&bits| bits == wanted).count();
        let layout = SketchLayout { dim: bits.len(), fours: count(4), twos: count(2), ones: count(1) };
        let known = layout.fours + layout.twos + layout.ones + count(0) == bits.len();
        let sound = known
            && crate::is_supported_dim(bits.len())
            && bits.is_sorted_by(|a, b| a >= b)
            && layout.twos.is_multiple_of(2)
            && layout.ones.is_multiple_of(4);
        sound.then_some(layout)
    }

    /// The layout for these bits of each dimension.
    ///
    /// # Panics
    /// Where [`SketchLayout::checked`] has none.
    pub fn new(bits: &[u8]) -> SketchLayout {
        SketchLayout::checked(bits).unwrap_or_else(|| panic!("no sketch has the bits {bits:?}"))
    }

    /// Dimensions, with bits or without.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Half bytes of a row that hold codes.
    pub fn nibbles(&self) -> usize {
        self.fours + self.twos / 2 + self.ones / 4
    }

    /// Bytes of a row, its factor code not counted.
    pub fn bytes(&self) -> usize {
        self.nibbles().div_ceil(2)
    }

    /// Bytes of the record of a cluster of `rows` rows.
    pub fn record_len(&self, rows: usize) -> usize {
        (self.bytes() + 1) * rows
    }

    /// Dimensions that have bits: the first so many.
    pub fn kept(&self) -> usize {
        self.fours + self.twos + self.ones
    }

    /// Bits of dimension `i`.
    pub fn bits(&self, i: usize) -> u8 {
        self.place(i).map_or(0, |place| place.bits)
    }

    /// Where the code of dimension `i` lies; `None` where it has no bits.
    #[inline]
    pub(super) fn place(&self, i: usize) -> Option<Place> {
        let (twos, ones) = (self.fours, self.fours + self.twos);
        if i < twos {
            Some(Place { bits: 4, nibble: i, shift: 0 })
        } else if i < ones {
            let i = i - twos;
            Some(Place { bits: 2, nibble: self.fours + i / 2, shift: i as u32 % 2 * 2 })
        } else if i < self.kept() {
            let i = i - ones;
            Some(Place { bits: 1, nibble: self.fours + self.twos / 2 + i / 4, shift: i as u32 % 4 })
        } else {
            None
        }
    }

    /// Half byte `nibble` of a row with these codes, which zeros follow.
    #[inline(always)]
    fn half_byte(&self, codes: &[u8], nibble: usize) -> u8 {
        if nibble < self.fours {
            return codes[nibble];
        }
        let nibble = nibble - self.fours;
        if nibble < self.twos / 2 {
            let at = self.fours + 2 * nibble;
            return codes[at] | codes[at + 1] << 2;
        }
        let nibble = nibble - self.twos / 2;
        if nibble < self.ones / 4 {
            let at = self.fours + self.twos + 4 * nibble;
            return codes[at] | codes[at + 1] << 1 | codes[at + 2] << 2 | codes[at + 3] << 3;
        }
        0
    }

    /// Where the block of row `row` begins in the record of `rows` rows, how many rows it has, and which of them the row
    /// is.
    fn block(&self, row: usize, rows: usize) -> (usize, usize, usize) {
        let first = row / BLOCK_ROWS * BLOCK_ROWS;
        (first * (self.bytes() + 1), (rows - first).min(BLOCK_ROWS), row - first)
    }
}

/// Where the code of one dimension lies in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) bits: u8,
    pub(super) nibble: usize,
    pub(super) shift: u32,
}

/// Codes a cluster's rows `z` (`[rows, dim]`) with the scales `sigma`, which are positive, into its record.
///
/// The codes are the nearest levels after the dimensions with bits have been brought to unit mean square, in units of
/// `sigma`; the factor is the one that leaves the least squared error, in its logarithmic code.
///
/// # Panics
/// If the lengths do not fit the layout.
pub fn encode_sketch(layout: &SketchLayout, z: &[f32], sigma: &[f32], record: &mut [u8]) {
    let (mut decoded, mut factors) = (vec![0.0; z.len()], vec![0.0; z.len() / layout.dim]);
    check_sketches(layout, z, sigma, record);
    encode_cluster(Portable, NewSketches { layout, z, sigma }, record, &mut decoded, &mut factors);
}

impl Kernels {
    /// [`encode_sketch`], and what [`decode_sketch`] makes of the record. The same bits on every instruction set.
    ///
    /// # Panics
    /// If the lengths do not fit the layout.
    pub fn encode_sketch(
        &self,
        layout: &SketchLayout,
        z: &[f32],
        sigma: &[f32],
        record: &mut [u8],
        (decoded, factors): (&mut [f32], &mut [f32]),
    ) {
        let rows = check_sketches(layout, z, sigma, record);
        assert!(decoded.len() == z.len() && factors.len() == rows, "room for {rows} rows");
        (self.encode_sketch)(NewSketches { layout, z, sigma }, record, decoded, factors);
    }
}

/// Panics where a cluster's rows do not fit the layout; returns their number.
#[track_caller]
fn check_sketches(layout: &SketchLayout, z: &[f32], sigma: &[f32], record: &[u8]) -> usize {
    check_dim(layout.dim, sigma);
    let rows = z.len() / layout.dim;
    assert!(z.len() == rows * layout.dim, "{} elements are not whole rows of {}", z.len(), layout.dim);
    assert!(record.len() == layout.record_len(rows), "a record of {} bytes for {rows} rows", record.len());
    rows
}

/// A cluster's rows, which fit the layout, and the scales that they are coded with.
#[derive(Clone, Copy)]
pub(crate) struct NewSketches<'a> {
    layout: &'a SketchLayout,
    z: &'a [f32],
    sigma: &'a [f32],
}

/// The body of [`Kernels::encode_sketch`], whose checks hold.
#[inline(always)]
pub(crate) fn encode_cluster<L: Lanes>(
    _: L,
    NewSketches { layout, z, sigma }: NewSketches<'_>,
    record: &mut [u8],
    decoded: &mut [f32],
    factors: &mut [f32],
) {
    record.fill(0);
    let rows = factors.len();
    // A code for each dimension, and zeros for what fills the last half byte up.
    let mut codes = vec![0; layout.dim + DIM_STEP];
    let both = z.chunks_exact(layout.dim).zip(decoded.chunks_exact_mut(layout.dim));
    for (row, ((z, decoded), factor)) in both.zip(factors).enumerate() {
        let code = encode_row(layout, z, sigma, &mut codes, decoded);
        *factor = factor_of_code(code);
        for (x, sigma) in decoded[..layout.kept()].iter_mut().zip(sigma) {
            *x *= *factor * sigma;
        }
        let (start, height, within) = layout.block(row, rows);
        let mut column = record[start + within..].iter_mut().step_by(height);
        for (byte, column) in column.by_ref().take(layout.bytes()).enumerate() {
            *column = layout.half_byte(&codes, 2 * byte) | layout.half_byte(&codes, 2 * byte + 1) << 4;
        }
        record[start + layout.bytes() * height + within] = code;
    }
}

/// Codes of one row and their levels, 0 where there is no code; returns the code of its factor.
#[inline(always)]
fn encode_row(layout: &SketchLayout, z: &[f32], sigma: &[f32], codes: &mut [u8], levels: &mut [f32]) -> u8 {
    let kept = layout.kept();
    let rms = root_mean_square(&z[..kept], &sigma[..kept]);
    let mut sums = Sums::default();
    levels[kept..].fill(0.0);
    let bounds =
        [(4, 0, layout.fours), (2, layout.fours, layout.fours + layout.twos), (1, kept - layout.ones, kept)];
    for (bits, start, end) in bounds {
        let rows = z[start..end].chunks(8).zip(sigma[start..end].chunks(8));
        let coded = codes[start..end].chunks_mut(8).zip(levels[start..end].chunks_mut(8));
        for ((z, sigma), (codes, levels)) in rows.zip(coded) {
            // A last chunk of fewer is filled up; what the filling is coded as is not looked at.
            let (mut wide, mut scales) = ([0.0; 8], [1.0; 8]);
            wide[..z.len()].copy_from_slice(z);
            scales[..z.len()].copy_from_slice(sigma);
            let nearest = nearest(bits, &normalised(&wide, &scales, rms));
            let found = nearest.map(|code| level(bits, code));
            codes.copy_from_slice(&nearest[..z.len()]);
            levels.copy_from_slice(&found[..z.len()]);
            if z.len() == 8 {
                (0..8).for_each(|lane| sums.add(lane, wide[lane], scales[lane] * found[lane]));
            } else {
                (0..z.len()).for_each(|lane| sums.add(lane, z[lane], scales[lane] * found[lane]));
            }
        }
    }
    factor_code(sums.least_squares() as f32)
}

/// Decodes the record of a cluster of `rows` rows into `out`, `[rows, dim]`, and their factors. Dimensions without bits
/// are 0.
///
/// # Panics
/// If the lengths do not fit the layout.
pub fn decode_sketch(
    layout: &SketchLayout,
    record: &[u8],
    rows: usize,
    sigma: &[f32],
    out: &mut [f32],
    factors: &mut [f32],
) {
    check_dim(layout.dim, sigma);
    assert!(record.len() == layout.record_len(rows), "a record of {} bytes for {rows} rows", record.len());
    assert!(out.len() == rows * layout.dim && factors.len() == rows, "room for {rows} rows");
    for (row, (out, stored)) in out.chunks_exact_mut(layout.dim).zip(factors).enumerate() {
        let (start, height, within) = layout.block(row, rows);
        let factor = factor_of_code(record[start + layout.bytes() * height + within]);
        for (i, (x, sigma)) in out.iter_mut().zip(sigma).enumerate() {
            *x = layout.place(i).map_or(0.0, |place| {
                let byte = record[start + place.nibble / 2 * height + within];
                factor * sigma * level(place.bits, byte >> (place.shift + place.nibble as u32 % 2 * 4))
            });
        }
        *stored = factor;
    }
}
