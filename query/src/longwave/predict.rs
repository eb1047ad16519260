//! The answer's own estimate of its error. Nothing more is read for it.

use super::answer::{CodedMeans, Rough, add_scaled};
use super::clusters::Clusters;
use super::constants::VALUE_CODE_NOISE;
use super::head::Head;
use super::zone::{Zone, of};
use longwave_kernels::Kernels;

/// The variance of scores inside a cluster counts up to this.
const WITHIN_MAX: f32 = 2.0;

/// Predicted relative errors under way, and room for what they are computed from.
#[derive(Default)]
pub(super) struct Prediction {
    /// Squared error of each head.
    squared: Vec<f32>,
    /// Planes of clusters: squared distances to the answer, and weights that rest on the mean value.
    off: Vec<f32>,
    unread: Vec<f32>,
    /// Planes of clusters: shares by which the estimate may lie too high or too low.
    shift: Vec<f32>,
    distances: Vec<f32>,
    bias: CodedMeans,
    rows: Vec<f32>,
}

impl Prediction {
    /// Predicted relative error of each head of the group, from four terms: value noise, key noise, the spread of scores
    /// outside the zone, and its bias; and the coding error of the value means, which a whole cluster shares.
    pub(super) fn errors(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        zone: &Zone,
        answer: &Rough,
    ) -> Vec<f32> {
        self.squared.clear();
        self.squared.resize(head.group, 0.0);
        self.distances(kernels, head, clusters, answer);
        self.zone_noise(head, clusters, zone, answer);
        self.cluster_noise(head, clusters, zone, answer);
        self.bias(kernels, head, clusters, answer);
        self.squared.iter().zip(&answer.norm).map(|(squared, norm)| squared.sqrt() / norm).collect()
    }

    fn distances(&mut self, kernels: &Kernels, head: &Head<'_>, clusters: &Clusters, answer: &Rough) {
        self.off.clear();
        self.off.resize(head.group * clusters.len, 0.0);
        for (number, segment) in head.segments.iter().enumerate() {
            for g in 0..head.group {
                let start = g * clusters.len;
                let part = start + segment.first..start + segment.clusters().end;
                self.off[part].fill(answer.distance_to_global(head, number, g));
            }
        }
        answer.distances(kernels, head, clusters, &clusters.means, &mut self.distances);
        for (&cluster, distances) in clusters.means.iter().zip(self.distances.chunks_exact(head.group)) {
            for (g, distance) in distances.iter().enumerate() {
                self.off[g * clusters.len + cluster as usize] = *distance;
            }
        }
    }

    /// Noise of values and keys of the opened clusters.
    fn zone_noise(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone, answer: &Rough) {
        self.unread.clone_from(&zone.cluster_weight);
        for (number, opened) in zone.opened.iter().enumerate() {
            let spread = clusters.value_spread[opened.cluster];
            let read = zone.values.of(number).next().is_some();
            for g in 0..head.group {
                let (at, sums) = (g * clusters.len + opened.cluster, zone.sums[number * head.group + g]);
                let mut squared = sums.squared;
                if read {
                    self.rows.clear();
                    self.rows.extend_from_slice(zone.part(&zone.weight, g, opened));
                    for (list, left) in
                        [(&zone.values.code, VALUE_CODE_NOISE.sqrt()), (&zone.values.full, 0.0)]
                    {
                        for chosen in of(list, number) {
                            let weight = &mut self.rows[chosen.at as usize - opened.start];
                            self.unread[at] -= *weight;
                            *weight *= left;
                        }
                    }
                    squared = self.rows.iter().map(|weight| weight * weight).sum();
                }
                let noise = squared * spread + sums.noise * (self.off[at] + spread);
                self.squared[g] += noise / (answer.total[g] * answer.total[g]);
            }
        }
    }

    /// Noise of the clusters that are estimated, and of the value means.
    fn cluster_noise(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone, answer: &Rough) {
        self.shift.clear();
        self.shift.resize(head.group * clusters.len, 0.0);
        for segment in &head.segments {
            let unread_noise = segment.ladder.mean_deviation;
            for g in 0..head.group {
                let scale = 1.0 / answer.total[g];
                let mut sum = 0.0;
                for cluster in segment.clusters() {
                    let at = g * clusters.len + cluster;
                    let read = clusters.mean_read[cluster];
                    let mean_noise = if read { clusters.mean_error[cluster] } else { unread_noise };
                    let unread = self.unread[at] * scale;
                    sum += unread * unread * mean_noise;
                    // Not the sums of rows that were opened: their noise is counted.
                    let share = zone.cluster_weight[at] * scale;
                    let share = if clusters.is_open[cluster] { 0.0 } else { share };
                    let quarter = exp_m1(clusters.within[at].min(WITHIN_MAX) / 4.0);
                    let double = quarter * (quarter + 2.0);
                    let whole = double * (double + 2.0);
                    let spread = clusters.value_spread[cluster];
                    let noise = whole * (self.off[at] + spread) + spread;
                    sum += share * share / clusters.count[cluster] * noise;
                    self.shift[at] = share * quarter;
                }
                self.squared[g] += sum;
            }
        }
    }

    /// The error that remains if all estimates lie too high or too low together.
    fn bias(&mut self, kernels: &Kernels, head: &Head<'_>, clusters: &Clusters, answer: &Rough) {
        let dim = answer.output.len() / head.group;
        self.bias.reset(head, dim);
        self.bias.add(kernels, head, clusters, &clusters.closed, &self.shift);
        let mut bias = vec![0.0; answer.output.len()];
        let mut total = vec![0.0; head.group];
        let mut known = vec![false; head.bases.len()];
        for segment in &head.segments {
            if !std::mem::replace(&mut known[segment.basis], true) {
                add_scaled(&mut bias, &self.bias.sums[segment.basis], segment.ladder.value_mean_sigma);
            }
            for (g, bias) in bias.chunks_exact_mut(dim).enumerate() {
                let shift = super::answer::sum(&clusters.plane(&self.shift, g)[segment.clusters()]);
                total[g] += shift;
                let global = bias.iter_mut().zip(segment.ladder.global_value);
                global.for_each(|(bias, global)| *bias += shift * global);
            }
        }
        let outputs = answer.output.chunks_exact(dim).zip(bias.chunks_exact(dim));
        for (g, (output, bias)) in outputs.enumerate() {
            let terms = bias.iter().zip(output).map(|(b, o)| (b - total[g] * o).powi(2));
            self.squared[g] += terms.sum::<f32>();
        }
    }
}

/// `exp(x) - 1` for x from 0 to 1/2, within a relative 2e-7: the series, whose first left-out term is less.
fn exp_m1(x: f32) -> f32 {
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0f32];
    x * series.iter().fold(1.0 / 5040.0, |sum, coefficient| sum * x + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_of_exponentials_keep_their_digits() {
        for i in 0..2000 {
            let x = 0.5 * (i as f32 / 1999.0).powi(6);
            let expected = f64::from(x).exp_m1();
            assert!((f64::from(exp_m1(x)) - expected).abs() <= 4e-7 * expected, "{x}");
        }
    }
}
