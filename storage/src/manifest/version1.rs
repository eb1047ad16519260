//! Manifests of version 1, as they lie on disk: each log is the context's own, in its directory, and counts whole.

use bincode::{Decode, Encode};

use super::{
    LayerKind, LayerRecord, LogPlace, LogRecord, Manifest, ModelRecord, SegmentRecord, SettingsRecord,
    StateRecord,
};

#[derive(Encode, Decode)]
pub(super) struct Manifest1 {
    context_id: [u8; 16],
    generation: u64,
    name: String,
    model: ModelRecord,
    settings: SettingsRecord,
    layers: Vec<Layer1>,
    row_log: Option<Log1>,
    meta_log: Option<Log1>,
    token_count: u64,
    state: Vec<StateRecord>,
}

#[derive(Encode, Decode)]
struct Layer1 {
    kind: LayerKind,
    sink_logits: Vec<f32>,
    segments: Vec<SegmentRecord>,
    length: u64,
}

#[derive(Encode, Decode)]
struct Log1 {
    id: [u8; 16],
    file: String,
    len: u64,
}

impl From<Log1> for LogRecord {
    fn from(log: Log1) -> Self {
        LogRecord { id: log.id, file: log.file, len: log.len, end: u64::MAX, place: LogPlace::Context }
    }
}

impl From<Manifest1> for Manifest {
    fn from(old: Manifest1) -> Self {
        let window = u64::from(old.settings.window);
        let end = |segment: &SegmentRecord| segment.first_position.saturating_add(u64::from(segment.rows));
        let layers = old.layers.into_iter().map(|layer| LayerRecord {
            sealed_at: layer.segments.iter().map(|segment| end(segment).saturating_add(window)).collect(),
            kind: layer.kind,
            sink_logits: layer.sink_logits,
            segments: layer.segments,
            cuts: Vec::new(),
            length: layer.length,
        });
        Manifest {
            context_id: old.context_id,
            generation: old.generation,
            name: old.name,
            model: old.model,
            settings: old.settings,
            layers: layers.collect(),
            row_logs: old.row_log.into_iter().map(LogRecord::from).collect(),
            meta_logs: old.meta_log.into_iter().map(LogRecord::from).collect(),
            token_count: old.token_count,
            extra: Vec::new(),
            prefix: [0; 16],
            // Nothing says which files its writer held: none of them is garbage.
            first_unnamed: 0,
            origin: None,
            state: old.state,
        }
    }
}
