//! Removing files that no manifest names.

use super::{References, Store};
use crate::error::Error;
use longwave_storage::{
    Backend, CONTEXTS_DIR, Error as StorageError, LOCK_FILE, LOGS_DIR, LockGuard, MANIFEST_FILE,
    MANIFEST_REMOVED_FILE, Manifest, SEGMENTS_DIR, SHARES_DIR, context_dir, context_file, file_maker,
    read_durable_manifest, read_recent_manifest, share_maker, share_path, validate_name,
};
use std::collections::{HashMap, HashSet};

/// What a collection has removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Paths of the files in the store, sorted.
    pub files: Vec<String>,
    /// Their bytes altogether.
    pub bytes: u64,
    /// Files that no manifest names and that stay, since a writer that is at work may still name them.
    pub in_use: u64,
}

/// What the manifests of a store say.
#[derive(Default)]
struct Known {
    /// Paths of all files that a manifest names, each with the contexts that name it.
    named: HashMap<String, Vec<[u8; 16]>>,
    /// By identifier: the context's name and the number from which on its writer may hold files that none names.
    contexts: HashMap<[u8; 16], (String, u64)>,
    /// Directories without a manifest: of a removal, or of a creation, that was cut off or is under way.
    unfinished: Vec<String>,
    /// Those of them that are not of a removal.
    without_manifest: Vec<String>,
}

impl Store {
    /// Removes the segments and logs that no manifest names, and what creations and removals have left that were cut
    /// off. It can be killed at any point, and writers and readers of any process go on beside it: files that a writer
    /// at work may still name stay. Snapshots go on.
    ///
    /// With `dry_run` nothing is removed.
    ///
    /// # Errors
    /// [`Error::Storage`]: a manifest that cannot be read, since nothing tells what it names; the lock, held for a
    /// minute; a directory that cannot be listed. What was removed before stays so.
    pub fn collect(&self, dry_run: bool) -> Result<Collected, Error> {
        let _references = References::hold(&self.shared)?;
        let backend = self.shared.backend.as_ref();
        let known = Known::read(backend)?;
        let mut collected = Collected::default();
        let candidates = known.candidates(backend)?;
        let unknown = known.unknown_makers(backend, &candidates)?;
        if !dry_run && !candidates.is_empty() {
            // A commit, or a removal, that a power loss may undo must not cost what was there before its files.
            for name in known.contexts.values().map(|(name, _)| name).chain(&known.unfinished) {
                match backend.sync_dir(&context_dir(name)) {
                    // Whoever was making it has given up.
                    Err(StorageError::Missing { .. }) => {}
                    synced => synced?,
                }
            }
        }
        // Whether a context has a writer is asked once, and a lock that was got is kept until all is removed.
        let mut idle: HashMap<[u8; 16], Option<Box<dyn LockGuard>>> = HashMap::new();
        for (path, maker, number) in candidates {
            if unknown.contains(&maker) {
                collected.in_use += 1;
                continue;
            }
            if let Some((name, first_unnamed)) = known.contexts.get(&maker)
                && number >= *first_unnamed
            {
                let lock =
                    idle.entry(maker).or_insert_with(|| backend.lock(&context_file(name, LOCK_FILE)).ok());
                // A commit since may have named it.
                if lock.is_none() || names_now(backend, name, &path)? {
                    collected.in_use += 1;
                    continue;
                }
            }
            collected.take(backend, path, dry_run)?;
        }
        drop(idle);
        if !dry_run {
            known.clear_marks(backend)?;
            known.unfinished.iter().for_each(|name| clear_unfinished(backend, name));
        }
        collected.files.sort_unstable();
        Ok(collected)
    }
}

impl Collected {
    fn take(&mut self, backend: &dyn Backend, path: String, dry_run: bool) -> Result<(), Error> {
        let len = match backend.open_read(&path).and_then(|reader| reader.len()) {
            // Its writer has removed it meanwhile.
            Err(StorageError::Missing { .. }) => return Ok(()),
            len => len?,
        };
        if !dry_run {
            match backend.remove(&path) {
                Err(StorageError::Missing { .. }) => return Ok(()),
                removed => removed?,
            }
            tracing::info!(path, "removed a file no manifest names");
        }
        self.bytes += len;
        self.files.push(path);
        Ok(())
    }
}

impl Known {
    fn read(backend: &dyn Backend) -> Result<Self, Error> {
        let mut known = Known::default();
        for name in backend.list(CONTEXTS_DIR)? {
            if validate_name(&name).is_err() {
                continue;
            }
            if !backend.exists(&context_file(&name, MANIFEST_FILE))? {
                if !backend.exists(&context_file(&name, MANIFEST_REMOVED_FILE))? {
                    known.without_manifest.push(name.clone());
                }
                known.unfinished.push(name);
                continue;
            }
            // The one that is not durable first: a commit between the two reads replaces both.
            let recent = match read_recent_manifest(backend, &context_dir(&name)) {
                Ok(recent) => Some(recent),
                // Torn by a power loss, or none: it does not count.
                Err(StorageError::Missing { .. } | StorageError::Corrupt { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            // Removal and renaming take the lock that is held here: an error is damage.
            let durable = read_durable_manifest(backend, &context_dir(&name))?;
            let newer = recent.as_ref().filter(|recent| recent.generation > durable.generation);
            let counts = newer.unwrap_or(&durable);
            known.contexts.insert(durable.context_id, (name.clone(), counts.first_unnamed));
            [Some(&durable), recent.as_ref()]
                .into_iter()
                .flatten()
                .for_each(|manifest| known.add(&name, manifest));
        }
        Ok(known)
    }

    fn add(&mut self, name: &str, manifest: &Manifest) {
        for path in manifest.files(name) {
            self.named.entry(path).or_default().push(manifest.context_id);
        }
    }

    /// Files that no manifest names: path, maker, number.
    fn candidates(&self, backend: &dyn Backend) -> Result<Vec<(String, [u8; 16], u64)>, Error> {
        let mut candidates = Vec::new();
        for dir in [SEGMENTS_DIR, LOGS_DIR] {
            for file in backend.list(dir)? {
                let path = format!("{dir}/{file}");
                if let Some((maker, number)) = file_maker(&file).filter(|_| !self.named.contains_key(&path)) {
                    candidates.push((path, maker, number));
                }
            }
        }
        Ok(candidates)
    }

    /// Makers that have no manifest: contexts that were removed, or whose manifest is lost. If there is a directory that
    /// may be that of a lost one, nobody can tell, and nothing is removed. If there are only such as someone is making
    /// now, their files are left for a later collection.
    fn unknown_makers(
        &self,
        backend: &dyn Backend,
        candidates: &[(String, [u8; 16], u64)],
    ) -> Result<HashSet<[u8; 16]>, Error> {
        let mut unknown = HashSet::new();
        if self.without_manifest.is_empty() {
            return Ok(unknown);
        }
        for (path, maker, _) in candidates {
            if self.contexts.contains_key(maker)
                || unknown.contains(maker)
                || backend.exists(&share_path(maker))?
            {
                continue;
            }
            let idle = |name: &&String| backend.lock(&context_file(name, LOCK_FILE)).is_ok();
            if let Some(name) = self.without_manifest.iter().find(idle) {
                tracing::error!(
                    path,
                    context = name,
                    "cannot tell whether a file belongs to a lost manifest"
                );
                return Err(StorageError::Missing { file: context_file(name, MANIFEST_FILE) }.into());
            }
            unknown.insert(*maker);
        }
        Ok(unknown)
    }

    /// Removes the marks of contexts whose files no other context names any more.
    fn clear_marks(&self, backend: &dyn Backend) -> Result<(), Error> {
        let shared: HashSet<[u8; 16]> = self
            .named
            .iter()
            .filter_map(|(path, by)| Some((file_maker(path.rsplit_once('/')?.1)?.0, by)))
            .filter(|(maker, by)| by.iter().any(|context| context != maker))
            .map(|(maker, _)| maker)
            .collect();
        for file in backend.list(SHARES_DIR)? {
            if share_maker(&file).is_some_and(|maker| !shared.contains(&maker)) {
                backend.remove(&format!("{SHARES_DIR}/{file}"))?;
            }
        }
        Ok(())
    }
}

/// Whether the manifest of an idle context names a file, now that its lock is held.
fn names_now(backend: &dyn Backend, name: &str, path: &str) -> Result<bool, Error> {
    let names = |manifest: Result<Manifest, StorageError>| match manifest {
        Err(StorageError::Missing { .. } | StorageError::Corrupt { .. }) => Ok(false),
        manifest => Ok::<_, Error>(manifest?.files(name).iter().any(|named| named == path)),
    };
    let dir = context_dir(name);
    Ok(names(read_durable_manifest(backend, &dir))? || names(read_recent_manifest(backend, &dir))?)
}

/// Removes the directory of a context that has no manifest, unless someone is making it.
pub(super) fn clear_unfinished(backend: &dyn Backend, name: &str) {
    let Ok(lock) = backend.lock(&context_file(name, LOCK_FILE)) else { return };
    if let Err(error) = remove_dir_of(backend, name) {
        tracing::warn!(context = name, %error, "an unfinished context stays");
    }
    drop(lock);
}

/// Removes the directory of a context whose manifest is gone and whose lock is held: the lock goes last, and the removed
/// manifest before it.
pub(crate) fn remove_dir_of(backend: &dyn Backend, name: &str) -> Result<(), StorageError> {
    let dir = context_dir(name);
    let mut files = backend.list(&dir)?;
    files.retain(|file| file != LOCK_FILE);
    files.sort_by_key(|file| file == MANIFEST_REMOVED_FILE);
    for file in files {
        backend.remove(&format!("{dir}/{file}"))?;
    }
    backend.remove(&context_file(name, LOCK_FILE))?;
    backend.remove_dir(&dir)
}
