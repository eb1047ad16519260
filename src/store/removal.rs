//! Removing and renaming contexts.

use super::collect::remove_dir_of;
use super::{References, Store};
use crate::context::lock_existing;
use crate::error::Error;
use longwave_storage::{
    Backend, CONTEXTS_DIR, Durability, Error as StorageError, LOCK_FILE, LOGS_DIR, LockGuard, MANIFEST_FILE,
    MANIFEST_REMOVED_FILE, Manifest, SEGMENTS_DIR, context_dir, context_file, file_maker,
    read_durable_manifest, read_manifest, read_recent_manifest, validate_name, write_manifest,
};
use std::collections::HashSet;

impl Store {
    /// Removes a context. From the moment its manifest is renamed it is gone, also after a power loss once this returns;
    /// then its files go, unless other contexts may name them, which [`Self::collect`] finds out. Snapshots that have
    /// read them go on.
    ///
    /// # Errors
    /// [`Error::ContextMissing`]; [`Error::Storage`] when it has a writer, or the manifest cannot be renamed: the
    /// context is then as it was.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let _lock = lock_existing(&self.shared, name)?;
        let references = References::hold(&self.shared)?;
        let backend = self.shared.backend.as_ref();
        let dir = context_dir(name);
        // What cannot be read is removed all the same; its files are then left to a collection.
        let manifests = [read_durable_manifest(backend, &dir), read_recent_manifest(backend, &dir)];
        backend.rename(&context_file(name, MANIFEST_FILE), &context_file(name, MANIFEST_REMOVED_FILE))?;
        backend.sync_dir(&dir)?;
        let manifests: Vec<Manifest> = manifests.into_iter().flatten().collect();
        if let Some(manifest) = manifests.first() {
            self.shared.note_renamed(&manifest.context_id, None);
        }
        if let Err(error) = self.clear_removed(&references, name, manifests) {
            tracing::warn!(context = name, %error, "files of a removed context stay for now");
        }
        Ok(())
    }

    /// The context is gone; so may be its files, as far as it made them and nobody else names them.
    fn clear_removed(
        &self,
        references: &References,
        name: &str,
        manifests: Vec<Manifest>,
    ) -> Result<(), Error> {
        let backend = self.shared.backend.as_ref();
        let mut makers = HashSet::new();
        for manifest in &manifests {
            if !references.is_shared(&manifest.context_id)? {
                makers.insert(manifest.context_id);
            }
        }
        let mut files = Vec::new();
        for dir in [SEGMENTS_DIR, LOGS_DIR] {
            // Also what its writer has sealed and never committed.
            let own = |file: &String| file_maker(file).is_some_and(|(maker, _)| makers.contains(&maker));
            files.extend(backend.list(dir)?.into_iter().filter(own).map(|file| format!("{dir}/{file}")));
        }
        for path in files {
            match backend.remove(&path) {
                Ok(()) | Err(StorageError::Missing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // As long as one of them is there, so is what says that the context was removed.
        backend.sync_dir(SEGMENTS_DIR)?;
        backend.sync_dir(LOGS_DIR)?;
        remove_dir_of(backend, name)?;
        Ok(backend.sync_dir(CONTEXTS_DIR)?)
    }

    /// Renames a context: it has either name at any moment, also after a power loss, and its new one when this returns.
    /// Snapshots go on.
    ///
    /// # Errors
    /// [`Error::ContextMissing`]; [`Error::ContextExists`] for the new name; [`Error::Storage`] when either has a
    /// writer, for a name that is not allowed, or when the directory cannot be renamed.
    pub fn rename(&self, name: &str, new_name: &str) -> Result<(), Error> {
        validate_name(new_name)?;
        let lock = lock_existing(&self.shared, name)?;
        let references = References::hold(&self.shared)?;
        let backend = self.shared.backend.as_ref();
        if backend.exists(&context_file(new_name, MANIFEST_FILE))? {
            return Err(Error::ContextExists { name: new_name.into() });
        }
        clear_leftover(backend, new_name)?;
        backend.rename(&context_dir(name), &context_dir(new_name))?;
        backend.sync_dir(CONTEXTS_DIR)?;
        drop(references);
        // The lock is the directory's, wherever that is. The name in the manifest follows; nothing depends on it.
        self.record_name(new_name, lock)
    }

    fn record_name(&self, name: &str, _lock: Box<dyn LockGuard>) -> Result<(), Error> {
        let (backend, dir) = (self.shared.backend.as_ref(), context_dir(name));
        let manifest = read_manifest(backend, &dir)?;
        self.shared.note_renamed(&manifest.context_id, Some(name));
        let weak = read_recent_manifest(backend, &dir).is_ok_and(|recent| recent == manifest);
        if weak || manifest.name == name {
            // The next commit says it: this one is not to make durable what was not asked to be.
            return Ok(());
        }
        let generation = manifest.generation + 1;
        let renamed = Manifest { name: name.into(), generation, ..manifest };
        if let Err(error) = write_manifest(backend, &dir, &renamed, Durability::Strict) {
            tracing::warn!(context = name, %error, "the manifest still has the old name");
        }
        Ok(())
    }
}

/// A directory without a manifest, which a creation or a removal has left, makes way.
fn clear_leftover(backend: &dyn Backend, name: &str) -> Result<(), Error> {
    match backend.lock(&context_file(name, LOCK_FILE)) {
        Err(StorageError::Missing { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_lock) => Ok(remove_dir_of(backend, name)?),
    }
}
