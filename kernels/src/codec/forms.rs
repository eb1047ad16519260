//! How codes lie in records, and blocks of records to work on.

use half::f16;

use super::code4::record_len;
use super::planes::Depth;
use crate::lanes::{EightLanes, Lanes, prefetch};
use crate::rows::{DIM_STEP, is_supported_dim};

/// Rows that are worked on together.
pub(super) const BLOCK: usize = 16;

/// Records of [`encode_planes`](super::encode_planes), one after the other, and how much of them is read.
#[derive(Clone, Copy, Debug)]
pub struct RowCodes<'a> {
    /// Whole records.
    pub records: &'a [u8],
    /// Elements of a row.
    pub dim: usize,
    /// Planes that are read.
    pub depth: Depth,
}

impl<'a> RowCodes<'a> {
    #[track_caller]
    pub(super) fn listed(self, indices: &'a [u32]) -> Records<'a> {
        let form = match self.depth {
            Depth::Half => Form::Half,
            Depth::Whole => Form::Whole,
        };
        Records::new(self.records, self.dim, form, Some(indices))
    }
}

/// How codes lie in a record.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Two elements a byte, then the factor.
    Pairs,
    /// The factor, then two planes, of which only the first is read.
    Half,
    /// The factor, then two planes.
    Whole,
}

/// Checked records of one dimension, and which of them an operation works on.
#[derive(Clone, Copy)]
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    pub(super) dim: usize,
    pub(super) form: Form,
    listed: Option<&'a [u32]>,
    pub(super) len: usize,
}

/// The codes of one row.
pub(crate) trait Codes<'a>: Copy {
    const NONE: Self;
    /// The codes and the factor of a record.
    fn of(record: &'a [u8], dim: usize) -> (Self, [u8; 2]);
    /// Vectors `v..v + w`.
    fn cut(self, v: usize, w: usize) -> Self;
    fn load<L: EightLanes>(self, isa: L, v: usize) -> L::V;
    /// Vector `w` of sixteen elements; behind the last eight of a row come levels of no meaning.
    #[cfg(target_arch = "x86_64")]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V;
}

/// Sixteen lanes that decode.
#[cfg(target_arch = "x86_64")]
pub(crate) trait WideCodes: crate::wide::Wide {
    /// As [`EightLanes::load_levels4`].
    fn load_levels4(self, codes: &[u8; 8]) -> Self::V;
    /// As [`EightLanes::load_half`].
    fn load_half(self, high: &[u8; 4]) -> Self::V;
    /// As [`EightLanes::load_whole`].
    fn load_whole(self, high: &[u8; 4], low: &[u8; 4]) -> Self::V;
}

/// The bytes of vector `w` of sixteen, of which `B` hold eight; filled up where there are no more.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn wide_bytes<const B: usize, const W: usize>(vectors: &[[u8; B]], w: usize) -> [u8; W] {
    let (first, second) = (&vectors[2 * w], vectors.get(2 * w + 1).unwrap_or(&[0; B]));
    let mut bytes = [0; W];
    bytes[..B].copy_from_slice(first);
    bytes[B..].copy_from_slice(second);
    bytes
}

#[derive(Clone, Copy)]
pub(super) struct Pairs<'a>(&'a [[u8; 4]]);

#[derive(Clone, Copy)]
pub(super) struct Half<'a>(&'a [[u8; 2]]);

#[derive(Clone, Copy)]
pub(super) struct Whole<'a>(&'a [[u8; 2]], &'a [[u8; 2]]);

impl<'a> Codes<'a> for Pairs<'a> {
    const NONE: Self = Pairs(&[]);

    #[inline(always)]
    fn of(record: &'a [u8], dim: usize) -> (Self, [u8; 2]) {
        let (codes, factor) = record.split_at(dim / 2);
        (Pairs(codes.as_chunks().0), [factor[0], factor[1]])
    }

    #[inline(always)]
    fn cut(self, v: usize, w: usize) -> Self {
        Pairs(&self.0[v..][..w])
    }

    #[inline(always)]
    fn load<L: EightLanes>(self, isa: L, v: usize) -> L::V {
        isa.load_levels4(&self.0[v])
    }

    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V {
        isa.load_levels4(&wide_bytes(self.0, w))
    }
}

impl<'a> Codes<'a> for Half<'a> {
    const NONE: Self = Half(&[]);

    #[inline(always)]
    fn of(record: &'a [u8], dim: usize) -> (Self, [u8; 2]) {
        (Half(record[2..2 + dim / 4].as_chunks().0), [record[0], record[1]])
    }

    #[inline(always)]
    fn cut(self, v: usize, w: usize) -> Self {
        Half(&self.0[v..][..w])
    }

    #[inline(always)]
    fn load<L: EightLanes>(self, isa: L, v: usize) -> L::V {
        isa.load_half(&self.0[v])
    }

    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V {
        isa.load_half(&wide_bytes(self.0, w))
    }
}

impl<'a> Codes<'a> for Whole<'a> {
    const NONE: Self = Whole(&[], &[]);

    #[inline(always)]
    fn of(record: &'a [u8], dim: usize) -> (Self, [u8; 2]) {
        let (high, low) = record[2..].split_at(dim / 4);
        (Whole(high.as_chunks().0, low.as_chunks().0), [record[0], record[1]])
    }

    #[inline(always)]
    fn cut(self, v: usize, w: usize) -> Self {
        Whole(&self.0[v..][..w], &self.1[v..][..w])
    }

    #[inline(always)]
    fn load<L: EightLanes>(self, isa: L, v: usize) -> L::V {
        isa.load_whole(&self.0[v], &self.1[v])
    }

    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V {
        isa.load_whole(&wide_bytes(self.0, w), &wide_bytes(self.1, w))
    }
}

/// Up to sixteen records.
pub(crate) struct Block<C> {
    /// The codes of each row; places past `count` repeat the last row.
    pub(super) codes: [C; BLOCK],
    pub(super) factors: [f32; BLOCK],
    pub(super) count: usize,
    /// Vectors of eight elements in a row.
    pub(super) vectors: usize,
}

impl<'a> Records<'a> {
    #[track_caller]
    pub(super) fn new(bytes: &'a [u8], dim: usize, form: Form, listed: Option<&'a [u32]>) -> Records<'a> {
        assert!(is_supported_dim(dim), "dimension {dim} is not supported");
        let stored = bytes.len() / record_len(dim);
        assert!(
            bytes.len() == stored * record_len(dim),
            "{} bytes are not whole records of {dim}",
            bytes.len()
        );
        if let Some(largest) = listed.and_then(|listed| listed.iter().max()) {
            assert!((*largest as usize) < stored, "row {largest} is listed, but there are {stored} rows");
        }
        Records { bytes, dim, form, listed, len: listed.map_or(stored, <[u32]>::len) }
    }

    #[inline(always)]
    pub(super) fn record(&self, place: usize) -> &'a [u8] {
        let row = self.listed.map_or(place, |listed| listed[place] as usize);
        &self.bytes[row * record_len(self.dim)..][..record_len(self.dim)]
    }

    /// The records from `start`, which is less than their number.
    #[inline(always)]
    pub(super) fn block<L: Lanes<N>, const N: usize, C: Codes<'a>>(&self, isa: L, start: usize) -> Block<C> {
        let count = (self.len - start).min(BLOCK);
        let vectors = self.dim / DIM_STEP;
        let mut block = Block { codes: [C::NONE; BLOCK], factors: [0.0; BLOCK], count, vectors };
        let mut factors = [f16::ZERO; BLOCK];
        for (row, (codes, factor)) in block.codes.iter_mut().zip(&mut factors).enumerate() {
            let bytes;
            (*codes, bytes) = C::of(self.record(start + row.min(count - 1)), self.dim);
            *factor = f16::from_le_bytes(bytes);
        }
        for (factors, widened) in factors.as_chunks().0.iter().zip(block.factors.as_chunks_mut().0) {
            isa.store(isa.load_f16(factors), widened);
        }
        block
    }

    /// Asks for the listed records of the block that begins at `start`; the processor foresees those that follow each
    /// other.
    #[inline(always)]
    pub(super) fn prefetch<L: Lanes<N>, const N: usize>(&self, isa: L, start: usize) {
        if self.listed.is_some() {
            let read = match self.form {
                Form::Half => Depth::Half.len(self.dim),
                Form::Pairs | Form::Whole => record_len(self.dim),
            };
            for place in start..(start + BLOCK).min(self.len) {
                prefetch(isa, &self.record(place)[..read]);
            }
        }
    }
}
