//! Appending rows, and queueing what has left the window to be sealed.

use super::{Context, Pending, layer_of_mut};
use crate::error::Error;
use crate::metric::Metric;
use crate::options::Rebuild;
use crate::sealer::Sealing;
use crate::sealing::{SealJob, SealLadder, SealRows};
use crate::tensor::TensorView;
use longwave_index::ladder::MomentSource;
use longwave_storage::{Expected, Profile, RowForm, SegmentHeader};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Bulk segments of a layer that may wait to be sealed before an append waits for the oldest: their rows stay in
/// memory until then.
const BULK_PENDING_MAX: usize = 2;

impl Context {
    /// Appends keys `[n, kv_heads, key_dim]` (after RoPE) and values `[n, kv_heads, value_dim]` of one layer. Rows of
    /// the store's element type are taken as they are, f32 rows are rounded to it.
    ///
    /// Rows that have left the window are sealed in the background, in segments whose bounds depend on positions and
    /// on the mode of the append alone: appends of `bulk_append_rows` or more are bulk ingestion, others decoding.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Dtype`], [`Error::NotFinite`], [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn append(
        &mut self,
        layer: usize,
        keys: &TensorView<'_>,
        values: &TensorView<'_>,
    ) -> Result<(), Error> {
        let shape = self.model.shape();
        keys.check("keys", shape.kv_heads, shape.key_dim)?;
        values.check("values", shape.kv_heads, shape.value_dim)?;
        if keys.tokens() != values.tokens() {
            let expected = format!("{} tokens, as keys have", keys.tokens());
            return Err(Error::Shape {
                what: "values",
                expected,
                found: format!("{} tokens", values.tokens()),
            });
        }
        self.install_finished(layer)?;
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let pool = self.store.pool.as_deref();
        let blocks = mine.rows.tail.blocks_of(mine.rows.length(), (keys, values), pool)?;
        mine.mark();
        mine.rows.tail.push_blocks(blocks);
        let bulk = keys.tokens() >= self.options.bulk_append_rows as usize;
        // The rows are in: what keeps them from being sealed is told by the next commit or seal, and is tried again.
        if let Err(failure) = self.queue_ready(layer, bulk) {
            tracing::warn!(layer, error = %failure, "rows could not be queued for sealing; they stay in the tail");
            self.seal_failure = Some(failure);
        }
        Ok(())
    }

    /// Appends token ids. Optional; but once ids were given, a commit asks for one per row.
    ///
    /// # Errors
    /// None at present; the count is checked by [`Self::commit`].
    pub fn extend_tokens(&mut self, ids: &[u32]) -> Result<(), Error> {
        Arc::make_mut(&mut self.tokens).extend_from_slice(ids);
        Ok(())
    }

    /// Ends bulk ingestion: seals everything that has left the window, in segments of at most `bulk_segment_rows`,
    /// and waits until they are written.
    ///
    /// # Errors
    /// What the sealing met; the rows are then still in the tail, exact and readable.
    pub fn seal(&mut self) -> Result<(), Error> {
        let most = u64::from(self.options.bulk_segment_rows);
        for layer in self.present_layers() {
            let ready = self.ready(layer)?;
            for start in ready.clone().step_by(most as usize) {
                self.queue(layer, start..ready.end.min(start + most), true)?;
            }
        }
        for layer in self.present_layers() {
            self.install_all(layer, false)?;
        }
        self.seal_failure.take().map_or(Ok(()), Err)
    }

    pub(super) fn present_layers(&self) -> Vec<usize> {
        (0..self.layers.len()).filter(|&layer| self.layers[layer].is_some()).collect()
    }

    /// The rows that have left the window and are not queued.
    fn ready(&mut self, layer: usize) -> Result<Range<u64>, Error> {
        let window = u64::from(self.options.window);
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let end = mine.rows.length().saturating_sub(window);
        Ok(mine.queued_end..end.max(mine.queued_end))
    }

    fn queue_ready(&mut self, layer: usize, bulk: bool) -> Result<(), Error> {
        let most = u64::from(self.options.bulk_segment_rows);
        let step = if bulk { most } else { u64::from(self.options.decode_segment_rows) };
        let mut ready = self.ready(layer)?;
        while ready.end - ready.start >= step {
            let rows = ((ready.end - ready.start) / step * step).min(most / step * step);
            self.queue(layer, ready.start..ready.start + rows, bulk)?;
            ready.start += rows;
        }
        if bulk {
            self.install_oldest(layer, BULK_PENDING_MAX)?;
        }
        Ok(())
    }

    fn queue(&mut self, layer: usize, range: Range<u64>, bulk: bool) -> Result<(), Error> {
        let profile = self.profile_if_needed(layer)?;
        let ladder = self.ladder_for(layer, profile)?;
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let rows = SealRows::Tail(mine.rows.tail.share(range.clone()));
        let cancelled = Arc::new(AtomicBool::new(false));
        let number = self.next_number;
        // Bulk rows would have been sealed so whatever the number of rows that came with them.
        let sealed_at = if bulk { range.end + u64::from(self.options.window) } else { mine.rows.length() };
        let form = self.row_form(layer, bulk, ladder.as_ref())?;
        let result = self.start_sealing(layer, sealed_at, (ladder, rows, form), Arc::clone(&cancelled))?;
        let mine = layer_of_mut(&mut self.layers, layer)?;
        mine.queued_end = range.end;
        mine.pending.push_back(Pending { range, sealed_at, bulk, number, result, cancelled });
        Ok(())
    }

    /// What a segment's ladder is built with, in the bases of the layer; `None` where it has none.
    pub(super) fn ladder_for(
        &self,
        layer: usize,
        profile: Option<Arc<Profile>>,
    ) -> Result<Option<SealLadder>, Error> {
        let mine = self.layer(layer)?;
        if !mine.clustered || !self.options.ladder {
            return Ok(None);
        }
        let metric = Metric::new(layer, &self.model, &mine.sample, profile);
        Ok(Some(SealLadder { metric, bases: mine.known_bases()?, slope_rows: self.options.slope_rows() }))
    }

    /// The form in which a segment that is about to be built keeps its rows. Codes come last: rows that are to be built
    /// again, or merged with others, stay in full until then, so that none is coded from its code.
    pub(super) fn row_form(
        &self,
        layer: usize,
        bulk: bool,
        ladder: Option<&SealLadder>,
    ) -> Result<RowForm, Error> {
        let (asked, mine) = (self.options.rows_of(layer), self.layer(layer)?);
        if asked != RowForm::Codes {
            return Ok(asked);
        }
        let Some(ladder) = ladder else { return Ok(RowForm::Full) };
        let rebuilt = match self.options.rebuild {
            Rebuild::Never => false,
            Rebuild::WhenObserved { positions } => {
                !mine.metric_known
                    && ladder.metric.source() != MomentSource::Context
                    && positions <= self.options.sample_positions
            }
        };
        Ok(if bulk && !rebuilt { RowForm::Codes } else { RowForm::Full })
    }

    /// Queues a segment under the next free name.
    pub(super) fn start_sealing(
        &mut self,
        layer: usize,
        sealed_at: u64,
        (ladder, rows, form): (Option<SealLadder>, SealRows, RowForm),
        cancelled: Arc<AtomicBool>,
    ) -> Result<Sealing, Error> {
        let (first_position, offsets) = rows.place();
        let sequence = self.take_number();
        let identity = self.model.digest();
        let geometry = crate::record::geometry(&self.model);
        let mut id = self.id;
        id[8..].copy_from_slice(&sequence.to_le_bytes());
        let header = SegmentHeader {
            id,
            identity,
            layer: layer as u32,
            geometry,
            first_position,
            rows: rows.count() as u32,
            prefix_hash: [0; 32],
        };
        let mine = self.layer(layer)?;
        let job = SealJob {
            backend: Arc::clone(&self.store.backend),
            header,
            expected: Expected {
                layer: Some(layer as u32),
                geometry: Some(geometry),
                ..Expected::of_model(identity)
            },
            sequence,
            sealed_at,
            context_id: self.id,
            shape: mine.rows.shape,
            ladder,
            clusters: mine.clustered.then_some(self.options.clusters),
            rows,
            offsets,
            form,
            cancelled,
        };
        Ok(self.store.sealer.start(job))
    }
}
