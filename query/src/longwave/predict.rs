//! The answer's own estimate of its error. Nothing more is read for it.

use super::constants::{KEY_CODE_NOISE, VALUE_CODE_NOISE};
use super::exponential::exp_m1;
use super::head::Head;
use super::probe::{Clusters, Rough, add_weighted};
use super::rows::{Resolution, Zone};
use longwave_kernels::Kernels;

/// Predicted relative error of each head of the group, from four terms: value noise, key noise, the spread of scores
/// outside the zone, and its bias; and the coding error of the value means, which a whole cluster shares.
pub(super) fn predicted_error(
    kernels: &Kernels,
    head: &Head<'_>,
    clusters: &Clusters,
    zone: &Zone,
    mean_deviation: &dyn Fn(usize) -> f32,
    answer: &Rough,
) -> Vec<f32> {
    let (group, dim) = (head.group, clusters.value_dim);
    let total = clusters.totals(&zone.cluster_weight, group);
    let key_noise = key_noise(kernels, zone, group);
    let mut squared = vec![0.0f32; group];
    // Weight per cluster that rests on its mean value.
    let mut unread = zone.cluster_weight.clone();
    for opened in &zone.opened {
        zone_noise(head, clusters, (zone, &key_noise), opened, &total, answer, &mut squared);
        for row in opened.start..opened.start + opened.rows {
            if zone.value[row] != Resolution::Coarse {
                let unread = &mut unread[opened.cluster * group..][..group];
                let weight = &zone.weight[row * group..][..group];
                unread.iter_mut().zip(weight).for_each(|(unread, weight)| *unread -= weight);
            }
        }
    }
    let mut bias = vec![0.0f32; group * dim];
    let mut bias_total = vec![0.0f32; group];
    for cluster in 0..head.clusters {
        let mean = clusters.mean(head, cluster);
        let mean_noise = match clusters.mean_at[cluster] {
            Some(_) => clusters.mean_error[cluster],
            None => mean_deviation(cluster),
        };
        let mut shifts = vec![0.0f32; group];
        for g in 0..group {
            let i = cluster * group + g;
            squared[g] += (unread[i] / total[g]).powi(2) * mean_noise;
            if clusters.probed[cluster] {
                continue;
            }
            let share = clusters.estimate[i] / total[g];
            let within = clusters.within[i].min(2.0);
            let spread = clusters.value_spread[cluster];
            let off = answer.distance2(mean, g);
            squared[g] +=
                share * share / clusters.count[cluster] * (within.exp_m1() * (off + spread) + spread);
            shifts[g] = share * (within / 4.0).exp_m1();
            bias_total[g] += shifts[g];
        }
        add_weighted(&mut bias, &shifts, mean);
    }
    for g in 0..group {
        let (bias, output) = (&bias[g * dim..][..dim], &answer.output[g * dim..][..dim]);
        squared[g] += bias.iter().zip(output).map(|(b, o)| (b - bias_total[g] * o).powi(2)).sum::<f32>();
    }
    squared.iter().zip(&answer.norm).map(|(squared, norm)| squared.sqrt() / norm).collect()
}

/// Relative variance of each row's weight that its key leaves, `[rows, group]`.
fn key_noise(kernels: &Kernels, zone: &Zone, group: usize) -> Vec<f32> {
    let mut variance = zone.key_variance.clone();
    for (variance, key) in variance.chunks_exact_mut(group).zip(&zone.key) {
        let share = match key {
            Resolution::Coarse => 1.0,
            Resolution::Code => KEY_CODE_NOISE,
            Resolution::Full => 0.0,
        };
        variance.iter_mut().for_each(|variance| *variance = (*variance * share).min(4.0));
    }
    exp_m1(kernels, &variance)
}

/// Noise of values and keys of one opened cluster.
fn zone_noise(
    head: &Head<'_>,
    clusters: &Clusters,
    (zone, key_noise): (&Zone, &[f32]),
    opened: &super::rows::Opened,
    total: &[f32],
    answer: &Rough,
    squared: &mut [f32],
) {
    let (group, spread) = (head.group, clusters.value_spread[opened.cluster]);
    let mean = clusters.mean(head, opened.cluster);
    let off: Vec<f32> = (0..group).map(|g| answer.distance2(mean, g)).collect();
    for row in opened.start..opened.start + opened.rows {
        let value_noise = spread
            * match zone.value[row] {
                Resolution::Coarse => 1.0,
                Resolution::Code => VALUE_CODE_NOISE,
                Resolution::Full => 0.0,
            };
        for g in 0..group {
            let i = row * group + g;
            let key_noise = key_noise[i] * (off[g] + spread);
            squared[g] += (zone.weight[i] / total[g]).powi(2) * (value_noise + key_noise);
        }
    }
}
