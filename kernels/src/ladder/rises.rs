//! By how much rows of a cluster score above its centroid.

use super::{load, sum_lanes};
use crate::isa::Kernels;
use crate::lanes::Lanes;

/// Rows of one cluster, as one query head sees them.
#[derive(Clone, Copy, Debug)]
pub struct Risen<'a> {
    /// Weights.
    pub weights: &'a [f32],
    /// Scores.
    pub scores: &'a [f32],
    /// Standard deviations of the scores.
    pub deviations: &'a [f32],
    /// Score of the centroid.
    pub centre: f32,
    /// The most that a score counts above it, or below.
    pub most: f32,
    /// The most that a variance adds to a score.
    pub variance: f32,
}

impl Kernels {
    /// Sums over the rows: of `weight * rise`, with the rise `score - centre + min(deviation², variance)` held between
    /// `-most` and `most`, and of `(score - centre)² + deviation²`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn sum_rises(&self, rows: &Risen<'_>) -> [f32; 2] {
        let len = rows.weights.len();
        assert!(rows.scores.len() == len && rows.deviations.len() == len, "{len} rows");
        (self.sum_rises)(rows)
    }
}

#[inline(always)]
pub(crate) fn sum_rises<L: Lanes<N>, const N: usize>(isa: L, rows: &Risen<'_>) -> [f32; 2] {
    let (most, least) = (isa.splat(rows.most), isa.splat(-rows.most));
    let (centre, allowed) = (isa.splat(rows.centre), isa.splat(rows.variance));
    let (mut weighted, mut squares) = (isa.splat(0.0), isa.splat(0.0));
    let numbers = rows.weights.chunks(N).zip(rows.scores.chunks(N)).zip(rows.deviations.chunks(N));
    for ((weights, scores), deviations) in numbers {
        // Lanes without a row score as the centroid does.
        let score = isa.load_or(scores, rows.centre);
        let (above, deviation) = (isa.sub(score, centre), load(isa, deviations));
        let variance = isa.mul(deviation, deviation);
        let rise = isa.add(above, isa.min(variance, allowed));
        let rise = isa.max(isa.min(rise, most), least);
        weighted = isa.mul_add(load(isa, weights), rise, weighted);
        squares = isa.add(squares, isa.mul_add(above, above, variance));
    }
    [sum_lanes(isa, weighted), sum_lanes(isa, squares)]
}
