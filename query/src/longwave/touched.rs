//! What one position and KV head has touched, over all its attempts: a byte that two of them read counts once.

use super::clusters::Clusters;
use super::head::Head;
use super::select::through_head;
use super::zone::Zone;

/// Sets of clusters and rows, as ascending lists; they only grow. Both are numbered through the segments of the head.
#[derive(Default)]
pub(super) struct Touched {
    /// Clusters whose value mean was read.
    pub(super) means: Vec<u32>,
    /// Clusters whose sketches were scanned.
    pub(super) sketched: Vec<u32>,
    /// Rows whose key was read as a code and in full, and whose value was.
    pub(super) key_codes: Vec<u32>,
    pub(super) keys: Vec<u32>,
    pub(super) value_codes: Vec<u32>,
    pub(super) values: Vec<u32>,
    rows: Vec<u32>,
}

impl Touched {
    pub(super) fn clear(&mut self) {
        let lists = [&mut self.means, &mut self.sketched, &mut self.key_codes, &mut self.keys];
        lists.into_iter().for_each(Vec::clear);
        self.value_codes.clear();
        self.values.clear();
    }

    /// Adds an attempt.
    pub(super) fn add(&mut self, head: &Head<'_>, clusters: &Clusters, zone: &Zone) {
        unite(&mut self.means, &clusters.means);
        unite(&mut self.sketched, &clusters.opened);
        let lists = [
            (&zone.keys.code, &mut self.key_codes),
            (&zone.keys.full, &mut self.keys),
            (&zone.values.code, &mut self.value_codes),
            (&zone.values.full, &mut self.values),
        ];
        for (list, touched) in lists {
            through_head(head, zone, list, &mut self.rows);
            unite(touched, &self.rows);
        }
    }

    /// Leaves what was read in full to whoever counts those rows by other means.
    pub(super) fn forget_full_rows(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    /// Rows read in 4 bits, of key, value or both; and in full.
    pub(super) fn coded_and_full(&self) -> [u64; 2] {
        [united(&self.key_codes, &self.value_codes), united(&self.keys, &self.values)]
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

/// How many entries two ascending lists have together.
fn united(a: &[u32], b: &[u32]) -> u64 {
    let (mut rest, mut both) = (b, 0);
    for entry in a {
        rest = &rest[rest.iter().take_while(|other| *other < entry).count()..];
        both += u64::from(rest.first() == Some(entry));
    }
    (a.len() + b.len()) as u64 - both
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
        assert_eq!(united(&[1, 4, 6, 7], &[0, 4, 7, 9, 12]), 7);
        assert_eq!((united(&[], &[3]), united(&[3, 8], &[])), (1, 2));
    }
}
