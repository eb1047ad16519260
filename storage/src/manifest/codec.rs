//! The manifest's bincode payload, in its envelope. Nothing else in the engine uses bincode.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};

use super::version1::Manifest1;
use super::{FORGETTING_STATE, Manifest};
use crate::backend::Backend;
use crate::envelope::{Envelope, HEADER_SIZE};
use crate::error::{Error, Result};
use crate::geometry::{ElementKind, Identity};

/// Version 2 brought logs that several contexts name, and cuts. Version 3 has the same payload, but rows may be missing
/// between those of the segments: it is written where the state says which.
const PLAIN_VERSION: u16 = 2;
const VERSION: u16 = 3;

const ENVELOPE: Envelope = Envelope { magic: b"LWMANIF\0", what: "manifest", version: VERSION };

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

/// Encodes a manifest, and makes sure that it can be read back before anything is replaced by it.
pub(super) fn encode(path: &str, manifest: &Manifest) -> Result<Vec<u8>> {
    manifest.validate().map_err(|what| Error::input(path, what))?;
    let payload =
        bincode::encode_to_vec(manifest, CONFIG).map_err(|error| Error::input(path, error.to_string()))?;
    if payload.len() > MANIFEST_SIZE_MAX {
        return Err(Error::limit("bytes of a manifest", MANIFEST_SIZE_MAX as u64, payload.len() as u64));
    }
    if decode::<Manifest>(path, &payload)? != *manifest {
        return Err(Error::input(path, "it does not read back as it was"));
    }
    let forgets = manifest.state.iter().any(|record| record.kind == FORGETTING_STATE);
    Ok(ENVELOPE.wrap_as(if forgets { VERSION } else { PLAIN_VERSION }, &payload))
}

pub(super) fn read(backend: &dyn Backend, path: &str) -> Result<Manifest> {
    let manifest = match ENVELOPE.read(backend, path, MANIFEST_SIZE_MAX as u64)? {
        (1, payload) => decode::<Manifest1>(path, &payload)?.into(),
        (_, payload) => decode::<Manifest>(path, &payload)?,
    };
    manifest
        .validate()
        .map_err(|what| Error::corrupt(path, HEADER_SIZE as u64, "a consistent manifest", what))?;
    Ok(manifest)
}

fn decode<M: bincode::Decode<()>>(path: &str, payload: &[u8]) -> Result<M> {
    let refuse = |found: String| Error::corrupt(path, HEADER_SIZE as u64, "a manifest", found);
    let (manifest, used) =
        bincode::decode_from_slice::<M, _>(payload, CONFIG).map_err(|error| refuse(error.to_string()))?;
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
        assert!(matches!(decode::<Manifest>("m", &payload), Err(Error::Corrupt { .. })));
        // A name within the limit, but longer than the payload.
        payload.truncate(24);
        payload.extend_from_slice(&(1_u64 << 20).to_le_bytes());
        assert!(matches!(decode::<Manifest>("m", &payload), Err(Error::Corrupt { .. })));
    }
}
