//! Which pages of a segment's file are in memory, for callers that mind how much comes from the disk.

use std::ops::Range;

use super::Segment;
use super::column::Column;
use super::layout::BLOCK_SIZE;
use crate::backend::Region;
use crate::error::Result;

impl Segment {
    /// Says of each of the 4 KiB pages `pages`, counted from the file's beginning, whether it is in memory now, so that
    /// reading it waits for no disk: one entry a page, and none for pages behind the file's end. Asking costs some tenths of a microsecond, and tens of nanoseconds a
    /// page; nothing is read.
    ///
    /// Linux tells it only to who owns the file or may write to it. To others it says that every page is in memory. Where
    /// the system does not tell, no page is. Pages that are larger than 4 KiB are in memory as a whole.
    ///
    /// # Errors
    /// As [`Segment::column`], where the file is not mapped yet.
    pub fn residency(&self, pages: Range<usize>) -> Result<Vec<bool>> {
        let end = usize::try_from(self.file_len.div_ceil(BLOCK_SIZE as u64)).unwrap_or(usize::MAX);
        Ok(self.region()?.residency(pages.start.min(end)..pages.end.min(end)))
    }

    /// Asks the system for these pages of the file, and does not wait for them.
    ///
    /// # Errors
    /// As [`Segment::residency`].
    pub fn fetch(&self, pages: Range<usize>) -> Result<()> {
        if let Region::Mapped(mapping) = self.region()? {
            mapping.will_need(pages.start.saturating_mul(BLOCK_SIZE)..pages.end.saturating_mul(BLOCK_SIZE));
        }
        Ok(())
    }
}

impl<'a> Column<'a> {
    /// The 4 KiB pages of the file, counted from its beginning, that hold the blocks of these bytes of the column: what is
    /// touched where the bytes are read, since a block is verified as a whole. None for bytes behind the column's end.
    #[inline]
    pub fn pages(&self, bytes: Range<usize>) -> Range<usize> {
        let bytes = bytes.start..bytes.end.min(self.len());
        if bytes.is_empty() {
            return 0..0;
        }
        let start = self.offset() + bytes.start / BLOCK_SIZE * BLOCK_SIZE;
        let end = self.offset() + bytes.end.next_multiple_of(BLOCK_SIZE).min(self.len());
        start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE)
    }

    /// The same column for whoever asks for what he reads by himself ([`Segment::fetch`]): reading listed records asks the
    /// system for nothing, and so for nothing that is not read.
    #[must_use]
    pub fn without_ahead(mut self) -> Column<'a> {
        self.reads_ahead = false;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::column::tests::segment_on;
    use super::*;
    use crate::{ColumnKind, FileBackend, MemoryBackend};

    #[test]
    fn pages_are_those_of_the_blocks_that_are_read() {
        let segment = segment_on(Arc::new(MemoryBackend::new()));
        let keys = segment.column(ColumnKind::KEYS).unwrap();
        let (first, len) = (keys.offset() / BLOCK_SIZE, keys.len());
        assert!(keys.offset().is_multiple_of(BLOCK_SIZE));
        for (bytes, pages) in
            [(0..0, 0..0), (7..7, 0..0), (4095..4096, 0..1), (4095..4097, 0..2), (4096..8192, 1..2)]
        {
            let expected = if bytes.is_empty() { pages } else { first + pages.start..first + pages.end };
            assert_eq!(keys.pages(bytes.clone()), expected, "{bytes:?}");
        }
        assert_eq!(keys.pages(len - 1..len), first + 69..first + 70);
        assert_eq!(keys.pages(len - 1..usize::MAX), first + 69..first + 70);
        assert_eq!(keys.pages(len..usize::MAX), 0..0);
        // A block of a column that begins anywhere lies in two pages, its last one in those up to its end.
        let positions = segment.column(ColumnKind::POSITIONS).unwrap();
        let (start, end) = (positions.offset(), positions.offset() + positions.len());
        assert!(!start.is_multiple_of(BLOCK_SIZE) && positions.len() > 2 * BLOCK_SIZE);
        assert_eq!(positions.pages(0..1), start / BLOCK_SIZE..start / BLOCK_SIZE + 2);
        assert_eq!(positions.pages(0..4097), start / BLOCK_SIZE..start / BLOCK_SIZE + 3);
        let last = positions.len() / BLOCK_SIZE * BLOCK_SIZE;
        let expected = (start + last) / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE);
        assert_eq!(positions.pages(positions.len() - 1..positions.len()), expected);
    }

    #[test]
    fn pages_that_are_called_cold_are_until_the_file_is_another() {
        let memory = MemoryBackend::new();
        let segment = segment_on(Arc::new(memory.clone()));
        assert_eq!(segment.residency(0..4).unwrap(), [true; 4], "all of a copy in memory is there");
        memory.set_cold("a", |page| page % 3 == 1).unwrap();
        assert_eq!(segment.residency(0..6).unwrap(), [true, false, true, true, false, true]);
        segment.fetch(0..6).unwrap();
        segment.column(ColumnKind::KEYS).unwrap().all().unwrap();
        assert_eq!(segment.residency(3..5).unwrap(), [true, false], "whoever reads it");
        memory.set_cold("a", |page| page == 2).unwrap();
        assert_eq!(segment.residency(0..4).unwrap(), [true, true, false, true]);
        memory.replace("a", &memory.contents("a").unwrap()).unwrap();
        let another = crate::Backend::map(&memory, "a").unwrap();
        assert_eq!(another.residency(0..4), [true; 4]);
        assert!(matches!(memory.set_cold("b", |_| true), Err(crate::Error::Missing { .. })));
    }

    #[test]
    fn pages_of_a_file_that_was_just_written_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let segment = segment_on(Arc::new(FileBackend::new(directory.path())));
        let pages = (segment.file_len() as usize).div_ceil(BLOCK_SIZE);
        assert_eq!(segment.residency(0..pages).unwrap(), vec![true; pages]);
        for behind in [pages..pages + 2, pages + 1..usize::MAX] {
            assert_eq!(segment.residency(behind).unwrap(), [false; 0], "behind the end");
        }
        assert_eq!(segment.residency(1..usize::MAX).unwrap().len(), pages - 1);
        segment.fetch(0..usize::MAX).unwrap();
        segment.column(ColumnKind::KEYS).unwrap().without_ahead().listed(32, 0..1770, &[3]).unwrap();
    }
}
