//! Reading ahead: blocks that are about to be read are asked for all at once, where they are on disk and not in memory.
//!
//! Mappings are told that they are read here and there, so a page that is touched comes alone, and whoever touches it waits
//! for the disk. So before a list of rows is read, the system is asked for all of their blocks, neighbours and near ones together; it then
//! fetches them at the same time, while the first ones are verified. Asking costs about a microsecond a run even where everything
//! is in memory, so a few blocks are looked at first.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Segment;
use super::column::Column;
use super::layout::{BLOCK_SIZE, ColumnKind};
use crate::backend::Region;
use crate::error::Result;

/// Blocks of a list that are looked at before it is asked for.
const LOOKED_AT: usize = 8;
/// Lists of a column that were in memory, one after the other, from which on one block of each is looked at.
const TRUSTED: u32 = 1;
/// Lists of blocks that were read before, of which one is looked at: whether the system has dropped what was read.
const LOOK_EVERY: u32 = 64;
/// How far ahead a run of at least [`LONG`] bytes is asked for: it is part of a column that is read from end to end. A list is
/// not, however many of its blocks lie together.
pub(super) const FAR: usize = 4 << 20;
const LONG: usize = 64 << 10;
/// Blocks between two that are wanted, up to which all are asked for as one: a request takes a disk as long as reading some blocks more.
/// On one machine 7 microseconds, where a block takes 2.5, on another 30 to 50 and 5.
const GAP: usize = 3;
/// Columns that lie this close together are asked for as one.
const BETWEEN: usize = BLOCK_SIZE;

/// What is known of a segment's place in memory.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    lists: AtomicU32,
    /// Whether blocks that were read before had gone from memory when it was last looked.
    dropped: AtomicBool,
}

/// Whether blocks of a list are looked at, and which.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Look {
    /// None: they are in memory, or asked for by somebody else.
    Not,
    /// Those that were not read before.
    New,
    /// All: those that were read before have been dropped.
    Dropped,
    /// All, to see whether those that were read before are still there.
    Again,
}

impl Look {
    /// Whether blocks are looked at that were read before.
    pub(super) fn at_all(self) -> bool {
        matches!(self, Look::Dropped | Look::Again)
    }
}

impl Segment {
    /// Says that the columns `kinds` are about to be read: asks for them and for the checksums, as far as they are on disk and
    /// not in memory. Who opens many segments asks for all of them first.
    ///
    /// # Errors
    /// As [`Segment::hold`].
    pub fn expect(&self, kinds: &[ColumnKind]) -> Result<()> {
        self.hold()?;
        let Some(Region::Mapped(mapping)) = self.region.get().or_else(|| self.held.get()) else {
            return Ok(());
        };
        for bytes in self.runs(kinds) {
            let looked_at = [bytes.start, bytes.start.midpoint(bytes.end), bytes.end.saturating_sub(1)];
            if looked_at.into_iter().any(|at| !mapping.is_resident(at)) {
                mapping.will_need(bytes);
            }
        }
        Ok(())
    }

    /// Where the columns `kinds` and the checksums lie, those that lie together in one.
    fn runs(&self, kinds: &[ColumnKind]) -> Vec<Range<usize>> {
        let checksums = usize::try_from(self.checksums.offset).unwrap_or(usize::MAX);
        let checksums = checksums..checksums.saturating_add(self.checksums.len as usize);
        let columns = self.columns.iter().filter(|state| kinds.contains(&state.info.kind));
        let mut runs: Vec<Range<usize>> = Vec::new();
        for bytes in columns.map(|state| state.start..state.end).chain(std::iter::once(checksums)) {
            match runs.last_mut() {
                Some(run) if bytes.start.saturating_sub(run.end) <= BETWEEN => run.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
        runs
    }
}

impl Column<'_> {
    /// Says that these ranges of bytes are about to be read: what of them is on disk and not in memory is asked for, and comes
    /// while it is waited for the first. A range that is not the column's is passed over. Returns whether something was asked for:
    /// whoever has other work does well to do that first.
    pub fn expect(&self, ranges: impl Iterator<Item = Range<usize>>) -> bool {
        let look = self.look();
        if !look.at_all() && (look != Look::New || self.is_verified_whole()) {
            return false;
        }
        let mut blocks = self.needed(ranges, look);
        blocks.sort_unstable();
        blocks.dedup();
        self.ask(&blocks, (look, 0))
    }

    /// Whether blocks of the next list are looked at.
    pub(super) fn look(&self) -> Look {
        let (Region::Mapped(_), ahead) = (self.region(), self.ahead()) else { return Look::Not };
        let again = ahead.lists.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY);
        match (again, ahead.dropped.load(Ordering::Relaxed)) {
            (true, _) => Look::Again,
            (false, true) => Look::Dropped,
            (false, false) => Look::New,
        }
    }

    /// The blocks of ranges of bytes, of those that follow each other each once: all of them, or those that are not verified.
    pub(super) fn needed(&self, ranges: impl Iterator<Item = Range<usize>>, look: Look) -> Vec<usize> {
        let mut blocks = Vec::new();
        for range in ranges.filter(|range| range.start < range.end && range.end <= self.len()) {
            for block in range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE) {
                if blocks.last() != Some(&block) && (look.at_all() || !self.is_verified(block)) {
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    /// Asks for these blocks, which ascend, if some of them seem to be on disk and not in memory; and for `far` bytes behind them,
    /// where a run of them is long. Returns whether it has asked.
    pub(super) fn ask(&self, blocks: &[usize], (look, far): (Look, usize)) -> bool {
        let Region::Mapped(mapping) = self.region() else { return false };
        if look == Look::Not || blocks.is_empty() {
            return false;
        }
        let (known, count) = (self.in_memory().load(Ordering::Relaxed), blocks.len());
        // One of each list, and not always the first.
        let trusted = known >= TRUSTED && !look.at_all();
        let (first, looked_at) = if trusted { (known as usize % count, 1) } else { (0, LOOKED_AT) };
        let places = blocks.iter().skip(first).step_by(count.div_ceil(looked_at));
        let gone =
            places.take(looked_at).any(|block| !mapping.is_resident(self.offset() + block * BLOCK_SIZE));
        self.in_memory().store(if gone { 0 } else { known.saturating_add(1) }, Ordering::Relaxed);
        if look == Look::Again {
            self.ahead().dropped.store(gone, Ordering::Relaxed);
        }
        if !gone {
            return false;
        }
        for piece in pieces(blocks) {
            let (start, len) = (piece.start * BLOCK_SIZE, piece.len() * BLOCK_SIZE);
            let end = start + if len >= LONG { len + far } else { len };
            mapping.will_need(self.offset() + start..self.offset() + end.min(self.len()));
        }
        true
    }
}

/// The pieces in which blocks, which ascend, are asked for.
fn pieces(blocks: &[usize]) -> impl Iterator<Item = Range<usize>> {
    let runs = blocks.chunk_by(|block, next| block + 1 + GAP >= *next);
    runs.filter_map(|run| Some(*run.first()?..run.last()? + 1))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::super::column::tests::segment_on;
    use super::*;
    use crate::mapping::tests::drop_pages;
    use crate::{FileBackend, MemoryBackend};

    #[test]
    fn columns_that_lie_together_are_asked_for_as_one() {
        let segment = segment_on(Arc::new(MemoryBackend::new()));
        let [keys, values, positions] = [0, 1, 2].map(|at| &segment.columns[at]);
        let end = segment.file_len as usize;
        let checksums = segment.checksums.offset as usize..end;
        assert!(checksums.start - positions.end <= BETWEEN && values.start - keys.end <= BETWEEN);
        let ends = |kinds: &[ColumnKind]| -> Vec<(usize, usize)> {
            segment.runs(kinds).into_iter().map(|run| (run.start, run.end)).collect()
        };
        let alone = (checksums.start, end);
        assert_eq!(ends(&[]), [alone]);
        assert_eq!(ends(&[ColumnKind::POSITIONS]), [(positions.start, end)]);
        assert_eq!(ends(&[ColumnKind::KEYS]), [(keys.start, keys.end), alone]);
        let all = [ColumnKind::POSITIONS, ColumnKind::KEYS, ColumnKind::VALUES];
        assert_eq!(ends(&all), [(keys.start, end)]);
    }

    #[test]
    fn blocks_with_few_others_between_are_one_piece() {
        let found: Vec<Range<usize>> = pieces(&[2, 3, 7, 12, 16, 21]).collect();
        assert_eq!(found, [2..8, 12..17, 21..22], "three between, four, three, four");
        assert_eq!(pieces(&[]).count(), 0);
    }

    #[test]
    fn who_asks_is_told_whether_something_comes_from_disk() {
        let directory = tempfile::tempdir().unwrap();
        let segment = segment_on(Arc::new(FileBackend::new(directory.path())));
        drop_pages(&File::open(directory.path().join(segment.path())).unwrap());
        let keys = segment.column(ColumnKind::KEYS).unwrap();
        let list = || [5..9, 4 * BLOCK_SIZE..5 * BLOCK_SIZE + 1].into_iter();
        let pages = keys.pages(0..keys.len());
        if segment.residency(pages).unwrap().into_iter().any(|resident| resident) {
            println!("pages cannot be dropped here: only what is in memory was tested");
        } else {
            assert!(keys.expect(list()));
        }
        let ranges: Vec<Range<usize>> = list().collect();
        ranges
            .into_iter()
            .for_each(|range| assert!(keys.bytes(range).unwrap().iter().all(|&byte| byte == 3)));
        assert!(!keys.expect(list()), "all of it has been read");
        assert!(!keys.expect(std::iter::empty()));
    }

    #[test]
    fn blocks_that_are_needed_are_those_that_nobody_has_verified() {
        let segment = segment_on(Arc::new(MemoryBackend::new()));
        let keys = segment.column(ColumnKind::KEYS).unwrap();
        let ranges =
            || [0..1, 5..4097, 4096 * 3..4096 * 3, 4096 * 7..4096 * 7 + 9, keys.len() - 1..keys.len() + 1];
        assert_eq!(
            keys.needed(ranges().into_iter(), Look::New),
            [0, 1, 7],
            "none of a range that is not the column's"
        );
        keys.bytes(4096..4097).unwrap();
        assert_eq!(keys.needed(ranges().into_iter(), Look::New), [0, 7]);
        assert_eq!(keys.needed(ranges().into_iter(), Look::Dropped), [0, 1, 7]);
        assert!(keys.look() == Look::Not, "a copy in memory is not looked at");
    }

    #[test]
    fn lists_found_in_memory_are_counted_and_one_of_many_looks_again() {
        let directory = tempfile::tempdir().unwrap();
        let segment = segment_on(Arc::new(FileBackend::new(directory.path())));
        let keys = segment.column(ColumnKind::KEYS).unwrap();
        let looks: Vec<Look> = (0..2 * LOOK_EVERY).map(|_| keys.look()).collect();
        assert_eq!(looks.iter().filter(|look| **look == Look::Again).count(), 2);
        assert!(looks.iter().all(|look| matches!(look, Look::New | Look::Again)), "nothing was dropped");
        // All was just written, so all is in memory.
        for (list, known) in [(0..8, 1), (8..16, 2), (16..17, 3)] {
            let blocks: Vec<usize> = list.collect();
            keys.ask(&blocks, (Look::New, 0));
            assert_eq!(keys.in_memory().load(Ordering::Relaxed), known);
        }
        keys.ask(&[], (Look::New, 0));
        keys.ask(&[1], (Look::Not, 0));
        assert_eq!(keys.in_memory().load(Ordering::Relaxed), 3, "nothing to be said of either");
    }
}
