//! Where bytes are kept, behind a small trait: files in production, memory and injected faults in tests.

use std::fmt::Debug;
use std::ops::{Deref, Range};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::mapping::Mapping;
use crate::segment::BLOCK_SIZE;

/// A tree of files. Paths are relative to the store, their parts separated by `/`, each part a valid name
/// ([`validate_name`](crate::validate_name)); the empty path is the store's own directory.
///
/// Every operation can fail, and one that fails may have done part of its work. What is durable after a power loss:
/// the contents of a file up to its last [`FileWriter::sync`], and the names in a directory as of its last
/// [`Backend::sync_dir`].
pub trait Backend: Send + Sync + Debug {
    /// Makes a directory and those above it; one that is there already is kept.
    ///
    /// # Errors
    /// [`Error::Name`](crate::Error::Name), [`Error::Io`](crate::Error::Io).
    fn create_dir_all(&self, dir: &str) -> Result<()>;

    /// Makes an empty file and opens it for writing.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) if there is one, else as for any operation.
    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>>;

    /// Opens a file for writing from offset `at` on, over whatever lies there. The file is never shortened.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing); [`Error::Corrupt`](crate::Error::Corrupt) if the file is shorter
    /// than `at`.
    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>>;

    /// Opens a file for positional reads.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), else as for any operation.
    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>>;

    /// All of a file as one region of memory. The file must not be written to while a region of it lives.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), [`Error::TooManyMappings`](crate::Error::TooManyMappings).
    fn map(&self, path: &str) -> Result<Region>;

    /// Renames a file, replacing any at `to` atomically; or a directory with all that is in it, where there is nothing
    /// at `to`.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), else as for any operation.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Unlinks a file. Readers and regions of it that are open stay usable.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), else as for any operation.
    fn remove(&self, path: &str) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing); [`Error::Io`](crate::Error::Io) where something is in it.
    fn remove_dir(&self, dir: &str) -> Result<()>;

    /// Names of the files and directories in `dir`, sorted.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), else as for any operation.
    fn list(&self, dir: &str) -> Result<Vec<String>>;

    /// Whether there is a file or directory of this name.
    ///
    /// # Errors
    /// Where the system cannot tell.
    fn exists(&self, path: &str) -> Result<bool>;

    /// Makes the names in `dir` durable.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), else as for any operation.
    fn sync_dir(&self, dir: &str) -> Result<()>;

    /// Takes the exclusive lock on the lock file at `path`, made if there is none. The lock goes with the guard, or
    /// with the process, however that ends. It does not wait.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) if it is held, in this process or in another;
    /// [`Error::Missing`](crate::Error::Missing) if there is no such directory.
    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>>;
}

/// One file being written, front to back.
pub trait FileWriter: Send + Sync + Debug {
    /// Writes all of `bytes` behind what was written before.
    ///
    /// # Errors
    /// Where the system refuses; part of the bytes may have been written.
    fn write_all(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// Where the system refuses; what was written since the last sync may then be lost even if a later one succeeds.
    fn sync(&mut self) -> Result<()>;
}

/// One file being read at any position, by any number of threads.
#[expect(clippy::len_without_is_empty, reason = "a length of something outside, which can fail")]
pub trait FileReader: Send + Sync + Debug {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// Where the file ends before or the system refuses.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Length of the file now, in bytes.
    ///
    /// # Errors
    /// Where the system refuses.
    fn len(&self) -> Result<u64>;
}

/// A lock that is held until the guard is dropped or the process ends.
pub trait LockGuard: Send + Sync + Debug {}

/// All bytes of a file, at an address that is a multiple of 64.
#[derive(Clone, Debug)]
pub enum Region {
    /// A read-only mapping of a file.
    Mapped(Arc<Mapping>),
    /// A copy in memory.
    Buffer(Arc<AlignedBuffer>),
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping) => mapping,
            Self::Buffer(buffer) => buffer,
        }
    }
}

impl Region {
    /// Says of each of the 4 KiB pages `pages`, counted from the region's beginning, whether reading it waits for no disk. A
    /// copy in memory has all of its pages, but for those that a test calls cold
    /// ([`MemoryBackend::set_cold`](crate::MemoryBackend::set_cold)).
    pub(crate) fn residency(&self, pages: Range<usize>) -> Vec<bool> {
        match self {
            Self::Mapped(mapping) => {
                let mut resident = vec![false; pages.len()];
                mapping.residency(pages, &mut resident);
                resident
            }
            Self::Buffer(buffer) => {
                let cold = buffer.cold.lock();
                pages.map(|page| !cold.get(page).copied().unwrap_or(false)).collect()
            }
        }
    }
}

/// Bytes at an address that is a multiple of 64.
#[derive(Debug)]
pub struct AlignedBuffer {
    /// Over-allocated: the aligned part starts at `start`. Never grown, since that could move it.
    storage: Vec<u8>,
    start: usize,
    /// Pages that a test calls cold; the others are not.
    cold: Mutex<Vec<bool>>,
}

impl AlignedBuffer {
    const ALIGNMENT: usize = 64;

    /// Copies `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut storage: Vec<u8> = Vec::with_capacity(bytes.len() + Self::ALIGNMENT);
        let start = storage.as_ptr().align_offset(Self::ALIGNMENT).min(Self::ALIGNMENT);
        storage.resize(start, 0);
        storage.extend_from_slice(bytes);
        Self { storage, start, cold: Mutex::default() }
    }

    /// Calls the pages cold that `is_cold` says, by their numbers, and no others.
    pub(crate) fn set_cold(&self, is_cold: impl Fn(usize) -> bool) {
        *self.cold.lock() = (0..self.len().div_ceil(BLOCK_SIZE)).map(is_cold).collect();
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.storage.get(self.start..).unwrap_or_default()
    }
}
