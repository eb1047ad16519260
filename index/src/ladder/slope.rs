//! How values follow keys: what [`HeadLadder::value_slope`](super::HeadLadder::value_slope) says.

use super::build::encode_rows;
use super::linear::cross_moment;
use crate::Clustering;

/// By how much steeper than on average the values of a cluster follow its keys: the root of its value spread over its key spread,
/// each over the mean of all rows. 0 where that is no number.
pub fn steepness([key, value]: [f32; 2], [key_mean, value_mean]: [f32; 2]) -> f32 {
    let steepness = ((value / value_mean) / (key / key_mean)).sqrt();
    if steepness.is_finite() { steepness } else { 0.0 }
}

/// By how much steeper than on average the values of each cluster follow its keys, as far as spreads tell; see
/// [`steepness`].
pub(super) fn steepness_of_all(
    clustering: &Clustering,
    key_spread: &[f64],
    value_spread: &[f64],
) -> Vec<f32> {
    let counts = clustering.offsets.windows(2).map(|bounds| f64::from(bounds[1] - bounds[0]));
    let mean = |spreads: &[f64]| {
        let sum: f64 = spreads.iter().zip(counts.clone()).map(|(spread, count)| spread * count).sum();
        sum / clustering.order.len() as f64
    };
    let means = [mean(key_spread), mean(value_spread)].map(|mean| mean as f32);
    let each = key_spread.iter().zip(value_spread);
    each.map(|(&key, &value)| steepness([key as f32, value as f32], means)).collect()
}

/// How values follow keys, as [`HeadLadder::value_slope`](super::HeadLadder::value_slope) has it. What was in `z` is lost.
pub(super) fn slope(
    z: &mut [f32],
    key_sigma: &[f32],
    (values, value_sigma): (&[f32], &[f32]),
    clustering: &Clustering,
    steepness: &[f32],
) -> Vec<u8> {
    let (key_dim, value_dim) = (key_sigma.len(), value_sigma.len());
    for (bounds, steepness) in clustering.offsets.windows(2).zip(steepness) {
        let rows = &mut z[bounds[0] as usize * key_dim..bounds[1] as usize * key_dim];
        rows.iter_mut().for_each(|x| *x *= steepness);
    }
    let mut slope = cross_moment(z, values, (key_dim, value_dim));
    for (row, sigma) in slope.chunks_exact_mut(value_dim).zip(key_sigma) {
        row.iter_mut().for_each(|x| *x /= sigma);
    }
    encode_rows(&slope, value_sigma)
}
