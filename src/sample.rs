//! A seeded sample of the queries that a layer has seen: for audits and for looking at a context offline.
//!
//! A position belongs to the sample when its hash is among the smallest seen so far. So the sample does not depend on
//! the order in which queries come, is the same for every layer that sees the same positions, and can be cut at any
//! position.

use half::f16;
use std::collections::BTreeMap;

/// The sample of one layer.
#[derive(Clone, Debug)]
pub(crate) struct QuerySample {
    seed: u64,
    capacity: usize,
    /// By hash: the position and its queries `[query_heads, key_dim]`.
    kept: BTreeMap<(u64, u64), Vec<f16>>,
    /// Positions that entered since the last [`Self::settle`].
    new: Vec<u64>,
    /// Positions that entered since the last [`Self::settle_profile`].
    unprofiled: Vec<u64>,
}

impl QuerySample {
    pub(crate) fn new(seed: u64, capacity: usize) -> Self {
        QuerySample { seed, capacity, kept: BTreeMap::new(), new: Vec::new(), unprofiled: Vec::new() }
    }

    /// Whether the queries of `position` would be kept. Cheap, so that most positions are never converted.
    pub(crate) fn wants(&self, position: u64) -> bool {
        let key = (self.hash(position), position);
        let fits = self.kept.len() < self.capacity
            || self.kept.last_key_value().is_some_and(|(last, _)| key < *last);
        self.capacity > 0 && fits && !self.kept.contains_key(&key)
    }

    /// Takes the queries of a position that [`Self::wants`] asked for.
    pub(crate) fn insert(&mut self, position: u64, queries: Vec<f16>) {
        if !self.wants(position) {
            return;
        }
        self.kept.insert((self.hash(position), position), queries);
        self.new.push(position);
        self.unprofiled.push(position);
        if self.kept.len() > self.capacity {
            self.kept.pop_last();
        }
    }

    /// Positions kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// The sample in order of position.
    pub(crate) fn by_position(&self) -> Vec<(u64, &[f16])> {
        let mut sample: Vec<_> =
            self.kept.iter().map(|(&(_, position), queries)| (position, queries.as_slice())).collect();
        sample.sort_unstable_by_key(|(position, _)| *position);
        sample
    }

    /// Positions that entered since the last [`Self::settle`] and are still kept.
    pub(crate) fn unsaved(&self) -> Vec<(u64, &[f16])> {
        self.entries(&self.new)
    }

    /// Positions that the model's profile has not learnt of and that are still kept.
    pub(crate) fn unprofiled(&self) -> Vec<(u64, &[f16])> {
        self.entries(&self.unprofiled)
    }

    fn entries(&self, positions: &[u64]) -> Vec<(u64, &[f16])> {
        let entry =
            |&position: &u64| Some((position, self.kept.get(&(self.hash(position), position))?.as_slice()));
        positions.iter().filter_map(entry).collect()
    }

    /// What [`Self::unsaved`] named has been saved.
    pub(crate) fn settle(&mut self) {
        self.new.clear();
    }

    /// What [`Self::unprofiled`] named is in the profile.
    pub(crate) fn settle_profile(&mut self) {
        self.unprofiled.clear();
    }

    /// What was saved is to be saved again.
    pub(crate) fn unsettle(&mut self) {
        self.new = self.kept.keys().map(|&(_, position)| position).collect();
    }

    fn hash(&self, position: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(&position.to_le_bytes(), self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries(position: u64) -> Vec<f16> {
        vec![f16::from_f32(position as f32), f16::from_f32(-0.5)]
    }

    fn filled(positions: impl Iterator<Item = u64>) -> QuerySample {
        let mut sample = QuerySample::new(7, 20);
        for position in positions {
            sample.insert(position, queries(position));
        }
        sample
    }

    #[test]
    fn the_sample_does_not_depend_on_the_order_of_arrival() {
        let forward = filled(0..500);
        let backward = filled((0..500).rev());
        assert_eq!(forward.by_position().len(), 20);
        assert_eq!(forward.by_position(), backward.by_position());
        assert!(forward.by_position().iter().all(|(position, kept)| *kept == queries(*position)));
    }

    #[test]
    fn the_sample_spreads_over_the_positions() {
        let positions: Vec<u64> =
            filled(0..1000).by_position().iter().map(|(position, _)| *position).collect();
        assert!(positions.iter().any(|&p| p < 300) && positions.iter().any(|&p| p > 700), "{positions:?}");
    }

    #[test]
    fn only_what_is_new_and_still_kept_is_unsaved() {
        let mut sample = filled(0..500);
        let unsaved: Vec<u64> = sample.unsaved().iter().map(|(position, _)| *position).collect();
        assert_eq!(unsaved.len(), 20);
        sample.settle();
        let next = (500..).find(|&position| sample.wants(position)).expect("a smaller hash exists");
        sample.insert(next, queries(next));
        assert_eq!(sample.unsaved(), vec![(next, queries(next).as_slice())]);
    }

    #[test]
    fn a_position_enters_once_and_an_empty_sample_wants_nothing() {
        let mut sample = filled(0..3);
        sample.insert(1, vec![f16::ONE]);
        assert_eq!(sample.by_position()[1].1, queries(1).as_slice());
        assert!(!QuerySample::new(1, 0).wants(4));
    }
}
