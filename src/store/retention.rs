//! Keeping a store within bounds: which contexts go when it is full.

use super::{Shared, Store};
use crate::error::Error;
use longwave_storage::{
    Backend, Error as StorageError, Manifest, PINNED_FILE, USED_FILE, context_dir, context_file,
    read_manifest, validate_name,
};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A use is written down when the last one that was is this old.
const USE_STEP: Duration = Duration::from_secs(60);

/// The bounds of a store, and what goes first.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Retention {
    /// Most bytes of segments and logs that contexts name, each file counted once; `None`: any.
    pub bytes_max: Option<u64>,
    /// Most contexts; `None`: any.
    pub contexts_max: Option<u64>,
    /// What goes first.
    pub order: EvictionOrder,
}

/// Which contexts go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EvictionOrder {
    /// Those that were opened, read or committed longest ago, to the minute.
    #[default]
    LeastRecentlyUsed,
    /// Those that cost least to compute again for each byte that they free: operations of a prefill, estimated from the
    /// model's dimensions as 24 h² a token and layer, and 2 h n² a layer of n tokens, h being query heads times value
    /// elements. Bytes that other contexts name as well are not freed.
    RecomputePerByte,
}

impl Retention {
    /// No bounds.
    pub fn unbounded(order: EvictionOrder) -> Self {
        Retention { bytes_max: None, contexts_max: None, order }
    }

    /// Sets the most bytes.
    pub fn with_bytes_max(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(bytes);
        self
    }

    /// Sets the most contexts.
    pub fn with_contexts_max(mut self, contexts: u64) -> Self {
        self.contexts_max = Some(contexts);
        self
    }
}

/// A context that went, or would go.
#[derive(Clone, Debug, PartialEq)]
pub struct Evicted {
    /// Its name.
    pub name: String,
    /// Bytes that no remaining context names.
    pub bytes: u64,
    /// When it was last used, in seconds since 1970; 0 where that is not known.
    pub used: u64,
    /// Operations that computing it again takes, estimated.
    pub cost: f64,
}

/// What a retention found and did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retained {
    /// What went, in that order.
    pub evicted: Vec<Evicted>,
    /// Contexts that stay, and the bytes that they name.
    pub contexts: u64,
    /// Bytes of the files that they name, each counted once.
    pub bytes: u64,
    /// Contexts that would have gone, had they not been pinned or open for writing.
    pub kept: Vec<String>,
}

/// One context as far as retention is concerned.
struct Candidate {
    name: String,
    /// Path and bytes of what it names.
    files: Vec<(String, u64)>,
    used: u64,
    cost: f64,
    pinned: bool,
}

impl Store {
    /// Removes contexts in the order of the policy until the store is within its bounds. Pinned ones stay, and those that
    /// have a writer; so a store can be over its bounds afterwards. Files that forks share go with the last of them, by
    /// [`Self::collect`].
    ///
    /// With `dry_run` nothing is removed: the report says what would go, writers aside.
    ///
    /// # Errors
    /// [`Error::Storage`] when the contexts cannot be listed or one cannot be removed. A context that cannot be read is
    /// counted as empty, and stays.
    pub fn retain(&self, policy: &Retention, dry_run: bool) -> Result<Retained, Error> {
        let mut candidates = Vec::new();
        for name in self.contexts()? {
            match self.candidate(&name) {
                Ok(candidate) => candidates.push(candidate),
                Err(error) => tracing::warn!(context = name, %error, "not looked at for retention"),
            }
        }
        let mut named: HashMap<String, (u64, u64)> = HashMap::new();
        for (path, bytes) in candidates.iter().flat_map(|candidate| &candidate.files) {
            named.entry(path.clone()).or_insert((0, *bytes)).0 += 1;
        }
        let mut retained = Retained {
            contexts: candidates.len() as u64,
            bytes: named.values().map(|(_, bytes)| bytes).sum(),
            ..Retained::default()
        };
        let over = |retained: &Retained| {
            policy.bytes_max.is_some_and(|most| retained.bytes > most)
                || policy.contexts_max.is_some_and(|most| retained.contexts > most)
        };
        while over(&retained) && !candidates.is_empty() {
            let freed = |candidate: &Candidate| -> u64 {
                let alone =
                    candidate.files.iter().filter(|(path, _)| named.get(path).is_some_and(|n| n.0 == 1));
                alone.map(|(_, bytes)| bytes).sum()
            };
            let first = candidates.iter().enumerate().min_by(|(_, a), (_, b)| match policy.order {
                EvictionOrder::LeastRecentlyUsed => a.used.cmp(&b.used).then_with(|| a.name.cmp(&b.name)),
                EvictionOrder::RecomputePerByte => {
                    let per_byte = |candidate: &Candidate| candidate.cost / freed(candidate).max(1) as f64;
                    per_byte(a).total_cmp(&per_byte(b)).then_with(|| a.name.cmp(&b.name))
                }
            });
            let Some((at, bytes)) = first.map(|(at, candidate)| (at, freed(candidate))) else { break };
            let candidate = candidates.swap_remove(at);
            if candidate.pinned || !dry_run && !self.evict(&candidate.name)? {
                retained.kept.push(candidate.name);
                continue;
            }
            for (path, _) in &candidate.files {
                if let Some((count, _)) = named.get_mut(path) {
                    *count -= 1;
                }
            }
            retained.contexts -= 1;
            retained.bytes -= bytes;
            let Candidate { name, used, cost, .. } = candidate;
            retained.evicted.push(Evicted { name, bytes, used, cost });
        }
        if !dry_run && !retained.evicted.is_empty() {
            self.collect(false)?;
        }
        Ok(retained)
    }

    /// Whether the context is gone: not when it has a writer.
    fn evict(&self, name: &str) -> Result<bool, Error> {
        match self.remove(name) {
            Ok(()) | Err(Error::ContextMissing { .. }) => Ok(true),
            Err(Error::Storage(StorageError::Locked { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Says that a context is to stay, or may go again. Holds until it is removed, whatever its name.
    ///
    /// # Errors
    /// [`Error::ContextMissing`], [`Error::Storage`].
    pub fn pin(&self, name: &str, pinned: bool) -> Result<(), Error> {
        let backend = self.shared.backend.as_ref();
        if !self.contains(name)? {
            return Err(Error::ContextMissing { name: name.into() });
        }
        let path = context_file(name, PINNED_FILE);
        let done = if pinned { backend.create_new(&path).map(|_| ()) } else { backend.remove(&path) };
        match done {
            Ok(()) => Ok(backend.sync_dir(&context_dir(name))?),
            // It was so before.
            Err(StorageError::AlreadyExists { .. } | StorageError::Missing { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a context is pinned.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn is_pinned(&self, name: &str) -> Result<bool, Error> {
        validate_name(name)?;
        Ok(self.shared.backend.exists(&context_file(name, PINNED_FILE))?)
    }

    fn candidate(&self, name: &str) -> Result<Candidate, Error> {
        let backend = self.shared.backend.as_ref();
        let manifest = read_manifest(backend, &context_dir(name))?;
        let segments = manifest
            .layers
            .iter()
            .flat_map(|layer| layer.segments.iter().chain(layer.cuts.iter().map(|cut| &cut.segment)));
        let segments = segments.map(|s| (longwave_storage::segment_path(&s.file), s.file_len));
        let logs = manifest.row_logs.iter().chain(&manifest.meta_logs).map(|log| (log.path(name), log.len));
        Ok(Candidate {
            name: name.into(),
            files: segments.chain(logs).collect(),
            used: last_use(backend, name),
            cost: recompute_cost(&manifest),
            pinned: self.is_pinned(name)?,
        })
    }
}

impl Shared {
    /// Writes down that a context is used now. That it cannot be, on a medium that is read only say, matters to nothing
    /// but the order of eviction.
    pub(crate) fn note_use(&self, name: &str) {
        if self.ignore_uses {
            return;
        }
        let backend = self.backend.as_ref();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = last_use(backend, name);
        // After a clock was set back a use counts as new.
        if last <= now && now - last < USE_STEP.as_secs() {
            return;
        }
        let path = context_file(name, USED_FILE);
        let open = || match backend.open_append(&path, 0) {
            Err(StorageError::Missing { .. }) => backend.create_new(&path),
            opened => opened,
        };
        if let Err(error) = open().and_then(|mut file| file.write_all(&now.to_le_bytes())) {
            tracing::debug!(context = name, %error, "a use was not written down");
        }
    }
}

/// Seconds since 1970; 0 where nothing is written down, or nothing that can be read.
fn last_use(backend: &dyn Backend, name: &str) -> u64 {
    let mut bytes = [0; 8];
    let read = backend.open_read(&context_file(name, USED_FILE));
    match read.and_then(|reader| reader.read_exact_at(&mut bytes, 0)) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// Operations of a prefill.
fn recompute_cost(manifest: &Manifest) -> f64 {
    let hidden = f64::from(manifest.model.query_heads) * f64::from(manifest.model.value_dim);
    let layers = manifest.layers.iter().map(|layer| {
        let rows = layer.length as f64;
        24.0 * hidden * hidden * rows + 2.0 * hidden * rows * rows
    });
    layers.sum()
}
