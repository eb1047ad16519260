//! Between the public types and the records of the manifest.

use crate::accuracy;
use crate::context::{Layer, MARKS_KIND};
use crate::error::Error;
use crate::forgetting::{self, FORGETTING_KIND, FORGETTING_VERSION, Forgetting, Memory, Stored};
use crate::model::{LayerKind, ModelIdentity, ModelSpec};
use crate::options::{ContextOptions, Rebuild};
use longwave_index::ClusterOptions;
use longwave_kernels::Dtype;
use longwave_storage::{
    ElementKind, Error as StorageError, Geometry, LayerKind as LayerKindRecord, Manifest, ModelRecord,
    RowForm, SettingsRecord, StateRecord,
};
use std::ops::RangeInclusive;
use std::sync::Arc;

pub(crate) fn element(dtype: Dtype) -> ElementKind {
    match dtype {
        Dtype::F16 => ElementKind::F16,
        Dtype::Bf16 => ElementKind::Bf16,
        Dtype::F32 => ElementKind::F32,
    }
}

fn dtype(element: ElementKind) -> Dtype {
    match element {
        ElementKind::F16 => Dtype::F16,
        ElementKind::Bf16 => Dtype::Bf16,
        ElementKind::F32 => Dtype::F32,
    }
}

pub(crate) fn geometry(model: &ModelSpec) -> Geometry {
    Geometry {
        kv_heads: model.kv_heads as u32,
        key_dim: model.key_dim as u32,
        value_dim: model.value_dim as u32,
        element: element(model.dtype),
    }
}

pub(crate) fn model_record(model: &ModelSpec) -> ModelRecord {
    ModelRecord {
        identity: model.digest(),
        weights: model.identity.weights,
        tokenizer: model.identity.tokenizer,
        rope: model.identity.rope.clone(),
        layers: model.layers as u32,
        query_heads: model.query_heads as u32,
        kv_heads: model.kv_heads as u32,
        key_dim: model.key_dim as u32,
        value_dim: model.value_dim as u32,
        element: element(model.dtype),
        scale: model.scale,
        softcap: model.softcap,
    }
}

/// The model of a stored context. It is checked as one from a caller is.
pub(crate) fn model_spec(manifest: &Manifest) -> Result<ModelSpec, Error> {
    let record = &manifest.model;
    let kinds: Vec<LayerKind> = manifest.layers.iter().map(|layer| layer_kind(layer.kind)).collect();
    let sinks: Vec<Vec<f32>> = manifest.layers.iter().map(|layer| layer.sink_logits.clone()).collect();
    let model = ModelSpec {
        identity: ModelIdentity {
            weights: record.weights,
            tokenizer: record.tokenizer,
            rope: record.rope.clone(),
        },
        layers: record.layers as usize,
        query_heads: record.query_heads as usize,
        kv_heads: record.kv_heads as usize,
        key_dim: record.key_dim as usize,
        value_dim: record.value_dim as usize,
        dtype: dtype(record.element),
        scale: record.scale,
        softcap: record.softcap,
        layer_kinds: if kinds.iter().all(|kind| *kind == LayerKind::Clustered) { Vec::new() } else { kinds },
        sink_logits: if sinks.iter().all(Vec::is_empty) { Vec::new() } else { sinks },
    };
    model.check()?;
    Ok(model)
}

pub(crate) fn layer_kind_record(kind: LayerKind) -> LayerKindRecord {
    match kind {
        LayerKind::Clustered => LayerKindRecord::Clustered,
        LayerKind::ExactOnly => LayerKindRecord::Exact,
        LayerKind::SlidingWindow(window) => LayerKindRecord::Sliding { window },
        LayerKind::Absent => LayerKindRecord::Absent,
    }
}

fn layer_kind(record: LayerKindRecord) -> LayerKind {
    match record {
        LayerKindRecord::Clustered => LayerKind::Clustered,
        LayerKindRecord::Exact => LayerKind::ExactOnly,
        LayerKindRecord::Sliding { window } => LayerKind::SlidingWindow(window),
        LayerKindRecord::Absent => LayerKind::Absent,
    }
}

pub(crate) fn settings_record(options: &ContextOptions) -> SettingsRecord {
    SettingsRecord {
        sinks: options.sinks,
        window: options.window,
        bulk_segment_rows: options.bulk_segment_rows,
        decode_segment_rows: options.decode_segment_rows,
        bulk_append_rows: options.bulk_append_rows,
        sample_positions: options.sample_positions,
        tokens_per_cluster: options.clusters.tokens_per_cluster,
        iterations: options.clusters.iterations,
        split_factor: options.clusters.split_factor,
        seed: options.clusters.seed,
        ladder: options.ladder,
        rebuild_positions: match options.rebuild {
            Rebuild::Never => None,
            Rebuild::WhenObserved { positions } => Some(positions),
        },
    }
}

/// The options of a stored context. They are checked as those from a caller are.
pub(crate) fn context_options(manifest: &Manifest, file: &str) -> Result<ContextOptions, Error> {
    let settings = &manifest.settings;
    let forms = row_forms(manifest, file)?;
    let alike = forms.iter().all(|form| *form == forms[0]);
    let options = ContextOptions {
        sinks: settings.sinks,
        window: settings.window,
        bulk_segment_rows: settings.bulk_segment_rows,
        decode_segment_rows: settings.decode_segment_rows,
        bulk_append_rows: settings.bulk_append_rows,
        sample_positions: settings.sample_positions,
        ladder: settings.ladder,
        rebuild: settings
            .rebuild_positions
            .map_or(Rebuild::Never, |positions| Rebuild::WhenObserved { positions }),
        clusters: ClusterOptions {
            tokens_per_cluster: settings.tokens_per_cluster,
            iterations: settings.iterations,
            split_factor: settings.split_factor,
            seed: settings.seed,
        },
        rows: if alike { forms.first().copied().unwrap_or_default() } else { RowForm::Full },
        layer_rows: if alike { Vec::new() } else { forms },
        extra: manifest.extra.clone(),
        forgetting: stored_memory(manifest, longwave_storage::MANIFEST_FILE)?.0,
    };
    options.check(manifest.layers.len())?;
    Ok(options)
}

/// State of the manifest: the form that rows are kept in, a byte a layer. Not there where all are kept in full, so that
/// builds that do not know it read it as that; they may go on with the context, and seal rows in full.
const ROW_FORMS_KIND: u32 = 5;
const ROW_FORMS_VERSION: u32 = 1;

/// The forms of rows as they are recorded.
pub(crate) fn row_forms_record(options: &ContextOptions, layers: usize) -> Option<StateRecord> {
    let forms: Vec<RowForm> = (0..layers).map(|layer| options.rows_of(layer)).collect();
    forms.iter().any(|form| *form != RowForm::Full).then(|| StateRecord {
        kind: ROW_FORMS_KIND,
        version: ROW_FORMS_VERSION,
        bytes: forms.iter().map(|form| form.code()).collect(),
    })
}

/// The form of rows of every layer; none where nothing is recorded.
fn row_forms(manifest: &Manifest, file: &str) -> Result<Vec<RowForm>, Error> {
    let (what, mut forms) = ("row forms", Vec::new());
    let versions = ROW_FORMS_VERSION..=ROW_FORMS_VERSION;
    for state in state_of(manifest, file, (what, ROW_FORMS_KIND, versions)) {
        let (_, bytes) = state?;
        let fault = |offset, expected: String, found: String| accuracy::Fault { offset, expected, found };
        if bytes.len() != manifest.layers.len() {
            let expected = format!("a byte for each of {} layers", manifest.layers.len());
            return Err(damaged(file, what, fault(0, expected, format!("{} bytes", bytes.len()))));
        }
        forms.clear();
        for (at, &code) in bytes.iter().enumerate() {
            let unknown = || damaged(file, what, fault(at, "a form of 0 to 2".into(), code.to_string()));
            forms.push(RowForm::from_code(code).ok_or_else(unknown)?);
        }
    }
    Ok(forms)
}

/// Records of state that this build does not know.
pub(crate) fn other_state(manifest: &Manifest) -> Vec<StateRecord> {
    let known = [accuracy::KIND, accuracy::SPENDING_KIND, MARKS_KIND, FORGETTING_KIND, ROW_FORMS_KIND];
    manifest.state.iter().filter(|record| !known.contains(&record.kind)).cloned().collect()
}

/// The policy of a context, and what its layers remember, by rising number.
fn stored_memory(manifest: &Manifest, file: &str) -> Result<(Forgetting, Vec<Stored>), Error> {
    let what = ("forgetting", FORGETTING_KIND, FORGETTING_VERSION..=FORGETTING_VERSION);
    let Some(bytes) = state_of(manifest, file, what).next() else { return Ok(Default::default()) };
    let (_, bytes) = bytes?;
    forgetting::decode(bytes, manifest.layers.len()).map_err(|fault| damaged(file, "forgetting", fault))
}

/// What the layers of a context have forgotten, by rising number.
pub(crate) fn forgotten(manifest: &Manifest, file: &str) -> Result<Vec<Stored>, Error> {
    Ok(stored_memory(manifest, file)?.1)
}

/// Brings the memory of a layer back, whose segments are open.
pub(crate) fn restore_memory(
    layer: &mut Layer,
    stored: Option<&Stored>,
    policy: Forgetting,
    (file, length): (&str, u64),
) -> Result<(), Error> {
    let rows = &mut layer.rows;
    let Some(stored) = stored else {
        rows.memory = Arc::new(Memory::new(policy, rows.segments.len()));
        return Ok(());
    };
    let fault = |expected: String, found: String| {
        damaged(file, "forgetting", accuracy::Fault { offset: 0, expected, found })
    };
    let known = if policy == Forgetting::Never { 0 } else { rows.segments.len() };
    if stored.segments() != known {
        return Err(fault(format!("{known} segments"), stored.segments().to_string()));
    }
    let (first, end) = (stored.dropped.first().unwrap_or(u64::MAX), stored.dropped.end());
    if first < rows.tail.sinks() || end > length {
        let expected = format!("dropped rows from {} to below {length}", rows.tail.sinks());
        return Err(fault(expected, format!("{first} to {end}")));
    }
    let heads = rows.shape.kv_heads as u64;
    let most: Vec<u64> = rows.segments.iter().map(|sealed| sealed.segment.rows() as u64 * heads).collect();
    let memory = stored.memory(policy, &most).map_err(|found| fault("clusters of rows".into(), found))?;
    rows.memory = Arc::new(memory);
    Ok(())
}

/// Brings calibration, steering and spending back.
pub(crate) fn restore_state(
    manifest: &Manifest,
    file: &str,
    layers: &mut [Option<Layer>],
) -> Result<(), Error> {
    let heads = (manifest.model.kv_heads as usize, manifest.model.query_heads as usize);
    let count = layers.len();
    let calibration = ("calibration", accuracy::KIND, accuracy::OLDEST..=accuracy::VERSION);
    for state in state_of(manifest, file, calibration) {
        let (version, bytes) = state?;
        let decoded = accuracy::decode(bytes, version, count, heads.1);
        for (number, calibration, steering) in decoded.map_err(|fault| damaged(file, "calibration", fault))? {
            let layer = kept(layers, file, "calibration", number)?;
            layer.rows.calibration = Arc::new(calibration);
            layer.rows.steering = steering;
        }
    }
    let versions = accuracy::SPENDING_VERSION..=accuracy::SPENDING_VERSION;
    for state in state_of(manifest, file, ("spending", accuracy::SPENDING_KIND, versions)) {
        let decoded = accuracy::decode_spending(state?.1, count, heads);
        for (number, spending) in decoded.map_err(|fault| damaged(file, "spending", fault))? {
            kept(layers, file, "spending", number)?.rows.spending = Arc::new(spending);
        }
    }
    Ok(())
}

/// The state of one kind, each record with its version, which is one that this build reads.
pub(crate) fn state_of<'a>(
    manifest: &'a Manifest,
    file: &'a str,
    (what, kind, versions): (&'a str, u32, RangeInclusive<u32>),
) -> impl Iterator<Item = Result<(u32, &'a [u8]), Error>> {
    manifest.state.iter().filter(move |record| record.kind == kind).map(move |record| {
        if versions.contains(&record.version) {
            return Ok((record.version, &*record.bytes));
        }
        let found = u16::try_from(record.version).unwrap_or(u16::MAX);
        let file = format!("{file}, {what}");
        let (oldest, newest) = (*versions.start() as u16, *versions.end() as u16);
        Err(StorageError::Version { file, found, oldest, newest }.into())
    })
}

pub(crate) fn damaged(file: &str, what: &str, fault: accuracy::Fault) -> Error {
    let accuracy::Fault { offset, expected, found } = fault;
    let (file, column) = (file.into(), Some(what.into()));
    StorageError::Corrupt { file, column, offset: offset as u64, expected, found }.into()
}

pub(crate) fn kept<'a>(
    layers: &'a mut [Option<Layer>],
    file: &str,
    what: &str,
    number: usize,
) -> Result<&'a mut Layer, Error> {
    let found = format!("layer {number}");
    let fault = || accuracy::Fault { offset: 0, expected: "a layer that keeps KV".into(), found };
    layers[number].as_mut().ok_or_else(|| damaged(file, what, fault()))
}
