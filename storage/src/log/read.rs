//! Reading a log front to back.

use std::sync::Arc;

use bytemuck::Zeroable;

use super::layout::{LOG_HEADER_SIZE, LogHeader, RECORD_SIZE, RawRecord, RecordHeader};
use crate::backend::{Backend, FileReader};
use crate::error::{Error, Result};

/// One record, verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it says of its payload.
    pub header: RecordHeader,
    /// The payload.
    pub payload: Vec<u8>,
    /// Where the record starts in the log, in bytes.
    pub offset: u64,
}

/// Reads the records of a log up to its committed length, each with a positional read. The file is not mapped: its
/// writer may be at work behind that length.
#[derive(Debug)]
pub struct LogReader {
    reader: Arc<dyn FileReader>,
    path: String,
    header: LogHeader,
    committed_len: u64,
    offset: u64,
}

impl LogReader {
    /// Opens the log at `path`, of which `committed_len` bytes count.
    ///
    /// # Errors
    /// [`Error::Identity`] if the log is another model's; [`Error::Corrupt`] if its header is bad, it is another log
    /// than `header` says, or it is shorter than `committed_len`.
    pub fn open(backend: &dyn Backend, path: &str, header: LogHeader, committed_len: u64) -> Result<Self> {
        let reader = backend.open_read(path)?;
        header.check(path, reader.as_ref())?;
        let len = reader.len()?;
        if committed_len < LOG_HEADER_SIZE || committed_len > len {
            return Err(Error::corrupt(
                path,
                len,
                format_args!("{committed_len} committed bytes, {LOG_HEADER_SIZE} of header among them"),
                format_args!("{len} bytes"),
            ));
        }
        Ok(Self { reader, path: path.to_owned(), header, committed_len, offset: LOG_HEADER_SIZE })
    }

    /// The next record, or `None` at the committed length.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the record is not what was written, or does not end within the committed length. The
    /// reader stays where it is.
    #[expect(clippy::should_implement_trait, reason = "an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Record>> {
        let left = self.committed_len - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let (header, raw, record_len) = self.header(left)?;
        // Bounded: the committed length, and so the file, has that many bytes.
        let mut payload = vec![0; usize::try_from(record_len).unwrap_or(RECORD_SIZE) - RECORD_SIZE];
        self.reader.read_exact_at(&mut payload, self.offset + RECORD_SIZE as u64)?;
        raw.check_payload(&self.path, self.offset, &payload)?;
        let offset = self.offset;
        self.offset += record_len;
        Ok(Some(Record { header, payload, offset }))
    }

    /// Passes over the next record without looking at its payload: what [`LogReader::next`] has refused, so that what
    /// lies behind it can be saved. Gives what the record says of itself, or `None` at the committed length.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the record's header is damaged as well: nothing then says where the next one starts.
    pub fn skip(&mut self) -> Result<Option<RecordHeader>> {
        let left = self.committed_len - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let (header, _, record_len) = self.header(left)?;
        self.offset += record_len;
        Ok(Some(header))
    }

    /// Where the next record starts, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The header of the next record, of which and what follows `left` bytes are committed, and the record's length.
    fn header(&self, left: u64) -> Result<(RecordHeader, RawRecord, u64)> {
        if left < RECORD_SIZE as u64 {
            return Err(self.cut(RECORD_SIZE as u64, left));
        }
        let mut raw = RawRecord::zeroed();
        self.reader.read_exact_at(bytemuck::bytes_of_mut(&mut raw), self.offset)?;
        let (header, payload_len) = raw.check(&self.path, &self.header, self.offset)?;
        let record_len = RECORD_SIZE as u64 + u64::from(payload_len);
        if left < record_len {
            return Err(self.cut(record_len, left));
        }
        Ok((header, raw, record_len))
    }

    /// Opens the log at `path` to read on at `offset`, where a record starts, up to the end of the file.
    ///
    /// # Errors
    /// As [`LogReader::open`].
    pub fn open_at(backend: &dyn Backend, path: &str, header: LogHeader, offset: u64) -> Result<Self> {
        let len = backend.open_read(path)?.len()?;
        Ok(Self {
            offset: offset.max(LOG_HEADER_SIZE),
            ..Self::open(backend, path, header, len.max(offset))?
        })
    }

    fn cut(&self, expected: u64, left: u64) -> Error {
        Error::corrupt(
            &self.path,
            self.offset,
            format_args!("a record of {expected} bytes"),
            format_args!("{left} bytes to the committed length"),
        )
    }
}
