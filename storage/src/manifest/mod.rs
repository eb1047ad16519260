//! The manifest of a context: what of all the bytes on disk counts. Replacing it is the commit.

mod codec;
mod validate;
mod version1;

use bincode::{Decode, Encode};

use crate::backend::Backend;
use crate::envelope::write_aside;
use crate::error::{Error, Result};
use crate::geometry::{ElementKind, Geometry, Identity};
use crate::names::{
    MANIFEST_FILE, MANIFEST_NEW_FILE, MANIFEST_RECENT_FILE, SEGMENTS_DIR, context_file, log_path, parent,
    segment_path,
};

pub use codec::MANIFEST_SIZE_MAX;

/// Everything that a commit of one context consists of. The order of the fields, here and in the records below, is
/// the order on disk.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
pub struct Manifest {
    /// Random identifier of the context.
    pub context_id: [u8; 16],
    /// Number of this commit; each is greater than the one before.
    pub generation: u64,
    /// Name of the context at this commit. Its directory may have been renamed since.
    pub name: String,
    /// The model that the context belongs to.
    pub model: ModelRecord,
    /// How the context is cut into segments and clusters.
    pub settings: SettingsRecord,
    /// One per layer of the model.
    pub layers: Vec<LayerRecord>,
    /// The logs of unsealed rows, to be read one behind the other; those of a context that was forked are its parent's.
    pub row_logs: Vec<LogRecord>,
    /// The logs of token ids and observed queries, likewise.
    pub meta_logs: Vec<LogRecord>,
    /// Token ids known of the context; 0 if it was never told any.
    pub token_count: u64,
    /// What the KV depends on besides model and token ids, as the engine says it: an adapter, a tenant.
    pub extra: Vec<u8>,
    /// Chained hash of the model, the extra bytes and the token ids in whole blocks; zeros where there are no ids.
    pub prefix: [u8; 16],
    /// The writer may hold files of this context with this number or a greater one that no manifest names yet. Those
    /// with a smaller number that no manifest names are garbage.
    pub first_unnamed: u64,
    /// Where the context comes from, if it was forked.
    pub origin: Option<OriginRecord>,
    /// Further state of the context, each piece versioned by its owner.
    pub state: Vec<StateRecord>,
}

/// Most bytes of [`Manifest::extra`].
pub const EXTRA_MAX: usize = 4096;

impl Manifest {
    /// Paths of all files that the manifest names, for a context whose directory is `name`.
    pub fn files(&self, name: &str) -> Vec<String> {
        let logs = self.row_logs.iter().chain(&self.meta_logs).map(|log| log.path(name));
        let segments = self
            .layers
            .iter()
            .flat_map(|layer| layer.segments.iter().chain(layer.cuts.iter().map(|cut| &cut.segment)));
        logs.chain(segments.map(|segment| segment_path(&segment.file))).collect()
    }
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
    /// For each of them the rows that the layer must have for it to be one: when the layer is cut to fewer, its rows
    /// return to the tail. At least the position after its last row.
    pub sealed_at: Vec<u64>,
    /// Segments that are segments no more: their rows are rows of the tail again. By ascending position, behind the live
    /// ones, without a gap.
    pub cuts: Vec<CutRecord>,
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

/// A segment of which only the first rows count, and those not as a segment: it stands for rows of the tail that are
/// in no log. Those that what lies before it holds do not count either.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CutRecord {
    /// The segment.
    pub segment: SegmentRecord,
    /// Position after the last row that counts.
    pub end: u64,
}

/// Where a fork comes from. Nothing depends on it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct OriginRecord {
    /// Identifier of the context that was forked.
    pub context_id: [u8; 16],
    /// Its commit.
    pub generation: u64,
    /// Rows that were taken over.
    pub length: u64,
}

/// A log, as far as it counts.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LogRecord {
    /// Identifier, the same in the log's header.
    pub id: [u8; 16],
    /// File name in its directory.
    pub file: String,
    /// Bytes that count, the log's header included.
    pub len: u64,
    /// Of what those bytes hold, positions from here on do not count; `u64::MAX` where all do.
    pub end: u64,
    /// Where the file lies.
    pub place: LogPlace,
}

impl LogRecord {
    /// Path of the log, for a context whose directory has this name.
    pub fn path(&self, context: &str) -> String {
        match self.place {
            LogPlace::Shared => log_path(&self.file),
            LogPlace::Context => context_file(context, &self.file),
        }
    }
}

/// Where a log lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum LogPlace {
    /// In the store's directory of logs, where any context may name it.
    Shared,
    /// In the context's own directory, as in stores whose manifests have version 1.
    Context,
}

/// Most logs of one kind that a manifest names.
pub const LOGS_MAX: usize = 64;

/// Kind of the state that says which rows of the layers are missing, if any are. A build that does not know it cannot
/// read the segments: manifests that carry it have a version of their own.
pub const FORGETTING_STATE: u32 = 4;

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
    /// The death of the process. After a power loss the last commit of another kind counts.
    None,
    /// Also a power loss, though that may bring back the commit before: everything that the manifest names is on
    /// the device before the manifest is replaced, but the replacement itself is not waited for.
    Flushed,
    /// Also a power loss: the replacement is on the device when the commit returns.
    Strict,
}

/// Writes the manifest of the context's directory `dir`: aside, synced, renamed over the old one. With
/// [`Durability::None`] it is not synced and goes beside the last durable one, which a power loss leaves as it is.
/// Segments named by it must have been written; for anything but `None` the logs named by it must have been synced up
/// to the lengths named.
///
/// # Errors
/// [`Error::Input`] if the manifest breaks a rule that reading it would check; otherwise what the backend reports.
/// Which of the two manifests counts is then open until it is read; it is one of them, whole.
pub fn write_manifest(
    backend: &dyn Backend,
    dir: &str,
    manifest: &Manifest,
    durability: Durability,
) -> Result<()> {
    let (fresh, path) = (format!("{dir}/{MANIFEST_NEW_FILE}"), format!("{dir}/{MANIFEST_FILE}"));
    let recent = format!("{dir}/{MANIFEST_RECENT_FILE}");
    let bytes = codec::encode(&path, manifest)?;
    write_aside(backend, &fresh, &bytes, durability != Durability::None)?;
    if durability == Durability::None {
        return backend.rename(&fresh, &recent);
    }
    if manifest.layers.iter().any(|layer| !(layer.segments.is_empty() && layer.cuts.is_empty())) {
        backend.sync_dir(SEGMENTS_DIR)?;
    }
    backend.rename(&fresh, &path)?;
    if durability == Durability::Strict {
        backend.sync_dir(dir)?;
        // The directory's own name: new at the first commit, and cheap to sync when it is not.
        backend.sync_dir(parent(dir))?;
    }
    // It has a smaller generation, so that it counts no more whether it goes or stays.
    if backend.exists(&recent).unwrap_or(false) {
        let _ = backend.remove(&recent);
    }
    Ok(())
}

/// Reads the manifest that counts in the context's directory `dir`: that of the last commit, durable or not. One that
/// is not durable and cannot be read does not count: a power loss has undone it.
///
/// # Errors
/// [`Error::Missing`], [`Error::Corrupt`], [`Error::Version`], [`Error::ByteOrder`], [`Error::Limit`] if the file is
/// larger than any manifest may be.
pub fn read_manifest(backend: &dyn Backend, dir: &str) -> Result<Manifest> {
    let durable = read_durable_manifest(backend, dir)?;
    match read_recent_manifest(backend, dir) {
        Ok(recent) if recent.generation > durable.generation && recent.context_id == durable.context_id => {
            Ok(recent)
        }
        _ => Ok(durable),
    }
}

/// Reads the manifest of the last durable commit.
///
/// # Errors
/// As [`read_manifest`].
pub fn read_durable_manifest(backend: &dyn Backend, dir: &str) -> Result<Manifest> {
    codec::read(backend, &format!("{dir}/{MANIFEST_FILE}"))
}

/// Reads the manifest of the last commit that asked for no durability.
///
/// # Errors
/// As [`read_manifest`]; [`Error::Missing`] when a durable commit came after it.
pub fn read_recent_manifest(backend: &dyn Backend, dir: &str) -> Result<Manifest> {
    codec::read(backend, &format!("{dir}/{MANIFEST_RECENT_FILE}"))
}

/// Removes the manifest of a commit that a power loss has undone, for good: what is written from now on may look like
/// what it names.
///
/// # Errors
/// What the backend reports.
pub fn discard_recent_manifest(backend: &dyn Backend, dir: &str) -> Result<()> {
    match backend.remove(&format!("{dir}/{MANIFEST_RECENT_FILE}")) {
        Ok(()) => backend.sync_dir(dir),
        Err(Error::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
