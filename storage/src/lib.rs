//! Keys and values at rest: segment files of columns, append-only logs, manifests, and the store around them.
//!
//! Nothing here knows what a cluster is. A *segment* holds the rows of one layer and one range of positions, and
//! beside them whatever index columns the caller hands over, which are opaque bytes here. A *log* holds what is not
//! yet sealed. A *manifest* names what counts; until it does, nothing that was written exists.
//!
//! Every byte read back is untrusted. A header's checksum is checked before any length in it is believed, every
//! length and count is bounded before memory is allocated for it, and a block of a column is verified before its
//! bytes are handed out. `docs/format.md` has the byte-exact layouts and what each kind of partial write leads to.
//!
//! Media errors under a live mapping (the kernel fails to page a verified block back in) are outside the promise:
//! they arrive as a signal, not as an [`Error`].

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

#[cfg(target_endian = "big")]
compile_error!("columns are mapped as they lie on disk, little-endian: a big-endian host cannot read them");
#[cfg(not(unix))]
compile_error!("the file backend needs positional reads and file modes of a Unix system");

mod backend;
pub mod check;
mod checksum;
mod envelope;
mod error;
pub mod fault;
mod file;
mod geometry;
mod grouped;
mod log;
mod manifest;
#[expect(unsafe_code, reason = "mapping a file is unsafe: another process could change it underneath")]
mod mapping;
mod memory;
mod names;
mod profile;
mod prologue;
mod segment;
mod store;

pub use backend::{AlignedBuffer, Backend, FileReader, FileWriter, LockGuard, Region};
pub use error::{Error, Result};
pub use file::{DEFAULT_MAPPING_LIMIT, FileBackend};
pub use geometry::{ElementKind, Geometry, Identity};
pub use grouped::GroupedBackend;
pub use log::{LogHeader, LogReader, LogWriter, Record, RecordHeader, RecordKind};
pub use manifest::{
    CutRecord, Durability, EXTRA_MAX, FORGETTING_STATE, LOGS_MAX, LayerKind, LayerRecord, LogPlace,
    LogRecord, MANIFEST_SIZE_MAX, Manifest, ModelRecord, OriginRecord, SegmentRecord, SettingsRecord,
    StateRecord, discard_recent_manifest, read_durable_manifest, read_manifest, read_recent_manifest,
    write_manifest,
};
pub use mapping::{Mapping, mapped_count};
pub use memory::{Crash, MemoryBackend};
pub use names::{
    CONTEXTS_DIR, LOCK_FILE, LOGS_DIR, MANIFEST_FILE, MANIFEST_NEW_FILE, MANIFEST_RECENT_FILE,
    MANIFEST_REMOVED_FILE, NAME_LEN_MAX, PINNED_FILE, PREFIXES_FILE, PREFIXES_LOCK, PREFIXES_NEW_FILE,
    PROFILES_DIR, REFERENCES_LOCK, SEGMENTS_DIR, SHARES_DIR, STORE_DIRS, STORE_FILE, USED_FILE, context_dir,
    context_file, file_maker, log_file_name, log_path, profile_path, segment_file_name, segment_path,
    share_maker, share_path, validate_name, validate_path,
};
pub use profile::{
    PROFILE_SIZE_MAX, Profile, ProfileLayer, ProfileShape, read_profile, remove_unfinished_profile,
    write_profile,
};
pub use segment::{
    Alignment, BLOCK_SIZE, COLUMN_NAME_MAX, COLUMNS_MAX, Column, ColumnInfo, ColumnKind, Expected, NewColumn,
    ROWS_MAX, RowForm, Segment, SegmentHeader, UnknownRowForm, Validator, write_segment,
};
pub use store::{StoreHeader, create_store, read_store};
