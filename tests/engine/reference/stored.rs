//! What segments store of one KV head's ladder, decoded to float64: keys as keys, values as values.

use longwave::index::ladder::{ClusterSummary, HeadLadder};
use longwave::storage::ColumnKind;
use longwave::{LayerSegment, ModelSpec, RowForm, Rows};
use longwave_kernels::codec::{Depth, decode_planes, decode_sketch, decode4, record_len, rotate};

/// One KV head over the segments whose summaries may be used.
pub struct StoredHead {
    pub segments: Vec<StoredSegment>,
    pub clusters: Vec<StoredCluster>,
}

/// What a segment's rows share.
pub struct StoredSegment {
    /// Which segments have the same basis.
    pub digest: u64,
    /// A query's coordinates are its products with these.
    pub axes: Vec<Vec<f64>>,
    /// Of each coordinate: its bits in a sketch, its scale in a sketch, its part of a cluster's spread.
    pub bits: Vec<u8>,
    pub sketch_sigma: Vec<f64>,
    pub centroid_sigma: Vec<f64>,
    pub shape: Vec<f64>,
    pub sketch_noise: f64,
    pub mean_deviation: f64,
    pub global_value: Vec<f64>,
    /// Of each coordinate over its scale: its mean product with values less their cluster's mean. Empty where nothing is said.
    pub value_slope: Vec<Vec<f64>>,
    /// Means over all rows.
    pub key_spread_mean: f64,
    pub value_spread_mean: f64,
    pub form: RowForm,
}

pub struct StoredCluster {
    /// Number of the segment, and of the cluster in it.
    pub segment: usize,
    pub local: usize,
    /// Its first row in the segment.
    pub first: usize,
    pub centroid: Vec<f64>,
    pub mean: Vec<f64>,
    pub key_spread: f64,
    pub value_spread: f64,
    pub mean_error: f64,
    /// How much steeper than on average its values follow its keys, as far as spreads tell.
    pub steepness: f64,
    pub rows: Vec<StoredRow>,
}

pub struct StoredRow {
    /// Coordinates of the sketch, in units of its factor.
    pub sketch: Vec<f64>,
    pub factor: f64,
    /// What half a code and a whole one add to the sketched key.
    pub key_codes: [Vec<f64>; 2],
    /// The key as the segment keeps it.
    pub key: Vec<f64>,
    /// The value by half a code and by a whole one.
    pub value_codes: [Vec<f64>; 2],
    pub value: Vec<f64>,
}

impl StoredHead {
    pub fn read(segments: &[&LayerSegment], model: &ModelSpec, head: usize) -> StoredHead {
        let mut stored = StoredHead { segments: Vec::new(), clusters: Vec::new() };
        for (number, segment) in segments.iter().enumerate() {
            let view = segment.ladder().unwrap().expect("a segment with a ladder");
            let ladder = view.head(head).unwrap();
            stored.segments.push(StoredSegment::read(&ladder, view.digest(), segment.row_form()));
            let offsets = view.postings().offsets(head).unwrap();
            for local in 0..ladder.cluster_count() {
                let rows = offsets[local] as usize..offsets[local + 1] as usize;
                stored.clusters.push(StoredCluster::read(
                    segment,
                    model,
                    &ladder,
                    &stored.segments[number],
                    [number, local, head],
                    rows,
                ));
            }
        }
        stored
    }

    /// The segment whose slope the rows of segment `number` follow.
    pub fn slope_of(&self, number: usize) -> Option<usize> {
        let basis = self.segments[number].digest;
        let says = |other: &usize| {
            self.segments[*other].digest == basis && !self.segments[*other].value_slope.is_empty()
        };
        (0..=number).rev().find(says)
    }

    pub fn segment(&self, cluster: &StoredCluster) -> &StoredSegment {
        &self.segments[cluster.segment]
    }
}

impl StoredSegment {
    fn read(ladder: &HeadLadder<'_>, digest: u64, form: RowForm) -> StoredSegment {
        let dim = ladder.bits.len();
        let rows = ladder.inverse.chunks_exact(dim).zip(ladder.inverse_scale);
        let axis =
            |(row, &scale): (&[i8], &f32)| row.iter().map(|&x| f64::from(x) * f64::from(scale)).collect();
        StoredSegment {
            digest,
            axes: rows.map(axis).collect(),
            bits: ladder.bits.to_vec(),
            sketch_sigma: wide(ladder.sketch_sigma),
            centroid_sigma: wide(ladder.centroid_sigma),
            shape: wide(ladder.shape),
            sketch_noise: f64::from(ladder.sketch_noise),
            mean_deviation: f64::from(ladder.mean_deviation),
            global_value: turned_back(&wide(ladder.global_value)),
            value_slope: slopes(ladder),
            key_spread_mean: mean_of(ladder, |cluster| cluster.key_spread),
            value_spread_mean: mean_of(ladder, |cluster| cluster.value_spread),
            form,
        }
    }

    /// The mean of scores, about their centroids, times values, about their cluster's mean.
    pub fn slope_along(&self, query: &[f64]) -> Vec<f64> {
        let along: Vec<f64> =
            self.axes.iter().zip(&self.sketch_sigma).map(|(axis, sigma)| dot(axis, query) * sigma).collect();
        let mut slope = vec![0.0; self.global_value.len()];
        along.iter().zip(&self.value_slope).for_each(|(along, moment)| add(&mut slope, *along, moment));
        slope
    }

    /// The key that has these coordinates.
    fn key_of(&self, coordinates: &[f64]) -> Vec<f64> {
        let mut key = vec![0.0; coordinates.len()];
        self.axes.iter().zip(coordinates).for_each(|(axis, &z)| add(&mut key, z, axis));
        key
    }
}

fn mean_of(ladder: &HeadLadder<'_>, spread: fn(ClusterSummary) -> f32) -> f64 {
    let clusters = (0..ladder.cluster_count()).map(|cluster| ladder.cluster(cluster));
    clusters.map(|cluster| f64::from(cluster.count) * f64::from(spread(cluster))).sum::<f64>()
        / ladder.rows() as f64
}

fn slopes(ladder: &HeadLadder<'_>) -> Vec<Vec<f64>> {
    let records = ladder.value_slope.chunks_exact(record_len(ladder.value_sigma.len()));
    let decoded = |record: &[u8]| {
        let mut slope = vec![0.0; ladder.value_sigma.len()];
        decode4(record, ladder.value_sigma, &mut slope);
        turned_back(&wide(&slope))
    };
    records.map(decoded).collect()
}

impl StoredCluster {
    fn read(
        segment: &LayerSegment,
        model: &ModelSpec,
        ladder: &HeadLadder<'_>,
        shared: &StoredSegment,
        [number, local, head]: [usize; 3],
        rows: std::ops::Range<usize>,
    ) -> StoredCluster {
        let summary = ladder.cluster(local);
        assert_eq!(summary.count as usize, rows.len());
        let record = |records: &[u8], sigma: &[f32], at: usize| {
            let len = record_len(sigma.len());
            let mut decoded = vec![0.0; sigma.len()];
            decode4(&records[at * len..(at + 1) * len], sigma, &mut decoded);
            wide(&decoded)
        };
        let mut centroid = shared.key_of(&record(ladder.centroids, ladder.centroid_sigma, local));
        add(&mut centroid, 1.0, &wide(ladder.middle));
        let mut mean = turned_back(&record(ladder.value_means, ladder.value_mean_sigma, local));
        add(&mut mean, 1.0, &shared.global_value);

        let (mut sketches, mut factors) = (vec![0.0; rows.len() * model.key_dim], vec![0.0; rows.len()]);
        let sketch = ladder.sketch(local).unwrap();
        decode_sketch(&ladder.layout, sketch, rows.len(), ladder.sketch_sigma, &mut sketches, &mut factors);
        let mut stored = Vec::new();
        for (at, row) in rows.clone().enumerate() {
            let codes = ladder.key_code_bytes(row..row + 1).unwrap();
            let key_codes = DEPTHS.map(|depth| shared.key_of(&code(codes, ladder.key_sigma, depth)));
            let codes = ladder.value_code_bytes(row..row + 1).unwrap();
            let value_codes = DEPTHS.map(|depth| {
                let mut value = turned_back(&code(codes, ladder.value_sigma, depth));
                add(&mut value, 1.0, &mean);
                value
            });
            let factor = f64::from(factors[at]);
            let units = |x: f64| if factor > 0.0 { x / factor } else { 0.0 };
            let sketch = &sketches[at * model.key_dim..][..model.key_dim];
            let place = head * segment.rows() + row;
            let [key, value] = match shared.form {
                RowForm::Codes => {
                    let mut key = shared.key_of(&wide(sketch));
                    add(&mut key, 1.0, &centroid);
                    add(&mut key, 1.0, &key_codes[1]);
                    [key, value_codes[1].clone()]
                }
                RowForm::Full => [
                    full(segment, model, ColumnKind::KEYS, model.key_dim, place),
                    full(segment, model, ColumnKind::VALUES, model.value_dim, place),
                ],
                RowForm::EightBits => [
                    eight_bits(segment, ColumnKind::KEYS_8BIT, model.key_dim, place),
                    eight_bits(segment, ColumnKind::VALUES_8BIT, model.value_dim, place),
                ],
            };
            stored.push(StoredRow {
                sketch: sketch.iter().map(|&x| units(f64::from(x))).collect(),
                factor,
                key_codes,
                key,
                value_codes,
                value,
            });
        }
        let [key, value] = [summary.key_spread, summary.value_spread].map(f64::from);
        let ratio =
            if key > 0.0 { value / shared.value_spread_mean * shared.key_spread_mean / key } else { 0.0 };
        StoredCluster {
            segment: number,
            local,
            first: rows.start,
            centroid,
            mean,
            key_spread: f64::from(summary.key_spread),
            value_spread: f64::from(summary.value_spread),
            mean_error: f64::from(summary.mean_error),
            steepness: ratio.sqrt(),
            rows: stored,
        }
    }
}

const DEPTHS: [Depth; 2] = [Depth::Half, Depth::Whole];

/// A row's code, as far as `depth` says.
fn code(record: &[u8], sigma: &[f32], depth: Depth) -> Vec<f64> {
    let mut decoded = vec![0.0; sigma.len()];
    decode_planes(record, sigma, depth, &mut decoded);
    wide(&decoded)
}

/// A row of a column of full rows.
fn full(segment: &LayerSegment, model: &ModelSpec, kind: ColumnKind, dim: usize, place: usize) -> Vec<f64> {
    let size = dim * model.dtype.size_of();
    let column = segment.segment().column(kind).unwrap();
    let bytes = column.bytes(place * size..(place + 1) * size).unwrap();
    let rows = Rows::from_bytes(model.dtype, bytes).unwrap();
    (0..dim).map(|i| f64::from(rows.get(i))).collect()
}

/// A row of a column of rows in 8 bits.
fn eight_bits(segment: &LayerSegment, kind: ColumnKind, dim: usize, place: usize) -> Vec<f64> {
    let column = segment.segment().column(kind).unwrap();
    let record = column.bytes(place * (dim + 4)..(place + 1) * (dim + 4)).unwrap();
    let factor = f64::from(f32::from_le_bytes(record[dim..].try_into().unwrap()));
    record[..dim].iter().map(|&byte| f64::from(byte as i8) * factor).collect()
}

/// A rotated value as it was before. The rotation is orthogonal: its columns are what it makes of the unit vectors.
fn turned_back(rotated: &[f64]) -> Vec<f64> {
    let dim = rotated.len();
    let mut unit = vec![0.0; dim * dim];
    unit.iter_mut().step_by(dim + 1).for_each(|x| *x = 1.0);
    rotate(&mut unit, dim, false);
    unit.chunks_exact(dim).map(|column| dot(&wide(column), rotated)).collect()
}

pub fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn distance2(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// `sum += weight * row`.
pub fn add(sum: &mut [f64], weight: f64, row: &[f64]) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
}
