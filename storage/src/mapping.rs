//! Read-only mappings of files, and how many of them the process has. The only unsafe code of this crate.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        Ok(Some(Self { map, _slot: slot }))
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
