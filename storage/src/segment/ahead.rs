//! Reading ahead: blocks that are about to be read are asked for all at once, where they are on disk and not in memory.
//!
//! Mappings are told that they are read here and there, so a page that is touched comes alone, and whoever touches it waits
//! for the disk. So before a list of rows is read, the system is asked for all of their blocks, neighbours together; it then
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
/// Lists of blocks that were read before, of which one is looked at: whether the system has dropped what was read.
const LOOK_EVERY: u32 = 64;
/// How far ahead a run of at least [`LONG`] bytes is asked for: it is part of a column that is read from end to end.
const FAR: usize = 4 << 20;
const LONG: usize = 64 << 10;

/// What is known of a segment's place in memory.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    lists: AtomicU32,
    /// Whether blocks that were read before had gone from memory when it was last looked.
    dropped: AtomicBool,
}

impl Ahead {
    fn look_again(&self) -> bool {
        self.lists.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY)
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
        let checksums = usize::try_from(self.checksums.offset).unwrap_or(usize::MAX);
        let columns = self.columns.iter().filter(|state| kinds.contains(&state.info.kind));
        let columns = columns.map(|state| state.start..state.end);
        for bytes in
            columns.chain(std::iter::once(checksums..checksums.saturating_add(self.checksums.len as usize)))
        {
            if !mapping.is_resident(bytes.start) {
                mapping.will_need(bytes);
            }
        }
        Ok(())
    }
}

impl Column<'_> {
    /// Says that these ranges of bytes, which ascend, are about to be read: what of them is on disk and not in memory is
    /// asked for, and comes while it is waited for the first. A range that is not the column's is passed over.
    pub fn expect(&self, ranges: impl Iterator<Item = Range<usize>> + Clone) {
        let Region::Mapped(mapping) = self.region() else { return };
        let ahead = self.ahead();
        let (dropped, look) = (ahead.dropped.load(Ordering::Relaxed), ahead.look_again());
        let blocks = |range: Range<usize>| range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
        let inside = |range: &Range<usize>| range.start < range.end && range.end <= self.len();
        let needed = ranges
            .filter(inside)
            .map(blocks)
            .filter(|blocks| dropped || look || blocks.clone().any(|block| !self.is_verified(block)));
        let step = needed.clone().count().div_ceil(LOOKED_AT);
        if step == 0 {
            return;
        }
        let gone = needed
            .clone()
            .step_by(step)
            .any(|blocks| !mapping.is_resident(self.offset() + blocks.start * BLOCK_SIZE));
        if look {
            ahead.dropped.store(gone, Ordering::Relaxed);
        }
        if !gone {
            return;
        }
        let mut run: Option<Range<usize>> = None;
        let ask = |run: Range<usize>| {
            let (start, mut end) = (run.start * BLOCK_SIZE, run.end * BLOCK_SIZE);
            if end - start >= LONG {
                end += FAR;
            }
            mapping.will_need(self.offset() + start..self.offset() + end.min(self.len()));
        };
        for blocks in needed {
            match &mut run {
                Some(run) if blocks.start <= run.end && blocks.start >= run.start => {
                    run.end = run.end.max(blocks.end);
                }
                _ => run.replace(blocks).into_iter().for_each(ask),
            }
        }
        run.into_iter().for_each(ask);
    }
}
