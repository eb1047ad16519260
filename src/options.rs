//! How a store and its contexts behave.

use crate::error::Error;
use crate::forgetting::Forgetting;
use longwave_index::ClusterOptions;
use longwave_storage::RowForm;
use std::sync::Arc;

/// Options of an opened store. None of them is recorded.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The pool that attention runs on, and that copies the rows of long appends; `None` takes rayon's global pool.
    pub pool: Option<Arc<rayon::ThreadPool>>,
    /// Threads that cluster rows in the background; 0 takes as many as the machine has.
    pub sealing_threads: usize,
    /// Most files mapped at a time; 0 takes the default of the backend.
    pub mappings_max: usize,
    /// How many calls are audited by themselves.
    pub audits: AuditOptions,
    /// Whether reading and writing contexts leaves no trace of when they were used: for tools that look at a store. See
    /// [`crate::EvictionOrder::LeastRecentlyUsed`].
    pub ignore_uses: bool,
    /// Whether the small segments that decoding leaves are merged by themselves.
    pub compaction: Compaction,
    /// Whether each commit syncs directories for itself alone. Otherwise contexts of this store that are committed at the
    /// same time, by several threads, share the syncs of the directories that they share.
    pub separate_syncs: bool,
}

/// When small segments are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compaction {
    /// In the background, behind whatever is to be sealed, as soon as neighbouring ones fill a segment of bulk ingestion.
    #[default]
    WhenFull,
    /// Only when [`crate::Context::compact`] asks for it.
    Never,
}

/// How many of a writer's calls are audited, to calibrate the error bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AuditOptions {
    /// Share of the calls of [`crate::Context::attend`] that are also answered exactly; 0 audits none.
    pub share: f64,
    /// Most time that audits may take, as a share of the time that calls take.
    pub time_share: f64,
    /// Audits within the call, whatever time it takes, and not behind its back: what a call learns is then the same in
    /// every run.
    pub inline: bool,
}

impl Default for AuditOptions {
    fn default() -> Self {
        AuditOptions { share: 1.0 / 64.0, time_share: 0.1, inline: false }
    }
}

impl AuditOptions {
    /// Audits this share of the calls, inside them.
    pub fn inline(share: f64) -> Self {
        AuditOptions { share, inline: true, ..AuditOptions::default() }
    }

    /// Audits nothing by itself.
    pub fn none() -> Self {
        AuditOptions { share: 0.0, ..AuditOptions::default() }
    }
}

/// Options of a context, fixed when it is created and recorded with it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ContextOptions {
    /// First rows that are never clustered and always read exactly.
    pub sinks: u32,
    /// Latest rows that are never clustered and always read exactly.
    pub window: u32,
    /// Rows of a segment in bulk ingestion.
    pub bulk_segment_rows: u32,
    /// Rows of a segment while decoding.
    pub decode_segment_rows: u32,
    /// An append of at least this many rows is bulk ingestion, one of fewer is decoding.
    pub bulk_append_rows: u32,
    /// How rows are clustered. With a ladder, clusters grow with the position of their segment: [`ClusterOptions::at`].
    pub clusters: ClusterOptions,
    /// Whether segments hold the resolution ladder, which the method `longwave` reads; the other methods do without.
    pub ladder: bool,
    /// Query positions kept per layer as a sample; 0 keeps none.
    pub sample_positions: u32,
    /// When segments are built again by themselves.
    pub rebuild: Rebuild,
    /// The form in which sealed rows are kept: what is exact about a context is exact over these. Full by default.
    ///
    /// In 8 bits an element every sealed row takes half the bytes of f16. With codes alone there is nothing of a row
    /// beside the ladder's 4-bit codes: rows are coded once they are sealed in bulk, built again or merged, in the metric
    /// of the context's queries; until then (while a rebuild is to come, and in segments of decoding) they are kept in
    /// full. Rows that were coded and come back (a cut, a rebuild that is asked for, damage) are rounded to the model's
    /// type, and lose once more when they are coded again; rows in 8 bits do not. Layers that are not clustered have no
    /// codes: they stay in full.
    pub rows: RowForm,
    /// The same by layer, one a layer of the model; empty: as [`Self::rows`] says.
    pub layer_rows: Vec<RowForm>,
    /// What the KV depends on besides the model and the token ids, in bytes of the engine's own: an adapter, an image, a
    /// tenant. Contexts that differ in it share no prefix. At most 4096.
    pub extra: Vec<u8>,
    /// What becomes of rows that no query has found important for a while; [`crate::Context::set_forgetting`] changes it.
    pub forgetting: Forgetting,
}

/// When the segments of a layer that were built before any of the context's queries was known are built again, in the
/// metric of these queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rebuild {
    /// Only when [`crate::Context::rebuild`] asks for it.
    Never,
    /// In the background, behind whatever is to be sealed, once the layer's sample holds queries of so many positions.
    /// It happens once: a layer whose first segment knew queries of the context is left as it is. Never, where the
    /// sample keeps fewer positions.
    WhenObserved {
        /// Positions, at least 1.
        positions: u32,
    },
}

impl Rebuild {
    /// Once queries of 64 positions are known: from there on more of them hardly change the metric.
    pub const DEFAULT: Rebuild = Rebuild::WhenObserved { positions: 64 };
}

impl Default for ContextOptions {
    fn default() -> Self {
        ContextOptions {
            sinks: 4,
            window: 64,
            bulk_segment_rows: 8192,
            decode_segment_rows: 1024,
            bulk_append_rows: 32,
            clusters: ClusterOptions::ladder(),
            ladder: true,
            sample_positions: 128,
            rebuild: Rebuild::DEFAULT,
            rows: RowForm::Full,
            layer_rows: Vec::new(),
            extra: Vec::new(),
            forgetting: Forgetting::Never,
        }
    }
}

/// Most rows of one segment.
pub const SEGMENT_ROWS_MAX: u32 = 1 << 20;

impl ContextOptions {
    /// Sets how rows are clustered.
    pub fn with_clusters(mut self, clusters: ClusterOptions) -> Self {
        self.clusters = clusters;
        self
    }

    /// Sets whether segments hold the resolution ladder.
    pub fn with_ladder(mut self, ladder: bool) -> Self {
        self.ladder = ladder;
        self
    }

    /// Sets the rows that are always exact: the first `sinks` and the last `window`.
    pub fn with_exact_rows(mut self, sinks: u32, window: u32) -> Self {
        (self.sinks, self.window) = (sinks, window);
        self
    }

    /// Rows from which on a segment says by itself how its values follow its keys: half of one sealed in bulk. What shorter ones
    /// would say is less sure, and as many bytes.
    pub(crate) fn slope_rows(&self) -> u32 {
        self.bulk_segment_rows.div_ceil(2)
    }

    /// Sets the rows of a segment in bulk ingestion and while decoding.
    pub fn with_segment_rows(mut self, bulk: u32, decode: u32) -> Self {
        (self.bulk_segment_rows, self.decode_segment_rows) = (bulk, decode);
        self
    }

    /// Sets how many query positions are kept per layer.
    pub fn with_sample_positions(mut self, positions: u32) -> Self {
        self.sample_positions = positions;
        self
    }

    /// Sets when segments are built again by themselves.
    pub fn with_rebuild(mut self, rebuild: Rebuild) -> Self {
        self.rebuild = rebuild;
        self
    }

    /// Sets the form in which sealed rows of all layers are kept.
    pub fn with_rows(mut self, form: RowForm) -> Self {
        (self.rows, self.layer_rows) = (form, Vec::new());
        self
    }

    /// Sets the form in which sealed rows are kept layer by layer, one a layer of the model.
    pub fn with_layer_rows(mut self, forms: Vec<RowForm>) -> Self {
        self.layer_rows = forms;
        self
    }

    /// The form that is asked for in a layer.
    pub(crate) fn rows_of(&self, layer: usize) -> RowForm {
        self.layer_rows.get(layer).copied().unwrap_or(self.rows)
    }

    /// Sets what the KV depends on besides the model and the token ids.
    pub fn with_extra(mut self, extra: impl Into<Vec<u8>>) -> Self {
        self.extra = extra.into();
        self
    }

    /// Sets what becomes of rows that are not important.
    pub fn with_forgetting(mut self, forgetting: Forgetting) -> Self {
        self.forgetting = forgetting;
        self
    }

    /// Checks the options of a context of `layers` layers.
    pub(crate) fn check(&self, layers: usize) -> Result<(), Error> {
        self.forgetting.check()?;
        if self.forgetting != Forgetting::Never && !self.ladder {
            let (what, expected) = ("forgetting", "none without the ladder".to_string());
            return Err(Error::Invalid { what, expected, found: format!("{:?}", self.forgetting) });
        }
        if !self.layer_rows.is_empty() && self.layer_rows.len() != layers {
            let expected = format!("none, or one for each of {layers} layers");
            let found = self.layer_rows.len().to_string();
            return Err(Error::Invalid { what: "layer_rows", expected, found });
        }
        if !self.ladder && (0..layers).any(|layer| self.rows_of(layer) == RowForm::Codes) {
            let expected = "a ladder where codes alone are kept".to_string();
            return Err(Error::Invalid { what: "rows", expected, found: "codes alone and no ladder".into() });
        }
        if self.extra.len() > longwave_storage::EXTRA_MAX {
            let (what, found) = ("extra", format!("{} bytes", self.extra.len()));
            return Err(Error::Invalid {
                what,
                expected: format!("at most {}", longwave_storage::EXTRA_MAX),
                found,
            });
        }
        let rebuild = match self.rebuild {
            Rebuild::Never => 1,
            Rebuild::WhenObserved { positions } => positions,
        };
        let bounds = [
            ("rebuild", rebuild, 1, 1 << 16),
            ("sinks", self.sinks, 0, 1 << 16),
            ("window", self.window, 1, 1 << 20),
            ("bulk_segment_rows", self.bulk_segment_rows, 1, SEGMENT_ROWS_MAX),
            ("decode_segment_rows", self.decode_segment_rows, 1, self.bulk_segment_rows),
            ("bulk_append_rows", self.bulk_append_rows, 2, SEGMENT_ROWS_MAX),
            ("clusters.tokens_per_cluster", self.clusters.tokens_per_cluster, 1, SEGMENT_ROWS_MAX),
            ("clusters.iterations", self.clusters.iterations, 0, 1000),
            ("sample_positions", self.sample_positions, 0, 1 << 16),
        ];
        for (what, found, least, most) in bounds {
            if !(least..=most).contains(&found) {
                return Err(Error::Invalid {
                    what,
                    expected: format!("{least} to {most}"),
                    found: found.to_string(),
                });
            }
        }
        if let Some(factor) =
            self.clusters.split_factor.filter(|factor| !(factor.is_finite() && *factor >= 1.0))
        {
            let (what, expected) = ("clusters.split_factor", "1 or more".to_string());
            return Err(Error::Invalid { what, expected, found: factor.to_string() });
        }
        Ok(())
    }
}
