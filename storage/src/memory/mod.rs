//! Files in memory that remember what has been made durable, so that a test can take the power away.

mod crash;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::{AlignedBuffer, Backend, FileReader, FileWriter, LockGuard, Region};
use crate::error::{Error, Result};
use crate::names::{parent, validate_path};

pub use crash::Crash;

/// A store in memory. Clones share the same files.
#[derive(Clone, Debug, Default)]
pub struct MemoryBackend {
    tree: Arc<Mutex<Tree>>,
}

/// Names as they are now and as a power loss would leave them.
#[derive(Clone, Debug, Default)]
struct Tree {
    files: BTreeMap<String, Node>,
    durable_files: BTreeMap<String, Node>,
    dirs: BTreeSet<String>,
    durable_dirs: BTreeSet<String>,
    /// Held locks by path, each with a number of its own, since a directory can be renamed over its locks.
    locks: BTreeMap<String, u64>,
    next_lock: u64,
}

/// One file, whatever its names.
#[derive(Clone, Debug, Default)]
struct Node(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    now: Arc<Vec<u8>>,
    /// As of the last sync; shared with `now` until the next write.
    durable: Arc<Vec<u8>>,
    region: Option<Arc<AlignedBuffer>>,
}

impl Content {
    fn region(&mut self) -> &Arc<AlignedBuffer> {
        self.region.get_or_insert_with(|| Arc::new(AlignedBuffer::new(&self.now)))
    }
}

impl MemoryBackend {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of a file.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn contents(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.node(path)?.0.lock().now.to_vec())
    }

    /// Replaces a file, or makes one, as if from outside: what a test does to damage it. Both the name and the
    /// contents count as durable.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn replace(&self, path: &str, bytes: &[u8]) -> Result<()> {
        validate_path(path)?;
        let now = Arc::new(bytes.to_vec());
        let node = Node(Arc::new(Mutex::new(Content { durable: Arc::clone(&now), now, region: None })));
        let mut tree = self.tree.lock();
        tree.files.insert(path.to_owned(), node.clone());
        tree.durable_files.insert(path.to_owned(), node);
        Ok(())
    }

    /// Calls 4 KiB pages of a file cold, as if they were on disk and not in memory: those that `is_cold` says, by their
    /// numbers, and no others. It is what regions that are open say from now on, and lasts until the file is written to or
    /// replaced, whoever reads the pages.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn set_cold(&self, path: &str, is_cold: impl Fn(usize) -> bool) -> Result<()> {
        let node = self.node(path)?;
        node.0.lock().region().set_cold(is_cold);
        Ok(())
    }

    /// Paths of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        self.tree.lock().files.keys().cloned().collect()
    }

    /// What the next process finds after this one and the machine have met `crash`. The files of `self` stay as they
    /// are; no lock is held in the result.
    pub fn after(&self, crash: Crash) -> Self {
        let tree = crash::survivors(&self.tree.lock(), crash);
        Self { tree: Arc::new(Mutex::new(tree)) }
    }

    fn node(&self, path: &str) -> Result<Node> {
        validate_path(path)?;
        self.tree.lock().files.get(path).cloned().ok_or_else(|| Error::Missing { file: path.to_owned() })
    }
}

impl Tree {
    fn require_dir(&self, dir: &str) -> Result<()> {
        if dir.is_empty() || self.dirs.contains(dir) {
            Ok(())
        } else {
            Err(Error::Missing { file: dir.to_owned() })
        }
    }

    /// Moves a directory without others in it. What of its files is durable goes along; which of the two names has
    /// them after a power loss is decided by the directory above.
    fn rename_dir(&mut self, from: &str, to: &str) -> Result<()> {
        self.require_dir(parent(to))?;
        if self.dirs.contains(to) || self.files.contains_key(to) {
            return Err(Error::AlreadyExists { path: to.to_owned() });
        }
        self.dirs.remove(from);
        self.dirs.insert(to.to_owned());
        let moved = |path: &str| format!("{to}{}", path.strip_prefix(from).unwrap_or_default());
        let now: Vec<String> = self.files.keys().filter(|path| lies_in(path, from)).cloned().collect();
        for path in now {
            if let Some(node) = self.files.remove(&path) {
                self.files.insert(moved(&path), node);
            }
        }
        self.durable_files.retain(|path, _| !lies_in(path, to));
        let durable = self.durable_files.iter().filter(|(path, _)| lies_in(path, from));
        let durable: Vec<_> = durable.map(|(path, node)| (moved(path), node.clone())).collect();
        self.durable_files.extend(durable);
        let held: Vec<String> = self.locks.keys().filter(|path| lies_in(path, from)).cloned().collect();
        for path in held {
            if let Some(number) = self.locks.remove(&path) {
                self.locks.insert(moved(&path), number);
            }
        }
        Ok(())
    }
}

/// Whether `path` lies directly in `dir`.
fn lies_in(path: &str, dir: &str) -> bool {
    parent(path) == dir
}

impl Backend for MemoryBackend {
    fn create_dir_all(&self, dir: &str) -> Result<()> {
        validate_path(dir)?;
        let mut tree = self.tree.lock();
        let mut dir = dir;
        while !dir.is_empty() {
            tree.dirs.insert(dir.to_owned());
            dir = parent(dir);
        }
        Ok(())
    }

    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>> {
        validate_path(path)?;
        let mut tree = self.tree.lock();
        tree.require_dir(parent(path))?;
        if tree.files.contains_key(path) || tree.dirs.contains(path) {
            return Err(Error::AlreadyExists { path: path.to_owned() });
        }
        let node = Node::default();
        tree.files.insert(path.to_owned(), node.clone());
        Ok(Box::new(MemoryWriter { node, offset: 0 }))
    }

    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>> {
        let node = self.node(path)?;
        let len = node.0.lock().now.len();
        match usize::try_from(at) {
            Ok(offset) if offset <= len => Ok(Box::new(MemoryWriter { node, offset })),
            _ => Err(Error::corrupt(
                path,
                len as u64,
                format_args!("at least {at} bytes"),
                "the end of the file",
            )),
        }
    }

    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>> {
        Ok(Arc::new(MemoryReader { node: self.node(path)?, path: path.to_owned() }))
    }

    fn map(&self, path: &str) -> Result<Region> {
        Ok(Region::Buffer(Arc::clone(self.node(path)?.0.lock().region())))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        validate_path(from)?;
        validate_path(to)?;
        if self.tree.lock().dirs.contains(from) {
            return self.tree.lock().rename_dir(from, to);
        }
        let node = self.node(from)?;
        let mut tree = self.tree.lock();
        tree.require_dir(parent(to))?;
        tree.files.remove(from);
        tree.files.insert(to.to_owned(), node);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<()> {
        validate_path(path)?;
        let removed = self.tree.lock().files.remove(path);
        removed.map(|_| ()).ok_or_else(|| Error::Missing { file: path.to_owned() })
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        if !self.list(dir)?.is_empty() {
            return Err(Error::io(dir, "remove directory", std::io::ErrorKind::DirectoryNotEmpty.into()));
        }
        self.tree.lock().dirs.remove(dir);
        Ok(())
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        validate_path(dir)?;
        let tree = self.tree.lock();
        tree.require_dir(dir)?;
        let paths = tree.files.keys().chain(&tree.dirs).filter(|path| lies_in(path, dir));
        let mut names: Vec<String> = paths
            .map(|path| path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name).to_owned())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &str) -> Result<bool> {
        validate_path(path)?;
        let tree = self.tree.lock();
        Ok(path.is_empty() || tree.files.contains_key(path) || tree.dirs.contains(path))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        validate_path(dir)?;
        let mut tree = self.tree.lock();
        let Tree { files, durable_files, dirs, durable_dirs, .. } = &mut *tree;
        if !dir.is_empty() && !dirs.contains(dir) {
            return Err(Error::Missing { file: dir.to_owned() });
        }
        durable_files.retain(|path, _| !lies_in(path, dir));
        durable_files
            .extend(files.iter().filter(|(path, _)| lies_in(path, dir)).map(|(p, n)| (p.clone(), n.clone())));
        let gone: Vec<String> =
            durable_dirs.iter().filter(|path| lies_in(path, dir) && !dirs.contains(*path)).cloned().collect();
        durable_files.retain(|path, _| !gone.iter().any(|dir| lies_in(path, dir)));
        durable_dirs.retain(|path| !lies_in(path, dir));
        durable_dirs.extend(dirs.iter().filter(|path| lies_in(path, dir)).cloned());
        Ok(())
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        validate_path(path)?;
        let mut tree = self.tree.lock();
        tree.require_dir(parent(path))?;
        if tree.locks.contains_key(path) {
            return Err(Error::Locked { path: path.to_owned() });
        }
        let number = tree.next_lock;
        tree.next_lock += 1;
        tree.locks.insert(path.to_owned(), number);
        tree.files.entry(path.to_owned()).or_default();
        Ok(Box::new(MemoryLock { tree: Arc::clone(&self.tree), number }))
    }
}

#[derive(Debug)]
struct MemoryWriter {
    node: Node,
    offset: usize,
}

impl FileWriter for MemoryWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let mut content = self.node.0.lock();
        content.region = None;
        let now = Arc::make_mut(&mut content.now);
        let end = self.offset + bytes.len();
        if now.len() < end {
            now.resize(end, 0);
        }
        if let Some(target) = now.get_mut(self.offset..end) {
            target.copy_from_slice(bytes);
        }
        self.offset = end;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let mut content = self.node.0.lock();
        content.durable = Arc::clone(&content.now);
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryReader {
    node: Node,
    path: String,
}

impl FileReader for MemoryReader {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let content = self.node.0.lock();
        let source = usize::try_from(offset)
            .ok()
            .and_then(|start| content.now.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| Error::io(&self.path, "read", std::io::ErrorKind::UnexpectedEof.into()))?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.node.0.lock().now.len() as u64)
    }
}

#[derive(Debug)]
struct MemoryLock {
    tree: Arc<Mutex<Tree>>,
    number: u64,
}

impl LockGuard for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.tree.lock().locks.retain(|_, number| *number != self.number);
    }
}
