//! Group commit: threads that want the names in one directory durable at the same time share one sync of it.
//!
//! A sync covers what was done in the directory before it began. So whoever asks while one runs waits for the next; all
//! that wait meanwhile share that one, and the first of them runs it. Contents of files are synced by themselves: no two
//! commits write to the same file.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::backend::{Backend, FileReader, FileWriter, LockGuard, Region};
use crate::error::{Error, Result};

/// A backend whose directories are synced for several threads at once.
#[derive(Debug)]
pub struct GroupedBackend {
    inner: Arc<dyn Backend>,
    directories: Mutex<HashMap<String, Arc<Directory>>>,
}

#[derive(Debug, Default)]
struct Directory {
    turn: Mutex<Turn>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Turn {
    runs: bool,
    /// Those who wait for the next sync.
    next: Arc<Batch>,
}

/// One sync, and what came of it once it has ended.
#[derive(Debug, Default)]
struct Batch {
    outcome: OnceLock<Option<Failure>>,
}

/// An error that several threads are told.
#[derive(Debug)]
enum Failure {
    Io { operation: &'static str, kind: io::ErrorKind, code: Option<i32>, said: String },
    Missing,
}

/// Ends a sync that has begun, however it ends.
struct Running<'a> {
    directory: &'a Directory,
    batch: Arc<Batch>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Where nothing came of it, its thread has panicked.
        let said = || "the thread that synced for others panicked".to_owned();
        self.batch.outcome.get_or_init(|| {
            Some(Failure::Io { operation: SYNC, kind: io::ErrorKind::Other, code: None, said: said() })
        });
        locked(&self.directory.turn).runs = false;
        self.directory.ended.notify_all();
    }
}

const SYNC: &str = "sync directory";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Failure {
    fn of(error: &Error) -> Self {
        match error {
            Error::Missing { .. } => Failure::Missing,
            Error::Io { operation, source, .. } => Failure::Io {
                operation,
                kind: source.kind(),
                code: source.raw_os_error(),
                said: source.to_string(),
            },
            other => Failure::Io {
                operation: SYNC,
                kind: io::ErrorKind::Other,
                code: None,
                said: other.to_string(),
            },
        }
    }

    fn error(&self, dir: &str) -> Error {
        match self {
            Failure::Missing => Error::Missing { file: dir.to_owned() },
            Failure::Io { operation, kind, code, said } => {
                let source =
                    code.map_or_else(|| io::Error::new(*kind, said.clone()), io::Error::from_raw_os_error);
                Error::Io { path: dir.to_owned(), operation, source }
            }
        }
    }
}

impl GroupedBackend {
    /// Groups the directory syncs of a backend.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, directories: Mutex::default() }
    }

    fn directory(&self, dir: &str) -> Arc<Directory> {
        Arc::clone(locked(&self.directories).entry(dir.to_owned()).or_default())
    }

    /// Forgets a directory that nobody waits for.
    fn release(&self, dir: &str, directory: Arc<Directory>) {
        let mut directories = locked(&self.directories);
        drop(directory);
        if directories.get(dir).is_some_and(|directory| Arc::strong_count(directory) == 1) {
            directories.remove(dir);
        }
    }

    fn sync_in_turn(&self, dir: &str, directory: &Directory) -> Result<()> {
        let mut turn = locked(&directory.turn);
        let batch = Arc::clone(&turn.next);
        loop {
            if let Some(outcome) = batch.outcome.get() {
                return outcome.as_ref().map_or(Ok(()), |failure| Err(failure.error(dir)));
            }
            if !turn.runs {
                turn.runs = true;
                turn.next = Arc::default();
                break;
            }
            turn = directory.ended.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        drop(turn);
        let running = Running { directory, batch };
        let synced = self.inner.sync_dir(dir);
        running.batch.outcome.get_or_init(|| synced.as_ref().err().map(Failure::of));
        synced
    }
}

impl Backend for GroupedBackend {
    fn create_dir_all(&self, dir: &str) -> Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>> {
        self.inner.create_new(path)
    }

    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>> {
        self.inner.open_append(path, at)
    }

    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>> {
        self.inner.open_read(path)
    }

    fn map(&self, path: &str) -> Result<Region> {
        self.inner.map(path)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.inner.remove(path)
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        self.inner.remove_dir(dir)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.inner.exists(path)
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        let directory = self.directory(dir);
        let synced = self.sync_in_turn(dir, &directory);
        self.release(dir, directory);
        synced
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        self.inner.lock(path)
    }
}
