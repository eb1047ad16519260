//! What one KV head brings to a query: its clusters over all segments, and the query in each basis.

use crate::error::Error;
use crate::view::{LayerSegment, LayerView};
use crate::work::HeadQueries;
use longwave_index::ladder::{HeadLadder, LadderView};
use longwave_kernels::codec::SketchQuery;
use longwave_kernels::{Kernels, Rows};

/// A segment whose ladder may be used, and the others, which are read row by row.
pub(super) struct Ladders<'v> {
    pub(super) segments: Vec<(&'v LayerSegment, LadderView<'v>)>,
    pub(super) plain: Vec<&'v LayerSegment>,
}

impl<'v> Ladders<'v> {
    pub(super) fn open(view: &LayerView<'v>, oldest: u64) -> Result<Self, Error> {
        let mut ladders = Ladders { segments: Vec::new(), plain: Vec::new() };
        for &segment in &view.segments {
            match if view.summaries_hold(segment, oldest) { segment.ladder()? } else { None } {
                Some(ladder) => ladders.segments.push((segment, ladder)),
                None => ladders.plain.push(segment),
            }
        }
        Ok(ladders)
    }
}

/// The query heads of a group in the coordinates of one basis.
pub(super) struct BasisQuery {
    digest: u64,
    /// `[group, key_dim]`, unscaled, and times the scales of centroids and key codes.
    pub(super) coordinates: Vec<f32>,
    pub(super) centroid: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) sketch: SketchQuery,
    /// Squared norm of the coordinates, per head of the group.
    pub(super) norm2: Vec<f32>,
}

/// One segment of a KV head.
pub(super) struct HeadSegment<'v> {
    pub(super) segment: &'v LayerSegment,
    pub(super) offsets: &'v [u32],
    pub(super) ladder: HeadLadder<'v>,
    /// Index into [`Head::bases`].
    pub(super) basis: usize,
    /// Number of the segment's first cluster among all clusters of the head.
    pub(super) first: usize,
}

/// One KV head over all its segments; clusters are numbered through.
pub(super) struct Head<'v> {
    pub(super) group: usize,
    pub(super) segments: Vec<HeadSegment<'v>>,
    pub(super) bases: Vec<BasisQuery>,
    pub(super) clusters: usize,
}

impl<'v> Head<'v> {
    pub(super) fn open(
        view: &LayerView<'_>,
        ladders: &'v Ladders<'v>,
        queries: &HeadQueries,
        kv_head: usize,
    ) -> Result<Self, Error> {
        let mut head = Head { group: queries.heads, segments: Vec::new(), bases: Vec::new(), clusters: 0 };
        for (segment, opened) in &ladders.segments {
            let ladder = opened.head(kv_head)?;
            let known = head.bases.iter().position(|basis| basis.digest == opened.digest());
            let basis = known.unwrap_or_else(|| {
                head.bases.push(BasisQuery::new(&ladder, opened.digest(), queries, view.shape.key_dim));
                head.bases.len() - 1
            });
            let offsets = opened.index().head(kv_head)?.offsets;
            head.segments.push(HeadSegment { segment, offsets, ladder, basis, first: head.clusters });
            head.clusters += ladder.cluster_count();
        }
        Ok(head)
    }

    /// Rows of all segments.
    pub(super) fn rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.ladder.rows()).sum()
    }

    /// The segment that holds cluster `cluster`.
    pub(super) fn segment_of(&self, cluster: usize) -> usize {
        self.segments.partition_point(|segment| segment.first <= cluster) - 1
    }

    /// Bytes of a cluster's sketches, with their factors and the padding of their blocks.
    pub(super) fn sketch_bytes(&self, cluster: usize) -> u64 {
        let segment = &self.segments[self.segment_of(cluster)];
        segment.ladder.sketch_range(cluster - segment.first).len() as u64
    }

    /// Bytes of bases, bits and scales that the query touches.
    pub(super) fn basis_bytes(&self, key_dim: usize, value_dim: usize) -> u64 {
        let shared = key_dim * key_dim + key_dim + 4 * (4 * key_dim + 2 * value_dim);
        let own = 4 * (2 * key_dim + value_dim + 4);
        (self.bases.len() * shared + self.segments.len() * own) as u64
    }
}

impl HeadSegment<'_> {
    /// Scores `[clusters, group]` of the coded centroids.
    pub(super) fn score_centroids(
        &self,
        kernels: &Kernels,
        bases: &[BasisQuery],
        queries: &HeadQueries,
        dim: usize,
    ) -> Vec<f32> {
        let basis = &bases[self.basis];
        let mut scores = vec![0.0; self.ladder.cluster_count() * queries.heads];
        kernels.scores4(&basis.centroid, queries.heads, dim, self.ladder.centroids, &mut scores);
        let mut middle = vec![0.0; queries.heads];
        kernels.scores(&queries.data, queries.heads, dim, Rows::F32(self.ladder.middle), &mut middle);
        for scores in scores.chunks_exact_mut(queries.heads) {
            scores.iter_mut().zip(&middle).for_each(|(score, middle)| *score += middle);
        }
        scores
    }

    /// Variance of the scores inside a cluster of key spread 1, per head of the group.
    pub(super) fn unit_variance(&self, bases: &[BasisQuery]) -> Vec<f32> {
        let coordinates = bases[self.basis].coordinates.chunks_exact(self.ladder.shape.len());
        coordinates.map(|q| q.iter().zip(self.ladder.shape).map(|(q, shape)| q * q * shape).sum()).collect()
    }
}

impl BasisQuery {
    fn new(ladder: &HeadLadder<'_>, digest: u64, queries: &HeadQueries, dim: usize) -> Self {
        let mut coordinates = Vec::with_capacity(queries.heads * dim);
        for query in queries.data.chunks_exact(dim) {
            for (row, scale) in ladder.inverse.chunks_exact(dim).zip(ladder.inverse_scale) {
                let sum: f32 = row.iter().zip(query).map(|(&m, q)| f32::from(m) * q).sum();
                coordinates.push(scale * sum);
            }
        }
        let times = |sigma: &[f32]| -> Vec<f32> {
            coordinates
                .chunks_exact(dim)
                .flat_map(|q| q.iter().zip(sigma).map(|(q, sigma)| q * sigma))
                .collect()
        };
        let norm2 = coordinates.chunks_exact(dim).map(|q| q.iter().map(|x| x * x).sum()).collect();
        BasisQuery {
            digest,
            centroid: times(ladder.centroid_sigma),
            key: times(ladder.key_sigma),
            sketch: SketchQuery::new(&ladder.layout, &times(ladder.sketch_sigma), queries.heads),
            norm2,
            coordinates,
        }
    }
}
