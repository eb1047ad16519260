//! Forgetting: CORM's rule (arXiv 2404.15949) as a policy of a context. What no query has found important for so many
//! steps is demoted, or dropped.
//!
//! A step is a query that the writer asked of a layer. A row is important to a query that gives it more than an equal
//! share of its softmax; the rule is kept by cluster of a KV head, which is important when one of its rows is. A cluster
//! that was unimportant for more than so many steps in a row is **demoted**: calls leave it closed, its summary stands
//! for it, and the predicted error says what that costs. It is demoted no more once a query finds by its summary that it
//! could be important. Rows whose clusters are demoted in every KV head of their layer may be **dropped**: segments are
//! then written again without them.

mod state;

use crate::error::Error;
use longwave_query::LayerSegment;
use longwave_storage::ColumnKind;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use state::{FORGETTING_KIND, FORGETTING_VERSION, Stored, decode, encode};

/// What becomes of rows that no query has found important for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Forgetting {
    /// They stay as they are.
    #[default]
    Never,
    /// Their clusters are opened no more, as long as no query finds them important by their summaries.
    Demote {
        /// Queries asked of a layer since one found them important, at least 1.
        steps: u32,
    },
    /// As [`Self::Demote`]; and rows that are so in every KV head of a layer are dropped for good, when enough of a
    /// segment is. No answer knows them any more, and none has a bound.
    Drop {
        /// As of [`Self::Demote`].
        steps: u32,
    },
}

impl Forgetting {
    /// After how many steps rows are demoted.
    pub fn steps(self) -> Option<u32> {
        match self {
            Forgetting::Never => None,
            Forgetting::Demote { steps } | Forgetting::Drop { steps } => Some(steps),
        }
    }

    pub(crate) fn check(self) -> Result<(), Error> {
        if self.steps() != Some(0) {
            return Ok(());
        }
        Err(Error::Invalid { what: "forgetting.steps", expected: "1 or more".into(), found: "0".into() })
    }
}

/// What a layer has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Forgotten {
    /// What becomes of rows that are not important.
    pub policy: Forgetting,
    /// Queries that the writer has asked of the layer under a policy that forgets.
    pub steps: u64,
    /// Clusters of the layer's segments, over all KV heads, ...
    pub clusters: u64,
    /// ... and how many of them are demoted.
    pub clusters_demoted: u64,
    /// Rows that were dropped.
    pub rows_dropped: u64,
}

/// When the clusters of a layer were last important, and which rows it has no more.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) policy: Forgetting,
    /// Steps so far.
    pub(crate) clock: u64,
    /// One for each segment of the layer; none where nothing is forgotten.
    pub(crate) segments: Vec<Importance>,
    pub(crate) dropped: Dropped,
}

/// When the clusters of a segment were last important.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Importance {
    /// For clusters that `last` does not have: none has been important since.
    pub(crate) born: u64,
    /// By cluster, numbered through the KV heads.
    pub(crate) last: Vec<u64>,
}

impl Importance {
    fn of(&self, cluster: usize) -> u64 {
        self.last.get(cluster).copied().unwrap_or(self.born)
    }
}

impl Memory {
    /// Of a layer with so many segments, none of which is known.
    pub(crate) fn new(policy: Forgetting, segments: usize) -> Self {
        let mut memory = Memory { policy, ..Memory::default() };
        (0..segments).for_each(|_| memory.push());
        memory
    }

    /// A segment was sealed.
    pub(crate) fn push(&mut self) {
        if self.policy != Forgetting::Never {
            self.segments.push(Importance { born: self.clock, last: Vec::new() });
        }
    }

    /// Whether a cluster of a segment is demoted.
    pub(crate) fn is_demoted(&self, segment: usize, cluster: usize) -> bool {
        let (Some(steps), Some(importance)) = (self.policy.steps(), self.segments.get(segment)) else {
            return false;
        };
        self.clock.saturating_sub(importance.of(cluster)) > u64::from(steps)
    }

    /// See [`longwave_query::LayerView::demoted`].
    pub(crate) fn demoted(&self) -> Vec<Vec<bool>> {
        if self.policy == Forgetting::Never {
            return Vec::new();
        }
        let of_segment = |(number, importance): (usize, &Importance)| -> Vec<bool> {
            (0..importance.last.len()).map(|cluster| self.is_demoted(number, cluster)).collect()
        };
        self.segments.iter().enumerate().map(of_segment).collect()
    }

    /// A call of so many queries found these clusters important, segment by segment.
    pub(crate) fn record(
        &mut self,
        queries: u64,
        important: &[Vec<u32>],
        segments: &[&LayerSegment],
    ) -> Result<(), Error> {
        self.clock += queries;
        for ((importance, important), segment) in self.segments.iter_mut().zip(important).zip(segments) {
            let clusters = segment.ladder()?.map_or(0, |ladder| ladder.postings().clusters());
            importance.last.resize(clusters, importance.born);
            for &cluster in important {
                importance.last[cluster as usize] = self.clock;
            }
        }
        Ok(())
    }

    /// Ranks of the rows of a segment that are demoted in every KV head.
    pub(crate) fn doomed(&self, number: usize, segment: &LayerSegment) -> Result<Vec<bool>, Error> {
        // Rows without clusters are not judged.
        let mut doomed = vec![segment.ladder()?.is_some(); segment.rows()];
        each_cluster(segment, |cluster, ranks| {
            if !self.is_demoted(number, cluster) {
                ranks.iter().for_each(|&rank| doomed[rank as usize] = false);
            }
        })?;
        Ok(doomed)
    }

    /// At most so many rows of a segment are doomed: as many as are demoted in the KV head that has fewest.
    pub(crate) fn doomed_at_most(&self, number: usize, segment: &LayerSegment) -> Result<u64, Error> {
        let Some(ladder) = segment.ladder()? else { return Ok(0) };
        let (postings, mut least) = (ladder.postings(), segment.rows() as u64);
        for head in 0..postings.kv_heads() {
            let first = postings.first_cluster(head);
            let bounds = postings.offsets(head)?.windows(2).enumerate();
            let demoted = bounds.filter(|(cluster, _)| self.is_demoted(number, first + cluster));
            least = least.min(demoted.map(|(_, bounds)| u64::from(bounds[1] - bounds[0])).sum());
        }
        Ok(least)
    }

    /// Segments were built anew of the rows of others: a new cluster is as important as the most important old one that
    /// it has a row of. Where that cannot be read, nothing of them is demoted for now.
    pub(crate) fn replace(&mut self, place: Range<usize>, old: &[&LayerSegment], new: &[&LayerSegment]) {
        if self.policy == Forgetting::Never {
            return;
        }
        let fresh = self.carried_over(place.clone(), old, new).unwrap_or_else(|error| {
            tracing::warn!(%error, "when rows were last important is not known any more");
            vec![Importance { born: self.clock, last: Vec::new() }; new.len()]
        });
        self.segments.splice(place, fresh);
    }

    fn carried_over(
        &self,
        place: Range<usize>,
        old: &[&LayerSegment],
        new: &[&LayerSegment],
    ) -> Result<Vec<Importance>, Error> {
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(Vec::new()) };
        let (start, heads) = (first.first_position(), first.segment().header().geometry.kv_heads as usize);
        let rows = (last.end() - start) as usize;
        // By head and position: steps, 0 for rows that are not there.
        let mut known = vec![0; heads * rows];
        for (segment, importance) in old.iter().zip(&self.segments[place]) {
            let first_clusters = first_clusters(segment)?;
            each_cluster(segment, |cluster, ranks| {
                let head = first_clusters.partition_point(|&first| first <= cluster) - 1;
                for &rank in ranks {
                    known[head * rows + (segment.position(rank) - start) as usize] = importance.of(cluster);
                }
            })?;
        }
        let mut fresh = Vec::with_capacity(new.len());
        for segment in new {
            let first_clusters = first_clusters(segment)?;
            let mut importance = Importance { born: self.clock, last: Vec::new() };
            each_cluster(segment, |cluster, ranks| {
                let head = first_clusters.partition_point(|&first| first <= cluster) - 1;
                let at = |rank: &u32| segment.position(*rank).checked_sub(start).map(|at| at as usize);
                let steps =
                    ranks.iter().filter_map(at).filter(|at| *at < rows).map(|at| known[head * rows + at]);
                importance.last.push(steps.max().unwrap_or(self.clock));
            })?;
            fresh.push(importance);
        }
        Ok(fresh)
    }

    /// Only the first so many segments are left, and nothing from position `length` on.
    pub(crate) fn cut(&mut self, segments: usize, length: u64) {
        self.segments.truncate(segments);
        self.dropped.cut(length);
    }

    pub(crate) fn forgotten(&self, segments: &[&LayerSegment]) -> Result<Forgotten, Error> {
        let (mut clusters, mut demoted) = (0, 0);
        for (number, segment) in segments.iter().enumerate() {
            let Some(ladder) = segment.ladder()? else { continue };
            let count = ladder.postings().clusters();
            clusters += count as u64;
            demoted += (0..count).filter(|&cluster| self.is_demoted(number, cluster)).count() as u64;
        }
        let rows_dropped = self.dropped.count();
        Ok(Forgotten {
            policy: self.policy,
            steps: self.clock,
            clusters,
            clusters_demoted: demoted,
            rows_dropped,
        })
    }
}

/// The number of the first cluster of each KV head.
fn first_clusters(segment: &LayerSegment) -> Result<Vec<usize>, Error> {
    let Some(ladder) = segment.ladder()? else { return Ok(vec![0]) };
    let postings = ladder.postings();
    Ok((0..postings.kv_heads()).map(|head| postings.first_cluster(head)).collect())
}

/// Calls `with` for each cluster of a segment, numbered through the KV heads, and the ranks of its rows, which are below
/// the number of rows.
fn each_cluster(segment: &LayerSegment, mut with: impl FnMut(usize, &[u32])) -> Result<(), Error> {
    let Some(ladder) = segment.ladder()? else { return Ok(()) };
    let (postings, rows) = (ladder.postings(), segment.rows());
    let column = segment.segment().column(ColumnKind::POSITIONS)?;
    let (mut ranks, mut cluster) = (Vec::new(), 0);
    for head in 0..postings.kv_heads() {
        let stored = column.bytes(head * rows * 4..(head + 1) * rows * 4)?.as_chunks::<4>().0;
        for bounds in postings.offsets(head)?.windows(2) {
            let mine = &stored[bounds[0] as usize..bounds[1] as usize];
            ranks.clear();
            ranks.extend(mine.iter().map(|rank| u32::from_le_bytes(*rank)));
            if let Some(rank) = ranks.iter().find(|&&rank| rank as usize >= rows) {
                let expected = format_args!("a rank below {rows}");
                let error = longwave_storage::Error::corrupt_column(
                    segment.segment().path(),
                    "positions",
                    0,
                    expected,
                    rank,
                );
                return Err(error.into());
            }
            with(cluster, &ranks);
            cluster += 1;
        }
    }
    Ok(())
}

/// Positions of rows that a layer has no more, as ranges in rising order that do not touch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Dropped {
    ranges: Vec<Range<u64>>,
}

impl Dropped {
    /// From ranges in rising order that do not touch; `None` from others.
    pub(crate) fn from_ranges(ranges: Vec<Range<u64>>) -> Option<Self> {
        let sound = ranges.iter().all(|range| range.start < range.end)
            && ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
        sound.then_some(Dropped { ranges })
    }

    pub(crate) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The position after the last dropped row; 0 where there is none.
    pub(crate) fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// The first position that is dropped.
    pub(crate) fn first(&self) -> Option<u64> {
        self.ranges.first().map(|range| range.start)
    }

    /// The first position from `position` on that is not dropped.
    pub(crate) fn skip(&self, position: u64) -> u64 {
        let at = self.ranges.partition_point(|range| range.end <= position);
        self.ranges.get(at).filter(|range| range.start <= position).map_or(position, |range| range.end)
    }

    /// The position after the last dropped row below `length`, at most `length`; 0 where there is none.
    pub(crate) fn end_below(&self, length: u64) -> u64 {
        let at = self.ranges.partition_point(|range| range.start < length);
        self.ranges[..at].last().map_or(0, |range| range.end.min(length))
    }

    /// Positions of `rows` rows from `first` on, less `first`; `None` where nothing lies between them.
    pub(crate) fn offsets(&self, first: u64, rows: u32) -> Option<Arc<[u32]>> {
        let (mut offsets, mut position) = (Vec::new(), first);
        while offsets.len() < rows as usize {
            position = self.skip(position);
            offsets.push(u32::try_from(position - first).ok()?);
            position += 1;
        }
        offsets.last().is_some_and(|last| *last >= rows).then(|| offsets.into())
    }

    /// Adds positions, in rising order, none of which is dropped yet.
    pub(crate) fn add(&mut self, positions: impl Iterator<Item = u64>) {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.extend(positions.map(|position| position..position + 1));
        ranges.sort_unstable_by_key(|range| range.start);
        for range in ranges {
            match self.ranges.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => self.ranges.push(range),
            }
        }
    }

    fn cut(&mut self, length: u64) {
        self.ranges.retain(|range| range.start < length);
        if let Some(last) = self.ranges.last_mut() {
            last.end = last.end.min(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_positions_are_kept_as_ranges() {
        let mut dropped = Dropped::default();
        dropped.add([5, 6, 9].into_iter());
        dropped.add([7, 20].into_iter());
        assert_eq!(dropped.ranges(), [5..8, 9..10, 20..21]);
        assert_eq!((dropped.count(), dropped.end(), dropped.first()), (5, 21, Some(5)));
        assert_eq!([4, 5, 7, 8, 9, 20].map(|at| dropped.skip(at)), [4, 8, 8, 8, 10, 21]);
        assert_eq!([5, 6, 8, 20, 99].map(|length| dropped.end_below(length)), [0, 6, 8, 10, 21]);
        assert_eq!(dropped.offsets(4, 3).as_deref(), Some(&[0, 4, 6][..]), "4, 8 and 10 are left");
        assert_eq!(dropped.offsets(10, 10), None);
        dropped.cut(7);
        assert_eq!((dropped.first(), dropped.end(), dropped.count()), (Some(5), 7, 2));
    }
}
