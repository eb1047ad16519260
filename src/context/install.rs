//! Taking in what the sealing threads have finished.

use super::{Context, Layer, layer_of_mut};
use crate::error::Error;
use crate::sealing::Sealed;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::TryRecvError;

impl Context {
    /// Takes what the sealing threads have finished of a layer, without waiting.
    pub(super) fn install_finished(&mut self, layer: usize) -> Result<(), Error> {
        self.install_sealed(layer)?;
        if let Err(failure) = self.install_rebuilt(layer, false) {
            tracing::warn!(layer, error = %failure, "segments could not be built again; they stay as they are");
        }
        self.rebuild_if_due(layer);
        self.compact_if_due(layer);
        self.drop_if_due(layer);
        Ok(())
    }

    /// Takes the segments of a layer that are finished, oldest first.
    fn install_sealed(&mut self, layer: usize) -> Result<(), Error> {
        let mine = layer_of_mut(&mut self.layers, layer)?;
        while let Some(pending) = mine.pending.front() {
            let result = match pending.result.try_recv() {
                Ok(result) => result,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => Err(ended(layer, &pending.range)),
            };
            if let Some(failure) = mine.settle(result) {
                tracing::warn!(layer, error = %failure, "sealing failed; the rows stay in the tail");
                self.seal_failure = Some(failure);
                return Ok(());
            }
            self.logs.rows_logged = None;
        }
        Ok(())
    }

    /// Waits for the queued segments of a layer; for those of bulk ingestion only, if `bulk_only`.
    pub(super) fn install_all(&mut self, layer: usize, bulk_only: bool) -> Result<(), Error> {
        while layer_of_mut(&mut self.layers, layer)?.pending.iter().any(|pending| pending.bulk || !bulk_only)
        {
            if !self.install_next(layer)? {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the oldest queued segments of a layer until no more than `most` are left.
    pub(super) fn install_oldest(&mut self, layer: usize, most: usize) -> Result<(), Error> {
        while layer_of_mut(&mut self.layers, layer)?.pending.len() > most {
            if !self.install_next(layer)? {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the oldest queued segment of a layer. Whether there was one, and it was sealed: a failure is told by the next
    /// commit or seal.
    fn install_next(&mut self, layer: usize) -> Result<bool, Error> {
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let Some(pending) = mine.pending.front() else { return Ok(false) };
        let result = pending.result.recv().unwrap_or_else(|_| Err(ended(layer, &pending.range)));
        if let Some(failure) = mine.settle(result) {
            self.seal_failure = Some(failure);
            return Ok(false);
        }
        self.logs.rows_logged = None;
        Ok(true)
    }
}

impl Layer {
    /// The position up to which rows of the tail are in bulk segments that are being built or written, or in segments before
    /// these; `None` where there are none.
    pub(super) fn bulk_end(&self) -> Option<u64> {
        self.pending.iter().rfind(|pending| pending.bulk).map(|pending| pending.range.end)
    }

    /// Installs the oldest pending segment. A failure drops everything pending: the rows are still in the tail, and
    /// the next append queues them again.
    fn settle(&mut self, result: Result<Sealed, Error>) -> Option<Error> {
        let pending = self.pending.pop_front()?;
        match result {
            Ok(sealed) => {
                self.rows.tail.release(pending.range.end);
                self.rows.segments.push(Arc::new(sealed));
                Arc::make_mut(&mut self.rows.memory).push();
                None
            }
            Err(failure) => {
                self.queued_end = pending.range.start;
                self.abandon_pending(0);
                Some(failure)
            }
        }
    }

    /// Gives up what is queued behind the first `kept`.
    pub(super) fn abandon_pending(&mut self, kept: usize) {
        for pending in self.pending.drain(kept..) {
            pending.cancelled.store(true, Ordering::Release);
            self.queued_end = self.queued_end.min(pending.range.start);
            self.abandoned.push(pending.result);
        }
    }
}

pub(super) fn ended(layer: usize, range: &Range<u64>) -> Error {
    Error::SealingEnded { layer, first: range.start, end: range.end }
}
