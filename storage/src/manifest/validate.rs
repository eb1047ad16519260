//! What must hold in every manifest, whether it is to be written or was read.

use std::collections::HashSet;

use super::{LayerKind, LayerRecord, Manifest};
use crate::names::validate_name;

/// Most layers of a model.
const LAYERS_MAX: u32 = 1 << 12;
/// Most query heads of a layer.
const QUERY_HEADS_MAX: u32 = 1 << 16;

impl Manifest {
    /// Says which rule the manifest breaks, if it breaks one.
    pub(super) fn validate(&self) -> Result<(), String> {
        let name = |name: &str| validate_name(name).map_err(|error| error.to_string());
        name(&self.name)?;
        self.validate_model()?;
        if self.layers.len() != self.model.layers as usize {
            return Err(format!("{} layers, the model has {}", self.layers.len(), self.model.layers));
        }
        let mut files = HashSet::new();
        for (index, layer) in self.layers.iter().enumerate() {
            self.validate_layer(layer).map_err(|what| format!("layer {index}: {what}"))?;
            for segment in &layer.segments {
                name(&segment.file)?;
                if !files.insert(segment.file.as_str()) {
                    return Err(format!("segment {} is named twice", segment.file));
                }
            }
        }
        for log in self.row_log.iter().chain(&self.meta_log) {
            name(&log.file)?;
        }
        match (&self.row_log, &self.meta_log) {
            (Some(rows), Some(meta)) if rows.file == meta.file => {
                Err(format!("log {} is named twice", rows.file))
            }
            _ => Ok(()),
        }
    }

    fn validate_model(&self) -> Result<(), String> {
        let model = &self.model;
        model.geometry().validate().map_err(|error| error.to_string())?;
        if model.layers == 0 || model.layers > LAYERS_MAX {
            return Err(format!("{} layers, expected 1 to {LAYERS_MAX}", model.layers));
        }
        let grouped = model.query_heads.checked_rem(model.kv_heads) == Some(0);
        if model.query_heads == 0 || model.query_heads > QUERY_HEADS_MAX || !grouped {
            return Err(format!("{} query heads over {} KV heads", model.query_heads, model.kv_heads));
        }
        let floats = [Some(model.scale), model.softcap, self.settings.split_factor];
        match floats.into_iter().flatten().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("{value} where a finite number must be")),
            None => Ok(()),
        }
    }

    fn validate_layer(&self, layer: &LayerRecord) -> Result<(), String> {
        if layer.kind == (LayerKind::Sliding { window: 0 }) {
            return Err("a sliding window of 0".to_owned());
        }
        if layer.kind == LayerKind::Absent && (layer.length > 0 || !layer.segments.is_empty()) {
            return Err(format!("{} rows in a layer that keeps none", layer.length));
        }
        if !layer.sink_logits.is_empty() && layer.sink_logits.len() != self.model.query_heads as usize {
            return Err(format!(
                "{} sink logits for {} query heads",
                layer.sink_logits.len(),
                self.model.query_heads
            ));
        }
        if layer.sink_logits.iter().any(|logit| !logit.is_finite()) {
            return Err("a sink logit that is not finite".to_owned());
        }
        let mut end = 0_u64;
        for segment in &layer.segments {
            let next = segment.first_position.checked_add(u64::from(segment.rows));
            match next {
                Some(next) if segment.rows > 0 && segment.first_position >= end => end = next,
                _ => return Err(format!("segment {} overlaps the one before or is empty", segment.file)),
            }
        }
        if end > layer.length {
            return Err(format!("segments up to position {end}, but only {} rows", layer.length));
        }
        Ok(())
    }
}
