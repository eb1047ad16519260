//! Merging the small segments that decoding leaves into large ones.
//!
//! A decode step seals few rows at a time, so that none waits for a large clustering. Small segments cost: each has its own
//! clusters, of fewer rows to choose from, and its own file. Merging builds the index anew over all rows of the merged
//! segments, in the metric of the queries known by then, so that clusters that were cut apart by a segment's bounds, or that
//! the text has drifted away from, are found again; segments being immutable, this is where the splits and moves of
//! SPFresh's LIRE (Xu et al., SOSP 2023) have their place. A row is written twice: when it is sealed and when it is merged.

use super::rebuild::Rebuilding;
use super::{Context, layer_of_mut};
use crate::error::Error;
use crate::options::Compaction;
use crate::sealing::{SealRows, Sealed};
use longwave_storage::RowForm;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

impl Context {
    /// Merges neighbouring small segments of a layer, or of all layers, into segments of at most `bulk_segment_rows`
    /// rows, and waits until these are written and in use. A segment of half as many rows or more is left as it is, and so
    /// is one that keeps codes alone.
    /// Returns the segments that are gone. What audits had shown stays: rows and metric are the same.
    ///
    /// A commit makes it durable. Snapshots go on as after [`Self::rebuild`]. A later cut inside a merged segment makes
    /// tail of the rows of all of it.
    ///
    /// # Errors
    /// As [`Self::rebuild`].
    pub fn compact(&mut self, layer: Option<usize>) -> Result<usize, Error> {
        let layers = layer.map_or_else(|| self.present_layers(), |layer| vec![layer]);
        let mut gone = 0;
        for layer in layers {
            self.install_all(layer, false)?;
            if let Some(failure) = self.seal_failure.take() {
                return Err(failure);
            }
            // One under way in the background is as good, or of a rebuild that is wanted.
            self.install_rebuilt(layer, true)?;
            while let Some(group) = self.groups(layer)?.first().cloned() {
                gone += group.len() - 1;
                self.queue_compaction(layer, group)?;
                self.install_rebuilt(layer, true)?;
            }
        }
        Ok(gone)
    }

    /// Queues the merging of segments that fill a large one. Sealing goes first.
    pub(super) fn compact_if_due(&mut self, layer: usize) {
        let Ok(mine) = layer_of_mut(&mut self.layers, layer) else { return };
        let busy = mine.rebuilding.is_some() || !mine.pending.is_empty();
        if self.store.compaction == Compaction::Never || busy {
            return;
        }
        let (sizes, options) = (self.sizes(layer), &self.options);
        let (most, step) = (u64::from(options.bulk_segment_rows), u64::from(options.decode_segment_rows));
        let full = |group: &Range<usize>| sizes[group.clone()].iter().sum::<u64>() + step > most;
        let Some(group) = groups(&sizes, most).into_iter().find(full) else { return };
        let queued = self.queue_compaction(layer, group);
        if let Err(error) = queued {
            tracing::warn!(layer, %error, "segments could not be merged; they stay as they are");
        }
    }

    fn sizes(&self, layer: usize) -> Vec<u64> {
        let segments = self.layers.get(layer).and_then(Option::as_ref).map(|layer| &layer.rows.segments);
        let size = |sealed: &Arc<Sealed>| match sealed.segment.row_form() {
            // Its rows would be coded from their codes.
            RowForm::Codes => u64::MAX / 2,
            RowForm::Full | RowForm::EightBits => sealed.segment.rows() as u64,
        };
        segments.into_iter().flatten().map(size).collect()
    }

    fn groups(&self, layer: usize) -> Result<Vec<Range<usize>>, Error> {
        self.layer(layer)?;
        Ok(groups(&self.sizes(layer), u64::from(self.options.bulk_segment_rows)))
    }

    fn queue_compaction(&mut self, layer: usize, place: Range<usize>) -> Result<(), Error> {
        let profile = self.profile_if_needed(layer)?;
        let ladder = self.ladder_for(layer, profile)?;
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let sources = mine.rows.segments[place.clone()].to_vec();
        let (Some(first), Some(last)) = (sources.first(), sources.last()) else { return Ok(()) };
        let range = first.segment.first_position()..last.segment.end();
        let sealed_at = sources.iter().map(|sealed| sealed.sealed_at).max().unwrap_or(range.end);
        let (number, cancelled) = (self.next_number, Arc::new(AtomicBool::new(false)));
        let rows = SealRows::Segments(sources);
        let form = self.row_form(layer, true, ladder.as_ref())?;
        let result = self.start_sealing(layer, sealed_at, (ladder, rows, form), Arc::clone(&cancelled))?;
        let pending = VecDeque::from([(range, result)]);
        let rebuilding =
            Rebuilding { pending, number, done: Vec::new(), place, bases: None, doomed: None, cancelled };
        layer_of_mut(&mut self.layers, layer)?.rebuilding = Some(rebuilding);
        Ok(())
    }
}

/// Runs of neighbouring small segments that make one of at most `most` rows, from the first on, as many rows each as can
/// be. Small is what has less than half of `most`: then every merge halves the number of segments at least, and no large
/// one is written again for a small one's sake.
fn groups(sizes: &[u64], most: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (at, &size) in sizes.iter().enumerate() {
        let small = size < most.div_ceil(2);
        if !small || rows + size > most {
            groups.push(start..at);
            (start, rows) = (if small { at } else { at + 1 }, 0);
        }
        rows += if small { size } else { 0 };
    }
    groups.push(start..sizes.len());
    groups.retain(|group| group.len() > 1);
    groups
}

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn neighbours_are_merged_as_far_as_they_fit() {
        let found = |sizes: &[u64]| -> Vec<(usize, usize)> {
            groups(sizes, 8).into_iter().map(|group| (group.start, group.end)).collect()
        };
        assert_eq!([found(&[]), found(&[3])], [vec![], vec![]]);
        assert_eq!(found(&[8, 1, 1, 8, 2]), [(1, 3)]);
        assert_eq!(found(&[1; 9]), [(0, 8)]);
        assert_eq!(found(&[3, 3, 3, 1, 1]), [(0, 2), (2, 5)]);
        // Half of what a large one has is large enough.
        assert_eq!(found(&[4, 4, 3, 3]), [(2, 4)]);
        assert_eq!(found(&[1, 5, 1, 1, 1]), [(2, 5)]);
    }
}
