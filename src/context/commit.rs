//! Making what was appended durable.

use super::logs::LogChain;
use super::{Context, Layer};
use crate::error::Error;
use crate::record;
use crate::rows::Block;
use crate::sealing::Sealed;
use crate::store::References;
use half::f16;
use longwave_storage::{
    CutRecord, Durability, Error as StorageError, LayerRecord, LogRecord, LogWriter, Manifest, RecordHeader,
    RecordKind, StateRecord, context_dir, file_maker, segment_path, write_manifest,
};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A file that is no longer needed once a commit without it is durable.
#[derive(Debug)]
pub(super) struct Replaced {
    path: String,
    /// The segment in it, which snapshots may still read.
    sealed: Option<Arc<Sealed>>,
}

impl Replaced {
    pub(super) fn segment(sealed: Arc<Sealed>) -> Self {
        Replaced { path: segment_path(&sealed.record.file), sealed: Some(sealed) }
    }

    pub(super) fn log(record: LogRecord) -> Self {
        Replaced { path: record.path(""), sealed: None }
    }

    pub(super) fn file(path: String) -> Self {
        Replaced { path, sealed: None }
    }
}

impl Context {
    /// Commits everything appended so far. When it returns, a reopened context holds exactly this, whatever happens
    /// to the process (any durability) or the machine ([`Durability::Strict`]).
    ///
    /// Bulk segments that are still being written are waited for; segments of decoding are not, their rows go to the
    /// tail log. Queries that entered the sample are added to the model's profile in the store.
    ///
    /// # Errors
    /// [`Error::UnequalLayers`], [`Error::TokenCount`]; the failure of a bulk sealing, whose rows are then in the
    /// tail (a second commit writes them to the tail log); [`Error::Storage`]. After an error the last commit counts,
    /// and the context can be committed again; but a sync that failed ends it: every later commit is refused with
    /// [`longwave_storage::Error::Poisoned`], and the context has to be opened again.
    pub fn commit(&mut self, durability: Durability) -> Result<(), Error> {
        if let Some(path) = &self.poisoned {
            return Err(StorageError::Poisoned { path: path.clone() }.into());
        }
        self.check_lengths()?;
        for layer in self.present_layers() {
            self.install_finished(layer)?;
        }
        self.wait_for_bulk(durability)?;
        self.install_audits();
        if let Some(failure) = self.seal_failure.take() {
            return Err(failure);
        }
        let adopted = self.adopt();
        if let Err(failure) = self.write(durability) {
            self.give_up(&failure);
            return Err(failure);
        }
        drop(adopted);
        self.generation = self.attempted;
        self.layers.iter_mut().flatten().for_each(super::Layer::mark_commit);
        self.durable = durability != Durability::None;
        for sealed in self.layers.iter().flatten().flat_map(|layer| &layer.rows.segments) {
            sealed.committed.store(true, Ordering::Release);
        }
        self.remove_replaced(durability);
        self.note_commit();
        if self.used.is_none_or(|used| used.elapsed() > USE_STEP) {
            self.used = Some(Instant::now());
            self.store.note_use(&self.name);
        }
        self.update_profile(durability);
        self.publish()
    }

    /// Waits for bulk segments that are still being built or written. Rows that none of them is going to take over are logged
    /// meanwhile.
    fn wait_for_bulk(&mut self, durability: Durability) -> Result<(), Error> {
        let ends: Vec<Option<u64>> =
            self.layers.iter().map(|layer| layer.as_ref().and_then(Layer::bulk_end)).collect();
        if ends.iter().all(Option::is_none) {
            return Ok(());
        }
        // What the segments take over is in the logs so far: the rest goes to a new one.
        self.logs.rows_logged = None;
        if let Err(failure) = self.log_ahead(&ends, durability) {
            self.give_up(&failure);
            return Err(failure);
        }
        let logged = self.logs.rows_logged.take();
        for layer in self.present_layers() {
            self.install_all(layer, true)?;
        }
        // Rows of a segment that could not be sealed are in no log: the next commit starts another.
        if self.seal_failure.is_none() {
            self.logs.rows_logged = logged;
        }
        Ok(())
    }

    fn log_ahead(&mut self, ends: &[Option<u64>], durability: Durability) -> Result<(), Error> {
        self.write_rows(ends)?;
        if durability != Durability::None {
            self.logs.sync(self.store.backend.as_ref())?;
        }
        Ok(())
    }

    /// After a failed write: how much of the logs reached the disk is unknown, so the next commit starts new ones, from
    /// memory. After a failed sync there is no next commit: the system may have dropped what it could not write, and
    /// say of the same pages next time that they are written.
    fn give_up(&mut self, failure: &Error) {
        let logs = std::mem::take(&mut self.logs);
        self.replaced.extend([logs.rows, logs.meta].iter().flat_map(LogChain::records).map(Replaced::log));
        self.layers.iter_mut().flatten().for_each(|layer| layer.sample.unsettle());
        if let Error::Storage(StorageError::Io { path, operation, .. }) = failure
            && operation.starts_with("sync")
        {
            tracing::error!(context = self.name, path, "a sync failed; the context must be opened again");
            self.poisoned = Some(path.clone());
        }
    }

    fn check_lengths(&self) -> Result<(), Error> {
        let mut lengths =
            self.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.as_ref()?.rows.length())));
        let Some((first, expected)) = lengths.next() else { return Ok(()) };
        if let Some((layer, found)) = lengths.find(|(_, length)| *length != expected) {
            return Err(Error::UnequalLayers { first, expected, layer, found });
        }
        let tokens = self.tokens.len() as u64;
        if tokens != 0 && tokens != expected {
            return Err(Error::TokenCount { tokens, rows: expected });
        }
        Ok(())
    }

    fn write(&mut self, durability: Durability) -> Result<(), Error> {
        // A cut whose rows are sealed again is no longer needed.
        for layer in self.layers.iter_mut().flatten() {
            let sealed_end = layer.rows.sealed_end();
            let (over, cuts) =
                std::mem::take(&mut layer.cuts).into_iter().partition(|(_, end)| *end <= sealed_end);
            layer.cuts = cuts;
            self.replaced.extend(Vec::into_iter(over).map(|(sealed, _)| Replaced::segment(sealed)));
        }
        self.hash_tokens();
        self.write_rows(&[])?;
        self.write_meta()?;
        if durability != Durability::None {
            self.logs.sync(self.store.backend.as_ref())?;
        }
        self.attempted = self.attempted.max(self.generation) + 1;
        let manifest = self.manifest();
        write_manifest(self.store.backend.as_ref(), &context_dir(&self.name), &manifest, durability)?;
        Ok(())
    }

    /// Brings the row log up to date; a new one where segments have taken rows over, so that it stays short. `ends` are the
    /// positions up to which segments under way are going to take them over, a layer each.
    fn write_rows(&mut self, ends: &[Option<u64>]) -> Result<(), Error> {
        if self.logs.rows_logged.is_none() || self.logs.rows.is_long() {
            let old = std::mem::take(&mut self.logs.rows);
            self.replaced.extend(old.records().into_iter().map(Replaced::log));
            self.logs.rows_logged = Some(vec![0; self.layers.len()]);
        }
        for number in 0..self.layers.len() {
            let Some(layer) = &self.layers[number] else { continue };
            let logged = self.logs.rows_logged.as_ref().map_or(0, |logged| logged[number]);
            let (length, mut ranges) = (layer.rows.length(), layer.rows.tail.ranges());
            // What a cut segment holds is in no log.
            let end = ends.get(number).copied().flatten().unwrap_or(0);
            ranges[1].start = ranges[1].start.max(layer.cut_end()).max(end);
            for range in ranges {
                let range = range.start.max(logged)..range.end;
                if range.is_empty() {
                    continue;
                }
                if self.logs.rows.open.is_none() {
                    self.logs.rows.open = Some(self.new_log("rows")?);
                }
                let Some(layer) = &self.layers[number] else { continue };
                let Some(log) = &mut self.logs.rows.open else { continue };
                let shape = &layer.rows.shape;
                let row_bytes = shape.kv_heads * (shape.key_bytes() + shape.value_bytes());
                let step = ROWS_PER_RECORD.min((BYTES_PER_RECORD / row_bytes).max(1) as u64);
                append_rows(&mut log.writer, number, (range, step), |range| layer.rows.tail.copy(range))?;
            }
            if let Some(logged) = &mut self.logs.rows_logged {
                logged[number] = length;
            }
        }
        Ok(())
    }

    fn write_meta(&mut self) -> Result<(), Error> {
        if self.logs.tokens_logged == self.tokens.len() && !self.has_unsaved_queries() {
            return Ok(());
        }
        if self.logs.meta.is_long() {
            let old = std::mem::take(&mut self.logs.meta);
            self.replaced.extend(old.records().into_iter().map(Replaced::log));
            self.logs.tokens_logged = 0;
            self.layers.iter_mut().flatten().for_each(|layer| layer.sample.unsettle());
        }
        if self.logs.meta.open.is_none() {
            self.logs.meta.open = Some(self.new_log("meta")?);
        }
        let audited = self.store.audits.share > 0.0;
        let Some(log) = &mut self.logs.meta.open else { return Ok(()) };
        for ids in self.tokens[self.logs.tokens_logged..].chunks(TOKENS_PER_RECORD) {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let first_position = self.logs.tokens_logged as u64;
            let header =
                RecordHeader { kind: RecordKind::Tokens, layer: 0, first_position, count: ids.len() as u32 };
            log.writer.append(&header, &[&bytes])?;
            self.logs.tokens_logged += ids.len();
        }
        for (number, layer) in self.layers.iter_mut().enumerate() {
            let Some(layer) = layer else { continue };
            for (first_position, queries) in unsaved_queries(layer, audited) {
                let bytes: Vec<u8> = queries.iter().flat_map(|x: &f16| x.to_le_bytes()).collect();
                let header = RecordHeader {
                    kind: RecordKind::Queries,
                    layer: number as u32,
                    first_position,
                    count: 1,
                };
                log.writer.append(&header, &[&bytes])?;
            }
            layer.sample.settle();
            if audited && wants_first_audits(layer) {
                layer.sample.settle_latest();
            }
        }
        Ok(())
    }

    pub(super) fn has_unsaved_queries(&self) -> bool {
        self.layers
            .iter()
            .flatten()
            .any(|layer| !unsaved_queries(layer, self.store.audits.share > 0.0).is_empty())
    }

    pub(super) fn manifest(&self) -> Manifest {
        let layers = self.layers.iter().enumerate().map(|(number, layer)| LayerRecord {
            kind: record::layer_kind_record(self.model.layer_kind(number)),
            sink_logits: self.model.sink_logits.get(number).cloned().unwrap_or_default(),
            segments: layer
                .iter()
                .flat_map(|layer| layer.rows.segments.iter().map(|sealed| sealed.record.clone()))
                .collect(),
            sealed_at: layer
                .iter()
                .flat_map(|layer| layer.rows.segments.iter().map(|sealed| sealed.sealed_at))
                .collect(),
            cuts: layer
                .iter()
                .flat_map(|layer| &layer.cuts)
                .map(|(sealed, end)| CutRecord { segment: sealed.record.clone(), end: *end })
                .collect(),
            length: layer.as_ref().map_or(0, |layer| layer.rows.length()),
        });
        Manifest {
            context_id: self.id,
            generation: self.attempted,
            name: self.name.clone(),
            model: record::model_record(&self.model),
            settings: record::settings_record(&self.options),
            layers: layers.collect(),
            row_logs: self.logs.rows.records(),
            meta_logs: self.logs.meta.records(),
            token_count: self.tokens.len() as u64,
            extra: self.options.extra.clone(),
            prefix: self.prefix_hash(),
            first_unnamed: self.first_unnamed(),
            origin: self.origin.clone(),
            state: self.state(),
        }
    }

    fn state(&self) -> Vec<StateRecord> {
        let of_layer = |layer: &Option<Layer>| {
            layer.as_ref().map(|layer| (Arc::clone(&layer.rows.calibration), layer.rows.steering.clone()))
        };
        let layers: Vec<_> = self.layers.iter().map(of_layer).collect();
        let layers: Vec<_> =
            layers.iter().map(|layer| layer.as_ref().map(|(c, s)| (c.as_ref(), s))).collect();
        let known = crate::accuracy::encode(&layers, self.model.query_heads);
        let spendings = self.layers.iter().map(|layer| layer.as_ref().map(|layer| &*layer.rows.spending));
        let heads = (self.model.kv_heads, self.model.query_heads);
        let spent = crate::accuracy::encode_spending(&spendings.collect::<Vec<_>>(), heads);
        let marks = self.marks_record();
        let memories: Vec<_> =
            self.layers.iter().map(|layer| layer.as_ref().map(|layer| &*layer.rows.memory)).collect();
        let marks = marks.into_iter().chain(crate::forgetting::encode(&memories));
        let forms = record::row_forms_record(&self.options, self.layers.len());
        let others = self.other_state.iter().cloned();
        known.into_iter().chain(spent).chain(marks).chain(forms).chain(others).collect()
    }

    /// The smallest number of a file that a later commit may name and the one being written does not.
    fn first_unnamed(&self) -> u64 {
        let of_layer = |layer: &Layer| {
            let rebuilding = layer.rebuilding.as_ref().map(|rebuilding| rebuilding.number);
            layer.pending.iter().map(|pending| pending.number).chain(rebuilding).min()
        };
        self.layers.iter().flatten().filter_map(of_layer).min().unwrap_or(self.next_number)
    }

    /// Removes what the durable commit before named and the last one does not. A commit that a power loss may undo must
    /// not cost the one before it its files: its name is made durable first, or they stay for now. So do files that
    /// other contexts may name: [`crate::Store::collect`] knows whether they do.
    fn remove_replaced(&mut self, durability: Durability) {
        let named: HashSet<String> = self.named_files().into_iter().collect();
        let backend = self.store.backend.as_ref();
        let mut undone = durability != Durability::Strict;
        if durability == Durability::Flushed && !self.replaced.is_empty() {
            let synced = backend.sync_dir(&context_dir(&self.name));
            if let Err(error) = &synced {
                tracing::warn!(context = self.name, %error, "replaced files stay, since the commit may be undone");
            }
            undone = synced.is_err();
        }
        match durability {
            Durability::None => {}
            _ if undone => self.durable_files.extend(named.iter().cloned()),
            _ => self.durable_files = named.clone(),
        }
        if self.replaced.is_empty() {
            return;
        }
        // Not waited for: who has it may be collecting, and decoding goes on.
        let Ok(references) = References::try_hold(&self.store) else { return };
        let mut replaced = std::mem::take(&mut self.replaced);
        if references.is_shared(&self.id).unwrap_or(true) {
            // A collection takes what no manifest names; by the time that goes for these, nobody may share them.
            replaced.retain(|file| self.durable_files.contains(&file.path));
            self.replaced = replaced;
            return;
        }
        for file in replaced {
            if named.contains(&file.path) || !self.has_made(&file.path) {
                continue;
            }
            if self.durable_files.contains(&file.path) {
                self.replaced.push(file);
                continue;
            }
            let Replaced { path, sealed } = file;
            // Snapshots that have not read it yet go on reading it.
            if let Some(sealed) = sealed.filter(|sealed| Arc::strong_count(sealed) > 1)
                && let Err(error) = sealed.segment.segment().hold()
            {
                tracing::warn!(context = self.name, path, %error, "a replaced segment stays for its readers");
                continue;
            }
            self.remove_file(&path);
        }
    }

    /// Paths of all files that the next manifest would name.
    pub(super) fn named_files(&self) -> Vec<String> {
        self.manifest().files(&self.name)
    }

    fn has_made(&self, path: &str) -> bool {
        let file = path.rsplit_once('/').map_or(path, |(_, file)| file);
        let own_dir = path.strip_prefix(&context_dir(&self.name)).is_some_and(|rest| rest.starts_with('/'));
        own_dir || file_maker(file).is_some_and(|(maker, _)| maker == self.id)
    }

    /// A file that no manifest names any more. That it stays is no fault: the next open removes it.
    pub(super) fn remove_file(&self, path: &str) {
        if let Err(error) = self.store.backend.remove(path) {
            tracing::warn!(context = self.name, path, %error, "a replaced file could not be removed");
        }
    }
}

/// Queries of a layer that the next commit writes: those of the sample, and where calls are `audited` but none of the layer
/// was yet, the latest ones, which are the first to be.
fn unsaved_queries(layer: &Layer, audited: bool) -> Vec<(u64, &[f16])> {
    let mut queries = layer.sample.unsaved();
    if audited && wants_first_audits(layer) {
        queries.extend(layer.sample.unsaved_latest());
    }
    queries
}

fn wants_first_audits(layer: &Layer) -> bool {
    layer.rows.calibration.is_empty() && crate::accuracy::prepared(&layer.rows)
}

/// A context that goes on committing says so now and then.
const USE_STEP: Duration = Duration::from_secs(60);
const TOKENS_PER_RECORD: usize = 1 << 16;
/// Rows of one record, at most: bounds what a reader holds in memory at a time.
const ROWS_PER_RECORD: u64 = 1024;
/// Bytes of one record, about: rows of many heads are split further. A record has a limit of 4 GiB.
const BYTES_PER_RECORD: usize = 64 << 20;

/// A record's payload: keys `[kv_heads, count, key_dim]`, then values `[kv_heads, count, value_dim]`.
fn append_rows(
    log: &mut LogWriter,
    layer: usize,
    (range, step): (Range<u64>, u64),
    copy: impl Fn(Range<u64>) -> Block,
) -> Result<(), Error> {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + step);
        let rows = copy(start..end);
        let parts: Vec<&[u8]> =
            rows.keys.iter().chain(&rows.values).map(|buffer| buffer.rows().as_bytes()).collect();
        let (kind, count) = (RecordKind::Rows, (end - start) as u32);
        log.append(&RecordHeader { kind, layer: layer as u32, first_position: start, count }, &parts)?;
        start = end;
    }
    Ok(())
}
