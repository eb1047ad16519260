//! What the ladder's columns promise beyond lengths and offsets.

use longwave_kernels::codec::record_len;
use longwave_kernels::f16;
use longwave_storage::{ColumnKind, Error, RowForm, Segment};

use super::basis::digest_of_all;
use super::columns::{
    CENTROID, CLUSTER, CLUSTER_SIZE, KEY_CODE, PARAMETERS, SCALES, VALUE_CODE, VALUE_MEAN, VALUE_SLOPE,
    scales_len,
};
use super::view::LadderView;
use crate::view::corrupt;

/// Checks the ladder's columns of `segment`: what [`check_structure`] does, factors of all codes, and that bases can be
/// inverted. A segment without a ladder is sound.
///
/// Reads all of the columns but the sketches, in which every byte means something.
pub(crate) fn validate(segment: &Segment) -> Result<(), Error> {
    let Some(view) = LadderView::open(segment)? else {
        // Without one, and without a column of keys, there are no rows.
        return if segment.row_form() == RowForm::Codes {
            segment.column(KEY_CODE).map(drop)
        } else {
            Ok(())
        };
    };
    // Before the digest, which says less of what is wrong with a basis.
    (0..view.postings().kv_heads()).try_for_each(|head| view.basis(head).map(drop))?;
    check_structure(segment, &view)?;
    for head in 0..view.postings().kv_heads() {
        let ladder = view.head(head)?;
        let (rows, all) = (0..ladder.rows(), head * ladder.rows());
        let keys = Factors::first(ladder.key_code_bytes(rows.clone())?, view.key_dim());
        check_factors(segment, KEY_CODE, keys, all, rows.clone())?;
        let values = Factors::first(ladder.value_code_bytes(rows.clone())?, view.value_dim());
        check_factors(segment, VALUE_CODE, values, all, rows)?;
    }
    Ok(())
}

/// Checks what all queries rest on: finite numbers, scales above 0, spreads and factors of clusters that are not negative,
/// counts that agree with the postings, and bases of the stored digest.
pub(super) fn check_structure(segment: &Segment, view: &LadderView<'_>) -> Result<(), Error> {
    let mut digests = Vec::new();
    for head in 0..view.postings().kv_heads() {
        check_scales(segment, view, head)?;
        digests.push(view.basis_digest(head)?);
        check_clusters(segment, view, head)?;
        let ladder = view.head(head)?;
        let (clusters, all) = (0..ladder.cluster_count(), ladder.first_cluster());
        let centroids = Factors::last(ladder.centroids, view.key_dim());
        check_factors(segment, CENTROID, centroids, all, clusters.clone())?;
        let means = Factors::last(ladder.value_means, view.value_dim());
        check_factors(segment, VALUE_MEAN, means, all, clusters)?;
        let slopes = Factors::last(ladder.value_slope, view.value_dim());
        let records = ladder.value_slope.len() / record_len(view.value_dim());
        check_factors(segment, VALUE_SLOPE, slopes, head * view.key_dim(), 0..records)?;
    }
    let digest = digest_of_all(digests);
    if digest != view.digest() {
        let (expected, found) = (format!("digest {digest:016x}"), format!("{:016x}", view.digest()));
        return Err(corrupt(segment, segment.column(PARAMETERS)?, 24, expected, found));
    }
    Ok(())
}

/// Every number of a head in `ladder.scales`.
pub(super) fn check_scales(segment: &Segment, view: &LadderView<'_>, head: usize) -> Result<(), Error> {
    let (d, v) = (view.key_dim(), view.value_dim());
    let len = scales_len(d, v);
    for (place, &number) in view.scales[head * len..][..len].iter().enumerate() {
        // Scales, shape, middle; value scales, mean of all values; five scalars and a zero.
        let (sound, expected) = if place < 4 * d || (6 * d..6 * d + 2 * v).contains(&place) {
            (number > 0.0, "a scale above 0")
        } else if place < 5 * d || (6 * d + 3 * v..len - 1).contains(&place) {
            (number >= 0.0, "a number of at least 0")
        } else if place >= len - 1 {
            (number == 0.0, "0")
        } else {
            (true, "a finite number")
        };
        if !(sound && number.is_finite()) {
            let at = (head * len + place) * 2;
            return Err(corrupt(segment, segment.column(SCALES)?, at, expected, number));
        }
    }
    Ok(())
}

fn check_clusters(segment: &Segment, view: &LadderView<'_>, head: usize) -> Result<(), Error> {
    let (offsets, ladder) = (view.postings().offsets(head)?, view.head(head)?);
    for (cluster, (record, bounds)) in
        ladder.clusters.chunks_exact(CLUSTER_SIZE).zip(offsets.windows(2)).enumerate()
    {
        let at = (ladder.first_cluster() + cluster) * CLUSTER_SIZE;
        let expected = (bounds[1] - bounds[0]).min(u32::from(u16::MAX));
        let found = u16::from_le_bytes([record[0], record[1]]);
        if u32::from(found) != expected {
            return Err(corrupt(segment, segment.column(CLUSTER)?, at, expected, found));
        }
    }
    Ok(())
}

/// Records with a factor each.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    records: &'a [u8],
    size: usize,
    /// Where in a record the factor is.
    at: usize,
}

impl<'a> Factors<'a> {
    /// Records of rows of `dim` elements that begin with the factor.
    pub(super) fn first(records: &'a [u8], dim: usize) -> Self {
        Factors { records, size: record_len(dim), at: 0 }
    }

    /// Records that end with it.
    fn last(records: &'a [u8], dim: usize) -> Self {
        Factors { records, size: record_len(dim), at: record_len(dim) - 2 }
    }
}

/// The factors of the records at `places`; `first` records of the column come before all of them.
pub(super) fn check_factors(
    segment: &Segment,
    kind: ColumnKind,
    Factors { records, size, at }: Factors<'_>,
    first: usize,
    places: impl Iterator<Item = usize> + Clone,
) -> Result<(), Error> {
    let bits = |place: usize| {
        let at = place * size + at;
        u16::from_le_bytes([records[at], records[at + 1]])
    };
    // Infinities, numbers that are not and negative ones lie above all others. Hardly ever is one looked for.
    if places.clone().fold(0, |most, place| bits(place).max(most)) < f16::INFINITY.to_bits() {
        return Ok(());
    }
    for place in places {
        let factor = f16::from_bits(bits(place));
        if !(factor.is_finite() && factor >= f16::ZERO) {
            let (column, at) = (segment.column(kind)?, (first + place) * size + at);
            return Err(corrupt(segment, column, at, "a finite factor of at least 0", factor));
        }
    }
    Ok(())
}
