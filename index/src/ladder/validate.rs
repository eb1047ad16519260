//! What the ladder's columns promise beyond lengths and offsets.

use longwave_kernels::codec::record_len;
use longwave_kernels::{bf16, f16};
use longwave_storage::{ColumnKind, Error, Segment};

use super::basis::digest_of_all;
use super::columns::{
    CENTROID, CLUSTER, CLUSTER_SIZE, KEY_CODE, PARAMETERS, SCALES, VALUE_CODE, VALUE_MEAN, scales_len,
};
use super::view::LadderView;
use crate::view::corrupt;

/// Checks the ladder's columns of `segment`: finite numbers, scales above 0, spreads and factors that are not negative,
/// counts that agree with the postings, bases that can be inverted and have the stored digest. A segment without a
/// ladder is sound.
///
/// Reads all of the columns but the sketches, in which every byte means something.
pub(crate) fn validate(segment: &Segment) -> Result<(), Error> {
    let Some(view) = LadderView::open(segment)? else { return Ok(()) };
    let mut bases = Vec::new();
    for head in 0..view.index().kv_heads() {
        bases.push(view.basis(head)?);
        check_clusters(segment, &view, head)?;
        let ladder = view.head(head)?;
        let (first, rows) = (view.index().first_cluster(head), head * ladder.rows());
        let (key, value) = (record_len(view.key_dim()), record_len(view.value_dim()));
        check_factors(segment, CENTROID, ladder.centroids, key, first)?;
        check_factors(segment, VALUE_MEAN, ladder.value_means, value, first)?;
        check_factors(segment, KEY_CODE, ladder.key_code_bytes(0..ladder.rows())?, key, rows)?;
        check_factors(segment, VALUE_CODE, ladder.value_code_bytes(0..ladder.rows())?, value, rows)?;
    }
    let digest = digest_of_all(&bases);
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
        // Scales, shape, middle; value scales, mean of all values; two scalars and two zeros.
        let (sound, expected) = if place < 4 * d || (6 * d..6 * d + 2 * v).contains(&place) {
            (number > 0.0, "a scale above 0")
        } else if place < 5 * d || (6 * d + 3 * v..len - 2).contains(&place) {
            (number >= 0.0, "a number of at least 0")
        } else if place >= len - 2 {
            (number == 0.0, "0")
        } else {
            (true, "a finite number")
        };
        if !(sound && number.is_finite()) {
            let at = (head * len + place) * 4;
            return Err(corrupt(segment, segment.column(SCALES)?, at, expected, number));
        }
    }
    Ok(())
}

fn check_clusters(segment: &Segment, view: &LadderView<'_>, head: usize) -> Result<(), Error> {
    let (index, ladder) = (view.index().head(head)?, view.head(head)?);
    for (cluster, (record, &count)) in
        ladder.clusters.chunks_exact(CLUSTER_SIZE).zip(index.counts).enumerate()
    {
        let at = (view.index().first_cluster(head) + cluster) * CLUSTER_SIZE;
        let wrong = |at, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            Err(corrupt(segment, segment.column(CLUSTER)?, at, expected, found))
        };
        let word = |at: usize| u16::from_le_bytes([record[at], record[at + 1]]);
        let expected = count.min(f32::from(u16::MAX));
        if f32::from(word(0)) != expected {
            return wrong(at, &expected, &word(0));
        }
        for place in [2, 4, 6] {
            let spread = bf16::from_bits(word(place));
            if !(spread.is_finite() && spread >= bf16::ZERO) {
                return wrong(at + place, &"a finite spread of at least 0", &spread);
            }
        }
    }
    Ok(())
}

/// The factors of records of `size` bytes, which begin with record `first` of the column.
fn check_factors(
    segment: &Segment,
    kind: ColumnKind,
    records: &[u8],
    size: usize,
    first: usize,
) -> Result<(), Error> {
    for (place, record) in records.chunks_exact(size).enumerate() {
        let factor = f16::from_le_bytes([record[size - 2], record[size - 1]]);
        if !(factor.is_finite() && factor >= f16::ZERO) {
            let (column, at) = (segment.column(kind)?, (first + place) * size + size - 2);
            return Err(corrupt(segment, column, at, "a finite factor of at least 0", factor));
        }
    }
    Ok(())
}
