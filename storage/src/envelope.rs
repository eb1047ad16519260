//! Files that are written whole and replaced whole: a header that says how long the payload is and what its checksum
//! must be, then the payload, which ends the file.

use std::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::backend::Backend;
use crate::checksum::{hash128, header_checksum};
use crate::error::{Error, Result};
use crate::prologue::{Prologue, check_sum, read_header};

/// The header as it lies on disk.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawHeader {
    prologue: Prologue,
    payload_len: u64,
    payload_checksum: [u8; 16],
    checksum: u64,
}

/// Bytes before the payload.
pub(crate) const HEADER_SIZE: usize = size_of::<RawHeader>();

const _: () = {
    assert!(HEADER_SIZE == 48);
    assert!(offset_of!(RawHeader, payload_len) == 16);
    assert!(offset_of!(RawHeader, payload_checksum) == 24);
    assert!(offset_of!(RawHeader, checksum) == 40);
};

/// One kind of such a file.
pub(crate) struct Envelope {
    pub(crate) magic: &'static [u8; 8],
    /// What the file is, in messages.
    pub(crate) what: &'static str,
    /// Version that is written, and the newest that is read.
    pub(crate) version: u16,
}

impl Envelope {
    /// The bytes of a file with this payload.
    pub(crate) fn wrap(&self, payload: &[u8]) -> Vec<u8> {
        self.wrap_as(self.version, payload)
    }

    /// As [`Self::wrap`], for a payload that readers of this version understand.
    pub(crate) fn wrap_as(&self, version: u16, payload: &[u8]) -> Vec<u8> {
        let mut raw = RawHeader {
            prologue: Prologue::with_version(self.magic, version),
            payload_len: payload.len() as u64,
            payload_checksum: hash128(payload),
            checksum: 0,
        };
        raw.checksum = header_checksum(&raw);
        [bytemuck::bytes_of(&raw), payload].concat()
    }

    /// Reads the payload of the file at `path`, which has at most `limit` bytes, and its version. Nothing is allocated
    /// before the header, the limit and the file's length agree.
    pub(crate) fn read(&self, backend: &dyn Backend, path: &str, limit: u64) -> Result<(u16, Vec<u8>)> {
        let reader = backend.open_read(path)?;
        let what = self.what;
        let raw: RawHeader = read_header(path, reader.as_ref(), &format!("a {what} header"))?;
        let version = raw.prologue.check_up_to(path, self.magic, self.version)?;
        check_sum(path, 40, &format!("{what} header"), raw.checksum, header_checksum(&raw))?;
        if raw.payload_len > limit {
            return Err(Error::limit(format!("{path}: payload"), limit, raw.payload_len));
        }
        let (len, expected) = (reader.len()?, HEADER_SIZE as u64 + raw.payload_len);
        if len != expected {
            return Err(Error::corrupt(path, 16, format_args!("{expected} bytes in all"), len));
        }
        let mut payload = vec![0; usize::try_from(raw.payload_len).unwrap_or_default()];
        reader.read_exact_at(&mut payload, HEADER_SIZE as u64)?;
        let computed = hash128(&payload);
        if computed != raw.payload_checksum {
            let (stored, computed) =
                (u128::from_le_bytes(raw.payload_checksum), u128::from_le_bytes(computed));
            return Err(Error::corrupt(
                path,
                HEADER_SIZE as u64,
                format_args!("a payload with checksum {stored:#034x}"),
                format_args!("checksum {computed:#034x}"),
            ));
        }
        Ok((version, payload))
    }
}

/// Writes a file that is to be renamed over another; one that an earlier try left is removed. With `synced`, its
/// contents are durable when this returns, so that the rename cannot outlive them.
pub(crate) fn write_aside(backend: &dyn Backend, path: &str, bytes: &[u8], synced: bool) -> Result<()> {
    if backend.exists(path)? {
        backend.remove(path)?;
    }
    let mut writer = backend.create_new(path)?;
    writer.write_all(bytes)?;
    if synced { writer.sync() } else { Ok(()) }
}
