//! Arithmetic of the resolution ladder: what uncertain scores weigh, and what reading a row better could change.
//!
//! Numbers lie in planes, one for each query head, so that eight clusters or rows of one head are worked on at once. A
//! score is known up to a normal deviation: that of the scores inside a cluster, or that of what a sketch leaves.

use crate::exp::{exp, relative_variance, small_exp_m1};
use crate::isa::Kernels;
use crate::lanes::Lanes;

/// The exponent of the relative variance of a row's weight counts up to this.
pub const NOISE_MAX: f32 = 4.0;
const _: () = assert!(NOISE_MAX <= crate::exp::RELATIVE_VARIANCE_MAX, "beyond where the polynomial holds");

/// How far estimates may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How far above its estimate a score is allowed for, in standard deviations, ...
    pub deviations: f32,
    /// ... and at most.
    pub rise: f32,
    /// The most that a centroid's score counts above the reference.
    pub centre: f32,
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
    /// Weight if every row scored as the centroid.
    pub mass: &'a mut [f32],
    /// Weight with the allowance for the spread: `exp` of a quarter of the variance, at most of 1.
    pub estimate: &'a mut [f32],
    /// How much too high or too low the estimate may lie: it, times `exp` of a quarter of the variance, at most of 1/2,
    /// less 1.
    pub shift: &'a mut [f32],
}

/// Clusters whose value means are known, for one query head and an answer that stands.
#[derive(Clone, Copy, Debug)]
pub struct Probed<'a> {
    /// Weights if every row scored as the centroid.
    pub mass: &'a [f32],
    /// Variances of the scores inside.
    pub within: &'a [f32],
    /// Squared distances of the value means to the output.
    pub off: &'a [f32],
    /// Mean squared distances of values to their mean, and what is added to them.
    pub inside: &'a [f32],
    /// Rows.
    pub counts: &'a [f32],
    /// What makes a weight an error of the output: 1 by the sum of the weights and the length of the output.
    pub scale: f32,
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
    /// Relative variance of a weight from the error of the centroid, which all rows of a cluster share. It counts up to twice
    /// the variance of the scores inside, of which it is a part.
    pub shared: f32,
    /// What makes a weight a share: 1 by the sum of the weights.
    pub scale: f32,
}

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
    /// Weights of the clusters of one query head; returns the sum of the masses.
    ///
    /// `mass = count * exp(min(centre - top, limits.centre))`, `estimate = mass * exp(min(within / 4, 1))` and
    /// `shift = estimate * (exp(min(within / 4, 1 / 2)) - 1)`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn weigh_clusters(
        &self,
        spread: &Spread<'_>,
        limits: &Limits,
        weights: &mut ClusterWeights<'_>,
    ) -> f32 {
        let len = spread.centres.len();
        let same = [spread.within.len(), spread.counts.len(), weights.mass.len(), weights.estimate.len()];
        assert!(same.iter().all(|&other| other == len) && weights.shift.len() == len, "{len} clusters");
        (self.weigh_clusters)(spread, limits, weights)
    }

    /// Raises `most` to the logarithm of the most that a row's weight may be, by `base`:
    /// `base + centre - top + min(within, deviations * sqrt(within), rise)`, with the limits for the last two.
    ///
    /// # Panics
    /// Where the slices differ in length. The counts are not looked at.
    pub fn raise_most(&self, spread: &Spread<'_>, limits: &Limits, base: f32, most: &mut [f32]) {
        let len = most.len();
        assert!(spread.centres.len() == len && spread.within.len() == len, "{len} clusters");
        (self.raise_most)(spread, limits, base, most);
    }

    /// Adds to each cluster's gain the square of what opening it may change in the output of one query head:
    /// `(mass * scale / count * (exp(min(within, deviations * sqrt(within), rise)) - 1))² * (off + inside)`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn probe_gains(&self, probed: &Probed<'_>, limits: &Limits, gains: &mut [f32]) {
        let slices = [probed.mass, probed.within, probed.off, probed.inside, probed.counts];
        assert!(slices.iter().all(|slice| slice.len() == gains.len()), "{} clusters", gains.len());
        (self.probe_gains)(probed, limits, gains);
    }

    /// Squared error that clusters leave in the output of one query head. With `share = closed * scale * weight` and
    /// `w = min(within, 2)` it is the sum of
    /// `share² * (((exp(w) - 1) * (off + spread) + spread) / count + min(shared, 2 * within) * off) + (scale * on_mean)² * mean_error`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn cluster_noise(&self, clusters: &Estimated<'_>) -> f32 {
        let c = clusters;
        let slices = [c.on_mean, c.closed, c.within, c.off, c.value_spread, c.mean_error, c.counts];
        let len = c.weights.len();
        assert!(slices.iter().all(|slice| slice.len() == len), "{len} clusters");
        (self.cluster_noise)(clusters)
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

/// Up to eight numbers, then zeros.
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

/// Variances of scores inside a cluster count up to this in its weight, ...
const ALLOWED_MAX: f32 = 4.0;
/// ... and up to this in its noise.
const WITHIN_MAX: f32 = 2.0;
/// `exp(WITHIN_MAX / 4) - 1`.
const SHIFT_MAX: f32 = 0.648_721_3;

#[inline(always)]
pub(crate) fn weigh_clusters<L: Lanes>(
    isa: L,
    spread: &Spread<'_>,
    limits: &Limits,
    weights: &mut ClusterWeights<'_>,
) -> f32 {
    let (top, two) = (isa.splat(spread.top), isa.splat(2.0));
    let mut total = isa.splat(0.0);
    let inputs = spread.centres.chunks(8).zip(spread.within.chunks(8)).zip(spread.counts.chunks(8));
    let outputs = weights.mass.chunks_mut(8).zip(weights.estimate.chunks_mut(8));
    for (((centre, within), count), ((mass, estimate), shift)) in
        inputs.zip(outputs.zip(weights.shift.chunks_mut(8)))
    {
        let (centre, within, count) = (load(isa, centre), load(isa, within), load(isa, count));
        let centred = exp(isa, isa.min(isa.sub(centre, top), isa.splat(limits.centre)));
        let weight = isa.mul(count, centred);
        total = isa.add(total, weight);
        let eighth = isa.mul(isa.min(within, isa.splat(ALLOWED_MAX)), isa.splat(0.125));
        let eighth = small_exp_m1(isa, eighth);
        let quarter = isa.mul(eighth, isa.add(eighth, two));
        let allowed = isa.mul_add(weight, quarter, weight);
        store(isa, weight, mass);
        store(isa, allowed, estimate);
        store(isa, isa.mul(allowed, isa.min(quarter, isa.splat(SHIFT_MAX))), shift);
    }
    sum_lanes(isa, total)
}

/// How far above its estimate a score in a cluster may lie.
#[inline(always)]
fn rise<L: Lanes>(isa: L, within: L::V, limits: &Limits) -> L::V {
    let deviations = isa.mul(isa.sqrt(within), isa.splat(limits.deviations));
    isa.min(isa.min(within, deviations), isa.splat(limits.rise))
}

#[inline(always)]
pub(crate) fn raise_most<L: Lanes>(
    isa: L,
    spread: &Spread<'_>,
    limits: &Limits,
    base: f32,
    most: &mut [f32],
) {
    let base = isa.splat(base - spread.top);
    let inputs = spread.centres.chunks(8).zip(spread.within.chunks(8));
    for ((centre, within), most) in inputs.zip(most.chunks_mut(8)) {
        let above = isa.add(isa.add(load(isa, centre), base), rise(isa, load(isa, within), limits));
        store(isa, isa.max(above, load(isa, most)), most);
    }
}

#[inline(always)]
pub(crate) fn probe_gains<L: Lanes>(isa: L, probed: &Probed<'_>, limits: &Limits, gains: &mut [f32]) {
    let scale = isa.splat(probed.scale);
    let weights = probed.mass.chunks(8).zip(probed.within.chunks(8)).zip(probed.counts.chunks(8));
    let values = probed.off.chunks(8).zip(probed.inside.chunks(8));
    for ((((mass, within), count), (off, inside)), gains) in weights.zip(values).zip(gains.chunks_mut(8)) {
        let above = isa.sub(exp(isa, rise(isa, load(isa, within), limits)), isa.splat(1.0));
        // Lanes without a cluster have no mass, and must not divide it by 0.
        let count = isa.max(load(isa, count), isa.splat(1.0));
        let row = isa.mul(isa.div(isa.mul(load(isa, mass), scale), count), above);
        let reach = isa.add(load(isa, off), load(isa, inside));
        store(isa, isa.mul_add(isa.mul(row, row), reach, load(isa, gains)), gains);
    }
}

#[inline(always)]
pub(crate) fn cluster_noise<L: Lanes>(isa: L, clusters: &Estimated<'_>) -> f32 {
    let (scale, two) = (isa.splat(clusters.scale), isa.splat(2.0));
    let (mut noise, mut coding) = (isa.splat(0.0), isa.splat(0.0));
    let weights = clusters.weights.chunks(8).zip(clusters.on_mean.chunks(8));
    let scores = clusters.closed.chunks(8).zip(clusters.within.chunks(8)).zip(clusters.counts.chunks(8));
    let values =
        clusters.off.chunks(8).zip(clusters.value_spread.chunks(8)).zip(clusters.mean_error.chunks(8));
    for (((weight, on_mean), ((closed, within), count)), ((off, spread), mean_error)) in
        weights.zip(scores).zip(values)
    {
        let share = isa.mul(isa.mul(load(isa, weight), scale), load(isa, closed));
        let within = load(isa, within);
        let shared = isa.min(isa.splat(clusters.shared), isa.add(within, within));
        let within = isa.min(within, isa.splat(WITHIN_MAX));
        let quarter = small_exp_m1(isa, isa.mul(within, isa.splat(0.25)));
        let double = isa.mul(quarter, isa.add(quarter, two));
        let whole = isa.mul(double, isa.add(double, two));
        let (off, spread) = (load(isa, off), load(isa, spread));
        let each = isa.mul_add(whole, isa.add(off, spread), spread);
        // Lanes without a cluster have a share of 0, and must not divide it by 0.
        let count = isa.max(load(isa, count), isa.splat(1.0));
        let each = isa.mul_add(shared, off, isa.div(each, count));
        noise = isa.mul_add(isa.mul(share, share), each, noise);
        let unread = isa.mul(load(isa, on_mean), scale);
        coding = isa.mul_add(isa.mul(unread, unread), load(isa, mean_error), coding);
    }
    sum_lanes(isa, isa.add(noise, coding))
}

#[inline(always)]
fn sum_lanes<L: Lanes>(isa: L, x: L::V) -> f32 {
    let mut lanes = [0.0; 8];
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
    pub(crate) fn new<L: Lanes<V = V>>(isa: L) -> Self {
        let zero = isa.splat(0.0);
        Lanewise { weight: zero, squared: zero, noise: zero, weight_max: zero, deviation_max: zero }
    }

    #[inline(always)]
    pub(crate) fn add<L: Lanes<V = V>>(&mut self, isa: L, weight: V, deviation: V, variance: V) {
        let relative = relative_variance(isa, isa.min(variance, isa.splat(NOISE_MAX)));
        let squared = isa.mul(weight, weight);
        self.weight = isa.add(self.weight, weight);
        self.squared = isa.add(self.squared, squared);
        self.noise = isa.mul_add(squared, relative, self.noise);
        self.weight_max = isa.max(self.weight_max, weight);
        self.deviation_max = isa.max(self.deviation_max, deviation);
    }

    #[inline(always)]
    pub(crate) fn finish<L: Lanes<V = V>>(self, isa: L) -> RowSums {
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
pub(crate) fn sum_rows<L: Lanes>(
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
        for (weights, deviations) in weights[mine.clone()].chunks(8).zip(deviations[mine].chunks(8)) {
            let (weight, deviation) = (load(isa, weights), load(isa, deviations));
            under_way.add(isa, weight, deviation, isa.mul(deviation, deviation));
        }
        *sums = under_way.finish(isa);
    }
}

#[inline(always)]
pub(crate) fn row_gains<L: Lanes>(isa: L, rows: Uncertain<'_>, kind: GainOf, gains: &mut [f32]) {
    for (part, gains) in gains.chunks_mut(8).enumerate() {
        let mut sum = isa.splat(0.0);
        for (head, &reach) in rows.reach.iter().enumerate() {
            if reach == 0.0 {
                continue;
            }
            let mine = head * rows.stride + part * 8..head * rows.stride + part * 8 + gains.len();
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
        store(isa, sum, gains);
    }
}
