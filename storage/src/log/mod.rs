//! Append-only logs: what a context holds that is not yet in a segment.
//!
//! A log is a file header and then records, one behind the other. How much of it counts is for the manifest to say;
//! what lies behind that length may be torn and is overwritten by the next writer. A log is never shortened.

mod layout;
mod read;
mod write;

pub(crate) use layout::LOG_HEADER_SIZE;
pub use layout::{LogHeader, RecordHeader, RecordKind};
pub use read::{LogReader, Record};
pub use write::LogWriter;
