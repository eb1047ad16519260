//! What a context's KV was made by, and how its layers attend.

use crate::error::Error;
use longwave_kernels::{DIM_MAX, DIM_STEP, Dtype, is_supported_dim};
use longwave_query::{Scoring, Shape};
use longwave_storage::Identity;
use sha2::{Digest, Sha256};
use std::fmt;

/// Most layers a model may have.
pub const LAYERS_MAX: usize = 1024;
/// Most query heads a layer may have.
pub const HEADS_MAX: usize = 1024;

/// What keys and values depend on besides the text: a context is never read under another identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Digest of the weights, adapters included.
    pub weights: [u8; 32],
    /// Digest of the tokenizer.
    pub tokenizer: [u8; 32],
    /// Everything that turns positions into keys, as text: base, dimension, scaling, pairing.
    pub rope: String,
}

/// How one layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// Full attention; rows are clustered when they are sealed.
    Clustered,
    /// Full attention; rows are never clustered and every method reads them all.
    ExactOnly,
    /// A query sees itself and the positions before it, this many in all. Never clustered.
    SlidingWindow(u64),
    /// The layer keeps no KV.
    Absent,
}

/// Geometry, identity and scoring of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// What the KV depends on.
    pub identity: ModelIdentity,
    /// Layers, absent ones included.
    pub layers: usize,
    /// Query heads of a layer; a multiple of `kv_heads`.
    pub query_heads: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Elements of a key: a multiple of 8, at most 576.
    pub key_dim: usize,
    /// Elements of a value: a multiple of 8, at most 576; may differ from `key_dim`.
    pub value_dim: usize,
    /// Element type of the stored rows.
    pub dtype: Dtype,
    /// Factor on every dot product, usually `key_dim^-1/2`.
    pub scale: f32,
    /// `score -> cap * tanh(score / cap)` where the model soft-caps its logits.
    pub softcap: Option<f32>,
    /// One kind a layer; empty means that every layer is [`LayerKind::Clustered`].
    pub layer_kinds: Vec<LayerKind>,
    /// Learned sink logits `[layers][query_heads]`; empty means none, and so does an empty layer.
    pub sink_logits: Vec<Vec<f32>>,
}

impl ModelSpec {
    /// The kind of a layer.
    pub fn layer_kind(&self, layer: usize) -> LayerKind {
        self.layer_kinds.get(layer).copied().unwrap_or(LayerKind::Clustered)
    }

    /// The digest that every file of a context carries: identity, geometry and element type.
    pub fn digest(&self) -> Identity {
        let mut hash = Sha256::new();
        hash.update(b"longwave model 1");
        hash.update(self.identity.weights);
        hash.update(self.identity.tokenizer);
        hash.update((self.identity.rope.len() as u64).to_le_bytes());
        hash.update(self.identity.rope.as_bytes());
        for number in [self.layers, self.query_heads, self.kv_heads, self.key_dim, self.value_dim] {
            hash.update((number as u64).to_le_bytes());
        }
        hash.update(self.dtype.code().to_le_bytes());
        Identity(hash.finalize().into())
    }

    pub(crate) fn shape(&self) -> Shape {
        let ModelSpec { query_heads, kv_heads, key_dim, value_dim, dtype, .. } = *self;
        Shape { query_heads, kv_heads, key_dim, value_dim, dtype }
    }

    pub(crate) fn scoring(&self, layer: usize, window: u64) -> Scoring {
        Scoring {
            scale: self.scale,
            softcap: self.softcap,
            sink_logits: self.sink_logits.get(layer).cloned().unwrap_or_default(),
            sliding_window: match self.layer_kind(layer) {
                LayerKind::SlidingWindow(window) => Some(window),
                _ => None,
            },
            window,
        }
    }

    /// Refuses what the engine cannot work with.
    pub(crate) fn check(&self) -> Result<(), Error> {
        bounded("layers", self.layers, LAYERS_MAX)?;
        bounded("query_heads", self.query_heads, HEADS_MAX)?;
        bounded("kv_heads", self.kv_heads, self.query_heads)?;
        let invalid = |what, expected: &str, found: String| {
            Err(Error::Invalid { what, expected: expected.into(), found })
        };
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            let found = format!("{} query heads for {} KV heads", self.query_heads, self.kv_heads);
            return invalid("query_heads", "a multiple of kv_heads", found);
        }
        for (what, dim) in [("key_dim", self.key_dim), ("value_dim", self.value_dim)] {
            if !is_supported_dim(dim) {
                return invalid(what, &format!("a multiple of {DIM_STEP} up to {DIM_MAX}"), dim.to_string());
            }
        }
        if !self.scale.is_finite() || self.scale <= 0.0 {
            return invalid("scale", "a positive number", self.scale.to_string());
        }
        if let Some(cap) = self.softcap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
            return invalid("softcap", "a positive number", cap.to_string());
        }
        if !self.layer_kinds.is_empty() && self.layer_kinds.len() != self.layers {
            return invalid(
                "layer_kinds",
                &format!("{} kinds or none", self.layers),
                self.layer_kinds.len().to_string(),
            );
        }
        if self.layer_kinds.contains(&LayerKind::SlidingWindow(0)) {
            return invalid("layer_kinds", "a sliding window of 1 or more", "0".into());
        }
        if !self.sink_logits.is_empty() && self.sink_logits.len() != self.layers {
            return invalid(
                "sink_logits",
                &format!("{} layers or none", self.layers),
                self.sink_logits.len().to_string(),
            );
        }
        for logits in &self.sink_logits {
            if !logits.is_empty() && logits.len() != self.query_heads {
                return invalid(
                    "sink_logits",
                    &format!("{} a layer", self.query_heads),
                    logits.len().to_string(),
                );
            }
            if logits.iter().any(|logit| !logit.is_finite()) {
                return invalid("sink_logits", "finite numbers", "one that is not".into());
            }
        }
        Ok(())
    }

    /// The first field in which `other` differs: KV depends on most of them, answers on all.
    pub(crate) fn difference(&self, other: &ModelSpec) -> Option<Mismatch> {
        let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let kinds =
            |model: &ModelSpec| (0..self.layers).map(|layer| model.layer_kind(layer)).collect::<Vec<_>>();
        let logits = |model: &ModelSpec| -> Vec<Vec<f32>> {
            (0..self.layers).map(|layer| model.sink_logits.get(layer).cloned().unwrap_or_default()).collect()
        };
        let fields = [
            ("weights digest", hex(&self.identity.weights), hex(&other.identity.weights)),
            ("tokenizer digest", hex(&self.identity.tokenizer), hex(&other.identity.tokenizer)),
            ("rope", self.identity.rope.clone(), other.identity.rope.clone()),
            ("layers", self.layers.to_string(), other.layers.to_string()),
            ("query_heads", self.query_heads.to_string(), other.query_heads.to_string()),
            ("kv_heads", self.kv_heads.to_string(), other.kv_heads.to_string()),
            ("key_dim", self.key_dim.to_string(), other.key_dim.to_string()),
            ("value_dim", self.value_dim.to_string(), other.value_dim.to_string()),
            ("dtype", self.dtype.to_string(), other.dtype.to_string()),
            ("scale", self.scale.to_string(), other.scale.to_string()),
            ("softcap", format!("{:?}", self.softcap), format!("{:?}", other.softcap)),
            ("layer_kinds", format!("{:?}", kinds(self)), format!("{:?}", kinds(other))),
            ("sink_logits", format!("{:?}", logits(self)), format!("{:?}", logits(other))),
        ];
        fields.into_iter().find(|(_, stored, given)| stored != given).map(|(field, stored, given)| Mismatch {
            field,
            stored,
            given,
        })
    }
}

fn bounded(what: &'static str, found: usize, limit: usize) -> Result<(), Error> {
    if (1..=limit).contains(&found) {
        return Ok(());
    }
    Err(Error::Invalid { what, expected: format!("1 to {limit}"), found: found.to_string() })
}

/// A field in which two models differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The field.
    pub field: &'static str,
    /// Its value in the store.
    pub stored: String,
    /// The value given.
    pub given: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} in the store, {} in the model given", self.field, self.stored, self.given)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn model() -> ModelSpec {
        ModelSpec {
            identity: ModelIdentity { weights: [3; 32], tokenizer: [4; 32], rope: "theta 10000".into() },
            layers: 2,
            query_heads: 6,
            kv_heads: 3,
            key_dim: 24,
            value_dim: 16,
            dtype: Dtype::F16,
            scale: 0.2,
            softcap: None,
            layer_kinds: Vec::new(),
            sink_logits: Vec::new(),
        }
    }

    /// One model for each field that the KV depends on, each differing in that field alone.
    fn variants() -> Vec<(&'static str, ModelSpec)> {
        let identity = |change: fn(&mut ModelIdentity)| {
            let mut model = model();
            change(&mut model.identity);
            model
        };
        vec![
            ("weights digest", identity(|identity| identity.weights[31] ^= 1)),
            ("tokenizer digest", identity(|identity| identity.tokenizer[0] ^= 1)),
            ("rope", identity(|identity| identity.rope.push('0'))),
            ("layers", ModelSpec { layers: 3, ..model() }),
            ("query_heads", ModelSpec { query_heads: 9, ..model() }),
            ("kv_heads", ModelSpec { kv_heads: 2, ..model() }),
            ("key_dim", ModelSpec { key_dim: 16, ..model() }),
            ("value_dim", ModelSpec { value_dim: 24, ..model() }),
            ("dtype", ModelSpec { dtype: Dtype::Bf16, ..model() }),
        ]
    }

    #[test]
    fn every_field_that_kv_depends_on_changes_the_digest_and_is_named() {
        assert_eq!(model().difference(&model()), None);
        for (field, other) in variants() {
            assert_ne!(model().digest(), other.digest(), "{field}");
            assert_eq!(model().difference(&other).map(|difference| difference.field), Some(field));
        }
        let scored = ModelSpec { scale: 0.3, softcap: Some(30.0), ..model() };
        assert_eq!(model().digest(), scored.digest(), "how rows are scored does not change the rows");
    }

    #[test]
    fn models_that_cannot_be_worked_with_are_refused_by_field() {
        let cases = [
            ("layers", ModelSpec { layers: 0, ..model() }),
            ("query_heads", ModelSpec { query_heads: HEADS_MAX + 3, ..model() }),
            ("kv_heads", ModelSpec { kv_heads: 7, ..model() }),
            ("query_heads", ModelSpec { kv_heads: 4, ..model() }),
            ("key_dim", ModelSpec { key_dim: 20, ..model() }),
            ("value_dim", ModelSpec { value_dim: 584, ..model() }),
            ("scale", ModelSpec { scale: f32::NAN, ..model() }),
            ("softcap", ModelSpec { softcap: Some(0.0), ..model() }),
            ("layer_kinds", ModelSpec { layer_kinds: vec![LayerKind::ExactOnly], ..model() }),
            ("layer_kinds", ModelSpec { layer_kinds: vec![LayerKind::SlidingWindow(0); 2], ..model() }),
            ("sink_logits", ModelSpec { sink_logits: vec![vec![0.0; 5], vec![]], ..model() }),
            ("sink_logits", ModelSpec { sink_logits: vec![vec![f32::INFINITY; 6], vec![]], ..model() }),
        ];
        assert!(model().check().is_ok());
        for (field, bad) in cases {
            let refused = bad.check().expect_err(field);
            assert!(matches!(refused, Error::Invalid { what, .. } if what == field), "{field}: {refused}");
        }
    }
}
