//! The block cache: clusters' rows in fixed-size slots of device memory.
//!
//! [`Directory`] says what is in which slot and, by a [`Policy`], what comes in and what leaves; it needs no device, so that
//! policies are judged by running recorded decode steps through it (`longwave eval --cache`). `BlockCache` puts it on a device.

#[cfg(feature = "device")]
mod device;
mod directory;
mod policy;
#[cfg(feature = "device")]
mod source;

#[cfg(feature = "device")]
pub use device::{BlockCache, RowSource, Slots};
pub use directory::{Admission, BlockId, CacheReport, Directory, RowKind, Scored, segment_key};
pub use policy::{Access, Frequency, LeastRecentlyUsed, PlannerScore, Policy, policies};
#[cfg(feature = "device")]
pub use source::StoredRows;
