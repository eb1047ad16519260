//! From centroids to a zone: which clusters' value means are read, and which clusters are opened.

use super::answer::{MeanSums, Rough, Steady};
use super::constants::{ABOVE_MAX, MEAN, PROBE, RISE_MAX, Z_CLUSTER};
use super::head::{Head, HeadSegment};
use super::softcap::Softcap;
use crate::work::HeadQueries;
use longwave_kernels::Kernels;
use longwave_kernels::ladder::{ClusterWeights, Limits, Probed, Spread};

const LIMITS: Limits = Limits { deviations: Z_CLUSTER, rise: RISE_MAX, centre: ABOVE_MAX };

/// What is known of the clusters of one KV head: one number a cluster, or a plane of them for each query head,
/// `[group, clusters]`.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) len: usize,
    group: usize,
    pub(super) count: Vec<f32>,
    pub(super) value_spread: Vec<f32>,
    pub(super) mean_error: Vec<f32>,
    /// Squared norms of the value means.
    norm: Vec<f32>,
    /// Planes: scores of the centroids before the soft-cap. A row's score is this and its residual's, capped together.
    pub(super) uncapped: Vec<f32>,
    /// Planes: the same after it; empty where there is none.
    capped: Vec<f32>,
    /// Planes: variance of the scores inside the cluster, after the soft-cap.
    pub(super) within: Vec<f32>,
    /// Three times as many planes: the masses, the estimates and the shifts of [`ClusterWeights`].
    weights: Vec<f32>,
    /// Logarithm of the largest share of the mass that a cluster could hold, over the heads of the group.
    most: Vec<f32>,
    /// Whether a cluster's value mean was read, and those of which it was, ascending. The mean of all values stands for
    /// the others.
    pub(super) mean_read: Vec<bool>,
    pub(super) means: Vec<u32>,
    /// Clusters that are opened, and those that are not but have their mean read; both ascending.
    pub(super) opened: Vec<u32>,
    pub(super) closed: Vec<u32>,
    pub(super) is_open: Vec<bool>,
    /// Clusters that stay closed, and how many of them would have been opened.
    demoted: Vec<bool>,
    pub(super) kept_closed: u64,
    /// Reference of the exponentials, per head.
    pub(super) top: Vec<f32>,
    /// Weight of the steady rows against `top`, per head.
    pub(super) steady: Vec<f32>,
    /// Of the means that were read: squared gains, and what they are computed from.
    gains: Vec<f32>,
    off: Vec<f32>,
    listed: [Vec<f32>; 4],
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
        self.begin(head.group, head.clusters);
        for segment in &head.segments {
            self.score_segment(kernels, head, segment, queries);
        }
        self.capped.clear();
        if softcap.0.is_some() {
            self.capped.extend_from_slice(&self.uncapped);
            for (centre, within) in self.capped.iter_mut().zip(&mut self.within) {
                *within *= softcap.slope(*centre, Z_CLUSTER * within.sqrt()).powi(2);
                *centre = softcap.apply(*centre);
            }
        }
        self.top.clone_from(&steady.lse);
        for g in 0..self.group {
            let centres = plane(if softcap.0.is_some() { &self.capped } else { &self.uncapped }, self.len, g);
            kernels.max_per_head(centres, 1, &mut self.top[g..=g]);
        }
        let weights = steady.lse.iter().zip(&self.top).map(|(lse, top)| (lse - top).exp());
        self.steady.clear();
        self.steady.extend(weights);
        self.weigh(kernels);
        for segment in &head.segments {
            let most = self.most[segment.clusters()].iter_mut();
            most.zip(&segment.numbers.ln_count).for_each(|(most, ln_count)| *most += ln_count);
        }
    }

    /// Makes room. What is left in the planes from an earlier call is written over.
    fn begin(&mut self, group: usize, len: usize) {
        (self.group, self.len) = (group, len);
        for numbers in [&mut self.count, &mut self.value_spread, &mut self.mean_error, &mut self.norm] {
            numbers.clear();
        }
        self.uncapped.resize(group * len, 0.0);
        self.within.resize(group * len, 0.0);
        self.weights.resize(3 * group * len, 0.0);
        self.most.clear();
        self.most.resize(len, f32::NEG_INFINITY);
        self.means.clear();
        self.opened.clear();
        self.closed.clear();
        for flags in [&mut self.mean_read, &mut self.is_open] {
            flags.clear();
            flags.resize(len, false);
        }
    }

    fn score_segment(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        segment: &HeadSegment<'_>,
        queries: &HeadQueries,
    ) {
        let numbers = segment.numbers;
        self.count.extend_from_slice(&numbers.count);
        self.value_spread.extend_from_slice(&numbers.value_spread);
        self.mean_error.extend_from_slice(&numbers.mean_error);
        self.norm.extend_from_slice(&numbers.norm);
        let planes = &mut self.uncapped[segment.first..];
        segment.score_centroids(kernels, &head.bases, queries, self.len, planes);
        for g in 0..self.group {
            let variance = segment.unit_variance(&head.bases, g);
            let within = &mut self.within[g * self.len + segment.first..][..numbers.key_spread.len()];
            within
                .iter_mut()
                .zip(&numbers.key_spread)
                .for_each(|(within, spread)| *within = variance * spread);
        }
    }

    fn weigh(&mut self, kernels: &Kernels) {
        let planes = self.group * self.len;
        let (masses, rest) = self.weights.split_at_mut(planes);
        let (estimates, shifts) = rest.split_at_mut(planes);
        for g in 0..self.group {
            let places = g * self.len..(g + 1) * self.len;
            let centres = if self.capped.is_empty() { &self.uncapped } else { &self.capped };
            let spread = Spread {
                centres: &centres[places.clone()],
                within: &self.within[places.clone()],
                counts: &self.count,
                top: self.top[g],
            };
            let mut weights = ClusterWeights {
                mass: &mut masses[places.clone()],
                estimate: &mut estimates[places.clone()],
                shift: &mut shifts[places],
            };
            let total = kernels.weigh_clusters(&spread, &LIMITS, &mut weights) + self.steady[g];
            kernels.raise_most(&spread, &LIMITS, -total.ln(), &mut self.most);
        }
    }

    /// The plane of a query head.
    pub(super) fn plane<'a>(&self, planes: &'a [f32], g: usize) -> &'a [f32] {
        plane(planes, self.len, g)
    }

    /// Planes: weights if every row scored as its centroid.
    fn masses(&self) -> &[f32] {
        &self.weights[..self.group * self.len]
    }

    /// Planes: weights with the allowance for the spread of the scores inside (Jensen), for clusters that are not opened.
    pub(super) fn estimates(&self) -> &[f32] {
        &self.weights[self.group * self.len..][..self.group * self.len]
    }

    /// Planes: by how much an estimate may lie too high or too low.
    pub(super) fn shifts(&self) -> &[f32] {
        &self.weights[2 * self.group * self.len..]
    }

    /// Sums over the means of the clusters that are not opened: with their estimates, then with their shifts.
    pub(super) fn sum_closed(&self, kernels: &Kernels, head: &Head<'_>, dim: usize, sums: &mut MeanSums) {
        sums.reset(head, 2 * self.group, dim);
        sums.add(kernels, head, &self.closed, &self.weights[self.group * self.len..], self.len);
    }

    /// Refers the weights of head `g` to `top`; returns what all of them were multiplied with.
    pub(super) fn raise_top(&mut self, g: usize, top: f32) -> f32 {
        let factor = (self.top[g] - top).exp();
        self.top[g] = top;
        self.steady[g] *= factor;
        for planes in self.weights.chunks_exact_mut(self.group * self.len) {
            planes[g * self.len..(g + 1) * self.len].iter_mut().for_each(|weight| *weight *= factor);
        }
        factor
    }

    /// Has the clusters stay closed that the view says are demoted.
    pub(super) fn demote(&mut self, head: &Head<'_>, demoted: &[&[bool]]) {
        self.demoted.clear();
        for (segment, demoted) in head.segments.iter().zip(demoted) {
            // What the view does not know is not demoted.
            let known = demoted.iter().copied().chain(std::iter::repeat(false));
            self.demoted.extend(known.take(segment.ladder.cluster_count()));
        }
        self.demoted.resize(self.len, false);
    }

    /// How much a row of a cluster that is not opened may weigh at most, as far as its summary tells.
    pub(super) fn row_at_most(&self, g: usize, cluster: usize) -> f32 {
        let at = g * self.len + cluster;
        let within = self.within[at];
        let rise = within.min(Z_CLUSTER * within.sqrt()).min(RISE_MAX);
        self.masses()[at] / self.count[cluster] * rise.exp()
    }

    /// How many means [`Self::read_means`] reads.
    pub(super) fn means_wanted(&self, tau: f32) -> u64 {
        let least = (MEAN * tau).ln();
        self.most.iter().filter(|&&most| most > least).count() as u64
    }

    /// Has the value means of clusters read that could hold enough mass.
    pub(super) fn read_means(&mut self, tau: f32) {
        let (least, mut count) = ((MEAN * tau).ln(), 0);
        self.means.resize(self.len, 0);
        // Without a branch: which clusters are listed cannot be foreseen.
        for (cluster, (read, &most)) in (0..).zip(self.mean_read.iter_mut().zip(&self.most)) {
            *read |= most > least;
            self.means[count] = cluster;
            count += usize::from(*read);
        }
        self.means.truncate(count);
    }

    /// Finds what opening a cluster would gain, of those whose mean was read: where not knowing a row's score could matter.
    pub(super) fn probe(&mut self, kernels: &Kernels, head: &Head<'_>, steady: &Steady) {
        let dim = steady.output.len() / head.group;
        let (mut sums, mut off) = (std::mem::take(&mut self.sums), std::mem::take(&mut self.off));
        sums.reset(head, self.group, dim);
        sums.add(kernels, head, &self.means, self.masses(), self.len);
        let rough = Rough::of(head, self, &[&sums], (self.masses(), self.masses()), steady, None);
        rough.distances(kernels, head, self, &self.means, &mut off);
        let [masses, withins, insides, counts] = &mut self.listed;
        pick(&self.count, &self.means, counts);
        insides.clear();
        insides.extend(self.means.iter().zip(&*counts).map(|(&cluster, count)| {
            self.value_spread[cluster as usize] + count * self.mean_error[cluster as usize]
        }));
        self.gains.clear();
        self.gains.resize(self.means.len(), 0.0);
        for (g, off) in off.chunks_exact(self.means.len().max(1)).enumerate() {
            pick(plane(&self.weights, self.len, g), &self.means, masses);
            pick(plane(&self.within, self.len, g), &self.means, withins);
            let scale = 1.0 / (rough.total[g] * rough.norm[g]);
            let probed = Probed { mass: masses, within: withins, off, inside: insides, counts, scale };
            kernels.probe_gains(&probed, &LIMITS, &mut self.gains);
        }
        (self.sums, self.off) = (sums, off);
    }

    /// Opens the clusters whose gain, as [`Self::probe`] found it, is large enough.
    pub(super) fn open(&mut self, tau: f32) {
        let (least, mut open) = (PROBE * tau, 0);
        self.is_open.fill(false);
        self.kept_closed = 0;
        self.opened.resize(self.means.len(), 0);
        self.closed.resize(self.means.len(), 0);
        for (number, (&cluster, gain)) in self.means.iter().zip(&self.gains).enumerate() {
            let (gains, demoted) = (gain.sqrt() > least, self.demoted[cluster as usize]);
            self.kept_closed += u64::from(gains && demoted);
            let opens = gains && !demoted;
            self.is_open[cluster as usize] = opens;
            self.opened[open] = cluster;
            self.closed[number - open] = cluster;
            open += usize::from(opens);
        }
        self.opened.truncate(open);
        self.closed.truncate(self.means.len() - open);
    }

    /// Squared norms of the means of the listed clusters.
    pub(super) fn norms(&self, list: &[u32], norms: &mut Vec<f32>) {
        pick(&self.norm, list, norms);
    }
}

fn plane(planes: &[f32], len: usize, g: usize) -> &[f32] {
    &planes[g * len..(g + 1) * len]
}

/// The numbers of the listed clusters.
fn pick(numbers: &[f32], list: &[u32], picked: &mut Vec<f32>) {
    picked.clear();
    picked.extend(list.iter().map(|&cluster| numbers[cluster as usize]));
}
