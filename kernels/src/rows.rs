//! Rows as they lie in memory, and the blocks of sixteen rows that the kernels work on.

use std::ops::Range;
use std::slice::ChunksExact;

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::lanes::Lanes;

/// Dimensions of keys and values are multiples of this: one vector of `f32` lanes.
pub const DIM_STEP: usize = 8;

/// Largest supported dimension of a key or a value.
pub const DIM_MAX: usize = 576;

/// Rows that one kernel call works on: few enough that a block of keys and one of values stay in the first-level
/// cache, enough that a sweep over them pays for loading and storing its accumulators.
pub(crate) const BLOCK_ROWS: usize = 16;

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

/// An element type that a kernel can load eight of.
pub(crate) trait Element: Copy {
    fn load<L: Lanes>(isa: L, elements: &[Self; 8]) -> L::V;
}

impl Element for f16 {
    #[inline(always)]
    fn load<L: Lanes>(isa: L, elements: &[f16; 8]) -> L::V {
        isa.load_f16(elements)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<L: Lanes>(isa: L, elements: &[bf16; 8]) -> L::V {
        isa.load_bf16(elements)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(isa: L, elements: &[f32; 8]) -> L::V {
        isa.load(elements)
    }
}

/// Up to sixteen rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// The whole matrix.
    pub(crate) rows: Rows<'a>,
    /// Vectors of eight elements in a row.
    pub(crate) vectors: usize,
    /// At which vector of the matrix each row begins; places past `count` repeat the last row.
    pub(crate) starts: [u32; BLOCK_ROWS],
    /// Rows in the block, at least one.
    pub(crate) count: usize,
    /// Whether the rows follow each other in memory.
    contiguous: bool,
}

/// A block's rows in their type.
#[derive(Clone, Copy)]
pub(crate) struct BlockOf<'a, T> {
    elements: &'a [[T; 8]],
    /// Whether the rows follow each other in memory.
    pub(crate) contiguous: bool,
    starts: &'a [u32; BLOCK_ROWS],
    pub(crate) vectors: usize,
    pub(crate) count: usize,
}

impl<'a> Block<'a> {
    fn vector_size(&self) -> usize {
        DIM_STEP * self.rows.dtype().size_of()
    }

    /// The block's rows in `elements`, which are its matrix.
    #[inline(always)]
    pub(crate) fn of<T>(&'a self, elements: &'a [T]) -> BlockOf<'a, T> {
        let (elements, _) = elements.as_chunks::<8>();
        BlockOf {
            elements,
            contiguous: self.contiguous,
            starts: &self.starts,
            vectors: self.vectors,
            count: self.count,
        }
    }
}

impl<'a, T> BlockOf<'a, T> {
    /// Row `row`; past the last, the last again.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [[T; 8]] {
        &self.elements[self.starts[row.min(BLOCK_ROWS - 1)] as usize..][..self.vectors]
    }

    /// The rows in turn, where they follow each other: no row then costs a check of its own.
    #[inline(always)]
    pub(crate) fn following(&self) -> ChunksExact<'a, [T; 8]> {
        self.elements[self.starts[0] as usize..][..self.count * self.vectors].chunks_exact(self.vectors)
    }

    /// The rows in turn, wherever they are.
    #[inline(always)]
    pub(crate) fn scattered(&self) -> impl Iterator<Item = &'a [[T; 8]]> + Clone {
        self.starts[..self.count].iter().map(|&start| &self.elements[start as usize..][..self.vectors])
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
        // Blocks count in vectors, in 32 bits.
        assert!(u32::try_from(rows.len() / DIM_STEP).is_ok(), "{} elements are too many", rows.len());
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

    /// The first block, where there are rows.
    pub(crate) fn first(&self) -> Option<Block<'a>> {
        (self.len > 0).then(|| self.block(0))
    }

    /// The block after the one that begins at row `start`, where there are rows.
    pub(crate) fn after(&self, start: usize) -> Option<Block<'a>> {
        let start = start + BLOCK_ROWS;
        (start < self.len).then(|| self.block(start))
    }

    /// What to prefetch of the `next` block while a kernel works on one: nothing where rows follow each other, since
    /// the processor sees that by itself.
    pub(crate) fn ahead<'b>(&self, next: Option<&'b Block<'b>>) -> Ahead<'b> {
        match next {
            Some(block) if self.is_listed() => Ahead::scattered(block),
            _ => Ahead::NOTHING,
        }
    }

    /// The block of picked rows that begins at row `start`, which must be less than [`Matrix::len`].
    #[inline]
    fn block(&self, start: usize) -> Block<'a> {
        let vectors = self.dim / DIM_STEP;
        let count = (self.len - start).min(BLOCK_ROWS);
        let mut starts = [0; BLOCK_ROWS];
        match self.pick {
            Pick::All => {
                for (row, place) in starts.iter_mut().enumerate() {
                    *place = ((start + row.min(count - 1)) * vectors) as u32;
                }
            }
            Pick::Listed(indices) => {
                let indices = &indices[start..start + count];
                for (row, place) in starts.iter_mut().enumerate() {
                    *place = (indices[row.min(count - 1)] as usize * vectors) as u32;
                }
            }
        }
        Block { rows: self.rows, vectors, starts, count, contiguous: !self.is_listed() }
    }
}

/// What will be needed next, to be fetched while a kernel computes on something else.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a> {
    /// Bytes that follow each other, fetched evenly: a burst would fill the processor's buffers and stall the kernel.
    bytes: &'a [u8],
    /// Rows of up to two blocks that lie anywhere.
    scattered: [Option<(&'a Block<'a>, usize, usize)>; 2],
}

/// An address to fetch from next, and how far on the one after it is.
///
/// Fetching is a hint that no address makes wrong, so none is checked: a check would cost the innermost loops more than
/// the hint.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    next: *const u8,
    stride: usize,
}

/// Size of a cache line in bytes.
const LINE: usize = 64;

impl<'a> Ahead<'a> {
    pub(crate) const NOTHING: Ahead<'static> = Ahead { bytes: &[], scattered: [None, None] };

    /// All rows of `block`, which follow each other in memory.
    pub(crate) fn whole(block: &'a Block<'a>) -> Ahead<'a> {
        let (start, row_size) =
            (block.starts[0] as usize * block.vector_size(), block.vectors * block.vector_size());
        Ahead { bytes: &block.rows.as_bytes()[start..][..block.count * row_size], ..Ahead::NOTHING }
    }

    /// All rows of `block`, wherever they are.
    pub(crate) fn scattered(block: &'a Block<'a>) -> Ahead<'a> {
        Ahead { scattered: [Some((block, 0, block.count)), None], ..Ahead::NOTHING }
    }

    /// Half of each of two blocks' rows while scores are computed, the other half while values are summed.
    pub(crate) fn halves(keys: &'a Block<'a>, values: &'a Block<'a>) -> (Ahead<'a>, Ahead<'a>) {
        let (middle, end) = (keys.count.div_ceil(2), keys.count);
        let rows = |from, to| [Some((keys, from, to)), Some((values, from, to))];
        (
            Ahead { scattered: rows(0, middle), ..Ahead::NOTHING },
            Ahead { scattered: rows(middle, end), ..Ahead::NOTHING },
        )
    }

    /// The bytes, to be fetched in `steps` steps.
    #[inline(always)]
    pub(crate) fn stream(&self, steps: usize) -> Stream {
        Stream { next: self.bytes.as_ptr(), stride: self.bytes.len().div_ceil(steps).min(LINE) }
    }

    /// Asks for share `step` of `steps` of the scattered rows.
    #[inline(always)]
    pub(crate) fn fetch_scattered<L: Lanes>(&self, isa: L, step: usize, steps: usize) {
        for &(block, first, end) in self.scattered.iter().flatten() {
            let share = (end - first).div_ceil(steps);
            let from = (first + step * share).min(end);
            let (bytes, row_size) = (block.rows.as_bytes(), block.vectors * block.vector_size());
            for start in &block.starts[from..(from + share).min(end)] {
                let row = &bytes[*start as usize * block.vector_size()..][..row_size];
                for line in row.iter().step_by(LINE) {
                    isa.prefetch_address(line);
                }
                // A row that does not begin with a cache line may end in one more.
                isa.prefetch_address(&row[row_size - 1]);
            }
        }
    }
}

impl Stream {
    /// Asks for the next line, and steps on.
    #[inline(always)]
    pub(crate) fn fetch<L: Lanes>(&mut self, isa: L) {
        isa.prefetch_address(self.next);
        self.next = self.next.wrapping_add(self.stride);
    }
}
