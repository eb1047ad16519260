//! Verifying a store: every byte of every file, the index of every segment, and what the logs say.

use crate::context::Context;
use crate::error::Error;
use crate::store::Store;
use longwave_storage::check::{CheckOptions, Report, check_store};
use longwave_storage::{Error as StorageError, Manifest, Record, RecordKind};

impl Store {
    /// Verifies everything in the store and names each fault with file, column and offset. `progress` is told the
    /// bytes that have been read since it was last called.
    ///
    /// # Errors
    /// [`Error::Storage`] when the contexts cannot be listed; what is wrong inside the store is in the report.
    pub fn check(&self, progress: Option<&dyn Fn(u64)>) -> Result<Report, Error> {
        let options =
            CheckOptions { segment: Some(longwave_index::validate), record: Some(check_record), progress };
        let mut report = check_store(self.backend(), &options);
        for name in self.contexts()? {
            // What verifies file by file must also open as a whole.
            if let Err(error) = Context::open_snapshot(&self.shared, &name) {
                let file = longwave_storage::context_dir(&name);
                if !report.faults.iter().any(|fault| fault.file.starts_with(&file)) {
                    report.faults.push(fault(file, error));
                }
            }
        }
        Ok(report)
    }
}

fn fault(file: String, error: Error) -> longwave_storage::check::Fault {
    match error {
        Error::Storage(error) => error.into(),
        other => longwave_storage::check::Fault { file, column: None, offset: None, what: other.to_string() },
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
