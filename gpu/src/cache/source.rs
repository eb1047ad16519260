//! Where caches read their blocks: the segments of a layer.

use super::device::RowSource;
use super::directory::{BlockId, RowKind, segment_key};
use crate::error::Error;
use crate::rows::{cluster_rows, listed_rows};
use longwave_query::{LayerSegment, Shape};
use longwave_storage::ColumnKind;
use std::sync::Arc;

/// Blocks of some segments of one layer.
#[derive(Debug)]
pub struct StoredRows {
    shape: Shape,
    kind: RowKind,
    segments: Vec<(u64, Arc<LayerSegment>)>,
}

fn failed(error: longwave_storage::Error) -> Error {
    Error::Rows(error.to_string())
}

impl StoredRows {
    /// Blocks of this kind.
    pub fn new(shape: Shape, kind: RowKind, segments: &[Arc<LayerSegment>]) -> StoredRows {
        let segments = segments.iter().map(|segment| (segment_key(segment), segment.clone())).collect();
        StoredRows { shape, kind, segments }
    }

    fn read_codes(
        &self,
        segment: &LayerSegment,
        head: usize,
        row: u32,
        (keys, values): (&mut [u16], &mut [u16]),
    ) -> Result<(), Error> {
        let ladder = segment.ladder().map_err(failed)?;
        let ladder = ladder.ok_or_else(|| Error::Rows("codes of a segment without a ladder".into()))?;
        let ladder = ladder.head(head).map_err(failed)?;
        let rows = [row];
        let codes = ladder.listed_key_codes(&rows).map_err(failed)?;
        ladder.check_key_codes(codes, &rows).map_err(failed)?;
        copy_row(codes, row as usize, keys);
        let codes = ladder.listed_value_codes(&rows).map_err(failed)?;
        ladder.check_value_codes(codes, &rows).map_err(failed)?;
        copy_row(codes, row as usize, values);
        Ok(())
    }
}

/// Copies row `row` of rows that are as long as `to`.
fn copy_row(rows: &[u8], row: usize, to: &mut [u16]) {
    let size = 2 * to.len();
    let (bytes, _) = rows[row * size..(row + 1) * size].as_chunks::<2>();
    to.iter_mut().zip(bytes).for_each(|(to, bytes)| *to = u16::from_le_bytes(*bytes));
}

impl RowSource for StoredRows {
    fn read(&self, block: BlockId, keys: &mut [u16], values: &mut [u16]) -> Result<(), Error> {
        let found = self.segments.iter().find(|(key, _)| *key == block.segment);
        let (_, segment) = found.ok_or_else(|| Error::Rows(format!("{block:?} is of no segment here")))?;
        let (head, number) = (block.kv_head as usize, block.number as usize);
        match self.kind {
            RowKind::Codes => self.read_codes(segment, head, block.number, (keys, values)),
            RowKind::Full => {
                let rows = [block.number];
                for (kind, to) in [(ColumnKind::KEYS, keys), (ColumnKind::VALUES, values)] {
                    copy_row(listed_rows(&self.shape, segment, (kind, head), &rows)?.as_bytes(), number, to);
                }
                Ok(())
            }
            RowKind::Clusters => {
                let index = segment.index().map_err(failed)?;
                let index =
                    index.ok_or_else(|| Error::Rows("clusters of a segment without an index".into()))?;
                let offsets = index.head(head).map_err(failed)?.offsets;
                let Some([first, end]) = offsets.get(number..number + 2) else {
                    return Err(Error::Rows(format!("{block:?} is no cluster of {}", offsets.len() - 1)));
                };
                let rows = *first as usize..*end as usize;
                let (from_keys, from_values) = cluster_rows(&self.shape, segment, head, rows)?;
                copy_row(from_keys.as_bytes(), 0, keys);
                copy_row(from_values.as_bytes(), 0, values);
                Ok(())
            }
        }
    }
}
