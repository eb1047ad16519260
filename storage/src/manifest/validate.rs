//! What must hold in every manifest, whether it is to be written or was read.

use std::collections::HashSet;

use super::{EXTRA_MAX, LOGS_MAX, LayerKind, LayerRecord, Manifest};
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
            for segment in layer.segments.iter().chain(layer.cuts.iter().map(|cut| &cut.segment)) {
                name(&segment.file)?;
                if !files.insert(segment.file.as_str()) {
                    return Err(format!("segment {} is named twice", segment.file));
                }
            }
        }
        if self.extra.len() > EXTRA_MAX {
            return Err(format!("{} extra bytes, over the limit of {EXTRA_MAX}", self.extra.len()));
        }
        self.validate_logs()
    }

    fn validate_logs(&self) -> Result<(), String> {
        let mut files = HashSet::new();
        for logs in [&self.row_logs, &self.meta_logs] {
            if logs.len() > LOGS_MAX {
                return Err(format!("{} logs of a kind, over the limit of {LOGS_MAX}", logs.len()));
            }
            // What a log holds may be cut away more and more by the ones behind it, never less.
            if !logs.is_sorted_by_key(|log| log.end) {
                return Err("a log that ends behind where the next one goes on".to_owned());
            }
            for log in logs {
                validate_name(&log.file).map_err(|error| error.to_string())?;
                if !files.insert(log.file.as_str()) {
                    return Err(format!("log {} is named twice", log.file));
                }
            }
        }
        Ok(())
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
        if layer.kind == LayerKind::Absent
            && (layer.length > 0 || !layer.segments.is_empty() || !layer.cuts.is_empty())
        {
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
        if layer.sealed_at.len() != layer.segments.len() {
            return Err(format!(
                "{} segments, sealed at {} lengths",
                layer.segments.len(),
                layer.sealed_at.len()
            ));
        }
        for (segment, sealed_at) in layer.segments.iter().zip(&layer.sealed_at) {
            if *sealed_at < segment.first_position + u64::from(segment.rows) {
                return Err(format!("segment {} sealed at {sealed_at} rows", segment.file));
            }
        }
        if end > layer.length {
            return Err(format!("segments up to position {end}, but only {} rows", layer.length));
        }
        for (index, cut) in layer.cuts.iter().enumerate() {
            let segment = &cut.segment;
            let rows = cut.end.checked_sub(segment.first_position);
            let inside = rows.is_some_and(|rows| rows <= u64::from(segment.rows));
            // Whether the first one begins where the live segments end depends on the sinks.
            let joined = index == 0 || segment.first_position <= end;
            if !inside || !joined || cut.end <= end || cut.end > layer.length {
                return Err(format!("segment {} is cut at {}", segment.file, cut.end));
            }
            end = cut.end;
        }
        Ok(())
    }
}
