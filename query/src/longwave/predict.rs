//! The answer's own estimate of its error. Nothing more is read for it.

use super::answer::{MeanSums, Rough};
use super::clusters::Clusters;
use super::constants::{SHARED_MAX, UNSURE, VALUE_NOISE, Z_CLUSTER};
use super::head::Head;
use super::product;
use super::zone::{Zone, of};
use longwave_kernels::Kernels;
use longwave_kernels::ladder::Estimated;

/// Predicted relative errors under way, and room for what they are computed from.
#[derive(Default)]
pub(super) struct Prediction {
    /// Squared error of each head.
    squared: Vec<f32>,
    /// Planes of clusters: squared distances to the answer, and weights that rest on the mean value.
    off: Vec<f32>,
    unread: Vec<f32>,
    /// Of the means that were read, `[group, means]`.
    distances: Vec<f32>,
    /// Of the rows whose values were read, `[opened, group]`.
    read: Vec<ReadValues>,
    rows: Vec<f32>,
    /// One number a cluster: squared error of the value that stands for it, and 1 where it is not open.
    mean_error: Vec<f32>,
    closed: Vec<f32>,
}

/// Sums over the rows of an opened cluster whose values were read, of one head's weights.
#[derive(Clone, Copy, Default)]
struct ReadValues {
    weight: f32,
    /// Of the squares, times the share of the values' noise that reading took away.
    squared: f32,
    /// Of the weights times the share of the deviation that is left.
    left: f32,
}

/// A difference that is a smaller share of what was taken from is summed anew.
const DIFFERENCE_MIN: f32 = 1e-3;

impl Prediction {
    /// Predicted relative error of each head of the group; `closed` has the sums over the means of the clusters that are not
    /// open. It is made of value noise, key noise, the spread of scores
    /// outside the zone, and its bias; and of what a whole cluster shares: the coding errors of value means and centroids.
    pub(super) fn errors(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        zone: &Zone,
        (answer, closed): (&Rough, &MeanSums),
    ) -> Vec<f32> {
        self.squared.clear();
        self.squared.resize(head.group, 0.0);
        self.distances(kernels, head, clusters, answer);
        self.values(head, zone);
        self.zone_noise(head, clusters, zone, answer);
        self.cluster_noise(kernels, head, clusters, zone, answer);
        self.unsure(kernels, head, clusters, zone, answer);
        self.bias(head, clusters, answer, closed);
        self.squared.iter().zip(&answer.norm).map(|(squared, norm)| squared.sqrt() / norm).collect()
    }

    fn distances(&mut self, kernels: &Kernels, head: &Head<'_>, clusters: &Clusters, answer: &Rough) {
        self.off.resize(head.group * clusters.len, 0.0);
        for (number, segment) in head.segments.iter().enumerate() {
            for g in 0..head.group {
                let start = g * clusters.len;
                let part = start + segment.first..start + segment.clusters().end;
                self.off[part].fill(answer.distance_to_global(head, number, g));
            }
        }
        answer.distances(kernels, head, clusters, &clusters.means, &mut self.distances);
        let planes = self.off.chunks_exact_mut(clusters.len.max(1));
        for (plane, distances) in planes.zip(self.distances.chunks_exact(clusters.means.len().max(1))) {
            for (&cluster, distance) in clusters.means.iter().zip(distances) {
                plane[cluster as usize] = *distance;
            }
        }
    }

    /// Sums up, for each opened cluster and head, what the values that were read leave of its noise.
    fn values(&mut self, head: &Head<'_>, zone: &Zone) {
        self.read.clear();
        self.read.resize(zone.opened.len() * head.group, ReadValues::default());
        let [half, code] = VALUE_NOISE.map(f32::sqrt);
        let values = &zone.values;
        for (list, left, is_code) in
            [(&values.half, half, false), (&values.code, code, true), (&values.full, 0.0, false)]
        {
            for chosen in list {
                let number = chosen.opened as usize;
                let left = if is_code && zone.opened[number].codes_alone { 0.0 } else { left };
                let read = &mut self.read[number * head.group..][..head.group];
                for (read, place) in read.iter_mut().zip(zone.places(chosen)) {
                    let weight = zone.weight[place];
                    read.weight += weight;
                    read.squared += weight * weight * (1.0 - left * left);
                    read.left += weight * left;
                }
            }
        }
    }

    /// Noise of values and keys of the opened clusters: of each row by itself, and what its rows share. That does not average
    /// out over them: what the codes leave of the errors of its centroid and of its value mean. It shows where rows are
    /// nearly equal.
    fn zone_noise(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone, answer: &Rough) {
        self.unread.clone_from(&zone.cluster_weight);
        for (number, opened) in zone.opened.iter().enumerate() {
            let spread = clusters.value_spread[opened.cluster];
            let centroid = &head.bases[head.segments[opened.segment].basis].centroid_variance;
            for (g, centroid) in centroid.iter().enumerate() {
                let (place, at) = (number * head.group + g, g * clusters.len + opened.cluster);
                let (sums, read, off) = (zone.sums[place], self.read[place], self.off[at]);
                self.unread[at] -= read.weight;
                let mut squared = sums.squared - read.squared;
                // What is left of a difference of nearly equal numbers is their rounding.
                if squared < DIFFERENCE_MIN * sums.squared {
                    squared = self.squares_left(zone, number, g);
                }
                let mut noise = squared * spread + sums.noise * (off + spread);
                if sums.squared > 0.0 {
                    let shared = (centroid / clusters.within[at]).min(1.0);
                    noise += sums.weight * sums.weight * shared * sums.noise / sums.squared * off;
                }
                noise += read.left * read.left * clusters.mean_error[opened.cluster];
                self.squared[g] += noise / (answer.total[g] * answer.total[g]);
            }
        }
    }

    /// Sum of the squared weights of an opened cluster's rows, times what is left of their values' noise.
    fn squares_left(&mut self, zone: &Zone, number: usize, g: usize) -> f32 {
        let opened = &zone.opened[number];
        self.rows.clear();
        self.rows.extend_from_slice(zone.part(&zone.weight, g, opened));
        let [half, code] = VALUE_NOISE.map(f32::sqrt);
        let code = if opened.codes_alone { 0.0 } else { code };
        let values = &zone.values;
        for (list, left) in [(&values.half, half), (&values.code, code), (&values.full, 0.0)] {
            for chosen in of(list, number) {
                self.rows[chosen.at as usize - opened.start] *= left;
            }
        }
        product(&self.rows, &self.rows)
    }

    /// Noise of the clusters that are estimated, and of the value means.
    fn cluster_noise(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        zone: &Zone,
        answer: &Rough,
    ) {
        self.mean_error.clone_from(&clusters.mean_error);
        for segment in &head.segments {
            for cluster in segment.clusters().filter(|&cluster| !clusters.mean_read[cluster]) {
                self.mean_error[cluster] = segment.ladder.mean_deviation;
            }
        }
        self.closed.clear();
        self.closed.extend(clusters.is_open.iter().map(|&open| if open { 0.0 } else { 1.0 }));
        for segment in &head.segments {
            let of = segment.clusters();
            for g in 0..head.group {
                let shared = head.bases[segment.basis].centroid_variance[g];
                let estimated = Estimated {
                    weights: &clusters.plane(&zone.cluster_weight, g)[of.clone()],
                    on_mean: &clusters.plane(&self.unread, g)[of.clone()],
                    closed: &self.closed[of.clone()],
                    within: &clusters.plane(&clusters.within, g)[of.clone()],
                    off: &clusters.plane(&self.off, g)[of.clone()],
                    value_spread: &clusters.value_spread[of.clone()],
                    mean_error: &self.mean_error[of.clone()],
                    counts: &clusters.count[of.clone()],
                    shared: shared.min(SHARED_MAX).exp_m1(),
                    scale: 1.0 / answer.total[g],
                };
                self.squared[g] += kernels.cluster_noise(&estimated);
            }
        }
    }

    /// Where scores are less sure than any model's, exponentials run over and the terms above lose what might have been: the
    /// largest error that a cluster or a row could make which was not read and may hold far more than it seems to.
    fn unsure(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        zone: &Zone,
        answer: &Rough,
    ) {
        for g in 0..head.group {
            let total = answer.total[g].ln();
            // A weight below the smallest number is one of that size for all that is known.
            let could_hold = |weight: f32, deviation: f32| {
                let most = weight.max(f32::MIN_POSITIVE).ln() + Z_CLUSTER * deviation - total;
                most.min(0.0).exp()
            };
            let mut worst = 0.0f32;
            let within = clusters.plane(&clusters.within, g);
            let mut most = [0.0];
            kernels.max_per_head(within, 1, &mut most);
            if most[0] > UNSURE * UNSURE {
                for (cluster, within) in within.iter().enumerate() {
                    if *within > UNSURE * UNSURE && !clusters.is_open[cluster] {
                        let at = g * clusters.len + cluster;
                        let share = could_hold(zone.cluster_weight[at], within.sqrt());
                        worst = worst.max(share * share * (self.off[at] + clusters.value_spread[cluster]));
                    }
                }
            }
            for (number, opened) in zone.opened.iter().enumerate() {
                if zone.sums[number * head.group + g].deviation_max <= UNSURE {
                    continue;
                }
                let off = self.off[g * clusters.len + opened.cluster] + clusters.value_spread[opened.cluster];
                let rows = zone.part(&zone.weight, g, opened).iter();
                for (&weight, &deviation) in rows.zip(zone.part(&zone.deviation, g, opened)) {
                    if deviation > UNSURE {
                        worst = worst.max(could_hold(weight, deviation).powi(2) * off);
                    }
                }
            }
            self.squared[g] += worst;
        }
    }

    /// The error that remains if all estimates lie too high or too low together.
    fn bias(&mut self, head: &Head<'_>, clusters: &Clusters, answer: &Rough, closed: &MeanSums) {
        let dim = answer.output.len() / head.group;
        let mut bias = vec![0.0; answer.output.len()];
        // Behind the sums with the estimates.
        closed.add_to(head, head.group, &mut bias);
        let mut total = vec![0.0; head.group];
        for segment in &head.segments {
            for (g, bias) in bias.chunks_exact_mut(dim).enumerate() {
                let shifts = &clusters.plane(clusters.shifts(), g)[segment.clusters()];
                let shift = product(shifts, &self.closed[segment.clusters()]);
                total[g] += shift;
                let global = bias.iter_mut().zip(segment.ladder.global_value);
                global.for_each(|(bias, global)| *bias += shift * global);
            }
        }
        let outputs = answer.output.chunks_exact(dim).zip(bias.chunks_exact(dim));
        for (g, (output, bias)) in outputs.enumerate() {
            let terms = bias.iter().zip(output).map(|(b, o)| (b - total[g] * o).powi(2));
            self.squared[g] += terms.sum::<f32>() / (answer.total[g] * answer.total[g]);
        }
    }
}
