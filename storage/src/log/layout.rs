//! Byte layout of a log; `docs/format.md` draws it.

use std::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::backend::{Backend, FileReader};
use crate::checksum::{hash64, header_checksum, header_checksum_seeded};
use crate::error::{Error, Result};
use crate::geometry::Identity;
use crate::prologue::{Prologue, check_sum, read_header};

const MAGIC: &[u8; 8] = b"LWLOG\0\0\0";
const RECORD_MAGIC: [u8; 4] = *b"LWRC";

/// The file header as it lies on disk, at offset 0.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawHeader {
    prologue: Prologue,
    log_id: [u8; 16],
    identity: [u8; 32],
    reserved: [u8; 24],
    checksum: u64,
}

/// Length of a log that holds nothing.
pub(crate) const LOG_HEADER_SIZE: u64 = size_of::<RawHeader>() as u64;

const _: () = {
    assert!(size_of::<RawHeader>() == 96);
    assert!(offset_of!(RawHeader, log_id) == 16);
    assert!(offset_of!(RawHeader, identity) == 32);
    assert!(offset_of!(RawHeader, reserved) == 64);
    assert!(offset_of!(RawHeader, checksum) == 88);
};

/// Whose log this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogHeader {
    /// Random identifier, the same in the manifest.
    pub log_id: [u8; 16],
    /// Model that the rows in it belong to.
    pub identity: Identity,
}

impl LogHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut raw = RawHeader {
            prologue: Prologue::new(MAGIC),
            log_id: self.log_id,
            identity: self.identity.0,
            reserved: [0; 24],
            checksum: 0,
        };
        raw.checksum = header_checksum(&raw);
        bytemuck::bytes_of(&raw).to_vec()
    }

    /// The header of the log at `path`, whosever it is.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::Version`], [`Error::ByteOrder`].
    pub fn read(backend: &dyn Backend, path: &str) -> Result<Self> {
        Self::read_from(path, backend.open_read(path)?.as_ref())
    }

    fn read_from(path: &str, reader: &dyn FileReader) -> Result<Self> {
        let raw: RawHeader = read_header(path, reader, "a log header")?;
        raw.prologue.check(path, MAGIC)?;
        check_sum(path, 88, "log header", raw.checksum, header_checksum(&raw))?;
        if raw.reserved != [0; 24] {
            return Err(Error::corrupt(path, 64, "reserved bytes of zero", "others"));
        }
        Ok(Self { log_id: raw.log_id, identity: Identity(raw.identity) })
    }

    /// Reads the header of a log and compares it with `self`.
    pub(super) fn check(&self, path: &str, reader: &dyn FileReader) -> Result<()> {
        let Self { log_id, identity: found } = Self::read_from(path, reader)?;
        if found != self.identity {
            return Err(Error::Identity { file: path.to_owned(), expected: self.identity, found });
        }
        if log_id != self.log_id {
            let (expected, found) = (u128::from_be_bytes(self.log_id), u128::from_be_bytes(log_id));
            return Err(Error::corrupt(
                path,
                16,
                format_args!("log {expected:032x}"),
                format_args!("log {found:032x}"),
            ));
        }
        Ok(())
    }

    /// Seed of the checksum of a record at `offset`. A record of another log, or one left over at another place,
    /// does not pass.
    fn seed(&self, offset: u64) -> u64 {
        hash64(&self.log_id) ^ offset
    }
}

/// What a record holds. Their payloads are the caller's; `docs/format.md` says what the engine puts there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecordKind {
    /// Keys and values of one layer.
    Rows,
    /// Token ids.
    Tokens,
    /// Observed queries of one layer.
    Queries,
    /// Token ids of a context, in the store's index of prefixes.
    Prefix,
}

impl RecordKind {
    /// Code on disk: 1, 2, 3, 4.
    pub const fn code(self) -> u16 {
        match self {
            Self::Rows => 1,
            Self::Tokens => 2,
            Self::Queries => 3,
            Self::Prefix => 4,
        }
    }

    /// The kind with this code.
    pub const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Rows),
            2 => Some(Self::Tokens),
            3 => Some(Self::Queries),
            4 => Some(Self::Prefix),
            _ => None,
        }
    }
}

/// What a record says of its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// What it holds.
    pub kind: RecordKind,
    /// Layer, from 0; 0 where the kind has none.
    pub layer: u32,
    /// Position of the first row, token or query.
    pub first_position: u64,
    /// Rows, tokens or queries.
    pub count: u32,
}

/// A record's header as it lies on disk; the payload follows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawRecord {
    magic: [u8; 4],
    kind: u16,
    reserved: u16,
    layer: u32,
    count: u32,
    first_position: u64,
    payload_len: u32,
    reserved_tail: u32,
    payload_checksum: u64,
    checksum: u64,
}

pub(super) const RECORD_SIZE: usize = size_of::<RawRecord>();

const _: () = {
    assert!(RECORD_SIZE == 48);
    assert!(offset_of!(RawRecord, kind) == 4);
    assert!(offset_of!(RawRecord, reserved) == 6);
    assert!(offset_of!(RawRecord, layer) == 8);
    assert!(offset_of!(RawRecord, count) == 12);
    assert!(offset_of!(RawRecord, first_position) == 16);
    assert!(offset_of!(RawRecord, payload_len) == 24);
    assert!(offset_of!(RawRecord, reserved_tail) == 28);
    assert!(offset_of!(RawRecord, payload_checksum) == 32);
    assert!(offset_of!(RawRecord, checksum) == 40);
};

impl RawRecord {
    pub fn new(
        log: &LogHeader,
        offset: u64,
        header: &RecordHeader,
        payload: &[u8],
        payload_len: u32,
    ) -> Self {
        let mut raw = Self {
            magic: RECORD_MAGIC,
            kind: header.kind.code(),
            reserved: 0,
            layer: header.layer,
            count: header.count,
            first_position: header.first_position,
            payload_len,
            reserved_tail: 0,
            payload_checksum: hash64(payload),
            checksum: 0,
        };
        raw.checksum = raw.computed_checksum(log, offset);
        raw
    }

    fn computed_checksum(&self, log: &LogHeader, offset: u64) -> u64 {
        header_checksum_seeded(self, log.seed(offset))
    }

    /// Checks the header of the record at `offset`; returns it and the length of its payload, which may be believed.
    pub fn check(&self, path: &str, log: &LogHeader, offset: u64) -> Result<(RecordHeader, u32)> {
        if self.magic != RECORD_MAGIC {
            return Err(Error::corrupt(
                path,
                offset,
                "a record",
                format_args!("{}", self.magic.escape_ascii()),
            ));
        }
        check_sum(path, offset + 40, "record header", self.checksum, self.computed_checksum(log, offset))?;
        let kind = RecordKind::from_code(self.kind)
            .ok_or_else(|| Error::corrupt(path, offset + 4, "a record kind of 1 to 4", self.kind))?;
        if (self.reserved, self.reserved_tail) != (0, 0) {
            return Err(Error::corrupt(path, offset, "reserved fields of zero", "others"));
        }
        let Self { layer, first_position, count, payload_len, .. } = *self;
        Ok((RecordHeader { kind, layer, first_position, count }, payload_len))
    }

    pub fn check_payload(&self, path: &str, offset: u64, payload: &[u8]) -> Result<()> {
        check_sum(path, offset + RECORD_SIZE as u64, "record payload", self.payload_checksum, hash64(payload))
    }
}
