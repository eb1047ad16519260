//! The profile of the context's model: what its first segments are built with, and what its commits add to it.

use super::Context;
use crate::error::Error;
use crate::profile::{self, NewQueries};
use longwave_storage::{
    Durability, Error as StorageError, Profile, ProfileShape, read_profile, write_profile,
};
use std::sync::Arc;

/// Positions that must be new in a layer before the profile is written again. The first ones that a writer has are
/// added whatever their number.
const POSITIONS_MIN: usize = 16;

impl Context {
    /// The profile, where a layer's own sample says nothing yet.
    pub(super) fn profile_if_needed(&self, layer: usize) -> Result<Option<Arc<Profile>>, Error> {
        let mine = self.layer(layer)?;
        let needed = mine.clustered && self.options.ladder && mine.sample.len() == 0;
        Ok(if needed { self.profile() } else { None })
    }

    /// The profile as it was when this writer first asked for it.
    fn profile(&self) -> Option<Arc<Profile>> {
        let read = || match read_profile(self.store.backend.as_ref(), &profile::shape(&self.model)) {
            Ok(profile) => profile.map(Arc::new),
            Err(error) => {
                tracing::warn!(context = self.name, %error, "the model's profile cannot be used; going on without");
                None
            }
        };
        self.profile.get_or_init(read).clone()
    }

    /// Adds the queries that entered the samples since the last time to the model's profile. It is advice for other
    /// contexts: that it cannot be written is no failure of the commit, and is tried again with the next.
    pub(super) fn update_profile(&mut self, durability: Durability) {
        let new = |layer: &super::Layer| layer.sample.unprofiled().len();
        let most = self.layers.iter().flatten().map(new).max().unwrap_or(0);
        let least = if self.profile_updated { POSITIONS_MIN } else { 1 };
        let shape = profile::shape(&self.model);
        if most < least || shape.payload_max().is_none() {
            return;
        }
        if let Err(error) = self.write_profile(shape, durability) {
            tracing::warn!(context = self.name, %error, "the model's profile could not be written");
            return;
        }
        self.profile_updated = true;
        self.layers.iter_mut().flatten().for_each(|layer| layer.sample.settle_profile());
    }

    fn write_profile(&self, shape: ProfileShape, durability: Durability) -> Result<(), Error> {
        let backend = self.store.backend.as_ref();
        let layers = self.layers.iter().enumerate();
        let new: Vec<NewQueries<'_>> = layers
            .filter_map(|(number, layer)| {
                let queries = layer.as_ref()?.sample.unprofiled().into_iter();
                Some((number, queries.map(|(_, queries)| queries).collect()))
            })
            .collect();
        // One writer of this process at a time; of several processes the last wins, and what the other added is lost.
        let _one = self.store.profiles.lock();
        let known = match read_profile(backend, &shape) {
            // Damage is made good by starting again. What a newer build wrote, or what cannot be read now, is kept.
            Err(error @ (StorageError::Corrupt { .. } | StorageError::Identity { .. })) => {
                tracing::warn!(context = self.name, %error, "a damaged profile is replaced");
                None
            }
            known => known?,
        };
        let known = known.unwrap_or(Profile { shape, layers: Vec::new() });
        let learnt = profile::learnt(known, &new);
        Ok(write_profile(backend, &learnt, &self.id, durability)?)
    }
}
