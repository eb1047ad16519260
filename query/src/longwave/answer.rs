//! The answer under way: weighted values over the weights' sum, rotated.

use super::clusters::Clusters;
use super::head::Head;
use longwave_kernels::Kernels;

/// The rows that are read exactly anyway, as one weighted value per head of the group.
pub(super) struct Steady {
    /// Log-sum-exp of their scores, per head; minus infinity where there are none.
    pub(super) lse: Vec<f32>,
    /// Their output, rotated, `[group, value_dim]`.
    pub(super) output: Vec<f32>,
}

/// Weighted sums of coded values, in units of their scales: one sum `[group, value_dim]` for each basis.
#[derive(Clone, Default)]
pub(super) struct CodedMeans {
    pub(super) sums: Vec<Vec<f32>>,
    dim: usize,
    local: Vec<u32>,
    weights: Vec<f32>,
}

impl CodedMeans {
    pub(super) fn reset(&mut self, head: &Head<'_>, dim: usize) {
        self.dim = dim;
        self.sums.resize(head.bases.len(), Vec::new());
        for sum in &mut self.sums {
            sum.clear();
            sum.resize(head.group * dim, 0.0);
        }
    }

    /// Copies another's sums.
    pub(super) fn copy(&mut self, other: &CodedMeans) {
        self.dim = other.dim;
        self.sums.clone_from(&other.sums);
    }

    /// Refers the sums of each head to another reference of the exponentials.
    pub(super) fn rescale(&mut self, from: &[f32], to: &[f32]) {
        for sum in &mut self.sums {
            for (head, (from, to)) in sum.chunks_exact_mut(self.dim).zip(from.iter().zip(to)) {
                if from != to {
                    let factor = (from - to).exp();
                    head.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
    }

    /// Adds the listed clusters' means, less the mean of all values, with their weights in `planes`.
    pub(super) fn add(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        list: &[u32],
        planes: &[f32],
    ) {
        for (number, run) in head.runs(list) {
            let segment = &head.segments[number];
            local(run, segment.first, &mut self.local);
            self.weights.clear();
            self.weights.resize(run.len() * head.group, 0.0);
            for g in 0..head.group {
                let plane = clusters.plane(planes, g);
                let weights = self.weights[g..].iter_mut().step_by(head.group);
                weights.zip(run).for_each(|(weight, &cluster)| *weight = plane[cluster as usize]);
            }
            let (sum, records) = (&mut self.sums[segment.basis], segment.ladder.value_means);
            kernels.accumulate4_gathered(&self.weights, head.group, self.dim, records, &self.local, sum);
        }
    }
}

/// Clusters of a segment, numbered from its first.
fn local(run: &[u32], first: usize, local: &mut Vec<u32>) {
    local.clear();
    local.extend(run.iter().map(|&cluster| cluster - first as u32));
}

/// Values of rows that were read.
#[derive(Default)]
pub(super) struct RowValues {
    /// Of coded values, one sum for each basis, in units of their scales.
    pub(super) coded: CodedMeans,
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
    dim: usize,
}

impl Rough {
    /// The answer where clusters have the weights of `weights`, of which `on_mean` rests on their mean values, whose
    /// sums are `means`, and the rest on `rows`.
    pub(super) fn of(
        head: &Head<'_>,
        clusters: &Clusters,
        means: &CodedMeans,
        weights: &[f32],
        on_mean: &[f32],
        steady: &Steady,
        rows: Option<&RowValues>,
    ) -> Self {
        let (group, dim) = (head.group, means.dim);
        let mut output = rows.map_or_else(|| vec![0.0; group * dim], |rows| rows.full.clone());
        let mut known = vec![false; head.bases.len()];
        for segment in &head.segments {
            if !std::mem::replace(&mut known[segment.basis], true) {
                add_scaled(&mut output, &means.sums[segment.basis], segment.ladder.value_mean_sigma);
                if let Some(rows) = rows {
                    add_scaled(&mut output, &rows.coded.sums[segment.basis], segment.ladder.value_sigma);
                }
            }
            for (g, output) in output.chunks_exact_mut(dim).enumerate() {
                let weight: f32 = sum(&clusters.plane(on_mean, g)[segment.clusters()]);
                let global = output.iter_mut().zip(segment.ladder.global_value);
                global.for_each(|(output, global)| *output += weight * global);
            }
        }
        let mut total = Vec::with_capacity(group);
        for (g, output) in output.chunks_exact_mut(dim).enumerate() {
            total.push(sum(clusters.plane(weights, g)) + clusters.steady[g]);
            for (output, steady) in output.iter_mut().zip(&steady.output[g * dim..]) {
                *output = (*output + clusters.steady[g] * steady) / total[g];
            }
        }
        // An output of zero has no relative error; the smallest norm keeps its gains finite.
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        let norm = output.chunks_exact(dim).map(norm).collect();
        Rough { output, norm, total, dim }
    }

    /// Squared distances `[list, group]` to the listed clusters' means, all of which have been read.
    pub(super) fn distances(
        &self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        list: &[u32],
        off: &mut Vec<f32>,
    ) {
        let group = head.group;
        debug_assert!(list.iter().all(|&cluster| clusters.mean_read[cluster as usize]), "an unread mean");
        off.clear();
        off.resize(list.len() * group, 0.0);
        let (mut scaled, mut indices, mut start) = (Vec::new(), Vec::new(), 0);
        for (number, run) in head.runs(list) {
            let segment = &head.segments[number];
            local(run, segment.first, &mut indices);
            scaled.clear();
            for output in self.output.chunks_exact(self.dim) {
                scaled.extend(output.iter().zip(segment.ladder.value_mean_sigma).map(|(o, sigma)| o * sigma));
            }
            let off = &mut off[start..start + run.len() * group];
            start += off.len();
            kernels.scores4_gathered(&scaled, group, self.dim, segment.ladder.value_means, &indices, off);
            let global: Vec<f32> = (0..group).map(|g| self.dot(segment.ladder.global_value, g)).collect();
            for (&cluster, off) in indices.iter().zip(off.chunks_exact_mut(group)) {
                let norm2 = segment.norms.means[cluster as usize];
                for (g, off) in off.iter_mut().enumerate() {
                    let own = self.norm[g] * self.norm[g];
                    *off = (norm2 - 2.0 * (*off + global[g]) + own).max(0.0);
                }
            }
        }
    }

    /// Squared distance of head `g` to the mean of all values of a segment.
    pub(super) fn distance_to_global(&self, head: &Head<'_>, segment: usize, g: usize) -> f32 {
        let segment = &head.segments[segment];
        let product = self.dot(segment.ladder.global_value, g);
        (segment.norms.global - 2.0 * product + self.norm[g] * self.norm[g]).max(0.0)
    }

    fn dot(&self, value: &[f32], g: usize) -> f32 {
        self.output[g * self.dim..].iter().zip(value).map(|(a, b)| a * b).sum()
    }
}

/// `output[g] += sums[g] * scales`, dimension by dimension.
pub(super) fn add_scaled(output: &mut [f32], sums: &[f32], scales: &[f32]) {
    for (output, sums) in output.chunks_exact_mut(scales.len()).zip(sums.chunks_exact(scales.len())) {
        let terms = sums.iter().zip(scales);
        output.iter_mut().zip(terms).for_each(|(output, (sum, scale))| *output += sum * scale);
    }
}

/// A sum in eight parts, which the processor adds up side by side.
pub(super) fn sum(numbers: &[f32]) -> f32 {
    let (eights, rest) = numbers.as_chunks::<8>();
    let mut parts = [0.0f32; 8];
    for eight in eights {
        parts.iter_mut().zip(eight).for_each(|(part, number)| *part += number);
    }
    parts.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
