//! Forking: a context of its own that begins with the rows of another and copies none of them.
//!
//! A fork's manifest names the segments and logs of the context it comes from. Nothing of them is ever written over or
//! shortened, and nobody removes a file that may be named by others before every manifest has been looked at. So the
//! fork stays whatever becomes of the other: appends, cuts, removal.

use super::audit::Audits;
use super::logs::Logs;
use super::open::load_newest;
use super::prefix::Prefix;
use super::{Context, Layer};
use crate::error::Error;
use crate::model::ModelSpec;
use crate::store::{References, Shared, remove_dir_of};
use longwave_storage::{
    Durability, Error as StorageError, MANIFEST_FILE, Manifest, OriginRecord, context_file, file_maker,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::OnceLock;

/// How often a fork starts again when files of the other context vanish under it.
const FORK_ATTEMPTS: usize = 16;

/// Where a fork leaves the other context.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ForkAt<'a> {
    /// At the end of its last commit.
    End,
    /// At so many rows.
    Length(u64),
    /// Where its token ids differ from these, or these end.
    Prefix(&'a [u32]),
}

impl Context {
    /// A new context `name` with all rows of this one, which goes on by itself: segments and logs are shared, nothing is
    /// copied. It is committed strictly. Rows of this context that are not committed yet are committed first.
    ///
    /// # Errors
    /// [`Error::ContextExists`]; [`Error::Storage`] for a name that is not allowed, a lock held elsewhere, or a failed
    /// write; those of [`Self::commit`]. There is no new context then.
    pub fn fork(&mut self, name: &str) -> Result<Context, Error> {
        for layer in self.present_layers() {
            self.install_finished(layer)?;
        }
        self.install_audits();
        if !(self.durable && self.is_logged()) {
            self.commit(Durability::Strict)?;
        }
        let origin = OriginRecord {
            context_id: self.id,
            generation: self.generation,
            length: self.layers.iter().flatten().map(|layer| layer.rows.length()).max().unwrap_or(0),
        };
        let mut fork = Self::begin(&self.store, name, &self.model, self.options.clone())?;
        fork.logs = self.logs.shared();
        fork.layers = self.layers.iter().map(|layer| layer.as_ref().map(Layer::forked)).collect();
        fork.tokens = Arc::clone(&self.tokens);
        fork.audits = self.audits.forked();
        fork.profile = self.profile.clone();
        fork.other_state = self.other_state.clone();
        fork.origin = Some(origin);
        fork.prefix = Prefix::forked(self.tokens.len() as u64, self.id);
        self.note();
        let made = References::hold(&self.store).and_then(|references| fork.commit_shared(&references));
        fork.made(made)
    }

    /// A context whose first commit has succeeded, or nothing at all.
    fn made(self, made: Result<(), Error>) -> Result<Context, Error> {
        let Err(failure) = made else {
            self.store.note_use(&self.name);
            return Ok(self);
        };
        let backend = self.store.backend.as_ref();
        // A commit that failed may have come about all the same.
        if backend.exists(&context_file(&self.name, MANIFEST_FILE)).is_ok_and(|exists| !exists)
            && let Err(error) = remove_dir_of(backend, &self.name)
        {
            tracing::warn!(context = self.name, %error, "a directory without a context stays");
        }
        Err(failure)
    }

    /// Forks the last commit of the context `source`, without being its writer.
    pub(crate) fn fork_committed(
        store: &Arc<Shared>,
        (source, name): (&str, &str),
        model: &ModelSpec,
        place: ForkAt<'_>,
    ) -> Result<Context, Error> {
        let mut attempt = 1;
        loop {
            match Self::try_fork(store, (source, name), model, place) {
                // The other context's writer has gone on, and removed what its last commit does not name.
                Err(Error::Storage(StorageError::Missing { .. })) if attempt < FORK_ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    fn try_fork(
        store: &Arc<Shared>,
        (source, name): (&str, &str),
        model: &ModelSpec,
        place: ForkAt<'_>,
    ) -> Result<Context, Error> {
        let (manifest, loaded) = load_newest(store, source, Some(model))?;
        let length = match place {
            ForkAt::End => None,
            ForkAt::Length(length) => Some(length),
            ForkAt::Prefix(ids) => {
                Some(ids.iter().zip(&loaded.tokens).take_while(|(a, b)| a == b).count() as u64)
            }
        };
        let origin = OriginRecord {
            context_id: manifest.context_id,
            generation: manifest.generation,
            length: length
                .unwrap_or_else(|| manifest.layers.iter().map(|layer| layer.length).max().unwrap_or(0)),
        };
        let mut fork = Self::begin(store, name, &loaded.model, loaded.options)?;
        fork.logs = Logs::resume_shared(&manifest);
        fork.audits = Audits::opened(manifest.layers.len());
        fork.layers = loaded.layers;
        fork.tokens = Arc::new(loaded.tokens);
        fork.other_state = crate::record::other_state(&manifest);
        fork.origin = Some(origin);
        if fork.logs.rows_logged.is_none() {
            // Of an older version, with logs that only their context may name.
            fork.layers.iter_mut().flatten().for_each(|layer| layer.sample.unsettle());
        }
        let made = fork.leave(source, &manifest, length);
        fork.made(made)
    }

    /// Makes the copy of another context's last commit a fork of it.
    fn leave(&mut self, source: &str, manifest: &Manifest, length: Option<u64>) -> Result<(), Error> {
        if let Some(length) = length {
            self.truncate(length)?;
        }
        self.prefix = Prefix::forked(self.tokens.len() as u64, manifest.context_id);
        let references = References::hold(&self.store)?;
        for path in self.named_files() {
            if !self.store.backend.exists(&path)? {
                return Err(StorageError::Missing { file: path }.into());
            }
        }
        make_durable(&self.store, source, manifest)?;
        self.commit_shared(&references)
    }

    /// The first commit of a fork. Whoever made the files that it names is marked before.
    fn commit_shared(&mut self, references: &References) -> Result<(), Error> {
        let makers: HashSet<[u8; 16]> = self
            .named_files()
            .iter()
            .filter_map(|path| file_maker(path.rsplit_once('/')?.1))
            .map(|(maker, _)| maker)
            .filter(|maker| *maker != self.id)
            .collect();
        references.share(&makers)?;
        self.commit(Durability::Strict)
    }

    /// Whether the logs hold everything that segments do not.
    fn is_logged(&self) -> bool {
        let Some(logged) = &self.logs.rows_logged else { return false };
        let lengths = self.layers.iter().zip(logged);
        let mut rows =
            lengths.map(|(layer, logged)| (layer.as_ref().map(|layer| layer.rows.length()), logged));
        rows.all(|(length, logged)| length.is_none_or(|length| length == *logged))
            && self.logs.tokens_logged == self.tokens.len()
            && !self.has_unsaved_queries()
    }
}

/// What a weak commit names may not be on the device yet: the fork's own commit will promise that it is.
fn make_durable(store: &Shared, source: &str, manifest: &Manifest) -> Result<(), Error> {
    for log in manifest.row_logs.iter().chain(&manifest.meta_logs) {
        store.backend.open_append(&log.path(source), log.len)?.sync()?;
    }
    Ok(())
}

impl Layer {
    fn forked(&self) -> Layer {
        let unset = self.bases.get().is_none();
        Layer {
            rows: self.rows.clone(),
            clustered: self.clustered,
            pending: Default::default(),
            cuts: self.cuts.clone(),
            marks: self.marks.clone(),
            abandoned: Vec::new(),
            queued_end: self.rows.sealed_end().max(self.rows.tail.sinks()),
            sample: self.sample.clone(),
            // Whoever seals first would set it for both.
            bases: if unset { Arc::new(OnceLock::new()) } else { Arc::clone(&self.bases) },
            rebuilding: None,
            dropped_at: self.dropped_at,
            metric_known: self.metric_known && self.rebuilding.is_none(),
        }
    }
}
