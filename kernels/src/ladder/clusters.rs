//! Arithmetic of whole clusters, eight or sixteen of one query head at a time.

use super::{load, sum_lanes};
use crate::exp::{exp, small_exp_m1};
use crate::isa::Kernels;
use crate::lanes::Lanes;

/// How far estimates may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How far above its estimate a score is allowed for: as far as its variance, where most of the weight of normally distributed
    /// scores lies, but no less than the first and no more than the second of these standard deviations, ...
    pub deviations: [f32; 2],
    /// ... or, where that is more, so many standard deviations as the first of these less so much as the second: few rows lie so far
    /// up, and one that would not weigh that much more is not looked for there, ...
    pub far: [f32; 2],
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
    /// Variances of the scores inside, none of them negative, ...
    pub spreads: &'a [f32],
    /// ... in this unit.
    pub unit: f32,
    /// Rows.
    pub counts: &'a [f32],
    /// Reference of the exponentials.
    pub top: f32,
}

/// What [`Kernels::weigh_clusters`] finds, one number a cluster.
#[derive(Debug)]
pub struct ClusterWeights<'a> {
    /// Variance of the scores inside.
    pub within: &'a mut [f32],
    /// Weight if every row scored as the centroid.
    pub mass: &'a mut [f32],
    /// Weight with the allowance for the spread: `exp` of a quarter of the variance, at most of 1.
    pub estimate: &'a mut [f32],
    /// How much too high or too low the estimate may lie: it, times `exp` of a quarter of the variance, at most of 1/2,
    /// less 1.
    pub shift: &'a mut [f32],
}

/// Which clusters [`Kernels::sum_rest`] leaves out, and what else it sums.
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    /// Clusters with more than `least` here are left out.
    pub most: &'a [f32],
    /// See `most`.
    pub least: f32,
    /// Mean squared distances of values to their mean.
    pub value_spread: &'a [f32],
    /// As in [`Estimated::shared`].
    pub shared: f32,
}

/// Sums over clusters that one value stands for, of one query head: what they weigh together, and what [`Kernels::cluster_noise`]
/// would say of them is `scale² * (along * off + inside + squared * mean_error)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RestSums {
    /// Of the estimates of [`ClusterWeights`], and of their shifts.
    pub weight: f32,
    /// See `weight`.
    pub shift: f32,
    /// Of the squared estimates, times what they are to be multiplied with the squared distance of that value to the answer for.
    pub along: f32,
    /// Of the squared estimates, times what the spread of the values inside adds.
    pub inside: f32,
    /// Of the squared estimates.
    pub squared: f32,
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

/// The clusters of one query head that an answer rests on without a look at their rows, one number a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Estimated<'a> {
    /// Weights.
    pub weights: &'a [f32],
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

impl Spread<'_> {
    #[track_caller]
    fn check(&self, others: &[usize]) {
        let len = self.centres.len();
        let fit =
            self.spreads.len() == len && self.counts.len() == len && others.iter().all(|&other| other == len);
        assert!(fit, "{len} clusters");
    }
}

impl Kernels {
    /// The sum of `count * exp(min(centre - top, limits.centre))`: what all clusters weigh if every row scores as its centroid.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn sum_masses(&self, spread: &Spread<'_>, limits: &Limits) -> f32 {
        spread.check(&[]);
        (self.sum_masses)(spread, limits)
    }

    /// Weights of the clusters of one query head.
    ///
    /// `within = unit * spread`, `mass = count * exp(min(centre - top, limits.centre))`,
    /// `estimate = mass * exp(min(within / 4, 1))` and `shift = estimate * (exp(min(within / 4, 1 / 2)) - 1)`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn weigh_clusters(&self, spread: &Spread<'_>, limits: &Limits, weights: &mut ClusterWeights<'_>) {
        let w = &weights;
        spread.check(&[w.within.len(), w.mass.len(), w.estimate.len(), w.shift.len()]);
        (self.weigh_clusters)(spread, limits, weights);
    }

    /// Sums over the clusters that `rest` does not leave out. With the estimates and shifts of [`Kernels::weigh_clusters`] and
    /// `w = min(within, 2)` they are `Σ estimate`, `Σ shift`, `Σ estimate² * ((exp(w) - 1) / count + min(shared, 2 * within))`,
    /// `Σ estimate² * exp(w) * value_spread / count` and `Σ estimate²`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn sum_rest(&self, spread: &Spread<'_>, limits: &Limits, rest: &Rest<'_>) -> RestSums {
        spread.check(&[rest.most.len(), rest.value_spread.len()]);
        (self.sum_rest)(spread, limits, rest)
    }

    /// Raises `most` to the logarithm of the most that a row's weight may be, by `base`:
    /// `base + centre - top + rise`, with the rise that [`Limits`] allow a score of variance `within`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn raise_most(&self, spread: &Spread<'_>, limits: &Limits, base: f32, most: &mut [f32]) {
        spread.check(&[most.len()]);
        (self.raise_most)(spread, limits, base, most);
    }

    /// Adds to each cluster's gain the square of what opening it may change in the output of one query head:
    /// `(mass * scale / count * (exp(rise) - 1))² * (off + inside)`, with the rise of [`Kernels::raise_most`].
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn probe_gains(&self, probed: &Probed<'_>, limits: &Limits, gains: &mut [f32]) {
        let slices = [probed.mass, probed.within, probed.off, probed.inside, probed.counts];
        assert!(slices.iter().all(|slice| slice.len() == gains.len()), "{} clusters", gains.len());
        (self.probe_gains)(probed, limits, gains);
    }

    /// Squared error that clusters leave in the output of one query head. With `share = scale * weight` and
    /// `w = min(within, 2)` it is the sum of
    /// `share² * (((exp(w) - 1) * (off + spread) + spread) / count + min(shared, 2 * within) * off + mean_error)`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn cluster_noise(&self, clusters: &Estimated<'_>) -> f32 {
        let c = clusters;
        let slices = [c.within, c.off, c.value_spread, c.mean_error, c.counts];
        let len = c.weights.len();
        assert!(slices.iter().all(|slice| slice.len() == len), "{len} clusters");
        (self.cluster_noise)(clusters)
    }
}

/// Variances of scores inside a cluster count up to this in its weight, ...
const ALLOWED_MAX: f32 = 4.0;
/// ... and up to this in its noise.
const WITHIN_MAX: f32 = 2.0;
/// `exp(WITHIN_MAX / 4) - 1`.
const SHIFT_MAX: f32 = 0.648_721_3;

/// Clusters, one a lane: the variances inside, and the numbers of rows.
#[inline(always)]
fn inside<L: Lanes<N>, const N: usize>(isa: L, unit: f32, spreads: &[f32], counts: &[f32]) -> [L::V; 2] {
    [isa.mul(isa.splat(unit), load(isa, spreads)), load(isa, counts)]
}

#[inline(always)]
fn mass<L: Lanes<N>, const N: usize>(isa: L, centre: L::V, count: L::V, top: f32, limits: &Limits) -> L::V {
    let above = isa.min(isa.sub(centre, isa.splat(top)), isa.splat(limits.centre));
    isa.mul(count, exp(isa, above))
}

/// The estimate and its shift.
#[inline(always)]
fn estimate<L: Lanes<N>, const N: usize>(isa: L, mass: L::V, within: L::V) -> [L::V; 2] {
    let eighth = isa.mul(isa.min(within, isa.splat(ALLOWED_MAX)), isa.splat(0.125));
    let eighth = small_exp_m1(isa, eighth);
    let quarter = isa.mul(eighth, isa.add(eighth, isa.splat(2.0)));
    let allowed = isa.mul_add(mass, quarter, mass);
    [allowed, isa.mul(allowed, isa.min(quarter, isa.splat(SHIFT_MAX)))]
}

/// `exp(min(within, 2)) - 1`, and how much of the variance all rows of a cluster share.
#[inline(always)]
fn noise<L: Lanes<N>, const N: usize>(isa: L, within: L::V, shared: f32) -> [L::V; 2] {
    let two = isa.splat(2.0);
    let shared = isa.min(isa.splat(shared), isa.add(within, within));
    let within = isa.min(within, isa.splat(WITHIN_MAX));
    let quarter = small_exp_m1(isa, isa.mul(within, isa.splat(0.25)));
    let double = isa.mul(quarter, isa.add(quarter, two));
    [isa.mul(double, isa.add(double, two)), shared]
}

#[inline(always)]
pub(crate) fn sum_masses<L: Lanes<N>, const N: usize>(isa: L, spread: &Spread<'_>, limits: &Limits) -> f32 {
    let mut total = isa.splat(0.0);
    for (centres, counts) in spread.centres.chunks(N).zip(spread.counts.chunks(N)) {
        total = isa.add(total, mass(isa, load(isa, centres), load(isa, counts), spread.top, limits));
    }
    sum_lanes(isa, total)
}

#[inline(always)]
pub(crate) fn weigh_clusters<L: Lanes<N>, const N: usize>(
    isa: L,
    spread: &Spread<'_>,
    limits: &Limits,
    weights: &mut ClusterWeights<'_>,
) {
    let inputs = spread.centres.chunks(N).zip(spread.spreads.chunks(N)).zip(spread.counts.chunks(N));
    let outputs = weights.mass.chunks_mut(N).zip(weights.estimate.chunks_mut(N));
    let outputs = outputs.zip(weights.within.chunks_mut(N).zip(weights.shift.chunks_mut(N)));
    for (((centres, spreads), counts), ((masses, estimates), (withins, shifts))) in inputs.zip(outputs) {
        let [within, count] = inside(isa, spread.unit, spreads, counts);
        let weight = mass(isa, load(isa, centres), count, spread.top, limits);
        let [allowed, shift] = estimate(isa, weight, within);
        isa.store_first(within, withins);
        isa.store_first(weight, masses);
        isa.store_first(allowed, estimates);
        isa.store_first(shift, shifts);
    }
}

#[inline(always)]
pub(crate) fn sum_rest<L: Lanes<N>, const N: usize>(
    isa: L,
    spread: &Spread<'_>,
    limits: &Limits,
    rest: &Rest<'_>,
) -> RestSums {
    let zero = isa.splat(0.0);
    let [mut weight, mut shift, mut along, mut inner, mut squared] = [zero; 5];
    let inputs = spread.centres.chunks(N).zip(spread.spreads.chunks(N)).zip(spread.counts.chunks(N));
    let others = rest.most.chunks(N).zip(rest.value_spread.chunks(N));
    for (((centres, spreads), counts), (most, values)) in inputs.zip(others) {
        let [within, count] = inside(isa, spread.unit, spreads, counts);
        let whole = mass(isa, load(isa, centres), count, spread.top, limits);
        // What is left out, and lanes without a cluster, weigh nothing.
        let whole = isa.where_less(isa.splat(rest.least), load(isa, most), zero, whole);
        let [allowed, shifted] = estimate(isa, whole, within);
        weight = isa.add(weight, allowed);
        shift = isa.add(shift, shifted);
        let square = isa.mul(allowed, allowed);
        let each = isa.div(square, isa.max(count, isa.splat(1.0)));
        let [spread, shared] = noise(isa, within, rest.shared);
        let spread = isa.mul(each, spread);
        along = isa.add(along, isa.mul_add(square, shared, spread));
        inner = isa.mul_add(isa.add(each, spread), load(isa, values), inner);
        squared = isa.add(squared, square);
    }
    let mut sums = [0.0; N];
    let mut each = [zero; N];
    each[..5].copy_from_slice(&[weight, shift, along, inner, squared]);
    isa.store(isa.sum_each(each), &mut sums);
    RestSums { weight: sums[0], shift: sums[1], along: sums[2], inside: sums[3], squared: sums[4] }
}

/// How far above its estimate a score in a cluster may lie.
#[inline(always)]
fn rise<L: Lanes<N>, const N: usize>(isa: L, within: L::V, limits: &Limits) -> L::V {
    let deviation = isa.sqrt(within);
    let [least, most] = limits.deviations;
    let (least, most) = (isa.mul(deviation, isa.splat(least)), isa.mul(deviation, isa.splat(most)));
    let far = isa.sub(isa.mul(deviation, isa.splat(limits.far[0])), isa.splat(limits.far[1]));
    isa.min(isa.max(far, isa.max(least, isa.min(within, most))), isa.splat(limits.rise))
}

#[inline(always)]
pub(crate) fn raise_most<L: Lanes<N>, const N: usize>(
    isa: L,
    spread: &Spread<'_>,
    limits: &Limits,
    base: f32,
    most: &mut [f32],
) {
    let (base, unit) = (isa.splat(base - spread.top), isa.splat(spread.unit));
    let inputs = spread.centres.chunks(N).zip(spread.spreads.chunks(N));
    for ((centres, spreads), most) in inputs.zip(most.chunks_mut(N)) {
        let within = isa.mul(unit, load(isa, spreads));
        let above = isa.add(isa.add(load(isa, centres), base), rise(isa, within, limits));
        isa.store_first(isa.max(above, load(isa, most)), most);
    }
}

#[inline(always)]
pub(crate) fn probe_gains<L: Lanes<N>, const N: usize>(
    isa: L,
    probed: &Probed<'_>,
    limits: &Limits,
    gains: &mut [f32],
) {
    let scale = isa.splat(probed.scale);
    let weights = probed.mass.chunks(N).zip(probed.within.chunks(N)).zip(probed.counts.chunks(N));
    let values = probed.off.chunks(N).zip(probed.inside.chunks(N));
    for ((((mass, within), count), (off, inside)), gains) in weights.zip(values).zip(gains.chunks_mut(N)) {
        let above = isa.sub(exp(isa, rise(isa, load(isa, within), limits)), isa.splat(1.0));
        // Lanes without a cluster have no mass, and must not divide it by 0.
        let count = isa.max(load(isa, count), isa.splat(1.0));
        let row = isa.mul(isa.div(isa.mul(load(isa, mass), scale), count), above);
        let reach = isa.add(load(isa, off), load(isa, inside));
        isa.store_first(isa.mul_add(isa.mul(row, row), reach, load(isa, gains)), gains);
    }
}

#[inline(always)]
pub(crate) fn cluster_noise<L: Lanes<N>, const N: usize>(isa: L, clusters: &Estimated<'_>) -> f32 {
    let scale = isa.splat(clusters.scale);
    let mut sum = isa.splat(0.0);
    let scores = clusters.weights.chunks(N).zip(clusters.within.chunks(N)).zip(clusters.counts.chunks(N));
    let values =
        clusters.off.chunks(N).zip(clusters.value_spread.chunks(N)).zip(clusters.mean_error.chunks(N));
    for (((weights, within), counts), ((off, spread), mean_error)) in scores.zip(values) {
        let share = isa.mul(load(isa, weights), scale);
        let [whole, shared] = noise(isa, load(isa, within), clusters.shared);
        let (off, spread) = (load(isa, off), load(isa, spread));
        let each = isa.mul_add(whole, isa.add(off, spread), spread);
        // Lanes without a cluster have a share of 0, and must not divide it by 0.
        let each = isa.div(each, isa.max(load(isa, counts), isa.splat(1.0)));
        let each = isa.add(isa.mul_add(shared, off, each), load(isa, mean_error));
        sum = isa.mul_add(isa.mul(share, share), each, sum);
    }
    sum_lanes(isa, sum)
}
