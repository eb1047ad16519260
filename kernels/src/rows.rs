//! Rows as they lie in memory.

use std::ops::Range;

use half::{bf16, f16};

use crate::block::{Ahead, BLOCK_ROWS, Block, Place};
use crate::dtype::Dtype;
use crate::lanes::Lanes;

/// Dimensions of keys and values are multiples of this: the smaller of the vectors of `f32` lanes.
pub const DIM_STEP: usize = 8;

/// Largest supported dimension of a key or a value.
pub const DIM_MAX: usize = 576;

/// Whether keys or values of `dim` elements are supported: a multiple of [`DIM_STEP`] from 8 to [`DIM_MAX`].
pub const fn is_supported_dim(dim: usize) -> bool {
    dim > 0 && dim <= DIM_MAX && dim.is_multiple_of(DIM_STEP)
}

/// Row-major rows of one KV head, in the type they are stored in.
///
/// Row `r` of dimension `dim` is the elements `r * dim..(r + 1) * dim`. The dimension is not part of the view.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// binary16 elements.
    F16(&'a [f16]),
    /// bfloat16 elements.
    Bf16(&'a [bf16]),
    /// binary32 elements.
    F32(&'a [f32]),
}

impl<'a> From<&'a [f16]> for Rows<'a> {
    fn from(elements: &'a [f16]) -> Self {
        Rows::F16(elements)
    }
}

impl<'a> From<&'a [bf16]> for Rows<'a> {
    fn from(elements: &'a [bf16]) -> Self {
        Rows::Bf16(elements)
    }
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(elements: &'a [f32]) -> Self {
        Rows::F32(elements)
    }
}

impl<'a> Rows<'a> {
    /// Views little-endian `bytes` as elements of `dtype`; `None` where they are misaligned for it or end within an
    /// element.
    pub fn from_bytes(dtype: Dtype, bytes: &'a [u8]) -> Option<Rows<'a>> {
        match dtype {
            Dtype::F16 => bytemuck::try_cast_slice(bytes).ok().map(Rows::F16),
            Dtype::Bf16 => bytemuck::try_cast_slice(bytes).ok().map(Rows::Bf16),
            Dtype::F32 => bytemuck::try_cast_slice(bytes).ok().map(Rows::F32),
        }
    }

    /// Type of the elements.
    pub const fn dtype(&self) -> Dtype {
        match self {
            Rows::F16(_) => Dtype::F16,
            Rows::Bf16(_) => Dtype::Bf16,
            Rows::F32(_) => Dtype::F32,
        }
    }

    /// Number of elements (not rows).
    pub const fn len(&self) -> usize {
        match self {
            Rows::F16(elements) => elements.len(),
            Rows::Bf16(elements) => elements.len(),
            Rows::F32(elements) => elements.len(),
        }
    }

    /// Whether there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of `range` (elements, not rows).
    ///
    /// # Panics
    /// If the range does not lie within the elements.
    pub fn slice(&self, range: Range<usize>) -> Rows<'a> {
        match self {
            Rows::F16(elements) => Rows::F16(&elements[range]),
            Rows::Bf16(elements) => Rows::Bf16(&elements[range]),
            Rows::F32(elements) => Rows::F32(&elements[range]),
        }
    }

    /// Element `index`, widened.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Rows::F16(elements) => elements[index].to_f32(),
            Rows::Bf16(elements) => elements[index].to_f32(),
            Rows::F32(elements) => elements[index],
        }
    }

    /// The elements' bytes, as they lie in memory.
    pub fn as_bytes(&self) -> &'a [u8] {
        match self {
            Rows::F16(elements) => bytemuck::cast_slice(elements),
            Rows::Bf16(elements) => bytemuck::cast_slice(elements),
            Rows::F32(elements) => bytemuck::cast_slice(elements),
        }
    }
}

/// An element type that a kernel can load as many of as there are lanes.
pub(crate) trait Element: Copy {
    fn load<L: Lanes<N>, const N: usize>(isa: L, elements: &[Self; N]) -> L::V;
}

impl Element for f16 {
    #[inline(always)]
    fn load<L: Lanes<N>, const N: usize>(isa: L, elements: &[f16; N]) -> L::V {
        isa.load_f16(elements)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<L: Lanes<N>, const N: usize>(isa: L, elements: &[bf16; N]) -> L::V {
        isa.load_bf16(elements)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes<N>, const N: usize>(isa: L, elements: &[f32; N]) -> L::V {
        isa.load(elements)
    }
}

/// Which rows of a matrix an operation works on, and in which order.
#[derive(Clone, Copy)]
pub(crate) enum Pick<'a> {
    All,
    Listed(&'a [u32]),
}

/// Checked rows of one dimension, with the pick of them that an operation works on.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    rows: Rows<'a>,
    dim: usize,
    pick: Pick<'a>,
    len: usize,
}

impl<'a> Matrix<'a> {
    /// Checks once, up front, that the dimension is supported, the rows whole and every listed row there, so that an
    /// operation either panics before it has written anything or does not panic.
    #[track_caller]
    pub(crate) fn new(rows: Rows<'a>, dim: usize, pick: Pick<'a>) -> Matrix<'a> {
        assert!(is_supported_dim(dim), "dimension {dim} is not a multiple of {DIM_STEP} from 8 to {DIM_MAX}");
        let stored = rows.len() / dim;
        assert!(rows.len() == stored * dim, "{} elements are not whole rows of {dim}", rows.len());
        let len = match pick {
            Pick::All => stored,
            Pick::Listed(indices) => {
                let largest = indices.iter().copied().max();
                if let Some(largest) = largest {
                    assert!(
                        (largest as usize) < stored,
                        "row {largest} is listed, but there are {stored} rows"
                    );
                }
                indices.len()
            }
        };
        Matrix { rows, dim, pick, len }
    }

    /// Number of picked rows.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Whether the rows are picked by a list, so that the processor cannot guess the next ones.
    pub(crate) fn is_listed(&self) -> bool {
        matches!(self.pick, Pick::Listed(_))
    }

    /// The block that begins at row `start`, where there are rows.
    pub(crate) fn from(&self, start: usize) -> Option<Block<'a>> {
        (start < self.len).then(|| self.block(start))
    }

    /// What to prefetch of the `next` block while a kernel works on one.
    pub(crate) fn ahead<'b>(next: Option<&'b Block<'b>>) -> Ahead<'b> {
        next.map_or(Ahead::NOTHING, Ahead::whole)
    }

    /// The same of the block that begins at row `start`, if there is one, where rows follow each other.
    #[inline]
    pub(crate) fn ahead_at(&self, start: usize) -> Ahead<'a> {
        let size = self.dim * self.rows.dtype().size_of();
        let end = (start + BLOCK_ROWS).min(self.len);
        Ahead::following(self.rows.as_bytes().get(start * size..end * size).unwrap_or(&[]))
    }

    /// The block of picked rows that begins at row `start`, which must be less than [`Matrix::len`].
    #[inline]
    fn block(&self, start: usize) -> Block<'a> {
        let count = (self.len - start).min(BLOCK_ROWS);
        let place = match self.pick {
            Pick::All => Place::From(start),
            Pick::Listed(indices) => Place::Listed(&indices[start..start + count]),
        };
        Block { rows: self.rows, vectors: self.dim / DIM_STEP, place, count }
    }
}
