//! The resolution ladder's kernels: sketches, and rows in 4 bits.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{RowList, Spans, assert_len, blocks_of, launch, merge_bytes, untyped};
use crate::shape::{BLOCK_THREADS, RowShape};
use cudarc::driver::PushKernelArg;
use longwave_kernels::codec::{BLOCK_ROWS, SketchLayout, record_len};

/// Clusters' sketches that are scanned, block by block of 32 rows.
#[derive(Debug)]
pub struct SketchBlocks {
    blocks: Buffer<u32>,
    spans: Spans,
    /// Bytes of sketches and rows of results that the blocks reach to.
    bytes: usize,
    rows: usize,
    layout: SketchLayout,
}

impl SketchBlocks {
    /// For each unit its clusters: where in the buffer of sketches the record begins, and its rows. Results are rows one after
    /// the other, in this order.
    ///
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// If a record begins beyond 4 GiB.
    pub fn new(
        device: &Device,
        layout: &SketchLayout,
        units: &[Vec<(usize, usize)>],
    ) -> Result<SketchBlocks, Error> {
        let (mut blocks, mut starts, mut bytes, mut first) = (Vec::new(), vec![0], 0, 0);
        for clusters in units {
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
        Ok(SketchBlocks { blocks, spans, bytes, rows: first, layout: *layout })
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
    units: usize,
    group: usize,
    layout: SketchLayout,
}

impl Device {
    /// Tables for `coordinates`, `[units, group, dim]`, already times the scales that sketches were coded with.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn sketch_tables(
        &self,
        shape: &RowShape,
        layout: &SketchLayout,
        coordinates: &Buffer<f32>,
        units: usize,
    ) -> Result<SketchTables, Error> {
        let group = shape.group();
        assert!(layout.dim() == shape.dim(), "sketches of {} for rows of {}", layout.dim(), shape.dim());
        assert_len(coordinates, units * group * shape.dim(), "coordinates");
        let mut tables = self.room(units * group * layout.bytes() * 2 * 16)?;
        let mut scales = self.room(2 * units * group)?;
        let count = |bits| (0..layout.dim()).filter(|&i| layout.bits(i) == bits).count() as i32;
        let (fours, twos, ones) = (count(4), count(2), count(1));
        if units > 0 {
            let (heads, dim) = (group as i32, shape.dim() as i32);
            launch!(
                self,
                "sketch_tables",
                (units, 1),
                BLOCK_THREADS,
                0,
                [coordinates, &heads, &dim, &fours, &twos, &ones, &mut tables, &mut scales]
            );
        }
        Ok(SketchTables { tables, scales, units, group, layout: *layout })
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
        let (group, layout) = (shape.group(), &blocks.layout);
        assert!(tables.layout == *layout && tables.group == group, "tables of other sketches");
        assert!(
            tables.units == blocks.spans.units(),
            "{} tables for {} units",
            tables.units,
            blocks.spans.units()
        );
        assert_len(sketches, blocks.bytes, "sketches");
        let (mut scores, mut factors) = (self.room(blocks.rows * group)?, self.room(blocks.rows)?);
        if blocks.spans.units() > 0 {
            let (heads, bytes) = (group as i32, layout.bytes() as i32);
            let name = format!("scan_sketches_g{}", shape.compiled_group());
            launch!(
                self,
                name,
                (blocks.spans.units(), blocks_of(&blocks.spans)),
                BLOCK_THREADS,
                group * layout.bytes() * 2 * 16,
                [
                    sketches,
                    &blocks.blocks,
                    &blocks.spans.starts,
                    &tables.tables,
                    &tables.scales,
                    &heads,
                    &bytes,
                    &mut scores,
                    &mut factors
                ]
            );
        }
        Ok((scores, factors))
    }

    /// Scores `[list, group]` of listed rows in 4 bits; minus infinity where an entry stands for none.
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
        records: &Buffer<u8>,
        rows: &RowList,
    ) -> Result<Buffer<f32>, Error> {
        let spans = &rows.spans;
        assert_len(coordinates, spans.units() * shape.group() * shape.dim(), "coordinates");
        rows.assert_within(records.len() / record_len(shape.dim()));
        let mut scores = self.room(spans.list_len() * shape.group())?;
        if spans.units() > 0 {
            let (group, dim) = (shape.group() as i32, shape.dim() as i32);
            launch!(
                self,
                untyped("score_codes", shape),
                (spans.units(), blocks_of(spans)),
                BLOCK_THREADS,
                0,
                [coordinates, records, &rows.rows, &spans.starts, &group, &dim, &mut scores]
            );
        }
        Ok(scores)
    }

    /// Sums `[units, group, dim]` of listed rows in 4 bits, each times its weight of `weights` (`[list, group]`); without the
    /// scales that the rows were coded with.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length or a row does not fit, or there is no split.
    pub fn sum_codes(
        &self,
        shape: &RowShape,
        weights: &Buffer<f32>,
        records: &Buffer<u8>,
        rows: &RowList,
        splits: usize,
    ) -> Result<Buffer<f32>, Error> {
        let spans = &rows.spans;
        assert!(splits > 0, "no split");
        assert_len(weights, spans.list_len() * shape.group(), "weights");
        rows.assert_within(records.len() / record_len(shape.dim()));
        let heads = spans.units() * shape.group();
        let (mut parts, mut sums) =
            (self.room::<f32>(splits * heads * shape.dim())?, self.room(heads * shape.dim())?);
        if heads > 0 {
            let (group, dim, count) = (shape.group() as i32, shape.dim() as i32, splits as i32);
            launch!(
                self,
                untyped("sum_codes", shape),
                (spans.units(), splits),
                BLOCK_THREADS,
                merge_bytes(shape, 0),
                [weights, records, &rows.rows, &spans.starts, &group, &dim, &mut parts]
            );
            launch!(self, "sum_parts", (heads, 1), shape.dim(), 0, [&parts, &count, &mut sums]);
        }
        Ok(sums)
    }
}
