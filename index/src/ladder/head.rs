//! The ladder of one KV head.

use std::ops::Range;

use longwave_kernels::codec::{SketchLayout, factor_of_code, record_len};
use longwave_storage::{Column, ColumnKind, Error, Segment};

use super::columns::{CLUSTER_SIZE, KEY_CODE, VALUE_CODE};
use super::validate::{Factors, check_factors};

/// The ladder of one KV head: everything small at once, sketches and row codes on demand.
///
/// d is the dimension of keys, v that of values. Records are those of [`longwave_kernels::codec`]. Numbers are as
/// stored: finite only once [`LadderView::validated`](super::LadderView::validated) has passed, and the factors of row
/// codes once they have been checked.
#[derive(Clone, Copy, Debug)]
pub struct HeadLadder<'a> {
    /// Matrix of the query's coordinates, `[d, d]`: coordinate i is `inverse_scale[i] * Σ_j inverse[i][j] q[j]`.
    pub inverse: &'a [i8],
    /// Units of the matrix's rows.
    pub inverse_scale: &'a [f32],
    /// Bits of each coordinate in a sketch.
    pub bits: &'a [u8],
    /// How sketches are laid out, which follows from `bits`.
    pub layout: SketchLayout,
    /// Scale of each coordinate of a residual key in sketches.
    pub sketch_sigma: &'a [f32],
    /// Scale of each coordinate, in key codes, of what the sketch leaves of a residual key.
    pub key_sigma: &'a [f32],
    /// Scale of each coordinate of a centroid less the middle.
    pub centroid_sigma: &'a [f32],
    /// A cluster's variance along each coordinate is its key spread times this.
    pub shape: &'a [f32],
    /// Mean of the centroids, d elements of a key (not coordinates).
    pub middle: &'a [f32],
    /// Scale of each element of a rotated value less its cluster's mean.
    pub value_sigma: &'a [f32],
    /// Scale of each element of a rotated value mean less the mean of all values.
    pub value_mean_sigma: &'a [f32],
    /// Mean of all values, rotated.
    pub global_value: &'a [f32],
    /// Standard deviation of what a sketch leaves in one coordinate, in units of the row's factor.
    pub sketch_noise: f32,
    /// Mean squared distance of the value means to the mean of all values.
    pub mean_deviation: f32,
    /// Records of the centroids less the middle, in coordinates, `[clusters]`.
    pub centroids: &'a [u8],
    /// Records of the value means less the mean of all values, rotated, `[clusters]`.
    pub value_means: &'a [u8],
    /// How values follow keys: records in units of `value_sigma`, one a coordinate of a key. Record i is the mean, over the rows of the
    /// segment, of coordinate i of a key less its coded centroid, over `sketch_sigma[i]`, times the rotated value less its
    /// cluster's coded mean, times the cluster's [`steepness`](super::steepness). Empty where the segment says nothing of it.
    pub value_slope: &'a [u8],
    /// What the codes of key spread, value spread and mean error are multiples of.
    pub units: [f32; 3],
    /// Counts and spreads, `[clusters, 5]`; [`HeadLadder::cluster`] decodes them.
    pub clusters: &'a [u8],
    pub(super) parts: Parts<'a>,
}

/// What is read on demand, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) segment: &'a Segment,
    pub(super) sketch: Column<'a>,
    /// Where in the column each cluster's record begins, one more than clusters.
    pub(super) sketch_starts: &'a [u64],
    /// Where each cluster's rows begin, one more than clusters.
    pub(super) offsets: &'a [u32],
    pub(super) key_code: Column<'a>,
    pub(super) value_code: Column<'a>,
    pub(super) first_cluster: usize,
    /// Rows of all heads before this one in the two columns.
    pub(super) first_row: usize,
    pub(super) rows: usize,
}

/// What is known of a cluster without its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterSummary {
    /// Rows.
    pub count: f32,
    /// Mean squared norm of the coordinates of keys less the coded centroid.
    pub key_spread: f32,
    /// Mean squared distance of values to the coded mean.
    pub value_spread: f32,
    /// Squared distance of the coded mean to the mean.
    pub mean_error: f32,
}

impl<'a> HeadLadder<'a> {
    /// Number of clusters; none of them is empty.
    pub fn cluster_count(&self) -> usize {
        self.parts.offsets.len() - 1
    }

    /// Rows of the head.
    pub fn rows(&self) -> usize {
        self.parts.rows
    }

    /// Clusters of all heads before this one; the entry of its first in a column of one record per cluster.
    pub fn first_cluster(&self) -> usize {
        self.parts.first_cluster
    }

    /// The bytes of `ladder.sketch` that hold a cluster's record.
    ///
    /// # Panics
    /// When there is no such cluster.
    pub fn sketch_range(&self, cluster: usize) -> Range<usize> {
        let starts = self.parts.sketch_starts;
        starts[cluster] as usize..starts[cluster + 1] as usize
    }

    /// Count and spreads of a cluster.
    ///
    /// # Panics
    /// When there is no such cluster.
    pub fn cluster(&self, cluster: usize) -> ClusterSummary {
        let record = &self.clusters[cluster * CLUSTER_SIZE..][..CLUSTER_SIZE];
        let count = match u16::from_le_bytes([record[0], record[1]]) {
            u16::MAX => (self.parts.offsets[cluster + 1] - self.parts.offsets[cluster]) as f32,
            count => f32::from(count),
        };
        let spread = |number: usize| self.units[number] * factor_of_code(record[2 + number]);
        ClusterSummary { count, key_spread: spread(0), value_spread: spread(1), mean_error: spread(2) }
    }

    /// Says that the sketches of these clusters, which ascend, are about to be read: they are asked for all at once where
    /// they are on disk. Returns whether some of them are, as far as was looked.
    ///
    /// # Panics
    /// When there is no such cluster.
    pub fn expect_sketches(&self, clusters: impl Iterator<Item = usize> + Clone) -> bool {
        self.parts.sketch.expect(clusters.map(|cluster| self.sketch_range(cluster)))
    }

    /// The same for whoever asks for the codes that he reads by himself; see [`Column::without_ahead`].
    #[must_use]
    pub fn without_ahead(mut self) -> HeadLadder<'a> {
        self.parts.key_code = self.parts.key_code.without_ahead();
        self.parts.value_code = self.parts.value_code.without_ahead();
        self
    }

    /// The record of a cluster's sketches.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a block of it fails its checksum.
    ///
    /// # Panics
    /// When there is no such cluster.
    pub fn sketch(&self, cluster: usize) -> Result<&'a [u8], Error> {
        self.parts.sketch.bytes(self.sketch_range(cluster))
    }

    /// Records of the key codes of a range of the head's rows: keys less their coded centroid and their sketch, in
    /// coordinates.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a block of them fails its checksum; [`Error::Range`] when there are no such rows.
    pub fn key_code_bytes(&self, rows: Range<usize>) -> Result<&'a [u8], Error> {
        self.parts.bytes(self.parts.key_code, record_len(self.bits.len()), rows)
    }

    /// Records of the value codes of a range of the head's rows: values less their coded mean, rotated.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a block of them fails its checksum; [`Error::Range`] when there are no such rows.
    pub fn value_code_bytes(&self, rows: Range<usize>) -> Result<&'a [u8], Error> {
        self.parts.bytes(self.parts.value_code, record_len(self.value_sigma.len()), rows)
    }
}

impl<'a> HeadLadder<'a> {
    /// Records of the key codes of all the head's rows, of which the listed ones may be read; see
    /// [`HeadLadder::key_code_bytes`].
    ///
    /// # Errors
    /// As [`Column::listed`].
    pub fn listed_key_codes(&self, rows: &[u32]) -> Result<&'a [u8], Error> {
        self.parts.listed(self.parts.key_code, record_len(self.bits.len()), rows)
    }

    /// Records of the value codes of all the head's rows, of which the listed ones may be read; see
    /// [`HeadLadder::value_code_bytes`].
    ///
    /// # Errors
    /// As [`Column::listed`].
    pub fn listed_value_codes(&self, rows: &[u32]) -> Result<&'a [u8], Error> {
        self.parts.listed(self.parts.value_code, record_len(self.value_sigma.len()), rows)
    }

    /// Checks the factors of listed rows among `codes`, what [`HeadLadder::listed_key_codes`] has given. It is cheapest just
    /// after the rows were read, and nothing that comes of a row is to be used before.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the place of a factor that is negative or not finite.
    ///
    /// # Panics
    /// When `codes` has no such row.
    pub fn check_key_codes(&self, codes: &[u8], rows: &[u32]) -> Result<(), Error> {
        self.parts.check(KEY_CODE, codes, self.bits.len(), rows)
    }

    /// The same of value codes.
    ///
    /// # Errors
    /// As [`HeadLadder::check_key_codes`].
    ///
    /// # Panics
    /// As [`HeadLadder::check_key_codes`].
    pub fn check_value_codes(&self, codes: &[u8], rows: &[u32]) -> Result<(), Error> {
        self.parts.check(VALUE_CODE, codes, self.value_sigma.len(), rows)
    }
}

impl<'a> Parts<'a> {
    fn listed(&self, column: Column<'a>, record: usize, rows: &[u32]) -> Result<&'a [u8], Error> {
        column.listed(record, self.first_row..self.first_row + self.rows, rows)
    }

    fn check(&self, kind: ColumnKind, codes: &[u8], dim: usize, rows: &[u32]) -> Result<(), Error> {
        let rows = rows.iter().map(|&row| row as usize);
        check_factors(self.segment, kind, Factors::first(codes, dim), self.first_row, rows)
    }

    fn bytes(&self, column: Column<'a>, record: usize, rows: Range<usize>) -> Result<&'a [u8], Error> {
        // Rows past the head's are other heads' rows: they must not come back under this one's name.
        let end = if rows.end > self.rows { usize::MAX } else { (self.first_row + rows.end) * record };
        column.bytes((self.first_row + rows.start.min(self.rows)) * record..end)
    }
}
