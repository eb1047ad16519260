//! From the zone's sketches to rows: which keys and values are read, at 4 bits or in full, and the answer.

use super::constants::{ABOVE_MAX, FULL, RISE_MAX, SKETCH_MAX, VALUE, Z_ROW};
use super::exponential::{exp, exp_m1};
use super::head::Head;
use super::probe::{Clusters, Rough, Steady, add_weighted};
use super::softcap::Softcap;
use crate::error::Error;
use crate::view::LayerView;
use crate::work::HeadQueries;
use longwave_kernels::Kernels;

/// How finely a key or a value of a row is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resolution {
    /// The key by its sketch, the value by its cluster's mean.
    Coarse,
    Code,
    Full,
}

impl Resolution {
    fn of(gain: f32, tau: f32) -> Self {
        if gain > FULL * tau {
            Resolution::Full
        } else if gain > tau {
            Resolution::Code
        } else {
            Resolution::Coarse
        }
    }
}

/// An opened cluster.
#[derive(Clone, Copy)]
pub(super) struct Opened {
    pub(super) cluster: usize,
    pub(super) segment: usize,
    /// First row in the segment, and the number of rows.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// First row among the rows of the zone.
    pub(super) start: usize,
}

/// The rows of the zone; `[rows, group]` where a number depends on the query head.
#[derive(Default)]
pub(super) struct Zone {
    pub(super) opened: Vec<Opened>,
    /// Weights against the clusters' `top`.
    pub(super) weight: Vec<f32>,
    /// Variance of the sketched scores.
    pub(super) key_variance: Vec<f32>,
    /// How much more than its weight a row's may be, by its upper estimate.
    above: Vec<f32>,
    /// The factor on a row's weight that not knowing its key allows for, where only the sketch was read.
    upper: Vec<f32>,
    /// Weights of all clusters, `[clusters, group]`: sums over the rows of those opened, estimates of the others.
    pub(super) cluster_weight: Vec<f32>,
    pub(super) key: Vec<Resolution>,
    pub(super) value: Vec<Resolution>,
}

impl Zone {
    /// Scores the sketches of the probed clusters.
    pub(super) fn scan(
        kernels: &Kernels,
        view: &LayerView<'_>,
        head: &Head<'_>,
        clusters: &Clusters,
    ) -> Result<Self, Error> {
        let (group, softcap) = (head.group, Softcap(view.scoring.softcap));
        let mut zone = Zone::default();
        let mut factors = Vec::new();
        for cluster in (0..head.clusters).filter(|&cluster| clusters.probed[cluster]) {
            let number = head.segment_of(cluster);
            let segment = &head.segments[number];
            let (basis, local) = (&head.bases[segment.basis], cluster - segment.first);
            let first = segment.offsets[local] as usize;
            let rows = segment.offsets[local + 1] as usize - first;
            let record = segment.ladder.sketch(local)?;
            let start = zone.key.len();
            zone.opened.push(Opened { cluster, segment: number, first, rows, start });
            zone.weight.resize((start + rows) * group, 0.0);
            zone.key.resize(start + rows, Resolution::Coarse);
            factors.resize(rows, 0.0);
            kernels.scores_sketch(
                &basis.sketch,
                record,
                rows,
                &mut zone.weight[start * group..],
                &mut factors,
            );
            for (row, factor) in factors.iter().enumerate() {
                for g in 0..group {
                    let deviation = basis.norm2[g].sqrt() * factor * segment.ladder.sketch_noise;
                    let weight = &mut zone.weight[(start + row) * group + g];
                    // The exponential of an uncertain score is larger than that of its mean (Jensen).
                    let score = clusters.uncapped[cluster * group + g] + *weight;
                    let variance = (deviation * softcap.slope(score, Z_ROW * deviation)).powi(2);
                    let score = softcap.apply(score) + (variance / 2.0).min(1.0);
                    *weight = (score - clusters.top[g]).min(SKETCH_MAX);
                    zone.key_variance.push(variance);
                }
            }
        }
        exp(kernels, &mut zone.weight);
        let deviation = |variance: &f32| Z_ROW * variance.sqrt();
        let above: Vec<f32> = zone.key_variance.iter().map(|v| deviation(v).min(RISE_MAX)).collect();
        zone.above = exp_m1(kernels, &above);
        zone.upper = zone.key_variance.iter().map(|v| v.min(deviation(v)).min(RISE_MAX)).collect();
        exp(kernels, &mut zone.upper);
        zone.value = vec![Resolution::Coarse; zone.key.len()];
        zone.cluster_weight = clusters.estimate.clone();
        zone.sum_rows(group);
        Ok(zone)
    }

    /// Brings the weights of the opened clusters up to date with their rows.
    fn sum_rows(&mut self, group: usize) {
        for opened in &self.opened {
            let sum = &mut self.cluster_weight[opened.cluster * group..][..group];
            sum.fill(0.0);
            for row in self.weight[opened.start * group..][..opened.rows * group].chunks_exact(group) {
                sum.iter_mut().zip(row).for_each(|(sum, weight)| *sum += weight);
            }
        }
    }

    /// Chooses the keys to read, where a key's own error could matter to the group.
    pub(super) fn select_keys(&mut self, head: &Head<'_>, clusters: &Clusters, steady: &Steady, tau: f32) {
        let group = head.group;
        let total = clusters.totals(&self.cluster_weight, group);
        let rough = clusters.rough(head, &self.cluster_weight, steady);
        for opened in &self.opened {
            let mean = clusters.mean(head, opened.cluster);
            let spread = clusters.value_spread[opened.cluster];
            let reach: Vec<f32> = (0..group)
                .map(|g| (rough.distance2(mean, g) + spread).sqrt() / (rough.norm[g] * total[g]))
                .collect();
            for row in opened.start..opened.start + opened.rows {
                let gain: f32 = (0..group)
                    .map(|g| {
                        let i = row * group + g;
                        (self.weight[i] * reach[g] * self.above[i]).powi(2)
                    })
                    .sum();
                self.key[row] = Resolution::of(gain.sqrt(), tau);
            }
        }
    }

    /// Replaces the weights of the rows chosen by those of the keys as read.
    pub(super) fn read_keys(
        &mut self,
        kernels: &Kernels,
        view: &LayerView<'_>,
        head: &Head<'_>,
        clusters: &mut Clusters,
        queries: &HeadQueries,
        kv_head: usize,
    ) -> Result<(), Error> {
        let (group, dim, softcap) = (head.group, view.shape.key_dim, Softcap(view.scoring.softcap));
        let mut scores = Vec::new();
        for number in 0..self.opened.len() {
            let opened = self.opened[number];
            let segment = &head.segments[opened.segment];
            for row in 0..opened.rows {
                let (at, stored) = (opened.start + row, opened.first + row);
                scores.clear();
                scores.resize(group, 0.0);
                match self.key[at] {
                    Resolution::Coarse => continue,
                    Resolution::Code => {
                        let record = segment.ladder.key_code_bytes(stored..stored + 1)?;
                        kernels.scores4(&head.bases[segment.basis].key, group, dim, record, &mut scores);
                        let centre = &clusters.uncapped[opened.cluster * group..][..group];
                        scores.iter_mut().zip(centre).for_each(|(score, centre)| *score += centre);
                    }
                    Resolution::Full => {
                        let keys = segment.segment.keys(&view.shape, kv_head, stored..stored + 1)?;
                        kernels.scores(&queries.data, group, dim, keys, &mut scores);
                    }
                }
                for (g, &score) in scores.iter().enumerate() {
                    let score = softcap.apply(score);
                    self.lower(clusters, g, score);
                    self.weight[at * group + g] = (score - clusters.top[g]).exp();
                }
            }
        }
        self.sum_rows(group);
        Ok(())
    }

    /// Refers all weights of a head to `score` where it lies so far above `top` that its exponential could overflow a
    /// sum: what is known of a row is not to be capped.
    fn lower(&mut self, clusters: &mut Clusters, g: usize, score: f32) {
        if score - clusters.top[g] > ABOVE_MAX {
            let group = clusters.top.len();
            let factor = clusters.raise_top(g, score);
            let weights = [&mut self.weight, &mut self.cluster_weight];
            let mine = weights.into_iter().flat_map(|weights| weights.iter_mut().skip(g).step_by(group));
            mine.for_each(|weight| *weight *= factor);
        }
    }

    /// Chooses the values to read, with the keys read so far.
    pub(super) fn select_values(&mut self, head: &Head<'_>, clusters: &Clusters, steady: &Steady, tau: f32) {
        let group = head.group;
        let total = clusters.totals(&self.cluster_weight, group);
        let rough = clusters.rough(head, &self.cluster_weight, steady);
        for opened in &self.opened {
            let deviation = clusters.value_spread[opened.cluster].sqrt();
            for row in opened.start..opened.start + opened.rows {
                let gain: f32 = (0..group)
                    .map(|g| {
                        let i = row * group + g;
                        let above = match self.key[row] {
                            Resolution::Coarse => self.upper[i],
                            _ => 1.0,
                        };
                        (self.weight[i] / total[g] * above / rough.norm[g]).powi(2)
                    })
                    .sum();
                self.value[row] = Resolution::of(gain.sqrt() * deviation, VALUE * tau);
            }
        }
    }

    /// The answer, rotated, and the weights of clusters that rest on their mean value.
    pub(super) fn read_values(
        &self,
        kernels: &Kernels,
        view: &LayerView<'_>,
        head: &Head<'_>,
        clusters: &Clusters,
        steady: &Steady,
        kv_head: usize,
    ) -> Result<Rough, Error> {
        let (group, dim) = (head.group, view.shape.value_dim);
        // Rows whose value is read in full do not rest on the mean; coded values are differences to it.
        let mut on_mean = self.cluster_weight.clone();
        let mut full = vec![0.0; group * dim];
        let mut coded: Vec<Vec<f32>> = head.segments.iter().map(|_| Vec::new()).collect();
        for opened in &self.opened {
            let segment = &head.segments[opened.segment];
            for row in 0..opened.rows {
                let (at, stored) = (opened.start + row, opened.first + row);
                let weight = &self.weight[at * group..][..group];
                match self.value[at] {
                    Resolution::Coarse => {}
                    Resolution::Code => {
                        let sum = &mut coded[opened.segment];
                        sum.resize(group * dim, 0.0);
                        let record = segment.ladder.value_code_bytes(stored..stored + 1)?;
                        kernels.accumulate4(weight, group, dim, record, sum);
                    }
                    Resolution::Full => {
                        let values = segment.segment.values(&view.shape, kv_head, stored..stored + 1)?;
                        kernels.accumulate(weight, group, dim, values, &mut full);
                        let rest = &mut on_mean[opened.cluster * group..][..group];
                        rest.iter_mut().zip(weight).for_each(|(rest, weight)| *rest -= weight);
                    }
                }
            }
        }
        longwave_kernels::rotate(&mut full, dim, false);
        self.sum(head, clusters, steady, (&on_mean, full, &coded))
    }

    fn sum(
        &self,
        head: &Head<'_>,
        clusters: &Clusters,
        steady: &Steady,
        (on_mean, mut output, coded): (&[f32], Vec<f32>, &[Vec<f32>]),
    ) -> Result<Rough, Error> {
        let (group, dim) = (head.group, clusters.value_dim);
        for (segment, coded) in head.segments.iter().zip(coded) {
            for (output, coded) in output.chunks_exact_mut(dim).zip(coded.chunks_exact(dim)) {
                let terms = coded.iter().zip(segment.ladder.value_sigma);
                output.iter_mut().zip(terms).for_each(|(output, (coded, sigma))| *output += coded * sigma);
            }
            let mut unread = vec![0.0; group];
            for cluster in segment.first..segment.first + segment.ladder.cluster_count() {
                let weights = &on_mean[cluster * group..][..group];
                if clusters.mean_at[cluster].is_none() {
                    unread.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
                } else {
                    add_weighted(&mut output, weights, clusters.mean(head, cluster));
                }
            }
            add_weighted(&mut output, &unread, segment.ladder.global_value);
        }
        let total = clusters.totals(&self.cluster_weight, group);
        for (g, output) in output.chunks_exact_mut(dim).enumerate() {
            for (output, steady) in output.iter_mut().zip(&steady.output[g * dim..]) {
                *output = (*output + clusters.steady[g] * steady) / total[g];
            }
        }
        Ok(Rough::new(output, dim))
    }
}
