//! The manifest of a context: what of all the bytes on disk counts. Replacing it is the commit.

mod codec;
mod validate;

use bincode::{Decode, Encode};

use crate::backend::Backend;
use crate::envelope::write_aside;
use crate::error::Result;
use crate::geometry::{ElementKind, Geometry, Identity};
use crate::names::{MANIFEST_FILE, MANIFEST_NEW_FILE, SEGMENTS_DIR, parent};

pub use codec::MANIFEST_SIZE_MAX;

/// Everything that a commit of one context consists of. The order of the fields, here and in the records below, is
/// the order on disk.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct Manifest {
    /// Random identifier of the context.
    pub context_id: [u8; 16],
    /// Number of this commit; each is greater than the one before.
    pub generation: u64,
    /// Name of the context, the same as that of its directory.
    pub name: String,
    /// The model that the context belongs to.
    pub model: ModelRecord,
    /// How the context is cut into segments and clusters.
    pub settings: SettingsRecord,
    /// One per layer of the model.
    pub layers: Vec<LayerRecord>,
    /// The log of unsealed rows, once there is one.
    pub row_log: Option<LogRecord>,
    /// The log of token ids and observed queries, once there is one.
    pub meta_log: Option<LogRecord>,
    /// Token ids known of the context; 0 if it was never told any.
    pub token_count: u64,
    /// Further state of the context, each piece versioned by its owner.
    pub state: Vec<StateRecord>,
}

/// The model, as far as attention is concerned.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct ModelRecord {
    /// Digest of all that makes its rows useless to another model.
    pub identity: Identity,
    /// Digest of the weights, to name what differs.
    pub weights: [u8; 32],
    /// Digest of the tokenizer, to name what differs.
    pub tokenizer: [u8; 32],
    /// What turns positions into keys, as text.
    pub rope: String,
    /// Layers.
    pub layers: u32,
    /// Query heads of a layer; a multiple of `kv_heads`.
    pub query_heads: u32,
    /// KV heads of a layer.
    pub kv_heads: u32,
    /// Elements of a key.
    pub key_dim: u32,
    /// Elements of a value.
    pub value_dim: u32,
    /// Number format of keys and values.
    pub element: ElementKind,
    /// Factor of the softmax's argument.
    pub scale: f32,
    /// Soft-cap of the logits.
    pub softcap: Option<f32>,
}

impl ModelRecord {
    /// Shape of the rows of a layer.
    pub fn geometry(&self) -> Geometry {
        let Self { kv_heads, key_dim, value_dim, element, .. } = *self;
        Geometry { kv_heads, key_dim, value_dim, element }
    }
}

/// How a context is cut into segments and clusters, fixed when it is created.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct SettingsRecord {
    /// First tokens that are always exact.
    pub sinks: u32,
    /// Latest tokens that are always exact.
    pub window: u32,
    /// Rows of a segment in bulk ingestion.
    pub bulk_segment_rows: u32,
    /// Rows of a segment in decoding.
    pub decode_segment_rows: u32,
    /// An append of at least this many rows is bulk ingestion.
    pub bulk_append_rows: u32,
    /// Query positions kept per layer as a sample.
    pub sample_positions: u32,
    /// Mean size of a cluster.
    pub tokens_per_cluster: u32,
    /// Iterations of k-means.
    pub iterations: u32,
    /// Clusters over this many times the mean size are split.
    pub split_factor: Option<f32>,
    /// Seed of the clustering.
    pub seed: u64,
    /// Whether segments hold a resolution ladder beside the clusters.
    pub ladder: bool,
    /// Observed positions from which on segments that were built without any are built again; never, if there is none.
    pub rebuild_positions: Option<u32>,
}

/// One layer of a context.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct LayerRecord {
    /// How the layer attends.
    pub kind: LayerKind,
    /// Learned sink logits, one per query head, or none.
    pub sink_logits: Vec<f32>,
    /// Live segments, by ascending position, without overlap.
    pub segments: Vec<SegmentRecord>,
    /// Rows of the layer, sealed or not.
    pub length: u64,
}

/// How a layer attends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum LayerKind {
    /// Clustered: budgets apply.
    Clustered,
    /// Never clustered; always exact.
    Exact,
    /// Never clustered; only the latest tokens are seen.
    Sliding {
        /// How many.
        window: u64,
    },
    /// Keeps no rows at all.
    Absent,
}

/// A live segment.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct SegmentRecord {
    /// Identifier, the same in the segment's header.
    pub id: [u8; 16],
    /// File name in the store's directory of segments.
    pub file: String,
    /// Position of the first row.
    pub first_position: u64,
    /// Rows of each KV head.
    pub rows: u32,
    /// Length of the file in bytes.
    pub file_len: u64,
}

/// A log, as far as it counts.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LogRecord {
    /// Identifier, the same in the log's header.
    pub id: [u8; 16],
    /// File name in the context's directory.
    pub file: String,
    /// Bytes that count, the log's header included.
    pub len: u64,
}

/// State that storage carries without knowing it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct StateRecord {
    /// What it is.
    pub kind: u32,
    /// Version of its encoding.
    pub version: u32,
    /// The state.
    pub bytes: Vec<u8>,
}

/// What a commit outlives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The death of the process. After a power loss the context may be unreadable.
    None,
    /// Also a power loss, though that may bring back the commit before: everything that the manifest names is on
    /// the device before the manifest is replaced, but the replacement itself is not waited for.
    Flushed,
    /// Also a power loss: the replacement is on the device when the commit returns.
    Strict,
}

/// Replaces the manifest in the context's directory `dir`: written aside, synced, renamed over the old one. Segments
/// named by it must have been written; for anything but [`Durability::None`] the logs named by it must have been
/// synced up to the lengths named.
///
/// # Errors
/// [`Error::Input`](crate::Error::Input) if the manifest breaks a rule that reading it would check; otherwise what
/// the backend reports. Which of the two manifests counts is then open until it is read; it is one of them, whole.
pub fn write_manifest(
    backend: &dyn Backend,
    dir: &str,
    manifest: &Manifest,
    durability: Durability,
) -> Result<()> {
    let (fresh, path) = (format!("{dir}/{MANIFEST_NEW_FILE}"), format!("{dir}/{MANIFEST_FILE}"));
    let bytes = codec::encode(&path, manifest)?;
    write_aside(backend, &fresh, &bytes, durability != Durability::None)?;
    if durability != Durability::None && manifest.layers.iter().any(|layer| !layer.segments.is_empty()) {
        backend.sync_dir(SEGMENTS_DIR)?;
    }
    backend.rename(&fresh, &path)?;
    if durability == Durability::Strict {
        backend.sync_dir(dir)?;
        // The directory's own name: new at the first commit, and cheap to sync when it is not.
        backend.sync_dir(parent(dir))?;
    }
    Ok(())
}

/// Reads the manifest in the context's directory `dir`.
///
/// # Errors
/// [`Error::Missing`](crate::Error::Missing), [`Error::Corrupt`](crate::Error::Corrupt),
/// [`Error::Version`](crate::Error::Version), [`Error::ByteOrder`](crate::Error::ByteOrder),
/// [`Error::Limit`](crate::Error::Limit) if the file is larger than any manifest may be.
pub fn read_manifest(backend: &dyn Backend, dir: &str) -> Result<Manifest> {
    codec::read(backend, &format!("{dir}/{MANIFEST_FILE}"))
}
