//! The answer's own estimate of its error. Nothing more is read for it.

use super::answer::{MeanSums, Rough};
use super::clusters::{Clusters, shared_noise};
use super::constants::{SLOPE_DOUBT, UNSURE, VALUE_NOISE, Z_CLUSTER};
use super::head::Head;
use super::listed::gather;
use super::product;
use super::slope::Slopes;
use super::zone::{Zone, of};
use longwave_kernels::Kernels;
use longwave_kernels::ladder::Estimated;

/// Predicted relative errors under way, and room for what they are computed from.
#[derive(Default)]
pub(super) struct Prediction {
    /// Squared error of each head.
    squared: Vec<f32>,
    /// Squared distances to the answer of the means that were read, `[group, means]`, and of those of closed clusters.
    off: Vec<f32>,
    closed_off: Vec<f32>,
    /// Of the rows whose values were read, `[opened, group]`.
    read: Vec<ReadValues>,
    rows: Vec<f32>,
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

/// Where weights have a smaller sum, squares of those of single clusters, which were summed before it was known, might be too
/// small for a number.
const TOTAL_MIN: f32 = 1e-8;

impl Prediction {
    /// Predicted relative error of each head of the group; `closed` has the sums over the means of the clusters that are not
    /// open. It is made of value noise, key noise, the spread of scores
    /// outside the zone, and its bias; of what a whole cluster shares: the coding errors of value means and centroids; and of what
    /// slopes have added.
    pub(super) fn errors(
        &mut self,
        kernels: &Kernels,
        head: &Head<'_>,
        clusters: &Clusters,
        zone: &Zone,
        (answer, closed, slopes): (&Rough, &MeanSums, &Slopes),
    ) -> Vec<f32> {
        self.squared.clear();
        self.squared.extend(slopes.following.added.iter().map(|added| SLOPE_DOUBT * added * added));
        answer.distances(kernels, head, (&clusters.means, &clusters.listed.norm), &mut self.off);
        self.values(head, zone);
        self.zone_noise(head, clusters, zone, answer);
        self.cluster_noise(kernels, head, clusters, answer);
        self.unsure(head, clusters, zone, answer);
        self.bias(head, clusters, answer, closed);
        self.squared.iter().zip(&answer.norm).map(|(squared, norm)| squared.sqrt() / norm).collect()
    }

    /// Squared distances to the answer of head `g` of the means that were read.
    fn off_of(&self, clusters: &Clusters, g: usize) -> &[f32] {
        &self.off[g * clusters.means.len()..(g + 1) * clusters.means.len()]
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
    /// out over them: what the codes leave of the errors of its centroid and of its value mean, and the error of the mean in
    /// rows whose values were not read. It shows where rows are nearly equal.
    fn zone_noise(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone, answer: &Rough) {
        let numbers = &clusters.opened_numbers;
        for (number, opened) in zone.opened.iter().enumerate() {
            let (spread, mean_error) = (numbers.value_spread[number], numbers.mean_error[number]);
            let centroid = &head.bases[head.segments[opened.segment].basis].centroid_variance;
            for (g, centroid) in centroid.iter().enumerate() {
                let place = number * head.group + g;
                let (sums, read) = (zone.sums[place], self.read[place]);
                let off = self.off_of(clusters, g)[clusters.opened_at[number] as usize];
                let unread = sums.weight - read.weight;
                let mut squared = sums.squared - read.squared;
                // What is left of a difference of nearly equal numbers is their rounding.
                if squared < DIFFERENCE_MIN * sums.squared {
                    squared = self.squares_left(zone, number, g);
                }
                let mut noise = squared * spread + sums.noise * (off + spread);
                if sums.squared > 0.0 {
                    let shared = (centroid / numbers.within(g)[number]).min(1.0);
                    noise += sums.weight * sums.weight * shared * sums.noise / sums.squared * off;
                }
                noise += (read.left * read.left + unread * unread) * mean_error;
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

    /// Noise of the clusters that are not opened, and of their value means.
    fn cluster_noise(&mut self, kernels: &Kernels, head: &Head<'_>, clusters: &Clusters, answer: &Rough) {
        let (closed, group) = (&clusters.closed_numbers, head.group);
        self.closed_off.clear();
        for off in self.off.chunks_exact(clusters.means.len().max(1)) {
            gather(off, &clusters.closed_at, 0, &mut self.closed_off);
        }
        let mut start = 0;
        for (number, run) in head.runs(&clusters.closed) {
            let of = start..start + run.len();
            for g in 0..group {
                let plane = g * closed.len + of.start..g * closed.len + of.end;
                let estimated = Estimated {
                    weights: &closed.estimates_and_shifts()[plane.clone()],
                    within: &closed.within(g)[of.clone()],
                    off: &self.closed_off[plane],
                    value_spread: &closed.value_spread[of.clone()],
                    mean_error: &closed.mean_error[of.clone()],
                    counts: &closed.count[of.clone()],
                    shared: shared_noise(head, &head.segments[number], g),
                    scale: 1.0 / answer.total[g],
                };
                self.squared[g] += kernels.cluster_noise(&estimated);
            }
            start += run.len();
        }
        for (segment, rest) in head.segments.iter().zip(clusters.rest.chunks_exact(group)) {
            for (g, &rest) in rest.iter().enumerate() {
                let (off, total) = (answer.distance_to_global(segment, g), answer.total[g]);
                let (rest, total) = if total < TOTAL_MIN {
                    let top = clusters.top[g] + total.ln();
                    (clusters.sum_rest(kernels, head, segment, g, top), 1.0)
                } else {
                    (rest, total)
                };
                let squared = rest.along * off + rest.inside + rest.squared * segment.ladder.mean_deviation;
                self.squared[g] += squared / (total * total);
            }
        }
    }

    /// Where scores are less sure than any model's, exponentials run over and the terms above lose what might have been: the
    /// largest error that a cluster or a row could make which was not read and may hold far more than it seems to.
    fn unsure(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone, answer: &Rough) {
        for g in 0..head.group {
            let total = answer.total[g].ln();
            // A weight below the smallest number is one of that size for all that is known.
            let could_hold = |weight: f32, deviation: f32| {
                let most = weight.max(f32::MIN_POSITIVE).ln() + Z_CLUSTER * deviation - total;
                most.min(0.0).exp()
            };
            let mut worst = 0.0f32;
            for segment in &head.segments {
                for (local, within, weight) in clusters.unsure_rest(segment, g) {
                    let off = answer.distance_to_global(segment, g) + segment.numbers.value_spread[local];
                    worst = worst.max(could_hold(weight, within.sqrt()).powi(2) * off);
                }
            }
            let closed = &clusters.closed_numbers;
            let weights = &closed.estimates_and_shifts()[g * closed.len..];
            for (at, (&within, &weight)) in closed.within(g).iter().zip(weights).enumerate() {
                if within > UNSURE * UNSURE {
                    let off = self.closed_off[g * closed.len + at] + closed.value_spread[at];
                    worst = worst.max(could_hold(weight, within.sqrt()).powi(2) * off);
                }
            }
            let off = self.off_of(clusters, g);
            for (number, opened) in zone.opened.iter().enumerate() {
                if zone.sums[number * head.group + g].deviation_max <= UNSURE {
                    continue;
                }
                let spread = clusters.opened_numbers.value_spread[number];
                let off = off[clusters.opened_at[number] as usize] + spread;
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
                let shift = clusters.shifted[segment.number * head.group + g];
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
