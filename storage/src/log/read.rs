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

/// Reads the records of a log up to its committed length, by positional reads, short records many at a time. The file is not
/// mapped: its writer may be at work behind that length.
#[derive(Debug)]
pub struct LogReader {
    reader: Arc<dyn FileReader>,
    path: String,
    header: LogHeader,
    committed_len: u64,
    offset: u64,
    /// Bytes of the log from `read_at` on.
    read: Vec<u8>,
    read_at: u64,
}

/// Bytes that are read at a time, at least, where the log has as many.
const PIECE: u64 = 256 << 10;

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
        let (path, offset) = (path.to_owned(), LOG_HEADER_SIZE);
        Ok(Self { reader, path, header, committed_len, offset, read: Vec::new(), read_at: offset })
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
        let len = usize::try_from(record_len).unwrap_or(RECORD_SIZE) - RECORD_SIZE;
        let mut payload = vec![0; len];
        self.copy(&mut payload, self.offset + RECORD_SIZE as u64)?;
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
    fn header(&mut self, left: u64) -> Result<(RecordHeader, RawRecord, u64)> {
        if left < RECORD_SIZE as u64 {
            return Err(self.cut(RECORD_SIZE as u64, left));
        }
        let mut raw = RawRecord::zeroed();
        self.copy(bytemuck::bytes_of_mut(&mut raw), self.offset)?;
        let (header, payload_len) = raw.check(&self.path, &self.header, self.offset)?;
        let record_len = RECORD_SIZE as u64 + u64::from(payload_len);
        if left < record_len {
            return Err(self.cut(record_len, left));
        }
        Ok((header, raw, record_len))
    }

    /// Fills `buffer` from byte `at` of the log on, where it has been read, or else is read now with what follows. What is long
    /// is read to where it is wanted.
    fn copy(&mut self, buffer: &mut [u8], at: u64) -> Result<()> {
        let len = buffer.len() as u64;
        if len >= PIECE {
            return self.reader.read_exact_at(buffer, at);
        }
        let held = self.read_at..self.read_at + self.read.len() as u64;
        if at < held.start || at + len > held.end {
            let end = self.committed_len.min(at + PIECE);
            self.read_at = at;
            self.read.resize(usize::try_from(end.saturating_sub(at)).unwrap_or(0), 0);
            if self.reader.read_exact_at(&mut self.read, at).is_err() {
                // What follows may be what cannot be read.
                self.read.clear();
                return self.reader.read_exact_at(buffer, at);
            }
        }
        let from = usize::try_from(at - self.read_at).unwrap_or(usize::MAX);
        let bytes = self.read.get(from..from.saturating_add(buffer.len())).unwrap_or_default();
        if bytes.len() != buffer.len() {
            return Err(self.cut(len, self.committed_len.saturating_sub(at)));
        }
        buffer.copy_from_slice(bytes);
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::layout::RecordKind;
    use crate::{Identity, LogWriter, MemoryBackend};
    use parking_lot::Mutex;

    /// Counts reads, and refuses those that reach beyond `end`.
    #[derive(Debug)]
    struct Ending {
        inner: Arc<dyn FileReader>,
        end: u64,
        reads: Mutex<Vec<(u64, usize)>>,
    }

    impl FileReader for Ending {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
            self.reads.lock().push((offset, buffer.len()));
            if offset + buffer.len() as u64 > self.end {
                return Err(Error::io("a", "read", std::io::ErrorKind::InvalidData.into()));
            }
            self.inner.read_exact_at(buffer, offset)
        }

        fn len(&self) -> Result<u64> {
            self.inner.len()
        }
    }

    const HEADER: LogHeader = LogHeader { log_id: [3; 16], identity: Identity([4; 32]) };

    fn log_of(lengths: &[usize]) -> (MemoryBackend, u64) {
        let backend = MemoryBackend::new();
        let mut log = LogWriter::create(&backend, "a", HEADER).unwrap();
        for (number, &len) in lengths.iter().enumerate() {
            let header =
                RecordHeader { kind: RecordKind::Rows, layer: 0, first_position: number as u64, count: 1 };
            log.append(&header, &[&vec![number as u8; len]]).unwrap();
        }
        let len = log.len();
        (backend, len)
    }

    fn reader(backend: &MemoryBackend, len: u64, end: u64) -> (LogReader, Arc<Ending>) {
        let mut reader = LogReader::open(backend, "a", HEADER, len).unwrap();
        let ending = Arc::new(Ending { inner: Arc::clone(&reader.reader), end, reads: Mutex::default() });
        reader.reader = Arc::clone(&ending) as Arc<dyn FileReader>;
        (reader, ending)
    }

    #[test]
    fn short_records_are_read_many_at_a_time_and_long_ones_where_they_are_wanted() {
        let long = PIECE as usize + 5;
        let mut lengths = vec![100; 500];
        lengths.extend([long, 7, 0, long, 50_000, 50_000, 50_000, 50_000, 50_000, 50_000]);
        let (backend, len) = log_of(&lengths);
        let (mut reader, ending) = reader(&backend, len, u64::MAX);
        for (number, &len) in lengths.iter().enumerate() {
            let record = reader.next().unwrap().unwrap();
            assert_eq!((record.header.first_position, record.payload.len()), (number as u64, len));
            assert!(record.payload.iter().all(|byte| *byte == number as u8), "{number}");
        }
        assert_eq!(reader.next().unwrap(), None);
        let reads = ending.reads.lock();
        assert!(reads.len() <= 8, "{reads:?}");
        assert!(reads.iter().all(|(at, read)| at + *read as u64 <= len), "{reads:?}");
    }

    #[test]
    fn what_cannot_be_read_is_told_of_the_record_that_it_belongs_to() {
        let lengths = [100; 9];
        let (backend, len) = log_of(&lengths);
        let record = (len - LOG_HEADER_SIZE) / 9;
        let end = LOG_HEADER_SIZE + 5 * record - 1;
        let (mut reader, _) = reader(&backend, len, end);
        let whole = (0..9).take_while(|_| reader.next().is_ok()).count();
        assert_eq!(whole, 4, "all before it come back");
        assert!(matches!(reader.next(), Err(Error::Io { .. })));
        assert_eq!(reader.offset(), LOG_HEADER_SIZE + whole as u64 * record, "and it stays there");
    }
}
