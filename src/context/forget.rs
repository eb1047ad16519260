//! What a context forgets: demoting as queries are asked, and dropping rows by writing segments again without them.

use super::rebuild::Rebuilding;
use super::{Context, Layer, layer_of_mut};
use crate::error::Error;
use crate::forgetting::{Forgetting, Forgotten, Memory};
use crate::layer::LayerRows;
use crate::sealer::Sealing;
use crate::sealing::{SealRows, Sealed};
use longwave_query::{Answer, LayerSegment};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

impl Context {
    /// Changes what becomes of rows that no query has found important for a while. Steps are counted from here on, if
    /// nothing was forgotten before; what was dropped stays so. A commit makes it durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0 steps, and for a context without the ladder.
    pub fn set_forgetting(&mut self, forgetting: Forgetting) -> Result<(), Error> {
        let options = self.options.clone().with_forgetting(forgetting);
        options.check(self.model.layers)?;
        for layer in self.present_layers() {
            self.abandon_rebuild(layer)?;
        }
        self.options = options;
        for layer in self.layers.iter_mut().flatten() {
            layer.set_forgetting(forgetting);
        }
        Ok(())
    }

    /// What a layer has forgotten so far.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`]; [`Error::Storage`] when a segment cannot be read.
    pub fn forgotten(&self, layer: usize) -> Result<Forgotten, Error> {
        self.layer(layer)?.rows.forgotten()
    }

    /// Drops the rows of a layer, or of all layers, that [`Forgetting::Drop`] lets go now: those that are demoted in every
    /// KV head. The segments that hold some are written again without them, and are waited for. By itself that happens in
    /// the background, where half of a segment is to go. Returns the rows dropped; none under another policy.
    ///
    /// A commit makes it durable, and frees the disk: snapshots go on as after [`Self::rebuild`], and a fork keeps what it
    /// shares. No cut brings dropped rows back.
    ///
    /// # Errors
    /// As [`Self::rebuild`].
    pub fn forget(&mut self, layer: Option<usize>) -> Result<u64, Error> {
        let layers = layer.map_or_else(|| self.present_layers(), |layer| vec![layer]);
        let mut dropped = 0;
        for layer in layers {
            self.install_all(layer, false)?;
            if let Some(failure) = self.seal_failure.take() {
                return Err(failure);
            }
            self.install_rebuilt(layer, true)?;
            let before = self.layer(layer)?.rows.memory.dropped.count();
            let mut number = 0;
            while number < self.layer(layer)?.rows.segments.len() {
                let segments = self.layer(layer)?.rows.segments.len();
                if self.queue_dropping(layer, number, 1)? {
                    self.install_rebuilt(layer, true)?;
                }
                // One that all rows have gone of is not there any more.
                number += usize::from(self.layer(layer)?.rows.segments.len() == segments);
            }
            dropped += self.layer(layer)?.rows.memory.dropped.count() - before;
        }
        Ok(dropped)
    }

    /// Learns from an answer which clusters were important.
    pub(super) fn remember_important(&mut self, layer: usize, answer: &Answer) -> Result<(), Error> {
        let Some(important) = &answer.important else { return Ok(()) };
        let queries = answer.report.positions.len() as u64;
        let LayerRows { memory, segments, .. } = &mut layer_of_mut(&mut self.layers, layer)?.rows;
        let segments: Vec<&LayerSegment> = segments.iter().map(|sealed| sealed.segment.as_ref()).collect();
        Arc::make_mut(memory).record(queries, important, &segments)
    }

    /// Queues the dropping of rows of a segment of which half is to go. Everything else goes first; and since it takes as
    /// many queries for a row to be demoted, it is looked for now and then only.
    pub(super) fn drop_if_due(&mut self, layer: usize) {
        let Ok(mine) = layer_of_mut(&mut self.layers, layer) else { return };
        let Forgetting::Drop { steps } = mine.rows.memory.policy else { return };
        let (clock, busy) = (mine.rows.memory.clock, mine.rebuilding.is_some() || !mine.pending.is_empty());
        if busy || clock < mine.dropped_at + u64::from(steps / 4).max(1) {
            return;
        }
        mine.dropped_at = clock;
        let segments = mine.rows.segments.len();
        for number in 0..segments {
            match self.queue_dropping(layer, number, 2) {
                Ok(false) => {}
                Ok(true) => return,
                Err(error) => tracing::warn!(layer, %error, "rows could not be dropped; they stay"),
            }
        }
    }

    /// Queues a segment to be written without the rows that are to go, if there are any, and at least one in `share`
    /// where that is above 1. Returns whether it was.
    fn queue_dropping(&mut self, layer: usize, number: usize, share: u64) -> Result<bool, Error> {
        let profile = self.profile_if_needed(layer)?;
        let rows = &self.layer(layer)?.rows;
        let (memory, sealed) = (&rows.memory, Arc::clone(&rows.segments[number]));
        let enough =
            |doomed: u64| doomed > 0 && (share == 1 || doomed * share >= sealed.segment.rows() as u64);
        if !matches!(memory.policy, Forgetting::Drop { .. })
            || !enough(memory.doomed_at_most(number, &sealed.segment)?)
        {
            return Ok(false);
        }
        let doomed = memory.doomed(number, &sealed.segment)?;
        if !enough(doomed.iter().filter(|doomed| **doomed).count() as u64) {
            return Ok(false);
        }
        let kept: Vec<u32> =
            (0..).zip(&doomed).filter_map(|(rank, doomed)| (!doomed).then_some(rank)).collect();
        let (file_number, cancelled) = (self.next_number, Arc::new(AtomicBool::new(false)));
        let range = sealed.segment.first_position()..sealed.segment.end();
        let mut pending = VecDeque::new();
        if !kept.is_empty() {
            let ladder = self.ladder_for(layer, profile)?;
            let form = sealed.segment.row_form();
            let rows = (ladder, SealRows::Kept(Arc::clone(&sealed), kept), form);
            pending.push_back((
                range,
                self.start_sealing(layer, sealed.sealed_at, rows, Arc::clone(&cancelled))?,
            ));
        }
        let (place, doomed) = (number..number + 1, Some(doomed));
        let done = Vec::new();
        let rebuilding =
            Rebuilding { pending, number: file_number, done, place, bases: None, doomed, cancelled };
        layer_of_mut(&mut self.layers, layer)?.rebuilding = Some(rebuilding);
        Ok(true)
    }

    /// Whether the rows that are about to be dropped are still to go.
    pub(super) fn still_doomed(&self, layer: usize) -> Result<bool, Error> {
        let mine = self.layer(layer)?;
        let Some(Rebuilding { doomed: Some(doomed), place, .. }) = &mine.rebuilding else { return Ok(true) };
        let now = mine.rows.memory.doomed(place.start, &mine.rows.segments[place.start].segment)?;
        Ok(doomed.iter().zip(now).all(|(&then, now)| !then || now))
    }

    /// A segment of a layer that is to be cut inside, behind or among dropped rows: they have no place in the tail, so
    /// that it is written again without the rows from position `length` on. `None` where it has none before.
    pub(super) fn shorten(
        &mut self,
        layer: usize,
        number: usize,
        length: u64,
    ) -> Result<Option<Sealed>, Error> {
        let profile = self.profile_if_needed(layer)?;
        let sealed = Arc::clone(&self.layer(layer)?.rows.segments[number]);
        let ranks = 0..sealed.segment.rows() as u32;
        let kept: Vec<u32> = ranks.filter(|&rank| sealed.segment.position(rank) < length).collect();
        let Some(&last) = kept.last() else { return Ok(None) };
        let end = sealed.segment.position(last) + 1;
        let form = sealed.segment.row_form();
        let rows = (self.ladder_for(layer, profile)?, SealRows::Kept(Arc::clone(&sealed), kept), form);
        let result: Sealing = self.start_sealing(layer, end, rows, Arc::default())?;
        let range = sealed.segment.first_position()..length;
        result.recv().unwrap_or_else(|_| Err(super::install::ended(layer, &range))).map(Some)
    }
}

impl Layer {
    fn set_forgetting(&mut self, forgetting: Forgetting) {
        let memory = &self.rows.memory;
        let known = memory.policy != Forgetting::Never;
        let dropped = memory.dropped.clone();
        let clock = memory.clock;
        let segments = if known { memory.segments.clone() } else { Vec::new() };
        let mut memory = Memory { policy: forgetting, clock, segments, dropped };
        match forgetting {
            Forgetting::Never => memory.segments.clear(),
            _ if !known => (0..self.rows.segments.len()).for_each(|_| memory.push()),
            _ => {}
        }
        self.rows.memory = Arc::new(memory);
    }

    /// Segments take the place of others, perhaps without the rows that `doomed` says.
    pub(super) fn remember(&mut self, place: &Range<usize>, new: &[Arc<Sealed>], doomed: Option<&[bool]>) {
        let old: Vec<&LayerSegment> =
            self.rows.segments[place.clone()].iter().map(|sealed| sealed.segment.as_ref()).collect();
        let new: Vec<&LayerSegment> = new.iter().map(|sealed| sealed.segment.as_ref()).collect();
        let memory = Arc::make_mut(&mut self.rows.memory);
        memory.replace(place.clone(), &old, &new);
        if let (Some(doomed), Some(segment)) = (doomed, old.first()) {
            let gone = (0..).zip(doomed).filter(|(_, doomed)| **doomed);
            memory.dropped.add(gone.map(|(rank, _)| segment.position(rank)));
        }
    }
}

impl LayerRows {
    pub(crate) fn forgotten(&self) -> Result<Forgotten, Error> {
        let segments: Vec<&LayerSegment> =
            self.segments.iter().map(|sealed| sealed.segment.as_ref()).collect();
        self.memory.forgotten(&segments)
    }
}
