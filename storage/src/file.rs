//! Files in a directory of the system.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::{Backend, FileReader, FileWriter, LockGuard, Region};
use crate::error::{Error, Result};
use crate::mapping::{Mapping, start_writing};
use crate::names::validate_path;

/// Mappings that a process may have through this crate unless the backend is told otherwise. Linux allows 65,530 of
/// any kind; the rest is left to the program, its threads and its allocator.
pub const DEFAULT_MAPPING_LIMIT: usize = 49_152;

/// Only the owner may read or write what a model was told.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// A store in a directory. Files are made with mode 0600 and directories with 0700, unless other modes are asked for.
#[derive(Debug)]
pub struct FileBackend {
    root: PathBuf,
    mapping_limit: usize,
    file_mode: u32,
    dir_mode: u32,
}

impl FileBackend {
    /// A store below `root`, which is made by the first [`Backend::create_dir_all`].
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            mapping_limit: DEFAULT_MAPPING_LIMIT,
            file_mode: FILE_MODE,
            dir_mode: DIR_MODE,
        }
    }

    /// Sets the modes of files and directories that are made from now on, as for a group that shares a store (0o640
    /// and 0o750, say). The process's umask still applies. Bits beyond 0o777 are left out.
    #[must_use]
    pub fn with_modes(mut self, files: u32, directories: u32) -> Self {
        (self.file_mode, self.dir_mode) = (files & 0o777, directories & 0o777);
        self
    }

    /// Sets how many mappings the process may have, those of other backends included.
    #[must_use]
    pub fn with_mapping_limit(mut self, limit: usize) -> Self {
        self.mapping_limit = limit;
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn resolve(&self, path: &str) -> Result<PathBuf> {
        validate_path(path)?;
        Ok(if path.is_empty() { self.root.clone() } else { self.root.join(path) })
    }

    fn open(&self, path: &str) -> Result<File> {
        File::open(self.resolve(path)?).map_err(|source| Error::io(path, "open", source))
    }
}

impl Backend for FileBackend {
    fn create_dir_all(&self, dir: &str) -> Result<()> {
        let path = self.resolve(dir)?;
        let fail = |source| Error::io(dir, "create directory", source);
        // What lies above the store is nobody else's to sync.
        let outside: Vec<&Path> = self.root.ancestors().take_while(|above| !above.exists()).collect();
        DirBuilder::new().recursive(true).mode(self.dir_mode).create(path).map_err(fail)?;
        for made in outside {
            let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(above).and_then(|above| above.sync_all()).map_err(fail)?;
        }
        Ok(())
    }

    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.file_mode)
            .open(self.resolve(path)?)
            .map_err(|source| Error::io(path, "create", source))?;
        Ok(Box::new(DiskWriter { file, path: path.to_owned(), offset: 0, started: 0 }))
    }

    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>> {
        let file = OpenOptions::new()
            .write(true)
            .open(self.resolve(path)?)
            .map_err(|source| Error::io(path, "open for writing", source))?;
        let len = file.metadata().map_err(|source| Error::io(path, "read the length of", source))?.len();
        if len < at {
            return Err(Error::corrupt(
                path,
                len,
                format_args!("at least {at} bytes"),
                "the end of the file",
            ));
        }
        Ok(Box::new(DiskWriter { file, path: path.to_owned(), offset: at, started: at }))
    }

    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>> {
        Ok(Arc::new(DiskReader { file: self.open(path)?, path: path.to_owned() }))
    }

    fn map(&self, path: &str) -> Result<Region> {
        let mapping = Mapping::new(&self.open(path)?, self.mapping_limit)
            .map_err(|source| Error::io(path, "map", source))?
            .ok_or_else(|| Error::TooManyMappings { path: path.to_owned(), limit: self.mapping_limit })?;
        Ok(Region::Mapped(Arc::new(mapping)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.resolve(from)?, self.resolve(to)?).map_err(|source| Error::io(from, "rename", source))
    }

    fn remove(&self, path: &str) -> Result<()> {
        fs::remove_file(self.resolve(path)?).map_err(|source| Error::io(path, "remove", source))
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        fs::remove_dir(self.resolve(dir)?).map_err(|source| Error::io(dir, "remove directory", source))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.resolve(dir)?).map_err(|source| Error::io(dir, "list", source))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<String>>>()
            .map_err(|source| Error::io(dir, "list", source))?;
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.resolve(path)?.try_exists().map_err(|source| Error::io(path, "look for", source))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.open(dir)?.sync_all().map_err(|source| Error::io(dir, "sync directory", source))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        let full = self.resolve(path)?;
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(self.file_mode)
                .open(&full)
                .map_err(|source| Error::io(path, "open", source))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(Error::io(path, "lock", source)),
            }
            // Who removes a context unlinks its lock: one that was opened before that locks nothing any more.
            let mine = file.metadata().map_err(|source| Error::io(path, "look at", source))?;
            let there = fs::metadata(&full).ok();
            if there.is_some_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
                return Ok(Box::new(DiskLock { _file: file }));
            }
        }
    }
}

#[derive(Debug)]
struct DiskWriter {
    file: File,
    path: String,
    offset: u64,
    /// What lies before it is on its way to the disk.
    started: u64,
}

/// Bytes behind which the disk is set to work: what is written meanwhile need not be waited for by the sync.
const STEP: u64 = 4 << 20;

impl FileWriter for DiskWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, self.offset)
            .map_err(|source| Error::io(&self.path, "write", source))?;
        self.offset += bytes.len() as u64;
        if self.offset - self.started >= STEP {
            start_writing(&self.file, self.started..self.offset);
            self.started = self.offset;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|source| Error::io(&self.path, "sync", source))
    }
}

#[derive(Debug)]
struct DiskReader {
    file: File,
    path: String,
}

impl FileReader for DiskReader {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|source| Error::io(&self.path, "read", source))
    }

    fn len(&self) -> Result<u64> {
        let metadata =
            self.file.metadata().map_err(|source| Error::io(&self.path, "read the length of", source))?;
        Ok(metadata.len())
    }
}

/// The lock belongs to the open file, so closing it, or the end of the process, gives it back.
#[derive(Debug)]
struct DiskLock {
    _file: File,
}

impl LockGuard for DiskLock {}
