//! When calls are audited, and what becomes of the audits.

use super::{Context, Layer, layer_of_mut};
use crate::accuracy::{Audit, AuditJob, BANDS, Band, CONFIDENCE, Calibration, Spending, audit, prepared};
use crate::error::Error;
use crate::layer::OwnedBatch;
use crate::snapshot::on_pool;
use crate::tensor::TensorView;
use longwave_query::{Answer, Budget};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// Queries that are replayed in a band which a call was answered in and no audit has seen: the latest ones, since they
/// see the same rows as the next ones will.
const FIRST_AUDITS: usize = 48;
/// As long as calls gave a band fewer audits than this, they are audited this many times as often, and may take that much
/// more time.
const EARLY_AUDITS: usize = 16;
const EARLY_SHARE: f64 = 8.0;
const EARLY_TIME: f64 = 4.0;
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
    /// Per layer, the bands whose first batch was made, as bits; none is made of a layer that is not in it.
    first: Vec<u32>,
}

const _: () = assert!(BANDS <= 32);

impl Audits {
    /// Audits of a context that was just opened, with first batches for each layer.
    pub(super) fn opened(layers: usize) -> Self {
        Audits { first: vec![0; layers], ..Audits::default() }
    }

    /// Those of a fork: nothing is under way.
    pub(super) fn forked(&self) -> Self {
        Audits { first: self.first.clone(), ..Audits::default() }
    }

    /// Audits of a layer that are under way do not count: it has been cut since.
    pub(super) fn drop_pending(&mut self, layer: usize) {
        self.pending.retain(|(audited, _)| *audited != layer);
    }

    /// The layer's index was replaced: audits of the old one that are under way do not count, and first batches come
    /// again.
    pub(super) fn forget(&mut self, layer: usize, layers: usize) {
        self.pending.retain(|(audited, _)| *audited != layer);
        self.first.resize(layers, u32::MAX);
        self.first[layer] = 0;
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
        self.audit_now(layer, &queries, Audit::Asked)
    }

    /// Audits up to `queries_max` of the queries of a layer, or of each, that were observed: the latest that are known, as
    /// calls at the end of the context. Returns the audits recorded.
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
                *first = u32::MAX;
            }
            let queries = self.layer(layer)?.replayed(queries_max);
            recorded += self.audit_now(layer, &queries, Audit::Replayed)?;
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

    fn audit_now(&mut self, layer: usize, queries: &[Vec<f32>], kind: Audit) -> Result<usize, Error> {
        let rows = &self.layer(layer)?.rows;
        if !prepared(rows) {
            return Ok(0);
        }
        let bands: Vec<Band> = Band::all().collect();
        let found = on_pool(self.store.pool.as_deref(), || audit(rows, queries, &bands))?;
        let rows = &mut layer_of_mut(&mut self.layers, layer)?.rows;
        let calibration = Arc::make_mut(&mut rows.calibration);
        found.iter().for_each(|errors| calibration.record(errors, kind));
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
        let crate::accuracy::Audits { found, of_call, kind, spent } = audits;
        // The first batches are few and come once; they must not keep calls from being audited.
        if kind == Audit::Asked {
            self.audits.audits += spent;
        }
        match (found, layer_of_mut(&mut self.layers, layer)) {
            (Ok(found), Ok(layer)) => {
                let calibration = Arc::make_mut(&mut layer.rows.calibration);
                if kind == Audit::Asked {
                    of_call.iter().for_each(|errors| calibration.follow(errors));
                }
                found.iter().for_each(|errors| calibration.record(errors, kind));
                layer.rows.steering.begin(&found);
                let errors = of_call.iter().flat_map(|errors| &errors.heads);
                let errors: Vec<_> = errors.map(|&(head, _, error)| (head, error)).collect();
                Arc::make_mut(&mut layer.rows.spending).audited(&errors);
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
            mine.rows.steering.learn(share, report);
        }
        let share = self.store.audits.share;
        let Some(position) = report.positions.last().map(|last| last.position) else { return Ok(()) };
        // An audit reads every row: who caps what comes from disk has not asked for that.
        let spared = matches!(budget, Budget::FromDisk { .. });
        if report.taus.is_empty() || share <= 0.0 || spared || !prepared(&mine.rows) {
            return Ok(());
        }
        let bands = bands_of(budget, &report.taus);
        let exact_yet = matches!(budget, Budget::Error { .. }) && !approximated;
        let new = self.audits.first.get_mut(layer).map_or(Vec::new(), |first| {
            let is_new = |band: &&Band| {
                let bit = 1 << band.index();
                let new = *first & bit == 0 && mine.rows.calibration.is_empty_in(**band);
                *first |= bit;
                new
            };
            bands.iter().filter(is_new).copied().collect()
        });
        let rows = &mine.rows;
        let called = |band: &Band| rows.calibration.audits_of_calls(*band);
        let is_early = bands.iter().map(called).min().is_some_and(|least| least < EARLY_AUDITS);
        let (often, longer) = if is_early { (EARLY_SHARE, EARLY_TIME) } else { (1.0, 1.0) };
        // An exact answer to an `Error` budget says that there are too few audits yet.
        let wanted = exact_yet || chosen(position, layer, self.options.clusters.seed, share * often);
        let time_max = self.audits.calls.mul_f64(self.store.audits.time_share * longer);
        let within = self.store.audits.inline
            || self.audits.pending.len() < PENDING_MAX && self.audits.audits <= time_max;
        // The last position stands for the batch.
        let mut call = Vec::new();
        if !bands.is_empty() && wanted && within {
            let batch = OwnedBatch::take(rows, position, queries)?;
            let row = batch.data.len() / batch.positions;
            call.push(batch.data[batch.data.len() - row..].to_vec());
        }
        if !new.is_empty() {
            let latest = mine.replayed(FIRST_AUDITS);
            self.queue_audit(layer, latest, (new, Vec::new()))?;
        }
        if call.is_empty() {
            return Ok(());
        }
        let asked = report.taus[report.taus.len() - self.layer(layer)?.rows.shape.kv_heads..].to_vec();
        self.queue_audit(layer, call, (bands, asked))
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
    /// At most `queries_max` of the queries that were observed, the latest ones.
    fn replayed(&self, queries_max: usize) -> Vec<Vec<f32>> {
        let latest = self.sample.latest(queries_max).into_iter();
        latest.map(|(_, queries)| queries.iter().map(|x| x.to_f32()).collect()).collect()
    }
}

/// The bands that a call is audited in: those that it was answered in. An `Error` budget needs to know the neighbouring
/// ones as well, and all of them as long as it reads everything.
fn bands_of(budget: &Budget, taus: &[f32]) -> Vec<Band> {
    let answered: Vec<Band> = taus.iter().filter_map(|&tau| Band::of(f64::from(tau))).collect();
    let near = |band: &Band| match budget {
        Budget::Error { .. } if answered.is_empty() => true,
        Budget::Error { .. } => answered.iter().any(|other| other.index().abs_diff(band.index()) <= NEAR),
        _ => answered.contains(band),
    };
    Band::all().filter(near).collect()
}

/// Bands around that of an answer which `Error` budgets may try next.
const NEAR: usize = 4;

/// Whether the call at `position` is audited: a share of them, the same whenever the same positions are asked.
fn chosen(position: u64, layer: usize, seed: u64, share: f64) -> bool {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&position.to_le_bytes());
    key[8..].copy_from_slice(&(layer as u64).to_le_bytes());
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&key, seed ^ 0x0a0d_1700);
    (hash >> 11) as f64 / (1u64 << 53) as f64 <= share
}
