//! The place where a writer leaves its newest snapshot. The only unsafe code of the crate is here: reading the published
//! pointer under an epoch guard.
//!
//! It knows nothing of what is published, so that its interleavings can be tried with loom: `interleavings/` takes this
//! file as it is.

use crossbeam_epoch::{self as epoch, Atomic, Owned, Shared};
use std::sync::atomic::Ordering;

/// Readers take the newest value without a lock; the epoch guards the load of the pointer and the clone only. Cloning
/// must be cheap, as that of a counted pointer is.
#[derive(Debug)]
pub(crate) struct Published<T> {
    newest: Atomic<T>,
}

impl<T: Clone + Send + Sync + 'static> Published<T> {
    pub(crate) fn new(first: T) -> Self {
        Published { newest: Atomic::new(first) }
    }

    pub(crate) fn store(&self, value: T) {
        let guard = epoch::pin();
        let old = self.newest.swap(Owned::new(value), Ordering::AcqRel, &guard);
        // SAFETY: `old` was reachable through `newest` only and was swapped out just now, so no thread that pins
        // later can reach it, and it is destroyed only after every thread pinned now has let go. It is never null:
        // `newest` starts with a value and only values are swapped in. Any thread may destroy it, since `T` is `Send`.
        unsafe { guard.defer_destroy(old) };
    }

    pub(crate) fn load(&self) -> T {
        let guard = epoch::pin();
        let newest: Shared<'_, T> = self.newest.load(Ordering::Acquire, &guard);
        // SAFETY: `newest` is not null (see `store`), points to a value that was fully built before it was swapped in
        // with release ordering, and is not destroyed while the guard is held. Several threads may read it at once,
        // since `T` is `Sync`.
        unsafe { newest.deref() }.clone()
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let newest = std::mem::replace(&mut self.newest, Atomic::null());
        // SAFETY: `&mut self` says that no other thread can reach the pointer, and it is not null (see `store`).
        drop(unsafe { newest.into_owned() });
    }
}
