//! What one KV head brings to a query: its clusters over all segments, and the query in each basis.

use super::constants::CENTROID_NOISE;
use super::disk::Disk;
use super::product;
use super::sharing::Sharing;
use super::slope::slope_of;
use crate::error::Error;
use crate::numbers::ClusterNumbers;
use crate::view::{LayerSegment, LayerView, OpenedLadder, QueryBatch};
use crate::work::{HeadQueries, Span};
use longwave_index::ladder::HeadLadder;
use longwave_kernels::codec::{Laid, SketchQuery, Summaries};
use longwave_kernels::{Kernels, Rows};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a segment's centroids that are asked for while the segment before it is scored: about a page of memory.
const CENTROIDS_AHEAD: usize = 4096;

/// A segment whose ladder may be used, and the others, which are read row by row.
pub(super) struct Ladders<'v> {
    pub(super) segments: Vec<(&'v LayerSegment, &'v OpenedLadder<'v>)>,
    /// Their numbers in the view.
    pub(super) numbers: Vec<usize>,
    pub(super) plain: Vec<&'v LayerSegment>,
    pub(super) sharing: Sharing,
    /// What is known of the pages of the segments' files, where what comes from disk is capped.
    pub(super) disk: Option<Disk<'v>>,
}

impl<'v> Ladders<'v> {
    /// Opens what a call of so many positions and KV heads uses.
    pub(super) fn open(
        view: &LayerView<'v>,
        queries: &QueryBatch<'_>,
        units: usize,
        disk: Option<Disk<'v>>,
    ) -> Result<Self, Error> {
        let oldest = queries.first_position;
        let used = || view.segments.iter().filter(|segment| view.summaries_hold(segment, oldest));
        used().try_for_each(|segment| segment.expect_ladder())?;
        // After a context was opened there is something to check for each, and several threads to do it. What one fails at is
        // found again below, in order.
        let unopened: Vec<&LayerSegment> =
            used().copied().filter(|segment| !segment.is_ladder_opened()).collect();
        if unopened.len() > 1 {
            unopened.par_iter().for_each(|segment| drop(segment.opened_ladder()));
        }
        let (segments, numbers, plain) = (Vec::new(), Vec::new(), Vec::new());
        let mut ladders = Ladders { segments, numbers, plain, sharing: Sharing::of(units), disk };
        for (number, &segment) in view.segments.iter().enumerate() {
            match if view.summaries_hold(segment, oldest) { segment.opened_ladder()? } else { None } {
                Some(ladder) => {
                    ladders.segments.push((segment, ladder));
                    ladders.numbers.push(number);
                }
                None => ladders.plain.push(segment),
            }
        }
        if let Some(disk) = &ladders.disk {
            let newest = oldest + queries.positions.saturating_sub(1) as u64;
            disk.look_at_rows(view, Span { oldest, newest }, &ladders.plain)?;
        }
        Ok(ladders)
    }

    /// Which clusters of KV head `head` are demoted, segment by segment.
    pub(super) fn demoted<'a>(&self, view: &'a LayerView<'_>, head: usize) -> Vec<&'a [bool]> {
        let of_segment = |(number, (_, opened)): (&usize, &(_, &OpenedLadder<'_>))| {
            let first = opened.view.postings().first_cluster(head);
            view.demoted.get(*number).and_then(|demoted| demoted.get(first..)).unwrap_or_default()
        };
        self.numbers.iter().zip(&self.segments).map(of_segment).collect()
    }

    /// The clusters of each segment of the view that a call found important, from those of each KV head, numbered through
    /// its segments. Segments that were read row by row are too new to be judged: all of their clusters count.
    pub(super) fn important(
        &self,
        view: &LayerView<'_>,
        found: &[(usize, Vec<u32>)],
    ) -> Result<Vec<Vec<u32>>, Error> {
        let mut important = Vec::with_capacity(view.segments.len());
        for (number, segment) in view.segments.iter().enumerate() {
            let clusters = segment.ladder()?.map_or(0, |ladder| ladder.postings().clusters());
            important.push(vec![!self.numbers.contains(&number); clusters]);
        }
        for (head, clusters) in found {
            let mut rest = clusters.iter().peekable();
            let mut first = 0;
            for (number, (_, opened)) in self.numbers.iter().zip(&self.segments) {
                let postings = opened.view.postings();
                let mine = postings.first_cluster(*head)..postings.first_cluster(head + 1);
                while let Some(cluster) = rest.next_if(|&&cluster| (cluster as usize) < first + mine.len()) {
                    important[*number][mine.start + *cluster as usize - first] = true;
                }
                first += mine.len();
            }
        }
        let numbered =
            |flags: Vec<bool>| (0..).zip(flags).filter_map(|(at, held)| held.then_some(at)).collect();
        Ok(important.into_iter().map(numbered).collect())
    }
}

/// The query heads of a group in the coordinates of one basis.
pub(super) struct BasisQuery {
    digest: u64,
    /// Squares of the coordinates, `[group, key_dim]`.
    squares: Vec<f32>,
    /// The coordinates times the scales of centroids, and of key codes, `[group, key_dim]`.
    centroid: Laid,
    pub(super) key: Vec<f32>,
    /// Variance of a centroid's score from what its code leaves, per head of the group.
    pub(super) centroid_variance: Vec<f32>,
    pub(super) sketch: SketchQuery,
    /// The coordinates times the scales of sketches, `[group, key_dim]`, and their squared norms.
    pub(super) along: Vec<f32>,
    pub(super) along2: Vec<f32>,
    /// Squared norm of the coordinates, per head of the group.
    pub(super) norm2: Vec<f32>,
}

/// One segment of a KV head.
pub(super) struct HeadSegment<'v> {
    pub(super) segment: &'v LayerSegment,
    pub(super) offsets: &'v [u32],
    pub(super) ladder: HeadLadder<'v>,
    pub(super) numbers: &'v ClusterNumbers,
    /// Its number among the segments of the head.
    pub(super) number: usize,
    /// Number of the segment's first row among all rows of the head.
    pub(super) first_row: usize,
    /// Index into [`Head::bases`].
    pub(super) basis: usize,
    /// Number of the segment's first cluster among all clusters of the head.
    pub(super) first: usize,
    /// Number of the segment that says how its values follow its keys: itself, or the last one before it that does.
    pub(super) slope: Option<usize>,
}

/// One KV head over all its segments; clusters are numbered through.
pub(super) struct Head<'v> {
    pub(super) group: usize,
    pub(super) segments: Vec<HeadSegment<'v>>,
    pub(super) bases: Vec<BasisQuery>,
    pub(super) clusters: usize,
    /// Rows of all segments.
    pub(super) rows: usize,
}

impl<'v> Head<'v> {
    pub(super) fn open(
        kernels: &Kernels,
        view: &LayerView<'_>,
        ladders: &'v Ladders<'v>,
        queries: &HeadQueries,
        kv_head: usize,
    ) -> Result<Self, Error> {
        let (segments, bases) = (Vec::with_capacity(ladders.segments.len()), Vec::new());
        let mut head = Head { group: queries.heads, segments, bases, clusters: 0, rows: 0 };
        for &(segment, opened) in &ladders.segments {
            // Codes are asked for list by list of a whole call, see `Reader::expect`.
            let ladder = opened.view.head(kv_head)?.without_ahead();
            let digest = opened.view.digest();
            let known = head.bases.iter().position(|basis| basis.digest == digest);
            let basis = known.unwrap_or_else(|| {
                head.bases.push(BasisQuery::new(kernels, &ladder, digest, queries, view.shape.key_dim));
                head.bases.len() - 1
            });
            let offsets = opened.view.postings().offsets(kv_head)?;
            let (numbers, first, first_row) = (opened.numbers(kv_head, &ladder), head.clusters, head.rows);
            let number = head.segments.len();
            let before = head.segments.iter().map(|before| (before.basis, before.slope));
            let slope = slope_of(before, basis, !ladder.value_slope.is_empty());
            let segment =
                HeadSegment { segment, offsets, ladder, numbers, number, first_row, basis, first, slope };
            head.segments.push(segment);
            (head.clusters, head.rows) = (first + ladder.cluster_count(), first_row + ladder.rows());
        }
        Ok(head)
    }

    /// Asks for the sketches of these clusters; says whether some have to come from disk.
    pub(super) fn expect_sketches(&self, list: &[u32]) -> bool {
        self.runs(list).fold(false, |comes, (number, run)| {
            let segment = &self.segments[number];
            comes | segment.ladder.expect_sketches(run.iter().map(|&c| c as usize - segment.first))
        })
    }

    /// Cuts an ascending list of clusters where a segment ends: the segment's number, and its part of the list.
    pub(super) fn runs<'l>(&self, list: &'l [u32]) -> impl Iterator<Item = (usize, &'l [u32])> {
        let ends = self.segments.iter().map(|segment| segment.first + segment.ladder.cluster_count());
        runs(ends, list)
    }

    /// The same of a list of rows that are numbered through the head.
    pub(super) fn row_runs<'l>(&self, list: &'l [u32]) -> impl Iterator<Item = (usize, &'l [u32])> {
        runs(self.segments.iter().map(|segment| segment.first_row + segment.ladder.rows()), list)
    }

    /// Bytes of bases, bits and scales that the query touches.
    pub(super) fn basis_bytes(&self, key_dim: usize, value_dim: usize) -> u64 {
        let shared = key_dim * key_dim + key_dim + 2 * (4 * key_dim + 2 * value_dim);
        let own = 2 * (2 * key_dim + value_dim + 6);
        (self.bases.len() * shared + self.segments.len() * own) as u64
    }
}

fn runs(ends: impl Iterator<Item = usize>, mut list: &[u32]) -> impl Iterator<Item = (usize, &[u32])> {
    let cut = ends.enumerate().map(move |(number, end)| {
        let (run, rest) = list.split_at(list.partition_point(|&entry| (entry as usize) < end));
        list = rest;
        (number, run)
    });
    cut.filter(|(_, run)| !run.is_empty())
}

impl HeadSegment<'_> {
    /// Clusters, numbered through the head.
    pub(super) fn clusters(&self) -> Range<usize> {
        self.first..self.first + self.ladder.cluster_count()
    }

    /// Asks for the first centroids. Within a segment the kernels ask for them themselves.
    pub(super) fn expect_centroids(&self, kernels: &Kernels) {
        let centroids = self.ladder.centroids;
        kernels.prefetch(&centroids[..centroids.len().min(CENTROIDS_AHEAD)]);
    }

    /// Scores of the coded centroids, a plane for each head of the group.
    pub(super) fn score_centroids(
        &self,
        kernels: &Kernels,
        bases: &[BasisQuery],
        queries: &HeadQueries,
        planes: &mut [f32],
    ) {
        let dim = self.ladder.middle.len();
        let mut middle = vec![0.0; queries.heads];
        kernels.scores(&queries.data, queries.heads, dim, Rows::F32(self.ladder.middle), &mut middle);
        let centroids = Summaries::all(self.ladder.centroids, dim);
        kernels.scores_summaries(&bases[self.basis].centroid, centroids, &middle, centroids.len(), planes);
    }

    /// Variance of the scores inside a cluster of key spread 1, for head `g` of the group.
    pub(super) fn unit_variance(&self, bases: &[BasisQuery], g: usize) -> f32 {
        let dim = self.ladder.shape.len();
        product(&bases[self.basis].squares[g * dim..][..dim], self.ladder.shape)
    }
}

impl BasisQuery {
    fn new(
        kernels: &Kernels,
        ladder: &HeadLadder<'_>,
        digest: u64,
        queries: &HeadQueries,
        dim: usize,
    ) -> Self {
        let heads = queries.heads;
        let mut products = vec![0.0; dim * heads];
        kernels.scores_i8(&queries.data, heads, dim, ladder.inverse, &mut products);
        let mut coordinates = vec![0.0; heads * dim];
        for (head, coordinates) in coordinates.chunks_exact_mut(dim).enumerate() {
            let mine = products[head..].iter().step_by(heads).zip(ladder.inverse_scale);
            coordinates.iter_mut().zip(mine).for_each(|(x, (product, scale))| *x = product * scale);
        }
        let times = |sigma: &[f32]| -> Vec<f32> {
            coordinates
                .chunks_exact(dim)
                .flat_map(|q| q.iter().zip(sigma).map(|(q, sigma)| q * sigma))
                .collect()
        };
        let along = times(ladder.sketch_sigma);
        let mut centroid = Laid::default();
        centroid.set(&coordinates, heads, ladder.centroid_sigma);
        let centroid_noise = |q: &[f32]| CENTROID_NOISE * product(q, q);
        BasisQuery {
            digest,
            centroid,
            centroid_variance: times(ladder.centroid_sigma).chunks_exact(dim).map(centroid_noise).collect(),
            key: times(ladder.key_sigma),
            sketch: SketchQuery::new(&ladder.layout, &along, heads),
            along2: along.chunks_exact(dim).map(|q| product(q, q)).collect(),
            along,
            norm2: coordinates.chunks_exact(dim).map(|q| product(q, q)).collect(),
            squares: coordinates.iter().map(|x| x * x).collect(),
        }
    }
}
