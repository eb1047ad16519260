//! Byte layout of a segment file; `docs/format.md` draws it.

use std::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::prologue::Prologue;

pub(super) const MAGIC: &[u8; 8] = b"LWSEGMNT";

/// Version of segments with full rows.
pub(super) const VERSION_FULL: u16 = 1;
/// Version of segments whose rows are kept in another form, and the newest that this build reads.
pub(super) const VERSION_REDUCED: u16 = 2;

/// Bytes that one checksum covers; blocks count from the start of their column, and a column's last may be shorter.
pub const BLOCK_SIZE: usize = 4096;
/// Most columns of a segment.
pub const COLUMNS_MAX: usize = 64;
/// Longest name of a column, in bytes.
pub const COLUMN_NAME_MAX: usize = 24;
/// Most rows of a segment, per KV head.
pub const ROWS_MAX: u32 = 1 << 24;

/// The header as it lies on disk, at offset 0.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawHeader {
    pub prologue: Prologue,
    pub id: [u8; 16],
    pub identity: [u8; 32],
    pub prefix_hash: [u8; 32],
    pub first_position: u64,
    pub file_len: u64,
    pub rows: u32,
    pub layer: u32,
    pub kv_heads: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    pub element: u32,
    pub column_count: u32,
    pub block_size: u32,
    pub checksums_offset: u64,
    pub checksums_len: u64,
    pub checksums_checksum: u64,
    pub table_checksum: u64,
    pub reserved: u64,
    pub checksum: u64,
}

pub(super) const HEADER_SIZE: usize = size_of::<RawHeader>();
/// Where a reader finds the header's checksum.
pub(super) const CHECKSUM_AT: usize = offset_of!(RawHeader, checksum);

const _: () = {
    assert!(HEADER_SIZE == 192);
    assert!(offset_of!(RawHeader, id) == 16);
    assert!(offset_of!(RawHeader, identity) == 32);
    assert!(offset_of!(RawHeader, prefix_hash) == 64);
    assert!(offset_of!(RawHeader, first_position) == 96);
    assert!(offset_of!(RawHeader, file_len) == 104);
    assert!(offset_of!(RawHeader, rows) == 112);
    assert!(offset_of!(RawHeader, layer) == 116);
    assert!(offset_of!(RawHeader, kv_heads) == 120);
    assert!(offset_of!(RawHeader, key_dim) == 124);
    assert!(offset_of!(RawHeader, value_dim) == 128);
    assert!(offset_of!(RawHeader, element) == 132);
    assert!(offset_of!(RawHeader, column_count) == 136);
    assert!(offset_of!(RawHeader, block_size) == 140);
    assert!(offset_of!(RawHeader, checksums_offset) == 144);
    assert!(offset_of!(RawHeader, checksums_len) == 152);
    assert!(offset_of!(RawHeader, checksums_checksum) == 160);
    assert!(offset_of!(RawHeader, table_checksum) == 168);
    assert!(offset_of!(RawHeader, reserved) == 176);
    assert!(CHECKSUM_AT == 184);
};

/// One entry of the column table, which follows the header.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawColumn {
    pub kind: u32,
    pub element_size: u32,
    pub name: [u8; COLUMN_NAME_MAX],
    pub offset: u64,
    pub len: u64,
    pub alignment: u32,
    pub reserved: [u8; 12],
}

pub(super) const COLUMN_SIZE: usize = size_of::<RawColumn>();

const _: () = {
    assert!(COLUMN_SIZE == 64);
    assert!(offset_of!(RawColumn, element_size) == 4);
    assert!(offset_of!(RawColumn, name) == 8);
    assert!(offset_of!(RawColumn, offset) == 32);
    assert!(offset_of!(RawColumn, len) == 40);
    assert!(offset_of!(RawColumn, alignment) == 48);
    assert!(offset_of!(RawColumn, reserved) == 52);
};

/// Alignment of a column in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alignment {
    /// 64 bytes.
    CacheLine,
    /// 4096 bytes: a column of which single rows are read, so that a read touches as few pages as can be.
    Page,
}

impl Alignment {
    /// Bytes that an offset is a multiple of.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::CacheLine => 64,
            Self::Page => 4096,
        }
    }

    pub(super) const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            64 => Some(Self::CacheLine),
            4096 => Some(Self::Page),
            _ => None,
        }
    }
}

/// Which column this is. Kinds from [`ColumnKind::INDEX_FIRST`] on belong to the index and are opaque here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ColumnKind(pub u32);

impl ColumnKind {
    /// Keys, `[kv_heads, rows, key_dim]` in the geometry's element kind.
    pub const KEYS: Self = Self(1);
    /// Values, `[kv_heads, rows, value_dim]` in the geometry's element kind, in the order of the keys.
    pub const VALUES: Self = Self(2);
    /// Position of each row less the segment's first, u32 `[kv_heads, rows]`; of each head a permutation of
    /// `0..rows`.
    pub const POSITIONS: Self = Self(3);
    /// Keys in 8 bits, `[kv_heads, rows]` records of `key_dim` signed bytes and a factor (f32).
    pub const KEYS_8BIT: Self = Self(4);
    /// Values in 8 bits, `[kv_heads, rows]` records of `value_dim` signed bytes and a factor, in the order of the keys.
    pub const VALUES_8BIT: Self = Self(5);
    /// First kind that belongs to the index.
    pub const INDEX_FIRST: Self = Self(0x100);

    /// Name of a kind that is known here.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::KEYS => Some("keys"),
            Self::VALUES => Some("values"),
            Self::POSITIONS => Some("positions"),
            Self::KEYS_8BIT => Some("keys.8bit"),
            Self::VALUES_8BIT => Some("values.8bit"),
            _ => None,
        }
    }
}

/// The next multiple of `alignment` from `offset` on; `None` where that overflows.
pub(super) fn align_up(offset: u64, alignment: u64) -> Option<u64> {
    offset.checked_next_multiple_of(alignment)
}

/// Blocks of a column of `len` bytes.
pub(super) const fn block_count(len: u64) -> u64 {
    len.div_ceil(BLOCK_SIZE as u64)
}
