//! Who may name a file, and who may remove one.
//!
//! A file belongs to the context whose identifier its name carries, and other contexts may name it: forks, and forks of
//! forks. Before a manifest names another context's file, its maker gets a mark, an empty file in `shares/`. A writer
//! removes what it no longer needs only while it has no mark; of marked ones, [`crate::Store::collect`] removes what no
//! manifest names. One lock orders all of that, across processes: it is held from the setting of a mark to the commit of
//! the manifest, and from the look at marks or manifests to the removal of files.

use super::Shared;
use crate::error::Error;
use longwave_storage::{Error as StorageError, LockGuard, REFERENCES_LOCK, SHARES_DIR, share_path};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the lock is waited for. It is held for the time of a commit, or of a collection.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The right to name other contexts' files, and to remove files.
#[derive(Debug)]
pub(crate) struct References {
    store: Arc<Shared>,
    _lock: Box<dyn LockGuard>,
}

impl References {
    /// Takes the lock as soon as it is free.
    pub(crate) fn hold(store: &Arc<Shared>) -> Result<Self, Error> {
        let (started, mut pause) = (Instant::now(), Duration::from_micros(50));
        loop {
            match Self::try_hold(store) {
                Err(Error::Storage(StorageError::Locked { .. })) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(pause);
                    pause = (2 * pause).min(PAUSE_MAX);
                }
                other => return other,
            }
        }
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_hold(store: &Arc<Shared>) -> Result<Self, Error> {
        Ok(References { _lock: store.backend.lock(REFERENCES_LOCK)?, store: Arc::clone(store) })
    }

    /// Marks contexts whose files are about to be named by another.
    pub(crate) fn share(&self, makers: &HashSet<[u8; 16]>) -> Result<(), Error> {
        let backend = self.store.backend.as_ref();
        for maker in makers {
            match backend.create_new(&share_path(maker)) {
                Ok(_) | Err(StorageError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Those that were there may not be durable: whoever made them may have died before this.
        if makers.is_empty() { Ok(()) } else { Ok(backend.sync_dir(SHARES_DIR)?) }
    }

    /// Whether other contexts may name files of this one.
    pub(crate) fn is_shared(&self, maker: &[u8; 16]) -> Result<bool, Error> {
        Ok(self.store.backend.exists(&share_path(maker))?)
    }
}
