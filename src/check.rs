//! Verifying a store: every byte of every file, the index of every segment, and what the logs say.

use crate::context::Context;
use crate::error::Error;
use crate::options::StoreOptions;
use crate::store::Store;
use longwave_storage::check::{CheckOptions, Fault, Report, check_store};
use longwave_storage::{
    Backend, Error as StorageError, MANIFEST_FILE, Manifest, Record, RecordKind, context_file, read_store,
};
use std::sync::Arc;

/// Verifies everything in the store on `backend`, on the threads of rayon's pool, and names each fault with file, column
/// and offset. The store may be too damaged to be opened; looking at it changes nothing. `progress` is told the bytes
/// read so far, from several threads.
pub fn check(backend: &Arc<dyn Backend>, progress: Option<&(dyn Fn(u64) + Sync)>) -> Report {
    let mut report = check_store(backend, &options(progress));
    // A store that cannot be opened or listed has been named by the check of the files.
    if read_store(backend.as_ref()).is_err() {
        return report;
    }
    let Ok(store) = Store::on_backend(Arc::clone(backend), StoreOptions::default()) else { return report };
    for name in store.contexts().unwrap_or_default() {
        // What verifies file by file must also open as a whole.
        let Err(error) = Context::open_snapshot(&store.shared, &name) else { continue };
        let fault = fault(context_file(&name, MANIFEST_FILE), error);
        if report.faults.iter().all(|known| known.file != fault.file) {
            report.faults.push(fault);
        }
    }
    report
}

/// What the engine knows beyond checksums.
pub(crate) fn options(progress: Option<&(dyn Fn(u64) + Sync)>) -> CheckOptions<'_> {
    CheckOptions { segment: Some(longwave_index::validate), record: Some(check_record), progress }
}

impl Store {
    /// As [`check`], for a store that is open.
    pub fn check(&self, progress: Option<&(dyn Fn(u64) + Sync)>) -> Report {
        check(self.backend(), progress)
    }
}

/// An error as a line of a report; `file` where it names none.
pub(crate) fn fault(file: String, error: Error) -> Fault {
    match error {
        Error::Storage(error) => error.into(),
        other => Fault { file, column: None, offset: None, what: other.to_string() },
    }
}

/// Whether a record's payload has the length that its header and the model ask for.
fn check_record(manifest: &Manifest, record: &Record) -> Result<(), StorageError> {
    let model = &manifest.model;
    let (header, found) = (&record.header, record.payload.len() as u64);
    let row = u64::from(model.kv_heads)
        * u64::from(model.key_dim + model.value_dim)
        * u64::from(model.element.size());
    let expected = match header.kind {
        RecordKind::Rows => u64::from(header.count) * row,
        RecordKind::Tokens => u64::from(header.count) * 4,
        // Of the index of prefixes, not of a context.
        RecordKind::Prefix => u64::MAX,
        RecordKind::Queries => {
            u64::from(header.count) * u64::from(model.query_heads) * u64::from(model.key_dim) * 2
        }
    };
    if found == expected && header.layer < model.layers {
        return Ok(());
    }
    let expected = format!("{expected} bytes of {:?}, for one of {} layers", header.kind, model.layers);
    Err(StorageError::corrupt(
        &longwave_storage::context_dir(&manifest.name),
        record.offset,
        expected,
        format!("{found} bytes for layer {}", header.layer),
    ))
}
