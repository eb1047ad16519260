//! The answer under way: weighted values over the weights' sum, rotated.

use super::head::{Head, HeadSegment};
use super::product;
use longwave_kernels::Kernels;
use longwave_kernels::codec::{Laid, Summaries};

/// The rows that are read exactly anyway, as one weighted value per head of the group.
pub(super) struct Steady {
    /// Log-sum-exp of their scores, per head; minus infinity where there are none.
    pub(super) lse: Vec<f32>,
    /// Their output, rotated, `[group, value_dim]`.
    pub(super) output: Vec<f32>,
}

/// Weighted sums of value means less the mean of all values, in units of their scales: one for each basis.
#[derive(Clone, Default)]
pub(super) struct MeanSums {
    sums: Vec<Laid>,
    local: Vec<u32>,
}

impl MeanSums {
    /// Sums of 0 for `sets` sets of weights.
    pub(super) fn reset(&mut self, head: &Head<'_>, sets: usize, dim: usize) {
        self.sums.resize_with(head.bases.len(), Laid::default);
        self.sums.iter_mut().for_each(|sum| sum.reset(sets, dim));
    }

    /// Adds the listed clusters' means. The weights of each set are a plane, one a cluster of the list.
    pub(super) fn add(&mut self, kernels: &Kernels, head: &Head<'_>, list: &[u32], planes: &[f32]) {
        let mut start = 0;
        for (number, run) in head.runs(list) {
            let segment = &head.segments[number];
            local(run, segment.first, &mut self.local);
            let dim = segment.ladder.value_mean_sigma.len();
            let means = Summaries::listed(segment.ladder.value_means, dim, &self.local);
            kernels.sum_summaries(&planes[start..], list.len(), means, &mut self.sums[segment.basis]);
            start += run.len();
        }
    }

    /// Refers the sums of all sets, one after the other for each head, to another reference of the exponentials.
    pub(super) fn rescale(&mut self, from: &[f32], to: &[f32]) {
        for sum in &mut self.sums {
            for (set, (from, to)) in (0..sum.heads()).zip(from.iter().zip(to).cycle()) {
                if from != to {
                    sum.scale(set, (from - to).exp());
                }
            }
        }
    }

    /// Adds the sums of the sets from `first` on to `output`, `[sets, value_dim]`, in units of values.
    pub(super) fn add_to(&self, head: &Head<'_>, first: usize, output: &mut [f32]) {
        for (basis, sum) in self.sums.iter().enumerate() {
            if let Some(segment) = head.segments.iter().find(|segment| segment.basis == basis) {
                sum.add_to(first, segment.ladder.value_mean_sigma, output);
            }
        }
    }
}

/// Clusters of a segment, numbered from its first.
fn local(run: &[u32], first: usize, local: &mut Vec<u32>) {
    local.clear();
    local.extend(run.iter().map(|&cluster| cluster - first as u32));
}

/// Weighted sums of coded values of rows, in units of their scales: one sum `[group, value_dim]` for each basis.
#[derive(Clone, Default)]
pub(super) struct CodedSums {
    pub(super) sums: Vec<Vec<f32>>,
}

impl CodedSums {
    pub(super) fn reset(&mut self, head: &Head<'_>, dim: usize) {
        self.sums.resize(head.bases.len(), Vec::new());
        for sum in &mut self.sums {
            sum.clear();
            sum.resize(head.group * dim, 0.0);
        }
    }
}

/// Values of rows that were read.
#[derive(Default)]
pub(super) struct RowValues {
    /// Of coded values, one sum for each basis, in units of their scales.
    pub(super) coded: CodedSums,
    /// Of full values, rotated.
    pub(super) full: Vec<f32>,
}

/// An answer under way, rotated.
pub(super) struct Rough {
    /// `[group, value_dim]`.
    pub(super) output: Vec<f32>,
    /// Norm of each head's output.
    pub(super) norm: Vec<f32>,
    /// Sum of each head's weights.
    pub(super) total: Vec<f32>,
    pub(super) dim: usize,
}

impl Rough {
    /// The answer where the clusters of each segment weigh `weights` together, `[segments, group]`, of which `on_mean` rests on
    /// their mean values, whose sums `means` have together in their first sets, and the rest on `rows`.
    pub(super) fn of(
        head: &Head<'_>,
        means: &[&MeanSums],
        (weights, on_mean): (&[f32], &[f32]),
        (steady, steady_weights): (&Steady, &[f32]),
        rows: Option<&RowValues>,
    ) -> Self {
        let (group, dim) = (head.group, steady.output.len() / head.group);
        let mut output = rows.map_or_else(|| vec![0.0; group * dim], |rows| rows.full.clone());
        means.iter().for_each(|means| means.add_to(head, 0, &mut output));
        let mut known = vec![false; head.bases.len()];
        for segment in &head.segments {
            if let Some(rows) = rows
                && !std::mem::replace(&mut known[segment.basis], true)
            {
                add_scaled(&mut output, &rows.coded.sums[segment.basis], segment.ladder.value_sigma);
            }
            let on_mean = &on_mean[segment.number * group..];
            for (output, weight) in output.chunks_exact_mut(dim).zip(on_mean) {
                let global = output.iter_mut().zip(segment.ladder.global_value);
                global.for_each(|(output, global)| *output += weight * global);
            }
        }
        let mut total = Vec::with_capacity(group);
        for (g, output) in output.chunks_exact_mut(dim).enumerate() {
            let steady_weight = steady_weights[g];
            total.push(weights.iter().skip(g).step_by(group).sum::<f32>() + steady_weight);
            for (output, steady) in output.iter_mut().zip(&steady.output[g * dim..]) {
                *output = (*output + steady_weight * steady) / total[g];
            }
        }
        let mut rough = Rough { output, norm: Vec::with_capacity(group), total, dim };
        rough.measure();
        rough
    }

    /// Takes the norms of the output. One of zero has no relative error; the smallest norm keeps its gains finite.
    pub(super) fn measure(&mut self) {
        self.norm.clear();
        let norm = |x: &[f32]| product(x, x).sqrt().max(f32::MIN_POSITIVE);
        self.norm.extend(self.output.chunks_exact(self.dim).map(norm));
    }

    /// Whether the weights hold an answer. They do not where all scores turned out so far below what the centroids gave reason
    /// to expect that every exponential is 0, as keys of norms far beyond a model's can make them.
    pub(super) fn is_known(&self) -> bool {
        self.total.iter().all(|total| *total > 0.0 && total.is_finite())
    }

    /// Squared distances, in a plane of the length of `list` for each head, to the listed clusters' means, whose squared norms
    /// are `norms`.
    pub(super) fn distances(
        &self,
        kernels: &Kernels,
        head: &Head<'_>,
        (list, norms): (&[u32], &[f32]),
        off: &mut Vec<f32>,
    ) {
        let group = head.group;
        off.resize(list.len() * group, 0.0);
        let mut known: Vec<Option<Laid>> = vec![None; head.bases.len()];
        let (mut indices, mut start) = (Vec::new(), 0);
        for (number, run) in head.runs(list) {
            let segment = &head.segments[number];
            local(run, segment.first, &mut indices);
            let query = known[segment.basis].get_or_insert_with(|| {
                let mut query = Laid::default();
                query.set(&self.output, group, segment.ladder.value_mean_sigma);
                query
            });
            let means = Summaries::listed(segment.ladder.value_means, self.dim, &indices);
            let global: Vec<f32> = (0..group).map(|g| self.dot(segment.ladder.global_value, g)).collect();
            kernels.scores_summaries(query, means, &global, list.len(), &mut off[start..]);
            start += run.len();
        }
        for (off, norm) in off.chunks_exact_mut(list.len().max(1)).zip(&self.norm) {
            let own = norm * norm;
            off.iter_mut().zip(norms).for_each(|(off, norm2)| *off = (norm2 - 2.0 * *off + own).max(0.0));
        }
    }

    /// Squared distance of head `g` to the mean of all values of a segment.
    pub(super) fn distance_to_global(&self, segment: &HeadSegment<'_>, g: usize) -> f32 {
        let along = self.dot(segment.ladder.global_value, g);
        (segment.numbers.global_norm - 2.0 * along + self.norm[g] * self.norm[g]).max(0.0)
    }

    fn dot(&self, value: &[f32], g: usize) -> f32 {
        product(&self.output[g * self.dim..][..self.dim], value)
    }
}

/// `output[g] += sums[g] * scales`, dimension by dimension.
pub(super) fn add_scaled(output: &mut [f32], sums: &[f32], scales: &[f32]) {
    for (output, sums) in output.chunks_exact_mut(scales.len()).zip(sums.chunks_exact(scales.len())) {
        let terms = sums.iter().zip(scales);
        output.iter_mut().zip(terms).for_each(|(output, (sum, scale))| *output += sum * scale);
    }
}
