//! What a layer's ladders are small enough to keep in device memory: centroids, value means, sketches and summaries. Codes and
//! full rows stay with the host, and in the caches.

use crate::cache::segment_key;
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::zone::{Strips, Summaries};
use longwave_index::ladder::HeadLadder;
use longwave_kernels::codec::{SketchLayout, decode4, record_len};
use longwave_query::{LayerSegment, Shape};

/// The ladders of some segments of a layer on a device. Clusters are numbered through, segment by segment and head by head.
#[derive(Debug)]
pub(crate) struct Resident {
    segments: Vec<u64>,
    pub(crate) summaries: Summaries,
    pub(crate) centroids: Buffer<u16>,
    pub(crate) means: Buffer<u16>,
    pub(crate) sketches: Buffer<u8>,
    /// `[segments, kv_heads]`.
    heads: Vec<HeadPlaces>,
    kv_heads: usize,
}

/// Where the parts of a segment's KV head lie.
#[derive(Debug)]
struct HeadPlaces {
    first_cluster: usize,
    /// The largest key spread of its clusters.
    key_spread_max: f32,
    layout: SketchLayout,
    /// Where the sketches of each cluster begin, and its rows: first and number.
    clusters: Vec<(usize, u32, u32)>,
}

/// Host copies under way.
#[derive(Default)]
struct Columns {
    centroids: Vec<u16>,
    means: Vec<u16>,
    sketches: Vec<u8>,
    summaries: Vec<f32>,
    mean_norms2: Vec<f32>,
    steepness: Vec<f32>,
    sigma: Vec<f32>,
    value_sigma: Vec<f32>,
    global: Vec<f32>,
    heads: Vec<HeadPlaces>,
}

/// Records of codes, which are even in length, as 16-bit elements.
fn words(records: &[u8]) -> impl Iterator<Item = u16> {
    records.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes))
}

fn rows_error(error: longwave_storage::Error) -> Error {
    Error::Rows(error.to_string())
}

impl Resident {
    /// Copies the ladders of `segments` to the device.
    pub(crate) fn new(device: &Device, shape: &Shape, segments: &[&LayerSegment]) -> Result<Self, Error> {
        let mut columns = Columns::default();
        for segment in segments {
            let ladder = segment.ladder().map_err(rows_error)?;
            let ladder = ladder.ok_or_else(|| Error::Rows("a segment without a ladder".into()))?;
            for head in 0..shape.kv_heads {
                let offsets = ladder.postings().offsets(head).map_err(rows_error)?;
                columns.add(&ladder.head(head).map_err(rows_error)?, offsets)?;
                let spreads = segment.spreads(head).map_err(rows_error)?;
                columns.steepness.extend(spreads.map_or(&[][..], |spreads| spreads.steepness));
            }
        }
        if u32::try_from(columns.sketches.len()).is_err() {
            let found = format!("{} bytes", columns.sketches.len());
            return Err(Error::Unsupported { what: "sketches", expected: "4 GiB in a layer at most", found });
        }
        let summaries = Summaries {
            summaries: device.upload(&columns.summaries)?,
            mean_norms2: device.upload(&columns.mean_norms2)?,
            steepness: device.upload(&columns.steepness)?,
            sigma: device.upload(&columns.sigma)?,
            value_sigma: device.upload(&columns.value_sigma)?,
            global: device.upload(&columns.global)?,
        };
        Ok(Resident {
            segments: segments.iter().map(|segment| segment_key(segment)).collect(),
            summaries,
            centroids: device.upload(&columns.centroids)?,
            means: device.upload(&columns.means)?,
            sketches: device.upload(&columns.sketches)?,
            heads: columns.heads,
            kv_heads: shape.kv_heads,
        })
    }

    /// Whether it holds just these segments.
    pub(crate) fn is_of(&self, segments: &[&LayerSegment]) -> bool {
        self.segments.iter().copied().eq(segments.iter().map(|segment| segment_key(segment)))
    }

    /// The clusters of all units: `positions` query positions, each with every KV head.
    pub(crate) fn strips(&self, device: &Device, positions: usize, group: usize) -> Result<Strips, Error> {
        let (mut clusters, mut starts) = (Vec::new(), vec![0]);
        for head in (0..positions).flat_map(|_| 0..self.kv_heads) {
            for segment in 0..self.segments.len() {
                let HeadPlaces { first_cluster, clusters: of_head, .. } = self.head(segment, head);
                clusters.extend((0..of_head.len()).map(|cluster| (first_cluster + cluster) as u32));
                starts.push(clusters.len() as u32);
            }
        }
        Strips::new(device, &clusters, &starts, (self.segments.len(), self.kv_heads, group))
    }

    fn head(&self, segment: usize, head: usize) -> &HeadPlaces {
        &self.heads[segment * self.kv_heads + head]
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Clusters of all segments and KV heads.
    pub(crate) fn clusters(&self) -> usize {
        self.heads.iter().map(|head| head.clusters.len()).sum()
    }

    /// The largest key spread of the clusters of a segment's KV head.
    pub(crate) fn key_spread_max(&self, segment: usize, head: usize) -> f32 {
        self.head(segment, head).key_spread_max
    }

    pub(crate) fn layout(&self, segment: usize, head: usize) -> SketchLayout {
        self.head(segment, head).layout
    }

    /// Clusters of a segment's KV head.
    pub(crate) fn cluster_count(&self, segment: usize, head: usize) -> usize {
        self.head(segment, head).clusters.len()
    }

    /// The number of a head's cluster among all clusters of the segment.
    pub(crate) fn number(&self, segment: usize, head: usize, cluster: usize) -> usize {
        self.head(segment, head).first_cluster - self.head(segment, 0).first_cluster + cluster
    }

    /// Where a cluster's sketches begin, its first row among the head's, and how many it has.
    pub(crate) fn cluster(&self, segment: usize, head: usize, cluster: usize) -> (usize, u32, u32) {
        self.head(segment, head).clusters[cluster]
    }
}

impl Columns {
    fn add(&mut self, ladder: &HeadLadder<'_>, offsets: &[u32]) -> Result<(), Error> {
        let mut mean = vec![0.0; ladder.value_mean_sigma.len()];
        let first_cluster = self.mean_norms2.len();
        self.centroids.extend(words(ladder.centroids));
        self.means.extend(words(ladder.value_means));
        for record in ladder.value_means.chunks_exact(record_len(mean.len())) {
            decode4(record, ladder.value_mean_sigma, &mut mean);
            let squares = mean.iter().zip(ladder.global_value).map(|(mean, global)| (mean + global).powi(2));
            self.mean_norms2.push(squares.sum());
        }
        let (mut clusters, mut key_spread_max) = (Vec::with_capacity(ladder.cluster_count()), 0.0f32);
        for (cluster, rows) in (0..ladder.cluster_count()).zip(offsets.windows(2)) {
            let summary = ladder.cluster(cluster);
            let numbers = [summary.count, summary.key_spread, summary.value_spread, summary.mean_error];
            self.summaries.extend(numbers);
            key_spread_max = key_spread_max.max(summary.key_spread);
            clusters.push((self.sketches.len(), rows[0], rows[1] - rows[0]));
            self.sketches.extend(ladder.sketch(cluster).map_err(rows_error)?);
        }
        self.sigma.extend(ladder.value_mean_sigma);
        self.value_sigma.extend(ladder.value_sigma);
        self.global.extend(ladder.global_value);
        self.heads.push(HeadPlaces { first_cluster, key_spread_max, layout: ladder.layout, clusters });
        Ok(())
    }
}
