//! The 4 KiB pages that one position and KV head touch, counted within each column.

use super::touched::Touched;
use super::unit::Call;
use crate::work::Pages;
use longwave_index::ladder::columns::CLUSTER_SIZE;
use longwave_kernels::codec::record_len;

impl Call<'_, '_> {
    /// Distinct pages, over the columns of all segments with a ladder.
    pub(super) fn pages(&self, touched: &Touched) -> u64 {
        let mut seen = vec![false; self.head.bases.len()];
        (0..self.head.segments.len())
            .map(|number| {
                // A query is turned once for each basis, with the first segment that has it.
                let first = !std::mem::replace(&mut seen[self.head.segments[number].basis], true);
                self.basis_pages(first)
                    + self.summary_pages(number, touched)
                    + self.row_pages(number, touched)
            })
            .sum()
    }

    /// Pages of `ladder.basis`, `ladder.bits` and `ladder.scales`.
    fn basis_pages(&self, first: bool) -> u64 {
        let (d, v) = (self.view.shape.key_dim, self.view.shape.value_dim);
        let [mut basis, mut bits, mut scales] = [(); 3].map(|()| Pages::default());
        let start = self.kv_head * (6 * d + 3 * v + 4);
        if first {
            basis.add(self.kv_head, 1, d * d);
            bits.add(self.kv_head, 1, d);
            scales.add(start, 6 * d + 3 * v + 4, size_of::<f32>());
        } else {
            // What is the segment's own: shape and middle, then the mean of all values and the scalars.
            scales.add(start + 4 * d, 2 * d, size_of::<f32>());
            scales.add(start + 6 * d + 2 * v, v + 4, size_of::<f32>());
        }
        basis.count + bits.count + scales.count
    }

    /// Pages of centroids, counts and value means.
    fn summary_pages(&self, number: usize, touched: &Touched) -> u64 {
        let segment = &self.head.segments[number];
        let [mut centroids, mut counts, mut means] = [(); 3].map(|()| Pages::default());
        let (first, clusters) = (segment.ladder.first_cluster(), segment.ladder.cluster_count());
        centroids.add(first, clusters, record_len(self.view.shape.key_dim));
        counts.add(first, clusters, CLUSTER_SIZE);
        for cluster in (0..clusters).filter(|local| touched.means[segment.first + local]) {
            means.add(first + cluster, 1, record_len(self.view.shape.value_dim));
        }
        centroids.count + counts.count + means.count
    }

    /// Pages of sketches, codes and full rows.
    fn row_pages(&self, number: usize, touched: &Touched) -> u64 {
        let shape = &self.view.shape;
        let segment = &self.head.segments[number];
        let [mut sketches, mut key_codes, mut value_codes, mut keys, mut values] =
            [(); 5].map(|()| Pages::default());
        let base = self.kv_head * segment.segment.rows();
        for local in 0..segment.ladder.cluster_count() {
            if !touched.sketched[segment.first + local] {
                continue;
            }
            let record = segment.ladder.sketch_range(local);
            sketches.add(record.start, record.len(), 1);
            let rows = segment.offsets[local] as usize..segment.offsets[local + 1] as usize;
            for (stored, [key_code, key, value_code, value]) in
                (base + rows.start..).zip(touched.rows(number, rows))
            {
                let count = |read: bool, pages: &mut Pages, size: usize| {
                    if read {
                        pages.add(stored, 1, size);
                    }
                };
                count(key_code, &mut key_codes, record_len(shape.key_dim));
                count(key, &mut keys, shape.key_bytes());
                count(value_code, &mut value_codes, record_len(shape.value_dim));
                count(value, &mut values, shape.value_bytes());
            }
        }
        [sketches, key_codes, value_codes, keys, values].iter().map(|pages| pages.count).sum()
    }
}
