//! The bytes that one position and KV head touch.

use super::clusters::Clusters;
use super::head::Head;
use super::slope::slope_bytes;
use super::touched::{Touched, sketch_bytes};
use super::unit::Call;
use super::zone::{Chosen, Zone};
use crate::report::Traffic;
use crate::view::{LayerSegment, Shape};
use longwave_index::ladder::columns::CLUSTER_SIZE;
use longwave_kernels::codec::{Depth, record_len};

impl Call<'_, '_> {
    /// What is read at any tau: centroids, counts and bases.
    pub(super) fn fixed(shape: &Shape, head: &Head<'_>) -> Traffic {
        let clusters = head.clusters as u64;
        Traffic {
            centroids: clusters * record_len(shape.key_dim) as u64,
            counts: clusters * CLUSTER_SIZE as u64,
            bases: head.basis_bytes(shape.key_dim, shape.value_dim),
            ..Traffic::default()
        }
    }

    pub(super) fn traffic(shape: &Shape, head: &Head<'_>, touched: &Touched) -> Traffic {
        let bytes = |list: &[u32], size: usize| (list.len() * size) as u64;
        let full = |list: &[u32], size: fn(&LayerSegment, &Shape) -> usize| -> u64 {
            let runs = head.row_runs(list);
            runs.map(|(number, run)| (run.len() * size(head.segments[number].segment, shape)) as u64).sum()
        };
        let [key_codes, value_codes] = touched.code_bytes(shape.key_dim, shape.value_dim);
        let fixed = Self::fixed(shape, head);
        Traffic {
            bases: fixed.bases + bytes(&touched.slopes, slope_bytes(shape.key_dim, shape.value_dim)),
            keys: full(&touched.keys, LayerSegment::key_bytes),
            values: full(&touched.values, LayerSegment::value_bytes),
            value_means: bytes(&touched.means, record_len(shape.value_dim)),
            sketches: touched.sketch_bytes(head),
            key_codes,
            value_codes,
            ..fixed
        }
    }

    /// How many slopes fit into so many bytes beside what an attempt reads.
    pub(super) fn slopes_within(
        bytes_max: u64,
        shape: &Shape,
        head: &Head<'_>,
        (clusters, zone): (&Clusters, &Zone),
    ) -> usize {
        let spent = Self::fixed(shape, head).bytes() + Self::chosen_bytes(shape, head, clusters, zone);
        bytes_max.saturating_sub(spent) as usize / slope_bytes(shape.key_dim, shape.value_dim)
    }

    /// Bytes of means, sketches and rows that an attempt reads.
    pub(super) fn chosen_bytes(shape: &Shape, head: &Head<'_>, clusters: &Clusters, zone: &Zone) -> u64 {
        let bytes = |list: &[Chosen], size: usize| (list.len() * size) as u64;
        let full = |list: &[Chosen], size: fn(&LayerSegment, &Shape) -> usize| -> u64 {
            let segment = |chosen: &Chosen| &head.segments[zone.opened[chosen.opened as usize].segment];
            list.iter().map(|chosen| size(segment(chosen).segment, shape) as u64).sum()
        };
        (clusters.means.len() * record_len(shape.value_dim)) as u64
            + sketch_bytes(head, &clusters.opened)
            + bytes(&zone.keys.half, Depth::Half.len(shape.key_dim))
            + bytes(&zone.keys.code, Depth::Whole.len(shape.key_dim))
            + full(&zone.keys.full, LayerSegment::key_bytes)
            + bytes(&zone.again.code, Depth::Whole.len(shape.key_dim) - Depth::Half.len(shape.key_dim))
            + full(&zone.again.full, LayerSegment::key_bytes)
            + bytes(&zone.missed.code, Depth::Whole.len(shape.key_dim))
            + bytes(&zone.values.half, Depth::Half.len(shape.value_dim))
            + bytes(&zone.values.code, Depth::Whole.len(shape.value_dim))
            + full(&zone.values.full, LayerSegment::value_bytes)
    }
}
