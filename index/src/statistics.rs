//! What `inspect` shows of an index.

use crate::view::{HeadIndex, IndexView};

/// Sizes and spreads of the clusters of one KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterStatistics {
    /// Number of clusters.
    pub clusters: usize,
    /// Mean number of rows of a cluster.
    pub size_mean: f64,
    /// Number of rows that half of the clusters do not exceed.
    pub size_p50: u32,
    /// Number of rows that 95 of 100 clusters do not exceed.
    pub size_p95: u32,
    /// Rows of the largest cluster.
    pub size_max: u32,
    /// Mean over the rows of the squared distance of a key to its centroid.
    pub key_spread_mean: f64,
    /// Mean over the rows of the squared distance of a value to its value mean.
    pub value_spread_mean: f64,
}

/// Statistics of each KV head of an index, in the order of the heads.
pub fn statistics(view: &IndexView<'_>) -> Vec<ClusterStatistics> {
    view.heads().map(|index| of_head(&index)).collect()
}

fn of_head(index: &HeadIndex<'_>) -> ClusterStatistics {
    let mut sizes: Vec<u32> = index.offsets.windows(2).map(|bounds| bounds[1] - bounds[0]).collect();
    let rows: f64 = sizes.iter().copied().map(f64::from).sum();
    // Spreads are means over a cluster's rows: weighted by size they make the mean over all rows.
    let mean_over_rows = |spreads: &[f32]| {
        let weighted = sizes.iter().zip(spreads).map(|(&size, &spread)| f64::from(size) * f64::from(spread));
        weighted.sum::<f64>() / rows
    };
    let (key_spread_mean, value_spread_mean) =
        (mean_over_rows(index.key_spread), mean_over_rows(index.value_spread));
    sizes.sort_unstable();
    // Nearest rank. There is at least one cluster, so the rank is at least 1.
    let percentile = |percent: usize| sizes[(sizes.len() * percent).div_ceil(100) - 1];
    ClusterStatistics {
        clusters: sizes.len(),
        size_mean: rows / sizes.len() as f64,
        size_p50: percentile(50),
        size_p95: percentile(95),
        size_max: percentile(100),
        key_spread_mean,
        value_spread_mean,
    }
}

#[cfg(test)]
mod tests {
    use longwave_kernels::Rows;

    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks_and_spreads_weigh_rows() {
        let index = HeadIndex {
            offsets: &[0, 7, 8, 10, 13],
            counts: &[7.0, 1.0, 2.0, 3.0],
            centroids: Rows::F32(&[0.0; 4]),
            value_means: Rows::F32(&[0.0; 4]),
            key_spread: &[1.0, 13.0, 0.0, 2.0],
            value_spread: &[0.0, 0.0, 6.5, 0.0],
        };
        let expected = ClusterStatistics {
            clusters: 4,
            size_mean: 3.25,
            size_p50: 2,
            size_p95: 7,
            size_max: 7,
            key_spread_mean: 2.0,
            value_spread_mean: 1.0,
        };
        assert_eq!(of_head(&index), expected);
    }
}
