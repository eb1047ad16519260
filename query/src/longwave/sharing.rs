//! When several threads work on one KV head.

use rayon::prelude::*;

/// Opened clusters that are worked on in one piece.
pub(super) const PART: usize = 128;

/// Whether idle threads share the work on one position and KV head. They do where a call has fewer of these than there are
/// threads, and its thread has no other job waiting: with enough to do it would cost more than it gains.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Sharing {
    #[default]
    Alone,
    Shared,
}

impl Sharing {
    pub(super) fn of(units: usize) -> Sharing {
        let waiting = rayon_core::current_thread_has_pending_tasks() == Some(true);
        if units < rayon::current_num_threads() && !waiting { Sharing::Shared } else { Sharing::Alone }
    }

    /// What becomes of each of `items`, in their order, whoever works on them.
    pub(super) fn map<T: Sync, R: Send>(self, items: &[T], work: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
        match self {
            Sharing::Alone => items.iter().map(work).collect(),
            Sharing::Shared => items.par_iter().map(work).collect(),
        }
    }
}
