//! Rows far from the rest of their cluster.
//!
//! What is kept of a cluster's extent is one number, the mean squared distance of its rows to their mean, and for a whole
//! segment how that divides among the dimensions. It says next to nothing of one row that lies far from all others: the
//! queries that are after that row would pass the cluster by. Such rows become clusters of their own: one each, or together where they are many. A number hidden in a
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
    let clusters: Vec<Around> = whole.parts().map(|rows| Around::of(rows.to_vec(), points, dim)).collect();
    let shape = Shape::of(&clusters, dim);
    let mut apart = Clustering { order: Vec::with_capacity(whole.order.len()), offsets: vec![0] };
    let mut far = Vec::new();
    for cluster in clusters {
        far.extend(push_near(&mut apart, cluster, points, &shape));
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
            alone.extend(push_near(&mut apart, Around::of(rows, points, dim), points, &shape));
        }
        far = alone;
    }
    far.iter().for_each(|&row| apart.push(&[row]));
    apart
}

/// Adds the rows of a cluster without those that lie far out, which are returned, ascending.
fn push_near(apart: &mut Clustering, mut cluster: Around, points: &[f32], shape: &Shape) -> Vec<u32> {
    let mut far = Vec::new();
    // Of two rows each is as far out as the other.
    while cluster.rows.len() > 2
        && let Some(place) = cluster.farthest_out(shape)
    {
        far.push(cluster.rows[place]);
        cluster.remove(place, shape);
        if cluster.has_moved() {
            cluster = Around::of(cluster.rows, points, shape.dim);
        }
    }
    apart.push(&cluster.rows);
    far.sort_unstable();
    far
}

/// Rows of a cluster around their mean, also while rows leave it.
struct Around {
    rows: Vec<u32>,
    /// `[rows, dim]`, from the mean of the rows that there were at first.
    deviations: Vec<f32>,
    /// Their squared lengths.
    squared: Vec<f64>,
    /// Those times the shape, `[rows, dim]`, and the products of both: found when they are first asked for.
    shaped: Vec<f32>,
    squared_along: Vec<f64>,
    /// Where the mean of the rows is that are left, from the first; and the product of that with itself times the shape.
    mean: Vec<f32>,
    mean_along: f64,
    /// Squared distance of each row to it, and the mean of these.
    distances: Vec<f64>,
    spread: f64,
}

impl Around {
    fn of(rows: Vec<u32>, points: &[f32], dim: usize) -> Self {
        let mut mean = vec![0.0f64; dim];
        for &row in &rows {
            mean.iter_mut().zip(point(points, row, dim)).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        mean.iter_mut().for_each(|sum| *sum /= rows.len() as f64);
        let mut deviations = Vec::with_capacity(rows.len() * dim);
        for &row in &rows {
            let along = point(points, row, dim).iter().zip(&mean);
            deviations.extend(along.map(|(&x, mean)| (f64::from(x) - mean) as f32));
        }
        let squared: Vec<f64> = deviations.chunks_exact(dim).map(|row| product(row, row)).collect();
        let spread = squared.iter().sum::<f64>() / rows.len() as f64;
        let (shaped, squared_along, mean) = (Vec::new(), Vec::new(), vec![0.0; dim]);
        Self {
            rows,
            deviations,
            distances: squared.clone(),
            squared,
            shaped,
            squared_along,
            mean,
            mean_along: 0.0,
            spread,
        }
    }

    fn dim(&self) -> usize {
        self.mean.len()
    }

    /// The place of the row that is the farthest out, where one is far out.
    fn farthest_out(&mut self, shape: &Shape) -> Option<usize> {
        let ratios: Vec<f64> = self.distances.iter().map(|distance| distance / self.spread).collect();
        if self.shaped.is_empty() && ratios.iter().any(|&ratio| ratio > NEAR) {
            self.shaped = shape.times(&self.deviations);
            let pairs = self.deviations.chunks_exact(shape.dim).zip(self.shaped.chunks_exact(shape.dim));
            self.squared_along = pairs.map(|(deviation, shaped)| product(deviation, shaped)).collect();
        }
        let (mut farthest, mut most) = (None, 1.0);
        for (place, (&distance, &ratio)) in self.distances.iter().zip(&ratios).enumerate() {
            if ratio > NEAR {
                let along = self.along(place);
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

    /// The deviation of a row from the mean of those that are left, times the shape, times itself.
    fn along(&self, place: usize) -> f64 {
        let shaped = &self.shaped[place * self.dim()..][..self.dim()];
        self.squared_along[place] - 2.0 * product(&self.mean, shaped) + self.mean_along
    }

    /// Takes a row out, after the farthest was asked for.
    fn remove(&mut self, place: usize, shape: &Shape) {
        let (dim, left) = (self.dim(), self.rows.len() - 1);
        let at = place * dim..(place + 1) * dim;
        for (mean, x) in self.mean.iter_mut().zip(&self.deviations[at.clone()]) {
            *mean += (*mean - x) / left as f32;
        }
        self.rows.remove(place);
        self.squared.remove(place);
        self.squared_along.remove(place);
        self.deviations.drain(at.clone());
        self.shaped.drain(at);
        self.mean_along = product(&self.mean, &shape.times(&self.mean));
        let moved = product(&self.mean, &self.mean);
        let deviations = self.deviations.chunks_exact(dim).zip(&self.squared);
        self.distances.clear();
        self.distances
            .extend(deviations.map(|(row, squared)| squared - 2.0 * product(&self.mean, row) + moved));
        self.spread = self.distances.iter().sum::<f64>() / left as f64;
    }

    /// Whether the mean has moved so far that differences of squares have lost digits.
    fn has_moved(&self) -> bool {
        product(&self.mean, &self.mean) > self.spread
    }
}

pub(crate) fn point(points: &[f32], row: u32, dim: usize) -> &[f32] {
    &points[row as usize * dim..][..dim]
}

/// The inner product, in eight sums side by side.
pub(crate) fn product(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(a * b)).sum();
    sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() + rest
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
    fn of(clusters: &[Around], dim: usize) -> Self {
        let rows: usize = clusters.iter().map(|cluster| cluster.rows.len()).sum();
        let stride = rows.div_ceil(SHAPE_ROWS).max(1);
        let mut deviations = Vec::with_capacity(SHAPE_ROWS * dim);
        let (mut spread, mut start) = (0.0, 0);
        for cluster in clusters {
            let end = start + cluster.rows.len();
            spread += cluster.spread * cluster.rows.len() as f64;
            if cluster.spread > 0.0 {
                let scale = (1.0 / cluster.spread).sqrt() as f32;
                for place in (start.next_multiple_of(stride)..end).step_by(stride) {
                    let deviation = &cluster.deviations[(place - start) * dim..][..dim];
                    deviations.extend(deviation.iter().map(|x| scale * x));
                }
            }
            start = end;
        }
        let all = rows.max(1) as f64;
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
        Self { matrix, dim, spread: spread / all, taken }
    }

    /// From how many squared standard deviations on a row is far out: `least`, or more where rows take many dimensions.
    fn far_squared(&self, least: f64) -> f64 {
        least.max(least / TAKEN_DIMS * self.taken)
    }

    /// Rows `[rows, dim]` times the matrix.
    fn times(&self, rows: &[f32]) -> Vec<f32> {
        let count = rows.len() / self.dim;
        let mut products = vec![0.0; rows.len()];
        matmul(
            MatMut::from_column_major_slice_mut(&mut products, self.dim, count),
            Accum::Replace,
            MatRef::from_column_major_slice(&self.matrix, self.dim, self.dim),
            MatRef::from_column_major_slice(rows, self.dim, count),
            1.0,
            Par::Seq,
        );
        products
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    const DIM: usize = 11;

    fn points(count: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        (0..count * DIM)
            .map(|i| (i % DIM + 1) as f32 * (random.next_u32() as f32 / 2f32.powi(32) - 0.4))
            .collect()
    }

    fn shape() -> Shape {
        let others: Vec<Around> =
            (0..6).map(|c| Around::of((20 * c..20 * (c + 1)).collect(), &points(120), DIM)).collect();
        Shape::of(&others, DIM)
    }

    /// How far out each row is in its own direction, as the search finds it.
    fn along(cluster: &mut Around, shape: &Shape) -> Vec<f64> {
        cluster.farthest_out(shape);
        (0..cluster.rows.len()).map(|place| cluster.along(place)).collect()
    }

    #[test]
    fn rows_that_leave_change_the_others_as_if_they_had_never_been_there() {
        let (points, shape) = (points(40), shape());
        let mut cluster = Around::of((0..30).collect(), &points, DIM);
        along(&mut cluster, &shape);
        for place in [29, 7, 0, 11] {
            cluster.remove(place, &shape);
            assert!(!cluster.has_moved());
        }
        let left: Vec<u32> = (1..29).filter(|row| ![7, 13].contains(row)).collect();
        assert_eq!(cluster.rows, left);
        let mut anew = Around::of(left, &points, DIM);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b;
        assert!(near(cluster.spread, anew.spread), "{} and {}", cluster.spread, anew.spread);
        assert!(cluster.distances.iter().zip(&anew.distances).all(|(&a, &b)| near(a, b)));
        let [kept, anew] = [&mut cluster, &mut anew].map(|cluster| along(cluster, &shape));
        assert!(kept.iter().zip(&anew).all(|(&a, &b)| near(a, b)), "{kept:?}, {anew:?}");
    }

    #[test]
    fn a_row_that_held_the_mean_leaves_no_trace() {
        let (mut points, shape) = (points(30), shape());
        points[9 * DIM + 4] += 1e7;
        let cluster = Around::of((0..30).collect(), &points, DIM);
        let mut apart = Clustering { order: Vec::new(), offsets: vec![0] };
        // Differences of squares of a mean so far off would have others leave as well.
        assert_eq!(push_near(&mut apart, cluster, &points, &shape), [9]);
        assert_eq!(apart.order, (0..30).filter(|&row| row != 9).collect::<Vec<u32>>());
    }
}
