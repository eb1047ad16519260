//! Rows of segments as a call on both sides reads them.

use crate::error::Error;
use longwave_index::IndexView;
use longwave_kernels::Rows;
use longwave_query::{LayerSegment, LayerView, Shape};
use longwave_storage::ColumnKind;
use std::ops::Range;

/// A segment whose summaries may stand for its rows.
pub(crate) struct Clustered<'v> {
    pub(crate) segment: &'v LayerSegment,
    pub(crate) index: IndexView<'v>,
}

impl<'v> Clustered<'v> {
    /// The segments that a plan for a query at `position` counts, in its order: those that end before the query's window, and
    /// have an index.
    pub(crate) fn of(view: &LayerView<'v>, position: u64) -> Result<Vec<Self>, longwave_storage::Error> {
        let last = (position + 1).saturating_sub(view.scoring.window.max(1));
        let mut clustered = Vec::new();
        for &segment in view.segments.iter().filter(|segment| segment.end() <= last) {
            if let Some(index) = segment.index()? {
                clustered.push(Clustered { segment, index });
            }
        }
        Ok(clustered)
    }

    pub(crate) fn is(&self, segment: &LayerSegment) -> bool {
        std::ptr::eq(self.segment, segment)
    }

    pub(crate) fn rows_of(
        &self,
        kv_head: usize,
        cluster: u32,
    ) -> Result<Range<usize>, longwave_storage::Error> {
        let offsets = self.index.head(kv_head)?.offsets;
        Ok(offsets[cluster as usize] as usize..offsets[cluster as usize + 1] as usize)
    }
}

/// Whether a query at `position` sees every row.
pub(crate) fn is_whole(view: &LayerView<'_>, position: u64) -> bool {
    let ends = view.segments.iter().map(|segment| segment.end());
    let ends = ends.chain(view.blocks.iter().map(|block| block.first_position + block.rows as u64));
    view.scoring.sliding_window.is_none() && ends.max().is_none_or(|end| end <= position + 1)
}

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
