//! What is known of the clusters of one KV head of a segment, in the form that calls work with.

use longwave_index::ladder::{HeadLadder, steepness};
use longwave_kernels::Kernels;
use longwave_kernels::codec::record_len;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is known of the clusters of one KV head, one number a cluster, wide enough to calculate with.
#[derive(Debug, Default)]
pub(crate) struct ClusterNumbers {
    pub(crate) count: Vec<f32>,
    pub(crate) ln_count: Vec<f32>,
    pub(crate) key_spread: Vec<f32>,
    pub(crate) key_spread_max: f32,
    pub(crate) value_spread: Vec<f32>,
    pub(crate) mean_error: Vec<f32>,
    /// Squared norms of the value means, as they are coded; see [`ClusterNumbers::norms`].
    norm: Vec<AtomicU32>,
    /// Squared norm of the mean of all values.
    pub(crate) global_norm: f32,
    /// Means of the spreads over all rows.
    pub(crate) key_spread_mean: f32,
    pub(crate) value_spread_mean: f32,
    /// See [`steepness`].
    pub(crate) steepness: Vec<f32>,
}

impl ClusterNumbers {
    pub(crate) fn of(ladder: &HeadLadder<'_>) -> Self {
        let room = || Vec::with_capacity(ladder.cluster_count());
        let mut numbers = ClusterNumbers {
            count: room(),
            ln_count: room(),
            key_spread: room(),
            value_spread: room(),
            mean_error: room(),
            ..ClusterNumbers::default()
        };
        for cluster in 0..ladder.cluster_count() {
            let summary = ladder.cluster(cluster);
            numbers.count.push(summary.count);
            numbers.ln_count.push(summary.count.ln());
            numbers.key_spread.push(summary.key_spread);
            numbers.value_spread.push(summary.value_spread);
            numbers.mean_error.push(summary.mean_error);
        }
        numbers.key_spread_max = numbers.key_spread.iter().copied().fold(0.0, f32::max);
        numbers.norm.resize_with(ladder.cluster_count(), || AtomicU32::new(UNKNOWN));
        numbers.global_norm = ladder.global_value.iter().map(|x| x * x).sum();
        let mean = |spreads: &[f32]| {
            let sum: f32 = spreads.iter().zip(&numbers.count).map(|(spread, count)| spread * count).sum();
            sum / ladder.rows().max(1) as f32
        };
        let means = (mean(&numbers.key_spread), mean(&numbers.value_spread));
        (numbers.key_spread_mean, numbers.value_spread_mean) = means;
        let spreads = numbers.key_spread.iter().zip(&numbers.value_spread);
        let of_cluster = |(&key, &value): (&f32, &f32)| steepness([key, value], [means.0, means.1]);
        numbers.steepness = spreads.map(of_cluster).collect();
        numbers
    }

    /// Appends the squared norms of the value means of listed clusters, which are counted from `first`, to `norms`. The norm of
    /// a mean is computed when it is first asked for: a call asks for those of a few clusters in a hundred.
    pub(crate) fn norms(
        &self,
        ladder: &HeadLadder<'_>,
        (list, first): (&[u32], usize),
        norms: &mut Vec<f32>,
    ) {
        let record = record_len(ladder.global_value.len());
        norms.extend(list.iter().map(|&cluster| {
            let cluster = cluster as usize - first;
            // Who finds it unknown computes the same bits.
            match self.norm[cluster].load(Ordering::Relaxed) {
                UNKNOWN => {
                    let (sigma, global) = (ladder.value_mean_sigma, ladder.global_value);
                    let mean = &ladder.value_means[cluster * record..][..record];
                    let mut norm = [0.0];
                    Kernels::get().squared_norms4(sigma, global, mean, &mut norm);
                    self.norm[cluster].store(norm[0].to_bits(), Ordering::Relaxed);
                    norm[0]
                }
                known => f32::from_bits(known),
            }
        }));
    }
}

/// Bits of a norm that nobody has asked for: they are no number's.
const UNKNOWN: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use longwave_index::ladder::{LadderInput, LadderView, Moment, MomentSource};
    use longwave_index::{ClusterOptions, HeadInput, build_segment};
    use longwave_kernels::Rows;
    use longwave_storage::{
        ElementKind, Expected, Geometry, Identity, MemoryBackend, Segment, SegmentHeader, write_segment,
    };
    use std::sync::Arc;

    const DIM: usize = 16;
    const ROWS: usize = 600;

    fn segment() -> Segment {
        let numbers = |salt: usize| -> Vec<f32> {
            (0..ROWS * DIM).map(|i| ((i * i + salt * i) % 1009) as f32 / 1009.0 - 0.4).collect()
        };
        let (keys, values) = (numbers(3), numbers(7));
        let heads = [HeadInput { keys: Rows::F32(&keys), values: Rows::F32(&values) }];
        let moments = [Moment::identity(DIM)];
        let ladder =
            LadderInput { moments: &moments, bases: None, source: MomentSource::Identity, slopes: true };
        let built = build_segment(&heads, DIM, DIM, &ClusterOptions::default(), 0, Some(&ladder));
        let identity = Identity([6; 32]);
        let dims = DIM as u32;
        let header = SegmentHeader {
            id: [1; 16],
            identity,
            layer: 0,
            geometry: Geometry { kv_heads: 1, key_dim: dims, value_dim: dims, element: ElementKind::F32 },
            first_position: 0,
            rows: ROWS as u32,
            prefix_hash: [0; 32],
        };
        let backend = Arc::new(MemoryBackend::new());
        write_segment(backend.as_ref(), "a", &header, &built.columns()).unwrap();
        Segment::open(backend, "a", &Expected::of_model(identity)).unwrap()
    }

    #[test]
    fn a_norm_has_the_same_bits_whenever_it_is_asked_for() {
        let segment = segment();
        let view = LadderView::validated(&segment).unwrap().unwrap();
        let ladder = view.head(0).unwrap();
        let count = ladder.cluster_count();
        let mut all = vec![0.0; count];
        let (sigma, global) = (ladder.value_mean_sigma, ladder.global_value);
        Kernels::get().squared_norms4(sigma, global, ladder.value_means, &mut all);
        assert!(count > 9 && all.iter().all(|norm| norm.is_finite() && *norm > 0.0), "{count}");

        let numbers = ClusterNumbers::of(&ladder);
        let first = 1000;
        for list in [vec![3, 5], vec![0, 3, 8], (0..count as u32).collect(), vec![count as u32 - 1]] {
            let placed: Vec<u32> = list.iter().map(|cluster| cluster + first).collect();
            let mut norms = vec![-1.0];
            numbers.norms(&ladder, (&placed, first as usize), &mut norms);
            let expected = list.iter().map(|&cluster| all[cluster as usize].to_bits());
            assert!(norms[1..].iter().map(|norm| norm.to_bits()).eq(expected), "{list:?}");
            assert_eq!(norms[0], -1.0, "appended");
        }
    }
}
