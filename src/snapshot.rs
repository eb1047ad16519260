//! Immutable views of a context, and a handle that follows the newest one.

use crate::accuracy::{Calibration, Spending};
use crate::error::Error;
use crate::forgetting::Forgotten;
use crate::layer::LayerRows;
use crate::model::ModelSpec;
use crate::published::Published;
use crate::tensor::TensorView;
use half::f16;
use longwave_query::{Answer, Budget, LayerSegment, LayerView, Plan};
use std::sync::Arc;

/// The rows of a context at one moment. It never changes; it keeps what it reads alive. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) inner: Arc<SnapshotInner>,
}

#[derive(Debug)]
pub(crate) struct SnapshotInner {
    pub(crate) name: String,
    pub(crate) model: Arc<ModelSpec>,
    pub(crate) generation: u64,
    pub(crate) tokens: Arc<Vec<u32>>,
    /// `None` where the layer keeps no KV.
    pub(crate) layers: Vec<Option<LayerRows>>,
    /// Per layer: sampled positions with their queries `[query_heads, key_dim]`.
    pub(crate) samples: Vec<Vec<(u64, Vec<f16>)>>,
    pub(crate) pool: Option<Arc<rayon::ThreadPool>>,
}

impl Snapshot {
    /// The context's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The model that made the context.
    pub fn model(&self) -> &ModelSpec {
        &self.inner.model
    }

    /// The last commit that this snapshot holds; 0 when there was none.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// Token ids, if the engine gave them.
    pub fn tokens(&self) -> &[u32] {
        &self.inner.tokens
    }

    /// Rows of a layer; 0 for a layer without KV.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`].
    pub fn length(&self, layer: usize) -> Result<u64, Error> {
        let layers = self.inner.layers.len();
        let rows = self.inner.layers.get(layer).ok_or(Error::LayerOutOfRange { layer, layers })?;
        Ok(rows.as_ref().map_or(0, LayerRows::length))
    }

    /// The sealed segments of a layer, oldest first.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn segments(&self, layer: usize) -> Result<Vec<&LayerSegment>, Error> {
        Ok(self.layer(layer)?.segments.iter().map(|sealed| sealed.segment.as_ref()).collect())
    }

    /// The same, to be kept longer than the snapshot: by a cache that reads rows when it sees fit.
    ///
    /// # Errors
    /// As [`Self::segments`].
    pub fn shared_segments(&self, layer: usize) -> Result<Vec<Arc<LayerSegment>>, Error> {
        Ok(self.layer(layer)?.segments.iter().map(|sealed| sealed.segment.clone()).collect())
    }

    /// All rows of a layer, sealed and not, for callers that answer a part of a query elsewhere: on a device.
    ///
    /// # Errors
    /// As [`Self::segments`].
    pub fn view(&self, layer: usize) -> Result<LayerView<'_>, Error> {
        Ok(self.layer(layer)?.view())
    }

    /// The sampled queries of a layer in order of position: `(position, [query_heads, key_dim])`.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`].
    pub fn sampled_queries(&self, layer: usize) -> Result<&[(u64, Vec<f16>)], Error> {
        let layers = self.inner.layers.len();
        self.inner.samples.get(layer).map(Vec::as_slice).ok_or(Error::LayerOutOfRange { layer, layers })
    }

    /// What audits had shown of a layer when the snapshot was taken.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn calibration(&self, layer: usize) -> Result<&Calibration, Error> {
        Ok(&self.layer(layer)?.calibration)
    }

    /// What calls of the writer had spent on a layer when the snapshot was taken, and how wrong they were. Calls of
    /// snapshots are not counted.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`].
    pub fn spending(&self, layer: usize) -> Result<&Spending, Error> {
        Ok(&self.layer(layer)?.spending)
    }

    /// What the layer had forgotten when the snapshot was taken.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::LayerAbsent`]; [`Error::Storage`] when a segment cannot be read.
    pub fn forgotten(&self, layer: usize) -> Result<Forgotten, Error> {
        self.layer(layer)?.forgotten()
    }

    /// Attention of `[n, query_heads, key_dim]` queries, which stand at the last `n` positions of the layer, causal.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], [`Error::LayerOutOfRange`], [`Error::LayerAbsent`],
    /// [`Error::TooManyPositions`], [`Error::Invalid`] for a budget out of range, [`Error::Storage`].
    pub fn attend(&self, layer: usize, queries: &TensorView<'_>, budget: &Budget) -> Result<Answer, Error> {
        let rows = self.layer(layer)?;
        on_pool(self.inner.pool.as_deref(), || rows.attend(layer, queries, budget))
    }

    /// The plan of a call, without running it.
    ///
    /// # Errors
    /// As [`Self::attend`].
    pub fn explain(&self, layer: usize, queries: &TensorView<'_>, budget: &Budget) -> Result<Plan, Error> {
        let rows = self.layer(layer)?;
        on_pool(self.inner.pool.as_deref(), || rows.explain(layer, queries, budget))
    }

    fn layer(&self, layer: usize) -> Result<&LayerRows, Error> {
        layer_of(&self.inner.layers, layer, Option::as_ref)
    }
}

/// Finds a layer that keeps KV.
pub(crate) fn layer_of<'a, T, R>(
    layers: &'a [T],
    layer: usize,
    present: impl Fn(&'a T) -> Option<R>,
) -> Result<R, Error> {
    let slot = layers.get(layer).ok_or(Error::LayerOutOfRange { layer, layers: layers.len() })?;
    present(slot).ok_or(Error::LayerAbsent { layer })
}

/// Runs on the caller's pool, or on rayon's own.
pub(crate) fn on_pool<R: Send>(pool: Option<&rayon::ThreadPool>, run: impl FnOnce() -> R + Send) -> R {
    match pool {
        Some(pool) => pool.install(run),
        None => run(),
    }
}

/// Follows a context that another thread writes.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(crate) published: Arc<Published<Snapshot>>,
}

impl Reader {
    /// The newest snapshot that the writer has published. Never waits for the writer.
    pub fn latest(&self) -> Snapshot {
        self.published.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn numbered(generation: u64) -> Snapshot {
        let inner = SnapshotInner {
            name: format!("context {generation}"),
            model: Arc::new(crate::model::tests::model()),
            generation,
            tokens: Arc::new(vec![generation as u32; 3]),
            layers: Vec::new(),
            samples: Vec::new(),
            pool: None,
        };
        Snapshot { inner: Arc::new(inner) }
    }

    #[test]
    fn readers_see_whole_snapshots_in_order_while_a_writer_publishes() {
        let published = Published::new(numbered(0));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !done.load(Ordering::Acquire) {
                        let snapshot = published.load();
                        assert!(snapshot.generation() >= last, "{} after {last}", snapshot.generation());
                        last = snapshot.generation();
                        assert_eq!(snapshot.tokens(), [last as u32; 3]);
                        assert_eq!(snapshot.name(), format!("context {last}"));
                    }
                });
            }
            for generation in 1..=2000 {
                published.store(numbered(generation));
            }
            done.store(true, Ordering::Release);
        });
        assert_eq!(published.load().generation(), 2000);
    }

    #[test]
    fn a_snapshot_outlives_the_place_it_was_published_in() {
        let published = Published::new(numbered(0));
        published.store(numbered(1));
        let held = published.load();
        published.store(numbered(2));
        drop(published);
        assert_eq!(held.tokens(), [1, 1, 1]);
    }
}
