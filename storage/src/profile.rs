//! The profile of a model: what its queries look like, learnt in any of the store's contexts. Advice for the index of
//! the next context, nothing that an answer depends on: one that cannot be read is done without.

use crate::backend::Backend;
use crate::envelope::{Envelope, HEADER_SIZE, write_aside};
use crate::error::{Error, Result};
use crate::geometry::Identity;
use crate::manifest::Durability;
use crate::names::{PROFILES_DIR, profile_path};
use crate::prologue::VERSION_NEWEST;

const ENVELOPE: Envelope = Envelope { magic: b"LWPROFIL", what: "profile", version: VERSION_NEWEST };

/// Most bytes of a profile's payload. A model that would need more has none.
pub const PROFILE_SIZE_MAX: u64 = 512 << 20;

/// Bytes of the payload before the layers.
const HEAD: usize = 48;
/// Bytes of a layer before its moments.
const LAYER_HEAD: u64 = 8;

/// Whose profile it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProfileShape {
    /// The model.
    pub identity: Identity,
    /// Layers of the model.
    pub layers: u32,
    /// KV heads of a layer.
    pub kv_heads: u32,
    /// Elements of a query.
    pub key_dim: u32,
}

/// What is known of one layer's queries.
#[derive(Clone, PartialEq, Debug)]
pub struct ProfileLayer {
    /// The layer.
    pub layer: u32,
    /// Positions that count; at least 1.
    pub positions: u32,
    /// Mean of `q · qᵀ` over the positions and the query heads of each KV head, `q` not scaled: the upper triangles row
    /// by row, `[kv_heads, key_dim (key_dim + 1) / 2]`.
    pub moments: Vec<f32>,
}

/// The second moments of a model's queries.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// Whose profile it is.
    pub shape: ProfileShape,
    /// The layers of which queries are known, rising.
    pub layers: Vec<ProfileLayer>,
}

impl ProfileShape {
    /// Elements of the upper triangle of one head's moment.
    pub fn triangle(&self) -> u64 {
        let dim = u64::from(self.key_dim);
        dim * (dim + 1) / 2
    }

    /// Most bytes that the payload of such a profile has; `None` if that is more than any may have.
    pub fn payload_max(&self) -> Option<u64> {
        let layers = self.layer_bytes()?.checked_mul(u64::from(self.layers))?;
        layers.checked_add(HEAD as u64).filter(|bytes| *bytes <= PROFILE_SIZE_MAX)
    }

    fn layer_bytes(&self) -> Option<u64> {
        self.triangle().checked_mul(u64::from(self.kv_heads))?.checked_mul(4)?.checked_add(LAYER_HEAD)
    }
}

/// Replaces the profile of a model: written aside, synced, renamed over the old one, so that what is found is always
/// one that was written whole. Of several that write at the same time the last one wins. `writer` names no other writer
/// that may be alive: each has its own file to write aside.
///
/// # Errors
/// [`Error::Input`] for a profile that would not be read back; otherwise what the backend reports.
pub fn write_profile(
    backend: &dyn Backend,
    profile: &Profile,
    writer: &[u8; 16],
    durability: Durability,
) -> Result<()> {
    let path = profile_path(&profile.shape.identity);
    let payload = encode(profile);
    match decode(&path, &payload) {
        Ok(read) if read == *profile => {}
        Ok(_) => return Err(Error::input(&path, "it does not read back as it was")),
        Err(error) => return Err(Error::input(&path, error.to_string())),
    }
    backend.create_dir_all(PROFILES_DIR)?;
    let aside = aside(&profile.shape.identity, writer);
    // Other contexts read it, whatever this one's commits ask for: it is never renamed before it is durable.
    write_aside(backend, &aside, &ENVELOPE.wrap(&payload), true)?;
    backend.rename(&aside, &path)?;
    if durability == Durability::Strict { backend.sync_dir(PROFILES_DIR) } else { Ok(()) }
}

/// Reads the profile of a model; `None` where there is none yet.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Version`], [`Error::ByteOrder`]; [`Error::Identity`] if it is another model's;
/// [`Error::Limit`] if it is larger than that of this model can be.
pub fn read_profile(backend: &dyn Backend, shape: &ProfileShape) -> Result<Option<Profile>> {
    let path = profile_path(&shape.identity);
    let limit = shape.payload_max().unwrap_or(PROFILE_SIZE_MAX);
    let (_, payload) = match ENVELOPE.read(backend, &path, limit) {
        Err(Error::Missing { .. }) => return Ok(None),
        payload => payload?,
    };
    let profile = decode(&path, &payload)?;
    let found = profile.shape;
    if found.identity != shape.identity {
        let (expected, found) = (shape.identity, found.identity);
        return Err(Error::Identity { file: path, expected, found });
    }
    if found != *shape {
        return Err(corrupt(&path, 32, format_args!("{shape:?}"), format_args!("{found:?}")));
    }
    Ok(Some(profile))
}

/// Removes what this writer's process left when it ended while it wrote a profile.
///
/// # Errors
/// What the backend reports.
pub fn remove_unfinished_profile(
    backend: &dyn Backend,
    identity: &Identity,
    writer: &[u8; 16],
) -> Result<()> {
    let aside = aside(identity, writer);
    if backend.exists(&aside)? { backend.remove(&aside) } else { Ok(()) }
}

/// Reads a profile of any model for [`check`](crate::check), and gives its length.
pub(crate) fn check_profile(backend: &dyn Backend, path: &str) -> Result<u64> {
    let (_, payload) = ENVELOPE.read(backend, path, PROFILE_SIZE_MAX)?;
    let found = decode(path, &payload)?.shape.identity;
    let expected = profile_path(&found);
    if path != expected {
        return Err(corrupt(path, 0, format_args!("the profile that belongs there"), expected));
    }
    Ok((HEADER_SIZE + payload.len()) as u64)
}

fn aside(identity: &Identity, writer: &[u8; 16]) -> String {
    let writer: String = writer.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}.{writer}.new", profile_path(identity))
}

fn encode(profile: &Profile) -> Vec<u8> {
    let Profile { shape, layers } = profile;
    let mut bytes = shape.identity.0.to_vec();
    let count = u32::try_from(layers.len()).unwrap_or(u32::MAX);
    for number in [shape.layers, shape.kv_heads, shape.key_dim, count] {
        bytes.extend(number.to_le_bytes());
    }
    for layer in layers {
        bytes.extend(layer.layer.to_le_bytes());
        bytes.extend(layer.positions.to_le_bytes());
        bytes.extend(layer.moments.iter().flat_map(|x| x.to_le_bytes()));
    }
    bytes
}

/// A mismatch at an offset in the payload.
fn corrupt(path: &str, at: u64, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::corrupt(path, HEADER_SIZE as u64 + at, expected, found)
}

/// Every length follows from the shape, and the payload must have just that.
fn decode(path: &str, payload: &[u8]) -> Result<Profile> {
    let Some((head, rest)) = payload.split_first_chunk::<HEAD>() else {
        let found = format_args!("{}", payload.len());
        return Err(corrupt(path, 0, format_args!("{HEAD} bytes or more"), found));
    };
    let (identity, numbers) = head.split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
    let mut numbers = numbers.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    let mut number = || numbers.next().unwrap_or_default();
    let shape = ProfileShape {
        identity: Identity(*identity),
        layers: number(),
        kv_heads: number(),
        key_dim: number(),
    };
    let count = number();
    if shape.payload_max().is_none() || shape.kv_heads == 0 || shape.key_dim == 0 {
        return Err(corrupt(path, 32, "the shape of a profile", format_args!("{shape:?}")));
    }
    let layer_bytes = shape.layer_bytes().unwrap_or(u64::MAX);
    let expected = layer_bytes.checked_mul(u64::from(count));
    if count > shape.layers || expected != Some(rest.len() as u64) {
        let expected = format_args!("{count} of {} layers of {layer_bytes} bytes", shape.layers);
        return Err(corrupt(path, 44, expected, format_args!("{} bytes", rest.len())));
    }
    let mut layers: Vec<ProfileLayer> = Vec::with_capacity(count as usize);
    for (index, record) in (0..).zip(rest.chunks_exact(usize::try_from(layer_bytes).unwrap_or(usize::MAX))) {
        let at = HEAD as u64 + index * layer_bytes;
        let least = layers.last().map_or(0, |last| last.layer + 1);
        let layer = decode_layer(path, at, record, &shape)?;
        if !(least..shape.layers).contains(&layer.layer) {
            let expected = format_args!("a layer from {least} to below {}", shape.layers);
            return Err(corrupt(path, at, expected, layer.layer));
        }
        layers.push(layer);
    }
    Ok(Profile { shape, layers })
}

fn decode_layer(path: &str, at: u64, record: &[u8], shape: &ProfileShape) -> Result<ProfileLayer> {
    let mut words = record.as_chunks::<4>().0.iter().copied();
    let mut number = || words.next().map_or(0, u32::from_le_bytes);
    let (layer, positions) = (number(), number());
    let moments: Vec<f32> = words.map(f32::from_le_bytes).collect();
    if positions == 0 {
        return Err(corrupt(path, at + 4, "1 position or more", positions));
    }
    if let Some((i, found)) = (0_u64..).zip(&moments).find(|(_, x)| !x.is_finite()) {
        return Err(corrupt(path, at + LAYER_HEAD + 4 * i, "a finite number", found));
    }
    // A mean of squares is not negative. The diagonal lies where the rows of a triangle begin.
    let triangle = usize::try_from(shape.triangle()).unwrap_or(usize::MAX);
    for (head, moment) in (0_u64..).zip(moments.chunks_exact(triangle)) {
        let mut start = 0;
        for row in 0..shape.key_dim as usize {
            if let Some(found) = moment.get(start).filter(|x| **x < 0.0) {
                let i = head * triangle as u64 + start as u64;
                return Err(corrupt(path, at + LAYER_HEAD + 4 * i, "a mean of squares", found));
            }
            start += shape.key_dim as usize - row;
        }
    }
    Ok(ProfileLayer { layer, positions, moments })
}
