//! What a store holds, as `inspect --json` prints it. Keys are a contract: see docs/cli.md.

use super::calibration::{self, HeadCalibration};
use super::ladder::Ladder;
use super::spending::{self, Spending};
use anyhow::{Context as _, Result};
use longwave::index::statistics;
use longwave::storage::{ElementKind, Manifest, SegmentRecord, check::store_bytes};
use longwave::storage::{MANIFEST_FILE, STORE_FILE, context_file};
use longwave::{Forgetting, LayerKind, LayerSegment, Snapshot, Store};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Document {
    pub(super) store: String,
    /// Bytes of all files; a segment that several contexts share counts once.
    pub(super) bytes: u64,
    pub(super) contexts: Vec<Context>,
}

#[derive(Serialize)]
pub(super) struct Context {
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) tokens: u64,
    pub(super) token_ids: usize,
    pub(super) identity: String,
    pub(super) model: Model,
    pub(super) settings: Settings,
    pub(super) bytes: Bytes,
    pub(super) layers: Vec<Layer>,
}

#[derive(Serialize)]
pub(super) struct Model {
    pub(super) layers: u32,
    pub(super) query_heads: u32,
    pub(super) kv_heads: u32,
    pub(super) key_dim: u32,
    pub(super) value_dim: u32,
    pub(super) dtype: String,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) rope: String,
    weights: String,
    tokenizer: String,
}

#[derive(Serialize)]
pub(super) struct Settings {
    pub(super) sinks: u32,
    pub(super) window: u32,
    pub(super) bulk_segment_rows: u32,
    pub(super) decode_segment_rows: u32,
    bulk_append_rows: u32,
    pub(super) sample_positions: u32,
    pub(super) tokens_per_cluster: u32,
    pub(super) iterations: u32,
    pub(super) split_factor: Option<f32>,
    pub(super) seed: u64,
    pub(super) ladder: bool,
    pub(super) rebuild_positions: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct Bytes {
    pub(super) total: u64,
    pub(super) segments: u64,
    pub(super) row_log: u64,
    pub(super) meta_log: u64,
    pub(super) manifest: u64,
}

#[derive(Serialize)]
pub(super) struct Layer {
    pub(super) layer: usize,
    pub(super) kind: &'static str,
    pub(super) sliding_window: Option<u64>,
    pub(super) rows: u64,
    pub(super) sealed_rows: u64,
    pub(super) tail_rows: u64,
    pub(super) sampled_positions: Vec<u64>,
    /// One entry a query head; `None` where nothing was audited.
    pub(super) calibration: Option<Vec<HeadCalibration>>,
    /// `None` where no call was made.
    pub(super) spending: Option<Spending>,
    /// `None` where nothing is forgotten.
    pub(super) forgotten: Option<Forgotten>,
    pub(super) segments: Vec<Segment>,
}

#[derive(Serialize)]
pub(super) struct Forgotten {
    pub(super) policy: &'static str,
    pub(super) after_steps: Option<u32>,
    pub(super) steps: u64,
    pub(super) clusters: u64,
    pub(super) clusters_demoted: u64,
    pub(super) rows_dropped: u64,
}

impl Forgotten {
    fn gather(snapshot: &Snapshot, layer: usize) -> Result<Option<Forgotten>> {
        let found = snapshot.forgotten(layer)?;
        if found.policy == Forgetting::Never && found.rows_dropped == 0 {
            return Ok(None);
        }
        Ok(Some(Forgotten {
            policy: match found.policy {
                Forgetting::Never => "never",
                Forgetting::Demote { .. } => "demote",
                Forgetting::Drop { .. } => "drop",
                _ => "unknown",
            },
            after_steps: found.policy.steps(),
            steps: found.steps,
            clusters: found.clusters,
            clusters_demoted: found.clusters_demoted,
            rows_dropped: found.rows_dropped,
        }))
    }
}

#[derive(Serialize)]
pub(super) struct Segment {
    pub(super) file: String,
    pub(super) first_position: u64,
    pub(super) rows: u32,
    pub(super) file_bytes: u64,
    /// How rows are kept: `full`, `8bit` or `codes`.
    pub(super) row_form: String,
    pub(super) columns: Vec<Column>,
    /// One entry a KV head; `None` where the rows are stored without an index.
    pub(super) clusters: Option<Vec<Clusters>>,
    /// `None` where the segment has no resolution ladder.
    pub(super) ladder: Option<Ladder>,
}

#[derive(Serialize)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) element_size: u32,
    pub(super) blocks: u64,
}

#[derive(Serialize)]
pub(super) struct Clusters {
    pub(super) kv_head: usize,
    pub(super) clusters: usize,
    pub(super) size_mean: f64,
    pub(super) size_p50: u32,
    pub(super) size_p95: u32,
    pub(super) size_max: u32,
    pub(super) key_spread_mean: f64,
    pub(super) value_spread_mean: f64,
}

impl Document {
    /// Looks at the contexts `names`, and at one layer of each if `layer` says so.
    pub(super) fn gather(
        path: String,
        store: &Store,
        names: &[String],
        layer: Option<usize>,
    ) -> Result<Document> {
        let backend = store.backend();
        let bytes = store_bytes(backend.as_ref())? + backend.open_read(STORE_FILE)?.len()?;
        let contexts = names.iter().map(|name| {
            Context::gather(store, name, layer)
                .with_context(|| format!("context {name} (`longwave fsck` says more)"))
        });
        Ok(Document { store: path, bytes, contexts: contexts.collect::<Result<_>>()? })
    }
}

impl Context {
    fn gather(store: &Store, name: &str, layer: Option<usize>) -> Result<Context> {
        let snapshot = store.snapshot(name)?;
        let manifest = store.manifest(name)?;
        let layers = 0..snapshot.model().layers;
        let tokens = layers.clone().map(|layer| snapshot.length(layer)).collect::<Result<Vec<_>, _>>()?;
        let wanted = layers.filter(|number| layer.is_none_or(|layer| layer == *number));
        Ok(Context {
            name: name.into(),
            generation: snapshot.generation(),
            tokens: tokens.into_iter().max().unwrap_or_default(),
            token_ids: snapshot.tokens().len(),
            identity: hex(&manifest.model.identity.0),
            model: Model::of(&manifest),
            settings: Settings::of(&manifest),
            bytes: Bytes::of(store, &manifest)?,
            layers: wanted.map(|number| Layer::gather(&snapshot, number)).collect::<Result<_>>()?,
        })
    }
}

impl Model {
    fn of(manifest: &Manifest) -> Model {
        let model = &manifest.model;
        Model {
            layers: model.layers,
            query_heads: model.query_heads,
            kv_heads: model.kv_heads,
            key_dim: model.key_dim,
            value_dim: model.value_dim,
            dtype: ElementKind::to_string(&model.element),
            scale: model.scale,
            softcap: model.softcap,
            rope: model.rope.clone(),
            weights: hex(&model.weights),
            tokenizer: hex(&model.tokenizer),
        }
    }
}

impl Settings {
    fn of(manifest: &Manifest) -> Settings {
        let settings = &manifest.settings;
        Settings {
            sinks: settings.sinks,
            window: settings.window,
            bulk_segment_rows: settings.bulk_segment_rows,
            decode_segment_rows: settings.decode_segment_rows,
            bulk_append_rows: settings.bulk_append_rows,
            sample_positions: settings.sample_positions,
            tokens_per_cluster: settings.tokens_per_cluster,
            iterations: settings.iterations,
            split_factor: settings.split_factor,
            seed: settings.seed,
            ladder: settings.ladder,
            rebuild_positions: settings.rebuild_positions,
        }
    }
}

impl Bytes {
    fn of(store: &Store, manifest: &Manifest) -> Result<Bytes> {
        let segments: Vec<&SegmentRecord> =
            manifest.layers.iter().flat_map(|layer| &layer.segments).collect();
        let segments = segments.iter().map(|segment| segment.file_len).sum();
        let log = |logs: &[longwave::storage::LogRecord]| logs.iter().map(|log| log.len).sum();
        let (row_log, meta_log): (u64, u64) = (log(&manifest.row_logs), log(&manifest.meta_logs));
        let manifest = store.backend().open_read(&context_file(&manifest.name, MANIFEST_FILE))?.len()?;
        Ok(Bytes { total: segments + row_log + meta_log + manifest, segments, row_log, meta_log, manifest })
    }
}

impl Layer {
    fn gather(snapshot: &Snapshot, number: usize) -> Result<Layer> {
        let kind = snapshot.model().layer_kind(number);
        let segments = if kind == LayerKind::Absent { Vec::new() } else { snapshot.segments(number)? };
        let rows = snapshot.length(number)?;
        let sealed_rows: u64 = segments.iter().map(|segment| segment.rows() as u64).sum();
        let forgotten = if kind == LayerKind::Absent { None } else { Forgotten::gather(snapshot, number)? };
        let dropped = forgotten.as_ref().map_or(0, |forgotten| forgotten.rows_dropped);
        Ok(Layer {
            layer: number,
            kind: match kind {
                LayerKind::Clustered => "clustered",
                LayerKind::ExactOnly => "exact",
                LayerKind::SlidingWindow(_) => "sliding",
                LayerKind::Absent => "absent",
                _ => "unknown",
            },
            sliding_window: match kind {
                LayerKind::SlidingWindow(window) => Some(window),
                _ => None,
            },
            rows,
            sealed_rows,
            tail_rows: rows.saturating_sub(sealed_rows + dropped),
            sampled_positions: snapshot
                .sampled_queries(number)?
                .iter()
                .map(|(position, _)| *position)
                .collect(),
            calibration: calibration::gather(snapshot, number)?,
            spending: spending::gather(snapshot, number)?,
            forgotten,
            segments: segments.into_iter().map(Segment::gather).collect::<Result<_>>()?,
        })
    }
}

impl Segment {
    fn gather(segment: &LayerSegment) -> Result<Segment> {
        let stored = segment.segment();
        let columns = stored.columns().map(|column| Column {
            name: column.name.clone(),
            offset: column.offset,
            bytes: column.len,
            element_size: column.element_size,
            blocks: column.blocks,
        });
        let index = segment.index()?;
        let clusters =
            index.map(|index| statistics(&index).into_iter().enumerate().map(Clusters::of).collect());
        Ok(Segment {
            file: stored.path().into(),
            first_position: segment.first_position(),
            rows: stored.header().rows,
            file_bytes: stored.file_len(),
            row_form: segment.row_form().to_string(),
            columns: columns.collect(),
            clusters,
            ladder: Ladder::gather(segment)?,
        })
    }
}

impl Clusters {
    fn of((kv_head, statistics): (usize, longwave::index::ClusterStatistics)) -> Clusters {
        Clusters {
            kv_head,
            clusters: statistics.clusters,
            size_mean: statistics.size_mean,
            size_p50: statistics.size_p50,
            size_p95: statistics.size_p95,
            size_max: statistics.size_max,
            key_spread_mean: statistics.key_spread_mean,
            value_spread_mean: statistics.value_spread_mean,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
