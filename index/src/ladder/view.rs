//! Reading the ladder of a segment.

use longwave_kernels::bf16;
use longwave_kernels::codec::{SketchLayout, record_len};
use longwave_storage::{ColumnKind, Error, Segment};

use super::basis::{Axes, Basis, digest_of};
use super::columns::{
    BASIS, BITS, BadParameters, CENTROID, CLUSTER, CLUSTER_SIZE, COLUMN_KINDS, KEY_CODE, OLDEST, PARAMETERS,
    Parameters, SCALES, SKETCH, SKETCH_OFFSETS, VALUE_CODE, VALUE_MEAN, VALUE_SLOPE, VERSION, scales_len,
};
use super::head::{HeadLadder, Parts};
use super::input::MomentSource;
use crate::postings::Postings;
use crate::view::{column_bytes, corrupt, elements};

/// The ladder of a segment. All lengths and offsets in it have been checked, so that nothing it leads to lies outside its
/// column; the contents beyond that are checked by [`LadderView::validated`], and where rows are read.
#[derive(Clone, Debug)]
pub struct LadderView<'a> {
    segment: &'a Segment,
    postings: Postings<'a>,
    pub(super) parameters: Parameters,
    key_dim: usize,
    value_dim: usize,
    basis: &'a [i8],
    bits: &'a [u8],
    layouts: Vec<SketchLayout>,
    /// As decoded from their column.
    pub(super) scales: Vec<f32>,
    centroids: &'a [u8],
    clusters: &'a [u8],
    value_means: &'a [u8],
    /// Empty where the segment has none.
    value_slope: &'a [u8],
    /// Where each cluster's sketches begin in their column, one more than clusters.
    sketch_starts: Vec<u64>,
}

/// What is read of a ladder when it is opened.
const OPENED: [ColumnKind; 11] = [
    PARAMETERS,
    BASIS,
    BITS,
    SCALES,
    CENTROID,
    CLUSTER,
    VALUE_MEAN,
    SKETCH_OFFSETS,
    VALUE_SLOPE,
    crate::columns::CLUSTER_HEADS,
    crate::columns::POSTINGS,
];

impl<'a> LadderView<'a> {
    /// Says that the ladder of `segment` is about to be opened: what is read for it is asked for where it is on disk. Who
    /// opens many asks for all of them first, so that the disk is waited for once.
    ///
    /// # Errors
    /// As [`Segment::hold`].
    pub fn expect(segment: &Segment) -> Result<(), Error> {
        segment.expect(&OPENED)
    }

    /// Opens the ladder of `segment`; `None` when the segment has none, or one of an earlier version, whose codes are no
    /// longer read. Reads the small columns.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a block's checksum, a length or an offset is wrong,
    /// [`Error::MissingColumn`] when some of the columns are there and others are not, [`Error::Version`] when a newer
    /// build wrote them.
    pub fn open(segment: &'a Segment) -> Result<Option<Self>, Error> {
        if !COLUMN_KINDS.iter().any(|&kind| segment.has_column(kind)) {
            return Ok(None);
        }
        if !crate::columns::COLUMN_KINDS.iter().any(|&kind| segment.has_column(kind)) {
            let column = segment.column(COLUMN_KINDS[0])?;
            return Err(corrupt(segment, column, 0, "an index beside the ladder", "none"));
        }
        let Some(parameters) = parameters(segment)? else { return Ok(None) };
        let postings = Postings::read(segment)?;
        let geometry = segment.header().geometry;
        let (key_dim, value_dim) = (geometry.key_dim as usize, geometry.value_dim as usize);
        let (heads, clusters, rows) = (postings.kv_heads(), postings.clusters(), postings.rows());
        let bits: &[u8] = elements(segment, BITS, heads * key_dim)?;
        let layouts = layouts(segment, bits, key_dim)?;
        if !longwave_kernels::is_supported_dim(value_dim) {
            let column = segment.column(VALUE_CODE)?;
            return Err(corrupt(segment, column, 0, "values of a dimension that has codes", value_dim));
        }
        let sketch_starts = sketch_starts(segment, &postings, &layouts)?;
        check_length(segment, KEY_CODE, heads * rows * record_len(key_dim))?;
        check_length(segment, VALUE_CODE, heads * rows * record_len(value_dim))?;
        let value_slope = if segment.has_column(VALUE_SLOPE) {
            column_bytes(segment, VALUE_SLOPE, heads * key_dim, record_len(value_dim))?
        } else {
            &[]
        };
        let scales: &[bf16] = elements(segment, SCALES, heads * scales_len(key_dim, value_dim))?;
        Ok(Some(Self {
            segment,
            postings,
            parameters,
            key_dim,
            value_dim,
            basis: elements(segment, BASIS, heads * key_dim * key_dim)?,
            bits,
            layouts,
            scales: scales.iter().map(|scale| scale.to_f32()).collect(),
            centroids: column_bytes(segment, CENTROID, clusters, record_len(key_dim))?,
            clusters: column_bytes(segment, CLUSTER, clusters, CLUSTER_SIZE)?,
            value_means: column_bytes(segment, VALUE_MEAN, clusters, record_len(value_dim))?,
            value_slope,
            sketch_starts,
        }))
    }

    /// Opens the ladder of `segment` as queries need it: what [`Self::open`] has checked, and that all numbers are finite
    /// and in their range but for the factors of row codes, which [`HeadLadder::check_key_codes`] and
    /// [`HeadLadder::check_value_codes`] check for the rows that are read. Does not read codes, keys and values.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Corrupt`] with the column and the offset of the first fault.
    pub fn validated(segment: &'a Segment) -> Result<Option<Self>, Error> {
        let view = Self::open(segment)?;
        view.as_ref().map_or(Ok(()), |view| super::validate::check_structure(segment, view))?;
        Ok(view)
    }

    /// Where the clusters are.
    pub fn postings(&self) -> &Postings<'a> {
        &self.postings
    }

    /// Where the query moments came from that it was built with.
    pub fn moment_source(&self) -> MomentSource {
        self.parameters.source
    }

    /// Queries that the moment of a head was the mean of, the most of any head.
    pub fn moment_positions(&self) -> u32 {
        self.parameters.positions
    }

    /// Digest of the bases of all heads, as it is stored.
    pub fn digest(&self) -> u64 {
        self.parameters.digest
    }

    /// Dimensions of a key.
    pub fn key_dim(&self) -> usize {
        self.key_dim
    }

    /// Dimensions of a value.
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// A copy of the basis of KV head `head`, for the next segment to be built with.
    ///
    /// # Errors
    /// [`Error::Limit`] when there is no such head; [`Error::Corrupt`] when no segment can be built with it: its matrix
    /// has no inverse, or a scale is not a positive number.
    pub fn basis(&self, head: usize) -> Result<Basis, Error> {
        let basis = self.stored_basis(head)?;
        super::validate::check_scales(self.segment, self, head)?;
        if Axes::of(&basis).is_none() {
            let (column, at) = (self.segment.column(BASIS)?, head * self.key_dim * self.key_dim);
            return Err(corrupt(
                self.segment,
                column,
                at,
                "a matrix that has an inverse",
                "one that has none",
            ));
        }
        Ok(basis)
    }

    /// The basis as it is stored.
    pub(super) fn stored_basis(&self, head: usize) -> Result<Basis, Error> {
        let ladder = self.head(head)?;
        Ok(Basis {
            inverse: ladder.inverse.to_vec(),
            inverse_scale: ladder.inverse_scale.to_vec(),
            bits: ladder.bits.to_vec(),
            sketch_sigma: ladder.sketch_sigma.to_vec(),
            key_sigma: ladder.key_sigma.to_vec(),
            centroid_sigma: ladder.centroid_sigma.to_vec(),
            value_sigma: ladder.value_sigma.to_vec(),
            value_mean_sigma: ladder.value_mean_sigma.to_vec(),
        })
    }

    /// The digest of the basis of KV head `head` as it is stored.
    pub(super) fn basis_digest(&self, head: usize) -> Result<u64, Error> {
        let ladder = self.head(head)?;
        let scales = [
            ladder.inverse_scale,
            ladder.sketch_sigma,
            ladder.key_sigma,
            ladder.centroid_sigma,
            ladder.value_sigma,
            ladder.value_mean_sigma,
        ];
        Ok(digest_of(ladder.inverse, ladder.bits, scales))
    }

    /// The ladder of KV head `head`.
    ///
    /// # Errors
    /// [`Error::Limit`] when there is no such head.
    pub fn head(&self, head: usize) -> Result<HeadLadder<'_>, Error> {
        let offsets = self.postings.offsets(head)?;
        let (d, v) = (self.key_dim, self.value_dim);
        let scales = &self.scales[head * scales_len(d, v)..][..scales_len(d, v)];
        let (keys, rest) = scales.split_at(6 * d);
        let (values, scalars) = rest.split_at(3 * v);
        let key = |place: usize| &keys[place * d..][..d];
        let value = |place: usize| &values[place * v..][..v];
        let clusters = self.postings.first_cluster(head)..self.postings.first_cluster(head + 1);
        let records = |column: &'a [u8], size: usize| &column[clusters.start * size..clusters.end * size];
        Ok(HeadLadder {
            inverse: &self.basis[head * d * d..][..d * d],
            inverse_scale: key(0),
            bits: &self.bits[head * d..][..d],
            layout: self.layouts[head],
            sketch_sigma: key(1),
            key_sigma: key(2),
            centroid_sigma: key(3),
            shape: key(4),
            middle: key(5),
            value_sigma: value(0),
            value_mean_sigma: value(1),
            global_value: value(2),
            sketch_noise: scalars[0],
            mean_deviation: scalars[1],
            units: [scalars[2], scalars[3], scalars[4]],
            centroids: records(self.centroids, record_len(d)),
            value_means: records(self.value_means, record_len(v)),
            value_slope: self.value_slope.chunks_exact(d * record_len(v)).nth(head).unwrap_or_default(),
            clusters: records(self.clusters, CLUSTER_SIZE),
            parts: Parts {
                segment: self.segment,
                sketch: self.segment.column(SKETCH)?,
                sketch_starts: &self.sketch_starts[clusters.start..clusters.end + 1],
                offsets,
                key_code: self.segment.column(KEY_CODE)?,
                value_code: self.segment.column(VALUE_CODE)?,
                first_cluster: clusters.start,
                first_row: head * self.postings.rows(),
                rows: self.postings.rows(),
            },
        })
    }
}

/// `None` where they are those of an earlier version.
fn parameters(segment: &Segment) -> Result<Option<Parameters>, Error> {
    let record: &[[u8; Parameters::SIZE]] = elements(segment, PARAMETERS, 1)?;
    match Parameters::decode(&record[0]) {
        Ok(parameters) => Ok(Some(parameters)),
        Err(BadParameters::Version(OLDEST..VERSION)) => Ok(None),
        Err(BadParameters::Version(found)) => {
            let file = segment.path().to_owned();
            Err(Error::Version { file, found, oldest: OLDEST, newest: VERSION })
        }
        Err(BadParameters::Field(at)) => {
            let found = format_args!("{:?}", &record[0][at..]);
            Err(corrupt(segment, segment.column(PARAMETERS)?, at, "a parameter in its range", found))
        }
    }
}

fn layouts(segment: &Segment, bits: &[u8], key_dim: usize) -> Result<Vec<SketchLayout>, Error> {
    let mut layouts = Vec::new();
    for (head, bits) in bits.chunks_exact(key_dim).enumerate() {
        let Some(layout) = SketchLayout::checked(bits) else {
            let found = format_args!("{bits:?}");
            return Err(corrupt(segment, segment.column(BITS)?, head * key_dim, "bits of a sketch", found));
        };
        layouts.push(layout);
    }
    Ok(layouts)
}

/// Where each cluster's sketches begin, which follows from the postings; the stored offsets must agree.
fn sketch_starts(
    segment: &Segment,
    postings: &Postings<'_>,
    layouts: &[SketchLayout],
) -> Result<Vec<u64>, Error> {
    let stored: &[u64] = elements(segment, SKETCH_OFFSETS, layouts.len() + 1)?;
    let mut starts = Vec::with_capacity(postings.clusters() + 1);
    let mut end = 0u64;
    let check = |head: usize, end: u64| match stored[head] {
        found if found == end => Ok(()),
        found => Err(corrupt(segment, segment.column(SKETCH_OFFSETS)?, head * 8, end, found)),
    };
    for (head, layout) in layouts.iter().enumerate() {
        check(head, end)?;
        for bounds in postings.of(head).windows(2) {
            starts.push(end);
            end += layout.record_len((bounds[1] - bounds[0]) as usize) as u64;
        }
    }
    check(layouts.len(), end)?;
    starts.push(end);
    check_length(segment, SKETCH, end as usize)?;
    Ok(starts)
}

fn check_length(segment: &Segment, kind: ColumnKind, expected: usize) -> Result<(), Error> {
    let column = segment.column(kind)?;
    if column.len() == expected {
        return Ok(());
    }
    let found = format_args!("{} bytes", column.len());
    Err(corrupt(segment, column, 0, format_args!("{expected} bytes"), found))
}
