//! k-means on the centred rows of one head.
//!
//! A row goes to the centroid with the largest `x . c - |c|^2 / 2`, which is the nearest one: the products of a tile of
//! rows with all centroids are one matrix product, and what remains per row is a search for a maximum.
//! Everything runs on one thread in a fixed order, so that the same input gives the same bits however many heads
//! are clustered at once.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::ClusterOptions;

/// Floats of one tile's products: with the packed operands they stay within a second-level cache.
const TILE_PRODUCTS: usize = 1 << 17;
const TILE_ROWS_MIN: usize = 64;
const TILE_ROWS_MAX: usize = 1024;

/// Buffers of one clustering, reused from head to head: first touches of fresh memory are dear.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Centred and scaled rows, `[rows, dim]`.
    pub(crate) points: Vec<f32>,
    /// Cluster of each row after `run`; some of the clusters may be empty.
    pub(crate) labels: Vec<u32>,
    /// Rows of each cluster after `run`.
    pub(crate) counts: Vec<u32>,
    centroids: Vec<f32>,
    half_norms: Vec<f32>,
    products: Vec<f32>,
}

impl Workspace {
    /// Clusters `keys` (`[rows, dim]`, at least one row); leaves `points`, `labels` and `counts`.
    pub(crate) fn run(&mut self, keys: &[f32], dim: usize, options: &ClusterOptions, stream: u64) {
        let rows = keys.len() / dim;
        let clusters = (rows / options.tokens_per_cluster.max(1) as usize).max(1);
        let mut random = ChaCha8Rng::seed_from_u64(options.seed);
        random.set_stream(stream);

        centre(keys, dim, &mut self.points);
        self.start(rows, dim, clusters);
        // `u32::MAX` marks that no assignment was made yet, so that the first one always counts as a change.
        self.labels.clear();
        self.labels.resize(rows, u32::MAX);
        for _ in 0..options.iterations {
            let changed = self.assign(dim);
            let empty = self.update(dim, &mut random);
            if !changed && empty == 0 {
                // The centroids are what they were: every further round would repeat this one.
                return;
            }
        }
        self.assign(dim);
    }

    /// Takes evenly strided rows as the first centroids.
    fn start(&mut self, rows: usize, dim: usize, clusters: usize) {
        self.centroids.clear();
        for cluster in 0..clusters {
            let row = strided(cluster, clusters, rows);
            self.centroids.extend_from_slice(&self.points[row * dim..][..dim]);
        }
        self.counts.clear();
        self.counts.resize(clusters, 0);
    }

    /// Labels every row with its nearest centroid and counts the rows of each; says whether a label changed.
    fn assign(&mut self, dim: usize) -> bool {
        let clusters = self.counts.len();
        self.half_norms.clear();
        self.half_norms
            .extend(self.centroids.chunks_exact(dim).map(|c| 0.5 * c.iter().map(|x| x * x).sum::<f32>()));
        self.counts.fill(0);

        let tile = (TILE_PRODUCTS / clusters).clamp(TILE_ROWS_MIN, TILE_ROWS_MAX);
        self.products.resize((tile * clusters).max(self.products.len()), 0.0);
        let centroids = MatRef::from_row_major_slice(&self.centroids, clusters, dim);
        let mut changed = false;
        for (points, labels) in self.points.chunks(tile * dim).zip(self.labels.chunks_mut(tile)) {
            let products = &mut self.products[..labels.len() * clusters];
            matmul(
                MatMut::from_column_major_slice_mut(products, clusters, labels.len()),
                Accum::Replace,
                centroids,
                MatRef::from_column_major_slice(points, dim, labels.len()),
                1.0,
                Par::Seq,
            );
            for (products, label) in products.chunks_exact(clusters).zip(labels) {
                let nearest = nearest(products, &self.half_norms) as u32;
                changed |= *label != nearest;
                *label = nearest;
                self.counts[nearest as usize] += 1;
            }
        }
        changed
    }

    /// Moves every centroid to the mean of its rows, and those without rows to a random row each; returns how many
    /// were without.
    fn update(&mut self, dim: usize, random: &mut ChaCha8Rng) -> usize {
        self.centroids.fill(0.0);
        for (point, &label) in self.points.chunks_exact(dim).zip(&self.labels) {
            let centroid = &mut self.centroids[label as usize * dim..][..dim];
            centroid.iter_mut().zip(point).for_each(|(sum, x)| *sum += x);
        }
        let mut empty = 0;
        for (centroid, &count) in self.centroids.chunks_exact_mut(dim).zip(&self.counts) {
            if count == 0 {
                empty += 1;
                // A multiply-shift instead of a library's range sampling: its bits cannot change with a version.
                let row = (u64::from(random.next_u32()) * self.labels.len() as u64) >> 32;
                centroid.copy_from_slice(&self.points[row as usize * dim..][..dim]);
            } else {
                let count = count as f32;
                centroid.iter_mut().for_each(|sum| *sum /= count);
            }
        }
        empty
    }
}

/// Row from which cluster `cluster` of `clusters` starts: `linspace(0, rows - 1, clusters)`, cut to whole numbers.
fn strided(cluster: usize, clusters: usize, rows: usize) -> usize {
    if cluster + 1 == clusters && cluster > 0 {
        return rows - 1;
    }
    let step = (rows - 1) as f64 / (clusters.max(2) - 1) as f64;
    (cluster as f64 * step) as usize
}

/// Writes `keys` less their mean into `points`, scaled by the power of two that brings the largest element to about 1.
///
/// The scale changes no decision (a power of two only moves exponents) but keeps squares away from overflow and
/// underflow whatever the magnitude of the keys.
fn centre(keys: &[f32], dim: usize, points: &mut Vec<f32>) {
    let mut mean = vec![0.0f64; dim];
    for key in keys.chunks_exact(dim) {
        mean.iter_mut().zip(key).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let rows = (keys.len() / dim) as f64;
    mean.iter_mut().for_each(|sum| *sum /= rows);

    let mut largest = 0.0f64;
    for key in keys.chunks_exact(dim) {
        for (&x, m) in key.iter().zip(&mean) {
            let size = (f64::from(x) - m).abs();
            largest = if size > largest { size } else { largest };
        }
    }
    let scale = if largest > 0.0 && largest.is_finite() { (-largest.log2().ceil()).exp2() } else { 1.0 };
    points.clear();
    for key in keys.chunks_exact(dim) {
        points.extend(key.iter().zip(&mean).map(|(&x, m)| ((f64::from(x) - m) * scale) as f32));
    }
}

/// Index of the first largest `products[i] - half_norms[i]`.
///
/// Finds the maximum first and then where it is: both passes are free of branches inside a block, so that the compiler
/// vectorises them. Not-a-number never wins; where nothing wins, the answer is 0.
fn nearest(products: &[f32], half_norms: &[f32]) -> usize {
    const BLOCK: usize = 16;
    let (blocks, tail) = products.as_chunks::<BLOCK>();
    let (norm_blocks, norm_tail) = half_norms.as_chunks::<BLOCK>();
    let mut lanes = [f32::NEG_INFINITY; BLOCK];
    for (block, norms) in blocks.iter().zip(norm_blocks) {
        for lane in 0..BLOCK {
            lanes[lane] = larger(block[lane] - norms[lane], lanes[lane]);
        }
    }
    for ((lane, product), norm) in lanes.iter_mut().zip(tail).zip(norm_tail) {
        *lane = larger(product - norm, *lane);
    }
    let most = lanes.into_iter().fold(f32::NEG_INFINITY, |most, lane| larger(lane, most));

    let holds = |block: &[f32; BLOCK], norms: &[f32; BLOCK]| {
        (0..BLOCK).fold(false, |found, lane| found | (block[lane] - norms[lane] == most))
    };
    let start =
        blocks.iter().zip(norm_blocks).position(|(block, norms)| holds(block, norms)).unwrap_or(blocks.len());
    let candidates = products[start * BLOCK..].iter().zip(&half_norms[start * BLOCK..]);
    candidates
        .take(BLOCK)
        .position(|(product, norm)| product - norm == most)
        .map_or(0, |lane| start * BLOCK + lane)
}

/// The larger of two, the second when they do not compare: one instruction, unlike `f32::max`.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_the_first_largest_at_every_length_and_place() {
        for clusters in 1..=100 {
            let norms: Vec<f32> = (0..clusters).map(|i| (i * 7 % 13) as f32).collect();
            for place in 0..clusters {
                let mut products: Vec<f32> = norms.iter().map(|n| n - 5.0).collect();
                products[place] = norms[place] + 1.0;
                // A tie behind the first must lose.
                if let Some(last) = products.get_mut(place + 1) {
                    *last = norms[place + 1] + 1.0;
                }
                assert_eq!(nearest(&products, &norms), place, "{clusters} clusters");
            }
        }
    }

    #[test]
    fn nearest_passes_over_what_does_not_compare() {
        let mut products = [f32::NAN; 70];
        assert_eq!(nearest(&products, &[0.0; 70]), 0);
        products[41] = -3.0;
        assert_eq!(nearest(&products, &[0.0; 70]), 41);
        products[67] = 2.0;
        assert_eq!(nearest(&products, &[0.0; 70]), 67);
        assert_eq!(nearest(&[f32::NEG_INFINITY; 70], &[0.0; 70]), 0);
    }

    #[test]
    fn start_is_evenly_strided() {
        let starts = |clusters, rows| (0..clusters).map(|c| strided(c, clusters, rows)).collect::<Vec<_>>();
        assert_eq!(starts(1, 9), [0]);
        assert_eq!(starts(2, 9), [0, 8]);
        assert_eq!(starts(4, 11), [0, 3, 6, 10]);
        assert_eq!(starts(3, 3), [0, 1, 2]);
        assert_eq!(starts(1, 1), [0]);
    }

    #[test]
    fn centring_subtracts_the_mean_and_scales_by_a_power_of_two() {
        let mut points = Vec::new();
        centre(&[1.0, 10.0, 4.0, 20.0, 7.0, 60.0], 2, &mut points);
        // Means 4 and 30; the largest difference is 30, so the scale is 1/32.
        assert_eq!(points, [-3.0 / 32.0, -20.0 / 32.0, 0.0, -10.0 / 32.0, 3.0 / 32.0, 30.0 / 32.0]);
        centre(&[f32::MAX, -f32::MAX, f32::MAX, f32::MAX], 2, &mut points);
        assert!(points.iter().all(|x| x.abs() <= 1.0), "{points:?}");
    }
}
