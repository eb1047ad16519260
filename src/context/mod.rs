//! A context under construction: its single writer.

mod adopt;
mod append;
mod audit;
mod commit;
mod compaction;
mod forget;
mod fork;
mod install;
mod logs;
mod marks;
mod open;
mod prefix;
mod profile;
mod rebuild;
mod truncate;

use crate::error::Error;
use crate::layer::{LayerRows, OwnedBatch};
use crate::model::ModelSpec;
use crate::options::ContextOptions;
use crate::published::Published;
use crate::sample::{LATEST, QuerySample};
use crate::sealer::Sealing;
use crate::sealing::{Sealed, bases_of};
use crate::snapshot::{Reader, Snapshot, SnapshotInner, layer_of, on_pool};
use crate::store::Shared;
use crate::tensor::TensorView;
pub(crate) use fork::ForkAt;
use half::f16;
use logs::Logs;
use longwave_index::ladder::Basis;
use longwave_query::{Answer, Budget, Plan, Shape};
use longwave_storage::{LockGuard, OriginRecord, Profile, StateRecord, segment_path};
pub(crate) use marks::MARKS_KIND;
use marks::Mark;
pub(crate) use open::lock_existing;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The writer of a context: appends rows, answers queries and commits. One exists at a time for each context; any
/// number of [`Snapshot`]s may read beside it.
#[derive(Debug)]
pub struct Context {
    store: Arc<Shared>,
    name: String,
    id: [u8; 16],
    model: Arc<ModelSpec>,
    options: ContextOptions,
    layers: Vec<Option<Layer>>,
    tokens: Arc<Vec<u32>>,
    /// The last commit that was acknowledged, and the last that was begun: its number may be on disk.
    generation: u64,
    attempted: u64,
    /// Whether a power loss leaves the last commit, or may bring back the one before.
    durable: bool,
    /// A sync that failed: what came before it may be lost whatever a later one says.
    poisoned: Option<String>,
    origin: Option<OriginRecord>,
    prefix: prefix::Prefix,
    /// When it was last written down that the context is used.
    used: Option<Instant>,
    next_number: u64,
    logs: Logs,
    /// Where sealing failed; told once, by the next call that waits for it.
    seal_failure: Option<Error>,
    published: Option<Arc<Published<Snapshot>>>,
    cancelled: Arc<AtomicBool>,
    audits: audit::Audits,
    /// The model's profile, once it was asked for; `None` where there is none that can be used.
    profile: OnceLock<Option<Arc<Profile>>>,
    /// Whether queries of this writer are in the profile.
    profile_updated: bool,
    /// Files that are no longer needed, and that the last durable commit may name.
    replaced: Vec<commit::Replaced>,
    /// Paths of what the manifests name that a power loss may bring back.
    durable_files: HashSet<String>,
    /// State in the manifest that this build does not know, carried along.
    other_state: Vec<StateRecord>,
    /// Held until the context is dropped.
    _lock: Box<dyn LockGuard>,
}

/// One layer as its writer sees it.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) rows: LayerRows,
    /// `None`: rows are sealed without an index.
    clustered: bool,
    pending: VecDeque<Pending>,
    /// Segments whose rows are rows of the tail again, each with the position up to which they count.
    pub(crate) cuts: Vec<(Arc<Sealed>, u64)>,
    /// What the layer had learnt when it was shorter, by rising length.
    pub(crate) marks: VecDeque<Mark>,
    /// Queued behind a sealing that failed: no longer wanted, but their files may still be written.
    abandoned: Vec<Sealing>,
    /// Rows before this position are sealed or being sealed (or are sinks).
    queued_end: u64,
    pub(crate) sample: QuerySample,
    /// The bases of the ladder: fixed by the layer's first segment, until it is built again.
    pub(crate) bases: Arc<OnceLock<Vec<Basis>>>,
    rebuilding: Option<rebuild::Rebuilding>,
    /// The step at which it was last looked for rows to drop.
    dropped_at: u64,
    /// Whether the segments were built with queries of the context, or have been queued to be: then they are not built
    /// again by themselves.
    metric_known: bool,
}

#[derive(Debug)]
struct Pending {
    range: Range<u64>,
    /// See [`Sealed::sealed_at`].
    sealed_at: u64,
    bulk: bool,
    /// Of its file.
    number: u64,
    result: Sealing,
    cancelled: Arc<AtomicBool>,
}

impl Context {
    /// The context's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model that the context is for.
    pub fn model(&self) -> &ModelSpec {
        &self.model
    }

    /// The options that it was created with.
    pub fn options(&self) -> &ContextOptions {
        &self.options
    }

    /// The last commit; 0 when there was none.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Token ids given so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Rows of a layer, committed or not.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn length(&self, layer: usize) -> Result<u64, Error> {
        Ok(self.layer(layer)?.rows.length())
    }

    /// Rows of a layer that are sealed into segments, sinks not counted.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn sealed_rows(&self, layer: usize) -> Result<u64, Error> {
        Ok(self.layer(layer)?.rows.segments.iter().map(|sealed| sealed.segment.rows() as u64).sum())
    }

    /// Attention of `[n, query_heads, key_dim]` queries, which stand at the last `n` positions of the layer, causal:
    /// a query sees its own row and those before it. The queries are observed as by [`Self::observe`]; of some calls
    /// the error is audited (see [`crate::AuditOptions`]; never of [`Budget::FromDisk`]), and [`Budget::Bytes`] steers tau by what this call read.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], [`Error::LayerOutOfRange`], [`Error::LayerAbsent`],
    /// [`Error::TooManyPositions`], [`Error::Invalid`] for a budget out of range, [`Error::Storage`].
    pub fn attend(
        &mut self,
        layer: usize,
        queries: &TensorView<'_>,
        budget: &Budget,
    ) -> Result<Answer, Error> {
        self.install_finished(layer)?;
        self.install_audits();
        let started = Instant::now();
        let rows = &self.layer(layer)?.rows;
        let watched = rows.forgets();
        let answer =
            on_pool(self.store.pool.as_deref(), || rows.attend_watched(layer, queries, budget, watched))?;
        let spent = started.elapsed();
        self.remember_important(layer, &answer)?;
        self.learn(layer, (queries, budget), &answer, spent)?;
        self.observe(layer, queries)?;
        Ok(answer)
    }

    /// The plan of a call, without running it.
    ///
    /// # Errors
    /// As [`Self::attend`].
    pub fn explain(&self, layer: usize, queries: &TensorView<'_>, budget: &Budget) -> Result<Plan, Error> {
        let rows = &self.layer(layer)?.rows;
        on_pool(self.store.pool.as_deref(), || rows.explain(layer, queries, budget))
    }

    /// Takes queries `[n, query_heads, key_dim]` of the last `n` positions into the layer's sample, where their
    /// positions belong to it. The sample is seeded: the same positions are kept whenever the same are seen.
    ///
    /// # Errors
    /// As [`Self::attend`].
    pub fn observe(&mut self, layer: usize, queries: &TensorView<'_>) -> Result<(), Error> {
        let rows = &self.layer(layer)?.rows;
        let Shape { query_heads, key_dim, .. } = rows.shape;
        queries.check("queries", query_heads, key_dim)?;
        let first = rows.first_of(layer, queries)?;
        self.observe_at(layer, first, queries)
    }

    /// As [`Self::observe`], for queries of positions from `first_position` on, wherever the layer's rows end: an
    /// engine that knows queries of a text before its rows (from an earlier run, say) gives the first segment a
    /// metric with it.
    ///
    /// # Errors
    /// As [`Self::attend`].
    pub fn observe_at(
        &mut self,
        layer: usize,
        first_position: u64,
        queries: &TensorView<'_>,
    ) -> Result<(), Error> {
        let mine = layer_of_mut(&mut self.layers, layer)?;
        let batch = OwnedBatch::take(&mine.rows, first_position, queries)?;
        let row = batch.data.len() / batch.positions;
        let stored = |queries: &[f32]| queries.iter().map(|&x| clamped_f16(x)).collect();
        let late = batch.positions.saturating_sub(LATEST);
        for (at, (queries, position)) in batch.data.chunks_exact(row).zip(batch.first_position..).enumerate()
        {
            if mine.sample.wants(position) {
                mine.sample.insert(position, stored(queries));
            }
            if at >= late && mine.sample.is_late(position) {
                mine.sample.remember(position, stored(queries));
            }
        }
        self.rebuild_if_due(layer);
        Ok(())
    }

    /// An immutable view of the context as it is now, committed or not.
    ///
    /// # Errors
    /// [`Error::Storage`] when a segment that is not committed cannot be mapped. A failed sealing is told by
    /// [`Self::commit`] and [`Self::seal`].
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        for layer in self.present_layers() {
            self.install_finished(layer)?;
        }
        self.install_audits();
        for sealed in self.layers.iter().flatten().flat_map(|layer| &layer.rows.segments) {
            // Its file goes when the writer ends without a commit; what is mapped stays readable.
            if !sealed.committed.load(Ordering::Acquire) {
                sealed.segment.segment().hold()?;
            }
        }
        let layers = self.layers.iter();
        let inner = SnapshotInner {
            name: self.name.clone(),
            model: Arc::clone(&self.model),
            generation: self.generation,
            tokens: Arc::clone(&self.tokens),
            samples: layers
                .clone()
                .map(|layer| layer.as_ref().map(Layer::sample_copy).unwrap_or_default())
                .collect(),
            layers: layers.map(|layer| layer.as_ref().map(|layer| layer.rows.clone())).collect(),
            pool: self.store.pool.clone(),
        };
        Ok(Snapshot { inner: Arc::new(inner) })
    }

    /// A handle for other threads that always gives the newest published snapshot. One is published here, by every
    /// commit, and by [`Self::publish`].
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub fn reader(&mut self) -> Result<Reader, Error> {
        if self.published.is_none() {
            let first = self.snapshot()?;
            self.published = Some(Arc::new(Published::new(first)));
        }
        self.publish()?;
        let published = self.published.as_ref().map(Arc::clone);
        published.map(|published| Reader { published }).ok_or_else(|| Error::Invalid {
            what: "reader",
            expected: "a published snapshot".into(),
            found: "none".into(),
        })
    }

    /// Lets the readers see the rows appended so far, committed or not.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub fn publish(&mut self) -> Result<(), Error> {
        if self.published.is_some() {
            let snapshot = self.snapshot()?;
            if let Some(published) = &self.published {
                published.store(snapshot);
            }
        }
        Ok(())
    }

    /// The number of the context's next file.
    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn layer(&self, layer: usize) -> Result<&Layer, Error> {
        layer_of(&self.layers, layer, Option::as_ref)
    }
}

impl Drop for Context {
    /// Waits for the segment that is being written, and cancels those behind it: once the lock is gone, the next
    /// writer gives out their file names again, and nothing may replace its files. What was written for nothing is
    /// removed.
    fn drop(&mut self) {
        self.note();
        self.cancelled.store(true, Ordering::Release);
        let mut unused = Vec::new();
        for layer in self.layers.iter_mut().flatten() {
            let rebuilding = layer.rebuilding.take();
            rebuilding.iter().for_each(|rebuilding| rebuilding.cancelled.store(true, Ordering::Release));
            layer.pending.iter().for_each(|pending| pending.cancelled.store(true, Ordering::Release));
            let mut results: Vec<Sealing> = layer.pending.drain(..).map(|pending| pending.result).collect();
            results.append(&mut layer.abandoned);
            if let Some(rebuilding) = rebuilding {
                unused.extend(rebuilding.done.iter().map(|sealed| sealed.record.file.clone()));
                results.extend(rebuilding.pending.into_iter().map(|(_, result)| result));
            }
            // An error says that the sealing was cancelled, or that its result was taken before.
            let written = results.into_iter().filter_map(|result| result.recv().ok()?.ok());
            unused.extend(written.map(|sealed| sealed.record.file.clone()));
        }
        for path in unused.iter().map(|file| segment_path(file)) {
            match self.store.backend.remove(&path) {
                // The sealing thread has seen that nobody wants it.
                Ok(()) | Err(longwave_storage::Error::Missing { .. }) => {}
                Err(error) => {
                    tracing::warn!(context = self.name, path, %error, "a file that nothing names stays");
                }
            }
        }
    }
}

impl Layer {
    /// The bases that the next segment's ladder is built with: those of the first segment, once there is one.
    fn known_bases(&self) -> Result<Arc<OnceLock<Vec<Basis>>>, Error> {
        if let Some(first) = self.rows.segments.first().filter(|_| self.bases.get().is_none())
            && let Some(bases) = bases_of(first.segment.segment())?
        {
            // Only this writer and its sealing thread set it, and to the same.
            let _ = self.bases.set(bases);
        }
        Ok(Arc::clone(&self.bases))
    }

    /// The sampled queries, in order of position.
    fn sample_copy(&self) -> Vec<(u64, Vec<f16>)> {
        let kept = self.sample.by_position().into_iter();
        kept.map(|(position, queries)| (position, queries.to_vec())).collect()
    }

    /// Where the log goes on after rows up to `loaded`: the sinks come first, then what is not sealed.
    pub(crate) fn next_unsealed(&self, loaded: u64) -> u64 {
        let unsealed = self.rows.sealed_end().max(self.cut_end());
        if loaded < self.rows.tail.sinks() { loaded } else { loaded.max(unsealed) }
    }

    /// The position up to which rows of the tail are in segments that were cut; 0 where none are.
    fn cut_end(&self) -> u64 {
        self.cuts.last().map_or(0, |(_, end)| *end)
    }
}

/// Fills an identifier. Identifiers tell files apart; nothing that is computed depends on them.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|error| {
        let (path, operation) = ("identifier".into(), "get random bytes for");
        longwave_storage::Error::Io { path, operation, source: std::io::Error::other(error.to_string()) }
            .into()
    })
}

fn layer_of_mut(layers: &mut [Option<Layer>], layer: usize) -> Result<&mut Layer, Error> {
    let count = layers.len();
    let slot = layers.get_mut(layer).ok_or(Error::LayerOutOfRange { layer, layers: count })?;
    slot.as_mut().ok_or(Error::LayerAbsent { layer })
}

/// A query of the sample is kept in 16 bits; what exceeds them is cut, not lost.
fn clamped_f16(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}
