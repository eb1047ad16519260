//! Rows far from the rest of their cluster.
//!
//! What is kept of a cluster's extent is one number, the mean squared distance of its rows to their mean, and for a whole
//! segment how that divides among the dimensions. It says next to nothing of one row that lies far from all others: the
//! queries that are after that row would pass the cluster by. Such rows become clusters of their own. A number hidden in a
//! text that says the same over and over is made of such rows; in other texts a few in a thousand are.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::ClusterOptions;
use crate::clustering::{Clustering, cluster};

/// A row is far out when its squared distance to the cluster's mean is more than this many times the mean of all,
const FAR: f64 = 4.0;
/// or when a query straight at it scores it more than eleven standard deviations (the root of this) above the mean of the cluster.
const SQUARED_DEVIATIONS: f64 = 120.0;
/// Nine deviations (the root of this) are enough where the row is far from its mean for any cluster of the segment: its squared
/// distance is more than [`FARTHER`] times the mean of all rows to the means of their clusters. Rows of text that is said over and over
/// lie near their means, and what is said once among them lies far.
const SQUARED_DEVIATIONS_FARTHER: f64 = 80.0;
/// Squared distance from which [`SQUARED_DEVIATIONS_FARTHER`] holds, over the mean of the segment.
const FARTHER: f64 = 2.5;
/// Where rows scatter in as many dimensions alike, each of them lies the root of their number from its mean, in its own direction. In
/// more than this it is not far out for that: the squared deviations above grow with the number of dimensions.
const TAKEN_DIMS: f64 = 60.0;
/// Rows nearer than this are not asked for the second, which takes far longer to find out.
const NEAR: f64 = 1.2;
/// Rows that lie far out make clusters of as many rows as others over this, where they are more than two such clusters' worth: a cluster
/// of them is wide, and opened sooner.
const TOGETHER: u32 = 4;
/// Rows that the shape of clusters is found from, at most: evenly apart.
const SHAPE_ROWS: usize = 1024;

/// Makes clusters of their own of the rows of `whole` (rows of `points`, `[rows, dim]`) that lie far out.
///
/// A few are alone. Many, as where clusters hold rows of two kinds, are clustered among themselves, a quarter as many to a cluster as
/// `options` ask for; those that are far out even there are alone.
pub(crate) fn set_apart(
    whole: Clustering,
    points: &[f32],
    dim: usize,
    options: &ClusterOptions,
    stream: u64,
) -> Clustering {
    let shape = Shape::of(&whole, points, dim);
    let mut apart = Clustering { order: Vec::with_capacity(whole.order.len()), offsets: vec![0] };
    let mut far = Vec::new();
    for rows in whole.parts() {
        far.extend(push_near(&mut apart, rows.to_vec(), points, &shape));
    }
    far.sort_unstable();
    let together = options.tokens_per_cluster.div_ceil(TOGETHER);
    if far.len() > 2 * together as usize {
        let theirs: Vec<f32> = far.iter().flat_map(|&row| point(points, row, dim)).copied().collect();
        let options = ClusterOptions { tokens_per_cluster: together, split_factor: None, ..*options };
        let among = cluster(&theirs, dim, &options, stream);
        let mut alone = Vec::new();
        for places in among.parts() {
            let rows = places.iter().map(|&place| far[place as usize]).collect();
            alone.extend(push_near(&mut apart, rows, points, &shape));
        }
        far = alone;
    }
    far.iter().for_each(|&row| apart.push(&[row]));
    apart
}

/// Adds the cluster of `rows` without those that lie far out, which are returned, ascending.
fn push_near(apart: &mut Clustering, mut rows: Vec<u32>, points: &[f32], shape: &Shape) -> Vec<u32> {
    let mut far = Vec::new();
    while let Some(place) = farthest_out(&rows, points, shape) {
        far.push(rows.remove(place));
    }
    apart.push(&rows);
    far.sort_unstable();
    far
}

/// The place in `rows` of the row that is the farthest out, where one is far out.
fn farthest_out(rows: &[u32], points: &[f32], shape: &Shape) -> Option<usize> {
    // Of two rows each is as far out as the other.
    if rows.len() < 3 {
        return None;
    }
    let cluster = Around::of(rows, points, shape.dim);
    let (mut farthest, mut most) = (None, 1.0);
    for (place, &distance) in cluster.distances.iter().enumerate() {
        let ratio = distance / cluster.spread;
        if ratio > NEAR {
            let along = shape.along(&cluster.deviation(rows[place], points));
            let is_farther = distance > FARTHER * shape.spread;
            let most_squared = if is_farther { SQUARED_DEVIATIONS_FARTHER } else { SQUARED_DEVIATIONS };
            let out = (ratio / FAR).max(ratio * distance / (along * shape.far_squared(most_squared)));
            if out > most {
                (farthest, most) = (Some(place), out);
            }
        }
    }
    farthest
}

/// Rows of a cluster around their mean.
struct Around {
    mean: Vec<f64>,
    /// Squared distance of each row to the mean, and the mean of these.
    distances: Vec<f64>,
    spread: f64,
}

impl Around {
    fn of(rows: &[u32], points: &[f32], dim: usize) -> Self {
        let count = rows.len() as f64;
        let mut mean = vec![0.0f64; dim];
        for &row in rows {
            mean.iter_mut().zip(point(points, row, dim)).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        mean.iter_mut().for_each(|sum| *sum /= count);
        let distance = |&row: &u32| {
            let along = point(points, row, dim).iter().zip(&mean);
            along.map(|(&x, mean)| (f64::from(x) - mean).powi(2)).sum::<f64>()
        };
        let distances: Vec<f64> = rows.iter().map(distance).collect();
        let spread = distances.iter().sum::<f64>() / count;
        Self { mean, distances, spread }
    }

    fn deviation(&self, row: u32, points: &[f32]) -> Vec<f32> {
        let along = point(points, row, self.mean.len()).iter().zip(&self.mean);
        along.map(|(&x, mean)| (f64::from(x) - mean) as f32).collect()
    }
}

fn point(points: &[f32], row: u32, dim: usize) -> &[f32] {
    &points[row as usize * dim..][..dim]
}

/// How rows scatter around the means of their clusters: the mean of `deviation * deviation^T`, `[dim, dim]`, in units of the
/// clusters' spreads. A cluster's rows scatter in a direction by this times its spread.
struct Shape {
    matrix: Vec<f32>,
    dim: usize,
    /// Mean squared distance of the rows to the means of their clusters, over all clusters.
    spread: f64,
    /// In how many dimensions, as good as, the rows lie about their means.
    taken: f64,
}

/// `trace^2 / |matrix|^2`: so many directions there are, if the rows scatter in each of them alike.
fn dimensions_taken(matrix: &[f32], dim: usize) -> f64 {
    let trace: f64 = matrix.iter().step_by(dim + 1).map(|&x| f64::from(x)).sum();
    let squared: f64 = matrix.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if squared > 0.0 { trace * trace / squared } else { 0.0 }
}

impl Shape {
    fn of(whole: &Clustering, points: &[f32], dim: usize) -> Self {
        let stride = whole.order.len().div_ceil(SHAPE_ROWS).max(1);
        let mut deviations = Vec::with_capacity(SHAPE_ROWS * dim);
        let mut spread = 0.0;
        for bounds in whole.offsets.windows(2) {
            let (start, end) = (bounds[0] as usize, bounds[1] as usize);
            let rows = &whole.order[start..end];
            let cluster = Around::of(rows, points, dim);
            spread += cluster.spread * rows.len() as f64;
            if cluster.spread > 0.0 {
                let scale = (1.0 / cluster.spread).sqrt() as f32;
                for place in (start.next_multiple_of(stride)..end).step_by(stride) {
                    let deviation = cluster.deviation(rows[place - start], points);
                    deviations.extend(deviation.iter().map(|x| scale * x));
                }
            }
        }
        let rows = deviations.len() / dim;
        let mut matrix = vec![0.0; dim * dim];
        let transposed = MatRef::from_column_major_slice(&deviations, dim, rows);
        matmul(
            MatMut::from_column_major_slice_mut(&mut matrix, dim, dim),
            Accum::Replace,
            transposed,
            transposed.transpose(),
            1.0 / rows.max(1) as f32,
            Par::Seq,
        );
        let taken = dimensions_taken(&matrix, dim);
        Self { matrix, dim, spread: spread / whole.order.len().max(1) as f64, taken }
    }

    /// From how many squared standard deviations on a row is far out: `least`, or more where rows take many dimensions.
    fn far_squared(&self, least: f64) -> f64 {
        least.max(least / TAKEN_DIMS * self.taken)
    }

    /// `deviation^T * matrix * deviation`. The matrix is symmetric, so that its rows can be added up side by side.
    fn along(&self, deviation: &[f32]) -> f64 {
        let mut products = vec![0.0f32; self.dim];
        for (row, x) in self.matrix.chunks_exact(self.dim).zip(deviation) {
            products.iter_mut().zip(row).for_each(|(product, m)| *product += m * x);
        }
        products.iter().zip(deviation).map(|(product, x)| f64::from(product * x)).sum()
    }
}
