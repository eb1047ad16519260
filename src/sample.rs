//! A seeded sample of the queries that a layer has seen: for audits and for looking at a context offline.
//!
//! A position belongs to the sample when its hash is among the smallest seen so far. So the sample does not depend on
//! the order in which queries come, is the same for every layer that sees the same positions, and can be cut at any
//! position.

use half::f16;
use std::collections::{BTreeMap, VecDeque};

/// The sample of one layer.
#[derive(Clone, Debug)]
pub(crate) struct QuerySample {
    seed: u64,
    capacity: usize,
    /// By hash: the position and its queries `[query_heads, key_dim]`.
    kept: BTreeMap<(u64, u64), Vec<f16>>,
    /// What others have pushed out, newest last: a cut brings it back.
    pushed_out: VecDeque<(u64, Vec<f16>)>,
    /// Whether some of it is forgotten.
    forgotten: bool,
    /// Positions that entered since the last [`Self::settle`].
    new: Vec<u64>,
    /// Positions that entered since the last [`Self::settle_profile`].
    unprofiled: Vec<u64>,
    /// The latest positions seen, rising, whether they are kept or not; and up to where they were saved.
    latest: VecDeque<(u64, Vec<f16>)>,
    latest_saved: u64,
}

/// Latest positions that are remembered.
pub(crate) const LATEST: usize = 64;

impl QuerySample {
    pub(crate) fn new(seed: u64, capacity: usize) -> Self {
        QuerySample {
            seed,
            capacity,
            kept: BTreeMap::new(),
            pushed_out: VecDeque::new(),
            forgotten: false,
            new: Vec::new(),
            unprofiled: Vec::new(),
            latest: VecDeque::new(),
            latest_saved: 0,
        }
    }

    /// Whether the queries of `position` are among the latest seen so far.
    pub(crate) fn is_late(&self, position: u64) -> bool {
        let among = |first: &(u64, _)| position > first.0;
        let fits = self.latest.len() < LATEST || self.latest.front().is_some_and(among);
        self.capacity > 0 && fits && self.latest.binary_search_by_key(&position, |entry| entry.0).is_err()
    }

    /// Takes the queries of a position that [`Self::is_late`] asked for.
    pub(crate) fn remember(&mut self, position: u64, queries: Vec<f16>) {
        if !self.is_late(position) {
            return;
        }
        let at = self.latest.partition_point(|(other, _)| *other < position);
        self.latest.insert(at, (position, queries));
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
    }

    /// The latest positions that are known, at most `count`, rising.
    pub(crate) fn latest(&self, count: usize) -> Vec<(u64, &[f16])> {
        let mut known = self.by_position();
        known.extend(self.latest.iter().map(|(position, queries)| (*position, queries.as_slice())));
        known.sort_by_key(|(position, _)| *position);
        known.dedup_by_key(|(position, _)| *position);
        known.split_off(known.len() - count.min(known.len()))
    }

    /// The latest positions that were not saved, and are not in the sample, which is saved by itself.
    pub(crate) fn unsaved_latest(&self) -> Vec<(u64, &[f16])> {
        let new = self.latest.iter().filter(|(position, _)| *position >= self.latest_saved);
        let new = new.filter(|(position, _)| !self.kept.contains_key(&(self.hash(*position), *position)));
        new.map(|(position, queries)| (*position, queries.as_slice())).collect()
    }

    /// What [`Self::unsaved_latest`] named has been saved.
    pub(crate) fn settle_latest(&mut self) {
        self.latest_saved = self.latest.back().map_or(0, |(position, _)| position + 1);
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
        if self.kept.len() > self.capacity
            && let Some(((_, position), queries)) = self.kept.pop_last()
        {
            self.pushed_out.push_back((position, queries));
        }
        if self.pushed_out.len() > self.capacity {
            self.pushed_out.pop_front();
            self.forgotten = true;
        }
    }

    /// Leaves an empty one of the same kind.
    pub(crate) fn take(&mut self) -> Self {
        let empty = QuerySample::new(self.seed, self.capacity);
        std::mem::replace(self, empty)
    }

    /// Takes what was saved once, and has been settled since.
    pub(crate) fn recall(&mut self, position: u64, queries: Vec<f16>) {
        if self.is_late(position) {
            self.remember(position, queries.clone());
            self.latest_saved = self.latest_saved.max(position + 1);
        }
        let known = self.kept.contains_key(&(self.hash(position), position));
        if known || !self.wants(position) {
            self.forgotten |= !known;
            return;
        }
        self.insert(position, queries);
        self.new.pop();
        self.unprofiled.pop();
    }

    /// Whether [`Self::cut`] may miss positions that were kept once. What was saved then has to be inserted again.
    pub(crate) fn is_forgetful(&self) -> bool {
        self.forgotten
    }

    /// Drops the positions from `end` on: what is left is the sample of a context that never went further.
    pub(crate) fn cut(&mut self, end: u64) {
        self.kept.retain(|&(_, position), _| position < end);
        self.new.retain(|&position| position < end);
        self.latest.retain(|(position, _)| *position < end);
        self.latest_saved = self.latest_saved.min(end);
        self.unprofiled.retain(|&position| position < end);
        let (new, unprofiled) = (std::mem::take(&mut self.new), std::mem::take(&mut self.unprofiled));
        for (position, queries) in std::mem::take(&mut self.pushed_out) {
            if position < end {
                self.insert(position, queries);
            }
        }
        // What comes back was saved or is still to be saved, as it was before.
        (self.new, self.unprofiled) = (new, unprofiled);
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

    /// The same of a sample that is not needed any more.
    pub(crate) fn into_positions(self) -> Vec<(u64, Vec<f16>)> {
        let mut sample: Vec<_> =
            self.kept.into_iter().map(|((_, position), queries)| (position, queries)).collect();
        sample.sort_unstable_by_key(|(position, _)| *position);
        sample
    }

    /// Positions that entered since the last [`Self::settle`] and may still be asked for.
    pub(crate) fn unsaved(&self) -> Vec<(u64, &[f16])> {
        let out = self.pushed_out.iter().filter(|(position, _)| self.new.contains(position));
        let out = out.map(|(position, queries)| (*position, queries.as_slice()));
        self.entries(&self.new).into_iter().chain(out).collect()
    }

    /// Positions that the model's profile has not learnt of and that are still kept.
    pub(crate) fn unprofiled(&self) -> Vec<(u64, &[f16])> {
        self.entries(&self.unprofiled)
    }

    fn entries(&self, positions: &[u64]) -> Vec<(u64, &[f16])> {
        let kept = |position: u64| self.kept.get(&(self.hash(position), position)).map(Vec::as_slice);
        positions.iter().filter_map(|&position| Some((position, kept(position)?))).collect()
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
        let out = self.pushed_out.iter().map(|(position, _)| *position);
        self.new = self.kept.keys().map(|&(_, position)| position).chain(out).collect();
        self.latest_saved = 0;
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
        // Those that are kept, and the latest that were pushed out.
        assert_eq!(unsaved.len(), 40);
        sample.settle();
        assert!(sample.unsaved().is_empty());
        let next = (500..).find(|&position| sample.wants(position)).expect("a smaller hash exists");
        sample.insert(next, queries(next));
        assert_eq!(sample.unsaved(), vec![(next, queries(next).as_slice())]);
    }

    #[test]
    fn a_cut_sample_is_that_of_a_shorter_context() {
        for end in [450, 300, 250] {
            let (mut cut, short) = (filled(0..500), filled(0..end));
            cut.cut(end);
            assert_eq!(cut.by_position(), short.by_position(), "cut at {end}");
            assert!(!cut.by_position().is_empty());
            let unsaved: Vec<u64> = cut.unsaved().iter().map(|(position, _)| *position).collect();
            assert!(short.by_position().iter().all(|(position, _)| unsaved.contains(position)));
            (end..end + 150).for_each(|position| cut.insert(position, queries(position)));
            assert_eq!(cut.by_position(), filled(0..end + 150).by_position());
        }
        // What was pushed out too long ago comes back from where it was saved.
        let mut cut = filled(0..500);
        cut.settle();
        cut.cut(200);
        assert!(cut.is_forgetful() && cut.by_position() != filled(0..200).by_position());
        (0..200).for_each(|position| cut.recall(position, queries(position)));
        assert_eq!(cut.by_position(), filled(0..200).by_position());
        assert!(cut.unsaved().is_empty());
        assert!(filled(0..5000).is_forgetful() && !filled(0..40).is_forgetful());
    }

    #[test]
    fn the_latest_positions_are_remembered_whatever_the_sample_keeps() {
        let mut sample = filled(0..500);
        (100..400).rev().for_each(|position| sample.remember(position, queries(position)));
        let latest: Vec<u64> = sample.latest(LATEST).iter().map(|(position, _)| *position).collect();
        // Those of the sample are known as well.
        let kept: Vec<u64> = sample.by_position().iter().map(|(position, _)| *position).collect();
        let later: Vec<u64> = kept.iter().copied().filter(|&position| position >= 400).collect();
        assert!(!later.is_empty() && latest.ends_with(&later), "{latest:?}");
        assert_eq!(latest[LATEST - later.len() - 1], 399);
        assert!(latest.is_sorted() && latest.len() == LATEST);
        assert!(sample.latest(5).iter().all(|(position, kept)| *kept == queries(*position)));
        // All of it is saved once: in the sample, or beside it.
        assert!(sample.unsaved_latest().iter().all(|(position, _)| !kept.contains(position)));
        assert!(sample.unsaved_latest().len() > LATEST / 2);
        sample.settle_latest();
        assert!(sample.unsaved_latest().is_empty());
        sample.remember(400, queries(400));
        assert_eq!(sample.unsaved_latest().len(), usize::from(!kept.contains(&400)));

        let mut recalled = QuerySample::new(7, 20);
        sample
            .latest(LATEST)
            .iter()
            .for_each(|(position, queries)| recalled.recall(*position, queries.to_vec()));
        assert_eq!(recalled.latest(LATEST), sample.latest(LATEST));
        assert!(recalled.unsaved_latest().is_empty());
        recalled.cut(390);
        assert_eq!(recalled.latest(1)[0].0, 389);
        assert!(QuerySample::new(1, 0).latest(3).is_empty() && !QuerySample::new(1, 0).is_late(4));
    }

    #[test]
    fn a_position_enters_once_and_an_empty_sample_wants_nothing() {
        let mut sample = filled(0..3);
        sample.insert(1, vec![f16::ONE]);
        assert_eq!(sample.by_position()[1].1, queries(1).as_slice());
        assert!(!QuerySample::new(1, 0).wants(4));
    }
}
