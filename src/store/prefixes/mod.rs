//! Which persisted context begins as a text does.

mod file;
mod index;

use super::{Shared, Store};
use crate::context::{Context, ForkAt};
use crate::error::Error;
use crate::model::ModelSpec;
use crate::replay::Replay;
use file::File;
pub(crate) use index::{BLOCK, Chain, Note, chains, seed};
use longwave_storage::{
    Backend, CONTEXTS_DIR, MANIFEST_FILE, Manifest, context_dir, context_file, read_manifest, segment_path,
    validate_name,
};
use parking_lot::Mutex;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Bytes that are read to learn how fast the disk is.
const PROBE_BYTES: u64 = 8 << 20;
const PROBE_STEP: usize = 1 << 20;

/// The longest prefix of a text that a context holds.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixMatch {
    /// The context.
    pub context: String,
    /// Its last commit.
    pub generation: u64,
    /// Tokens in common: the context holds the rows of so many, in every layer that keeps KV.
    pub length: u64,
    /// Tokens that the context has altogether.
    pub context_length: u64,
    /// Bytes of the files that hold those rows, indexes included: what loading reads when everything is touched.
    pub bytes: u64,
    /// How long reading so many bytes takes, at the speed at which this handle has seen files of the store being read;
    /// `None` where that is not known. What the system holds in memory is read faster than the device gives it.
    pub load: Option<Duration>,
}

/// What a store knows of prefixes.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    file: Mutex<File>,
    /// Bytes a second.
    speed: OnceLock<f64>,
}

impl Store {
    /// The persisted context of this model that has the longest prefix of `ids` in common, and what loading it would
    /// cost; `None` where none has a token in common. Contexts without token ids, and those that have dropped rows, are never found, and of a context those
    /// ids that its last commits have made known: at most 63 of the latest may be missing after a crash.
    ///
    /// The index behind it is advice: what is found is compared with the context's manifest, and with its ids by
    /// [`Self::open_prefix`].
    ///
    /// # Errors
    /// [`Error::Storage`] when the index cannot be read, or made where there is none.
    pub fn match_prefix(&self, model: &ModelSpec, ids: &[u32]) -> Result<Option<PrefixMatch>, Error> {
        self.match_prefix_with(model, &[], ids)
    }

    /// As [`Self::match_prefix`], among the contexts that were made with these bytes as
    /// [`crate::ContextOptions::extra`].
    ///
    /// # Errors
    /// As [`Self::match_prefix`].
    pub fn match_prefix_with(
        &self,
        model: &ModelSpec,
        extra: &[u8],
        ids: &[u32],
    ) -> Result<Option<PrefixMatch>, Error> {
        let found = self.shared.longest_prefix(model, extra, ids)?;
        let described = found.map(|(name, manifest, length)| self.describe(name, &manifest, length));
        Ok(described.filter(|found| found.length > 0))
    }

    /// Forks the context of a match at its length into a new context `name`. The ids are compared once more, with those
    /// of the context itself: the fork is as long as they agree.
    ///
    /// # Errors
    /// Those of [`Store::fork`]: [`Error::ContextMissing`] when the context has gone meanwhile.
    pub fn open_prefix(
        &self,
        found: &PrefixMatch,
        name: &str,
        model: &ModelSpec,
        ids: &[u32],
    ) -> Result<Context, Error> {
        validate_name(&found.context)?;
        let ids = &ids[..ids.len().min(found.length as usize)];
        Context::fork_committed(&self.shared, (&found.context, name), model, ForkAt::Prefix(ids))
    }

    fn describe(&self, context: String, manifest: &Manifest, length: u64) -> PrefixMatch {
        let segments = manifest
            .layers
            .iter()
            .flat_map(|layer| layer.segments.iter().chain(layer.cuts.iter().map(|cut| &cut.segment)));
        let segments: Vec<_> = segments.filter(|segment| segment.first_position < length).collect();
        let logs = manifest.row_logs.iter().chain(&manifest.meta_logs).map(|log| log.len);
        let bytes = segments.iter().map(|segment| segment.file_len).sum::<u64>() + logs.sum::<u64>();
        let largest = segments.iter().max_by_key(|segment| segment.file_len);
        if let Some(segment) = largest {
            self.shared.prefixes.probe(self.shared.backend.as_ref(), &segment_path(&segment.file));
        }
        let speed = self.shared.prefixes.speed.get();
        PrefixMatch {
            context,
            generation: manifest.generation,
            length,
            context_length: manifest.token_count,
            bytes,
            load: speed.map(|speed| Duration::from_secs_f64(bytes as f64 / speed)),
        }
    }
}

impl Prefixes {
    /// Times the reading of a file, once.
    fn probe(&self, backend: &dyn Backend, path: &str) {
        if self.speed.get().is_some() {
            return;
        }
        let read = || -> Result<f64, longwave_storage::Error> {
            let reader = backend.open_read(path)?;
            let len = reader.len()?.min(PROBE_BYTES);
            let mut buffer = vec![0; PROBE_STEP.min(len as usize)];
            let (mut at, started) = (0, Instant::now());
            while at + buffer.len() as u64 <= len && !buffer.is_empty() {
                reader.read_exact_at(&mut buffer, at)?;
                at += buffer.len() as u64;
            }
            Ok(at as f64 / started.elapsed().as_secs_f64().max(1e-9))
        };
        match read() {
            Ok(speed) if speed >= 1.0 => drop(self.speed.set(speed)),
            Ok(_) => {}
            Err(error) => tracing::debug!(path, %error, "the speed of the disk is not known"),
        }
    }
}

/// The context that shares most ids with `ids`, and how many.
fn longest(file: &File, seed: Chain, ids: &[u32]) -> Result<Option<(u32, u64)>, Error> {
    let Some((blocks, slots)) = file.index.candidates(seed, ids) else { return Ok(None) };
    let start = blocks * BLOCK as u64;
    let rest = &ids[start as usize..ids.len().min(start as usize + BLOCK)];
    let mut best: Option<(u32, u64)> = None;
    for slot in slots {
        let theirs = file.ids(slot, start, rest.len() as u64)?;
        let same = theirs.iter().zip(rest).take_while(|(a, b)| a == b).count() as u64;
        if best.is_none_or(|(_, most)| start + same > most) {
            best = Some((slot, start + same));
        }
    }
    Ok(best.filter(|(_, length)| *length > 0))
}

/// The manifest of a context, if it is what the index says that it is.
fn verify(
    backend: &dyn Backend,
    name: &str,
    context: [u8; 16],
    model: &ModelSpec,
    chain_at: impl Fn(u64) -> Option<Chain>,
) -> Option<Manifest> {
    let manifest = read_manifest(backend, &context_dir(name)).ok()?;
    // Of a context that has gone on, the index may know fewer blocks; one that was cut may have fewer than it knows.
    let blocks = manifest.token_count / BLOCK as u64;
    let chain = chain_at(blocks);
    let same = chain.is_none_or(|chain| chain.to_le_bytes() == manifest.prefix);
    // One that has dropped rows does not hold the text's.
    let whole = crate::record::forgotten(&manifest, name)
        .is_ok_and(|layers| layers.iter().all(|memory| memory.dropped.is_empty()));
    let found = manifest.context_id == context && manifest.model.identity == model.digest() && same && whole;
    found.then_some(manifest)
}

impl Shared {
    /// The context other than `except` that has most of the first tokens in common with `ids`, and how many.
    pub(crate) fn holder_of(
        &self,
        model: &ModelSpec,
        extra: &[u8],
        ids: &[u32],
        except: &[u8; 16],
    ) -> Result<Option<(String, u64)>, Error> {
        let found = self.longest_prefix(model, extra, ids)?;
        let others = found.filter(|(_, manifest, _)| manifest.context_id != *except);
        Ok(others.map(|(name, _, length)| (name, length)))
    }

    /// The context that has most of the first tokens in common with `ids`, its manifest, and how many.
    fn longest_prefix(
        &self,
        model: &ModelSpec,
        extra: &[u8],
        ids: &[u32],
    ) -> Result<Option<(String, Manifest, u64)>, Error> {
        let backend = self.backend.as_ref();
        let seed = seed(&model.digest(), extra);
        let mut file = self.prefixes.file.lock();
        file.refresh(backend)?;
        if file.is_torn() {
            self.rebuild_prefixes(&mut file)?;
        }
        while let Some((slot, length)) = longest(&file, seed, ids)? {
            let entry = &file.index.entries[slot as usize];
            match verify(backend, &entry.name, entry.context, model, |blocks| {
                file.index.chain_at(slot, blocks)
            }) {
                Some(manifest) => {
                    let length = length.min(manifest.token_count);
                    return Ok(Some((entry.name.clone(), manifest, length)));
                }
                // Removed, renamed by a process that died, or cut and gone on: another one may have the prefix.
                None => file.index.forget(slot),
            }
        }
        Ok(None)
    }

    /// Writes into the index what a commit has made known. It is advice: that it cannot be written is no failure.
    /// Returns whether it was.
    pub(crate) fn note_prefix(&self, note: &Note) -> bool {
        let backend = self.backend.as_ref();
        let Some(_lock) = file::lock(backend) else { return false };
        let mut file = self.prefixes.file.lock();
        let appended = match file.append(backend, note) {
            Ok(Some(())) => return true,
            Ok(None) => self.replace_prefixes(&mut file),
            Err(error) => Err(error),
        };
        if let Err(error) = &appended {
            tracing::warn!(%error, "the index of prefixes could not be written");
        }
        appended.is_ok()
    }

    /// A context has another name, or is gone.
    pub(crate) fn note_renamed(&self, context: &[u8; 16], name: Option<&str>) {
        let note = match name {
            None => Some(Note {
                context: *context,
                name: String::new(),
                seed: 0,
                base: [0; 16],
                first: 0,
                ids: vec![],
            }),
            Some(name) => self.note_of(name).ok().flatten(),
        };
        if let Some(note) = note {
            self.note_prefix(&note);
        }
    }

    fn rebuild_prefixes(&self, file: &mut File) -> Result<(), Error> {
        let backend = self.backend.as_ref();
        // Whoever has the lock is writing the record that could not be read.
        let Some(_lock) = file::lock(backend) else { return Ok(()) };
        file.refresh(backend)?;
        if file.is_torn() { self.replace_prefixes(file) } else { Ok(()) }
    }

    /// Makes the index anew from all contexts; the lock of the index is held.
    fn replace_prefixes(&self, file: &mut File) -> Result<(), Error> {
        let backend = self.backend.as_ref();
        let mut log_id = [0; 16];
        crate::context::random(&mut log_id)?;
        let names = backend.list(CONTEXTS_DIR)?;
        let notes = names.iter().filter_map(|name| self.note_of(name).transpose());
        tracing::info!(contexts = names.len(), "making the index of prefixes anew");
        file.replace(backend, log_id, notes)
    }

    /// All that is known of a context; `None` for one that has no token ids or cannot be read.
    fn note_of(&self, name: &str) -> Result<Option<Note>, Error> {
        let backend = self.backend.as_ref();
        if validate_name(name).is_err() || !backend.exists(&context_file(name, MANIFEST_FILE))? {
            return Ok(None);
        }
        let read = || -> Result<Note, Error> {
            let manifest = read_manifest(backend, &context_dir(name))?;
            let model = crate::record::model_spec(&manifest)?;
            Ok(Note {
                context: manifest.context_id,
                name: name.into(),
                seed: seed(&manifest.model.identity, &manifest.extra),
                base: [0; 16],
                first: 0,
                ids: Replay::of_logs(backend, name, &model).tokens(&manifest.meta_logs)?,
            })
        };
        match read() {
            Ok(note) => Ok(Some(note).filter(|note| !note.ids.is_empty())),
            Err(error) => {
                tracing::warn!(context = name, %error, "not in the index of prefixes");
                Ok(None)
            }
        }
    }
}
