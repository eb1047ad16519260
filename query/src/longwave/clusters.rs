//! From centroids to a zone: which clusters' value means are read, and which clusters are opened.
//!
//! All centroids are scored, and what the clusters could hold is known from one pass over the scores. A call then goes on with
//! the few clusters whose value means are read. The mean of all values stands for the others, so that sums over those of
//! a segment are all that the answer and its prediction need of them.

use super::answer::{MeanSums, Rough, Steady};
use super::constants::{ABOVE_MAX, MEAN, PROBE, RISE_MAX, SHARED_MAX, UNSURE, Z_CLUSTER, Z_FAR, Z_PROBE};
use super::head::{Head, HeadSegment};
use super::listed::Listed;
use super::softcap::Softcap;
use crate::work::HeadQueries;
use longwave_kernels::Kernels;
use longwave_kernels::ladder::{Limits, Probed, Rest, RestSums, Spread};
use std::ops::Range;

pub(super) const LIMITS: Limits =
    Limits { deviations: Z_PROBE, far: Z_FAR, rise: RISE_MAX, centre: ABOVE_MAX };
/// Below this the kernels' exponentials are 0.
const EXP_MIN: f32 = -87.0;

/// What is known of the clusters of one KV head. Numbers of all clusters lie segment by segment, a plane for each query head
/// of its clusters after the other.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) len: usize,
    group: usize,
    /// Scores of the centroids before the soft-cap. A row's score is this and its residual's, capped together.
    uncapped: Vec<f32>,
    /// The same after it, and variances of the scores inside the clusters; empty where there is none.
    capped: Vec<f32>,
    capped_within: Vec<f32>,
    /// Variance of the scores inside a cluster of key spread 1, `[segments, group]`.
    unit: Vec<f32>,
    /// Logarithm of the largest share of the mass that a cluster could hold, over the heads of the group.
    most: Vec<f32>,
    /// Reference of the exponentials, per head.
    pub(super) top: Vec<f32>,
    /// Weight of the steady rows against `top`, per head.
    pub(super) steady: Vec<f32>,
    /// Sums over the clusters of each segment, `[segments, group]`: what they weigh if every row scores as its centroid.
    masses: Vec<f32>,
    /// Clusters whose value mean was read, ascending: those whose `most` was larger than `least`, the smallest of all attempts.
    pub(super) means: Vec<u32>,
    least: f32,
    pub(super) listed: Listed,
    /// Sums over the others, `[segments, group]`.
    pub(super) rest: Vec<RestSums>,
    /// Clusters that are opened, and those that are not but have their mean read; both ascending. And their places among `means`.
    pub(super) opened: Vec<u32>,
    pub(super) closed: Vec<u32>,
    pub(super) opened_at: Vec<u32>,
    pub(super) closed_at: Vec<u32>,
    pub(super) opened_numbers: Listed,
    pub(super) closed_numbers: Listed,
    /// Sums over all clusters that are not opened, `[segments, group]`: of their estimates, and of how much these may lie too
    /// high or too low.
    pub(super) estimated: Vec<f32>,
    pub(super) shifted: Vec<f32>,
    /// Clusters that stay closed, if there are any, and how many of them would have been opened.
    demoted: Vec<bool>,
    pub(super) kept_closed: u64,
    /// Of the means that were read: squared gains, and what they are computed from.
    gains: Vec<f32>,
    off: Vec<f32>,
    inside: Vec<f32>,
    sums: MeanSums,
}

impl Clusters {
    /// Scores the centroids.
    pub(super) fn score(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        queries: &HeadQueries,
        softcap: Softcap,
        steady: &Steady,
    ) {
        self.begin(head, softcap);
        self.top.clone_from(&steady.lse);
        for (number, segment) in head.segments.iter().enumerate() {
            if let Some(next) = head.segments.get(number + 1) {
                next.expect_centroids(kernels);
            }
            let block = self.block(segment);
            segment.score_centroids(kernels, &head.bases, queries, &mut self.uncapped[block]);
            self.unit.extend((0..head.group).map(|g| segment.unit_variance(&head.bases, g)));
            if softcap.0.is_some() {
                self.cap(segment, softcap);
            }
            for g in 0..head.group {
                let part = self.part(segment, g);
                let centres = if softcap.0.is_some() { &self.capped } else { &self.uncapped };
                kernels.max_per_head(&centres[part], 1, &mut self.top[g..=g]);
            }
        }
        let weights = steady.lse.iter().zip(&self.top).map(|(lse, top)| (lse - top).exp());
        self.steady.clear();
        self.steady.extend(weights);
        self.bound(kernels, head);
    }

    /// Makes room. What is left of an earlier call is written over.
    fn begin(&mut self, head: &Head<'_>, softcap: Softcap) {
        (self.group, self.len) = (head.group, head.clusters);
        self.uncapped.resize(self.group * self.len, 0.0);
        let capped = if softcap.0.is_some() { self.group * self.len } else { 0 };
        self.capped.resize(capped, 0.0);
        self.capped_within.resize(capped, 0.0);
        self.unit.clear();
        self.means.clear();
        self.opened.clear();
        self.closed.clear();
        // Nothing was read so far.
        self.least = f32::NAN;
    }

    /// Where the planes of a segment's clusters lie, ...
    fn block(&self, segment: &HeadSegment<'_>) -> Range<usize> {
        let clusters = segment.clusters();
        self.group * clusters.start..self.group * clusters.end
    }

    /// ... and that of one query head.
    fn part(&self, segment: &HeadSegment<'_>, g: usize) -> Range<usize> {
        let (start, len) = (self.group * segment.first, segment.ladder.cluster_count());
        start + g * len..start + (g + 1) * len
    }

    fn cap(&mut self, segment: &HeadSegment<'_>, softcap: Softcap) {
        for g in 0..self.group {
            let part = self.part(segment, g);
            let unit = self.unit[self.unit.len() - self.group + g];
            let capped = self.capped[part.clone()].iter_mut().zip(&mut self.capped_within[part.clone()]);
            let uncapped = self.uncapped[part].iter().zip(&segment.numbers.key_spread);
            for ((capped, within), (&centre, spread)) in capped.zip(uncapped) {
                *within = unit * spread;
                *within *= softcap.slope(centre, Z_CLUSTER * within.sqrt()).powi(2);
                *capped = softcap.apply(centre);
            }
        }
    }

    /// The clusters of a segment, for head `g` of the group.
    pub(super) fn spread<'a>(&'a self, segment: &'a HeadSegment<'_>, g: usize) -> Spread<'a> {
        let (part, numbers) = (self.part(segment, g), segment.numbers);
        let (counts, top) = (&numbers.count[..], self.top[g]);
        if self.capped.is_empty() {
            let unit = self.unit[segment.number * self.group + g];
            Spread { centres: &self.uncapped[part], spreads: &numbers.key_spread, unit, counts, top }
        } else {
            let spreads = &self.capped_within[part.clone()];
            Spread { centres: &self.capped[part], spreads, unit: 1.0, counts, top }
        }
    }

    /// Score of a cluster's centroid before the soft-cap.
    pub(super) fn centre(&self, segment: &HeadSegment<'_>, cluster: usize, g: usize) -> f32 {
        self.uncapped[self.part(segment, g).start + cluster - segment.first]
    }

    /// Finds how much each cluster could hold at most.
    fn bound(&mut self, kernels: &Kernels, head: &Head<'_>) {
        let mut masses = std::mem::take(&mut self.masses);
        masses.clear();
        for segment in &head.segments {
            masses.extend((0..self.group).map(|g| kernels.sum_masses(&self.spread(segment, g), &LIMITS)));
        }
        let total = |g: usize| masses.iter().skip(g).step_by(self.group).sum::<f32>() + self.steady[g];
        let bases: Vec<f32> = (0..self.group).map(|g| -total(g).ln()).collect();
        let mut most = std::mem::take(&mut self.most);
        most.clear();
        most.resize(self.len, f32::NEG_INFINITY);
        for segment in &head.segments {
            let most = &mut most[segment.clusters()];
            for (g, &base) in bases.iter().enumerate() {
                kernels.raise_most(&self.spread(segment, g), &LIMITS, base, most);
            }
            most.iter_mut().zip(&segment.numbers.ln_count).for_each(|(most, ln_count)| *most += ln_count);
        }
        (self.masses, self.most) = (masses, most);
    }

    /// Closes the clusters that are not to be opened: sums over the means of those that were read, with their estimates and then
    /// with their shifts, and over the weights of all.
    pub(super) fn close(&mut self, kernels: &Kernels, head: &Head<'_>, dim: usize, sums: &mut MeanSums) {
        self.opened_numbers.pick_unweighed(&self.listed, &self.opened_at);
        self.closed_numbers.pick(&self.listed, &self.closed_at);
        let (closed, group) = (&self.closed_numbers, self.group);
        let weights = closed.estimates_and_shifts();
        sums.reset(head, 2 * group, dim);
        sums.add(kernels, head, &self.closed, weights);
        self.estimated.clear();
        self.estimated.extend(self.rest.iter().map(|rest| rest.weight));
        self.shifted.clear();
        self.shifted.extend(self.rest.iter().map(|rest| rest.shift));
        let mut start = 0;
        for (number, run) in head.runs(&self.closed) {
            for g in 0..group {
                let of = |set: usize| &weights[(set * group + g) * closed.len + start..][..run.len()];
                self.estimated[number * group + g] += of(0).iter().sum::<f32>();
                self.shifted[number * group + g] += of(1).iter().sum::<f32>();
            }
            start += run.len();
        }
    }

    /// Refers the weights of head `g` to `top`; returns what all of them were multiplied with.
    pub(super) fn raise_top(&mut self, g: usize, top: f32) -> f32 {
        let factor = (self.top[g] - top).exp();
        self.top[g] = top;
        self.steady[g] *= factor;
        for sums in [&mut self.masses, &mut self.estimated, &mut self.shifted] {
            sums.iter_mut().skip(g).step_by(self.group).for_each(|weight| *weight *= factor);
        }
        for rest in self.rest.iter_mut().skip(g).step_by(self.group) {
            rest.weight *= factor;
            rest.shift *= factor;
            for squared in [&mut rest.along, &mut rest.inside, &mut rest.squared] {
                *squared *= factor * factor;
            }
        }
        self.listed.scale((self.group, g), factor);
        self.closed_numbers.scale((self.group, g), factor);
        factor
    }

    /// Has the clusters stay closed that the view says are demoted.
    pub(super) fn demote(&mut self, head: &Head<'_>, demoted: &[&[bool]]) {
        self.demoted.clear();
        if demoted.iter().all(|demoted| demoted.is_empty()) {
            return;
        }
        for (segment, demoted) in head.segments.iter().zip(demoted) {
            // What the view does not know is not demoted.
            let known = demoted.iter().copied().chain(std::iter::repeat(false));
            self.demoted.extend(known.take(segment.ladder.cluster_count()));
        }
    }

    /// How much a row of a cluster that is not opened may weigh at most, as far as its summary tells.
    pub(super) fn row_at_most(&self, segment: &HeadSegment<'_>, cluster: usize, g: usize) -> f32 {
        let (spread, local) = (self.spread(segment, g), cluster - segment.first);
        let within = spread.unit * spread.spreads[local];
        // As in the kernels that tell which clusters are opened, but for rows that are hardly ever so far up: by those almost any
        // cluster might hold an important one.
        let [least, most] = LIMITS.deviations.map(|deviations| deviations * within.sqrt());
        let rise = within.min(most).max(least).min(LIMITS.rise);
        row_mass(&spread, local) * rise.exp()
    }

    /// Clusters of a segment whose value means were not read and whose scores are less sure for head `g` than any model's: their
    /// numbers in the segment, variances and estimates.
    pub(super) fn unsure_rest<'a>(
        &'a self,
        segment: &'a HeadSegment<'_>,
        g: usize,
    ) -> impl Iterator<Item = (usize, f32, f32)> + 'a {
        let spread = self.spread(segment, g);
        // With a cap each cluster has a variance of its own.
        let sure = self.capped.is_empty() && spread.unit * segment.numbers.key_spread_max <= UNSURE * UNSURE;
        let clusters = if sure { 0..0 } else { 0..spread.centres.len() };
        let most = &self.most[segment.clusters()];
        clusters.filter_map(move |local| {
            let within = spread.unit * spread.spreads[local];
            let was_read = most[local] > self.least;
            let rest = within > UNSURE * UNSURE && !was_read;
            // So large a variance has the whole allowance.
            let estimate = || spread.counts[local] * row_mass(&spread, local) * std::f32::consts::E;
            rest.then(|| (local, within, estimate()))
        })
    }

    /// How many means [`Self::read_means`] reads.
    pub(super) fn means_wanted(&self, tau: f32) -> u64 {
        let least = (MEAN * tau).ln();
        self.most.iter().filter(|&&most| most > least).count() as u64
    }

    /// Has the value means of clusters read that could hold enough mass, and sums up the others.
    pub(super) fn read_means(&mut self, kernels: &Kernels, head: &Head<'_>, tau: f32) {
        let least = (MEAN * tau).ln();
        // What an earlier attempt has read stays read.
        if least >= self.least {
            return;
        }
        self.least = least;
        let mut count = 0;
        self.means.resize(self.len, 0);
        // Without a branch: which clusters are listed cannot be foreseen.
        for (cluster, &most) in (0..).zip(&self.most) {
            self.means[count] = cluster;
            count += usize::from(most > least);
        }
        self.means.truncate(count);
        let mut listed = std::mem::take(&mut self.listed);
        listed.weigh(kernels, head, self, &self.means);
        self.listed = listed;
        let mut sums = std::mem::take(&mut self.rest);
        sums.clear();
        for segment in &head.segments {
            sums.extend((0..self.group).map(|g| self.sum_rest(kernels, head, segment, g, self.top[g])));
        }
        self.rest = sums;
    }

    /// Sums over the clusters of a segment whose value means were not read, for head `g` of the group, with weights against `top`.
    pub(super) fn sum_rest(
        &self,
        kernels: &Kernels,
        head: &Head<'_>,
        segment: &HeadSegment<'_>,
        g: usize,
        top: f32,
    ) -> RestSums {
        let (most, value_spread) = (&self.most[segment.clusters()], &segment.numbers.value_spread[..]);
        let rest = Rest { most, least: self.least, value_spread, shared: shared_noise(head, segment, g) };
        kernels.sum_rest(&Spread { top, ..self.spread(segment, g) }, &LIMITS, &rest)
    }

    /// Finds what opening a cluster would gain, of those whose mean was read: where not knowing a row's score could matter.
    pub(super) fn probe(&mut self, kernels: &Kernels, head: &Head<'_>, steady: &Steady) {
        let dim = steady.output.len() / head.group;
        let listed = &self.listed;
        self.sums.reset(head, self.group, dim);
        self.sums.add(kernels, head, &self.means, listed.masses());
        let weights = (&self.masses[..], &self.masses[..]);
        let rough = Rough::of(head, &[&self.sums], weights, (steady, &self.steady), None);
        rough.distances(kernels, head, (&self.means, &listed.norm), &mut self.off);
        self.inside.clear();
        let insides = listed.value_spread.iter().zip(listed.count.iter().zip(&listed.mean_error));
        self.inside.extend(insides.map(|(spread, (count, error))| spread + count * error));
        self.gains.clear();
        self.gains.resize(listed.len, 0.0);
        let planes = self.off.chunks_exact(listed.len.max(1));
        for (g, (off, mass)) in planes.zip(listed.masses().chunks_exact(listed.len.max(1))).enumerate() {
            let scale = 1.0 / (rough.total[g] * rough.norm[g]);
            let (within, counts) = (listed.within(g), &listed.count[..]);
            let probed = Probed { mass, within, off, inside: &self.inside, counts, scale };
            kernels.probe_gains(&probed, &LIMITS, &mut self.gains);
        }
    }

    /// Opens the clusters whose gain, as [`Self::probe`] found it, is large enough.
    pub(super) fn open(&mut self, tau: f32) {
        let (least, mut open) = (PROBE * tau, 0);
        self.kept_closed = 0;
        let lists = [&mut self.opened, &mut self.opened_at, &mut self.closed, &mut self.closed_at];
        lists.into_iter().for_each(|list| list.resize(self.means.len(), 0));
        for (number, (&cluster, gain)) in self.means.iter().zip(&self.gains).enumerate() {
            let gains = gain.sqrt() > least;
            let demoted = self.demoted.get(cluster as usize).copied().unwrap_or(false);
            self.kept_closed += u64::from(gains && demoted);
            (self.opened[open], self.opened_at[open]) = (cluster, number as u32);
            (self.closed[number - open], self.closed_at[number - open]) = (cluster, number as u32);
            open += usize::from(gains && !demoted);
        }
        let closed = self.means.len() - open;
        [&mut self.opened, &mut self.opened_at].into_iter().for_each(|list| list.truncate(open));
        [&mut self.closed, &mut self.closed_at].into_iter().for_each(|list| list.truncate(closed));
    }
}

/// Weight of a row that scores as the centroid.
fn row_mass(spread: &Spread<'_>, local: usize) -> f32 {
    let above = (spread.centres[local] - spread.top).min(ABOVE_MAX);
    if above < EXP_MIN { 0.0 } else { above.exp() }
}

/// Relative variance of a cluster's weight for head `g` of the group from the error of its coded centroid.
pub(super) fn shared_noise(head: &Head<'_>, segment: &HeadSegment<'_>, g: usize) -> f32 {
    head.bases[segment.basis].centroid_variance[g].min(SHARED_MAX).exp_m1()
}
