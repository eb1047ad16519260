//! Creating a context, and bringing a committed one back.

use super::audit::Audits;
use super::{Context, Layer, Logs, OpenLog};
use crate::error::Error;
use crate::layer::LayerRows;
use crate::model::{LayerKind, ModelSpec};
use crate::options::ContextOptions;
use crate::record;
use crate::replay::Replay;
use crate::sample::QuerySample;
use crate::sealing::Sealed;
use crate::snapshot::{Snapshot, SnapshotInner};
use crate::store::Shared;
use longwave_query::LayerSegment;
use longwave_storage::{
    Durability, Error as StorageError, Expected, LOCK_FILE, LayerRecord, LogHeader, LogRecord, LogWriter,
    MANIFEST_FILE, Manifest, SEGMENTS_DIR, Segment, context_dir, context_file, read_manifest,
    remove_unfinished_profile, segment_file_name, segment_path, validate_name,
};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

/// How often a reader starts again when the files of its manifest vanish under it.
const READ_ATTEMPTS: usize = 16;

/// A context's content as its manifest and logs tell it.
struct Loaded {
    model: ModelSpec,
    options: ContextOptions,
    layers: Vec<Option<Layer>>,
    tokens: Vec<u32>,
}

impl Context {
    pub(crate) fn create(
        store: Arc<Shared>,
        name: &str,
        model: &ModelSpec,
        options: ContextOptions,
    ) -> Result<Self, Error> {
        validate_name(name)?;
        model.check()?;
        options.check()?;
        store.backend.create_dir_all(&context_dir(name))?;
        let lock = store.backend.lock(&context_file(name, LOCK_FILE))?;
        if store.backend.exists(&context_file(name, MANIFEST_FILE))? {
            return Err(Error::ContextExists { name: name.into() });
        }
        let mut id = [0; 16];
        super::random(&mut id)?;
        // The second half numbers files; see `remove_orphans`.
        id[8..].fill(0);
        let layers = (0..model.layers).map(|number| empty_layer(model, &options, number)).collect();
        let mut context = Context {
            store,
            name: name.into(),
            id,
            model: Arc::new(model.clone()),
            options,
            layers,
            tokens: Arc::default(),
            generation: 0,
            next_segment: 0,
            next_log: 0,
            logs: Logs::default(),
            seal_failure: None,
            published: None,
            cancelled: Arc::default(),
            audits: Audits::default(),
            profile: OnceLock::new(),
            profile_updated: false,
            replaced: Vec::new(),
            other_state: Vec::new(),
            _lock: lock,
        };
        context.remove_orphans(None)?;
        // The store may have been made by a process that died before its name was durable, and a strict commit syncs
        // no further up than the directory of contexts.
        context.store.backend.sync_dir("")?;
        context.commit(Durability::Strict)?;
        Ok(context)
    }

    pub(crate) fn open(store: Arc<Shared>, name: &str, model: &ModelSpec) -> Result<Self, Error> {
        validate_name(name)?;
        if !store.backend.exists(&context_file(name, MANIFEST_FILE))? {
            return Err(Error::ContextMissing { name: name.into() });
        }
        let lock = store.backend.lock(&context_file(name, LOCK_FILE))?;
        let manifest = read_manifest(store.backend.as_ref(), &context_dir(name))?;
        let loaded = load(&store, name, &manifest, Some(model))?;
        let resume = |log: &Option<LogRecord>| {
            log.as_ref().map(|log| resume(&store, name, &manifest, log)).transpose()
        };
        let logs = Logs {
            rows: resume(&manifest.row_log)?,
            rows_logged: manifest
                .row_log
                .is_some()
                .then(|| manifest.layers.iter().map(|layer| layer.length).collect()),
            meta: resume(&manifest.meta_log)?,
            tokens_logged: loaded.tokens.len(),
        };
        let mut context = Context {
            name: name.into(),
            id: manifest.context_id,
            model: Arc::new(loaded.model),
            options: loaded.options,
            layers: loaded.layers,
            tokens: Arc::new(loaded.tokens),
            generation: manifest.generation,
            next_segment: 0,
            next_log: 0,
            logs,
            seal_failure: None,
            published: None,
            cancelled: Arc::default(),
            audits: Audits::opened(manifest.layers.len()),
            profile: OnceLock::new(),
            profile_updated: false,
            replaced: Vec::new(),
            other_state: record::other_state(&manifest),
            store,
            _lock: lock,
        };
        context.remove_orphans(Some(&manifest))?;
        Ok(context)
    }

    pub(crate) fn open_snapshot(store: &Arc<Shared>, name: &str) -> Result<Snapshot, Error> {
        validate_name(name)?;
        let backend = store.backend.as_ref();
        if !backend.exists(&context_file(name, MANIFEST_FILE))? {
            return Err(Error::ContextMissing { name: name.into() });
        }
        let mut attempt = 1;
        loop {
            let manifest = read_manifest(backend, &context_dir(name))?;
            match load(store, name, &manifest, None) {
                Ok(loaded) => return Ok(snapshot_of(store, &manifest, loaded)),
                // The writer has committed since and removed a file that the older manifest names.
                Err(Error::Storage(StorageError::Missing { .. }))
                    if attempt < READ_ATTEMPTS
                        && read_manifest(backend, &context_dir(name))?.generation != manifest.generation =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes what a writer of this context left behind when it ended early: logs and segments that the manifest
    /// does not name. File names carry the context's identifier, and the lock says that no one else writes them.
    /// Numbers go on above those in use, so that no name is used twice: a directory that cannot be listed is an error.
    fn remove_orphans(&mut self, manifest: Option<&Manifest>) -> Result<(), Error> {
        let backend = Arc::clone(&self.store.backend);
        let named: HashSet<&str> = manifest
            .iter()
            .flat_map(|manifest| {
                let logs = manifest.row_log.iter().chain(&manifest.meta_log).map(|log| log.file.as_str());
                logs.chain(
                    manifest
                        .layers
                        .iter()
                        .flat_map(|layer| &layer.segments)
                        .map(|segment| segment.file.as_str()),
                )
            })
            .collect();
        let first = segment_file_name(&self.id, 0);
        let prefix = first.split_once('-').map_or(first.as_str(), |(prefix, _)| prefix);
        if let Err(error) = remove_unfinished_profile(backend.as_ref(), &self.model.digest(), &self.id) {
            tracing::warn!(context = self.name, %error, "an unfinished profile stays");
        }
        let dir = context_dir(&self.name);
        for (dir, prefix, suffix) in [(dir.as_str(), "", ".log"), (SEGMENTS_DIR, prefix, ".segment")] {
            for file in backend.list(dir)? {
                // A segment that was cut off while it was written has its name and `.new`.
                let whole = file.strip_suffix(".new").unwrap_or(&file);
                let Some(rest) = whole.strip_prefix(prefix).filter(|rest| rest.ends_with(suffix)) else {
                    continue;
                };
                let digits: String =
                    rest.trim_start_matches('-').chars().take_while(char::is_ascii_digit).collect();
                let next = if suffix == ".log" { &mut self.next_log } else { &mut self.next_segment };
                *next = (*next).max(digits.parse().map_or(0, |number: u64| number.saturating_add(1)));
                if !named.contains(file.as_str()) {
                    // The commit before may name it, and would come back if the last one were not durable.
                    if manifest.is_some() && dir == SEGMENTS_DIR {
                        backend.sync_dir(&context_dir(&self.name))?;
                    }
                    let removed = backend.remove(&format!("{dir}/{file}"));
                    tracing::info!(
                        context = self.name,
                        file,
                        ok = removed.is_ok(),
                        "removed a file no manifest names"
                    );
                }
            }
        }
        Ok(())
    }
}

fn snapshot_of(store: &Shared, manifest: &Manifest, loaded: Loaded) -> Snapshot {
    let samples = loaded
        .layers
        .iter()
        .map(|layer| layer.as_ref().map(Layer::sample_copy).unwrap_or_default())
        .collect();
    let inner = SnapshotInner {
        name: manifest.name.clone(),
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
        rows: LayerRows::new(model.shape(), scoring, sinks),
        clustered: kind == LayerKind::Clustered,
        pending: VecDeque::new(),
        abandoned: Vec::new(),
        queued_end: sinks,
        sample: QuerySample::new(options.clusters.seed, options.sample_positions as usize),
        bases: Arc::default(),
        rebuilding: None,
        metric_known: false,
    })
}

fn resume(store: &Shared, name: &str, manifest: &Manifest, log: &LogRecord) -> Result<OpenLog, Error> {
    let header = LogHeader { log_id: log.id, identity: manifest.model.identity };
    let path = context_file(name, &log.file);
    let writer = LogWriter::resume(store.backend.as_ref(), &path, header, log.len)?;
    Ok(OpenLog { name: log.file.clone(), writer })
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
    let options = record::context_options(&manifest.settings)?;
    let mut layers = Vec::with_capacity(model.layers);
    for (number, stored) in manifest.layers.iter().enumerate() {
        let mut layer = empty_layer(&model, &options, number);
        match &mut layer {
            Some(layer) => open_segments(store, manifest, (number, stored), layer, &file)?,
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
    let mut replay = Replay::new(store.backend.as_ref(), name, manifest, &model);
    replay.rows(&mut layers)?;
    let tokens = replay.meta(&mut layers)?;
    Ok(Loaded { model, options, layers, tokens })
}

fn open_segments(
    store: &Shared,
    manifest: &Manifest,
    (number, stored): (usize, &LayerRecord),
    layer: &mut Layer,
    file: &str,
) -> Result<(), Error> {
    for segment in &stored.segments {
        let next = layer.queued_end;
        if segment.first_position != next {
            let expected = format!("a segment of layer {number} at position {next}");
            return Err(inconsistent(file, expected, format!("one at {}", segment.first_position)));
        }
        let expected = Expected {
            identity: manifest.model.identity,
            layer: Some(number as u32),
            geometry: Some(manifest.model.geometry()),
            record: Some(segment.clone()),
        };
        let opened = Segment::open(Arc::clone(&store.backend), &segment_path(&segment.file), &expected)?;
        let sealed = Sealed { segment: Arc::new(LayerSegment::new(opened)), record: segment.clone() };
        layer.rows.tail.release(sealed.segment.end());
        layer.queued_end = sealed.segment.end();
        layer.rows.segments.push(Arc::new(sealed));
    }
    Ok(())
}

/// A manifest that says two things at once.
pub(crate) fn inconsistent(file: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    let (expected, found) = (expected.into(), found.into());
    StorageError::Corrupt { file: file.into(), column: None, offset: 0, expected, found }.into()
}
