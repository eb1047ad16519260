//! Read-only mappings of files, and how many of them the process has. The only unsafe code of this crate.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Advice;

/// Mappings of this process: the system caps them per process (65,530 by default), so one counter serves all stores.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Number of files that this process has mapped through this crate.
pub fn mapped_count() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// One of the mappings that are allowed; given back when dropped.
#[derive(Debug)]
struct Slot;

impl Slot {
    fn take(limit: usize) -> Option<Self> {
        MAPPED
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then_some(count + 1))
            .ok()
            .map(|_| Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A whole file, mapped read-only and shared, at a page boundary.
#[derive(Debug)]
pub struct Mapping {
    map: memmap2::Mmap,
    _slot: Slot,
}

impl Mapping {
    /// Maps all of `file` as it is now; `None` if `limit` mappings exist already.
    pub(crate) fn new(file: &File, limit: usize) -> io::Result<Option<Self>> {
        let Some(slot) = Slot::take(limit) else { return Ok(None) };
        // SAFETY: the bytes behind a mapping must not change and the file must not be shortened while it lives. This
        // crate maps segment files only, and a segment file is complete before it gets its name and is afterwards
        // renamed or unlinked, never written to or shortened. Another program that does so breaks the promise of a
        // stable slice; no code here depends on two reads of a byte being equal for memory safety.
        let map = unsafe { memmap2::Mmap::map(file)? };
        // Rows are read here and there: a page that is not in memory must not bring its neighbours along. What is known
        // to be read is asked for with `will_need`. It is advice, and nothing depends on it.
        let _ = map.advise(Advice::Random);
        Ok(Some(Self { map, _slot: slot }))
    }

    /// Asks the system to bring the pages of these bytes into memory, and does not wait for them.
    pub(crate) fn will_need(&self, bytes: Range<usize>) {
        let start = bytes.start / PAGE * PAGE;
        let end = bytes.end.min(self.map.len());
        if start < end {
            let _ = self.map.advise_range(Advice::WillNeed, start, end - start);
        }
    }

    /// Whether the page with this byte is in memory now; true where the system does not tell.
    pub(crate) fn is_resident(&self, at: usize) -> bool {
        let start = at / PAGE * PAGE;
        let Some(page) = self.map.get(start..).filter(|rest| !rest.is_empty()) else { return true };
        let mut state: u8 = 1;
        let page = page.as_ptr().cast_mut().cast();
        // SAFETY: `page` is the address of a page of the mapping (a mapping begins at a multiple of a page's size, and so does
        // `start`), which lives as long as `self`; the call reads no byte of it. For a length of one byte it writes one byte
        // to the vector, which has room for it. Where pages are larger than `PAGE` and the address is not one's, it fails.
        let told = unsafe { libc::mincore(page, 1, (&raw mut state).cast()) };
        told != 0 || state & 1 == 1
    }

    /// Sets an entry of `resident`, one for each of the 4 KiB pages `pages`, where the page is in memory now. Where the system
    /// does not tell, none is. Pages behind the file's end are passed over.
    ///
    /// Linux tells it of pages that this process has not touched, too, but only to who owns the file or may write to it: to
    /// others it says that every page is in memory.
    pub(crate) fn residency(&self, pages: Range<usize>, resident: &mut [bool]) {
        // What is told is told by pages of the system, which may be larger.
        let system = system_page();
        let start = pages.start.saturating_mul(PAGE) / system * system;
        let end = pages.end.saturating_mul(PAGE).min(self.map.len());
        let Some(part) = self.map.get(start..end).filter(|part| !part.is_empty()) else { return };
        let mut states = vec![0_u8; part.len().div_ceil(system)];
        // SAFETY: `part` lies in the mapping, which lives as long as `self`, and begins at a page of the system, since the
        // mapping does and `start` is a multiple of a page's size; the call reads no byte of it. It writes one byte to the
        // vector for each page of the system that `part` touches, and the vector has one for each.
        let told =
            unsafe { libc::mincore(part.as_ptr().cast_mut().cast(), part.len(), states.as_mut_ptr().cast()) };
        if told != 0 {
            return;
        }
        for (page, resident) in pages.zip(resident) {
            let state = states.get((page * PAGE - start) / system);
            *resident = state.is_some_and(|state| state & 1 == 1);
        }
    }
}

/// Asks the processor for the first KiB of `bytes`, which are read next: it fetches what follows in a page by itself,
/// but not what another page begins with. Nothing comes of it where the page is not mapped yet.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.get(..FETCHED).unwrap_or(bytes).chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; it reads nothing, whatever the address, and this one is that of bytes which are borrowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

#[cfg(target_arch = "x86_64")]
const FETCHED: usize = 1024;

/// Has the system begin to write these bytes of `file` to the disk. It promises nothing, and takes no error from the sync that
/// does.
pub(crate) fn start_writing(file: &File, bytes: Range<u64>) {
    #[cfg(target_os = "linux")]
    if let (Ok(start), Ok(len)) = (i64::try_from(bytes.start), i64::try_from(bytes.end - bytes.start)) {
        use std::os::fd::AsRawFd as _;
        // SAFETY: a call about a file that is open; no memory is involved.
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
}

/// Bytes of a page of the system, at least [`PAGE`].
fn system_page() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: asks for a number; no memory is involved.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).map_or(PAGE, |size| size.max(PAGE))
    })
}

/// The system's smallest page.
const PAGE: usize = 4096;

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::time::{Duration, Instant};

    use super::*;

    /// Asks the system to drop the pages of a file that nobody has mapped.
    pub(crate) fn drop_pages(file: &File) {
        file.sync_all().unwrap();
        // SAFETY: a hint about a file that is open; no memory is involved.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }

    #[test]
    fn pages_that_are_asked_for_come_and_what_is_not_there_is_passed_over() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..5 * PAGE + 10).map(|at| (at % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        drop_pages(&file);
        let mapping = Mapping::new(&file, usize::MAX).unwrap().unwrap();
        for nothing in [0..0, bytes.len()..usize::MAX, usize::MAX - 1..usize::MAX] {
            mapping.will_need(nothing);
        }
        assert!(mapping.is_resident(usize::MAX) && mapping.is_resident(6 * PAGE));
        mapping.will_need(PAGE + 7..usize::MAX);
        let started = Instant::now();
        while !(1..6).all(|page| mapping.is_resident(page * PAGE + 3)) {
            assert!(started.elapsed() < Duration::from_secs(60), "the pages never came");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(mapping.first(), Some(&0));
        assert!(mapping.is_resident(0), "a page that was read is there");
        assert_eq!(&*mapping, &bytes[..]);
        let mut resident = [false; 8];
        mapping.residency(1..9, &mut resident);
        assert_eq!(resident, [true, true, true, true, true, false, false, false], "the file has six pages");
        for nothing in [0..0, 6..7, usize::MAX - 1..usize::MAX] {
            let mut resident = [false];
            mapping.residency(nothing, &mut resident);
            assert_eq!(resident, [false]);
        }
    }
}
