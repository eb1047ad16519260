//! Appending to a log.

use super::layout::{LOG_HEADER_SIZE, LogHeader, RECORD_SIZE, RawRecord, RecordHeader};
use crate::backend::{Backend, FileWriter};
use crate::error::{Error, Result};
use crate::names::parent;

/// Appends records to one log. After a failed write or sync it refuses everything: what lies on disk then is known
/// only to who reads it, and a sync that failed once proves nothing when it succeeds later.
#[derive(Debug)]
pub struct LogWriter {
    writer: Box<dyn FileWriter>,
    path: String,
    header: LogHeader,
    len: u64,
    synced_len: u64,
    poisoned: bool,
    /// Reused for every record, so that each is one write.
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Makes a log that holds nothing. Its header and its name are durable when this returns, so that the manifest
    /// that names it never outlives it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], otherwise what the backend reports.
    pub fn create(backend: &dyn Backend, path: &str, header: LogHeader) -> Result<Self> {
        let mut writer = backend.create_new(path)?;
        writer.write_all(&header.encode())?;
        writer.sync()?;
        backend.sync_dir(parent(path))?;
        Ok(Self::at(writer, path, header, LOG_HEADER_SIZE))
    }

    /// Goes on at `committed_len`, over whatever a torn write has left behind it.
    ///
    /// # Errors
    /// [`Error::Identity`] if the log is another model's; [`Error::Corrupt`] if its header is bad, it is another log
    /// than `header` says, or it is shorter than `committed_len`.
    pub fn resume(backend: &dyn Backend, path: &str, header: LogHeader, committed_len: u64) -> Result<Self> {
        header.check(path, backend.open_read(path)?.as_ref())?;
        if committed_len < LOG_HEADER_SIZE {
            return Err(Error::corrupt(
                path,
                committed_len,
                "at least the header to be committed",
                committed_len,
            ));
        }
        let writer = backend.open_append(path, committed_len)?;
        // Whether the writer before has synced what it wrote is not known.
        Ok(Self { synced_len: 0, ..Self::at(writer, path, header, committed_len) })
    }

    fn at(writer: Box<dyn FileWriter>, path: &str, header: LogHeader, len: u64) -> Self {
        Self {
            writer,
            path: path.to_owned(),
            header,
            len,
            synced_len: len,
            poisoned: false,
            buffer: Vec::new(),
        }
    }

    /// Writes one record, its payload in pieces; returns the new length of the log in bytes. The record counts once
    /// a manifest names that length.
    ///
    /// # Errors
    /// [`Error::Limit`] if the payload has 4 GiB or more, and nothing is written; [`Error::Poisoned`]; what the
    /// backend reports.
    pub fn append(&mut self, header: &RecordHeader, payload: &[&[u8]]) -> Result<u64> {
        self.append_batch([(*header, payload)])
    }

    /// Writes several records with one write; returns the new length of the log in bytes.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn append_batch<'a>(
        &mut self,
        records: impl IntoIterator<Item = (RecordHeader, &'a [&'a [u8]])>,
    ) -> Result<u64> {
        self.buffer.clear();
        for (header, payload) in records {
            self.buffer_record(&header, payload)?;
        }
        self.guard(|this| this.writer.write_all(&this.buffer))?;
        self.len += self.buffer.len() as u64;
        Ok(self.len)
    }

    /// Puts one record behind those in the buffer.
    fn buffer_record(&mut self, header: &RecordHeader, payload: &[&[u8]]) -> Result<()> {
        let payload_len: usize = payload.iter().map(|part| part.len()).sum();
        let payload_len = u32::try_from(payload_len)
            .map_err(|_| Error::limit("payload of a record", u64::from(u32::MAX), payload_len as u64))?;
        let start = self.buffer.len();
        self.buffer.resize(start + RECORD_SIZE, 0);
        payload.iter().for_each(|part| self.buffer.extend_from_slice(part));
        let (_, record) = self.buffer.split_at_mut(start);
        if let Some((head, payload)) = record.split_first_chunk_mut::<RECORD_SIZE>() {
            let raw = RawRecord::new(&self.header, self.len + start as u64, header, payload, payload_len);
            head.copy_from_slice(bytemuck::bytes_of(&raw));
        }
        Ok(())
    }

    /// Makes everything appended so far durable; does nothing if it is.
    ///
    /// # Errors
    /// [`Error::Poisoned`]; what the backend reports.
    pub fn sync(&mut self) -> Result<()> {
        if self.synced_len == self.len && !self.poisoned {
            return Ok(());
        }
        self.guard(|this| this.writer.sync())?;
        self.synced_len = self.len;
        Ok(())
    }

    /// Length of the log in bytes, its header included.
    #[expect(clippy::len_without_is_empty, reason = "a log always has its header")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Path in the store.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whose log this is.
    pub fn header(&self) -> LogHeader {
        self.header
    }

    fn guard(&mut self, action: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.poisoned {
            return Err(Error::Poisoned { path: self.path.clone() });
        }
        let result = action(self);
        self.poisoned = result.is_err();
        result
    }
}
