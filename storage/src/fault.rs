//! A backend that fails where a test tells it to.
//!
//! Run a workload once over [`FaultBackend`] without an injection and ask for [`FaultBackend::operations`]; then run
//! it once for every operation number with an [`Injection`] there, and look at what
//! [`MemoryBackend::after`](crate::MemoryBackend::after) leaves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, FileReader, FileWriter, LockGuard, Region};
use crate::error::{Error, Result};

/// What goes wrong, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injection {
    /// Number of the operation that fails, counted from 0 over all operations of the backend and its files.
    pub at: u64,
    /// How it fails.
    pub kind: InjectionKind,
    /// Whether all later operations fail as well, as after the death of the process. Otherwise they work.
    pub then_dead: bool,
}

/// How an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InjectionKind {
    /// Nothing is done, and the operation reports `error`.
    Fail {
        /// Kind of the system error, such as [`io::ErrorKind::StorageFull`].
        error: io::ErrorKind,
    },
    /// A write puts down this many of its bytes (at most all but one) and then fails; another operation fails.
    ShortWrite {
        /// Bytes that are written.
        written: usize,
    },
    /// The operation is done, and fails all the same: the worker died before it could say so.
    DoneButFails,
}

/// Passes everything to another backend, counts operations, and fails the one it is told to fail.
#[derive(Debug)]
pub struct FaultBackend {
    inner: Arc<dyn Backend>,
    schedule: Arc<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    next: AtomicU64,
    injection: Option<Injection>,
}

impl Schedule {
    /// Counts one operation and does it, or fails it if its number has come.
    fn step<T>(&self, path: &str, operation: &'static str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let refused = |error: io::ErrorKind| Err(injected(path, operation, error));
        match self.injection {
            Some(injection) if number == injection.at => match injection.kind {
                InjectionKind::Fail { error } => refused(error),
                InjectionKind::ShortWrite { .. } => refused(io::ErrorKind::StorageFull),
                InjectionKind::DoneButFails => {
                    action()?;
                    refused(io::ErrorKind::Interrupted)
                }
            },
            Some(injection) if number > injection.at && injection.then_dead => {
                refused(io::ErrorKind::BrokenPipe)
            }
            _ => action(),
        }
    }

    /// How many bytes the next write puts down before it fails, if it is to be a short one.
    fn short_write(&self) -> Option<usize> {
        let injection = self.injection?;
        match injection.kind {
            InjectionKind::ShortWrite { written } if self.next.load(Ordering::SeqCst) == injection.at => {
                Some(written)
            }
            _ => None,
        }
    }
}

/// Never [`Error::Missing`] or [`Error::AlreadyExists`], whatever the kind: those are answers, not failures.
fn injected(path: &str, operation: &'static str, error: io::ErrorKind) -> Error {
    Error::Io { path: path.to_owned(), operation, source: io::Error::new(error, "injected fault") }
}

impl FaultBackend {
    /// Wraps `inner`; without an injection it only counts.
    pub fn new(inner: Arc<dyn Backend>, injection: Option<Injection>) -> Self {
        Self { inner, schedule: Arc::new(Schedule { next: AtomicU64::new(0), injection }) }
    }

    /// Operations so far, failed ones included.
    pub fn operations(&self) -> u64 {
        self.schedule.next.load(Ordering::SeqCst)
    }

    fn writer(&self, path: &str, inner: Box<dyn FileWriter>) -> Box<dyn FileWriter> {
        Box::new(FaultWriter { inner, path: path.to_owned(), schedule: Arc::clone(&self.schedule) })
    }
}

impl Backend for FaultBackend {
    fn create_dir_all(&self, dir: &str) -> Result<()> {
        self.schedule.step(dir, "create directory", || self.inner.create_dir_all(dir))
    }

    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>> {
        let inner = self.schedule.step(path, "create", || self.inner.create_new(path))?;
        Ok(self.writer(path, inner))
    }

    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>> {
        let inner = self.schedule.step(path, "open for writing", || self.inner.open_append(path, at))?;
        Ok(self.writer(path, inner))
    }

    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>> {
        let inner = self.schedule.step(path, "open", || self.inner.open_read(path))?;
        Ok(Arc::new(FaultReader { inner, path: path.to_owned(), schedule: Arc::clone(&self.schedule) }))
    }

    fn map(&self, path: &str) -> Result<Region> {
        self.schedule.step(path, "map", || self.inner.map(path))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.schedule.step(from, "rename", || self.inner.rename(from, to))
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.schedule.step(path, "remove", || self.inner.remove(path))
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        self.schedule.step(dir, "remove directory", || self.inner.remove_dir(dir))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.schedule.step(dir, "list", || self.inner.list(dir))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.schedule.step(path, "look for", || self.inner.exists(path))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.schedule.step(dir, "sync directory", || self.inner.sync_dir(dir))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        self.schedule.step(path, "lock", || self.inner.lock(path))
    }
}

#[derive(Debug)]
struct FaultWriter {
    inner: Box<dyn FileWriter>,
    path: String,
    schedule: Arc<Schedule>,
}

impl FileWriter for FaultWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(written) = self.schedule.short_write() {
            let part = bytes.get(..written.min(bytes.len().saturating_sub(1))).unwrap_or_default();
            self.inner.write_all(part)?;
        }
        self.schedule.step(&self.path, "write", || self.inner.write_all(bytes))
    }

    fn sync(&mut self) -> Result<()> {
        self.schedule.step(&self.path, "sync", || self.inner.sync())
    }
}

#[derive(Debug)]
struct FaultReader {
    inner: Arc<dyn FileReader>,
    path: String,
    schedule: Arc<Schedule>,
}

impl FileReader for FaultReader {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.schedule.step(&self.path, "read", || self.inner.read_exact_at(buffer, offset))
    }

    fn len(&self) -> Result<u64> {
        self.schedule.step(&self.path, "read the length of", || self.inner.len())
    }
}
