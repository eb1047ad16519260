//! Sketches: about one bit a dimension of a key less its centroid.

use super::code4::{Sums, check_dim, normalised, root_mean_square};
use super::levels::{factor_code, factor_of_code, level, nearest};

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
    check_dim(layout.dim, sigma);
    let rows = z.len() / layout.dim;
    assert!(z.len() == rows * layout.dim, "{} elements are not whole rows of {}", z.len(), layout.dim);
    assert!(record.len() == layout.record_len(rows), "a record of {} bytes for {rows} rows", record.len());
    record.fill(0);
    let mut codes = vec![0; layout.dim];
    for (row, z) in z.chunks_exact(layout.dim).enumerate() {
        let factor = encode_row(layout, z, sigma, &mut codes);
        let (start, height, within) = layout.block(row, rows);
        for (i, code) in codes[..layout.kept()].iter().enumerate() {
            if let Some(place) = layout.place(i) {
                let byte = &mut record[start + place.nibble / 2 * height + within];
                *byte |= code << (place.shift + place.nibble as u32 % 2 * 4);
            }
        }
        record[start + layout.bytes() * height + within] = factor;
    }
}

/// Codes of one row; returns the code of its factor. `codes` is as long as the row.
fn encode_row(layout: &SketchLayout, z: &[f32], sigma: &[f32], codes: &mut [u8]) -> u8 {
    let kept = layout.kept();
    let rms = root_mean_square(&z[..kept], &sigma[..kept]);
    let mut sums = Sums::default();
    let bounds =
        [(4, 0, layout.fours), (2, layout.fours, layout.fours + layout.twos), (1, kept - layout.ones, kept)];
    for (bits, start, end) in bounds {
        let spans =
            z[start..end].chunks(8).zip(sigma[start..end].chunks(8)).zip(codes[start..end].chunks_mut(8));
        for ((z, sigma), codes) in spans {
            // A last chunk of fewer is filled up; what the filling is coded as is not looked at.
            let (mut wide, mut scales) = ([0.0; 8], [1.0; 8]);
            wide[..z.len()].copy_from_slice(z);
            scales[..z.len()].copy_from_slice(sigma);
            let nearest = nearest(bits, &normalised(&wide, &scales, rms));
            for lane in 0..z.len() {
                codes[lane] = nearest[lane];
                sums.add(lane, z[lane], sigma[lane] * level(bits, nearest[lane]));
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
