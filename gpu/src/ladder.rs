//! The resolution ladder's kernels: sketches, and rows in 2 or 4 bits.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{RowList, Spans, assert_len, blocks_of, launch, merge_bytes, typed, untyped};
use crate::shape::{BLOCK_THREADS, RowShape};
use cudarc::driver::{CudaView, PushKernelArg};
use longwave_kernels::codec::{BLOCK_ROWS, Depth, SketchLayout, record_len};

/// How codes lie in records, and how far one record is from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeForm {
    /// As in `kernels/cuda/codes.cuh`.
    form: i32,
    /// Bytes.
    stride: usize,
}

impl CodeForm {
    /// Centroids and means: two elements a byte, then the factor.
    pub const fn summaries(dim: usize) -> CodeForm {
        CodeForm { form: 0, stride: record_len(dim) }
    }

    /// Whole records of rows, of which as much is read as `depth` says.
    pub const fn rows(dim: usize, depth: Depth) -> CodeForm {
        CodeForm { stride: record_len(dim), ..CodeForm::packed(dim, depth) }
    }

    /// Records of rows that are cut off where `depth` ends.
    pub const fn packed(dim: usize, depth: Depth) -> CodeForm {
        let form = match depth {
            Depth::Half => 1,
            Depth::Whole => 2,
        };
        CodeForm { form, stride: depth.len(dim) }
    }
}

/// Clusters' sketches that are scanned, block by block of 32 rows.
#[derive(Debug)]
pub struct SketchBlocks {
    blocks: Buffer<u32>,
    spans: Spans,
    /// Bytes of sketches and rows of results that the blocks reach to.
    bytes: usize,
    rows: usize,
    layouts: Vec<SketchLayout>,
}

impl SketchBlocks {
    /// For each unit the layout of its sketches, and its clusters: where in the buffer of sketches the record begins, and its rows.
    /// Results are rows one after the other, in this order.
    ///
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// If a record begins beyond 4 GiB.
    pub fn new(
        device: &Device,
        units: &[(SketchLayout, Vec<(usize, usize)>)],
    ) -> Result<SketchBlocks, Error> {
        let (mut blocks, mut starts, mut bytes, mut first) = (Vec::new(), vec![0], 0, 0);
        for (layout, clusters) in units {
            for &(offset, rows) in clusters {
                let mut at = offset;
                for start in (0..rows).step_by(BLOCK_ROWS) {
                    let count = (rows - start).min(BLOCK_ROWS);
                    let place = u32::try_from(at).unwrap_or_else(|_| panic!("sketches at byte {at}"));
                    blocks.extend([place, count as u32, first as u32, 0]);
                    at += count * (layout.bytes() + 1);
                    first += count;
                }
                bytes = bytes.max(at);
            }
            starts.push((blocks.len() / 4) as u32);
        }
        let (blocks, spans) = (device.upload(&blocks)?, Spans::new(device, &starts)?);
        let layouts = units.iter().map(|(layout, _)| *layout).collect();
        Ok(SketchBlocks { blocks, spans, bytes, rows: first, layouts })
    }

    /// Rows of results.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Several query heads as tables of what each half byte of a sketch adds to a score; see
/// [`longwave_kernels::codec::SketchQuery`], whose tables these are.
#[derive(Debug)]
pub struct SketchTables {
    /// `[units, group, half bytes, 16]`.
    pub tables: Buffer<u8>,
    /// `[units, group]` of (step, sum of the least entries).
    pub scales: Buffer<f32>,
    /// `[units, 4]`: coordinates of 4, 2 and 1 bits, and bytes of a row.
    shapes: Buffer<u32>,
    /// Half bytes of the longest sketch.
    nibbles: usize,
    group: usize,
    layouts: Vec<SketchLayout>,
}

impl Device {
    /// Tables for `coordinates`, `[units, group, dim]`, already times the scales that sketches were coded with; a layout for each
    /// unit.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn sketch_tables(
        &self,
        shape: &RowShape,
        layouts: &[SketchLayout],
        coordinates: &Buffer<f32>,
    ) -> Result<SketchTables, Error> {
        let (group, units) = (shape.group(), layouts.len());
        for layout in layouts {
            assert!(layout.dim() == shape.dim(), "sketches of {} for rows of {}", layout.dim(), shape.dim());
        }
        assert_len(coordinates, units * group * shape.dim(), "coordinates");
        let shapes = layouts.iter().flat_map(|layout| {
            let count = |bits| (0..layout.dim()).filter(|&i| layout.bits(i) == bits).count() as u32;
            [count(4), count(2), count(1), layout.bytes() as u32]
        });
        let shapes = self.upload(&shapes.collect::<Vec<_>>())?;
        let nibbles = 2 * layouts.iter().map(SketchLayout::bytes).max().unwrap_or(0);
        let (mut tables, mut scales) =
            (self.room(units * group * nibbles * 16)?, self.room(2 * units * group)?);
        if units > 0 {
            let (heads, dim, count) = (group as i32, shape.dim() as i32, nibbles as i32);
            launch!(
                self,
                "sketch_tables",
                (units, 1),
                BLOCK_THREADS,
                0,
                [coordinates, &shapes, &heads, &dim, &count, &mut tables, &mut scales]
            );
        }
        Ok(SketchTables { tables, scales, shapes, nibbles, group, layouts: layouts.to_vec() })
    }

    /// Scores `[rows, group]` of sketched rows, and their factors `[rows]`, in the order of `blocks`.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If the blocks lie outside `sketches`, or tables and blocks do not fit each other.
    pub fn scan_sketches(
        &self,
        shape: &RowShape,
        sketches: &Buffer<u8>,
        blocks: &SketchBlocks,
        tables: &SketchTables,
    ) -> Result<(Buffer<f32>, Buffer<f32>), Error> {
        let group = shape.group();
        assert!(tables.layouts == blocks.layouts && tables.group == group, "tables of other sketches");
        assert_len(sketches, blocks.bytes, "sketches");
        let (mut scores, mut factors) = (self.room(blocks.rows * group)?, self.room(blocks.rows)?);
        if blocks.spans.units() > 0 {
            let (heads, nibbles) = (group as i32, tables.nibbles as i32);
            let name = format!("scan_sketches_g{}", shape.compiled_group());
            launch!(
                self,
                name,
                (blocks.spans.units(), blocks_of(&blocks.spans)),
                BLOCK_THREADS,
                group * tables.nibbles * 16,
                [
                    sketches,
                    &blocks.blocks,
                    &blocks.spans.starts,
                    &tables.tables,
                    &tables.scales,
                    &tables.shapes,
                    &heads,
                    &nibbles,
                    &mut scores,
                    &mut factors
                ]
            );
        }
        Ok((scores, factors))
    }

    /// Scores `[list, group]` of listed records of codes; minus infinity where an entry stands for none.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length or a row does not fit.
    pub fn score_codes(
        &self,
        shape: &RowShape,
        coordinates: &Buffer<f32>,
        (records, form): (&Buffer<u16>, CodeForm),
        rows: &RowList,
    ) -> Result<Buffer<f32>, Error> {
        let spans = &rows.spans;
        assert_len(coordinates, spans.units() * shape.group() * shape.dim(), "coordinates");
        rows.assert_within(records.len() * 2 / form.stride);
        let mut scores = self.room(spans.list_len() * shape.group())?;
        if spans.units() > 0 {
            let (group, dim) = (shape.group() as i32, shape.dim() as i32);
            let CodeForm { form, stride } = form;
            let stride = stride as i32;
            launch!(
                self,
                untyped("score_codes", shape),
                (spans.units(), blocks_of(spans)),
                BLOCK_THREADS,
                0,
                [coordinates, records, &form, &stride, &rows.rows, &spans.starts, &group, &dim, &mut scores]
            );
        }
        Ok(scores)
    }

    /// Sums `[units, group, dim]` of records of codes, each times its weight, over all `sources`; without the scales that they
    /// were coded with.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length or a row does not fit, a source has other units, or there is no split.
    pub fn sum_codes(
        &self,
        shape: &RowShape,
        units: usize,
        form: CodeForm,
        sources: &[Weighted<'_>],
        splits: usize,
    ) -> Result<Buffer<f32>, Error> {
        self.sum((shape, units), form, sources, splits, &untyped("sum_codes", shape))
    }

    /// As [`Device::sum_codes`], of full rows.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// As [`Device::sum_codes`].
    pub fn sum_rows(
        &self,
        shape: &RowShape,
        units: usize,
        sources: &[Weighted<'_>],
        splits: usize,
    ) -> Result<Buffer<f32>, Error> {
        let form = CodeForm { form: 0, stride: 2 * shape.dim() };
        self.sum((shape, units), form, sources, splits, &typed("sum_rows", shape))
    }

    fn sum(
        &self,
        (shape, units): (&RowShape, usize),
        CodeForm { form, stride }: CodeForm,
        sources: &[Weighted<'_>],
        splits: usize,
        kernel: &str,
    ) -> Result<Buffer<f32>, Error> {
        assert!(splits > 0, "no split");
        let len = units * shape.group() * shape.dim();
        let (mut parts, mut sums) = (self.room::<f32>(sources.len() * splits * len)?, self.room(len)?);
        let [group, dim, bytes] = [shape.group(), shape.dim(), stride].map(|number| number as i32);
        for (number, Weighted { weights, stored, rows }) in sources.iter().enumerate() {
            let spans = &rows.spans;
            assert!(spans.units() == units, "{} units, and rows of {}", units, spans.units());
            let least = spans.list_len() * shape.group();
            assert!(weights.len() >= least, "{} weights, at least {least} are needed", weights.len());
            rows.assert_within(2 * stored.len() / stride);
            if len > 0 {
                let mut mine = parts.slice_mut(number * splits * len..(number + 1) * splits * len);
                launch!(
                    self,
                    kernel,
                    (units, splits),
                    BLOCK_THREADS,
                    merge_bytes(shape, 0),
                    [weights, *stored, &form, &bytes, &rows.rows, &spans.starts, &group, &dim, &mut mine]
                );
            }
        }
        if len > 0 {
            let count = (sources.len() * splits) as i32;
            launch!(
                self,
                "sum_parts",
                (units * shape.group(), 1),
                shape.dim(),
                0,
                [&parts, &count, &mut sums]
            );
        }
        Ok(sums)
    }
}

impl Device {
    /// The sum of up to several buffers of `len` numbers, a multiple of 32; zeros without any.
    pub(crate) fn sum_of(&self, buffers: &[Buffer<f32>], len: usize) -> Result<Buffer<f32>, Error> {
        let (mut all, mut sum) = (self.room(buffers.len() * len)?, self.room(len)?);
        for (number, buffer) in buffers.iter().enumerate() {
            self.copy_part(buffer, &mut all, (number * len, len))?;
        }
        let count = buffers.len() as i32;
        if len > 0 {
            launch!(self, "sum_parts", (len / 32, 1), 32, 0, [&all, &count, &mut sum]);
        }
        Ok(sum)
    }
}

/// Listed rows of a buffer with their weights `[list, group]`.
#[derive(Debug)]
pub struct Weighted<'a> {
    /// A weight for each entry and head.
    pub weights: CudaView<'a, f32>,
    /// Rows, or records of codes, one behind the other.
    pub stored: &'a Buffer<u16>,
    /// What is summed.
    pub rows: &'a RowList,
}
