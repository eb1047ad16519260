//! A backend that fails where a test tells it to.
//!
//! Run a workload once over [`FaultBackend`] without an injection and ask for [`FaultBackend::trace`]; then run it
//! once for every operation number with an [`Injection`] there, and look at what
//! [`MemoryBackend::after`](crate::MemoryBackend::after) leaves.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

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
    /// A sync of a file fails once, as on Linux: later ones succeed, but what the file was given before and since
    /// never reaches the device. Another operation fails.
    SyncLoses,
    /// From this operation on the medium is in a condition, until [`FaultBackend::heal`].
    Lasting(Condition),
}

/// What may become of a medium while a process uses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// Nothing can be made, and a write puts down half of its bytes. The rest works.
    DiskFull,
    /// Nothing can be changed or synced. Reading works.
    ReadOnly,
    /// Nothing can be opened, listed or renamed any more. What is open goes on.
    PermissionLost,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DiskFull, Self::ReadOnly, Self::PermissionLost];

    /// Kind of the errors that it leads to.
    pub fn error(self) -> io::ErrorKind {
        match self {
            Self::DiskFull => io::ErrorKind::StorageFull,
            Self::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            Self::PermissionLost => io::ErrorKind::PermissionDenied,
        }
    }

    fn refuses(self, access: Access) -> bool {
        match self {
            Self::DiskFull => matches!(access, Access::Make | Access::Write),
            Self::ReadOnly => !matches!(access, Access::Open | Access::Read),
            Self::PermissionLost => !matches!(access, Access::Read | Access::Write | Access::Sync),
        }
    }
}

/// What an operation needs of the medium.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// A new file or directory.
    Make,
    /// Looking at a name, or opening it to read.
    Open,
    /// Opening a file to write, or changing a name.
    Change,
    /// Reading an open file.
    Read,
    /// Writing to an open file.
    Write,
    /// Syncing an open file.
    Sync,
}

/// Passes everything to another backend, counts operations, and fails the one it is told to fail.
#[derive(Debug)]
pub struct FaultBackend {
    inner: Arc<dyn Backend>,
    schedule: Arc<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    injection: Option<Injection>,
    /// What was asked for so far, as verbs.
    trace: Mutex<Vec<&'static str>>,
    /// Files of which a sync failed for good.
    lost: Mutex<HashSet<String>>,
    healed: AtomicBool,
}

impl Schedule {
    /// Counts one operation and does it, or fails it if its number has come.
    fn step<T>(
        &self,
        path: &str,
        (operation, access): (&'static str, Access),
        action: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.take(self.count(operation), path, (operation, access), action)
    }

    /// Counts one operation and returns its number.
    fn count(&self, operation: &'static str) -> u64 {
        let mut trace = self.trace.lock();
        trace.push(operation);
        trace.len() as u64 - 1
    }

    /// Does operation `number`, or fails it.
    fn take<T>(
        &self,
        number: u64,
        path: &str,
        (operation, access): (&'static str, Access),
        action: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let refused = |error: io::ErrorKind| Err(injected(path, operation, error));
        let Some(injection) = self.injection.filter(|injection| number >= injection.at) else {
            return action();
        };
        if let InjectionKind::Lasting(condition) = injection.kind {
            let refuses = condition.refuses(access) && !self.healed.load(Ordering::SeqCst);
            return if refuses { refused(condition.error()) } else { action() };
        }
        if number > injection.at {
            return if injection.then_dead { refused(io::ErrorKind::BrokenPipe) } else { action() };
        }
        match injection.kind {
            InjectionKind::Fail { error } => refused(error),
            InjectionKind::DoneButFails => {
                action()?;
                refused(io::ErrorKind::Interrupted)
            }
            InjectionKind::SyncLoses => {
                if access == Access::Sync {
                    self.lost.lock().insert(path.to_owned());
                }
                refused(io::ErrorKind::Other)
            }
            InjectionKind::ShortWrite { .. } | InjectionKind::Lasting(_) => {
                refused(io::ErrorKind::StorageFull)
            }
        }
    }

    /// How many of `len` bytes write `number` puts down before it fails, if it is to be a short one.
    fn short_write(&self, number: u64, len: usize) -> Option<usize> {
        let injection = self.injection?;
        match injection.kind {
            InjectionKind::ShortWrite { written } if number == injection.at => {
                Some(written.min(len.saturating_sub(1)))
            }
            InjectionKind::Lasting(Condition::DiskFull)
                if number >= injection.at && !self.healed.load(Ordering::SeqCst) =>
            {
                Some(len / 2)
            }
            _ => None,
        }
    }

    /// A file that is made anew or gone is no longer the one whose sync failed.
    fn forget(&self, path: &str) {
        self.lost.lock().remove(path);
    }
}

/// Never [`Error::Missing`] or [`Error::AlreadyExists`], whatever the kind: those are answers, not failures.
fn injected(path: &str, operation: &'static str, error: io::ErrorKind) -> Error {
    Error::Io { path: path.to_owned(), operation, source: io::Error::new(error, "injected fault") }
}

impl FaultBackend {
    /// Wraps `inner`; without an injection it only counts.
    pub fn new(inner: Arc<dyn Backend>, injection: Option<Injection>) -> Self {
        let schedule = Schedule {
            injection,
            trace: Mutex::default(),
            lost: Mutex::default(),
            healed: AtomicBool::new(false),
        };
        Self { inner, schedule: Arc::new(schedule) }
    }

    /// Operations so far, failed ones included.
    pub fn operations(&self) -> u64 {
        self.schedule.trace.lock().len() as u64
    }

    /// Verbs of the operations so far, such as `write` and `sync`: what an injection at each number would meet.
    pub fn trace(&self) -> Vec<&'static str> {
        self.schedule.trace.lock().clone()
    }

    /// Ends a [`Condition`].
    pub fn heal(&self) {
        self.schedule.healed.store(true, Ordering::SeqCst);
    }

    fn writer(&self, path: &str, inner: Box<dyn FileWriter>) -> Box<dyn FileWriter> {
        Box::new(FaultWriter { inner, path: path.to_owned(), schedule: Arc::clone(&self.schedule) })
    }

    fn step<T>(
        &self,
        path: &str,
        operation: &'static str,
        access: Access,
        action: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.schedule.step(path, (operation, access), action)
    }
}

impl Backend for FaultBackend {
    fn create_dir_all(&self, dir: &str) -> Result<()> {
        // A directory that is there is asked for, and found, in any condition.
        let access = if self.inner.exists(dir)? { Access::Open } else { Access::Make };
        self.step(dir, "create directory", access, || self.inner.create_dir_all(dir))
    }

    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>> {
        let inner = self.step(path, "create", Access::Make, || self.inner.create_new(path))?;
        self.schedule.forget(path);
        Ok(self.writer(path, inner))
    }

    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>> {
        let inner =
            self.step(path, "open for writing", Access::Change, || self.inner.open_append(path, at))?;
        Ok(self.writer(path, inner))
    }

    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>> {
        let inner = self.step(path, "open", Access::Open, || self.inner.open_read(path))?;
        Ok(Arc::new(FaultReader { inner, path: path.to_owned(), schedule: Arc::clone(&self.schedule) }))
    }

    fn map(&self, path: &str) -> Result<Region> {
        self.step(path, "map", Access::Open, || self.inner.map(path))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.step(from, "rename", Access::Change, || self.inner.rename(from, to))?;
        let mut lost = self.schedule.lost.lock();
        if lost.remove(from) {
            lost.insert(to.to_owned());
        } else {
            lost.remove(to);
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.step(path, "remove", Access::Change, || self.inner.remove(path))?;
        self.schedule.forget(path);
        Ok(())
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        self.step(dir, "remove directory", Access::Change, || self.inner.remove_dir(dir))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.step(dir, "list", Access::Open, || self.inner.list(dir))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.step(path, "look for", Access::Open, || self.inner.exists(path))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.step(dir, "sync directory", Access::Change, || self.inner.sync_dir(dir))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        self.step(path, "lock", Access::Change, || self.inner.lock(path))
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
        // Counted once: others may write at the same time.
        let number = self.schedule.count("write");
        let short = self.schedule.short_write(number, bytes.len());
        if let Some(part) = short.and_then(|len| bytes.get(..len)) {
            self.inner.write_all(part)?;
        }
        self.schedule.take(number, &self.path, ("write", Access::Write), || self.inner.write_all(bytes))
    }

    fn sync(&mut self) -> Result<()> {
        let lost = self.schedule.lost.lock().contains(&self.path);
        self.schedule.step(
            &self.path,
            ("sync", Access::Sync),
            || {
                if lost { Ok(()) } else { self.inner.sync() }
            },
        )
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
        self.schedule.step(&self.path, ("read", Access::Read), || self.inner.read_exact_at(buffer, offset))
    }

    fn len(&self) -> Result<u64> {
        self.schedule.step(&self.path, ("read the length of", Access::Read), || self.inner.len())
    }
}
