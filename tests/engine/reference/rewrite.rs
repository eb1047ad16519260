//! Segments written anew with other bytes in them: checksums and all, as if they had been sealed so.

use longwave::LayerSegment;
use longwave::storage::{Backend, ColumnKind, NewColumn, write_segment};
use std::sync::Arc;

/// The bytes of all columns of a segment.
pub fn columns_of(segment: &LayerSegment) -> Vec<(ColumnKind, Vec<u8>)> {
    let stored = segment.segment();
    let bytes = |kind| stored.column(kind).unwrap().all().unwrap().to_vec();
    stored.columns().map(|info| (info.kind, bytes(info.kind))).collect()
}

/// Puts a segment with these columns, of the lengths that they had, in the place of `segment` on `backend`. Who has
/// opened it before goes on seeing what it was.
pub fn replace(backend: &Arc<dyn Backend>, segment: &LayerSegment, columns: &[(ColumnKind, Vec<u8>)]) {
    let stored = segment.segment();
    let infos = stored.columns().zip(columns);
    let columns: Vec<NewColumn<'_>> = infos
        .map(|(info, (kind, bytes))| {
            assert_eq!((info.kind, info.len), (*kind, bytes.len() as u64));
            NewColumn {
                kind: info.kind,
                name: &info.name,
                element_size: info.element_size,
                alignment: info.alignment,
                parts: vec![bytes],
            }
        })
        .collect();
    write_segment(backend.as_ref(), stored.path(), stored.header(), &columns).unwrap();
}
