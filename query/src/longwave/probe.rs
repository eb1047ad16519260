//! From centroids to a zone: which clusters' value means are read, and which clusters are opened.

use super::constants::{ABOVE_MAX, MEAN, PROBE, RISE_MAX, SKETCH_MAX, Z_CLUSTER};
use super::exponential::{exp, exp_m1};
use super::head::Head;
use super::softcap::Softcap;
use longwave_kernels::Kernels;
use longwave_kernels::codec::{decode4, record_len};

/// The rows that are read exactly anyway, as one weighted value per head of the group.
pub(super) struct Steady {
    /// Log-sum-exp of their scores, per head; minus infinity where there are none.
    pub(super) lse: Vec<f32>,
    /// Their output, rotated, `[group, value_dim]`.
    pub(super) output: Vec<f32>,
}

/// What is known of the clusters of one KV head; `[clusters, group]` where a number depends on the query head.
pub(super) struct Clusters {
    pub(super) count: Vec<f32>,
    /// Scores of the centroids before the soft-cap: a row's score is this and its residual's, capped together.
    pub(super) uncapped: Vec<f32>,
    /// Scores of the centroids.
    pub(super) centre: Vec<f32>,
    /// Variance of the scores inside the cluster, after the soft-cap.
    pub(super) within: Vec<f32>,
    /// How much more than the centre's weight a row's may be: the upper estimate's exponential, less 1.
    pub(super) above: Vec<f32>,
    /// Weights that the scores of the centroids alone give.
    pub(super) mass: Vec<f32>,
    /// Weights with the allowance for the spread of the scores inside (Jensen), for clusters that are not opened.
    pub(super) estimate: Vec<f32>,
    pub(super) value_spread: Vec<f32>,
    pub(super) mean_error: Vec<f32>,
    /// Index into `means`, or none where the mean of all values stands for the cluster's.
    pub(super) mean_at: Vec<Option<u32>>,
    /// Decoded value means, rotated, `[means read, value_dim]`.
    pub(super) means: Vec<f32>,
    pub(super) probed: Vec<bool>,
    /// Reference of the exponentials, per head.
    pub(super) top: Vec<f32>,
    /// Weight of the steady rows against `top`, per head.
    pub(super) steady: Vec<f32>,
    pub(super) value_dim: usize,
}

impl Clusters {
    /// Scores are given `[clusters, group]`, before the soft-cap.
    pub(super) fn new(
        kernels: &Kernels,
        head: &Head<'_>,
        uncapped: Vec<f32>,
        softcap: Softcap,
        steady: &Steady,
        value_dim: usize,
    ) -> Self {
        let group = head.group;
        let mut clusters = Clusters {
            count: Vec::with_capacity(head.clusters),
            within: Vec::with_capacity(head.clusters * group),
            above: Vec::new(),
            mass: Vec::new(),
            estimate: Vec::new(),
            value_spread: Vec::with_capacity(head.clusters),
            mean_error: Vec::with_capacity(head.clusters),
            mean_at: vec![None; head.clusters],
            means: Vec::new(),
            probed: vec![false; head.clusters],
            top: steady.lse.clone(),
            steady: Vec::new(),
            centre: uncapped.iter().map(|&score| softcap.apply(score)).collect(),
            uncapped,
            value_dim,
        };
        for segment in &head.segments {
            let variance = segment.unit_variance(&head.bases);
            for cluster in 0..segment.ladder.cluster_count() {
                let summary = segment.ladder.cluster(cluster);
                clusters.count.push(summary.count);
                clusters.value_spread.push(summary.value_spread);
                clusters.mean_error.push(summary.mean_error);
                let scores = &clusters.uncapped[clusters.within.len()..];
                let within = variance.iter().zip(scores).map(|(variance, &score)| {
                    let variance = variance * summary.key_spread;
                    variance * softcap.slope(score, Z_CLUSTER * variance.sqrt()).powi(2)
                });
                let within: Vec<f32> = within.collect();
                clusters.within.extend(within);
            }
        }
        for centre in clusters.centre.chunks_exact(group) {
            clusters.top.iter_mut().zip(centre).for_each(|(top, &centre)| *top = top.max(centre));
        }
        clusters.steady = steady.lse.iter().zip(&clusters.top).map(|(lse, top)| (lse - top).exp()).collect();
        clusters.weigh(kernels, group);
        clusters
    }

    fn weigh(&mut self, kernels: &Kernels, group: usize) {
        let above: Vec<f32> = self.within.iter().map(|&within| above(within)).collect();
        self.above = exp_m1(kernels, &above);
        let weights = |allowance: &dyn Fn(usize) -> f32, most: f32| {
            let over_top = |i: usize| (self.centre[i] + allowance(i) - self.top[i % group]).min(most);
            let mut weights: Vec<f32> = (0..self.centre.len()).map(over_top).collect();
            exp(kernels, &mut weights);
            for (weights, count) in weights.chunks_exact_mut(group).zip(&self.count) {
                weights.iter_mut().for_each(|weight| *weight *= count);
            }
            weights
        };
        let estimate = weights(&|i| (self.within[i] / 4.0).min(1.0), SKETCH_MAX);
        self.mass = weights(&|_| 0.0, ABOVE_MAX);
        self.estimate = estimate;
    }

    /// Refers the weights of head `g` to `top`; returns what all of them were multiplied with.
    pub(super) fn raise_top(&mut self, g: usize, top: f32) -> f32 {
        let factor = (self.top[g] - top).exp();
        self.top[g] = top;
        self.steady[g] *= factor;
        let group = self.top.len();
        let weights = [&mut self.mass, &mut self.estimate];
        let mine = weights.into_iter().flat_map(|weights| weights.iter_mut().skip(g).step_by(group));
        mine.for_each(|weight| *weight *= factor);
        factor
    }

    /// The value that stands for the rows of a cluster until they are read.
    pub(super) fn mean<'a>(&'a self, head: &'a Head<'_>, cluster: usize) -> &'a [f32] {
        match self.mean_at[cluster] {
            Some(at) => &self.means[at as usize * self.value_dim..][..self.value_dim],
            None => head.segments[head.segment_of(cluster)].ladder.global_value,
        }
    }

    /// Per cluster: the largest share of the mass that it could hold, over the heads of the group.
    pub(super) fn mass_above(&self, group: usize) -> Vec<f32> {
        let total = self.totals(&self.mass, group);
        let share = |i: usize| self.mass[i] / total[i % group] * (1.0 + self.above[i]);
        let clusters = (0..self.count.len()).map(|cluster| cluster * group..(cluster + 1) * group);
        clusters.map(|heads| heads.map(share).fold(0.0, f32::max)).collect()
    }

    /// How many means [`Self::read_means`] reads.
    pub(super) fn means_wanted(mass_above: &[f32], tau: f32) -> u64 {
        mass_above.iter().filter(|&&most| most > MEAN * tau).count() as u64
    }

    /// Reads the value means of clusters that could hold enough mass, as [`Self::mass_above`] says.
    pub(super) fn read_means(&mut self, head: &Head<'_>, mass_above: &[f32], tau: f32) {
        for (cluster, &most) in mass_above.iter().enumerate() {
            if most > MEAN * tau && self.mean_at[cluster].is_none() {
                self.mean_at[cluster] = Some((self.means.len() / self.value_dim) as u32);
                self.read_mean(head, cluster);
            }
        }
    }

    /// Chooses the clusters to open, among those whose mean was read: where not knowing a row's score could matter.
    pub(super) fn probe(&mut self, head: &Head<'_>, steady: &Steady, tau: f32) {
        let group = head.group;
        let total = self.totals(&self.mass, group);
        let rough = self.rough(head, &self.mass, steady);
        for cluster in 0..head.clusters {
            if self.mean_at[cluster].is_none() {
                self.probed[cluster] = false;
                continue;
            }
            let mut gain = 0.0f32;
            for (g, total) in total.iter().enumerate() {
                let i = cluster * group + g;
                let off = rough.distance2(self.mean(head, cluster), g)
                    + self.value_spread[cluster]
                    + self.count[cluster] * self.mean_error[cluster];
                let per_row = self.mass[i] / total / self.count[cluster];
                gain += (per_row * self.above[i] * off.sqrt() / rough.norm[g]).powi(2);
            }
            self.probed[cluster] = gain.sqrt() > PROBE * tau;
        }
    }

    fn read_mean(&mut self, head: &Head<'_>, cluster: usize) {
        let segment = &head.segments[head.segment_of(cluster)];
        let (dim, ladder, start) = (self.value_dim, &segment.ladder, self.means.len());
        let record = record_len(dim);
        self.means.resize(start + dim, 0.0);
        let at = (cluster - segment.first) * record;
        decode4(&ladder.value_means[at..at + record], ladder.value_mean_sigma, &mut self.means[start..]);
        self.means[start..].iter_mut().zip(ladder.global_value).for_each(|(mean, global)| *mean += global);
    }

    /// Sums of `[clusters, group]` weights and the steady rows, per head.
    pub(super) fn totals(&self, weights: &[f32], group: usize) -> Vec<f32> {
        let mut total = vec![0.0; group];
        for weights in weights.chunks_exact(group) {
            total.iter_mut().zip(weights).for_each(|(total, weight)| *total += weight);
        }
        total.iter().zip(&self.steady).map(|(total, steady)| total + steady).collect()
    }

    /// The answer as it stands when every cluster's rows have its mean value.
    pub(super) fn rough(&self, head: &Head<'_>, weights: &[f32], steady: &Steady) -> Rough {
        let (group, dim) = (head.group, self.value_dim);
        let total = self.totals(weights, group);
        let mut output = vec![0.0; group * dim];
        for segment in &head.segments {
            // Clusters whose mean was not read share one value: their weights are summed first.
            let mut unread = vec![0.0; group];
            for cluster in segment.first..segment.first + segment.ladder.cluster_count() {
                let weights = &weights[cluster * group..][..group];
                if self.mean_at[cluster].is_none() {
                    unread.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
                } else {
                    add_weighted(&mut output, weights, self.mean(head, cluster));
                }
            }
            add_weighted(&mut output, &unread, segment.ladder.global_value);
        }
        for (g, output) in output.chunks_exact_mut(dim).enumerate() {
            for (output, steady) in output.iter_mut().zip(&steady.output[g * dim..]) {
                *output = (*output + self.steady[g] * steady) / total[g];
            }
        }
        Rough::new(output, dim)
    }
}

/// How far above its centre's a score inside a cluster is allowed for, given the variance inside.
fn above(within: f32) -> f32 {
    within.min(Z_CLUSTER * within.sqrt()).min(RISE_MAX)
}

/// `output[g] += weights[g] * value`, for each head.
pub(super) fn add_weighted(output: &mut [f32], weights: &[f32], value: &[f32]) {
    for (output, weight) in output.chunks_exact_mut(value.len()).zip(weights) {
        output.iter_mut().zip(value).for_each(|(output, value)| *output += weight * value);
    }
}

/// An answer under way, rotated.
pub(super) struct Rough {
    pub(super) output: Vec<f32>,
    /// Norm of each head's output.
    pub(super) norm: Vec<f32>,
    dim: usize,
}

impl Rough {
    pub(super) fn new(output: Vec<f32>, dim: usize) -> Self {
        // An output of zero has no relative error; the smallest norm keeps its gains finite.
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        let norm = output.chunks_exact(dim).map(norm).collect();
        Rough { output, norm, dim }
    }

    pub(super) fn distance2(&self, value: &[f32], head: usize) -> f32 {
        self.output[head * self.dim..].iter().zip(value).map(|(a, b)| (a - b) * (a - b)).sum()
    }
}
