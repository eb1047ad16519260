//! The cap on what comes from disk: which pages of codes and full rows are cold, and which rows are read all the same.
//!
//! Reading a row touches the 4 KiB pages that hold its blocks. Pages that are in memory are free. A position and KV head has an
//! even part of the pages that a call may fetch; where the rows that were chosen lie on more cold pages than that, the
//! pages are fetched whose rows gain most together, and rows on others are left to coarser resolutions: a full row to its
//! code, if that can be had, and anything else to the sketch, as if it had not been chosen.

use super::constants::{KEY_NOISE, VALUE_NOISE};
use super::zone::{Choice, Chosen, Zone};
use crate::report::DiskReport;
use crate::stored::{RowColumn, Side};
use crate::view::{LayerSegment, LayerView};
use crate::work::{Span, for_rows_read, in_sight};
use longwave_storage::{BLOCK_SIZE, Column, Error};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages that nobody asked about are looked at along with their neighbours where no more of them lie between: that costs less
/// than asking twice.
const GAP: u64 = 16;
/// The part of the pages that keys may take, of what rows in any case have left. From a half to four fifths make little
/// difference; docs/decisions/0018-cold-pages.md has what was measured.
const OF_KEYS: f64 = 0.65;

/// Pages that turn out not to be needed, such as those of the codes of rows that can be had in full, make room for the next ones, so
/// often at most.
const ROUNDS: usize = 8;

/// A page: the number of its segment in the view, and its number in the file, in the upper and the lower half.
type PageId = u64;

/// What is known of a page, in two bits. What was seen first stands for the whole call, so that what one part of it
/// fetches does not change what another chooses.
const RESIDENT: u64 = 1;
const COLD: u64 = 2;
/// Cold, and fetched by this call.
const FETCHED: u64 = 3;
const PAGES_PER_WORD: u64 = 32;

/// The pages of a call's segments.
pub(super) struct Disk<'v> {
    files: Vec<File<'v>>,
    bytes_max: u64,
    units: usize,
    /// Whether the system is asked for what will be read: not where a call is planned and no more.
    asks: bool,
    fetched: AtomicU64,
}

struct File<'v> {
    segment: &'v LayerSegment,
    states: OnceLock<Box<[AtomicU64]>>,
}

impl<'v> Disk<'v> {
    /// Of a call of so many positions and KV heads that may fetch `bytes_max` bytes.
    pub(super) fn new(view: &LayerView<'v>, bytes_max: u64, units: usize, asks: bool) -> Self {
        let files = view.segments.iter().map(|&segment| File { segment, states: OnceLock::new() });
        Disk { files: files.collect(), bytes_max, units, asks, fetched: AtomicU64::new(0) }
    }

    /// What the call has fetched so far.
    pub(super) fn report(&self) -> DiskReport {
        let bytes = self.fetched.load(Ordering::Acquire) * BLOCK_SIZE as u64;
        DiskReport { bytes, bytes_max: self.bytes_max }
    }

    /// Looks at all rows of the segments that are read one by one: read from end to end, they come with others that are read
    /// ahead, which whoever looks later would take for resident.
    pub(super) fn look_at_rows(
        &self,
        view: &LayerView<'v>,
        span: Span,
        segments: &[&LayerSegment],
    ) -> Result<(), Error> {
        for &segment in segments.iter().filter(|segment| in_sight(view, span, segment)) {
            let file = (self.number(segment) as u64) << 32;
            for of in [RowColumn::Positions, RowColumn::Row(Side::Keys), RowColumn::Row(Side::Values)] {
                let (column, _) = segment.row_column(&view.shape, of)?;
                let pages = column.pages(0..column.len());
                self.look(&(file | pages.start as u64..file | pages.end as u64))?;
            }
        }
        Ok(())
    }

    /// Number of a segment in the view.
    fn number(&self, segment: &LayerSegment) -> usize {
        self.files.iter().position(|file| std::ptr::eq(file.segment, segment)).unwrap_or_default()
    }

    /// Pages that position and KV head number `unit` may fetch.
    fn pages_max(&self, unit: usize) -> usize {
        let (pages, units) = (self.bytes_max / BLOCK_SIZE as u64, self.units.max(1) as u64);
        usize::try_from(pages / units + u64::from((unit as u64) < pages % units)).unwrap_or(usize::MAX)
    }

    fn word(&self, page: PageId) -> (&AtomicU64, u64) {
        let (file, page) = (&self.files[(page >> 32) as usize], page & u64::from(u32::MAX));
        let states = file.states.get_or_init(|| {
            let pages = file.segment.segment().file_len().div_ceil(BLOCK_SIZE as u64);
            (0..pages.div_ceil(PAGES_PER_WORD)).map(|_| AtomicU64::new(0)).collect()
        });
        (&states[(page / PAGES_PER_WORD) as usize], page % PAGES_PER_WORD * 2)
    }

    fn state(&self, page: PageId) -> u64 {
        let (word, shift) = self.word(page);
        word.load(Ordering::Acquire) >> shift & 3
    }

    fn is_cold(&self, page: PageId) -> bool {
        self.state(page) >= COLD
    }

    /// Looks at pages of one file of which something is not known yet.
    fn look(&self, pages: &Range<PageId>) -> Result<(), Error> {
        if pages.clone().all(|page| self.state(page) != 0) {
            return Ok(());
        }
        let of_file = |page: PageId| (page & u64::from(u32::MAX)) as usize;
        let file = &self.files[(pages.start >> 32) as usize];
        let resident = file.segment.segment().residency(of_file(pages.start)..of_file(pages.end))?;
        for (page, resident) in pages.clone().zip(resident) {
            let (word, shift) = self.word(page);
            let seen = if resident { RESIDENT } else { COLD } << shift;
            // Another may have been first.
            let first = |word: u64| (word >> shift & 3 == 0).then_some(word | seen);
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, first);
        }
        Ok(())
    }

    /// Counts cold pages, which ascend, as fetched, and asks the system for them.
    fn fetch(&self, pages: &[PageId]) -> Result<(), Error> {
        for &page in pages {
            let (word, shift) = self.word(page);
            let before = word.fetch_or(FETCHED << shift, Ordering::AcqRel) >> shift & 3;
            self.fetched.fetch_add(u64::from(before == COLD), Ordering::AcqRel);
        }
        if self.asks {
            for run in pages.chunk_by(|a, b| a + 1 == *b) {
                let first = (run[0] & u64::from(u32::MAX)) as usize;
                self.files[(run[0] >> 32) as usize].segment.segment().fetch(first..first + run.len())?;
            }
        }
        Ok(())
    }
}

/// The rows of a KV head in a column.
struct Place<'v> {
    file: u64,
    column: Column<'v>,
    /// Rows of the heads before.
    base: usize,
    size: usize,
}

impl Place<'_> {
    fn pages(&self, rows: Range<usize>) -> Range<PageId> {
        let pages =
            self.column.pages((self.base + rows.start) * self.size..(self.base + rows.end) * self.size);
        self.file | pages.start as u64..self.file | pages.end as u64
    }

    fn of_row(&self, chosen: &Chosen) -> Range<PageId> {
        self.pages(chosen.row as usize..chosen.row as usize + 1)
    }
}

/// What one position and KV head fetches, over all its attempts.
pub(super) struct Fetches<'a, 'v> {
    disk: &'a Disk<'v>,
    view: &'a LayerView<'v>,
    /// Numbers of the head's segments in the view.
    numbers: &'a [usize],
    kv_head: usize,
    pages_max: usize,
    /// Cold pages that it reads, ascending.
    mine: Vec<PageId>,
    /// How many of them there may be before values come: keys are chosen more than once, and have one part together.
    before_values: Option<usize>,
    /// Whether rows were left to coarser resolutions.
    pub(super) is_cut: bool,
    /// Whether pages of rows that were chosen were asked for since somebody wanted to know.
    has_asked: bool,
}

impl<'a, 'v> Fetches<'a, 'v> {
    pub(super) fn new(
        disk: &'a Disk<'v>,
        view: &'a LayerView<'v>,
        numbers: &'a [usize],
        (position, kv_head): (usize, usize),
    ) -> Self {
        let pages_max = disk.pages_max(position * view.shape.kv_heads + kv_head);
        Fetches {
            disk,
            view,
            numbers,
            kv_head,
            pages_max,
            mine: Vec::new(),
            before_values: None,
            is_cut: false,
            has_asked: false,
        }
    }

    fn place(&self, number: usize, of: RowColumn) -> Result<Place<'v>, Error> {
        let segment = self.disk.files[number].segment;
        let (column, size) = segment.row_column(&self.view.shape, of)?;
        Ok(Place { file: (number as u64) << 32, column, base: self.kv_head * segment.rows(), size })
    }

    /// Counts the rows of segments that are read one by one whatever the cap.
    pub(super) fn count(&mut self, span: Span, segments: &[&LayerSegment]) -> Result<(), Error> {
        // Before the first of them is read: what is read ahead behind one head's rows are those of the next.
        self.disk.look_at_rows(self.view, span, segments)?;
        let mut cold = Vec::new();
        for &segment in segments {
            let number = self.disk.number(segment);
            for_rows_read(self.view, (self.kv_head, span), segment, |columns, rows| {
                for &of in columns {
                    let pages = self.place(number, of)?.pages(rows.clone());
                    self.disk.look(&pages)?;
                    cold.extend(pages.filter(|&page| self.disk.is_cold(page)));
                }
                Ok(())
            })?;
        }
        self.take(cold)?;
        // They are read at once.
        self.has_asked = false;
        Ok(())
    }

    /// Keeps of the rows that were chosen of a side those that can be had. Keys come first and leave some of the pages to
    /// the values.
    pub(super) fn keep(&mut self, zone: &Zone, side: Side, choice: &mut Choice) -> Result<(), Error> {
        let left = self.pages_max.saturating_sub(self.mine.len());
        let allowed = if side == Side::Keys {
            let of_keys = || self.mine.len() + (left as f64 * OF_KEYS).ceil() as usize;
            self.before_values.get_or_insert_with(of_keys).saturating_sub(self.mine.len())
        } else {
            self.before_values = None;
            left
        };
        let wanted = self.wanted(zone, side, choice)?;
        if wanted.len() <= allowed {
            return self.take(wanted);
        }
        self.is_cut = true;
        let mut worth = self.worth(zone, side, choice)?;
        // The largest first; of equal ones, that which lies in front.
        worth.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
        let all = std::mem::take(choice);
        let (mut taken, mut kept) = (allowed, Vec::new());
        for _ in 0..ROUNDS {
            let mut had: Vec<PageId> = worth.iter().take(taken).map(|(page, _)| *page).collect();
            had.extend(&self.mine);
            had.sort_unstable();
            let mut fewer = all.clone();
            self.cut(zone, side, &mut fewer, &had)?;
            let wanted = self.wanted(zone, side, &fewer)?;
            if wanted.len() > allowed {
                break;
            }
            let spare = allowed - wanted.len();
            (*choice, kept) = (fewer, wanted);
            if spare == 0 || taken >= worth.len() {
                break;
            }
            taken += spare;
        }
        self.take(kept)
    }

    /// Cold pages of the rows chosen, beyond those that were fetched before.
    fn wanted(&self, zone: &Zone, side: Side, choice: &Choice) -> Result<Vec<PageId>, Error> {
        let mut wanted = Vec::new();
        let (code, row) = (RowColumn::Code(side), RowColumn::Row(side));
        for (list, of) in [(&choice.half, code), (&choice.code, code), (&choice.full, row)] {
            self.for_cold(zone, (list, of), |_, page| {
                if wanted.last() != Some(&page) {
                    wanted.push(page);
                }
            })?;
        }
        wanted.sort_unstable();
        wanted.dedup();
        Ok(wanted)
    }

    /// The same pages, and those of the codes that full rows could be left to, with the squared errors that fetching each
    /// takes away: sums over the rows of what the resolution leaves beside the next coarser one.
    fn worth(&self, zone: &Zone, side: Side, choice: &Choice) -> Result<Vec<(PageId, f32)>, Error> {
        let [half, code] = if side == Side::Keys { KEY_NOISE } else { VALUE_NOISE };
        let mut worth: Vec<(PageId, f32)> = Vec::new();
        for (list, of, taken) in [
            (&choice.half, RowColumn::Code(side), 1.0 - half),
            (&choice.code, RowColumn::Code(side), 1.0 - code),
            (&choice.full, RowColumn::Code(side), 1.0 - code),
            (&choice.full, RowColumn::Row(side), code),
        ] {
            self.for_cold(zone, (list, of), |chosen, page| {
                worth.push((page, chosen.gain * taken));
            })?;
        }
        // In the order of the lists, so that sums have the same bits.
        worth.sort_by_key(|(page, _)| *page);
        worth.dedup_by(|(page, gain), (kept, sum)| {
            let same = page == kept;
            *sum += if same { *gain } else { 0.0 };
            same
        });
        Ok(worth)
    }

    /// Leaves out the rows that lie on other cold pages than `had`, which ascend.
    fn cut(&self, zone: &Zone, side: Side, choice: &mut Choice, had: &[PageId]) -> Result<(), Error> {
        let lost = |list: &[Chosen], of: RowColumn| -> Result<Vec<u32>, Error> {
            let mut lost = Vec::new();
            self.for_cold(zone, (list, of), |chosen, page| {
                if had.binary_search(&page).is_err() && lost.last() != Some(&chosen.at) {
                    lost.push(chosen.at);
                }
            })?;
            Ok(lost)
        };
        // The places of rows ascend in a list.
        let is_lost = |lost: &[u32], chosen: &Chosen| lost.binary_search(&chosen.at).is_ok();
        let (code, row) = (RowColumn::Code(side), RowColumn::Row(side));
        let (of_full, of_code) = (lost(&choice.full, row)?, lost(&choice.full, code)?);
        let coarser = choice.full.iter().filter(|row| is_lost(&of_full, row) && !is_lost(&of_code, row));
        let coarser: Vec<Chosen> = coarser.copied().collect();
        choice.full.retain(|row| !is_lost(&of_full, row));
        for list in [&mut choice.half, &mut choice.code] {
            let lost = lost(list, code)?;
            list.retain(|row| !is_lost(&lost, row));
        }
        choice.code.extend(coarser);
        choice.code.sort_by_key(|row| row.at);
        Ok(())
    }

    /// Calls `each` with the rows of a list and their cold pages, beyond those that were fetched before. Pages of which
    /// nothing is known are looked at.
    fn for_cold(
        &self,
        zone: &Zone,
        (list, of): (&[Chosen], RowColumn),
        mut each: impl FnMut(&Chosen, PageId),
    ) -> Result<(), Error> {
        let segment = |chosen: &Chosen| zone.opened[chosen.opened as usize].segment;
        for run in list.chunk_by(|a, b| segment(a) == segment(b)) {
            let place = self.place(self.numbers[segment(&run[0])], of)?;
            let mut pages = place.of_row(&run[0]);
            for next in run.iter().map(|chosen| place.of_row(chosen)) {
                if next.start > pages.end + GAP {
                    self.disk.look(&std::mem::replace(&mut pages, next))?;
                } else {
                    pages.end = pages.end.max(next.end);
                }
            }
            self.disk.look(&pages)?;
            for chosen in run {
                for page in place.of_row(chosen) {
                    if self.disk.is_cold(page) && self.mine.binary_search(&page).is_err() {
                        each(chosen, page);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether cold pages of rows that were chosen were asked for since this was last called.
    pub(super) fn has_asked(&mut self) -> bool {
        std::mem::take(&mut self.has_asked)
    }

    /// Fetches cold pages.
    fn take(&mut self, mut pages: Vec<PageId>) -> Result<(), Error> {
        if pages.is_empty() {
            return Ok(());
        }
        pages.sort_unstable();
        pages.dedup();
        self.has_asked = true;
        self.disk.fetch(&pages)?;
        self.mine.append(&mut pages);
        self.mine.sort();
        self.mine.dedup();
        Ok(())
    }
}
