//! What one position and KV head has touched, over all its attempts: a byte that two of them read counts once.

use super::clusters::Clusters;
use super::head::{Head, HeadSegment};
use super::select::through_head;
use super::slope::Slopes;
use super::zone::{Chosen, Zone};
use crate::plan::{PlannedRows, RowId};
use longwave_kernels::codec::Depth;
use longwave_storage::RowForm;

/// Sets of clusters and rows, as ascending lists; they only grow. Both are numbered through the segments of the head.
#[derive(Default)]
pub(super) struct Touched {
    /// Clusters whose value mean was read.
    pub(super) means: Vec<u32>,
    /// Clusters whose sketches were scanned.
    pub(super) sketched: Vec<u32>,
    /// Rows whose key was read as half a code, as a whole one and in full, and whose value was.
    pub(super) key_halves: Vec<u32>,
    pub(super) key_codes: Vec<u32>,
    pub(super) keys: Vec<u32>,
    pub(super) value_halves: Vec<u32>,
    pub(super) value_codes: Vec<u32>,
    pub(super) values: Vec<u32>,
    /// Segments whose slopes were read.
    pub(super) slopes: Vec<u32>,
    rows: Vec<u32>,
}

impl Touched {
    pub(super) fn clear(&mut self) {
        let keys = [&mut self.key_halves, &mut self.key_codes, &mut self.keys];
        let values = [&mut self.value_halves, &mut self.value_codes, &mut self.values];
        let clusters = [&mut self.means, &mut self.sketched, &mut self.slopes];
        clusters.into_iter().chain(keys).chain(values).for_each(Vec::clear);
    }

    /// Adds an attempt.
    pub(super) fn add(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone, slopes: &Slopes) {
        unite(&mut self.slopes, &slopes.read);
        unite(&mut self.means, &clusters.means);
        unite(&mut self.sketched, &clusters.opened);
        let Zone { keys, again, missed, values, .. } = zone;
        let lists: [(&[&[Chosen]], _); 6] = [
            (&[&keys.half], &mut self.key_halves),
            (&[&keys.code, &again.code, &missed.code], &mut self.key_codes),
            (&[&keys.full, &again.full], &mut self.keys),
            (&[&values.half], &mut self.value_halves),
            (&[&values.code], &mut self.value_codes),
            (&[&values.full], &mut self.values),
        ];
        for (lists, touched) in lists {
            for list in lists {
                through_head(head, zone, list, &mut self.rows);
                unite(touched, &self.rows);
            }
        }
    }

    /// The rows by name.
    pub(super) fn rows(&self, head: &Head<'_>) -> PlannedRows {
        let named = |list: &[u32]| -> Vec<RowId> {
            let of_run = |(segment, run): (usize, &[u32])| {
                let first = head.segments[segment].first_row as u32;
                run.iter().map(|row| RowId { segment: segment as u32, row: row - first }).collect::<Vec<_>>()
            };
            head.row_runs(list).flat_map(of_run).collect()
        };
        PlannedRows {
            key_halves: named(&self.key_halves),
            key_codes: named(&self.key_codes),
            keys: named(&self.keys),
            value_halves: named(&self.value_halves),
            value_codes: named(&self.value_codes),
            values: named(&self.values),
        }
    }

    /// Leaves what is read of every row where all of them are read to whoever counts that: rows in full, and sketches and
    /// codes where these are all that a segment keeps; and takes up the value means that these are decoded with.
    pub(super) fn forget_rows(&mut self, head: &Head<'_>) {
        self.keys.clear();
        self.values.clear();
        let is_kept = |segment: &HeadSegment<'_>| segment.segment.row_form() != RowForm::Codes;
        let rows = [&mut self.key_halves, &mut self.key_codes, &mut self.value_halves, &mut self.value_codes];
        for list in rows {
            let runs = head.row_runs(list).filter(|(number, _)| is_kept(&head.segments[*number]));
            *list = runs.flat_map(|(_, run)| run).copied().collect();
        }
        let runs = head.runs(&self.sketched).filter(|(number, _)| is_kept(&head.segments[*number]));
        self.sketched = runs.flat_map(|(_, run)| run).copied().collect();
        for segment in head.segments.iter().filter(|segment| !is_kept(segment)) {
            let clusters: Vec<u32> = segment.clusters().map(|cluster| cluster as u32).collect();
            unite(&mut self.means, &clusters);
        }
    }

    /// Rows of which codes were read, in part or whole, of key, value or both; and rows read in full.
    pub(super) fn coded_and_full(&self) -> [u64; 2] {
        let coded = [&self.key_halves[..], &self.key_codes, &self.value_halves, &self.value_codes];
        [union_len(coded), union_len([&self.keys[..], &self.values])]
    }

    /// Bytes of the codes of keys and of values.
    pub(super) fn code_bytes(&self, key_dim: usize, value_dim: usize) -> [u64; 2] {
        // A row of which both were read counts as whole.
        let bytes = |halves: &[u32], codes: &[u32], dim: usize| {
            let [half, whole] = [Depth::Half, Depth::Whole].map(|depth| depth.len(dim) as u64);
            let half_alone = union_len([halves, codes]) - codes.len() as u64;
            half_alone * half + codes.len() as u64 * whole
        };
        [
            bytes(&self.key_halves, &self.key_codes, key_dim),
            bytes(&self.value_halves, &self.value_codes, value_dim),
        ]
    }

    /// Bytes of the sketches that were scanned.
    pub(super) fn sketch_bytes(&self, head: &Head<'_>) -> u64 {
        sketch_bytes(head, &self.sketched)
    }
}

/// Bytes of the sketches of the listed clusters.
pub(super) fn sketch_bytes(head: &Head<'_>, list: &[u32]) -> u64 {
    let bytes = |(number, run): (usize, &[u32])| -> u64 {
        let segment = &head.segments[number];
        run.iter().map(|&c| segment.ladder.sketch_range(c as usize - segment.first).len() as u64).sum()
    };
    head.runs(list).map(bytes).sum()
}

/// Adds an ascending list to another.
fn unite(set: &mut Vec<u32>, more: &[u32]) {
    if set.is_empty() {
        set.extend_from_slice(more);
    } else if set != more {
        set.extend_from_slice(more);
        // Two rising runs: the sort finds and merges them.
        set.sort();
        set.dedup();
    }
}

/// How many different entries ascending lists have together. They are marked, since a merge of the lists takes several times as
/// long, and this is done in every call.
fn union_len<const N: usize>(lists: [&[u32]; N]) -> u64 {
    let mut entries = lists.iter().filter(|list| !list.is_empty());
    let (Some(first), another) = (entries.next(), entries.next()) else { return 0 };
    if another.is_none() {
        return first.len() as u64;
    }
    let most = lists.iter().filter_map(|list| list.last()).max();
    let mut marks = vec![0u64; most.map_or(0, |most| *most as usize / 64 + 1)];
    for entry in lists.into_iter().flatten() {
        marks[*entry as usize / 64] |= 1 << (entry % 64);
    }
    marks.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_every_entry_once() {
        let mut set = Vec::new();
        unite(&mut set, &[2, 5, 9]);
        unite(&mut set, &[2, 5, 9]);
        assert_eq!(set, [2, 5, 9]);
        unite(&mut set, &[0, 5, 6, 11]);
        assert_eq!(set, [0, 2, 5, 6, 9, 11]);
    }

    #[test]
    fn a_code_that_was_read_whole_counts_as_whole() {
        let touched = Touched {
            key_halves: vec![1, 4],
            key_codes: vec![4],
            value_halves: vec![8],
            ..Touched::default()
        };
        assert_eq!(touched.code_bytes(64, 32), [18 + 34, 10]);
        assert_eq!(touched.coded_and_full(), [3, 0]);
        assert_eq!(union_len([&[1, 63, 64][..], &[], &[64, 128, 700]]), 5);
        assert_eq!((union_len([&[], &[]]), union_len([&[], &[9, 70]])), (0, 2));
    }
}
