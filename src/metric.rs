//! What is known of a layer's queries when a segment is built.

use crate::model::ModelSpec;
use crate::profile;
use crate::sample::QuerySample;
use half::f16;
use longwave_index::ladder::{Moment, MomentSource};
use longwave_storage::Profile;
use std::sync::{Arc, OnceLock};

/// The queries' second moments, one a KV head: computed by the first segment that is built with them, and not by the
/// call that asks for it.
#[derive(Debug)]
pub(crate) struct Metric {
    layer: usize,
    model: Arc<ModelSpec>,
    known: Known,
    moments: OnceLock<Vec<Moment>>,
}

#[derive(Debug)]
enum Known {
    Nothing,
    /// Queries of the model in other contexts.
    Profile(Arc<Profile>),
    /// Queries of the context, `[query_heads, key_dim]` a position.
    Sample(Vec<Vec<f16>>),
}

impl Metric {
    /// Of the context's own sample; while it holds nothing, of the profile, if that knows the layer.
    pub(crate) fn new(
        layer: usize,
        model: &Arc<ModelSpec>,
        sample: &QuerySample,
        profile: Option<Arc<Profile>>,
    ) -> Arc<Metric> {
        let knows = |profile: &Arc<Profile>| profile.layers.iter().any(|known| known.layer as usize == layer);
        let known = match profile.filter(knows) {
            _ if sample.len() > 0 => {
                Known::Sample(sample.by_position().into_iter().map(|(_, queries)| queries.to_vec()).collect())
            }
            Some(profile) => Known::Profile(profile),
            None => Known::Nothing,
        };
        Arc::new(Metric { layer, model: Arc::clone(model), known, moments: OnceLock::new() })
    }

    pub(crate) fn source(&self) -> MomentSource {
        match self.known {
            Known::Nothing => MomentSource::Identity,
            Known::Profile(_) => MomentSource::Profile,
            Known::Sample(_) => MomentSource::Context,
        }
    }

    pub(crate) fn moments(&self) -> &[Moment] {
        self.moments.get_or_init(|| {
            match &self.known {
                Known::Nothing => None,
                Known::Profile(profile) => profile::moments(profile, self.layer, &self.model),
                Known::Sample(sample) => Some(self.of_sample(sample)),
            }
            .unwrap_or_else(|| vec![Moment::identity(self.model.key_dim); self.model.kv_heads])
        })
    }

    fn of_sample(&self, sample: &[Vec<f16>]) -> Vec<Moment> {
        let ModelSpec { kv_heads, query_heads, key_dim, scale, .. } = *self.model;
        let group = query_heads / kv_heads * key_dim;
        let moment = |head: usize| {
            let of_head = sample.iter().flat_map(|queries| &queries[head * group..(head + 1) * group]);
            let queries: Vec<f32> = of_head.map(|x| x.to_f32() * scale).collect();
            Moment::from_queries(&queries, key_dim)
        };
        (0..kv_heads).map(moment).collect()
    }
}
