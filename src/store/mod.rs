//! A directory of contexts.

mod collect;
mod prefixes;
mod references;
mod removal;
mod retention;

use crate::accuracy::Auditor;
use crate::context::{Context, ForkAt};
use crate::error::Error;
use crate::model::ModelSpec;
use crate::options::{AuditOptions, Compaction, ContextOptions, StoreOptions};
use crate::sealer::Sealer;
use crate::snapshot::Snapshot;
use longwave_storage::{
    Backend, CONTEXTS_DIR, Durability, Error as StorageError, FileBackend, GroupedBackend, MANIFEST_FILE,
    MemoryBackend, PREFIXES_FILE, PREFIXES_LOCK, PREFIXES_NEW_FILE, REFERENCES_LOCK, STORE_DIRS, STORE_FILE,
    StoreHeader, context_dir, context_file, create_store, read_manifest, read_store, validate_name,
};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;

pub use collect::Collected;
pub(crate) use collect::remove_dir_of;
pub use prefixes::PrefixMatch;
use prefixes::Prefixes;
pub(crate) use prefixes::{BLOCK, Chain, Note, chains, seed};
pub(crate) use references::References;
pub use retention::{Evicted, EvictionOrder, Retained, Retention};

/// Contexts that [`Store::commit_all`] commits at a time.
const COMMITS_MAX: usize = 32;

/// What every context of a store shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) sealer: Sealer,
    pub(crate) auditor: Auditor,
    pub(crate) audits: AuditOptions,
    pub(crate) pool: Option<Arc<rayon::ThreadPool>>,
    /// Held while a model's profile is read and written again.
    pub(crate) profiles: Mutex<()>,
    prefixes: Prefixes,
    ignore_uses: bool,
    pub(crate) compaction: Compaction,
}

/// A store: contexts, each with its manifest and logs, and the segments that they name.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

impl Store {
    /// Opens the store in `path`, and makes one where the directory is missing or empty.
    ///
    /// # Errors
    /// [`Error::Storage`] when the directory holds something else, a store of another format version, or cannot be
    /// read.
    pub fn open(path: impl AsRef<Path>, options: StoreOptions) -> Result<Store, Error> {
        let mut backend = FileBackend::new(path.as_ref());
        if options.mappings_max > 0 {
            backend = backend.with_mapping_limit(options.mappings_max);
        }
        Self::on_backend(Arc::new(backend), options)
    }

    /// A store in memory. It is gone when the last handle is.
    ///
    /// # Errors
    /// None at present.
    pub fn in_memory(options: StoreOptions) -> Result<Store, Error> {
        Self::on_backend(Arc::new(MemoryBackend::new()), options)
    }

    /// A store on any backend, for tests that inject faults and for other media.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn on_backend(backend: Arc<dyn Backend>, options: StoreOptions) -> Result<Store, Error> {
        if backend.exists(STORE_FILE)? {
            read_store(backend.as_ref())?;
        } else {
            refuse_other_content(backend.as_ref())?;
            let mut store_id = [0; 16];
            crate::context::random(&mut store_id)?;
            create_store(backend.as_ref(), &StoreHeader { store_id })?;
        }
        for dir in STORE_DIRS {
            backend.create_dir_all(dir)?;
        }
        let backend: Arc<dyn Backend> =
            if options.separate_syncs { backend } else { Arc::new(GroupedBackend::new(backend)) };
        let sealer = Sealer::new(options.sealing_threads);
        let shared = Shared {
            backend,
            sealer,
            auditor: Auditor::default(),
            audits: options.audits,
            pool: options.pool,
            profiles: Mutex::default(),
            prefixes: Prefixes::default(),
            ignore_uses: options.ignore_uses,
            compaction: options.compaction,
        };
        Ok(Store { shared: Arc::new(shared) })
    }

    /// The backend, for tools that look at files.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.backend
    }

    /// Creates a context and commits it, empty.
    ///
    /// # Errors
    /// [`Error::ContextExists`]; [`Error::Invalid`] for a model that cannot be worked with; [`Error::Storage`] for a
    /// name that is not allowed, a lock held elsewhere, or a failed write.
    pub fn create(&self, name: &str, model: &ModelSpec) -> Result<Context, Error> {
        self.create_with(name, model, ContextOptions::default())
    }

    /// As [`Self::create`], with options, which are recorded.
    ///
    /// # Errors
    /// As [`Self::create`]; [`Error::Invalid`] for an option out of range.
    pub fn create_with(
        &self,
        name: &str,
        model: &ModelSpec,
        options: ContextOptions,
    ) -> Result<Context, Error> {
        let context = Context::create(&self.shared, name, model, options)?;
        self.shared.note_use(name);
        Ok(context)
    }

    /// Opens a committed context for writing.
    ///
    /// # Errors
    /// [`Error::ContextMissing`]; [`Error::ModelMismatch`] when another model made it; [`Error::Storage`] when
    /// another writer holds it, or its files cannot be read or do not verify.
    pub fn context(&self, name: &str, model: &ModelSpec) -> Result<Context, Error> {
        let context = Context::open(&self.shared, name, model)?;
        self.shared.note_use(name);
        Ok(context)
    }

    /// Forks the last commit of the context `source`, at its first `length` rows or all of them, into a new context
    /// `name`. Unlike [`Context::fork`] it needs no writer of `source`, which may go on beside it, in this or another
    /// process.
    ///
    /// # Errors
    /// Those of [`Self::context`] and of [`Context::fork`]; [`Error::Invalid`] when `source` is shorter than `length`.
    pub fn fork(
        &self,
        source: &str,
        name: &str,
        model: &ModelSpec,
        length: Option<u64>,
    ) -> Result<Context, Error> {
        validate_name(source)?;
        let place = length.map_or(ForkAt::End, ForkAt::Length);
        Context::fork_committed(&self.shared, (source, name), model, place)
    }

    /// Opens the last commit of a context for reading. No lock is taken: a writer may go on beside it, in this or
    /// another process.
    ///
    /// # Errors
    /// [`Error::ContextMissing`], [`Error::Storage`].
    pub fn snapshot(&self, name: &str) -> Result<Snapshot, Error> {
        let snapshot = Context::open_snapshot(&self.shared, name)?;
        self.shared.note_use(name);
        Ok(snapshot)
    }

    /// Commits several contexts at once, so that they share syncs: each by a thread of its own, at most 32 at a time. What
    /// became of each is told in their order; that one fails is no hindrance to the others.
    pub fn commit_all(contexts: &mut [Context], durability: Durability) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(contexts.len());
        for some in contexts.chunks_mut(COMMITS_MAX) {
            std::thread::scope(|scope| {
                let commit = |context| scope.spawn(|| Context::commit(context, durability));
                let commits: Vec<_> = some.iter_mut().map(commit).collect();
                let ended = commits.into_iter().map(|commit| commit.join());
                results.extend(
                    ended.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
                );
            });
        }
        results
    }

    /// Whether a committed context of this name exists.
    ///
    /// # Errors
    /// [`Error::Storage`] for a name that is not allowed, or when the directory cannot be read.
    pub fn contains(&self, name: &str) -> Result<bool, Error> {
        validate_name(name)?;
        Ok(self.shared.backend.exists(&context_file(name, MANIFEST_FILE))?)
    }

    /// Names of the committed contexts, sorted.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn contexts(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for name in self.shared.backend.list(CONTEXTS_DIR)? {
            if validate_name(&name).is_ok() && self.contains(&name)? {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Bytes of all files of the store.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn bytes_on_disk(&self) -> Result<u64, Error> {
        Ok(longwave_storage::check::store_bytes(self.shared.backend.as_ref())?)
    }

    /// The manifest of a context, as it lies on disk.
    ///
    /// # Errors
    /// [`Error::ContextMissing`], [`Error::Storage`].
    pub fn manifest(&self, name: &str) -> Result<longwave_storage::Manifest, Error> {
        if !self.contains(name)? {
            return Err(Error::ContextMissing { name: name.into() });
        }
        Ok(read_manifest(self.shared.backend.as_ref(), &context_dir(name))?)
    }
}

/// A directory without a header may hold what the making of a store leaves behind when it is cut off, and nothing else:
/// not another program's files, nor contexts whose header is lost.
fn refuse_other_content(backend: &dyn Backend) -> Result<(), Error> {
    let list = |dir: &str| match backend.list(dir) {
        Err(StorageError::Missing { .. }) => Ok(Vec::new()),
        listed => listed,
    };
    let provisional = format!("{STORE_FILE}.new");
    let mut others = list("")?;
    others.retain(|name| {
        let own = STORE_DIRS.contains(&name.as_str())
            || [&provisional, REFERENCES_LOCK, PREFIXES_FILE, PREFIXES_NEW_FILE, PREFIXES_LOCK]
                .contains(&name.as_str());
        !own && name != "lost+found"
    });
    for dir in STORE_DIRS {
        others.extend(list(dir)?.into_iter().map(|name| format!("{dir}/{name}")));
    }
    match others.first() {
        None => Ok(()),
        Some(found) => {
            let (file, expected, found) =
                (STORE_FILE.into(), "the header of a store, or an empty directory".into(), found.clone());
            Err(StorageError::Corrupt { file, column: None, offset: 0, expected, found }.into())
        }
    }
}
