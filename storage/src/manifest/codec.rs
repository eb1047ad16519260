//! The manifest's envelope and its bincode payload. Nothing else in the engine uses bincode.

use std::mem::{offset_of, size_of};

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bytemuck::{Pod, Zeroable};

use super::Manifest;
use crate::backend::Backend;
use crate::checksum::{hash128, header_checksum};
use crate::error::{Error, Result};
use crate::geometry::{ElementKind, Identity};
use crate::prologue::{Prologue, check_sum, read_header};

const MAGIC: &[u8; 8] = b"LWMANIF\0";

/// Most bytes of a manifest's payload, on disk and, container by container, in memory while it is decoded.
pub const MANIFEST_SIZE_MAX: usize = 64 << 20;

/// Little-endian and of fixed width, so that the payload can be drawn; nothing is allocated past the limit.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<MANIFEST_SIZE_MAX>> = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding()
    .with_limit::<MANIFEST_SIZE_MAX>();

impl bincode::Encode for Identity {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C> bincode::Decode<C> for Identity {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        bincode::Decode::decode(decoder).map(Self)
    }
}

/// Encoded as its code, as in segments, and not as the number of its variant.
impl bincode::Encode for ElementKind {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.code().encode(encoder)
    }
}

impl<C> bincode::Decode<C> for ElementKind {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let code: u32 = bincode::Decode::decode(decoder)?;
        Self::from_code(code).ok_or_else(|| DecodeError::OtherString(format!("element code {code}")))
    }
}

bincode::impl_borrow_decode!(Identity);
bincode::impl_borrow_decode!(ElementKind);

/// The envelope as it lies on disk; the payload follows and ends the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawHeader {
    prologue: Prologue,
    payload_len: u64,
    payload_checksum: [u8; 16],
    checksum: u64,
}

const HEADER_SIZE: usize = size_of::<RawHeader>();

const _: () = {
    assert!(HEADER_SIZE == 48);
    assert!(offset_of!(RawHeader, payload_len) == 16);
    assert!(offset_of!(RawHeader, payload_checksum) == 24);
    assert!(offset_of!(RawHeader, checksum) == 40);
};

/// Encodes a manifest, and makes sure that it can be read back before anything is replaced by it.
pub(super) fn encode(path: &str, manifest: &Manifest) -> Result<Vec<u8>> {
    manifest.validate().map_err(|what| Error::input(path, what))?;
    let payload =
        bincode::encode_to_vec(manifest, CONFIG).map_err(|error| Error::input(path, error.to_string()))?;
    if payload.len() > MANIFEST_SIZE_MAX {
        return Err(Error::limit("bytes of a manifest", MANIFEST_SIZE_MAX as u64, payload.len() as u64));
    }
    if decode(path, &payload)? != *manifest {
        return Err(Error::input(path, "it does not read back as it was"));
    }
    let mut raw = RawHeader {
        prologue: Prologue::new(MAGIC),
        payload_len: payload.len() as u64,
        payload_checksum: hash128(&payload),
        checksum: 0,
    };
    raw.checksum = header_checksum(&raw);
    Ok([bytemuck::bytes_of(&raw), &payload].concat())
}

pub(super) fn read(backend: &dyn Backend, path: &str) -> Result<Manifest> {
    let reader = backend.open_read(path)?;
    let raw: RawHeader = read_header(path, reader.as_ref(), "a manifest header")?;
    raw.prologue.check(path, MAGIC)?;
    check_sum(path, 40, "manifest header", raw.checksum, header_checksum(&raw))?;
    if raw.payload_len > MANIFEST_SIZE_MAX as u64 {
        return Err(Error::limit(format!("{path}: payload"), MANIFEST_SIZE_MAX as u64, raw.payload_len));
    }
    let (len, expected) = (reader.len()?, HEADER_SIZE as u64 + raw.payload_len);
    if len != expected {
        return Err(Error::corrupt(path, 16, format_args!("{expected} bytes in all"), len));
    }
    let mut payload = vec![0; usize::try_from(raw.payload_len).unwrap_or_default()];
    reader.read_exact_at(&mut payload, HEADER_SIZE as u64)?;
    let computed = hash128(&payload);
    if computed != raw.payload_checksum {
        let (stored, computed) = (u128::from_le_bytes(raw.payload_checksum), u128::from_le_bytes(computed));
        return Err(Error::corrupt(
            path,
            HEADER_SIZE as u64,
            format_args!("a payload with checksum {stored:#034x}"),
            format_args!("checksum {computed:#034x}"),
        ));
    }
    let manifest = decode(path, &payload)?;
    manifest
        .validate()
        .map_err(|what| Error::corrupt(path, HEADER_SIZE as u64, "a consistent manifest", what))?;
    Ok(manifest)
}

fn decode(path: &str, payload: &[u8]) -> Result<Manifest> {
    let refuse = |found: String| Error::corrupt(path, HEADER_SIZE as u64, "a manifest", found);
    let (manifest, used) = bincode::decode_from_slice::<Manifest, _>(payload, CONFIG)
        .map_err(|error| refuse(error.to_string()))?;
    if used != payload.len() {
        return Err(refuse(format!("{} bytes behind its end", payload.len() - used)));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_claims_more_than_it_has_is_refused_without_allocating() {
        // context_id, generation, then a name of 2^60 bytes.
        let mut payload = vec![0; 24];
        payload.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(matches!(decode("m", &payload), Err(Error::Corrupt { .. })));
        // A name within the limit, but longer than the payload.
        payload.truncate(24);
        payload.extend_from_slice(&(1_u64 << 20).to_le_bytes());
        assert!(matches!(decode("m", &payload), Err(Error::Corrupt { .. })));
    }
}
