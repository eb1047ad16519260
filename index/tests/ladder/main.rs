//! The resolution ladder: from rows to a segment and back.

mod basis;
mod contents;
mod refusals;

use std::sync::Arc;

use longwave_index::ladder::{Basis, LadderInput, LadderView, Moment, MomentSource};
use longwave_index::{BuiltSegment, ClusterOptions, HeadInput, build_segment};
use longwave_kernels::{Dtype, Rows, f16};
use longwave_storage::{
    Backend, ElementKind, Expected, Geometry, Identity, MemoryBackend, NewColumn, Segment, SegmentHeader,
    write_segment,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const HEADS: usize = 2;
const ROWS: usize = 1100;
const KEY_DIM: usize = 40;
const VALUE_DIM: usize = 24;
const IDENTITY: Identity = Identity([3; 32]);
const OPTIONS: ClusterOptions =
    ClusterOptions { tokens_per_cluster: 32, iterations: 4, split_factor: Some(2.0), seed: 5 };

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Random {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Of zero mean and unit variance, near enough to Gaussian.
    fn gaussian(&mut self) -> f32 {
        (0..12).map(|_| self.0.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0.next_u32() as usize % limit
    }
}

/// `rows` rows around a few centres, with unequal deviations along directions that are no axes.
fn correlated(random: &mut Random, rows: usize, dim: usize) -> Vec<f32> {
    let centres: Vec<f32> = (0..20 * dim).map(|_| 2.0 * random.gaussian()).collect();
    let mut all = Vec::new();
    for _ in 0..rows {
        let centre = random.below(20) * dim;
        let hidden: Vec<f32> = (0..dim).map(|i| random.gaussian() * 3.0 / (1.0 + i as f32 / 3.0)).collect();
        // Neighbours share what is hidden.
        all.extend((0..dim).map(|i| 5.0 + centres[centre + i] + hidden[i] + 0.7 * hidden[(i + 7) % dim]));
    }
    all
}

/// Queries that look along few directions.
fn queries(random: &mut Random, count: usize, dim: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for _ in 0..count {
        let hidden: Vec<f32> = (0..dim).map(|i| random.gaussian() * 2.0 / (1.0 + i as f32)).collect();
        all.extend((0..dim).map(|i| hidden[i] + hidden[(i + 11) % dim]));
    }
    all
}

/// Rows of one layer, and what its ladder is built with.
struct Layer {
    keys: Vec<Vec<f16>>,
    values: Vec<Vec<f16>>,
    moments: Vec<Moment>,
    bases: Option<Vec<Basis>>,
}

impl Layer {
    fn new(seed: u64) -> Layer {
        let mut random = Random::new(seed);
        let narrow = |rows: Vec<f32>| rows.into_iter().map(f16::from_f32).collect();
        Layer {
            keys: (0..HEADS).map(|_| narrow(correlated(&mut random, ROWS, KEY_DIM))).collect(),
            values: (0..HEADS).map(|_| narrow(correlated(&mut random, ROWS, VALUE_DIM))).collect(),
            moments: (0..HEADS)
                .map(|_| Moment::from_queries(&queries(&mut random, 150, KEY_DIM), KEY_DIM))
                .collect(),
            bases: None,
        }
    }

    /// Adds to each element of a value two elements of its key.
    fn values_follow_keys(&mut self) {
        for (keys, values) in self.keys.iter().zip(&mut self.values) {
            for (key, value) in keys.chunks_exact(KEY_DIM).zip(values.chunks_exact_mut(VALUE_DIM)) {
                for (j, x) in value.iter_mut().enumerate() {
                    let [a, b] = [3 * j % KEY_DIM, (j + 5) % KEY_DIM].map(|i| key[i].to_f32());
                    *x = f16::from_f32(x.to_f32() + 1.5 * a - 0.5 * b);
                }
            }
        }
    }

    fn build(&self) -> BuiltSegment {
        let pairs = self.keys.iter().zip(&self.values);
        let heads: Vec<_> =
            pairs.map(|(k, v)| HeadInput { keys: Rows::F16(k), values: Rows::F16(v) }).collect();
        let input = LadderInput {
            moments: &self.moments,
            bases: self.bases.as_deref(),
            source: MomentSource::Context,
            slopes: false,
        };
        build_segment(&heads, KEY_DIM, VALUE_DIM, &OPTIONS, 600, Some(&input))
    }
}

fn write_and_open(columns: &[NewColumn<'_>], rows: usize) -> Segment {
    let geometry = Geometry {
        kv_heads: HEADS as u32,
        key_dim: KEY_DIM as u32,
        value_dim: VALUE_DIM as u32,
        element: ElementKind::from_code(Dtype::F16.code()).unwrap(),
    };
    let header = SegmentHeader {
        id: [4; 16],
        identity: IDENTITY,
        layer: 2,
        geometry,
        first_position: 8192,
        rows: rows as u32,
        prefix_hash: [0; 32],
    };
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    backend.create_dir_all("segments").unwrap();
    write_segment(backend.as_ref(), "segments/a", &header, columns).unwrap();
    Segment::open(backend, "segments/a", &Expected::of_model(IDENTITY)).unwrap()
}

fn open(segment: &Segment) -> LadderView<'_> {
    LadderView::open(segment).unwrap().expect("a ladder was written")
}
