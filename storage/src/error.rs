//! The one error type: it names the file, and where in it, what was expected and what was found.

use std::io;

use crate::geometry::Identity;

/// Result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with enough in it for an operator to act on.
///
/// Files are named by their path relative to the store, or by the full path where the system was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused an operation.
    #[error("{operation} {path}: {source}")]
    Io {
        /// File or directory.
        path: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// Bytes on disk are not what was written.
    #[error("{file}{}: corrupt at offset {offset}: expected {expected}, found {found}", of_column(.column))]
    Corrupt {
        /// The file.
        file: String,
        /// The column of a segment, where one is concerned.
        column: Option<String>,
        /// Offset in the file, in bytes.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file was written in the other byte order.
    #[error("{file}: written in big-endian byte order; only little-endian files can be read")]
    ByteOrder {
        /// The file.
        file: String,
    },
    /// The file's format is older or newer than this build reads.
    #[error("{file}: format version {found} is {} than the supported versions {oldest} to {newest}",
        if .found < .oldest { "older" } else { "newer" })]
    Version {
        /// The file.
        file: String,
        /// Version in the file.
        found: u16,
        /// Oldest version this build reads.
        oldest: u16,
        /// Newest version this build reads.
        newest: u16,
    },
    /// The file belongs to another model.
    #[error("{file}: belongs to model {found}, expected model {expected}")]
    Identity {
        /// The file.
        file: String,
        /// Identity that was asked for.
        expected: Identity,
        /// Identity in the file.
        found: Identity,
    },
    /// A file that should be there is not.
    #[error("{file}: no such file")]
    Missing {
        /// The file.
        file: String,
    },
    /// A segment lacks a column that was asked for.
    #[error("{file}: has no column {column}")]
    MissingColumn {
        /// The segment file.
        file: String,
        /// The column.
        column: String,
    },
    /// A length or a count exceeds what is allowed.
    #[error("{what} is {found}, over the limit of {limit}")]
    Limit {
        /// What was counted.
        what: String,
        /// The most that is allowed.
        limit: u64,
        /// What was found.
        found: u64,
    },
    /// A byte range lies outside its column.
    #[error("{file}, column {column}: range {start}..{end} lies outside its {len} bytes")]
    Range {
        /// The segment file.
        file: String,
        /// The column.
        column: String,
        /// Start of the range, in bytes.
        start: usize,
        /// End of the range, in bytes.
        end: usize,
        /// Length of the column, in bytes.
        len: usize,
    },
    /// Another writer holds the lock.
    #[error("{path}: locked by another writer")]
    Locked {
        /// The lock file.
        path: String,
    },
    /// A file that was to be created is there already.
    #[error("{path}: already exists")]
    AlreadyExists {
        /// The file.
        path: String,
    },
    /// The process has as many mappings as it is allowed.
    #[error("{path}: {limit} files are mapped already, the most that is allowed")]
    TooManyMappings {
        /// The file that was to be mapped.
        path: String,
        /// The most mappings that are allowed.
        limit: usize,
    },
    /// A name or path that is not allowed.
    #[error("name {name:?} is not allowed: {reason}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// An earlier write to this file failed, so what lies behind it is not known. The writer stays unusable.
    #[error("{path}: an earlier write or sync failed; this writer cannot go on")]
    Poisoned {
        /// The file.
        path: String,
    },
    /// The caller handed over something that cannot be stored.
    #[error("{file}: cannot be written: {what}")]
    Input {
        /// The file that was to be written.
        file: String,
        /// What is wrong with it.
        what: String,
    },
}

fn of_column(column: &Option<String>) -> String {
    column.as_ref().map(|name| format!(", column {name}")).unwrap_or_default()
}

impl Error {
    /// A mismatch in `file` outside any column.
    pub fn corrupt(
        file: &str,
        offset: u64,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Corrupt {
            file: file.to_owned(),
            column: None,
            offset,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// A mismatch in a column of the segment `file`; `offset` counts from the start of the file.
    pub fn corrupt_column(
        file: &str,
        column: &str,
        offset: u64,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Corrupt {
            file: file.to_owned(),
            column: Some(column.to_owned()),
            offset,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Gives a system error its path and operation; absent and existing files get their own variants.
    pub fn io(path: &str, operation: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { file: path.to_owned() },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), operation, source },
        }
    }

    pub(crate) fn input(file: &str, what: impl Into<String>) -> Self {
        Self::Input { file: file.to_owned(), what: what.into() }
    }

    pub(crate) fn limit(what: impl Into<String>, limit: u64, found: u64) -> Self {
        Self::Limit { what: what.into(), limit, found }
    }
}
