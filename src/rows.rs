//! Rows held in memory: the sinks and the tail of a layer.

use crate::error::Error;
use crate::snapshot::on_pool;
use crate::tensor::TensorView;
use half::{bf16, f16};
use longwave_kernels::{Dtype, Kernels, Rows};
use longwave_query::{RowBlock, Shape};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a block. A snapshot that shares the newest block makes the writer copy at most this many rows.
const BLOCK_ROWS: u64 = 256;
/// Blocks from which on an append is copied by several threads.
const PARALLEL_BLOCKS: usize = 4;

/// Owned rows of one head.
#[derive(Clone, Debug)]
pub(crate) enum RowBuffer {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl RowBuffer {
    pub(crate) fn new(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F16 => RowBuffer::F16(Vec::new()),
            Dtype::Bf16 => RowBuffer::Bf16(Vec::new()),
            Dtype::F32 => RowBuffer::F32(Vec::new()),
        }
    }

    /// The elements held.
    pub(crate) fn rows(&self) -> Rows<'_> {
        match self {
            RowBuffer::F16(data) => Rows::F16(data),
            RowBuffer::Bf16(data) => Rows::Bf16(data),
            RowBuffer::F32(data) => Rows::F32(data),
        }
    }

    /// The elements' bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.rows().as_bytes()
    }

    /// Appends elements, rounding f32 to the buffer's type. The caller has checked that the types go together.
    pub(crate) fn extend(&mut self, rows: Rows<'_>) {
        let kernels = Kernels::get();
        match (self, rows) {
            (RowBuffer::F16(data), Rows::F16(rows)) => data.extend_from_slice(rows),
            (RowBuffer::Bf16(data), Rows::Bf16(rows)) => data.extend_from_slice(rows),
            (RowBuffer::F32(data), Rows::F32(rows)) => data.extend_from_slice(rows),
            (RowBuffer::F16(data), Rows::F32(rows)) => {
                let start = data.len();
                data.resize(start + rows.len(), f16::ZERO);
                kernels.narrow_f16(rows, &mut data[start..]);
            }
            (RowBuffer::Bf16(data), Rows::F32(rows)) => {
                let start = data.len();
                data.resize(start + rows.len(), bf16::ZERO);
                kernels.narrow_bf16(rows, &mut data[start..]);
            }
            (mine, rows) => unreachable!("{} rows were let into {} rows", rows.dtype(), mine.rows().dtype()),
        }
    }

    /// Drops all elements behind the first `elements`.
    pub(crate) fn truncate(&mut self, elements: usize) {
        match self {
            RowBuffer::F16(data) => data.truncate(elements),
            RowBuffer::Bf16(data) => data.truncate(elements),
            RowBuffer::F32(data) => data.truncate(elements),
        }
    }

    /// Makes room for `elements` more.
    fn reserve(&mut self, elements: usize) {
        match self {
            RowBuffer::F16(data) => data.reserve_exact(elements),
            RowBuffer::Bf16(data) => data.reserve_exact(elements),
            RowBuffer::F32(data) => data.reserve_exact(elements),
        }
    }

    /// The first element that is not finite.
    fn first_not_finite(&self) -> Option<usize> {
        // The largest of the bits without their sign says whether there is one: most often none is looked for.
        let finite = match self {
            RowBuffer::F16(data) => {
                data.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff)) < f16::INFINITY.to_bits()
            }
            RowBuffer::Bf16(data) => {
                data.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff)) < bf16::INFINITY.to_bits()
            }
            RowBuffer::F32(data) => {
                data.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)) < f32::INFINITY.to_bits()
            }
        };
        if finite {
            return None;
        }
        match self {
            RowBuffer::F16(data) => data.iter().position(|x| !x.is_finite()),
            RowBuffer::Bf16(data) => data.iter().position(|x| !x.is_finite()),
            RowBuffer::F32(data) => data.iter().position(|x| !x.is_finite()),
        }
    }
}

/// Keys and values of rows at consecutive positions, one buffer a head.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) first_position: u64,
    pub(crate) rows: usize,
    pub(crate) keys: Vec<RowBuffer>,
    pub(crate) values: Vec<RowBuffer>,
}

impl Block {
    pub(crate) fn new(shape: &Shape, first_position: u64) -> Self {
        let buffers = || (0..shape.kv_heads).map(|_| RowBuffer::new(shape.dtype)).collect();
        Block { first_position, rows: 0, keys: buffers(), values: buffers() }
    }

    pub(crate) fn end(&self) -> u64 {
        self.first_position + self.rows as u64
    }

    /// Appends rows `range` of `other`.
    pub(crate) fn extend(&mut self, shape: &Shape, other: &Block, range: Range<usize>) {
        let pairs = [
            (&mut self.keys, &other.keys, shape.key_dim),
            (&mut self.values, &other.values, shape.value_dim),
        ];
        for (mine, theirs, dim) in pairs {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                mine.extend(theirs.rows().slice(range.start * dim..range.end * dim));
            }
        }
        self.rows += range.len();
    }

    /// Rows `range`, copied.
    pub(crate) fn slice(&self, shape: &Shape, range: Range<usize>) -> Block {
        let mut slice = Block::new(shape, self.first_position + range.start as u64);
        slice.extend(shape, self, range);
        slice
    }

    /// Drops all rows behind the first `rows`.
    pub(crate) fn truncate(&mut self, shape: &Shape, rows: usize) {
        self.rows = self.rows.min(rows);
        self.keys.iter_mut().for_each(|keys| keys.truncate(self.rows * shape.key_dim));
        self.values.iter_mut().for_each(|values| values.truncate(self.rows * shape.value_dim));
    }

    /// Takes tokens of checked tensors into a block of the store's element type.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::NotFinite`].
    pub(crate) fn from_tensors(
        shape: &Shape,
        first_position: u64,
        (keys, values): (&TensorView<'_>, &TensorView<'_>),
        tokens: Range<usize>,
    ) -> Result<Block, Error> {
        let mut block = Block::new(shape, first_position);
        block.rows = tokens.len();
        fill(shape.dtype, "keys", (keys, tokens.clone()), &mut block.keys)?;
        fill(shape.dtype, "values", (values, tokens), &mut block.values)?;
        Ok(block)
    }

    fn view(&self, shape: &Shape, skip: usize) -> RowBlock<'_> {
        RowBlock {
            first_position: self.first_position + skip as u64,
            rows: self.rows - skip,
            keys: self.keys.iter().map(|keys| tail_of(keys, skip * shape.key_dim)).collect(),
            values: self.values.iter().map(|values| tail_of(values, skip * shape.value_dim)).collect(),
        }
    }
}

/// Rows at consecutive positions, in blocks that others may hold as well.
#[derive(Clone, Debug)]
pub(crate) struct SharedRows {
    first_position: u64,
    parts: Vec<(Arc<Block>, Range<usize>)>,
}

impl SharedRows {
    /// The rows of one block.
    pub(crate) fn of(block: Block) -> Self {
        let (first_position, rows) = (block.first_position, block.rows);
        SharedRows { first_position, parts: vec![(Arc::new(block), 0..rows)] }
    }

    /// How many rows.
    pub(crate) fn count(&self) -> usize {
        self.parts.iter().map(|(_, range)| range.len()).sum()
    }

    /// Their positions.
    pub(crate) fn positions(&self) -> Range<u64> {
        self.first_position..self.first_position + self.count() as u64
    }

    /// All rows in one block, copied on the current rayon pool.
    pub(crate) fn joined(&self, shape: &Shape) -> Block {
        let rows = self.count();
        let mut block = Block::new(shape, self.first_position);
        block.rows = rows;
        type Side = fn(&Block) -> &[RowBuffer];
        let gather = |side: Side, dim: usize, buffers: &mut [RowBuffer]| {
            buffers.par_iter_mut().enumerate().for_each(|(head, buffer)| {
                buffer.reserve(rows * dim);
                for (part, range) in &self.parts {
                    buffer.extend(side(part)[head].rows().slice(range.start * dim..range.end * dim));
                }
            });
        };
        gather(|block| &block.keys, shape.key_dim, &mut block.keys);
        gather(|block| &block.values, shape.value_dim, &mut block.values);
        block
    }

    /// The bytes of keys, head by head, each in the parts that they lie in.
    pub(crate) fn key_parts(&self, shape: &Shape) -> Vec<&[u8]> {
        self.bytes(shape, shape.key_bytes(), |block| &block.keys)
    }

    /// The bytes of values, the same.
    pub(crate) fn value_parts(&self, shape: &Shape) -> Vec<&[u8]> {
        self.bytes(shape, shape.value_bytes(), |block| &block.values)
    }

    fn bytes(&self, shape: &Shape, size: usize, of: fn(&Block) -> &[RowBuffer]) -> Vec<&[u8]> {
        let of_head = |head: usize| {
            let parts = self.parts.iter();
            parts.map(move |(block, rows)| &of(block)[head].as_bytes()[rows.start * size..rows.end * size])
        };
        (0..shape.kv_heads).flat_map(of_head).collect()
    }
}

fn tail_of(buffer: &RowBuffer, skip: usize) -> Rows<'_> {
    let rows = buffer.rows();
    rows.slice(skip..rows.len())
}

fn fill(
    dtype: Dtype,
    what: &'static str,
    (tensor, tokens): (&TensorView<'_>, Range<usize>),
    heads: &mut [RowBuffer],
) -> Result<(), Error> {
    if tensor.dtype() != dtype && tensor.dtype() != Dtype::F32 {
        let expected = format!("{dtype}, or f32 to be rounded to it");
        return Err(Error::Dtype { what, expected, found: tensor.dtype().to_string() });
    }
    for (head, buffer) in heads.iter_mut().enumerate() {
        match tensor.contiguous(head, tokens.clone()) {
            Some(rows) => buffer.extend(rows),
            None => {
                buffer.reserve(tokens.len() * tensor.row(tokens.start, head).len());
                tokens.clone().for_each(|token| buffer.extend(tensor.row(token, head)));
            }
        }
        if let Some(at) = buffer.first_not_finite() {
            let dim = buffer.rows().len() / tokens.len();
            let (token, element) = (tokens.start + at / dim, at % dim);
            let value = tensor.row(token, head).get(element);
            return Err(Error::NotFinite { what, value, token, head, element, dtype });
        }
    }
    Ok(())
}

/// The rows of a layer that are not sealed: the sinks, which never are, and the tail.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    shape: Shape,
    sinks: u64,
    /// Rows from here on are in the blocks, besides the sinks.
    start: u64,
    length: u64,
    blocks: Vec<Arc<Block>>,
}

impl Tail {
    pub(crate) fn new(shape: Shape, sinks: u64) -> Self {
        Tail { shape, sinks, start: 0, length: 0, blocks: Vec::new() }
    }

    /// Positions held by the layer, sealed ones included.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// First positions that are never sealed.
    pub(crate) fn sinks(&self) -> u64 {
        self.sinks
    }

    /// Whether the blocks hold all rows that are not sealed.
    pub(crate) fn is_whole(&self) -> bool {
        let held: u64 = self.view().iter().map(|block| block.rows as u64).sum();
        held == self.ranges().iter().map(|range| range.end - range.start).sum::<u64>()
    }

    /// The ranges of positions that the tail holds: the sinks, then the rows that are not sealed.
    pub(crate) fn ranges(&self) -> [Range<u64>; 2] {
        let sinks = self.sinks.min(self.length);
        [0..sinks, self.start.max(sinks)..self.length]
    }

    /// Takes checked tensors, whose rows start at `first_position`, into blocks as [`Self::push_blocks`] wants them.
    ///
    /// Many are copied on `pool`, or the current rayon pool.
    ///
    /// # Errors
    /// As [`Block::from_tensors`].
    pub(crate) fn blocks_of(
        &self,
        first_position: u64,
        tensors: (&TensorView<'_>, &TensorView<'_>),
        pool: Option<&ThreadPool>,
    ) -> Result<Vec<Block>, Error> {
        let (mut parts, mut done, count) = (Vec::new(), 0, tensors.0.tokens());
        while done < count {
            let rows = self.capacity(first_position + done as u64).min(count - done);
            parts.push(done..done + rows);
            done += rows;
        }
        let take = |tokens: Range<usize>| {
            let position = first_position + tokens.start as u64;
            Block::from_tensors(&self.shape, position, tensors, tokens)
        };
        // An append of decoding takes less time than to wake a thread.
        if parts.len() < PARALLEL_BLOCKS {
            return parts.into_iter().map(take).collect();
        }
        // The first fault is told, whichever thread was the first to find one.
        let blocks: Vec<Result<Block, Error>> = on_pool(pool, || parts.into_par_iter().map(take).collect());
        blocks.into_iter().collect()
    }

    /// Appends blocks that lie one behind the other, none of which reaches over the end of a block of the tail. They are
    /// moved, where none of the tail is begun.
    pub(crate) fn push_blocks(&mut self, blocks: Vec<Block>) {
        for block in blocks {
            if self.blocks.last().is_some_and(|last| self.is_open(last, block.first_position)) {
                self.push(&block);
            } else {
                self.length = self.length.max(block.end());
                self.blocks.push(Arc::new(block));
            }
        }
    }

    /// Whether a row at `position` belongs into this block, which is the last.
    fn is_open(&self, last: &Block, position: u64) -> bool {
        last.end() == position && last.rows < self.capacity(last.first_position)
    }

    /// Appends the rows of a block, which start where the tail ends (or where the sealed rows end).
    pub(crate) fn push(&mut self, block: &Block) {
        let mut done = 0;
        while done < block.rows {
            let position = block.first_position + done as u64;
            if !self.blocks.last().is_some_and(|last| self.is_open(last, position)) {
                self.blocks.push(Arc::new(Block::new(&self.shape, position)));
            }
            let last = self.blocks.len() - 1;
            let room = self.capacity(self.blocks[last].first_position) - self.blocks[last].rows;
            let rows = room.min(block.rows - done);
            Arc::make_mut(&mut self.blocks[last]).extend(&self.shape, block, done..done + rows);
            done += rows;
        }
        self.length = self.length.max(block.end());
    }

    /// Rows of a block that starts at `first_position`: the sinks have a block of their own, since they stay. The
    /// other blocks end where the position says, whatever was appended, sealed or reopened before, so that the tail
    /// is added up in the same order each time.
    fn capacity(&self, first_position: u64) -> usize {
        match first_position.checked_sub(self.sinks) {
            None => (self.sinks - first_position) as usize,
            Some(past_sinks) => (BLOCK_ROWS - past_sinks % BLOCK_ROWS) as usize,
        }
    }

    /// Rows before `end` have been sealed: drops the blocks that hold nothing else.
    pub(crate) fn release(&mut self, end: u64) {
        self.start = end;
        self.length = self.length.max(end);
        let sinks = self.sinks;
        self.blocks.retain(|block| block.first_position < sinks || block.end() > end);
    }

    /// Drops the rows from `length` on. Sealed rows end at `sealed_end` now: where that is less than it was, only the
    /// sinks are left, and the caller pushes what lies behind the sealed rows.
    pub(crate) fn truncate(&mut self, sealed_end: u64, length: u64) {
        let (sinks, unsealed) = (self.sinks, sealed_end < self.start);
        self.blocks
            .retain(|block| block.first_position < length && (block.first_position < sinks || !unsealed));
        for block in self.blocks.iter_mut().filter(|block| block.end() > length) {
            let rows = (length - block.first_position) as usize;
            Arc::make_mut(block).truncate(&self.shape, rows);
        }
        self.start = self.start.min(sealed_end);
        self.length = if unsealed { length.min(sealed_end.max(sinks)) } else { length };
    }

    /// The blocks as queries read them.
    pub(crate) fn view(&self) -> Vec<RowBlock<'_>> {
        let start = self.start;
        let visible = self.blocks.iter().map(|block| {
            let skip = if block.first_position < self.sinks {
                0
            } else {
                start.saturating_sub(block.first_position)
            };
            block.view(&self.shape, skip as usize)
        });
        visible.filter(|block| block.rows > 0).collect()
    }

    /// Rows `range`, shared with the tail.
    pub(crate) fn share(&self, range: Range<u64>) -> SharedRows {
        let mut parts = Vec::new();
        for block in &self.blocks {
            let (start, end) = (block.first_position.max(range.start), block.end().min(range.end));
            if start < end {
                let local = (start - block.first_position) as usize..(end - block.first_position) as usize;
                parts.push((Arc::clone(block), local));
            }
        }
        SharedRows { first_position: range.start, parts }
    }

    /// Rows `range` copied into one block.
    pub(crate) fn copy(&self, range: Range<u64>) -> Block {
        let mut copy = Block::new(&self.shape, range.start);
        for block in &self.blocks {
            let (start, end) = (block.first_position.max(range.start), block.end().min(range.end));
            if start < end {
                let local = (start - block.first_position) as usize..(end - block.first_position) as usize;
                copy.extend(&self.shape, block, local);
            }
        }
        copy
    }
}
