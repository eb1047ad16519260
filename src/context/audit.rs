//! When calls are audited, and what becomes of the audits.

use super::{Context, Layer, layer_of_mut};
use crate::accuracy::{AuditJob, Band, CONFIDENCE, Calibration, Spending, audit, prepared};
use crate::error::Error;
use crate::layer::OwnedBatch;
use crate::snapshot::on_pool;
use crate::tensor::TensorView;
use longwave_query::{Answer, Budget};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// Sampled queries that are replayed when a context was opened, or a layer built again, that has queries but no
/// calibration.
const FIRST_AUDITS: usize = 32;
/// Audits that may wait; a call that would add one is not audited.
const PENDING_MAX: usize = 4;

/// The audits of a context under way.
#[derive(Debug, Default)]
pub(super) struct Audits {
    /// In the order in which they were asked for, which is the order in which they are installed.
    pending: VecDeque<(usize, Receiver<crate::accuracy::Audits>)>,
    /// Time that calls took, and that their audits took, since the context was opened.
    calls: Duration,
    audits: Duration,
    /// Layers whose first batch is still to come.
    first: Vec<bool>,
}

impl Audits {
    /// Audits of a context that was just opened, with a first batch for each layer.
    pub(super) fn opened(layers: usize) -> Self {
        Audits { first: vec![true; layers], ..Audits::default() }
    }

    /// Those of a fork: nothing is under way.
    pub(super) fn forked(&self) -> Self {
        Audits { first: self.first.clone(), ..Audits::default() }
    }

    /// Audits of a layer that are under way do not count: it has been cut since.
    pub(super) fn drop_pending(&mut self, layer: usize) {
        self.pending.retain(|(audited, _)| *audited != layer);
    }

    /// The layer's index was replaced: audits of the old one that are under way do not count, and a first batch comes
    /// again.
    pub(super) fn forget(&mut self, layer: usize, layers: usize) {
        self.pending.retain(|(audited, _)| *audited != layer);
        self.first.resize(layers, false);
        self.first[layer] = true;
    }
}

impl Context {
    /// What audits have shown of a layer so far.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn calibration(&self, layer: usize) -> Result<&Calibration, Error> {
        Ok(&self.layer(layer)?.rows.calibration)
    }

    /// What calls of `longwave` have spent on a layer so far, and how wrong they were.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn spending(&self, layer: usize) -> Result<&Spending, Error> {
        Ok(&self.layer(layer)?.rows.spending)
    }

    /// Audits queries `[n, query_heads, key_dim]`, each as one call at the layer's last position: it is answered
    /// exactly and with the tau of every [`Band`], and how the errors compare with their predictions is recorded.
    /// Takes as long as some dozen calls a query. Returns the audits recorded: queries times bands, 0 where nothing
    /// of the layer is sealed with a ladder.
    ///
    /// # Errors
    /// As [`Self::attend`]; nothing is then recorded.
    pub fn audit(&mut self, layer: usize, queries: &TensorView<'_>) -> Result<usize, Error> {
        self.install_finished(layer)?;
        self.install_audits();
        let rows = &self.layer(layer)?.rows;
        let batch = OwnedBatch::take(rows, rows.length().saturating_sub(1), queries)?;
        let row = batch.data.len() / batch.positions.max(1);
        let queries: Vec<Vec<f32>> = batch.data.chunks_exact(row.max(1)).map(<[f32]>::to_vec).collect();
        self.audit_now(layer, &queries)
    }

    /// Audits up to `queries_max` of the recorded queries of a layer, or of each, spread evenly over the sample, as calls
    /// at the end of the context. Returns the audits recorded.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`], [`Error::Storage`].
    pub fn calibrate(&mut self, layer: Option<usize>, queries_max: usize) -> Result<usize, Error> {
        let layers = layer.map_or_else(|| self.present_layers(), |layer| vec![layer]);
        let mut recorded = 0;
        for layer in layers {
            self.install_finished(layer)?;
            self.install_audits();
            if let Some(first) = self.audits.first.get_mut(layer) {
                *first = false;
            }
            let queries = self.layer(layer)?.replayed(queries_max);
            recorded += self.audit_now(layer, &queries)?;
        }
        Ok(recorded)
    }

    /// Waits for the audits that run in the background, and takes them in.
    pub fn finish_audits(&mut self) {
        while let Some((layer, result)) = self.audits.pending.pop_front() {
            if let Ok(audits) = result.recv() {
                self.install(layer, audits);
            }
        }
    }

    fn audit_now(&mut self, layer: usize, queries: &[Vec<f32>]) -> Result<usize, Error> {
        let rows = &self.layer(layer)?.rows;
        if !prepared(rows) {
            return Ok(0);
        }
        let bands: Vec<Band> = Band::all().collect();
        let found = on_pool(self.store.pool.as_deref(), || audit(rows, queries, &bands))?;
        let rows = &mut layer_of_mut(&mut self.layers, layer)?.rows;
        let calibration = Arc::make_mut(&mut rows.calibration);
        found.iter().for_each(|errors| calibration.record(errors));
        rows.steering.begin(&found);
        Ok(found.len())
    }

    /// Takes in what the audit thread has finished, without waiting.
    pub(super) fn install_audits(&mut self) {
        while let Some((layer, result)) = self.audits.pending.front() {
            let layer = *layer;
            match result.try_recv() {
                Ok(audits) => self.install(layer, audits),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {}
            }
            self.audits.pending.pop_front();
        }
    }

    fn install(&mut self, layer: usize, audits: crate::accuracy::Audits) {
        let crate::accuracy::Audits { found, of_call, spent } = audits;
        self.audits.audits += spent;
        match (found, layer_of_mut(&mut self.layers, layer)) {
            (Ok(found), Ok(layer)) => {
                let calibration = Arc::make_mut(&mut layer.rows.calibration);
                found.iter().for_each(|errors| calibration.record(errors));
                layer.rows.steering.begin(&found);
                Arc::make_mut(&mut layer.rows.spending).audited(&of_call);
            }
            (Err(error), _) => tracing::warn!(layer, %error, "an audit failed; nothing is recorded of it"),
            (Ok(_), Err(_)) => {}
        }
    }

    /// Learns from a call that was answered, and chooses whether to audit it.
    pub(super) fn learn(
        &mut self,
        layer: usize,
        (queries, budget): (&TensorView<'_>, &Budget),
        answer: &Answer,
        spent: Duration,
    ) -> Result<(), Error> {
        self.audits.calls += spent;
        let report = &answer.report;
        let mine = layer_of_mut(&mut self.layers, layer)?;
        Arc::make_mut(&mut mine.rows.spending).record(report);
        let approximated = report.taus.iter().any(|&tau| tau > 0.0);
        if let Budget::Bytes(share) = *budget
            && approximated
        {
            mine.rows.steering.learn(share, report.bytes_share());
        }
        let share = self.store.audits.share;
        let Some(position) = report.positions.last().map(|last| last.position) else { return Ok(()) };
        if report.taus.is_empty() || share <= 0.0 || !prepared(&mine.rows) {
            return Ok(());
        }
        let all = || Band::all().collect::<Vec<_>>();
        let first = self.audits.first.get_mut(layer).is_some_and(std::mem::take);
        if first && mine.rows.calibration.is_empty() {
            let queries = mine.replayed(FIRST_AUDITS);
            return self.queue_audit(layer, queries, (all(), Vec::new()));
        }
        let bands = match budget {
            Budget::Error { .. } => all(),
            _ => report.taus.first().and_then(|&tau| Band::of(f64::from(tau))).into_iter().collect(),
        };
        // An exact answer to an `Error` budget says that there are too few audits yet.
        let wanted = matches!(budget, Budget::Error { .. }) && !approximated
            || chosen(position, layer, self.options.clusters.seed, share);
        let within = self.store.audits.inline
            || self.audits.pending.len() < PENDING_MAX
                && self.audits.audits <= self.audits.calls.mul_f64(self.store.audits.time_share);
        if bands.is_empty() || !wanted || !within {
            return Ok(());
        }
        // The last position stands for the batch.
        let batch = OwnedBatch::take(&mine.rows, position, queries)?;
        let row = batch.data.len() / batch.positions;
        let query = batch.data[batch.data.len() - row..].to_vec();
        let asked = report.taus[report.taus.len() - mine.rows.shape.kv_heads..].to_vec();
        self.queue_audit(layer, vec![query], (bands, asked))
    }

    /// Queues an audit in some bands, of the call whose KV heads were answered with the taus `asked`, if of one.
    fn queue_audit(
        &mut self,
        layer: usize,
        queries: Vec<Vec<f32>>,
        (bands, asked): (Vec<Band>, Vec<f32>),
    ) -> Result<(), Error> {
        let rows = self.layer(layer)?.rows.clone();
        let job = AuditJob { rows, queries, bands, asked, cancelled: Arc::clone(&self.cancelled) };
        if self.store.audits.inline {
            let audits = on_pool(self.store.pool.as_deref(), || job.run());
            self.install(layer, audits);
        } else {
            self.audits.pending.push_back((layer, self.store.auditor.start(job)));
        }
        Ok(())
    }

    /// Confidence of the bounds of budgets that name none.
    pub const CONFIDENCE: f64 = CONFIDENCE;
}

impl Layer {
    /// At most `queries_max` of the sampled queries, spread evenly.
    fn replayed(&self, queries_max: usize) -> Vec<Vec<f32>> {
        let sample = self.sample.by_position();
        let count = sample.len().min(queries_max);
        let at = |i: usize| &sample[i * sample.len() / count];
        (0..count).map(|i| at(i).1.iter().map(|x| x.to_f32()).collect()).collect()
    }
}

/// Whether the call at `position` is audited: a share of them, the same whenever the same positions are asked.
fn chosen(position: u64, layer: usize, seed: u64, share: f64) -> bool {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&position.to_le_bytes());
    key[8..].copy_from_slice(&(layer as u64).to_le_bytes());
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&key, seed ^ 0x0a0d_1700);
    (hash >> 11) as f64 / (1u64 << 53) as f64 <= share
}
