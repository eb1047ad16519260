//! Reading the index of a segment.

use bytemuck::Pod;
use longwave_kernels::{Dtype, Rows};
use longwave_storage::{Column, ColumnKind, Error, Segment};

use crate::ClusterOptions;
use crate::columns::{
    BadParameters, CENTROID, COLUMN_KINDS, COUNT, KEY_SPREAD, PARAMETERS, Parameters, VALUE_MEAN,
    VALUE_SPREAD, VERSION,
};
use crate::postings::Postings;

/// The index of a segment. All lengths and offsets in it have been checked, so that nothing it leads to lies outside its
/// column; the contents beyond that are [`validate`](crate::validate)'s business.
#[derive(Clone, Copy, Debug)]
pub struct IndexView<'a> {
    options: ClusterOptions,
    postings: Postings<'a>,
    key_dim: usize,
    value_dim: usize,
    counts: &'a [f32],
    centroids: Rows<'a>,
    value_means: Rows<'a>,
    key_spreads: &'a [f32],
    value_spreads: &'a [f32],
}

/// The index of one KV head. All parts but `offsets` have one entry per cluster; no cluster is empty.
#[derive(Clone, Copy, Debug)]
pub struct HeadIndex<'a> {
    /// Cluster `c` is rows `offsets[c]..offsets[c + 1]` of the head: clusters + 1 entries, strictly ascending from 0 to
    /// the rows of the segment.
    pub offsets: &'a [u32],
    /// Rows of each cluster, as the estimate multiplies with them.
    pub counts: &'a [f32],
    /// Mean keys, `[clusters, key_dim]`.
    pub centroids: Rows<'a>,
    /// Mean values, `[clusters, value_dim]`. A cluster's value sum is its count times its value mean; the mean is stored
    /// since a 16-bit sum could overflow.
    pub value_means: Rows<'a>,
    /// Mean squared distance of a cluster's keys to its centroid.
    pub key_spread: &'a [f32],
    /// Mean squared distance of a cluster's values to its value mean.
    pub value_spread: &'a [f32],
}

impl HeadIndex<'_> {
    /// Number of clusters.
    pub fn clusters(&self) -> usize {
        self.counts.len()
    }
}

impl<'a> IndexView<'a> {
    /// Opens the index of `segment`; `None` when the segment has none and can only be read exactly.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a block's checksum, a length or an offset is wrong, [`Error::MissingColumn`] when some of
    /// the columns are there and others are not, [`Error::Version`] when a newer build wrote them.
    pub fn open(segment: &'a Segment) -> Result<Option<Self>, Error> {
        if !COLUMN_KINDS.iter().any(|&kind| segment.has_column(kind)) {
            return Ok(None);
        }
        let options = parameters(segment)?;
        let geometry = segment.header().geometry;
        let (key_dim, value_dim) = (geometry.key_dim as usize, geometry.value_dim as usize);
        let dtype = Dtype::from_code(geometry.element.code())
            .ok_or_else(|| Error::corrupt(segment.path(), 0, "a known element type", geometry.element))?;

        let postings = Postings::read(segment)?;
        let clusters = postings.clusters();
        Ok(Some(Self {
            options,
            postings,
            key_dim,
            value_dim,
            counts: elements(segment, COUNT, clusters)?,
            centroids: matrix(segment, CENTROID, dtype, clusters * key_dim)?,
            value_means: matrix(segment, VALUE_MEAN, dtype, clusters * value_dim)?,
            key_spreads: elements(segment, KEY_SPREAD, clusters)?,
            value_spreads: elements(segment, VALUE_SPREAD, clusters)?,
        }))
    }

    /// Opens the index of `segment` and checks what it promises: what [`Self::open`] has checked, counts that agree with the
    /// postings, finite summaries, and positions that are a permutation. The ladder is not looked at.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Corrupt`] with the column and the offset of the first fault.
    pub fn validated(segment: &'a Segment) -> Result<Option<Self>, Error> {
        let view = Self::open(segment)?;
        view.as_ref().map_or(Ok(()), |view| crate::validate::check_index(segment, view))?;
        Ok(view)
    }

    /// How the index was made.
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// Where the clusters are.
    pub fn postings(&self) -> &Postings<'a> {
        &self.postings
    }

    /// Rows of each head.
    pub fn rows(&self) -> usize {
        self.postings.rows()
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.postings.kv_heads()
    }

    /// Clusters of all heads.
    pub fn clusters(&self) -> usize {
        self.postings.clusters()
    }

    /// The index of KV head `head`.
    ///
    /// # Errors
    /// [`Error::Limit`] when there is no such head.
    pub fn head(&self, head: usize) -> Result<HeadIndex<'a>, Error> {
        self.postings.offsets(head)?;
        Ok(self.head_at(head))
    }

    /// The indexes of all KV heads, in order.
    pub fn heads(&self) -> impl Iterator<Item = HeadIndex<'a>> {
        (0..self.kv_heads()).map(|head| self.head_at(head))
    }

    fn head_at(&self, head: usize) -> HeadIndex<'a> {
        let (start, end) = (self.postings.first_cluster(head), self.postings.first_cluster(head + 1));
        HeadIndex {
            offsets: self.postings.of(head),
            counts: &self.counts[start..end],
            centroids: self.centroids.slice(start * self.key_dim..end * self.key_dim),
            value_means: self.value_means.slice(start * self.value_dim..end * self.value_dim),
            key_spread: &self.key_spreads[start..end],
            value_spread: &self.value_spreads[start..end],
        }
    }

    /// Clusters of the heads before `head`; the entry of its first one in a column of one entry per cluster.
    pub fn first_cluster(&self, head: usize) -> usize {
        self.postings.first_cluster(head)
    }
}

fn parameters(segment: &Segment) -> Result<ClusterOptions, Error> {
    let column = segment.column(PARAMETERS)?;
    let record: &[u8; Parameters::SIZE] = column.all()?.try_into().map_err(|_| {
        corrupt(
            segment,
            column,
            0,
            format_args!("{} bytes", Parameters::SIZE),
            format_args!("{} bytes", column.len()),
        )
    })?;
    match Parameters::decode(record) {
        Ok(Parameters { options, .. }) => Ok(options),
        Err(BadParameters::Version(found)) => {
            let file = segment.path().to_owned();
            Err(Error::Version { file, found, oldest: VERSION, newest: VERSION })
        }
        Err(BadParameters::Field(at)) => {
            Err(corrupt(segment, column, at, "a parameter in its range", format_args!("{:?}", &record[at..])))
        }
    }
}

/// The column `kind` as `count` elements.
pub(crate) fn elements<T: Pod>(segment: &Segment, kind: ColumnKind, count: usize) -> Result<&[T], Error> {
    let bytes = column_bytes(segment, kind, count, size_of::<T>())?;
    bytemuck::try_cast_slice(bytes).map_err(|error| misaligned(segment, kind, error))
}

/// The column `kind` as `count` elements of `dtype`.
fn matrix(segment: &Segment, kind: ColumnKind, dtype: Dtype, count: usize) -> Result<Rows<'_>, Error> {
    let bytes = column_bytes(segment, kind, count, dtype.size_of())?;
    Rows::from_bytes(dtype, bytes).ok_or_else(|| misaligned(segment, kind, dtype))
}

/// All bytes of a column, which must be exactly `count` elements of `size` bytes. The limits of a segment (2^12 heads,
/// 2^24 rows, 2^16 dimensions) keep the product far from overflow.
pub(crate) fn column_bytes(
    segment: &Segment,
    kind: ColumnKind,
    count: usize,
    size: usize,
) -> Result<&[u8], Error> {
    let column = segment.column(kind)?;
    if column.len() != count * size {
        let expected = format_args!("{} bytes", count * size);
        return Err(corrupt(segment, column, 0, expected, format_args!("{} bytes", column.len())));
    }
    column.all()
}

fn misaligned(segment: &Segment, kind: ColumnKind, what: impl std::fmt::Display) -> Error {
    let name = crate::column_name(kind).unwrap_or_default();
    Error::corrupt_column(segment.path(), name, 0, "a column aligned for its elements", what)
}

/// A mismatch at byte `at` of `column`.
pub(crate) fn corrupt(
    segment: &Segment,
    column: Column<'_>,
    at: usize,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> Error {
    let info = column.info();
    Error::corrupt_column(segment.path(), &info.name, info.offset + at as u64, expected, found)
}
