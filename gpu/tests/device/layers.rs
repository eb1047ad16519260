//! Layers with sealed segments and a tail, and the CPU's answers to compare with.

use crate::data::{Numbers, stored};
use longwave_gpu::cache::{BlockCache, BlockId, LeastRecentlyUsed, RowKind, StoredRows, segment_key};
use longwave_gpu::placement::{Machine, Place};
use longwave_gpu::{Caches, Device, Division, Sources, Tier, TierAnswer};
use longwave_index::ladder::columns::VALUE_SLOPE;
use longwave_index::ladder::{Basis, LadderInput, LadderView, Moment, MomentSource};
use longwave_index::{ClusterOptions, HeadInput, build_segment};
use longwave_kernels::{Dtype, Rows};
use longwave_query::{Answer, Budget, LayerSegment, LayerView, QueryBatch, RowBlock, Scoring, Shape};
use longwave_storage::{
    Backend, ColumnInfo, ColumnKind, ElementKind, Expected, Geometry, Identity, MemoryBackend, NewColumn,
    Segment, SegmentHeader, write_segment,
};
use std::sync::Arc;

pub const KV_HEADS: usize = 2;
pub const GROUP: usize = 3;
pub const LAYER: u32 = 4;
pub const SHARES: Budget = Budget::RetroInfer { retrieve: 0.3, estimate: 0.4 };
pub const MACHINE: Machine = Machine {
    transfer_bytes_per_s: 20e9,
    device_bytes_per_s: 2000e9,
    host_bytes_per_s: 1e9,
    launch_s: 10e-6,
    transfer_s: 10e-6,
};

/// A layer: two clustered segments, one that reaches into the window, and a tail.
pub struct Layer {
    pub shape: Shape,
    pub scoring: Scoring,
    pub segments: Vec<Arc<LayerSegment>>,
    tail: Vec<(Vec<u16>, Vec<u16>)>,
    pub queries: Vec<f32>,
    pub positions: usize,
    /// Clusters that stay closed, as a view has them.
    pub demoted: Vec<Vec<bool>>,
}

const ROWS: [usize; 3] = [230, 170, 40];
const TAIL: usize = 25;

impl Layer {
    pub fn new(dtype: Dtype, dim: usize, softcap: Option<f32>) -> Layer {
        Layer::with_positions(dtype, dim, softcap, 1)
    }

    /// Queries stand at the last `positions` positions.
    pub fn with_positions(dtype: Dtype, dim: usize, softcap: Option<f32>, positions: usize) -> Layer {
        Layer::built(dtype, dim, softcap, positions, false)
    }

    /// A layer whose segments are in the bases of the first, where `is_shared`.
    pub fn built(dtype: Dtype, dim: usize, softcap: Option<f32>, positions: usize, is_shared: bool) -> Layer {
        let mut numbers = Numbers(77 + dim as u64);
        let shape =
            Shape { query_heads: KV_HEADS * GROUP, kv_heads: KV_HEADS, key_dim: dim, value_dim: dim, dtype };
        let scale = (dim as f32).powf(-0.5);
        let scoring = Scoring {
            scale,
            softcap,
            sink_logits: vec![0.3, -0.2, 0.1, 0.9, -1.0, 0.0],
            sliding_window: None,
            window: 30,
        };
        let (mut first, mut bases) = (0, None);
        let segments = ROWS.map(|rows| {
            let segment = segment(dtype, dim, (rows, first), bases.as_deref(), &mut numbers);
            if is_shared && first == 0 {
                let ladder = LadderView::validated(&segment).unwrap().unwrap();
                bases = Some((0..KV_HEADS).map(|head| ladder.basis(head).unwrap()).collect::<Vec<_>>());
            }
            first += rows as u64;
            Arc::new(LayerSegment::new(segment))
        });
        let tail = (0..KV_HEADS)
            .map(|_| (noise(dtype, TAIL * dim, &mut numbers), noise(dtype, TAIL * dim, &mut numbers)));
        let (tail, queries) = (tail.collect(), numbers.units(positions * KV_HEADS * GROUP * dim, 3.0));
        Layer { shape, scoring, segments: segments.into(), tail, queries, positions, demoted: vec![] }
    }

    /// Takes keys and values out of all segments.
    pub fn keep_codes_alone(&mut self) {
        for sealed in &mut self.segments {
            *sealed = without(sealed.segment(), &[ColumnKind::KEYS, ColumnKind::VALUES]);
        }
    }

    /// Takes from a segment what it says of how its values follow its keys.
    pub fn forget_slopes(&mut self, segment: usize) {
        self.segments[segment] = without(self.segments[segment].segment(), &[VALUE_SLOPE]);
    }

    pub fn view(&self) -> LayerView<'_> {
        let rows = |stored| Rows::from_bytes(self.shape.dtype, bytemuck::cast_slice(stored)).unwrap();
        let block = RowBlock {
            first_position: ROWS.iter().sum::<usize>() as u64,
            rows: TAIL,
            keys: self.tail.iter().map(|(keys, _)| rows(keys)).collect(),
            values: self.tail.iter().map(|(_, values)| rows(values)).collect(),
        };
        let segments = self.segments.iter().map(Arc::as_ref).collect();
        let (demoted, scoring) = (self.demoted.clone(), &self.scoring);
        LayerView { shape: self.shape, scoring, segments, blocks: vec![block], demoted, watched: false }
    }

    pub fn batch(&self) -> QueryBatch<'_> {
        let end = ROWS.iter().sum::<usize>() + TAIL;
        let (data, positions) = (&self.queries[..], self.positions);
        QueryBatch { data, first_position: (end - positions) as u64, positions }
    }

    pub fn cpu(&self, budget: &Budget) -> Answer {
        longwave_query::attend(&self.view(), &self.batch(), budget).unwrap()
    }

    pub fn ask(&self, tier: &Tier, budget: &Budget, division: Division) -> TierAnswer {
        tier.attend(LAYER, &self.view(), &self.batch(), budget, division).unwrap()
    }

    /// The bound: 1e-5 of the output's length for each head, and 1e-5 of the log-sum-exp.
    pub fn expect(&self, answer: &TierAnswer, budget: &Budget, what: &str) {
        let expected = self.cpu(budget);
        assert_eq!(answer.output.len(), expected.output.len(), "{what}");
        let dim = self.shape.value_dim;
        for (head, (found, expected)) in
            answer.output.chunks(dim).zip(expected.output.chunks(dim)).enumerate()
        {
            let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let off = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let norm = length(&mut expected.iter().copied());
            assert!(norm > 0.01 && off <= 1e-5 * norm, "{what}: head {head} is off by {off} of {norm}");
        }
        for (head, (found, expected)) in answer.lse.iter().zip(&expected.lse).enumerate() {
            let off = (found - expected).abs();
            assert!(
                off <= 1e-5 * (1.0 + expected.abs()),
                "{what}: lse of head {head}: {found} for {expected}"
            );
        }
    }

    /// The clusters that RetroInfer's method reads.
    pub fn reads(&self) -> Vec<(BlockId, usize)> {
        let plan = longwave_query::explain(&self.view(), &self.batch(), &SHARES).unwrap();
        let mut reads = Vec::new();
        for head in &plan.heads {
            for id in &head.read {
                let segment = &self.segments[id.segment as usize];
                let index = segment.index().unwrap().unwrap();
                let offsets = index.head(head.kv_head).unwrap().offsets;
                let rows = offsets[id.cluster as usize + 1] - offsets[id.cluster as usize];
                let (kv_head, segment, number) = (head.kv_head as u32, segment_key(segment), id.cluster);
                reads.push((BlockId { layer: LAYER, kv_head, segment, number }, rows as usize));
            }
        }
        reads
    }

    pub fn sources(&self) -> Sources {
        let source = |kind| Arc::new(StoredRows::new(self.shape, kind, &self.segments));
        let (clusters, codes, rows) =
            (source(RowKind::Clusters), source(RowKind::Codes), source(RowKind::Full));
        Sources { clusters, codes, rows }
    }
}

/// Caches of `slots` rows for codes and for full rows, and none of clusters.
pub fn row_caches(device: &Arc<Device>, dim: usize, slots: usize) -> Caches {
    let cache = |dim| Arc::new(BlockCache::new(device, Box::new(LeastRecentlyUsed), slots, 1, dim).unwrap());
    Caches { clusters: None, codes: Some(cache(dim / 4 + 1)), rows: Some(cache(dim)) }
}

/// A segment without some columns.
fn without(segment: &Segment, kinds: &[ColumnKind]) -> Arc<LayerSegment> {
    let infos: Vec<&ColumnInfo> = segment.columns().filter(|info| !kinds.contains(&info.kind)).collect();
    let columns: Vec<NewColumn<'_>> = infos
        .iter()
        .map(|info| NewColumn {
            kind: info.kind,
            name: &info.name,
            element_size: info.element_size,
            alignment: info.alignment,
            parts: vec![segment.column(info.kind).unwrap().all().unwrap()],
        })
        .collect();
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    backend.create_dir_all("segments").unwrap();
    write_segment(backend.as_ref(), "segments/a", segment.header(), &columns).unwrap();
    let expected = Expected::of_model(segment.header().identity);
    Arc::new(LayerSegment::new(Segment::open(backend, "segments/a", &expected).unwrap()))
}

fn noise(dtype: Dtype, count: usize, numbers: &mut Numbers) -> Vec<u16> {
    let drift = numbers.unit();
    let numbers: Vec<f32> = (0..count).map(|_| numbers.unit() + drift).collect();
    stored(dtype, &numbers)
}

fn segment(
    dtype: Dtype,
    dim: usize,
    (rows, first): (usize, u64),
    bases: Option<&[Basis]>,
    numbers: &mut Numbers,
) -> Segment {
    let columns: Vec<_> = (0..KV_HEADS)
        .map(|_| (noise(dtype, rows * dim, numbers), noise(dtype, rows * dim, numbers)))
        .collect();
    let of = |stored| Rows::from_bytes(dtype, bytemuck::cast_slice(stored)).unwrap();
    let heads: Vec<_> = columns.iter().map(|(k, v)| HeadInput { keys: of(k), values: of(v) }).collect();
    let options = ClusterOptions { tokens_per_cluster: 11, iterations: 4, split_factor: None, seed: 5 };
    // Heads whose bases, and with them the layouts of sketches, differ; and segments', too.
    let moments: Vec<Moment> = (0..KV_HEADS)
        .map(|head| {
            let steep = 1.0 + head as f32 + first as f32 / 500.0;
            let queries = (0..40 * dim).map(|i| numbers.unit() / (1.0 + steep * (i % dim) as f32 / 4.0));
            Moment::from_queries(&queries.collect::<Vec<_>>(), dim)
        })
        .collect();
    let ladder = LadderInput { moments: &moments, bases, source: MomentSource::Context, slopes: true };
    let built = build_segment(&heads, dim, dim, &options, 1000 + first, Some(&ladder));
    let element = ElementKind::from_code(dtype.code()).unwrap();
    let geometry =
        Geometry { kv_heads: KV_HEADS as u32, key_dim: dim as u32, value_dim: dim as u32, element };
    let (identity, rows) = (Identity([7; 32]), rows as u32);
    let mut id = [9; 16];
    id[..8].copy_from_slice(&first.to_le_bytes());
    let header = SegmentHeader {
        id,
        identity,
        layer: LAYER,
        geometry,
        first_position: first,
        rows,
        prefix_hash: [0; 32],
    };
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new());
    backend.create_dir_all("segments").unwrap();
    write_segment(backend.as_ref(), "segments/a", &header, &built.columns()).unwrap();
    Segment::open(backend, "segments/a", &Expected::of_model(identity)).unwrap()
}

/// Clusters or rows read from slots, after a transfer, and by the CPU.
pub fn places(answer: &TierAnswer) -> [usize; 3] {
    let placement = answer.report.placement.as_ref().expect("the device took part");
    [Place::Slots, Place::Transfer, Place::Host]
        .map(|place| placement.places.iter().filter(|&&p| p == place).count())
}
