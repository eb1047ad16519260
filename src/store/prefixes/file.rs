//! The index of prefixes on disk: a log of token ids, appended to by every process that commits.
//!
//! It is advice. What it says is compared with manifests before it is believed, it is not synced, and when it is torn or
//! lost it is made anew from the contexts.

use super::index::{Index, Note};
use crate::error::Error;
use longwave_storage::{
    Backend, Error as StorageError, FileReader, Identity, LogHeader, LogReader, LogWriter, PREFIXES_FILE,
    PREFIXES_LOCK, PREFIXES_NEW_FILE, Record, RecordHeader, RecordKind, validate_name,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a record's payload before the name: context, base, seed, length of the name.
const HEAD: usize = 16 + 16 + 16 + 4;
/// Of a record in front of its payload.
const RECORD_HEAD: u64 = 48;
/// The log belongs to no model.
const NO_MODEL: Identity = Identity([0; 32]);
/// How long a commit waits for another that writes to the index.
const PATIENCE: Duration = Duration::from_millis(100);

/// The file as far as this process has read it.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) index: Index,
    header: Option<LogHeader>,
    read_to: u64,
    reader: Option<Arc<dyn FileReader>>,
    /// Whether a record could not be read: it is being written, or torn.
    torn: bool,
}

impl File {
    /// Reads what others have written. A file that was made anew is read from its beginning.
    pub(super) fn refresh(&mut self, backend: &dyn Backend) -> Result<(), Error> {
        let header = match LogHeader::read(backend, PREFIXES_FILE) {
            Err(StorageError::Missing { .. } | StorageError::Corrupt { .. }) => {
                *self = File { torn: true, ..File::default() };
                return Ok(());
            }
            header => header?,
        };
        if self.header != Some(header) {
            *self = File {
                header: Some(header),
                reader: Some(backend.open_read(PREFIXES_FILE)?),
                ..File::default()
            };
        }
        let mut reader = match LogReader::open_at(backend, PREFIXES_FILE, header, self.read_to) {
            Err(StorageError::Corrupt { .. } | StorageError::Identity { .. }) => {
                self.torn = true;
                return Ok(());
            }
            reader => reader?,
        };
        self.torn = false;
        self.read_to = reader.offset();
        loop {
            match reader.next() {
                Ok(None) => return Ok(()),
                Ok(Some(record)) => {
                    let Some((note, ids_at)) = decode(&record) else { break };
                    if !self.index.take(&note, record.offset + RECORD_HEAD + ids_at) {
                        break;
                    }
                    self.read_to = reader.offset();
                }
                Err(StorageError::Corrupt { .. } | StorageError::Io { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.torn = true;
        Ok(())
    }

    /// Appends a record. `None` says that the file has to be made anew first.
    pub(super) fn append(&mut self, backend: &dyn Backend, note: &Note) -> Result<Option<()>, Error> {
        self.refresh(backend)?;
        let Some(header) = self.header.filter(|_| !self.torn) else { return Ok(None) };
        let mut writer = LogWriter::resume(backend, PREFIXES_FILE, header, self.read_to)?;
        write(&mut writer, note)?;
        self.refresh(backend)?;
        Ok((!self.torn).then_some(()))
    }

    /// Puts a new file in the place of the old one.
    pub(super) fn replace(
        &mut self,
        backend: &dyn Backend,
        log_id: [u8; 16],
        notes: impl Iterator<Item = Result<Note, Error>>,
    ) -> Result<(), Error> {
        if backend.exists(PREFIXES_NEW_FILE)? {
            backend.remove(PREFIXES_NEW_FILE)?;
        }
        let header = LogHeader { log_id, identity: NO_MODEL };
        let mut writer = LogWriter::create(backend, PREFIXES_NEW_FILE, header)?;
        for note in notes {
            write(&mut writer, &note?)?;
        }
        backend.rename(PREFIXES_NEW_FILE, PREFIXES_FILE)?;
        self.refresh(backend)
    }

    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// At most `count` ids of a context from `position` on.
    pub(super) fn ids(&self, slot: u32, position: u64, count: u64) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        let Some(reader) = &self.reader else { return Ok(ids) };
        while (ids.len() as u64) < count {
            let at = position + ids.len() as u64;
            let Some((offset, left)) = self.index.place(slot, at) else { break };
            let mut bytes = vec![0; 4 * left.min(count - ids.len() as u64) as usize];
            reader.read_exact_at(&mut bytes, offset)?;
            ids.extend(bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)));
        }
        Ok(ids)
    }
}

/// Takes the lock of the index, soon or not at all.
pub(super) fn lock(backend: &dyn Backend) -> Option<Box<dyn longwave_storage::LockGuard>> {
    let started = Instant::now();
    loop {
        match backend.lock(PREFIXES_LOCK) {
            Ok(lock) => return Some(lock),
            Err(StorageError::Locked { .. }) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(_) => return None,
        }
    }
}

fn write(writer: &mut LogWriter, note: &Note) -> Result<(), Error> {
    let mut head = Vec::with_capacity(HEAD + note.name.len());
    head.extend(note.context);
    head.extend(note.base);
    head.extend(note.seed.to_le_bytes());
    head.extend((note.name.len() as u32).to_le_bytes());
    head.extend(note.name.as_bytes());
    let ids: Vec<u8> = note.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let header = RecordHeader {
        kind: RecordKind::Prefix,
        layer: 0,
        first_position: note.first,
        count: note.ids.len() as u32,
    };
    writer.append(&header, &[&head, &ids])?;
    Ok(())
}

/// A record, and where its ids begin in the payload.
fn decode(record: &Record) -> Option<(Note, u64)> {
    let (context, rest) = record.payload.split_first_chunk::<16>()?;
    let (base, rest) = rest.split_first_chunk::<16>()?;
    let (seed, rest) = rest.split_first_chunk::<16>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (name, ids) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let name =
        std::str::from_utf8(name).ok().filter(|name| name.is_empty() || validate_name(name).is_ok())?;
    let (ids, odd) = ids.as_chunks::<4>();
    let whole = odd.is_empty() && ids.len() == record.header.count as usize;
    let aligned = record.header.first_position.is_multiple_of(super::index::BLOCK as u64);
    if record.header.kind != RecordKind::Prefix || !whole || !aligned {
        return None;
    }
    let note = Note {
        context: *context,
        name: name.to_owned(),
        seed: u128::from_le_bytes(*seed),
        base: *base,
        first: record.header.first_position,
        ids: ids.iter().map(|id| u32::from_le_bytes(*id)).collect(),
    };
    Some((note, (HEAD + name.len()) as u64))
}
