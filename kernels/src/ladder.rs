//! Arithmetic of the resolution ladder: what uncertain scores weigh, and what reading a row better could change.
//!
//! Numbers lie in planes, one for each query head, so that eight clusters or rows of one head are worked on at once. A
//! score is known up to a normal deviation: that of the scores inside a cluster, or that of what a sketch leaves.

use crate::exp::exp;
use crate::isa::Kernels;
use crate::lanes::Lanes;

/// The exponent of the relative variance of a row's weight counts up to this.
pub const NOISE_MAX: f32 = 4.0;

/// How far estimates may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How far above its estimate a score is allowed for, in standard deviations, ...
    pub deviations: f32,
    /// ... and at most.
    pub rise: f32,
    /// The most that a centroid's score counts above the reference, ...
    pub centre: f32,
    /// ... and the most with the allowance for the spread inside.
    pub spread: f32,
}

/// The clusters of one query head: scores of the centroids, variances of the scores inside, and numbers of rows.
#[derive(Clone, Copy, Debug)]
pub struct Spread<'a> {
    /// Scores of the centroids.
    pub centres: &'a [f32],
    /// Variances, none of them negative.
    pub within: &'a [f32],
    /// Rows.
    pub counts: &'a [f32],
    /// Reference of the exponentials.
    pub top: f32,
}

/// What [`Kernels::weigh_clusters`] finds, one number a cluster.
#[derive(Debug)]
pub struct ClusterWeights<'a> {
    /// How much more than the centre's weight a row's may be, relative to it.
    pub above: &'a mut [f32],
    /// Weight if every row scored as the centroid.
    pub mass: &'a mut [f32],
    /// Weight with the allowance for the spread: `exp` of a quarter of the variance, at most of 1.
    pub estimate: &'a mut [f32],
}

/// The clusters of one query head as an answer rests on them, one number a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Estimated<'a> {
    /// Weights, ...
    pub weights: &'a [f32],
    /// ... and the parts of them that rest on the value mean.
    pub on_mean: &'a [f32],
    /// 1 for a cluster that its summary stands for, 0 for one whose rows were looked at.
    pub closed: &'a [f32],
    /// Variances of the scores inside.
    pub within: &'a [f32],
    /// Squared distances of the value means to the output.
    pub off: &'a [f32],
    /// Mean squared distances of values to their mean.
    pub value_spread: &'a [f32],
    /// Squared errors of the value means.
    pub mean_error: &'a [f32],
    /// Rows.
    pub counts: &'a [f32],
    /// What makes a weight a share: 1 by the sum of the weights.
    pub scale: f32,
}

/// Rows of one query head: their weights, the standard deviations of their scores, and the error of the answer for each
/// unit of weight that a row is off.
#[derive(Clone, Copy, Debug)]
pub struct Uncertain<'a> {
    /// Weights against a reference.
    pub weights: &'a [f32],
    /// Standard deviations of the scores.
    pub deviations: &'a [f32],
    /// Error per weight.
    pub reach: f32,
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
    /// Sum of their squares times the relative variance that the deviations leave, `exp(min(deviation², 4)) - 1`.
    pub noise: f32,
    /// The largest weight.
    pub weight_max: f32,
    /// The largest deviation.
    pub deviation_max: f32,
}

impl Kernels {
    /// Weights of the clusters of one query head.
    ///
    /// `above = exp(min(within, deviations * sqrt(within), rise)) - 1`, `mass = count * exp(min(centre - top, ..))` and
    /// `estimate = count * exp(min(centre + min(within / 4, 1) - top, ..))`, with the limits for the dots.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn weigh_clusters(&self, spread: &Spread<'_>, limits: &Limits, weights: &mut ClusterWeights<'_>) {
        let len = spread.centres.len();
        let same = [spread.within.len(), spread.counts.len(), weights.above.len(), weights.mass.len()];
        assert!(same.iter().all(|&other| other == len) && weights.estimate.len() == len, "{len} clusters");
        (self.weigh_clusters)(spread, limits, weights);
    }

    /// Squared error that clusters leave in the output of one query head. With `share = closed * scale * weight` and
    /// `w = min(within, 2)` it is the sum of
    /// `share² / count * ((exp(w) - 1) * (off + spread) + spread) + (scale * on_mean)² * mean_error`. `shifts` gets how
    /// much a share may lie too high or too low, `share * (exp(w / 4) - 1)`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn cluster_noise(&self, clusters: &Estimated<'_>, shifts: &mut [f32]) -> f32 {
        let c = clusters;
        let slices =
            [c.weights, c.on_mean, c.closed, c.within, c.off, c.value_spread, c.mean_error, c.counts];
        assert!(slices.iter().all(|slice| slice.len() == shifts.len()), "{} clusters", shifts.len());
        (self.cluster_noise)(clusters, shifts)
    }

    /// Turns scores into weights in place, `exp(min(score + min(deviation² / 2, 1) - top, most))`: the exponential of an
    /// uncertain score is larger than that of its mean (Jensen). A score of minus infinity weighs 0.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn weigh_rows(&self, scores: &mut [f32], deviations: &[f32], top: f32, most: f32) -> RowSums {
        assert!(scores.len() == deviations.len(), "{} scores, {} deviations", scores.len(), deviations.len());
        (self.weigh_rows)(scores, deviations, top, most)
    }

    /// The sums of weights as [`Kernels::weigh_rows`] has left them, or as they have been replaced.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn sum_rows(&self, weights: &[f32], deviations: &[f32]) -> RowSums {
        assert!(
            weights.len() == deviations.len(),
            "{} weights, {} deviations",
            weights.len(),
            deviations.len()
        );
        (self.sum_rows)(weights, deviations)
    }

    /// Adds to each row's gain the square of what reading it may change in the output of one query head:
    /// weight times reach times the factor that `kind` has.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn row_gains(&self, rows: Uncertain<'_>, kind: GainOf, gains: &mut [f32]) {
        let len = gains.len();
        assert!(rows.weights.len() == len && rows.deviations.len() == len, "{len} gains");
        (self.row_gains)(rows, kind, gains);
    }
}

/// Up to eight numbers, and zeros in the lanes after them.
#[inline(always)]
fn load<L: Lanes>(isa: L, numbers: &[f32]) -> L::V {
    match numbers.try_into() {
        Ok(lanes) => isa.load(lanes),
        Err(_) => {
            let mut lanes = [0.0; 8];
            lanes[..numbers.len()].copy_from_slice(numbers);
            isa.load(&lanes)
        }
    }
}

#[inline(always)]
fn store<L: Lanes>(isa: L, x: L::V, to: &mut [f32]) {
    match to.try_into() {
        Ok(lanes) => isa.store(x, lanes),
        Err(_) => crate::exp::store_padded(isa, x, to),
    }
}

#[inline(always)]
pub(crate) fn weigh_clusters<L: Lanes>(
    isa: L,
    spread: &Spread<'_>,
    limits: &Limits,
    weights: &mut ClusterWeights<'_>,
) {
    let (top, one) = (isa.splat(spread.top), isa.splat(1.0));
    let inputs = spread.centres.chunks(8).zip(spread.within.chunks(8)).zip(spread.counts.chunks(8));
    let above = weights.above.chunks_mut(8).zip(weights.mass.chunks_mut(8));
    let outputs = above.zip(weights.estimate.chunks_mut(8));
    for (((centre, within), count), ((above, mass), estimate)) in inputs.zip(outputs) {
        let (centre, within, count) = (load(isa, centre), load(isa, within), load(isa, count));
        let over = isa.sub(centre, top);
        let rise = isa.min(within, isa.mul(isa.sqrt(within), isa.splat(limits.deviations)));
        let most = exp(isa, isa.min(rise, isa.splat(limits.rise)));
        store(isa, isa.sub(most, one), above);
        let centred = exp(isa, isa.min(over, isa.splat(limits.centre)));
        store(isa, isa.mul(count, centred), mass);
        let allowance = isa.min(isa.mul(within, isa.splat(0.25)), one);
        let spread = exp(isa, isa.min(isa.add(over, allowance), isa.splat(limits.spread)));
        store(isa, isa.mul(count, spread), estimate);
    }
}

/// Variances of scores inside a cluster count up to this in its noise.
const WITHIN_MAX: f32 = 2.0;

#[inline(always)]
pub(crate) fn cluster_noise<L: Lanes>(isa: L, clusters: &Estimated<'_>, shifts: &mut [f32]) -> f32 {
    let (scale, two) = (isa.splat(clusters.scale), isa.splat(2.0));
    let mut sums = [isa.splat(0.0); 8];
    for (number, shifts) in shifts.chunks_mut(8).enumerate() {
        let places = number * 8..number * 8 + shifts.len();
        let of = |slice: &[f32]| -> [f32; 8] {
            let mut lanes = [0.0; 8];
            lanes[..places.len()].copy_from_slice(&slice[places.clone()]);
            lanes
        };
        let share = isa.mul(isa.mul(isa.load(&of(clusters.weights)), scale), isa.load(&of(clusters.closed)));
        let within = isa.min(isa.load(&of(clusters.within)), isa.splat(WITHIN_MAX));
        let quarter = small_exp_m1(isa, isa.mul(within, isa.splat(0.25)));
        let double = isa.mul(quarter, isa.add(quarter, two));
        let whole = isa.mul(double, isa.add(double, two));
        let spread = isa.load(&of(clusters.value_spread));
        let noise = isa.mul_add(whole, isa.add(isa.load(&of(clusters.off)), spread), spread);
        // Lanes without a cluster have a share of 0, and must not divide it by 0.
        let count = isa.max(isa.load(&of(clusters.counts)), isa.splat(1.0));
        sums[0] = isa.add(sums[0], isa.mul(isa.div(isa.mul(share, share), count), noise));
        let unread = isa.mul(isa.load(&of(clusters.on_mean)), scale);
        sums[1] = isa.mul_add(isa.mul(unread, unread), isa.load(&of(clusters.mean_error)), sums[1]);
        store(isa, isa.mul(share, quarter), shifts);
    }
    let mut totals = [0.0; 8];
    isa.store(isa.sum_each(sums), &mut totals);
    totals[0] + totals[1]
}

/// `exp(x) - 1` for x from 0 to 1/2, within a relative 4e-7: the series, whose first left-out term is less than 1e-7.
#[inline(always)]
fn small_exp_m1<L: Lanes>(isa: L, x: L::V) -> L::V {
    let mut sum = isa.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
        sum = isa.mul_add(sum, x, isa.splat(coefficient));
    }
    isa.mul(x, sum)
}

/// Sums under way, lane by lane.
struct Lanewise<V> {
    weight: V,
    squared: V,
    noise: V,
    weight_max: V,
    deviation_max: V,
}

impl<V: Copy> Lanewise<V> {
    #[inline(always)]
    fn new<L: Lanes<V = V>>(isa: L) -> Self {
        let zero = isa.splat(0.0);
        Lanewise { weight: zero, squared: zero, noise: zero, weight_max: zero, deviation_max: zero }
    }

    #[inline(always)]
    fn add<L: Lanes<V = V>>(&mut self, isa: L, weight: V, deviation: V, variance: V) {
        let relative = isa.sub(exp(isa, isa.min(variance, isa.splat(NOISE_MAX))), isa.splat(1.0));
        let squared = isa.mul(weight, weight);
        self.weight = isa.add(self.weight, weight);
        self.squared = isa.add(self.squared, squared);
        self.noise = isa.mul_add(squared, relative, self.noise);
        self.weight_max = isa.max(self.weight_max, weight);
        self.deviation_max = isa.max(self.deviation_max, deviation);
    }

    #[inline(always)]
    fn finish<L: Lanes<V = V>>(self, isa: L) -> RowSums {
        let zero = isa.splat(0.0);
        let mut sums = [0.0; 8];
        isa.store(
            isa.sum_each([self.weight, self.squared, self.noise, zero, zero, zero, zero, zero]),
            &mut sums,
        );
        let (mut weights, mut deviations) = ([0.0; 8], [0.0; 8]);
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
pub(crate) fn weigh_rows<L: Lanes>(
    isa: L,
    scores: &mut [f32],
    deviations: &[f32],
    top: f32,
    most: f32,
) -> RowSums {
    let mut sums = Lanewise::new(isa);
    let (top, most) = (isa.splat(top), isa.splat(most));
    for (scores, deviations) in scores.chunks_mut(8).zip(deviations.chunks(8)) {
        let deviation = load(isa, deviations);
        let variance = isa.mul(deviation, deviation);
        let allowance = isa.min(isa.mul(variance, isa.splat(0.5)), isa.splat(1.0));
        let score = isa.load(&crate::exp::padded(scores));
        let weight = exp(isa, isa.min(isa.sub(isa.add(score, allowance), top), most));
        store(isa, weight, scores);
        sums.add(isa, weight, deviation, variance);
    }
    sums.finish(isa)
}

#[inline(always)]
pub(crate) fn sum_rows<L: Lanes>(isa: L, weights: &[f32], deviations: &[f32]) -> RowSums {
    let mut sums = Lanewise::new(isa);
    for (weights, deviations) in weights.chunks(8).zip(deviations.chunks(8)) {
        let (weight, deviation) = (load(isa, weights), load(isa, deviations));
        sums.add(isa, weight, deviation, isa.mul(deviation, deviation));
    }
    sums.finish(isa)
}

#[inline(always)]
pub(crate) fn row_gains<L: Lanes>(isa: L, rows: Uncertain<'_>, kind: GainOf, gains: &mut [f32]) {
    let reach = isa.splat(rows.reach);
    let numbers = rows.weights.chunks(8).zip(rows.deviations.chunks(8));
    for ((weights, deviations), gains) in numbers.zip(gains.chunks_mut(8)) {
        let deviation = load(isa, deviations);
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
        let gain = isa.mul(isa.mul(load(isa, weights), reach), factor);
        store(isa, isa.mul_add(gain, gain, load(isa, gains)), gains);
    }
}
