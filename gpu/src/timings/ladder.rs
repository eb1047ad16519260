//! The kernels of the ladder's call, with lists that were made before.

use super::{CLUSTER_ROWS, LADDER, Layer, is_one_of};
use crate::device::Buffer;
use crate::error::Error;
use crate::ladder::{CodeForm, SketchBlocks, Weighted};
use crate::launch::RowList;
use crate::measure::{listed, row_bytes};
use crate::zone::{Limits, Opened, ReadKey, ReadValues, Resolution, Strips, Summaries, ZoneRows};
use longwave_kernels::codec::{Depth, SketchLayout, record_len};

/// As much of a code as the timed kernels read.
const DEPTH: Depth = Depth::Half;

/// What the kernels read.
pub(super) struct LadderLayer<'d> {
    layer: &'d Layer<'d>,
    strips: Strips,
    summaries: Summaries,
    means: Buffer<u16>,
    codes: Buffer<u16>,
    sketches: Buffer<u8>,
    layouts: Vec<SketchLayout>,
    blocks: SketchBlocks,
    zone: ZoneRows,
    /// Of each unit, and of a strip with its numbers: `[units, group, dim]` and `[units, group]`.
    coordinates: Buffer<f32>,
    ones: Buffer<f32>,
    some: RowList,
    few: RowList,
    reads: (Vec<ReadKey>, Vec<u32>),
}

impl<'d> LadderLayer<'d> {
    pub(super) fn new(layer: &'d Layer<'d>) -> Result<Self, Error> {
        let (device, shape, clusters) = (layer.device, &layer.rows.shape, layer.clusters);
        let (dim, group, units) = (shape.dim(), shape.group(), layer.units());
        // A factor of 0x2a2a is a small f16.
        let coded = |count: usize| device.upload(&vec![0x2a2au16; count * record_len(dim) / 2]);
        let starts: Vec<u32> = (0..=units).map(|unit| (unit * clusters) as u32).collect();
        let all: Vec<u32> = (0..(units * clusters) as u32).collect();
        let strips = Strips::new(device, &all, &starts, (1, units, group))?;
        let scales = || device.upload(&vec![0.25f32; units * dim]);
        let spread = [CLUSTER_ROWS as f32, 0.5, 0.5, 0.1].repeat(units * clusters);
        let summaries = Summaries {
            summaries: device.upload(&spread)?,
            mean_norms2: device.upload(&vec![1.0f32; units * clusters])?,
            steepness: device.upload(&vec![1.0f32; units * clusters])?,
            sigma: scales()?,
            value_sigma: scales()?,
            global: scales()?,
        };
        let layout = SketchLayout::new(&vec![1; dim]);
        let one = layout.record_len(CLUSTER_ROWS);
        let is_open = |cluster: usize| is_one_of(cluster, LADDER[0]);
        let (mut opened, mut blocks) = (Vec::new(), Vec::new());
        for unit in 0..units {
            let mine = (0..clusters).filter(|&cluster| is_open(cluster)).map(|c| unit * clusters + c);
            let mine: Vec<usize> = mine.collect();
            opened.extend(mine.iter().map(|&place| Opened {
                place: place as u32,
                rows: CLUSTER_ROWS as u32,
                strip: unit as u32,
            }));
            blocks.push((layout, mine.into_iter().map(|place| (place * one, CLUSTER_ROWS)).collect()));
        }
        let rows = opened.len() / units.max(1) * CLUSTER_ROWS;
        let zone = ZoneRows::new(device, &strips, &opened)?;
        let (mut reads, mut read_starts) = (Vec::new(), vec![0u32]);
        for unit in 0..units {
            let count = (layer.rows.rows * LADDER[1] / 1000).clamp(1, rows);
            reads.extend((0..count).map(|row| ReadKey {
                row: (unit * rows + row) as u32,
                resolution: Resolution::Code(DEPTH),
                score: (unit * count + row) as u32,
            }));
            read_starts.push(reads.len() as u32);
        }
        Ok(LadderLayer {
            strips,
            summaries,
            means: coded(units * clusters)?,
            codes: coded(units * layer.rows.rows)?,
            sketches: device.upload(&vec![0x35u8; units * clusters * one])?,
            layouts: vec![layout; units],
            blocks: SketchBlocks::new(device, &blocks)?,
            zone,
            coordinates: device.upload(&vec![0.125f32; units * group * dim])?,
            ones: device.upload(&vec![1.0f32; units * group])?,
            some: listed(device, units, layer.rows.rows, |row| is_one_of(row, LADDER[1]))?,
            few: layer.rows.list(device, |row| is_one_of(row, LADDER[2]))?,
            reads: (reads, read_starts),
            layer,
        })
    }

    pub(super) fn run(&self) -> Result<(), Error> {
        let Layer { device, splits, ref rows, .. } = *self.layer;
        let (shape, dim, queries) = (&rows.shape, rows.shape.dim(), &self.coordinates);
        let (strips, summaries, ones) = (&self.strips, &self.summaries, &self.ones);
        let (units, limits) = (self.layer.units(), &Limits::new(None));
        let of_means = CodeForm::summaries(dim);
        let of_rows = CodeForm::rows(dim, DEPTH);
        let sums = |weights: &Buffer<f32>, (stored, form): (&Buffer<u16>, CodeForm), rows: &RowList| {
            let source = Weighted { weights: weights.as_view(), stored, rows };
            device.sum_codes(shape, units, form, &[source], splits)
        };
        let means = (&self.means, of_means);
        let coded = device.score_codes(shape, queries, means, &strips.clusters)?;
        let mut weighed =
            device.weigh_clusters(strips, summaries, &coded, (ones, ones), ones, limits, 0.0)?;
        let rough = |weights: &Buffer<f32>, values, list: &RowList, steady: &Buffer<f32>| {
            let mean_sums = sums(weights, means, list)?;
            device.rough_answer(strips, summaries, dim, weights, &mean_sums, values, (steady, queries))
        };
        let first = rough(&weighed.mass, None, &weighed.means, &weighed.steady)?;
        let products = device.score_codes(shape, &first.scaled, means, &weighed.means)?;
        let (gains, _) = device.probe_gains(strips, summaries, &weighed, &products, &first, 0.0)?;
        device.select_above(&gains, strips.by_unit(), [0.0; 3])?;
        let tables = device.sketch_tables(shape, &self.layouts, queries)?;
        let (scores, factors) = device.scan_sketches(shape, &self.sketches, &self.blocks, &tables)?;
        let mut planes = device.weigh_rows(strips, &self.zone, &weighed, (scores, &factors), ones, limits)?;
        let second = rough(&planes.clusters, None, &weighed.means, &weighed.steady)?;
        let products = device.score_codes(shape, &second.scaled, means, &weighed.means)?;
        let keys =
            device.row_gains(strips, summaries, &self.zone, &planes, Some(&products), &second, limits)?;
        device.select_above(&keys, self.zone.spans(), [0.1, 0.2, 0.4])?;
        let mut scores = device.score_codes(shape, queries, (&self.codes, of_rows), &self.some)?;
        let reads = (&self.reads.0[..], &self.reads.1[..]);
        device.weigh_keys(strips, &self.zone, reads, &mut scores, &mut weighed, &mut planes, limits)?;
        let third = rough(&planes.clusters, None, &weighed.means, &weighed.steady)?;
        let values = device.row_gains(strips, summaries, &self.zone, &planes, None, &third, limits)?;
        device.select_above(&values, self.zone.spans(), [0.1, 0.2, 0.4])?;
        let of_values = sums(&scores, (&self.codes, of_rows), &self.some)?;
        let on_mean = device.rest_on_mean(strips, &self.zone, &planes)?;
        let values = Some(ReadValues { coded: &of_values, on_mean: &on_mean });
        device.rises(strips, summaries, &self.zone, &weighed, &planes, limits)?;
        rough(&planes.clusters, values, &weighed.means, &weighed.steady)?;
        self.layer.rows.attend(device, &self.few, splits)
    }

    /// Bytes that have to be read once: means are read again for every answer under way, but caches hold them.
    pub(super) fn bytes(&self) -> usize {
        let (shape, layout) = (&self.layer.rows.shape, &self.layouts[0]);
        2 * self.strips.by_unit().list_len() * record_len(shape.dim())
            + 2 * self.some.spans.list_len() * DEPTH.len(shape.dim())
            + self.blocks.rows() * (layout.bytes() + 1)
            + self.few.spans.list_len() * row_bytes(shape)
    }
}
