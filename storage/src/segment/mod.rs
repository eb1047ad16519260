//! Segments: immutable files that hold the rows of one layer and one range of positions, and their index, as
//! columns.

mod ahead;
mod column;
mod form;
mod layout;
mod open;
mod pages;
mod verify;
mod write;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use parking_lot::Mutex;

use std::sync::Arc;

use crate::backend::{Backend, Region};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, Identity};
use crate::manifest::SegmentRecord;

pub use column::Column;
pub use form::{RowForm, UnknownRowForm};
pub use layout::{Alignment, BLOCK_SIZE, COLUMN_NAME_MAX, COLUMNS_MAX, ColumnKind, ROWS_MAX};
pub use write::{NewColumn, write_segment};

/// Checks what only the index understands: the contents of its columns. Called by `fsck`, and by whoever opens a
/// segment to search it.
pub type Validator = fn(&Segment) -> Result<()>;

/// What a segment says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Random identifier, the same in the manifest.
    pub id: [u8; 16],
    /// Model that the rows belong to.
    pub identity: Identity,
    /// Layer, from 0.
    pub layer: u32,
    /// Shape of the rows.
    pub geometry: Geometry,
    /// Position of the first row; the rows are those of `first_position..first_position + rows`.
    pub first_position: u64,
    /// Rows of each KV head.
    pub rows: u32,
    /// Chained hash of everything up to the last row, for sharing between contexts; zeros where it is not known.
    pub prefix_hash: [u8; 32],
}

impl SegmentHeader {
    /// Length that one of the columns known here must have, in bytes.
    fn known_len(&self, kind: ColumnKind) -> Option<u64> {
        match kind {
            ColumnKind::KEYS => Some(self.geometry.key_bytes(self.rows)),
            ColumnKind::VALUES => Some(self.geometry.value_bytes(self.rows)),
            ColumnKind::POSITIONS => Some(self.rows_of_all_heads() * 4),
            ColumnKind::KEYS_8BIT | ColumnKind::VALUES_8BIT => {
                self.known_element_size(kind).map(|size| self.rows_of_all_heads() * u64::from(size))
            }
            _ => None,
        }
    }

    /// Element size that one of the columns known here must have, in bytes.
    fn known_element_size(&self, kind: ColumnKind) -> Option<u32> {
        match kind {
            ColumnKind::KEYS | ColumnKind::VALUES => Some(self.geometry.element.size()),
            ColumnKind::POSITIONS => Some(4),
            ColumnKind::KEYS_8BIT => Some(RowForm::record_size(self.geometry.key_dim)),
            ColumnKind::VALUES_8BIT => Some(RowForm::record_size(self.geometry.value_dim)),
            _ => None,
        }
    }

    fn rows_of_all_heads(&self) -> u64 {
        u64::from(self.geometry.kv_heads) * u64::from(self.rows)
    }

    fn validate(&self) -> Result<()> {
        self.geometry.validate()?;
        if self.rows == 0 || self.rows > ROWS_MAX {
            return Err(Error::limit(
                "rows of a segment (at least 1)",
                u64::from(ROWS_MAX),
                u64::from(self.rows),
            ));
        }
        if self.first_position.checked_add(u64::from(self.rows)).is_none() {
            return Err(Error::limit(
                "first position of a segment",
                u64::MAX - u64::from(self.rows),
                self.first_position,
            ));
        }
        Ok(())
    }
}

/// What the one who opens a segment knows of it; a mismatch is an error.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The model.
    pub identity: Identity,
    /// The layer, where it is known.
    pub layer: Option<u32>,
    /// The shape, where it is known.
    pub geometry: Option<Geometry>,
    /// The manifest's record, where there is one: identifier, positions and file length must agree.
    pub record: Option<SegmentRecord>,
}

impl Expected {
    /// Expects a model and nothing else.
    pub fn of_model(identity: Identity) -> Self {
        Self { identity, layer: None, geometry: None, record: None }
    }
}

/// One column as the table of a segment describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColumnInfo {
    /// Which column.
    pub kind: ColumnKind,
    /// Its name in messages.
    pub name: String,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Bytes of one element; the length is a multiple of it.
    pub element_size: u32,
    /// Alignment of `offset`.
    pub alignment: Alignment,
    /// Checksummed blocks.
    pub blocks: u64,
}

/// An open segment. Opening reads and checks the header and the column table; the file is mapped when a column is
/// first touched, and each block verified when it is first touched.
#[derive(Debug)]
pub struct Segment {
    backend: Arc<dyn Backend>,
    path: String,
    header: SegmentHeader,
    file_len: u64,
    checksums: ChecksumColumn,
    /// Checksum in the header: a file of the same name that is mapped later must still have it.
    header_checksum: u64,
    columns: Vec<ColumnState>,
    form: RowForm,
    region: OnceLock<Region>,
    /// The file, mapped only so that it stays readable.
    held: OnceLock<Region>,
    /// Held while mapping, so that only one thread does.
    mapping: Mutex<()>,
    ahead: ahead::Ahead,
}

/// Where the block checksums lie: one u64 per block, the columns in table order.
#[derive(Clone, Copy, Debug)]
struct ChecksumColumn {
    offset: u64,
    len: u64,
    checksum: u64,
}

#[derive(Debug)]
struct ColumnState {
    info: ColumnInfo,
    /// Where the column lies in the mapping; checked against the file's length when the segment was opened.
    start: usize,
    end: usize,
    /// Index of its first block's checksum.
    first_block: usize,
    /// One bit per block that has been verified.
    verified: Box<[AtomicU64]>,
    /// Blocks that have not: zero means that no bit need be looked at.
    unverified: AtomicUsize,
    /// Lists that were found in memory since one was not.
    in_memory: AtomicU32,
}

impl Segment {
    /// What the segment says of itself.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// How it keeps its rows.
    pub fn row_form(&self) -> RowForm {
        self.form
    }

    /// Path in the store.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The columns, in the order of the file.
    pub fn columns(&self) -> impl Iterator<Item = &ColumnInfo> {
        self.columns.iter().map(|column| &column.info)
    }

    /// Whether there is a column of this kind.
    pub fn has_column(&self, kind: ColumnKind) -> bool {
        self.columns.iter().any(|column| column.info.kind == kind)
    }

    /// Whether the file is mapped.
    pub fn is_mapped(&self) -> bool {
        self.region.get().is_some()
    }
}
