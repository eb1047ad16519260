//! Rows of segments as a call on both sides reads them.

use crate::error::Error;
use longwave_kernels::Rows;
use longwave_query::{LayerSegment, Shape};
use longwave_storage::ColumnKind;
use std::ops::Range;

/// Keys and values of some rows of a KV head, in stored order.
pub(crate) fn cluster_rows<'v>(
    shape: &Shape,
    segment: &'v LayerSegment,
    kv_head: usize,
    rows: Range<usize>,
) -> Result<(Rows<'v>, Rows<'v>), Error> {
    let read = |kind, bytes: usize| {
        let base = kv_head * segment.rows();
        let failed = |error: longwave_storage::Error| Error::Rows(error.to_string());
        let column = segment.segment().column(kind).map_err(failed)?;
        let found = column.bytes((base + rows.start) * bytes..(base + rows.end) * bytes).map_err(failed)?;
        Rows::from_bytes(shape.dtype, found)
            .ok_or_else(|| Error::Rows(format!("{kind:?}: {} bytes at an odd address", found.len())))
    };
    Ok((read(ColumnKind::KEYS, shape.key_bytes())?, read(ColumnKind::VALUES, shape.value_bytes())?))
}

/// All keys, or values, of a KV head, of which the listed rows may be read.
pub(crate) fn listed_rows<'v>(
    shape: &Shape,
    segment: &'v LayerSegment,
    (kind, kv_head): (ColumnKind, usize),
    rows: &[u32],
) -> Result<Rows<'v>, Error> {
    let bytes = if kind == ColumnKind::KEYS { shape.key_bytes() } else { shape.value_bytes() };
    let failed = |error: longwave_storage::Error| Error::Rows(error.to_string());
    let column = segment.segment().column(kind).map_err(failed)?;
    let base = kv_head * segment.rows();
    let found = column.listed(bytes, base..base + segment.rows(), rows).map_err(failed)?;
    Rows::from_bytes(shape.dtype, found)
        .ok_or_else(|| Error::Rows(format!("{kind:?}: {} bytes at an odd address", found.len())))
}
