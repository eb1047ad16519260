//! Arithmetic of the resolution ladder: what uncertain scores weigh, and what reading a row better could change.
//!
//! Numbers lie in planes, one for each query head, so that eight or sixteen clusters or rows of one head are worked on at once. A
//! score is known up to a normal deviation: that of the scores inside a cluster, or that of what a sketch leaves.

mod clusters;
mod rises;

pub use clusters::{ClusterWeights, Estimated, Limits, Probed, Rest, RestSums, Spread};
pub(crate) use clusters::{cluster_noise, probe_gains, raise_most, sum_masses, sum_rest, weigh_clusters};
pub use rises::Risen;
pub(crate) use rises::sum_rises;

use crate::exp::{exp, relative_variance};
use crate::isa::Kernels;
use crate::lanes::Lanes;

/// The exponent of the relative variance of a row's weight counts up to this.
pub const NOISE_MAX: f32 = 4.0;
const _: () = assert!(NOISE_MAX <= crate::exp::RELATIVE_VARIANCE_MAX, "beyond where the polynomial holds");

/// Rows, as several query heads see them: their weights, the standard deviations of their scores, and the error of the answer
/// for each unit of weight that a row is off. Numbers of a row lie at `[head * stride + row]`.
#[derive(Clone, Copy, Debug)]
pub struct Uncertain<'a> {
    /// Weights against a reference.
    pub weights: &'a [f32],
    /// Standard deviations of the scores.
    pub deviations: &'a [f32],
    /// Places from a head to the next.
    pub stride: usize,
    /// Error per weight, one number a head.
    pub reach: &'a [f32],
}

/// What a row is read for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GainOf {
    /// Its key: the weight may be larger than it seems by `exp(rise) - 1`, with a rise of `deviations` standard
    /// deviations, at most `rise`.
    Key {
        /// Standard deviations.
        deviations: f32,
        /// The largest rise.
        rise: f32,
    },
    /// Its value, which a weight multiplies that may be larger by `exp(rise)`, the rise being the variance or that of a
    /// key, whichever is less.
    Value {
        /// Standard deviations.
        deviations: f32,
        /// The largest rise.
        rise: f32,
    },
}

/// Sums over rows of one query head.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSums {
    /// Sum of the weights.
    pub weight: f32,
    /// Sum of their squares.
    pub squared: f32,
    /// Sum of their squares times the relative variance that the deviations leave, `exp(min(deviation², 4)) - 1`, within a
    /// relative 1.1e-5.
    pub noise: f32,
    /// The largest weight.
    pub weight_max: f32,
    /// The largest deviation.
    pub deviation_max: f32,
}

impl Kernels {
    /// Turns scores into weights in place, `exp(min(score + min(deviation² / 2, 1) - top, most))`: the exponential of an
    /// uncertain score is larger than that of its mean (Jensen). A score of minus infinity weighs 0.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn weigh_rows(&self, scores: &mut [f32], deviations: &[f32], top: f32, most: f32) -> RowSums {
        assert!(scores.len() == deviations.len(), "{} scores, {} deviations", scores.len(), deviations.len());
        (self.weigh_rows)(scores, deviations, top, most)
    }

    /// The sums of weights of `len` rows as [`Kernels::weigh_rows`] has left them, or as they have been replaced, for as many
    /// heads as there is room for sums. Numbers of a row lie at `[head * stride + row]`.
    ///
    /// # Panics
    /// Where there are no such rows.
    pub fn sum_rows(
        &self,
        weights: &[f32],
        deviations: &[f32],
        len: usize,
        stride: usize,
        sums: &mut [RowSums],
    ) {
        check_planes([weights.len(), deviations.len()], len, stride, sums.len());
        (self.sum_rows)(weights, deviations, len, stride, sums);
    }

    /// Each row's gain: the sum over the query heads of the squares of what reading it may change in a head's output, which is
    /// weight times reach times the factor that `kind` has.
    ///
    /// # Panics
    /// Where there are no such rows.
    pub fn row_gains(&self, rows: Uncertain<'_>, kind: GainOf, gains: &mut [f32]) {
        let found = [rows.weights.len(), rows.deviations.len()];
        check_planes(found, gains.len(), rows.stride, rows.reach.len());
        (self.row_gains)(rows, kind, gains);
    }
}

#[track_caller]
fn check_planes(found: [usize; 2], len: usize, stride: usize, heads: usize) {
    let room =
        heads == 0 || (stride >= len && found.iter().all(|&found| found >= (heads - 1) * stride + len));
    assert!(room, "{found:?} numbers for {len} rows and {heads} heads at a stride of {stride}");
}

/// Up to as many numbers as there are lanes, then zeros.
#[inline(always)]
fn load<L: Lanes<N>, const N: usize>(isa: L, numbers: &[f32]) -> L::V {
    isa.load_or(numbers, 0.0)
}

#[inline(always)]
fn sum_lanes<L: Lanes<N>, const N: usize>(isa: L, x: L::V) -> f32 {
    let mut lanes = [0.0; N];
    isa.store(x, &mut lanes);
    lanes.iter().sum()
}

/// Sums under way, lane by lane.
#[derive(Clone, Copy)]
pub(crate) struct Lanewise<V> {
    weight: V,
    squared: V,
    noise: V,
    weight_max: V,
    deviation_max: V,
}

impl<V: Copy> Lanewise<V> {
    #[inline(always)]
    pub(crate) fn new<L: Lanes<N, V = V>, const N: usize>(isa: L) -> Self {
        let zero = isa.splat(0.0);
        Lanewise { weight: zero, squared: zero, noise: zero, weight_max: zero, deviation_max: zero }
    }

    #[inline(always)]
    pub(crate) fn add<L: Lanes<N, V = V>, const N: usize>(
        &mut self,
        isa: L,
        weight: V,
        deviation: V,
        variance: V,
    ) {
        let relative = relative_variance(isa, isa.min(variance, isa.splat(NOISE_MAX)));
        let squared = isa.mul(weight, weight);
        self.weight = isa.add(self.weight, weight);
        self.squared = isa.add(self.squared, squared);
        self.noise = isa.mul_add(squared, relative, self.noise);
        self.weight_max = isa.max(self.weight_max, weight);
        self.deviation_max = isa.max(self.deviation_max, deviation);
    }

    #[inline(always)]
    pub(crate) fn finish<L: Lanes<N, V = V>, const N: usize>(self, isa: L) -> RowSums {
        let zero = isa.splat(0.0);
        let mut sums = [0.0; N];
        let mut each = [zero; N];
        each[..3].copy_from_slice(&[self.weight, self.squared, self.noise]);
        isa.store(isa.sum_each(each), &mut sums);
        let (mut weights, mut deviations) = ([0.0; N], [0.0; N]);
        isa.store(self.weight_max, &mut weights);
        isa.store(self.deviation_max, &mut deviations);
        RowSums {
            weight: sums[0],
            squared: sums[1],
            noise: sums[2],
            weight_max: weights.into_iter().fold(0.0, f32::max),
            deviation_max: deviations.into_iter().fold(0.0, f32::max),
        }
    }
}

#[inline(always)]
pub(crate) fn weigh_rows<L: Lanes<N>, const N: usize>(
    isa: L,
    scores: &mut [f32],
    deviations: &[f32],
    top: f32,
    most: f32,
) -> RowSums {
    let mut sums = Lanewise::new(isa);
    let (top, most) = (isa.splat(top), isa.splat(most));
    for (scores, deviations) in scores.chunks_mut(N).zip(deviations.chunks(N)) {
        let deviation = load(isa, deviations);
        let variance = isa.mul(deviation, deviation);
        let allowance = isa.min(isa.mul(variance, isa.splat(0.5)), isa.splat(1.0));
        let score = isa.load_or(scores, f32::NEG_INFINITY);
        let weight = exp(isa, isa.min(isa.sub(isa.add(score, allowance), top), most));
        isa.store_first(weight, scores);
        sums.add(isa, weight, deviation, variance);
    }
    sums.finish(isa)
}

#[inline(always)]
pub(crate) fn sum_rows<L: Lanes<N>, const N: usize>(
    isa: L,
    weights: &[f32],
    deviations: &[f32],
    len: usize,
    stride: usize,
    sums: &mut [RowSums],
) {
    for (head, sums) in sums.iter_mut().enumerate() {
        let mut under_way = Lanewise::new(isa);
        let mine = head * stride..head * stride + len;
        for (weights, deviations) in weights[mine.clone()].chunks(N).zip(deviations[mine].chunks(N)) {
            let (weight, deviation) = (load(isa, weights), load(isa, deviations));
            under_way.add(isa, weight, deviation, isa.mul(deviation, deviation));
        }
        *sums = under_way.finish(isa);
    }
}

#[inline(always)]
pub(crate) fn row_gains<L: Lanes<N>, const N: usize>(
    isa: L,
    rows: Uncertain<'_>,
    kind: GainOf,
    gains: &mut [f32],
) {
    for (part, gains) in gains.chunks_mut(N).enumerate() {
        let mut sum = isa.splat(0.0);
        for (head, &reach) in rows.reach.iter().enumerate() {
            if reach == 0.0 {
                continue;
            }
            let mine = head * rows.stride + part * N..head * rows.stride + part * N + gains.len();
            let deviation = load(isa, &rows.deviations[mine.clone()]);
            let factor = match kind {
                GainOf::Key { deviations, rise } => {
                    let rise = isa.min(isa.mul(deviation, isa.splat(deviations)), isa.splat(rise));
                    isa.sub(exp(isa, rise), isa.splat(1.0))
                }
                GainOf::Value { deviations, rise } => {
                    let wide = isa.min(isa.mul(deviation, isa.splat(deviations)), isa.splat(rise));
                    exp(isa, isa.min(isa.mul(deviation, deviation), wide))
                }
            };
            let gain = isa.mul(isa.mul(load(isa, &rows.weights[mine]), isa.splat(reach)), factor);
            sum = isa.mul_add(gain, gain, sum);
        }
        isa.store_first(sum, gains);
    }
}
