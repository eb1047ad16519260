//! Rows that a segment keeps in 8 bits.

use longwave_kernels::codec::{factor8, record8_len};
use longwave_storage::{Column, Error, RowForm, Segment};

use crate::view::corrupt;

/// Checks the factors of all rows that are kept in 8 bits; a segment that keeps none so is sound.
pub(crate) fn validate(segment: &Segment) -> Result<(), Error> {
    let geometry = segment.header().geometry;
    let Some(kinds) = RowForm::EightBits.columns().filter(|_| segment.row_form() == RowForm::EightBits)
    else {
        return Ok(());
    };
    for (kind, dim) in kinds.into_iter().zip([geometry.key_dim, geometry.value_dim]) {
        let column = segment.column(kind)?;
        let rows = column.len() / record8_len(dim as usize);
        checked8(segment, column, dim as usize, 0..rows, None)?;
    }
    Ok(())
}

/// The records of rows `rows`, counted through all heads, of a column of rows of `dim` elements in 8 bits; with `listed` only
/// the listed ones of them may be read. The factors of those that may be read are checked.
///
/// # Errors
/// [`Error::Corrupt`] when a block fails its checksum, and with the place of a factor that is
/// negative or not finite; [`Error::Range`] when there are no such rows.
pub fn checked8<'a>(
    segment: &'a Segment,
    column: Column<'a>,
    dim: usize,
    rows: std::ops::Range<usize>,
    listed: Option<&[u32]>,
) -> Result<&'a [u8], Error> {
    let size = record8_len(dim);
    let records = match listed {
        Some(list) => column.listed(size, rows.clone(), list)?,
        None => column.bytes(rows.start.saturating_mul(size)..rows.end.saturating_mul(size))?,
    };
    let check = |at: usize| {
        let factor = factor8(&records[at * size..][..size]);
        if factor.is_finite() && factor >= 0.0 {
            return Ok(());
        }
        let place = (rows.start + at) * size + dim;
        Err(corrupt(segment, column, place, "a finite factor of at least 0", factor))
    };
    match listed {
        Some(list) => list.iter().try_for_each(|&at| check(at as usize))?,
        None => (0..rows.len()).try_for_each(check)?,
    }
    Ok(records)
}
