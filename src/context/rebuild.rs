//! Building the segments of a layer again, in the metric of the queries that are known by now.
//!
//! New segments are new files. They take the place of the old ones all at once, in memory; the next commit names them
//! instead of the old ones, which are removed once that commit is durable. Until then the last commit is readable.

use super::commit::Replaced;
use super::install::ended;
use super::{Context, layer_of_mut};
use crate::accuracy::{Calibration, Spending};
use crate::error::Error;
use crate::metric::Metric;
use crate::options::Rebuild;
use crate::sealer::Sealing;
use crate::sealing::{SealLadder, SealRows, Sealed};
use longwave_index::ladder::{Basis, LadderView, MomentSource};
use longwave_storage::segment_path;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, OnceLock};

/// The segments of a layer being built again.
#[derive(Debug)]
pub(super) struct Rebuilding {
    /// Positions and results of those that were not finished when it was last looked.
    pub(super) pending: VecDeque<(Range<u64>, Sealing)>,
    /// Number of the first of their files.
    pub(super) number: u64,
    /// The finished ones.
    pub(super) done: Vec<Arc<Sealed>>,
    /// Which of the layer's segments they take the place of.
    pub(super) place: Range<usize>,
    /// The bases of the new segments, where they are not those of the layer.
    pub(super) bases: Option<Arc<OnceLock<Vec<Basis>>>>,
    /// Where rows are dropped: which rows of the one segment.
    pub(super) doomed: Option<Vec<bool>>,
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Context {
    /// Clusters and codes the sealed rows of a layer again, or those of all layers: with the second moment of the
    /// queries that its sample holds now, or the model's profile while it holds none. Waits until the new segments are
    /// written and in use. What was audited of the layer, and spent on it, is forgotten: it was about the old index. Returns the
    /// segments built again: 0 for a layer that is not clustered or has no ladder.
    ///
    /// A commit makes it durable. Snapshots taken before go on reading the old segments, in any process, though their files
    /// are removed after the next commit: a snapshot has them mapped, as far as so many can be.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`]; [`Error::Storage`] when rows cannot be read or segments
    /// cannot be written: the layer is then as it was.
    pub fn rebuild(&mut self, layer: Option<usize>) -> Result<usize, Error> {
        let layers = layer.map_or_else(|| self.present_layers(), |layer| vec![layer]);
        let mut rebuilt = 0;
        for layer in layers {
            self.abandon_rebuild(layer)?;
            self.install_all(layer, false)?;
            if let Some(failure) = self.seal_failure.take() {
                return Err(failure);
            }
            self.queue_rebuild(layer)?;
            rebuilt += self.install_rebuilt(layer, true)?;
        }
        Ok(rebuilt)
    }

    /// Queues a rebuild of a layer whose segments know no query of the context, once there are enough. Each layer is
    /// looked at once: if the rebuild fails, [`Self::rebuild`] can still be called.
    pub(super) fn rebuild_if_due(&mut self, layer: usize) {
        let Rebuild::WhenObserved { positions } = self.options.rebuild else { return };
        let Ok(mine) = layer_of_mut(&mut self.layers, layer) else { return };
        let enough = mine.sample.len() >= positions as usize;
        // While segments are being sealed it waits, so that they are built again with the others.
        if mine.metric_known || !enough || mine.rows.segments.is_empty() || !mine.pending.is_empty() {
            return;
        }
        if mine.rebuilding.is_some() {
            return;
        }
        mine.metric_known = true;
        let first = LadderView::open(mine.rows.segments[0].segment.segment());
        let source = first.map(|ladder| ladder.map(|ladder| ladder.moment_source()));
        let queued = match source {
            Ok(None | Some(MomentSource::Context)) => return,
            Ok(Some(_)) => self.queue_rebuild(layer),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = queued {
            tracing::warn!(layer, %error, "segments could not be built again; they stay as they are");
        }
    }

    /// Queues all segments of a layer.
    fn queue_rebuild(&mut self, layer: usize) -> Result<(), Error> {
        let profile = self.profile_if_needed(layer)?;
        let mine = layer_of_mut(&mut self.layers, layer)?;
        if !mine.clustered || !self.options.ladder || mine.rows.segments.is_empty() {
            return Ok(());
        }
        mine.metric_known = true;
        let segments = mine.rows.segments.clone();
        let metric = Metric::new(layer, &self.model, &mine.sample, profile);
        let bases = Arc::new(OnceLock::new());
        let cancelled = Arc::new(AtomicBool::new(false));
        let mut pending = VecDeque::new();
        let number = self.next_number;
        let slope_rows = self.options.slope_rows();
        let ladder = || SealLadder { metric: Arc::clone(&metric), bases: Arc::clone(&bases), slope_rows };
        let form = self.row_form(layer, true, Some(&ladder()))?;
        for sealed in segments {
            let range = sealed.segment.first_position()..sealed.segment.end();
            let sealed_at = sealed.sealed_at;
            let source = (Some(ladder()), SealRows::Segments(vec![sealed]), form);
            let result = self.start_sealing(layer, sealed_at, source, Arc::clone(&cancelled))?;
            pending.push_back((range, result));
        }
        let place = 0..pending.len();
        let rebuilding = Rebuilding {
            pending,
            number,
            done: Vec::new(),
            place,
            bases: Some(bases),
            doomed: None,
            cancelled,
        };
        layer_of_mut(&mut self.layers, layer)?.rebuilding = Some(rebuilding);
        Ok(())
    }

    /// Puts the new segments of a layer in the place of the old ones when all of them are finished, or with `wait` as
    /// soon as they are. Returns how many old ones there were.
    pub(super) fn install_rebuilt(&mut self, layer: usize, wait: bool) -> Result<usize, Error> {
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let Some(rebuilding) = &mut mine.rebuilding else { return Ok(0) };
        while let Some((range, result)) = rebuilding.pending.front() {
            let result = if wait {
                result.recv().unwrap_or_else(|_| Err(ended(layer, range)))
            } else {
                match result.try_recv() {
                    Ok(result) => result,
                    Err(TryRecvError::Empty) => return Ok(0),
                    Err(TryRecvError::Disconnected) => Err(ended(layer, range)),
                }
            };
            rebuilding.pending.pop_front();
            match result {
                Ok(sealed) => rebuilding.done.push(Arc::new(sealed)),
                Err(failure) => {
                    self.abandon_rebuild(layer)?;
                    return Err(failure);
                }
            }
        }
        if !self.still_doomed(layer)? {
            // A query has found a row important that was to be dropped.
            self.abandon_rebuild(layer)?;
            return Ok(0);
        }
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let Some(Rebuilding { done, bases, place, doomed, .. }) = mine.rebuilding.take() else {
            return Ok(0);
        };
        let (count, new) = (place.len(), done.len());
        mine.remember(&place, &done, doomed.as_deref());
        let old = mine.rows.segments.splice(place, done).collect::<Vec<_>>();
        self.replaced.extend(old.into_iter().map(Replaced::segment));
        if let Some(bases) = bases {
            // What was learnt was about another metric.
            mine.bases = bases;
            mine.marks.clear();
            mine.rows.calibration = Arc::new(Calibration::new(mine.rows.shape.query_heads));
            mine.rows.spending = Arc::new(Spending::new(&mine.rows.shape));
            self.audits.forget(layer, self.layers.len());
        }
        tracing::debug!(layer, segments = count, new, "built segments again");
        Ok(count)
    }

    /// Gives up a rebuild under way. What it has written is named by nothing.
    pub(super) fn abandon_rebuild(&mut self, layer: usize) -> Result<(), Error> {
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let Some(rebuilding) = mine.rebuilding.take() else { return Ok(()) };
        rebuilding.cancelled.store(true, Ordering::Release);
        mine.abandoned.extend(rebuilding.pending.into_iter().map(|(_, result)| result));
        let files: Vec<String> = rebuilding.done.iter().map(|sealed| sealed.record.file.clone()).collect();
        files.iter().for_each(|file| self.remove_file(&segment_path(file)));
        Ok(())
    }
}
