//! The blocks of sixteen rows that the kernels work on, and what they ask the memory for meanwhile.

use crate::lanes::Lanes;
use crate::rows::{DIM_STEP, Rows};

/// Rows that one kernel call works on: few enough that a block of keys and one of values stay in the first-level
/// cache, enough that a sweep over them pays for loading and storing its accumulators.
pub(crate) const BLOCK_ROWS: usize = 16;

/// Up to sixteen rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// The whole matrix.
    pub(crate) rows: Rows<'a>,
    /// Vectors of eight elements in a row.
    pub(crate) vectors: usize,
    pub(crate) place: Place<'a>,
    /// Rows in the block, at least one.
    pub(crate) count: usize,
}

/// Where a block's rows lie in the matrix.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// From this row on, one after the other.
    From(usize),
    /// Anywhere: their numbers.
    Listed(&'a [u32]),
}

/// A block's rows in their type.
///
/// How a kernel finds a row decides how fast it is: its inner loops have no room for checks. So they are compiled for each of
/// the ways in which [`with_rows`] gives them the rows.
pub(crate) trait BlockRows<'a, T: 'a>: Copy {
    /// Rows in the block.
    fn count(self) -> usize;
    /// Vectors of eight elements in a row.
    fn vectors(self) -> usize;
    /// Row `row`, which must be less than the count.
    fn row(self, row: usize) -> &'a [[T; 8]];
}

/// Rows of `V` vectors that follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Following<'a, T, const V: usize>(pub(crate) &'a [[[T; 8]; V]]);

/// Rows of any dimension, which lie anywhere.
#[derive(Clone, Copy)]
pub(crate) struct OfAnyDim<'r, 'a, T>(pub(crate) &'r [&'a [[T; 8]]]);

impl<'a, T: Copy, const V: usize> BlockRows<'a, T> for Following<'a, T, V> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    fn vectors(self) -> usize {
        V
    }

    #[inline(always)]
    fn row(self, row: usize) -> &'a [[T; 8]] {
        &self.0[row]
    }
}

impl<'a, T: Copy> BlockRows<'a, T> for OfAnyDim<'_, 'a, T> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    fn vectors(self) -> usize {
        self.0[0].len()
    }

    #[inline(always)]
    fn row(self, row: usize) -> &'a [[T; 8]] {
        self.0[row]
    }
}

impl Block<'_> {
    /// The block's rows in `elements`, which are its matrix; of `V` vectors, where they follow each other.
    #[inline(always)]
    pub(crate) fn following<'e, T, const V: usize>(&self, elements: &'e [T]) -> Option<Following<'e, T, V>> {
        let Place::From(first) = self.place else { return None };
        let (rows, _) = elements.as_chunks::<8>().0.as_chunks::<V>();
        Some(Following(&rows[first..][..self.count]))
    }

    /// The block's rows one by one; places past the last repeat it.
    #[inline(always)]
    pub(crate) fn slices<'e, T>(&self, elements: &'e [T]) -> [&'e [[T; 8]]; BLOCK_ROWS] {
        let (vectors, _) = elements.as_chunks::<8>();
        std::array::from_fn(|row| &vectors[self.number(row) * self.vectors..][..self.vectors])
    }

    /// The number in the matrix of the block's row `row`; past the last, of the last.
    #[inline(always)]
    fn number(&self, row: usize) -> usize {
        let row = row.min(self.count - 1);
        match self.place {
            Place::From(first) => first + row,
            Place::Listed(indices) => indices[row] as usize,
        }
    }

    fn row_size(&self) -> usize {
        self.vectors * DIM_STEP * self.rows.dtype().size_of()
    }
}

/// Runs `work` with the rows of a block, found in `elements`: rows of the dimensions 64 and 128 that follow each other have a type
/// that tells the compiler how long they are. There is no such type for rows that lie anywhere, which memory keeps waiting: each
/// makes all kernels longer by a third.
macro_rules! with_rows {
    ($block:expr, $elements:expr, $rows:ident => $work:expr) => {
        match $block.vectors {
            8 if let Some($rows) = $block.following::<_, 8>($elements) => $work,
            16 if let Some($rows) = $block.following::<_, 16>($elements) => $work,
            _ => {
                let all = $block.slices($elements);
                let $rows = $crate::block::OfAnyDim(&all[..$block.count]);
                $work
            }
        }
    };
}
pub(crate) use with_rows;

/// What will be needed next, to be fetched while a kernel computes on something else: a share before each step of the kernel. Within
/// the loops over eight lanes, prefetches would take more time than they save.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a> {
    /// Bytes that follow each other.
    bytes: &'a [u8],
    /// Rows of up to two blocks that lie anywhere.
    scattered: [Option<(&'a Block<'a>, usize, usize)>; 2],
}

/// Size of a cache line in bytes.
const LINE: usize = 64;

impl<'a> Ahead<'a> {
    pub(crate) const NOTHING: Ahead<'static> = Ahead { bytes: &[], scattered: [None, None] };

    /// All rows of `block`, wherever they are.
    pub(crate) fn whole(block: &'a Block<'a>) -> Ahead<'a> {
        let Place::From(first) = block.place else { return Ahead::scattered(block) };
        let size = block.row_size();
        Ahead::following(&block.rows.as_bytes()[first * size..][..block.count * size])
    }

    /// Bytes that follow each other.
    pub(crate) fn following(bytes: &'a [u8]) -> Ahead<'a> {
        Ahead { bytes, ..Ahead::NOTHING }
    }

    /// The rows of `block` one by one.
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

    /// Begins to ask for it, in `steps` steps.
    #[inline(always)]
    pub(crate) fn fetch(self, steps: usize) -> Fetch<'a> {
        let left = self.bytes.len().div_ceil(LINE);
        let lines = left.div_ceil(steps);
        Fetch { next: self.bytes.as_ptr(), left, lines, scattered: self.scattered, step: 0, steps }
    }

    /// The same, in `steps` steps of which each has `shares` of the bytes that follow each other: rows that lie anywhere are asked
    /// for in steps, since looking for them takes longer than asking.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn fetch_in_shares(self, steps: usize, shares: usize) -> Fetch<'a> {
        Fetch { steps, ..self.fetch(steps * shares) }
    }
}

/// What is asked for step by step.
///
/// Fetching is a hint that no address makes wrong, so addresses are not checked.
pub(crate) struct Fetch<'a> {
    next: *const u8,
    /// Lines from `next` on, and those of a share.
    left: usize,
    lines: usize,
    scattered: [Option<(&'a Block<'a>, usize, usize)>; 2],
    step: usize,
    steps: usize,
}

impl Fetch<'_> {
    /// Asks for what the next step has.
    #[inline(always)]
    pub(crate) fn step<L: Lanes<N>, const N: usize>(&mut self, isa: L) {
        self.share(isa);
        self.step_rows(isa);
    }

    /// Asks for the next lines of those that follow each other.
    #[inline(always)]
    pub(crate) fn share<L: Lanes<N>, const N: usize>(&mut self, isa: L) {
        let lines = self.lines.min(self.left);
        self.left -= lines;
        for _ in 0..lines {
            isa.prefetch_address(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
    }

    /// Asks for the next rows of those that lie anywhere.
    #[inline(always)]
    pub(crate) fn step_rows<L: Lanes<N>, const N: usize>(&mut self, isa: L) {
        if self.scattered[0].is_some() {
            self.step_scattered(isa);
        }
    }

    /// By itself, since it would be compiled into every kernel several times over.
    #[inline(never)]
    fn step_scattered<L: Lanes<N>, const N: usize>(&mut self, isa: L) {
        for &(block, first, end) in self.scattered.iter().flatten() {
            let share = (end - first).div_ceil(self.steps);
            let from = (first + self.step * share).min(end);
            let (bytes, size) = (block.rows.as_bytes(), block.row_size());
            for row in from..(from + share).min(end) {
                let row = &bytes[block.number(row) * size..][..size];
                for line in row.iter().step_by(LINE) {
                    isa.prefetch_address(line);
                }
                // A row that does not begin with a cache line may end in one more.
                isa.prefetch_address(&row[size - 1]);
            }
        }
        self.step += 1;
    }
}
