//! What one position and KV head has touched, over all its attempts: a byte that two of them read counts once.

use super::head::Head;
use super::probe::Clusters;
use super::rows::{Resolution, Zone};
use std::ops::Range;

/// Rows and columns of a row that were read, as bits.
const KEY_CODE: u8 = 1;
const KEY_FULL: u8 = 2;
const VALUE_CODE: u8 = 4;
const VALUE_FULL: u8 = 8;

/// Sets of clusters and rows; they only grow.
pub(super) struct Touched {
    /// Clusters whose value mean was read.
    pub(super) means: Vec<bool>,
    /// Clusters whose sketches were scanned.
    pub(super) sketched: Vec<bool>,
    /// Bits per row, all segments of the head after one another.
    rows: Vec<u8>,
    /// First row of each segment in `rows`.
    first_row: Vec<usize>,
}

/// How many rows were read, by column and resolution.
#[derive(Clone, Copy, Default)]
pub(super) struct RowCounts {
    pub(super) key_codes: u64,
    pub(super) keys: u64,
    pub(super) value_codes: u64,
    pub(super) values: u64,
    /// Rows read in 4 bits, of key, value or both.
    pub(super) coded: u64,
    /// Rows read in full, of key, value or both.
    pub(super) full: u64,
}

impl Touched {
    pub(super) fn new(head: &Head<'_>) -> Self {
        let mut first_row = Vec::with_capacity(head.segments.len());
        let mut rows = 0;
        for segment in &head.segments {
            first_row.push(rows);
            rows += segment.segment.rows();
        }
        Touched {
            means: vec![false; head.clusters],
            sketched: vec![false; head.clusters],
            rows: vec![0; rows],
            first_row,
        }
    }

    /// Adds an attempt.
    pub(super) fn add(&mut self, clusters: &Clusters, zone: &Zone) {
        for (touched, mean) in self.means.iter_mut().zip(&clusters.mean_at) {
            *touched |= mean.is_some();
        }
        for opened in &zone.opened {
            self.sketched[opened.cluster] = true;
            let first = self.first_row[opened.segment] + opened.first;
            for (at, row) in (opened.start..).zip(&mut self.rows[first..first + opened.rows]) {
                *row |= match zone.key[at] {
                    Resolution::Coarse => 0,
                    Resolution::Code => KEY_CODE,
                    Resolution::Full => KEY_FULL,
                } | match zone.value[at] {
                    Resolution::Coarse => 0,
                    Resolution::Code => VALUE_CODE,
                    Resolution::Full => VALUE_FULL,
                };
            }
        }
    }

    /// Leaves what was read in full to whoever counts those rows by other means.
    pub(super) fn forget_full_rows(&mut self) {
        self.rows.iter_mut().for_each(|row| *row &= KEY_CODE | VALUE_CODE);
    }

    /// Rows `rows` of a segment of the head: whether the key's code, the key, the value's code and the value were read.
    pub(super) fn rows(&self, segment: usize, rows: Range<usize>) -> impl Iterator<Item = [bool; 4]> {
        let first = self.first_row[segment];
        self.rows[first + rows.start..first + rows.end]
            .iter()
            .map(|bits| [KEY_CODE, KEY_FULL, VALUE_CODE, VALUE_FULL].map(|bit| bits & bit != 0))
    }

    /// Bytes of the sketches that were scanned.
    pub(super) fn sketch_bytes(&self, head: &Head<'_>) -> u64 {
        let scanned = (0..head.clusters).filter(|&cluster| self.sketched[cluster]);
        scanned.map(|cluster| head.sketch_bytes(cluster)).sum()
    }

    pub(super) fn count(&self) -> RowCounts {
        let mut counts = RowCounts::default();
        for &bits in self.rows.iter().filter(|&&bits| bits != 0) {
            let has = |bit: u8| u64::from(bits & bit != 0);
            counts.key_codes += has(KEY_CODE);
            counts.keys += has(KEY_FULL);
            counts.value_codes += has(VALUE_CODE);
            counts.values += has(VALUE_FULL);
            counts.coded += has(KEY_CODE | VALUE_CODE);
            counts.full += has(KEY_FULL | VALUE_FULL);
        }
        counts
    }
}
