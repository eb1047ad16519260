//! Cutting a context off at any length.
//!
//! Rows of the tail go from memory and stop counting in the logs, which are left as they are. Segments that
//! would not have been sealed at that length become rows of the tail again: in memory their rows are put back in order, on disk
//! the manifest names the segments and how many of their rows count. What the context had learnt is what it had learnt at that length.

use super::commit::Replaced;
use super::{Context, layer_of_mut};
use crate::error::Error;
use crate::replay::{Replay, cut_rows, push_cuts};
use crate::rows::Block;
use crate::sealing::Sealed;
use longwave_storage::segment_path;
use std::sync::Arc;

/// What becomes of one layer: how many segments stay whole, and the rows of those that do not.
struct LayerCut {
    layer: usize,
    segments: usize,
    /// What takes the place of the one behind them, where rows before it were dropped: see [`Context::shorten`].
    shortened: Option<Option<Sealed>>,
    rows: Vec<Block>,
}

impl Context {
    /// Cuts every layer and the token ids off at `length` rows, as if no more had ever been appended: rollback of a
    /// speculation, or of an answer. Layers may be of unequal length before, but none shorter than `length`.
    ///
    /// Segments that would not have been sealed at that length return to the tail and are sealed again when they leave the window, in segments of
    /// the same bounds. The sample of queries, calibration and steering are those of that length, as far as they are
    /// known: always after a short cut, otherwise from the nearest length before it. The model's profile keeps what it
    /// has learnt, and segments that were built again stay so. The last commit counts until the next one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a layer is shorter; [`Error::Storage`] when a segment that is cut, or a log, cannot be read.
    /// Nothing has changed then.
    pub fn truncate(&mut self, length: u64) -> Result<(), Error> {
        let layers = self.present_layers();
        for &layer in &layers {
            let found = self.layer(layer)?.rows.length();
            if found < length {
                let (what, expected) = ("length", format!("at most the {found} rows of layer {layer}"));
                return Err(Error::Invalid { what, expected, found: length.to_string() });
            }
        }
        let mut cuts = Vec::with_capacity(layers.len());
        for layer in layers {
            if self.layer(layer)?.rows.length() > length {
                self.install_finished(layer)?;
                match self.prepare_cut(layer, length) {
                    Ok(cut) => cuts.push(cut),
                    Err(failure) => return Err(self.give_cuts_up(cuts, failure)),
                }
            }
        }
        let samples = match self.cut_samples(length) {
            Ok(samples) => samples,
            Err(failure) => return Err(self.give_cuts_up(cuts, failure)),
        };
        // From here on nothing fails.
        for cut in cuts {
            self.cut_layer(cut, length)?;
        }
        for (layer, sample) in self.layers.iter_mut().zip(samples) {
            if let (Some(layer), Some(sample)) = (layer, sample) {
                layer.sample = sample;
            }
        }
        self.cut_logs(length);
        if self.tokens.len() as u64 > length {
            Arc::make_mut(&mut self.tokens).truncate(length as usize);
            self.prefix.truncate(length);
        }
        Ok(())
    }

    /// A segment stays as it is where a context that never went further would have it; and before rows that were dropped,
    /// since the tail has no gaps.
    fn prepare_cut(&mut self, layer: usize, length: u64) -> Result<LayerCut, Error> {
        let rows = &self.layer(layer)?.rows;
        let floor = rows.memory.dropped.end_below(length);
        let before = |sealed: &&Arc<Sealed>| sealed.segment.first_position() < floor;
        let whole = |sealed: &&Arc<Sealed>| before(sealed) && sealed.segment.end() <= length;
        let segments = rows.segments.iter().take_while(|sealed| sealed.sealed_at <= length).count();
        let segments = segments.max(rows.segments.iter().take_while(whole).count());
        let crossing = rows.segments.get(segments).is_some_and(|sealed| before(&sealed));
        let split = rows.segments[segments + usize::from(crossing)..].iter();
        let split = split.take_while(|segment| segment.segment.first_position() < length);
        let cut = split.map(|segment| cut_rows(segment, &rows.shape, segment.segment.end().min(length)));
        let rows = cut.collect::<Result<_, _>>()?;
        let shortened = if crossing { Some(self.shorten(layer, segments, length)?) } else { None };
        Ok(LayerCut { layer, segments, shortened, rows })
    }

    /// A cut came to nothing: what was written for it goes.
    fn give_cuts_up(&mut self, cuts: Vec<LayerCut>, failure: Error) -> Error {
        for sealed in cuts.into_iter().filter_map(|cut| cut.shortened.flatten()) {
            self.remove_file(&segment_path(&sealed.record.file));
        }
        failure
    }

    /// Puts a shortened segment behind those that stay whole.
    fn put_shortened(&mut self, layer: usize, number: usize, sealed: Option<Sealed>) -> Result<(), Error> {
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let new: Vec<Arc<Sealed>> = sealed.map(Arc::new).into_iter().collect();
        mine.remember(&(number..number + 1), &new, None);
        let old: Vec<_> = mine.rows.segments.splice(number..number + 1, new).collect();
        self.replaced.extend(old.into_iter().map(Replaced::segment));
        Ok(())
    }

    fn cut_layer(&mut self, cut: LayerCut, length: u64) -> Result<(), Error> {
        let LayerCut { layer, mut segments, shortened, mut rows } = cut;
        self.abandon_rebuild(layer)?;
        if let Some(sealed) = shortened {
            let stays = usize::from(sealed.is_some());
            self.put_shortened(layer, segments, sealed)?;
            segments += stays;
        }
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let kept = mine.pending.iter().take_while(|pending| pending.sealed_at <= length).count();
        let kept = if mine.rows.segments.len() == segments { kept } else { 0 };
        mine.abandon_pending(kept);
        let was_sealed = mine.rows.sealed_end();
        let unsealed = mine.rows.segments.split_off(segments);
        Arc::make_mut(&mut mine.rows.memory).cut(segments, length);
        let sealed_end = mine.rows.sealed_end();
        // What lies behind segments that are none any more comes back behind their rows.
        let behind =
            (!unsealed.is_empty() && was_sealed < length).then(|| mine.rows.tail.copy(was_sealed..length));
        mine.rows.tail.truncate(sealed_end, length);
        push_cuts(mine, &mut rows);
        if let Some(behind) = behind {
            mine.rows.tail.push(&behind);
        }
        let unsealed = unsealed.into_iter().map(|sealed| {
            let end = sealed.segment.end();
            (sealed, end)
        });
        let mut next = sealed_end;
        for (sealed, end) in unsealed.chain(std::mem::take(&mut mine.cuts)) {
            let first = next.max(sealed.segment.first_position());
            next = end.min(length);
            if first < next {
                mine.cuts.push((sealed, next));
            } else {
                self.replaced.push(Replaced::segment(sealed));
            }
        }
        mine.queued_end =
            mine.pending.back().map_or(sealed_end.max(mine.rows.tail.sinks()), |last| last.range.end);
        if mine.rows.segments.is_empty() && mine.pending.is_empty() {
            mine.bases = Arc::default();
            mine.metric_known = false;
        }
        mine.restore(length);
        self.audits.drop_pending(layer);
        Ok(())
    }

    /// The samples as they were at `length`. What they have forgotten is read from the logs again.
    fn cut_samples(&self, length: u64) -> Result<Vec<Option<crate::sample::QuerySample>>, Error> {
        let mut samples: Vec<_> =
            self.layers.iter().map(|layer| Some(layer.as_ref()?.sample.clone())).collect();
        let forgetful = samples.iter().flatten().any(crate::sample::QuerySample::is_forgetful);
        samples.iter_mut().flatten().for_each(|sample| sample.cut(length));
        if forgetful {
            let mut logs = self.logs.meta.records();
            logs.iter_mut().for_each(|log| log.end = log.end.min(length));
            let backend = self.store.backend.as_ref();
            Replay::of_logs(backend, &self.name, &self.model).queries(&logs, &mut samples)?;
        }
        Ok(samples)
    }

    /// What the logs hold from `length` on does not count. Logs that are to be written anew stay as they are.
    fn cut_logs(&mut self, length: u64) {
        if let Some(logged) = &mut self.logs.rows_logged
            && logged.iter().any(|logged| *logged > length)
        {
            logged.iter_mut().for_each(|logged| *logged = (*logged).min(length));
            self.logs.rows.cut(length);
        }
        if !self.logs.meta.records().is_empty() {
            // Queries of positions from there on may have been observed before their rows were appended.
            self.logs.meta.cut(length);
            self.logs.tokens_logged = self.logs.tokens_logged.min(length as usize);
        }
    }
}
