//! The validator that opening and `fsck` call: what the index promises beyond lengths and offsets.

use longwave_kernels::Rows;
use longwave_storage::{ColumnKind, Error, Segment};

use crate::columns::{CENTROID, COUNT, KEY_SPREAD, VALUE_MEAN, VALUE_SPREAD};
use crate::view::{HeadIndex, IndexView, corrupt};

/// Checks the index columns of `segment` against each other and against the rows: parameters of a known version, postings
/// that ascend from 0 to the rows, counts that agree with them, finite summaries, spreads that are not negative, and
/// positions that are a permutation, ascending inside each cluster. A segment without an index is sound.
///
/// If there is a ladder, its numbers must be finite, its scales positive, its factors and spreads not negative, its counts
/// those of the postings, its bases invertible and of the stored digest.
///
/// A segment that keeps rows in 8 bits must have factors that are finite and not negative, and one that keeps their codes
/// alone a ladder.
///
/// Reads the index, the positions, the codes and rows in 8 bits, not the keys and values in full. Queries do less of it before their first
/// use of a segment, see [`IndexView::validated`] and [`LadderView::validated`](crate::ladder::LadderView::validated).
///
/// # Errors
/// What [`IndexView::open`] returns; [`Error::Corrupt`] with the column and the offset of the first fault.
pub fn validate(segment: &Segment) -> Result<(), Error> {
    IndexView::validated(segment)?;
    crate::rows8::validate(segment)?;
    crate::ladder::validate(segment)
}

/// Checks the index alone.
pub(crate) fn check_index(segment: &Segment, view: &IndexView<'_>) -> Result<(), Error> {
    for (head, index) in view.heads().enumerate() {
        let first = view.first_cluster(head);
        check_counts(segment, &index, first)?;
        check_spreads(segment, KEY_SPREAD, index.key_spread, first)?;
        check_spreads(segment, VALUE_SPREAD, index.value_spread, first)?;
        check_finite(segment, CENTROID, index.centroids, first * index.centroids.len() / index.clusters())?;
        check_finite(
            segment,
            VALUE_MEAN,
            index.value_means,
            first * index.value_means.len() / index.clusters(),
        )?;
        check_positions(segment, &index, head, view.rows())?;
    }
    Ok(())
}

fn check_counts(segment: &Segment, index: &HeadIndex<'_>, first: usize) -> Result<(), Error> {
    for (cluster, (bounds, &count)) in index.offsets.windows(2).zip(index.counts).enumerate() {
        if (bounds[1] - bounds[0]) as f32 != count {
            return Err(corrupt(
                segment,
                segment.column(COUNT)?,
                (first + cluster) * 4,
                bounds[1] - bounds[0],
                count,
            ));
        }
    }
    Ok(())
}

fn check_spreads(segment: &Segment, kind: ColumnKind, spreads: &[f32], first: usize) -> Result<(), Error> {
    match spreads.iter().position(|spread| !spread.is_finite() || *spread < 0.0) {
        None => Ok(()),
        Some(at) => {
            let expected = "a finite spread of at least 0";
            Err(corrupt(segment, segment.column(kind)?, (first + at) * 4, expected, spreads[at]))
        }
    }
}

fn check_finite(segment: &Segment, kind: ColumnKind, rows: Rows<'_>, first: usize) -> Result<(), Error> {
    let fault = match rows {
        Rows::F16(elements) => elements.iter().position(|x| !x.is_finite()),
        Rows::Bf16(elements) => elements.iter().position(|x| !x.is_finite()),
        Rows::F32(elements) => elements.iter().position(|x| !x.is_finite()),
    };
    match fault {
        None => Ok(()),
        Some(at) => {
            let offset = (first + at) * rows.dtype().size_of();
            Err(corrupt(segment, segment.column(kind)?, offset, "a finite number", rows.get(at)))
        }
    }
}

fn check_positions(segment: &Segment, index: &HeadIndex<'_>, head: usize, rows: usize) -> Result<(), Error> {
    let column = segment.column(ColumnKind::POSITIONS)?;
    let start = head * rows * 4;
    // Storage has checked the length of this column when it opened the segment; `bytes` checks the range again.
    let (positions, _) = column.bytes(start..start + rows * 4)?.as_chunks::<4>();
    let position = |row: usize| u32::from_le_bytes(positions[row]);
    let wrong =
        |row: usize, expected: &str| Err(corrupt(segment, column, start + row * 4, expected, position(row)));

    let mut seen = vec![false; rows];
    for bounds in index.offsets.windows(2) {
        for row in bounds[0] as usize..bounds[1] as usize {
            match seen.get_mut(position(row) as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return wrong(row, "a position that did not come before"),
                None => return wrong(row, "a position of the segment"),
            }
            if row > bounds[0] as usize && position(row - 1) >= position(row) {
                return wrong(row, "a position above the one before it in the cluster");
            }
        }
    }
    Ok(())
}
