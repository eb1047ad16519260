//! From centroids to a zone: which clusters' value means are read, and which clusters are opened.

use super::answer::{CodedMeans, Rough, Steady};
use super::constants::{ABOVE_MAX, MEAN, PROBE, RISE_MAX, SKETCH_MAX, Z_CLUSTER};
use super::head::Head;
use super::softcap::Softcap;
use crate::work::HeadQueries;
use longwave_kernels::Kernels;
use longwave_kernels::ladder::{ClusterWeights, Limits, Spread};

/// What is known of the clusters of one KV head: one number a cluster, or a plane of them for each query head,
/// `[group, clusters]`.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) len: usize,
    pub(super) count: Vec<f32>,
    pub(super) value_spread: Vec<f32>,
    pub(super) mean_error: Vec<f32>,
    /// Planes: scores of the centroids before the soft-cap. A row's score is this and its residual's, capped together.
    pub(super) uncapped: Vec<f32>,
    /// Planes: variance of the scores inside the cluster, after the soft-cap.
    pub(super) within: Vec<f32>,
    /// Planes: weights with the allowance for the spread of the scores inside (Jensen), for clusters that are not opened.
    pub(super) estimate: Vec<f32>,
    /// Planes: scores of the centroids; how much more than the centre's weight a row's may be; weights that the scores of
    /// the centroids alone give.
    centre: Vec<f32>,
    above: Vec<f32>,
    mass: Vec<f32>,
    /// The largest share of the mass that a cluster could hold, over the heads of the group.
    mass_above: Vec<f32>,
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
    /// Squared distances of means to the answer, `[means, group]`.
    off: Vec<f32>,
    coded: CodedMeans,
    scores: Vec<f32>,
    key_spread: Vec<f32>,
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
        let (group, len) = (head.group, head.clusters);
        self.len = len;
        for numbers in [&mut self.count, &mut self.value_spread, &mut self.mean_error, &mut self.mass_above] {
            numbers.resize(len, 0.0);
        }
        self.mass_above.fill(0.0);
        // What is left in the planes from an earlier call is written over.
        let planes = [&mut self.uncapped, &mut self.within, &mut self.centre, &mut self.above];
        for plane in planes.into_iter().chain([&mut self.mass, &mut self.estimate]) {
            plane.resize(group * len, 0.0);
        }
        self.means.clear();
        self.opened.clear();
        for flags in [&mut self.mean_read, &mut self.is_open] {
            flags.clear();
            flags.resize(len, false);
        }
        self.top.clone_from(&steady.lse);
        for segment in &head.segments {
            let dim = queries.data.len() / group;
            segment.score_centroids(kernels, &head.bases, queries, dim, &mut self.scores);
            self.key_spread.clear();
            for (at, local) in segment.clusters().zip(0..) {
                let summary = segment.ladder.cluster(local);
                self.count[at] = summary.count;
                self.value_spread[at] = summary.value_spread;
                self.mean_error[at] = summary.mean_error;
                self.key_spread.push(summary.key_spread);
            }
            for (g, variance) in segment.unit_variance(&head.bases).into_iter().enumerate() {
                let places = g * len + segment.first..g * len + segment.clusters().end;
                let scores = self.scores[g..].iter().step_by(group);
                self.uncapped[places.clone()].iter_mut().zip(scores).for_each(|(to, score)| *to = *score);
                let within = self.within[places].iter_mut().zip(&self.key_spread);
                within.for_each(|(within, spread)| *within = variance * spread);
            }
        }
        self.centre.clone_from(&self.uncapped);
        if softcap.0.is_some() {
            for (centre, within) in self.centre.iter_mut().zip(&mut self.within) {
                *within *= softcap.slope(*centre, Z_CLUSTER * within.sqrt()).powi(2);
                *centre = softcap.apply(*centre);
            }
        }
        for (top, centres) in self.top.iter_mut().zip(self.centre.chunks_exact(len.max(1))) {
            *top = centres.iter().fold(*top, |top, &centre| if centre > top { centre } else { top });
        }
        let weights = steady.lse.iter().zip(&self.top).map(|(lse, top)| (lse - top).exp());
        self.steady.clear();
        self.steady.extend(weights);
        self.weigh(kernels, group);
    }

    fn weigh(&mut self, kernels: &Kernels, group: usize) {
        let limits = Limits { deviations: Z_CLUSTER, rise: RISE_MAX, centre: ABOVE_MAX, spread: SKETCH_MAX };
        for g in 0..group {
            let plane = g * self.len..(g + 1) * self.len;
            let spread = Spread {
                centres: &self.centre[plane.clone()],
                within: &self.within[plane.clone()],
                counts: &self.count,
                top: self.top[g],
            };
            let mut weights = ClusterWeights {
                above: &mut self.above[plane.clone()],
                mass: &mut self.mass[plane.clone()],
                estimate: &mut self.estimate[plane.clone()],
            };
            kernels.weigh_clusters(&spread, &limits, &mut weights);
            let mass = &self.mass[plane.clone()];
            let total = mass.iter().sum::<f32>() + self.steady[g];
            let shares =
                mass.iter().zip(&self.above[plane]).map(|(mass, above)| mass / total * (1.0 + above));
            self.mass_above.iter_mut().zip(shares).for_each(|(most, share)| *most = most.max(share));
        }
    }

    /// The plane of a query head.
    pub(super) fn plane<'a>(&self, planes: &'a [f32], g: usize) -> &'a [f32] {
        &planes[g * self.len..(g + 1) * self.len]
    }

    /// Refers the weights of head `g` to `top`; returns what all of them were multiplied with.
    pub(super) fn raise_top(&mut self, g: usize, top: f32) -> f32 {
        let factor = (self.top[g] - top).exp();
        self.top[g] = top;
        self.steady[g] *= factor;
        for plane in [&mut self.mass, &mut self.estimate] {
            plane[g * self.len..(g + 1) * self.len].iter_mut().for_each(|weight| *weight *= factor);
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
        self.mass[at] / self.count[cluster] * (1.0 + self.above[at])
    }

    /// How many means [`Self::read_means`] reads.
    pub(super) fn means_wanted(&self, tau: f32) -> u64 {
        self.mass_above.iter().filter(|&&most| most > MEAN * tau).count() as u64
    }

    /// Has the value means of clusters read that could hold enough mass.
    pub(super) fn read_means(&mut self, tau: f32) {
        self.means.clear();
        for (cluster, (read, &most)) in (0..).zip(self.mean_read.iter_mut().zip(&self.mass_above)) {
            *read |= most > MEAN * tau;
            if *read {
                self.means.push(cluster);
            }
        }
    }

    /// Chooses the clusters to open, among those whose mean was read: where not knowing a row's score could matter.
    pub(super) fn probe(&mut self, kernels: &Kernels, head: &Head<'_>, steady: &Steady) {
        let dim = steady.output.len() / head.group;
        let (mut coded, mut off) = (std::mem::take(&mut self.coded), std::mem::take(&mut self.off));
        coded.reset(head, dim);
        coded.add(kernels, head, self, &self.means, &self.mass);
        let rough = Rough::of(head, self, &coded, &self.mass, &self.mass, steady, None);
        rough.distances(kernels, head, self, &self.means, &mut off);
        (self.coded, self.off) = (coded, off);
        let per_total: Vec<f32> =
            rough.total.iter().zip(&rough.norm).map(|(total, norm)| 1.0 / (total * norm)).collect();
        for (&cluster, off) in self.means.iter().zip(self.off.chunks_exact_mut(head.group)) {
            let cluster = cluster as usize;
            let count = self.count[cluster];
            let inside = self.value_spread[cluster] + count * self.mean_error[cluster];
            let mut gain = 0.0f32;
            for (g, off) in off.iter().enumerate() {
                let at = g * self.len + cluster;
                let row = self.mass[at] * per_total[g] / count * self.above[at];
                gain += row * row * (off + inside);
            }
            // The first of a cluster's numbers now holds what opening it gains.
            off[0] = gain.sqrt();
        }
    }

    /// Opens the clusters whose gain, as [`Self::probe`] found it, is large enough.
    pub(super) fn open(&mut self, group: usize, tau: f32) {
        self.opened.clear();
        self.closed.clear();
        self.is_open.fill(false);
        self.kept_closed = 0;
        for (&cluster, gain) in self.means.iter().zip(self.off.iter().step_by(group)) {
            let gains = *gain > PROBE * tau;
            let demoted = gains && self.demoted[cluster as usize];
            self.kept_closed += u64::from(demoted);
            if gains && !demoted {
                self.is_open[cluster as usize] = true;
                self.opened.push(cluster);
            } else {
                self.closed.push(cluster);
            }
        }
    }
}
