//! The clustering of one head: which rows belong together, and in which order they are stored.

use crate::ClusterOptions;
use crate::kmeans::Workspace;
use crate::order::line_up;
use crate::outliers::set_apart;
use crate::split::split_cluster;

/// Rows of one head in their order cluster by cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clustering {
    /// Original index of each row in the new order: cluster by cluster, ascending inside a cluster.
    pub order: Vec<u32>,
    /// Cluster `c` is `order[offsets[c]..offsets[c + 1]]`; clusters + 1 entries, strictly ascending from 0 to the
    /// number of rows.
    pub offsets: Vec<u32>,
}

impl Clustering {
    /// Number of clusters; none of them is empty.
    pub fn clusters(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The rows of each cluster.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u32]> {
        self.offsets.windows(2).map(|bounds| &self.order[bounds[0] as usize..bounds[1] as usize])
    }

    /// Adds a cluster of `rows`.
    pub(crate) fn push(&mut self, rows: &[u32]) {
        self.order.extend_from_slice(rows);
        self.offsets.push(self.order.len() as u32);
    }
}

/// Clusters `keys` (`[rows, dim]`) by k-means on the rows less their mean.
///
/// The start is evenly strided over the rows, the assignment is to the nearest centroid, and centroids left without a
/// row move to a random one. The generator is seeded by `options.seed` and `stream`, which tells apart the
/// (segment, layer, head) clusterings that share a seed. The same arguments give the same bits on the same kind of
/// processor, on any number of threads; the caller may have transformed the keys into another metric before.
///
/// Keys should be finite: rows that are not land in an arbitrary cluster.
///
/// # Panics
/// When `dim` is 0, `keys` is no whole number of rows, or there are more than `u32::MAX` rows.
pub fn cluster(keys: &[f32], dim: usize, options: &ClusterOptions, stream: u64) -> Clustering {
    cluster_in(&mut Workspace::default(), keys, dim, options, stream)
}

/// [`cluster`] in buffers that serve many heads.
pub(crate) fn cluster_in(
    workspace: &mut Workspace,
    keys: &[f32],
    dim: usize,
    options: &ClusterOptions,
    stream: u64,
) -> Clustering {
    assert!(dim > 0 && keys.len().is_multiple_of(dim), "{} key elements are no rows of {dim}", keys.len());
    let rows = keys.len() / dim;
    assert!(u32::try_from(rows).is_ok(), "{rows} rows are too many for one clustering");
    if rows == 0 {
        return Clustering { order: Vec::new(), offsets: vec![0] };
    }
    workspace.run(keys, dim, options, stream);
    let whole = arrange(&workspace.labels, &workspace.counts);
    match options.split_factor {
        // Below 1 every cluster would be cut up: not a request that makes sense.
        Some(factor) if factor >= 1.0 => {
            let split = split_large(whole, &workspace.points, dim, factor);
            let apart = set_apart(split, &workspace.points, dim, options, stream);
            line_up(&apart, &workspace.points, dim)
        }
        _ => whole,
    }
}

/// Orders rows by label, dropping clusters without rows.
fn arrange(labels: &[u32], counts: &[u32]) -> Clustering {
    let mut next = Vec::with_capacity(counts.len());
    let mut offsets = vec![0];
    let mut end = 0;
    for &count in counts {
        next.push(end);
        end += count;
        if count > 0 {
            offsets.push(end);
        }
    }
    let mut order = vec![0; labels.len()];
    for (row, &label) in labels.iter().enumerate() {
        let place = &mut next[label as usize];
        order[*place as usize] = row as u32;
        *place += 1;
    }
    Clustering { order, offsets }
}

/// Splits the clusters of more than `factor` times the mean size.
fn split_large(whole: Clustering, points: &[f32], dim: usize, factor: f32) -> Clustering {
    let mean = whole.order.len() as f64 / whole.clusters() as f64;
    let limit = (f64::from(factor) * mean) as usize;
    let Clustering { mut order, offsets: whole } = whole;
    let mut offsets = vec![0];
    for cluster in whole.windows(2) {
        let range = cluster[0] as usize..cluster[1] as usize;
        split_cluster(points, dim, limit, &mut order, range, &mut offsets);
    }
    Clustering { order, offsets }
}
