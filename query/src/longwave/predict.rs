//! The answer's own estimate of its error. Nothing more is read for it.

use super::constants::{KEY_CODE_NOISE, SKETCH_MAX, VALUE_CODE_NOISE};
use super::head::Head;
use super::probe::{Clusters, Rough, add_weighted};
use super::rows::{Resolution, Zone};

/// Predicted relative error of each head of the group, from four terms: value noise, key noise, the spread of scores
/// outside the zone, and its bias; and the coding error of the value means, which a whole cluster shares.
pub(super) fn predicted_error(
    head: &Head<'_>,
    clusters: &Clusters,
    zone: &Zone,
    mean_deviation: &dyn Fn(usize) -> f32,
    answer: &Rough,
) -> Vec<f32> {
    let (group, dim) = (head.group, clusters.value_dim);
    let weights = zone.cluster_weights(head, clusters);
    let total = clusters.totals(&weights, group);
    let mut squared = vec![0.0f32; group];
    // Weight per cluster that rests on its mean value.
    let mut unread = weights.clone();
    for opened in &zone.opened {
        zone_noise(head, clusters, zone, opened, &total, answer, &mut squared);
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
            let share = outside_weight(clusters, i, group) / total[g];
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

fn outside_weight(clusters: &Clusters, i: usize, group: usize) -> f32 {
    let score = clusters.centre[i] + (clusters.within[i] / 4.0).min(1.0) - clusters.top[i % group];
    clusters.count[i / group] * score.min(SKETCH_MAX).exp()
}

/// Noise of values and keys of one opened cluster.
fn zone_noise(
    head: &Head<'_>,
    clusters: &Clusters,
    zone: &Zone,
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
        let key_share = match zone.key[row] {
            Resolution::Coarse => 1.0,
            Resolution::Code => KEY_CODE_NOISE,
            Resolution::Full => 0.0,
        };
        for g in 0..group {
            let i = row * group + g;
            let key_noise = (zone.key_variance[i] * key_share).min(4.0).exp_m1() * (off[g] + spread);
            squared[g] += (zone.weight[i] / total[g]).powi(2) * (value_noise + key_noise);
        }
    }
}
