//! Creating a context, and bringing a committed one back.

use super::audit::Audits;
use super::commit::Replaced;
use super::logs::Logs;
use super::marks::restore_marks;
use super::prefix::Prefix;
use super::{Context, Layer};
use crate::error::Error;
use crate::forgetting::{Dropped, Memory};
use crate::layer::LayerRows;
use crate::model::{LayerKind, ModelSpec};
use crate::options::ContextOptions;
use crate::record;
use crate::replay::Replay;
use crate::sample::QuerySample;
use crate::sealing::Sealed;
use crate::snapshot::{Snapshot, SnapshotInner};
use crate::store::{References, Shared};
use longwave_storage::{
    Durability, Error as StorageError, Expected, LOCK_FILE, LOGS_DIR, LayerRecord, LockGuard, LogPlace,
    MANIFEST_FILE, Manifest, SEGMENTS_DIR, Segment, SegmentRecord, context_dir, context_file,
    discard_recent_manifest, file_maker, read_durable_manifest, read_manifest, read_recent_manifest,
    remove_unfinished_profile, segment_path, validate_name,
};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often a context's lock is tried, 2 ms apart, before a collection that may have it is waited for.
const LOCK_ATTEMPTS: usize = 8;
/// How often a reader starts again when the files of its manifest vanish under it.
const READ_ATTEMPTS: usize = 16;

/// A context's content as its manifest and logs tell it.
pub(super) struct Loaded {
    pub(super) model: ModelSpec,
    pub(super) options: ContextOptions,
    pub(super) layers: Vec<Option<Layer>>,
    pub(super) tokens: Vec<u32>,
}

impl Context {
    pub(crate) fn create(
        store: &Arc<Shared>,
        name: &str,
        model: &ModelSpec,
        options: ContextOptions,
    ) -> Result<Self, Error> {
        model.check()?;
        options.check(model.layers)?;
        let mut context = Self::begin(store, name, model, options)?;
        // The store may have been made by a process that died before its name was durable, and a strict commit syncs
        // no further up than the directory of contexts.
        store.backend.sync_dir("")?;
        context.commit(Durability::Strict)?;
        Ok(context)
    }

    /// An empty context that holds the lock of its name, and that its first commit makes.
    pub(super) fn begin(
        store: &Arc<Shared>,
        name: &str,
        model: &ModelSpec,
        options: ContextOptions,
    ) -> Result<Self, Error> {
        validate_name(name)?;
        let backend = store.backend.as_ref();
        let lock = lock_new(store, name)?;
        if backend.exists(&context_file(name, MANIFEST_FILE))? {
            return Err(Error::ContextExists { name: name.into() });
        }
        let mut id = [0; 16];
        super::random(&mut id)?;
        // The second half numbers files; see `remove_orphans`.
        id[8..].fill(0);
        let layers = (0..model.layers).map(|number| empty_layer(model, &options, number)).collect();
        let context = Self::new(store, name, (id, Arc::new(model.clone()), options), layers, lock);
        // What a creation of this name has left that ended early, or a removal.
        for file in backend.list(&context_dir(name))? {
            if file != LOCK_FILE {
                backend.remove(&context_file(name, &file))?;
            }
        }
        Ok(context)
    }

    fn new(
        store: &Arc<Shared>,
        name: &str,
        (id, model, options): ([u8; 16], Arc<ModelSpec>, ContextOptions),
        layers: Vec<Option<Layer>>,
        lock: Box<dyn LockGuard>,
    ) -> Self {
        Context {
            store: Arc::clone(store),
            name: name.into(),
            id,
            model,
            options,
            layers,
            tokens: Arc::default(),
            generation: 0,
            attempted: 0,
            durable: false,
            poisoned: None,
            origin: None,
            prefix: Prefix::default(),
            used: None,
            next_number: 0,
            logs: Logs::default(),
            seal_failure: None,
            published: None,
            cancelled: Arc::default(),
            audits: Audits::default(),
            profile: OnceLock::new(),
            profile_updated: false,
            replaced: Vec::new(),
            durable_files: HashSet::new(),
            other_state: Vec::new(),
            _lock: lock,
        }
    }

    pub(crate) fn open(store: &Arc<Shared>, name: &str, model: &ModelSpec) -> Result<Self, Error> {
        let lock = lock_existing(store, name)?;
        let backend = store.backend.as_ref();
        let (manifest, loaded) = load_newest(store, name, Some(model))?;
        let undone = match read_recent_manifest(backend, &context_dir(name)) {
            Ok(recent) if recent == manifest => 0,
            found => {
                // Before anything is written that could look like what it names.
                discard_recent_manifest(backend, &context_dir(name))?;
                found.map_or(0, |recent| recent.generation)
            }
        };
        let identity = (manifest.context_id, Arc::new(loaded.model), loaded.options);
        let mut context = Self::new(store, name, identity, loaded.layers, lock);
        context.logs = Logs::resume(backend, &manifest)?;
        context.tokens = Arc::new(loaded.tokens);
        context.prefix = Prefix::known(manifest.token_count);
        context.generation = manifest.generation;
        context.attempted = manifest.generation.max(undone);
        context.origin = manifest.origin.clone();
        context.audits = Audits::opened(manifest.layers.len());
        context.other_state = record::other_state(&manifest);
        let old = manifest.row_logs.iter().chain(&manifest.meta_logs);
        let old = old.filter(|log| log.place == LogPlace::Context).map(|log| Replaced::file(log.path(name)));
        context.replaced.extend(old);
        if context.logs.rows_logged.is_none() {
            context.layers.iter_mut().flatten().for_each(|layer| layer.sample.unsettle());
        }
        context.layers.iter_mut().flatten().for_each(Layer::mark_commit);
        context.remove_orphans(&manifest)?;
        Ok(context)
    }

    pub(crate) fn open_snapshot(store: &Arc<Shared>, name: &str) -> Result<Snapshot, Error> {
        validate_name(name)?;
        let mut attempt = 1;
        loop {
            let (manifest, loaded) = load_newest(store, name, None)?;
            match hold_all(&loaded) {
                // A writer has replaced it since the manifest was read.
                Err(StorageError::Missing { .. }) if attempt < READ_ATTEMPTS => attempt += 1,
                // More than can be mapped is mapped as it is read.
                Ok(()) | Err(StorageError::TooManyMappings { .. }) => {
                    return Ok(snapshot_of(store, name, &manifest, loaded));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes what a writer of this context left behind when it ended early: logs and segments that the manifest
    /// does not name, unless another context may name them. File names carry the context's identifier, and the lock
    /// says that no one else writes them. Numbers go on above those in use, so that no name is used twice: a directory
    /// that cannot be listed is an error.
    fn remove_orphans(&mut self, manifest: &Manifest) -> Result<(), Error> {
        let backend = Arc::clone(&self.store.backend);
        let mut named: HashSet<String> = manifest.files(&self.name).into_iter().collect();
        // After a commit without durability the one before it may come back.
        let durable = read_durable_manifest(backend.as_ref(), &context_dir(&self.name))?;
        self.durable_files = durable.files(&self.name).into_iter().collect();
        // They go with the next durable commit.
        let replaced = self.durable_files.difference(&named).cloned().map(Replaced::file);
        self.replaced.extend(replaced);
        named.extend(self.durable_files.iter().cloned());
        if let Err(error) = remove_unfinished_profile(backend.as_ref(), &self.model.digest(), &self.id) {
            tracing::warn!(context = self.name, %error, "an unfinished profile stays");
        }
        self.next_number = manifest.first_unnamed;
        let mut orphans = Vec::new();
        for dir in [LOGS_DIR, SEGMENTS_DIR] {
            for file in backend.list(dir)? {
                let Some((maker, number)) = file_maker(&file).filter(|(maker, _)| *maker == self.id) else {
                    continue;
                };
                debug_assert_eq!(maker, self.id);
                self.next_number = self.next_number.max(number.saturating_add(1));
                let path = format!("{dir}/{file}");
                if !named.contains(&path) {
                    orphans.push(path);
                }
            }
        }
        let own = context_dir(&self.name);
        let logs = backend.list(&own)?.into_iter().filter(|file| file.ends_with(".log"));
        orphans.extend(logs.map(|file| format!("{own}/{file}")).filter(|path| !named.contains(path)));
        if orphans.is_empty() {
            return Ok(());
        }
        // The commit before may name them, and would come back if the last one were not durable.
        backend.sync_dir(&own)?;
        // Who has the lock may be collecting; what stays now goes then.
        let Ok(references) = References::try_hold(&self.store) else { return Ok(()) };
        if references.is_shared(&self.id)? {
            orphans.retain(|path| path.ends_with(".new"));
        }
        for path in orphans {
            let removed = backend.remove(&path);
            tracing::info!(
                context = self.name,
                path,
                ok = removed.is_ok(),
                "removed a file no manifest names"
            );
        }
        Ok(())
    }
}

/// Maps all segments, so that they stay readable when a writer in this or another process removes their files.
fn hold_all(loaded: &Loaded) -> Result<(), StorageError> {
    let layers = loaded.layers.iter().flatten();
    layers.flat_map(|layer| &layer.rows.segments).try_for_each(|sealed| sealed.segment.segment().hold())
}

/// Takes the lock of a context that is to be made.
fn lock_new(store: &Arc<Shared>, name: &str) -> Result<Box<dyn LockGuard>, Error> {
    let mut attempt = 1;
    loop {
        store.backend.create_dir_all(&context_dir(name))?;
        match patient_lock(store, name) {
            // A removal of this name was not finished, and has taken the directory away since.
            Err(Error::Storage(StorageError::Missing { .. })) if attempt < READ_ATTEMPTS => attempt += 1,
            locked => return locked,
        }
    }
}

/// Takes the lock of a context that is there.
pub(crate) fn lock_existing(store: &Arc<Shared>, name: &str) -> Result<Box<dyn LockGuard>, Error> {
    validate_name(name)?;
    let backend = store.backend.as_ref();
    let manifest = context_file(name, MANIFEST_FILE);
    let missing = || Error::ContextMissing { name: name.into() };
    if !backend.exists(&manifest)? {
        return Err(missing());
    }
    let lock = match patient_lock(store, name) {
        Err(Error::Storage(StorageError::Missing { .. })) => return Err(missing()),
        lock => lock?,
    };
    // It may have been removed before the lock was taken.
    if backend.exists(&manifest)? { Ok(lock) } else { Err(missing()) }
}

/// Takes a context's lock from whoever is not its writer.
///
/// Collection takes the locks of contexts to see whether they have a writer, and keeps those it got until all is removed,
/// which on a slow disk takes seconds. It has the right to remove files all that time: whoever has that right, and finds
/// the lock taken, has met a writer, or someone who removes or renames the context.
fn patient_lock(store: &Arc<Shared>, name: &str) -> Result<Box<dyn LockGuard>, Error> {
    let path = context_file(name, LOCK_FILE);
    for _ in 0..LOCK_ATTEMPTS {
        match store.backend.lock(&path) {
            Err(StorageError::Locked { .. }) => std::thread::sleep(Duration::from_millis(2)),
            locked => return Ok(locked?),
        }
    }
    match References::hold(store) {
        // Of two locks that are taken the one that was asked for is told.
        Err(Error::Storage(StorageError::Locked { .. })) => Err(StorageError::Locked { path }.into()),
        references => {
            let _references = references?;
            Ok(store.backend.lock(&path)?)
        }
    }
}

/// Loads the last commit of a context. One that a power loss has undone, in part or whole, does not count: then it is
/// the last durable one. A reader starts again where a writer has removed a file under it.
pub(super) fn load_newest(
    store: &Shared,
    name: &str,
    expected: Option<&ModelSpec>,
) -> Result<(Manifest, Loaded), Error> {
    let (backend, dir) = (store.backend.as_ref(), context_dir(name));
    let mut attempt = 1;
    loop {
        let manifest = match read_manifest(backend, &dir) {
            Err(StorageError::Missing { .. }) if !backend.exists(&context_file(name, MANIFEST_FILE))? => {
                return Err(Error::ContextMissing { name: name.into() });
            }
            manifest => manifest?,
        };
        let failure = match load(store, name, &manifest, expected) {
            Ok(loaded) => return Ok((manifest, loaded)),
            Err(failure) => failure,
        };
        let Error::Storage(StorageError::Missing { .. } | StorageError::Corrupt { .. }) = &failure else {
            return Err(failure);
        };
        let newest = read_manifest(backend, &dir)?.generation;
        if newest != manifest.generation && attempt < READ_ATTEMPTS {
            attempt += 1;
            continue;
        }
        let durable = read_durable_manifest(backend, &dir)?;
        if durable.generation >= manifest.generation {
            return Err(failure);
        }
        tracing::warn!(context = name, error = %failure, "the last durable commit counts");
        let loaded = load(store, name, &durable, expected)?;
        return Ok((durable, loaded));
    }
}

fn snapshot_of(store: &Shared, name: &str, manifest: &Manifest, mut loaded: Loaded) -> Snapshot {
    let sample_of = |layer: &mut Option<Layer>| layer.as_mut().map(|layer| layer.sample.take());
    let samples = loaded.layers.iter_mut().map(sample_of);
    let samples = samples.map(|sample| sample.map(QuerySample::into_positions).unwrap_or_default()).collect();
    let inner = SnapshotInner {
        name: name.into(),
        model: Arc::new(loaded.model),
        generation: manifest.generation,
        tokens: Arc::new(loaded.tokens),
        samples,
        layers: loaded.layers.into_iter().map(|layer| layer.map(|layer| layer.rows)).collect(),
        pool: store.pool.clone(),
    };
    Snapshot { inner: Arc::new(inner) }
}

fn empty_layer(model: &ModelSpec, options: &ContextOptions, number: usize) -> Option<Layer> {
    let kind = model.layer_kind(number);
    if kind == LayerKind::Absent {
        return None;
    }
    let scoring = model.scoring(number, u64::from(options.window));
    let sinks = u64::from(options.sinks);
    Some(Layer {
        rows: LayerRows {
            memory: Arc::new(Memory::new(options.forgetting, 0)),
            ..LayerRows::new(model.shape(), scoring, sinks)
        },
        clustered: kind == LayerKind::Clustered,
        pending: VecDeque::new(),
        cuts: Vec::new(),
        marks: VecDeque::new(),
        abandoned: Vec::new(),
        queued_end: sinks,
        sample: QuerySample::new(options.clusters.seed, options.sample_positions as usize),
        bases: Arc::default(),
        rebuilding: None,
        dropped_at: 0,
        metric_known: false,
    })
}

fn load(
    store: &Shared,
    name: &str,
    manifest: &Manifest,
    expected: Option<&ModelSpec>,
) -> Result<Loaded, Error> {
    let model = record::model_spec(manifest)?;
    if let Some(difference) = expected.and_then(|given| model.difference(given)) {
        return Err(Error::ModelMismatch { name: name.into(), difference });
    }
    let file = context_file(name, MANIFEST_FILE);
    if model.digest() != manifest.model.identity {
        let (expected, found) = (model.digest(), manifest.model.identity);
        return Err(StorageError::Identity { file, expected, found }.into());
    }
    let options = record::context_options(manifest, &file)?;
    let forgotten = record::forgotten(manifest, &file)?;
    let nothing = Dropped::default();
    let mut layers = Vec::with_capacity(model.layers);
    for (number, stored) in manifest.layers.iter().enumerate() {
        let mut layer = empty_layer(&model, &options, number);
        let memory = forgotten.iter().find(|memory| memory.number == number);
        match &mut layer {
            Some(layer) => {
                let dropped = memory.map_or(&nothing, |memory| &memory.dropped);
                open_segments(store, manifest, (number, stored), (layer, dropped), &file)?;
                record::restore_memory(layer, memory, options.forgetting, (&file, stored.length))?;
            }
            None if stored.length == 0 && stored.segments.is_empty() => {}
            None => {
                return Err(inconsistent(
                    &file,
                    format!("layer {number} empty"),
                    format!("{} rows", stored.length),
                ));
            }
        }
        layers.push(layer);
    }
    record::restore_state(manifest, &file, &mut layers)?;
    restore_marks(manifest, &file, &mut layers)?;
    let replay = Replay::of_logs(store.backend.as_ref(), name, &model);
    replay.rows(manifest, &mut layers)?;
    let tokens = replay.meta(manifest, &mut layers)?;
    Ok(Loaded { model, options, layers, tokens })
}

/// Opens a segment that some manifest names.
pub(super) fn open_segment(
    store: &Shared,
    manifest: &Manifest,
    layer: usize,
    segment: &SegmentRecord,
    place: (u64, Option<Arc<[u32]>>),
) -> Result<Sealed, Error> {
    let expected = Expected {
        identity: manifest.model.identity,
        layer: Some(layer as u32),
        geometry: Some(manifest.model.geometry()),
        record: Some(segment.clone()),
    };
    let opened = Segment::open(Arc::clone(&store.backend), &segment_path(&segment.file), &expected)?;
    Ok(Sealed::new(opened, segment.clone(), place, true))
}

fn open_segments(
    store: &Shared,
    manifest: &Manifest,
    (number, stored): (usize, &LayerRecord),
    (layer, dropped): (&mut Layer, &Dropped),
    file: &str,
) -> Result<(), Error> {
    let open = |segment: &SegmentRecord, sealed_at: u64, offsets| {
        open_segment(store, manifest, number, segment, (sealed_at, offsets))
    };
    for (segment, sealed_at) in stored.segments.iter().zip(&stored.sealed_at) {
        let next = dropped.skip(layer.queued_end);
        if segment.first_position != next {
            let expected = format!("a segment of layer {number} at position {next}");
            return Err(inconsistent(file, expected, format!("one at {}", segment.first_position)));
        }
        let sealed = open(segment, *sealed_at, dropped.offsets(segment.first_position, segment.rows))?;
        layer.queued_end = sealed.segment.end();
        layer.rows.segments.push(Arc::new(sealed));
    }
    if !stored.segments.is_empty() || !dropped.is_empty() {
        layer.queued_end = dropped.skip(layer.queued_end);
        layer.rows.tail.release(layer.queued_end);
    }
    let mut next = layer.queued_end;
    for cut in &stored.cuts {
        if cut.segment.first_position > next {
            let expected = format!("a cut segment of layer {number} from position {next}");
            return Err(inconsistent(file, expected, format!("one from {}", cut.segment.first_position)));
        }
        layer.cuts.push((Arc::new(open(&cut.segment, u64::MAX, None)?), cut.end));
        next = cut.end;
    }
    Ok(())
}

/// A manifest that says two things at once.
pub(crate) fn inconsistent(file: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    let (expected, found) = (expected.into(), found.into());
    StorageError::Corrupt { file: file.into(), column: None, offset: 0, expected, found }.into()
}
