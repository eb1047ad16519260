//! The logs of a context: those it reads, and those it writes to.
//!
//! What was committed once is never written over and never shortened, since other contexts may name it: a log is gone on
//! with only where it ends with what counts. Otherwise the next commit starts another behind it.

use super::Context;
use crate::error::Error;
use longwave_storage::{
    Backend, LOGS_MAX, LogHeader, LogPlace, LogRecord, LogWriter, Manifest, file_maker, log_file_name,
    log_path,
};

/// Logs of a kind that are read one behind the other before all that counts is written to a new one.
const CLOSED_MAX: usize = LOGS_MAX / 4;

/// The context's log files, and how much of the context they hold.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) rows: LogChain,
    /// Per layer: the position up to which rows are in the row logs. `None` asks for a new log, with all rows.
    pub(super) rows_logged: Option<Vec<u64>>,
    pub(super) meta: LogChain,
    pub(super) tokens_logged: usize,
}

/// Logs of one kind, to be read one behind the other.
#[derive(Debug, Default)]
pub(super) struct LogChain {
    /// Those that nothing is appended to, whoever wrote them.
    pub(super) closed: Vec<LogRecord>,
    /// The last one, where there is one to append to.
    pub(super) open: Option<OpenLog>,
    /// Closed ones that may not be durable yet: path and bytes that count.
    unsynced: Vec<(String, u64)>,
}

#[derive(Debug)]
pub(super) struct OpenLog {
    name: String,
    pub(super) writer: LogWriter,
}

impl OpenLog {
    fn record(&self) -> LogRecord {
        LogRecord {
            id: self.writer.header().log_id,
            file: self.name.clone(),
            len: self.writer.len(),
            end: u64::MAX,
            place: LogPlace::Shared,
        }
    }
}

impl LogChain {
    /// The logs as a manifest names them.
    pub(super) fn records(&self) -> Vec<LogRecord> {
        self.closed.iter().cloned().chain(self.open.iter().map(OpenLog::record)).collect()
    }

    /// Nothing from position `end` on counts any more.
    pub(super) fn cut(&mut self, end: u64) {
        self.closed = self.records();
        self.unsynced.extend(self.open.take().map(|log| (log_path(&log.name), log.writer.len())));
        self.closed.iter_mut().for_each(|log| log.end = log.end.min(end));
    }

    /// Whether it is time to write what counts to a new log.
    pub(super) fn is_long(&self) -> bool {
        self.closed.len() >= CLOSED_MAX
    }

    /// Goes on with the logs of a manifest, in the last one where that can be.
    fn resume(backend: &dyn Backend, manifest: &Manifest, records: &[LogRecord]) -> Result<Self, Error> {
        // Whether the writer before has synced what it wrote is not known.
        let unsynced = records.iter().map(|log| (log_path(&log.file), log.len)).collect();
        let mut chain = LogChain { closed: records.to_vec(), open: None, unsynced };
        let Some(last) = records.last() else { return Ok(chain) };
        let own = file_maker(&last.file).is_some_and(|(maker, _)| maker == manifest.context_id);
        let path = log_path(&last.file);
        if own && last.end == u64::MAX && backend.open_read(&path)?.len()? == last.len {
            let header = LogHeader { log_id: last.id, identity: manifest.model.identity };
            let writer = LogWriter::resume(backend, &path, header, last.len)?;
            chain.closed.pop();
            chain.unsynced.pop();
            chain.open = Some(OpenLog { name: last.file.clone(), writer });
        }
        Ok(chain)
    }
}

impl Logs {
    /// The logs that a manifest names. Those in the context's own directory, of an older version, are written anew by
    /// the next commit.
    pub(super) fn resume(backend: &dyn Backend, manifest: &Manifest) -> Result<Self, Error> {
        let mut logs = Self::resume_shared(manifest);
        if logs.rows_logged.is_some() {
            logs.rows = LogChain::resume(backend, manifest, &manifest.row_logs)?;
            logs.meta = LogChain::resume(backend, manifest, &manifest.meta_logs)?;
        }
        Ok(logs)
    }

    /// The logs that a manifest names, for a fork of it.
    pub(super) fn resume_shared(manifest: &Manifest) -> Self {
        let mut all = manifest.row_logs.iter().chain(&manifest.meta_logs);
        if all.any(|log| log.place == LogPlace::Context) {
            return Logs::default();
        }
        let lengths = manifest.layers.iter().map(|layer| layer.length).collect();
        let chain = |records: &[LogRecord]| LogChain { closed: records.to_vec(), ..LogChain::default() };
        Logs {
            rows: chain(&manifest.row_logs),
            rows_logged: Some(lengths),
            meta: chain(&manifest.meta_logs),
            tokens_logged: manifest.token_count as usize,
        }
    }

    /// The same logs for a fork: it reads them, and appends to its own.
    pub(super) fn shared(&self) -> Self {
        let chain = |chain: &LogChain| LogChain { closed: chain.records(), ..LogChain::default() };
        Logs {
            rows: chain(&self.rows),
            rows_logged: self.rows_logged.clone(),
            meta: chain(&self.meta),
            tokens_logged: self.tokens_logged,
        }
    }

    /// Makes everything that the logs hold durable.
    pub(super) fn sync(&mut self, backend: &dyn Backend) -> Result<(), Error> {
        for chain in [&mut self.rows, &mut self.meta] {
            while let Some((path, len)) = chain.unsynced.last() {
                backend.open_append(path, *len)?.sync()?;
                chain.unsynced.pop();
            }
            if let Some(log) = &mut chain.open {
                log.writer.sync()?;
            }
        }
        Ok(())
    }
}

impl Context {
    /// A log to append to, behind those that are closed.
    pub(super) fn new_log(&mut self, kind: &str) -> Result<OpenLog, Error> {
        let number = self.take_number();
        let mut log_id = self.id;
        log_id[8..].copy_from_slice(&number.to_le_bytes());
        let name = log_file_name(&self.id, number, kind);
        let header = LogHeader { log_id, identity: self.model.digest() };
        let writer = LogWriter::create(self.store.backend.as_ref(), &log_path(&name), header)?;
        Ok(OpenLog { name, writer })
    }
}
