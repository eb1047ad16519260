//! The 4 KiB pages that one position and KV head touch, counted within each column.

use super::slope::slope_bytes;
use super::touched::Touched;
use super::unit::Call;
use crate::view::{LayerSegment, Shape};
use crate::work::Pages;
use longwave_index::ladder::columns::CLUSTER_SIZE;
use longwave_kernels::bf16;
use longwave_kernels::codec::{Depth, record_len};
use longwave_storage::BLOCK_SIZE;

impl Call<'_, '_> {
    /// Distinct pages, over the columns of all segments with a ladder.
    pub(super) fn pages(&self, touched: &Touched) -> u64 {
        let mut seen = vec![false; self.reader.head.bases.len()];
        let summaries: u64 = (0..self.reader.head.segments.len())
            .map(|number| {
                // A query is turned once for each basis, with the first segment that has it.
                let first = !std::mem::replace(&mut seen[self.reader.head.segments[number].basis], true);
                self.basis_pages(first) + self.summary_pages(number, touched)
            })
            .sum();
        // A slope lies at the same place in each segment that has one.
        let (shape, mut slope) = (&self.reader.view.shape, Pages::default());
        slope.add(self.reader.kv_head, 1, slope_bytes(shape.key_dim, shape.value_dim));
        summaries + touched.slopes.len() as u64 * slope.count + self.row_pages(touched)
    }

    /// Pages of `ladder.basis`, `ladder.bits` and `ladder.scales`.
    fn basis_pages(&self, first: bool) -> u64 {
        let (d, v) = (self.reader.view.shape.key_dim, self.reader.view.shape.value_dim);
        let [mut basis, mut bits, mut scales] = [(); 3].map(|()| Pages::default());
        let start = self.reader.kv_head * (6 * d + 3 * v + 6);
        if first {
            basis.add(self.reader.kv_head, 1, d * d);
            bits.add(self.reader.kv_head, 1, d);
            scales.add(start, 6 * d + 3 * v + 6, size_of::<bf16>());
        } else {
            // What is the segment's own: shape and middle, then the mean of all values and the scalars.
            scales.add(start + 4 * d, 2 * d, size_of::<bf16>());
            scales.add(start + 6 * d + 2 * v, v + 6, size_of::<bf16>());
        }
        basis.count + bits.count + scales.count
    }

    /// Pages of centroids, counts and value means.
    fn summary_pages(&self, number: usize, touched: &Touched) -> u64 {
        let segment = &self.reader.head.segments[number];
        let [mut centroids, mut counts, mut means] = [(); 3].map(|()| Pages::default());
        let (first, clusters) = (segment.ladder.first_cluster(), segment.ladder.cluster_count());
        centroids.add(first, clusters, record_len(self.reader.view.shape.key_dim));
        counts.add(first, clusters, CLUSTER_SIZE);
        let end = segment.clusters().end as u32;
        let first_mean = touched.means.partition_point(|&cluster| (cluster as usize) < segment.first);
        for &cluster in touched.means[first_mean..].iter().take_while(|&&cluster| cluster < end) {
            means.add(
                first + cluster as usize - segment.first,
                1,
                record_len(self.reader.view.shape.value_dim),
            );
        }
        centroids.count + counts.count + means.count
    }

    /// Marks the pages of the first `len` bytes of the listed rows' records. Those of one segment come after those of the one
    /// before. Lists that are marked, each in its order, need not be merged, which takes several times as long.
    fn mark_code_pages(&self, list: &[u32], record: usize, len: usize, marks: &mut Vec<u64>) {
        let mut rows = list;
        let mut first_mark = 0;
        for segment in &self.reader.head.segments {
            let (first_row, count) = (segment.first_row, segment.ladder.rows());
            let base = self.reader.kv_head * segment.segment.rows() * record;
            let (first_page, end_page) = (base / BLOCK_SIZE, (base + count * record).div_ceil(BLOCK_SIZE));
            marks.resize(marks.len().max((first_mark + end_page - first_page).div_ceil(64)), 0);
            let (run, rest) = rows.split_at(rows.partition_point(|&row| (row as usize) < first_row + count));
            rows = rest;
            for &row in run {
                let start = base + (row as usize - first_row) * record;
                for page in start / BLOCK_SIZE..=(start + len - 1) / BLOCK_SIZE {
                    let mark = first_mark + page - first_page;
                    marks[mark / 64] |= 1 << (mark % 64);
                }
            }
            first_mark += end_page - first_page;
        }
    }

    /// Pages of sketches, codes and full rows.
    fn row_pages(&self, touched: &Touched) -> u64 {
        let shape = &self.reader.view.shape;
        let mut count = 0;
        for (number, run) in self.reader.head.runs(&touched.sketched) {
            let (segment, mut pages) = (&self.reader.head.segments[number], Pages::default());
            for &cluster in run {
                let record = segment.ladder.sketch_range(cluster as usize - segment.first);
                pages.add(record.start, record.len(), 1);
            }
            count += pages.count;
        }
        for (halves, codes, dim) in [
            (&touched.key_halves, &touched.key_codes, shape.key_dim),
            (&touched.value_halves, &touched.value_codes, shape.value_dim),
        ] {
            let mut marks = Vec::new();
            for (list, depth) in [(halves, Depth::Half), (codes, Depth::Whole)] {
                self.mark_code_pages(list, record_len(dim), depth.len(dim), &mut marks);
            }
            count += marks.iter().map(|word: &u64| u64::from(word.count_ones())).sum::<u64>();
        }
        type Size = fn(&LayerSegment, &Shape) -> usize;
        let columns: [(_, Size); 2] =
            [(&touched.keys, LayerSegment::key_bytes), (&touched.values, LayerSegment::value_bytes)];
        for (rows, size) in columns {
            for (number, run) in self.reader.head.row_runs(rows) {
                let (segment, mut pages) = (&self.reader.head.segments[number], Pages::default());
                let size = size(segment.segment, shape);
                let base = self.reader.kv_head * segment.segment.rows();
                for &row in run {
                    pages.add(base + row as usize - segment.first_row, 1, size);
                }
                count += pages.count;
            }
        }
        count
    }
}
