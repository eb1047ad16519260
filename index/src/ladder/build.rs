//! From the clustered rows of one head to its part of the ladder's columns.

use longwave_kernels::codec::{SketchLayout, decode4, encode4, factor_code, factor_of_code, record_len};
use longwave_kernels::{Kernels, bf16, rotate};

use super::basis::{Axes, Basis, digest_of_all, stored};
use super::columns::{
    CLUSTER_METRIC, CLUSTER_SIZE, LadderColumns, Parameters, SKETCH_BITS, SKETCH_METRIC, scales_len,
};
use super::input::{LadderInput, Moment};
use super::linear::{narrowed, root, squared_distance, squared_norm, transform};
use super::slope::{slope, steepness_of_all};
use crate::Clustering;

/// A scale is at least this part of the root mean square of what is coded, over all dimensions: a dimension in which
/// the first segment hardly varies must not make factors overflow in a later one.
const SIGMA_FLOOR: f64 = 1e-4;

/// How much of a cluster's spread is taken to lie in all dimensions alike, and not as in the clusters on average: queries that
/// are after one row of it lie in the direction of that row, of which the average says little.
const EVEN: f64 = 0.25;

/// What one head is built with.
#[derive(Clone, Copy)]
pub(crate) struct HeadTask<'a> {
    moment: &'a Moment,
    basis: Option<&'a Basis>,
    slopes: bool,
}

impl<'a> HeadTask<'a> {
    /// What head `head` of `heads` is built with.
    ///
    /// # Panics
    /// When moments or bases are not one for each head and of the rows' dimensions, or a dimension has no codes.
    pub(crate) fn of(
        input: &LadderInput<'a>,
        head: usize,
        heads: usize,
        key_dim: usize,
        value_dim: usize,
    ) -> HeadTask<'a> {
        for dim in [key_dim, value_dim] {
            assert!(longwave_kernels::is_supported_dim(dim), "rows of dimension {dim} have no codes");
        }
        assert!(input.moments.len() == heads, "{} moments for {heads} heads", input.moments.len());
        let moment = &input.moments[head];
        assert!(
            moment.dim == key_dim && moment.matrix.len() == key_dim * key_dim,
            "head {head}: a moment of dimension {} for keys of {key_dim}",
            moment.dim,
        );
        let basis = input.bases.map(|bases| {
            assert!(bases.len() == heads, "{} bases for {heads} heads", bases.len());
            bases[head].check(key_dim, value_dim);
            &bases[head]
        });
        HeadTask { moment, basis, slopes: input.slopes || basis.is_none() }
    }
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct LadderScratch {
    metric: Vec<f32>,
    ordered: Vec<f32>,
    coordinates: Vec<f32>,
    decoded: Vec<f32>,
}

/// One head's part of the columns.
pub(crate) struct HeadColumns {
    pub(crate) basis: Basis,
    shape: Vec<f32>,
    middle: Vec<f32>,
    global_value: Vec<f32>,
    sketch_noise: f32,
    mean_deviation: f32,
    /// Of key spread, value spread and mean error.
    units: [f32; 3],
    centroid: Vec<u8>,
    cluster: Vec<u8>,
    value_mean: Vec<u8>,
    sketch: Vec<u8>,
    key_code: Vec<u8>,
    value_code: Vec<u8>,
    /// Empty where the segment is to have none.
    value_slope: Vec<u8>,
}

/// What is known of a head once its keys are coded.
pub(crate) struct KeyColumns {
    axes: Axes,
    sketch_sigma: Vec<f32>,
    key_sigma: Vec<f32>,
    centroid_sigma: Vec<f32>,
    shape: Vec<f32>,
    middle: Vec<f32>,
    sketch_noise: f32,
    centroid: Vec<u8>,
    key_spread: Vec<f64>,
    sketch: Vec<u8>,
    key_code: Vec<u8>,
}

impl LadderScratch {
    /// The keys in the metric that they are clustered in: `[rows, dim]`, original order.
    pub(crate) fn metric(&mut self, keys: &[f32], task: HeadTask<'_>) -> &[f32] {
        let dim = task.moment.dim;
        let [forward, _] = root(&task.moment.matrix, dim, f64::from(CLUSTER_METRIC));
        let metric = sized(&mut self.metric, keys.len());
        transform(keys, &narrowed(&forward), dim, metric);
        metric
    }

    /// Codes the keys, `[rows, dim]` in their original order.
    pub(crate) fn keys(&mut self, keys: &[f32], clustering: &Clustering, task: HeadTask<'_>) -> KeyColumns {
        let dim = task.moment.dim;
        let rows = sized(&mut self.ordered, keys.len());
        gather(keys, dim, &clustering.order, rows);
        let mut centroids = means(rows, dim, clustering);
        let axes = match task.basis {
            Some(basis) => {
                Axes::of(basis).unwrap_or_else(|| panic!("a basis whose matrix cannot be inverted"))
            }
            None => {
                let residuals = sized(&mut self.coordinates, keys.len());
                residuals.copy_from_slice(rows);
                subtract(residuals, &centroids, dim, clustering);
                Axes::fit(residuals, task.moment)
            }
        };

        let middle: Vec<f32> = mean(&centroids, dim).into_iter().map(stored).collect();
        subtract_one(&mut centroids, &middle);
        let mut coordinates = vec![0.0; centroids.len()];
        transform(&centroids, &axes.forward, dim, &mut coordinates);
        let overall = root_mean_square(&coordinates);
        let centroid_sigma = task
            .basis
            .map_or_else(|| sigma_of(&coordinates, dim, overall), |basis| basis.centroid_sigma.clone());
        let centroid = encode_rows(&coordinates, &centroid_sigma);
        decode_rows(&centroid, &centroid_sigma, &mut coordinates);
        transform(&coordinates, &axes.backward, dim, &mut centroids);
        add_one(&mut centroids, &middle);

        subtract(rows, &centroids, dim, clustering);
        let z = sized(&mut self.coordinates, keys.len());
        transform(rows, &axes.forward, dim, z);
        let overall = overall.max(root_mean_square(z));
        let sketch_sigma =
            task.basis.map_or_else(|| sigma_of(z, dim, overall), |basis| basis.sketch_sigma.clone());
        let layout = SketchLayout::new(&axes.bits);
        let decoded = sized(&mut self.decoded, keys.len());
        let (sketch, sketch_noise) = sketches(&layout, z, &sketch_sigma, clustering, decoded);
        let key_spread = spreads(z, dim, clustering);
        let shape = shape(z, dim, clustering, &key_spread);
        // Codes say what the sketches have left: whoever reads them has scored these.
        z.iter_mut().zip(&*decoded).for_each(|(z, sketched)| *z -= sketched);
        let key_sigma = task.basis.map_or_else(|| sigma_of(z, dim, overall), |basis| basis.key_sigma.clone());
        let key_code = code_rows(z, &key_sigma);
        KeyColumns {
            axes,
            sketch_sigma,
            key_sigma,
            centroid_sigma,
            shape,
            middle,
            sketch_noise,
            centroid,
            key_spread,
            sketch,
            key_code,
        }
    }

    /// Codes the values, `[rows, dim]` in their original order, and joins them with what `keys` has made.
    pub(crate) fn values(
        &mut self,
        values: &[f32],
        dim: usize,
        clustering: &Clustering,
        task: HeadTask<'_>,
        keys: KeyColumns,
    ) -> HeadColumns {
        let rows = sized(&mut self.ordered, values.len());
        gather(values, dim, &clustering.order, rows);
        rotate(rows, dim, false);
        let global_value: Vec<f32> = mean(rows, dim).into_iter().map(stored).collect();
        let exact = means(rows, dim, clustering);

        let mut means = exact.clone();
        subtract_one(&mut means, &global_value);
        let overall = root_mean_square(&means);
        let mean_deviation = overall * overall * dim as f64;
        let value_mean_sigma =
            task.basis.map_or_else(|| sigma_of(&means, dim, overall), |basis| basis.value_mean_sigma.clone());
        let value_mean = encode_rows(&means, &value_mean_sigma);
        decode_rows(&value_mean, &value_mean_sigma, &mut means);
        add_one(&mut means, &global_value);
        let errors: Vec<f64> = means
            .chunks_exact(dim)
            .zip(exact.chunks_exact(dim))
            .map(|(coded, exact)| squared_distance(coded, exact))
            .collect();

        subtract(rows, &means, dim, clustering);
        let value_sigma = task.basis.map_or_else(
            || {
                let overall = overall.max(root_mean_square(rows));
                sigma_of(rows, dim, overall)
            },
            |basis| basis.value_sigma.clone(),
        );
        let value_code = code_rows(rows, &value_sigma);
        let value_spread = spreads(rows, dim, clustering);
        let value_slope = if task.slopes {
            // What the sketches had taken off the coordinates comes back.
            let z = &mut self.coordinates[..clustering.order.len() * task.moment.dim];
            z.iter_mut().zip(&self.decoded).for_each(|(z, sketched)| *z += sketched);
            let steepness = steepness_of_all(clustering, &keys.key_spread, &value_spread);
            slope(z, &keys.sketch_sigma, (rows, &value_sigma), clustering, &steepness)
        } else {
            Vec::new()
        };
        let spreads = [&keys.key_spread, &value_spread, &errors];
        let units = spreads.map(|spreads| unit(spreads));
        let cluster = cluster_records(clustering, spreads, units);
        let basis = task.basis.cloned().unwrap_or(Basis {
            inverse: keys.axes.inverse,
            inverse_scale: keys.axes.inverse_scale,
            bits: keys.axes.bits,
            sketch_sigma: keys.sketch_sigma,
            key_sigma: keys.key_sigma,
            centroid_sigma: keys.centroid_sigma,
            value_sigma,
            value_mean_sigma,
        });
        HeadColumns {
            basis,
            shape: keys.shape,
            middle: keys.middle,
            global_value,
            sketch_noise: keys.sketch_noise,
            mean_deviation: mean_deviation.min(f64::from(f32::MAX)) as f32,
            units,
            centroid: keys.centroid,
            cluster,
            value_mean,
            sketch: keys.sketch,
            key_code: keys.key_code,
            value_code,
            value_slope,
        }
    }
}

/// Joins the heads' parts, head by head.
pub(crate) fn join(
    heads: Vec<HeadColumns>,
    input: &LadderInput<'_>,
    key_dim: usize,
    value_dim: usize,
) -> LadderColumns {
    let bases: Vec<Basis> = heads.iter().map(|head| head.basis.clone()).collect();
    let parameters = Parameters {
        source: input.source,
        positions: input.moments.iter().map(|moment| moment.positions).max().unwrap_or(0),
        sketch_bits: SKETCH_BITS,
        cluster_regularisation: CLUSTER_METRIC,
        sketch_regularisation: SKETCH_METRIC,
        digest: digest_of_all(bases.iter().map(Basis::digest)),
    };
    let narrow = |numbers: &[f32]| numbers.iter().map(|&x| bf16::from_f32(stored(x))).collect::<Vec<_>>();
    let mut columns = LadderColumns {
        key_dim,
        value_dim,
        bases,
        parameters: parameters.encode(),
        basis: Vec::new(),
        bits: Vec::new(),
        scales: Vec::with_capacity(heads.len() * scales_len(key_dim, value_dim)),
        centroid: Vec::new(),
        cluster: Vec::new(),
        value_mean: Vec::new(),
        sketch: Vec::new(),
        sketch_offsets: vec![0],
        key_code: Vec::new(),
        value_code: Vec::new(),
        value_slope: Vec::new(),
    };
    let mut end = 0;
    for head in heads {
        columns.basis.extend(&head.basis.inverse);
        columns.bits.extend(&head.basis.bits);
        let basis = &head.basis;
        let keys = [&basis.inverse_scale, &basis.sketch_sigma, &basis.key_sigma, &basis.centroid_sigma];
        keys.into_iter()
            .chain([&head.shape, &head.middle])
            .for_each(|numbers| columns.scales.extend(narrow(numbers)));
        let values = [&basis.value_sigma, &basis.value_mean_sigma, &head.global_value];
        values.into_iter().for_each(|numbers| columns.scales.extend(narrow(numbers)));
        let [key, value, mean] = head.units;
        columns.scales.extend(narrow(&[head.sketch_noise, head.mean_deviation, key, value, mean, 0.0]));
        columns.centroid.extend(head.centroid);
        columns.cluster.extend(head.cluster);
        columns.value_mean.extend(head.value_mean);
        end += head.sketch.len() as u64;
        columns.sketch_offsets.push(end);
        columns.sketch.push(head.sketch);
        columns.key_code.push(head.key_code);
        columns.value_code.push(head.value_code);
        columns.value_slope.extend(head.value_slope);
    }
    columns
}

/// The sketches' records, cluster by cluster, and the noise they leave in a coordinate in units of a row's factor.
fn sketches(
    layout: &SketchLayout,
    z: &[f32],
    sigma: &[f32],
    clustering: &Clustering,
    decoded: &mut [f32],
) -> (Vec<u8>, f32) {
    let dim = layout.dim();
    let mut sketch = Vec::new();
    let (mut left, mut squares) = (0.0f64, 0.0f64);
    let mut factors = Vec::new();
    for bounds in clustering.offsets.windows(2) {
        let rows = bounds[0] as usize..bounds[1] as usize;
        let (z, decoded) =
            (&z[rows.start * dim..rows.end * dim], &mut decoded[rows.start * dim..rows.end * dim]);
        let start = sketch.len();
        sketch.resize(start + layout.record_len(rows.len()), 0);
        factors.resize(rows.len(), 0.0);
        let kernels = Kernels::get();
        kernels.encode_sketch(layout, z, sigma, &mut sketch[start..], (decoded, &mut factors));
        left += squared_distance(z, decoded);
        squares += squared_norm(&factors);
    }
    let noise = (left / squares / dim as f64).sqrt();
    (sketch, if noise.is_finite() { noise.min(f64::from(f32::MAX)) as f32 } else { 0.0 })
}

/// Mean squared norm of each cluster's rows.
fn spreads(rows: &[f32], dim: usize, clustering: &Clustering) -> Vec<f64> {
    let squares = |bounds: &[u32]| {
        let rows = &rows[bounds[0] as usize * dim..bounds[1] as usize * dim];
        squared_norm(rows) / f64::from(bounds[1] - bounds[0])
    };
    clustering.offsets.windows(2).map(squares).collect()
}

/// How a cluster's key spread is distributed over the coordinates: mean over the rows, relative to the spread.
fn shape(z: &[f32], dim: usize, clustering: &Clustering, key_spread: &[f64]) -> Vec<f32> {
    let mut shape = vec![0.0f64; dim];
    for (bounds, spread) in clustering.offsets.windows(2).zip(key_spread) {
        // Where the spread is 0, so are the rows.
        let weight = if *spread > 0.0 { 1.0 / spread } else { 0.0 };
        for row in z[bounds[0] as usize * dim..bounds[1] as usize * dim].chunks_exact(dim) {
            shape.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x) * f64::from(x));
        }
    }
    let rows = clustering.order.len() as f64;
    let even = EVEN * shape.iter().sum::<f64>() / dim as f64;
    shape.into_iter().map(|sum| (((1.0 - EVEN) * sum + even) / rows) as f32).collect()
}

/// What the largest code of a spread is to stand for the largest of `spreads` with.
fn unit(spreads: &[f64]) -> f32 {
    let most = spreads.iter().copied().fold(0.0, f64::max).min(f64::from(f32::MAX));
    stored((most / f64::from(factor_of_code(u8::MAX))) as f32)
}

fn cluster_records(clustering: &Clustering, spreads: [&Vec<f64>; 3], units: [f32; 3]) -> Vec<u8> {
    let mut records = Vec::with_capacity(clustering.clusters() * CLUSTER_SIZE);
    for (cluster, bounds) in clustering.offsets.windows(2).enumerate() {
        let count = u16::try_from(bounds[1] - bounds[0]).unwrap_or(u16::MAX);
        records.extend(count.to_le_bytes());
        let codes = spreads.iter().zip(units).map(|(spreads, unit)| spread_code(spreads[cluster], unit));
        records.extend(codes);
    }
    records
}

/// The code of a spread, or 0 where all are 0.
fn spread_code(spread: f64, unit: f32) -> u8 {
    if unit > 0.0 { factor_code((spread / f64::from(unit)) as f32) } else { 0 }
}

/// Codes of rows in two planes.
fn code_rows(rows: &[f32], sigma: &[f32]) -> Vec<u8> {
    let (dim, record) = (sigma.len(), record_len(sigma.len()));
    let mut records = vec![0; rows.len() / dim * record];
    Kernels::get().encode_planes(rows, sigma, &mut records);
    records
}

/// Codes of summaries.
pub(super) fn encode_rows(rows: &[f32], sigma: &[f32]) -> Vec<u8> {
    let (dim, record) = (sigma.len(), record_len(sigma.len()));
    let mut records = vec![0; rows.len() / dim * record];
    for (row, record) in rows.chunks_exact(dim).zip(records.chunks_exact_mut(record)) {
        encode4(row, sigma, true, record);
    }
    records
}

fn decode_rows(records: &[u8], sigma: &[f32], rows: &mut [f32]) {
    let dim = sigma.len();
    for (row, record) in rows.chunks_exact_mut(dim).zip(records.chunks_exact(record_len(dim))) {
        decode4(record, sigma, row);
    }
}

/// Root mean square of each dimension, with a floor that follows from the `overall` one.
fn sigma_of(rows: &[f32], dim: usize, overall: f64) -> Vec<f32> {
    let mut squares = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    }
    let floor = SIGMA_FLOOR * if overall > 0.0 && overall.is_finite() { overall } else { 1.0 };
    let count = (rows.len() / dim) as f64;
    let sigma = squares.into_iter().map(|sum| (sum / count).sqrt());
    sigma.map(|x| stored(if x > floor { x } else { floor }.clamp(1e-30, 1e30) as f32)).collect()
}

fn root_mean_square(rows: &[f32]) -> f64 {
    (squared_norm(rows) / rows.len() as f64).sqrt()
}

/// Mean row.
fn mean(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let count = (rows.len() / dim) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Mean row of each cluster, of rows that lie cluster by cluster.
fn means(rows: &[f32], dim: usize, clustering: &Clustering) -> Vec<f32> {
    let of = |bounds: &[u32]| mean(&rows[bounds[0] as usize * dim..bounds[1] as usize * dim], dim);
    clustering.offsets.windows(2).flat_map(of).collect()
}

/// Subtracts from each row its cluster's row of `from`.
fn subtract(rows: &mut [f32], from: &[f32], dim: usize, clustering: &Clustering) {
    for (bounds, from) in clustering.offsets.windows(2).zip(from.chunks_exact(dim)) {
        subtract_one(&mut rows[bounds[0] as usize * dim..bounds[1] as usize * dim], from);
    }
}

fn subtract_one(rows: &mut [f32], one: &[f32]) {
    rows.chunks_exact_mut(one.len()).for_each(|row| row.iter_mut().zip(one).for_each(|(x, y)| *x -= y));
}

fn add_one(rows: &mut [f32], one: &[f32]) {
    rows.chunks_exact_mut(one.len()).for_each(|row| row.iter_mut().zip(one).for_each(|(x, y)| *x += y));
}

/// Rows in the order `order`.
fn gather(rows: &[f32], dim: usize, order: &[u32], out: &mut [f32]) {
    for (out, &row) in out.chunks_exact_mut(dim).zip(order) {
        out.copy_from_slice(&rows[row as usize * dim..][..dim]);
    }
}

/// The first `len` elements of a buffer that never shrinks.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len.max(buffer.len()), 0.0);
    &mut buffer[..len]
}
