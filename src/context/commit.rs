//! Making what was appended durable.

use super::{Context, Layer, Logs, OpenLog};
use crate::error::Error;
use crate::record;
use crate::rows::Block;
use half::f16;
use longwave_storage::{
    Durability, LayerRecord, LogHeader, LogRecord, LogWriter, Manifest, RecordHeader, RecordKind,
    StateRecord, context_dir, context_file, write_manifest,
};
use std::ops::Range;
use std::sync::Arc;

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
    /// and the context can be committed again.
    pub fn commit(&mut self, durability: Durability) -> Result<(), Error> {
        self.check_lengths()?;
        for layer in self.present_layers() {
            self.install_finished(layer)?;
            self.install_all(layer, true)?;
        }
        self.install_audits();
        if let Some(failure) = self.seal_failure.take() {
            return Err(failure);
        }
        let replaced = self.logs.rows.as_ref().map(|log| log.name.clone());
        let written = self.write(durability);
        if written.is_err() {
            // How much of the logs reached the disk is unknown: the next commit starts new ones, from memory.
            self.logs = Logs::default();
            self.reset_samples();
        }
        written?;
        self.generation += 1;
        if let Some(old) = replaced.filter(|old| self.logs.rows.as_ref().is_none_or(|log| log.name != *old)) {
            self.remove_file(&context_file(&self.name, &old));
        }
        self.remove_replaced(durability);
        self.update_profile(durability);
        self.publish()
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
        self.write_rows()?;
        self.write_meta()?;
        if durability != Durability::None {
            for log in [&mut self.logs.rows, &mut self.logs.meta].into_iter().flatten() {
                log.writer.sync()?;
            }
        }
        let manifest = self.manifest();
        write_manifest(self.store.backend.as_ref(), &context_dir(&self.name), &manifest, durability)?;
        Ok(())
    }

    /// Brings the row log up to date; a new one where segments have taken rows over, so that it stays short.
    fn write_rows(&mut self) -> Result<(), Error> {
        if self.logs.rows_logged.is_none() {
            self.logs.rows = Some(self.new_log("rows")?);
            self.logs.rows_logged = Some(vec![0; self.layers.len()]);
        }
        let (Some(log), Some(logged)) = (&mut self.logs.rows, &mut self.logs.rows_logged) else {
            return Ok(());
        };
        for (number, logged) in logged.iter_mut().enumerate() {
            let Some(layer) = &self.layers[number] else { continue };
            for range in layer.rows.tail.ranges() {
                let range = range.start.max(*logged)..range.end;
                let shape = &layer.rows.shape;
                let row_bytes = shape.kv_heads * (shape.key_bytes() + shape.value_bytes());
                let step = ROWS_PER_RECORD.min((BYTES_PER_RECORD / row_bytes).max(1) as u64);
                append_rows(&mut log.writer, number, (range, step), |range| layer.rows.tail.copy(range))?;
            }
            *logged = layer.rows.length();
        }
        Ok(())
    }

    fn write_meta(&mut self) -> Result<(), Error> {
        let unsaved = self.layers.iter().flatten().any(|layer| !layer.sample.unsaved().is_empty());
        if self.logs.tokens_logged == self.tokens.len() && !unsaved {
            return Ok(());
        }
        if self.logs.meta.is_none() {
            self.logs.meta = Some(self.new_log("meta")?);
        }
        let Some(log) = &mut self.logs.meta else { return Ok(()) };
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
            for (first_position, queries) in layer.sample.unsaved() {
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
        }
        Ok(())
    }

    fn new_log(&mut self, kind: &str) -> Result<OpenLog, Error> {
        let number = self.next_log;
        self.next_log += 1;
        let mut log_id = self.id;
        log_id[8..].copy_from_slice(&number.to_le_bytes());
        let name = format!("{number}.{kind}.log");
        let header = LogHeader { log_id, identity: self.model.digest() };
        let writer =
            LogWriter::create(self.store.backend.as_ref(), &context_file(&self.name, &name), header)?;
        Ok(OpenLog { name, writer })
    }

    fn manifest(&self) -> Manifest {
        let log = |log: &Option<OpenLog>| {
            log.as_ref().map(|log| LogRecord {
                id: log.writer.header().log_id,
                file: log.name.clone(),
                len: log.writer.len(),
            })
        };
        let layers = self.layers.iter().enumerate().map(|(number, layer)| LayerRecord {
            kind: record::layer_kind_record(self.model.layer_kind(number)),
            sink_logits: self.model.sink_logits.get(number).cloned().unwrap_or_default(),
            segments: layer
                .iter()
                .flat_map(|layer| layer.rows.segments.iter().map(|sealed| sealed.record.clone()))
                .collect(),
            length: layer.as_ref().map_or(0, |layer| layer.rows.length()),
        });
        Manifest {
            context_id: self.id,
            generation: self.generation + 1,
            name: self.name.clone(),
            model: record::model_record(&self.model),
            settings: record::settings_record(&self.options),
            layers: layers.collect(),
            row_log: log(&self.logs.rows),
            meta_log: log(&self.logs.meta),
            token_count: self.tokens.len() as u64,
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
        known.into_iter().chain(spent).chain(self.other_state.iter().cloned()).collect()
    }

    /// After a failed write the samples are written again as a whole.
    fn reset_samples(&mut self) {
        for layer in self.layers.iter_mut().flatten() {
            layer.sample.unsettle();
        }
    }

    /// A file that no manifest names any more. That it stays is no fault: the next open removes it.
    pub(super) fn remove_file(&self, path: &str) {
        if let Err(error) = self.store.backend.remove(path) {
            tracing::warn!(context = self.name, path, %error, "a replaced file could not be removed");
        }
    }
}

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
