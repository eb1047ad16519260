//! Whole calls: by the CPU, by the device, and divided at every proportion.

use crate::data::{Numbers, stored};
use longwave_gpu::cache::{BlockCache, BlockId, LeastRecentlyUsed, RowSource, Scored};
use longwave_gpu::placement::{Machine, Place};
use longwave_gpu::{Device, Division, Error, Tier, TierAnswer};
use longwave_gpu_emulation::install;
use longwave_index::{ClusterOptions, HeadInput, IndexView, build_segment};
use longwave_kernels::{Dtype, Rows};
use longwave_query::{Budget, LayerSegment, LayerView, QueryBatch, RowBlock, Scoring, Shape};
use longwave_storage::{
    Backend, ColumnKind, ElementKind, Expected, Geometry, Identity, MemoryBackend, Segment, SegmentHeader,
    write_segment,
};
use std::sync::Arc;

const KV_HEADS: usize = 2;
const GROUP: usize = 3;
const SHARES: (f64, f64) = (0.3, 0.4);
const MACHINE: Machine = Machine {
    transfer_bytes_per_s: 20e9,
    device_bytes_per_s: 2000e9,
    host_bytes_per_s: 1e9,
    launch_s: 10e-6,
    transfer_s: 10e-6,
};

/// A layer: two clustered segments, one that reaches into the window, and a tail.
struct Layer {
    shape: Shape,
    scoring: Scoring,
    segments: Vec<Arc<LayerSegment>>,
    tail: Vec<(Vec<u16>, Vec<u16>)>,
    queries: Vec<f32>,
}

const ROWS: [usize; 3] = [230, 170, 40];
const TAIL: usize = 25;

impl Layer {
    fn new(dtype: Dtype, dim: usize, softcap: Option<f32>) -> Layer {
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
        let mut first = 0;
        let segments = ROWS.map(|rows| {
            let segment = segment(dtype, dim, rows, first, &mut numbers);
            first += rows as u64;
            Arc::new(LayerSegment::new(segment))
        });
        let tail = (0..KV_HEADS)
            .map(|_| (noise(dtype, TAIL * dim, &mut numbers), noise(dtype, TAIL * dim, &mut numbers)));
        let (tail, queries) = (tail.collect(), numbers.units(KV_HEADS * GROUP * dim, 3.0));
        Layer { shape, scoring, segments: segments.into(), tail, queries }
    }

    fn view(&self) -> LayerView<'_> {
        let rows = |stored| Rows::from_bytes(self.shape.dtype, bytemuck::cast_slice(stored)).unwrap();
        let block = RowBlock {
            first_position: ROWS.iter().sum::<usize>() as u64,
            rows: TAIL,
            keys: self.tail.iter().map(|(keys, _)| rows(keys)).collect(),
            values: self.tail.iter().map(|(_, values)| rows(values)).collect(),
        };
        let segments = self.segments.iter().map(Arc::as_ref).collect();
        LayerView {
            shape: self.shape,
            scoring: &self.scoring,
            segments,
            blocks: vec![block],
            demoted: vec![],
            watched: false,
        }
    }

    fn batch(&self) -> QueryBatch<'_> {
        let last = ROWS.iter().sum::<usize>() + TAIL - 1;
        QueryBatch { data: &self.queries, first_position: last as u64, positions: 1 }
    }

    fn cpu(&self) -> (Vec<f32>, Vec<f32>) {
        let budget = Budget::RetroInfer { retrieve: SHARES.0, estimate: SHARES.1 };
        let answer = longwave_query::attend(&self.view(), &self.batch(), &budget).unwrap();
        (answer.output, answer.lse)
    }

    fn ask(&self, tier: &Tier, division: Division) -> TierAnswer {
        tier.attend(4, &self.view(), &self.batch(), SHARES, division).unwrap()
    }

    /// The bound: 1e-5 of the output's length for each head, and 1e-5 of the log-sum-exp.
    fn expect(&self, answer: &TierAnswer, what: &str) {
        let (output, lse) = self.cpu();
        for (head, (found, expected)) in
            answer.output.chunks(self.shape.value_dim).zip(output.chunks(self.shape.value_dim)).enumerate()
        {
            let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let off = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let norm = length(&mut expected.iter().copied());
            assert!(norm > 0.01 && off <= 1e-5 * norm, "{what}: head {head} is off by {off} of {norm}");
            let off = (answer.lse[head] - lse[head]).abs();
            assert!(off <= 1e-5 * (1.0 + lse[head].abs()), "{what}: lse of head {head}");
        }
    }

    fn reads(&self) -> Vec<(BlockId, usize)> {
        let budget = Budget::RetroInfer { retrieve: SHARES.0, estimate: SHARES.1 };
        let plan = longwave_query::explain(&self.view(), &self.batch(), &budget).unwrap();
        let mut reads = Vec::new();
        for head in &plan.heads {
            for id in &head.read {
                let index = self.segments[id.segment as usize].index().unwrap().unwrap();
                let offsets = index.head(head.kv_head).unwrap().offsets;
                let rows = offsets[id.cluster as usize + 1] - offsets[id.cluster as usize];
                let (kv_head, segment, cluster) = (head.kv_head as u32, id.segment, id.cluster);
                reads.push((BlockId { layer: 4, kv_head, segment, cluster }, rows as usize));
            }
        }
        reads
    }

    fn source(&self) -> Arc<dyn RowSource> {
        Arc::new(Source { segments: self.segments.clone(), dim: self.shape.key_dim })
    }
}

struct Source {
    segments: Vec<Arc<LayerSegment>>,
    dim: usize,
}

impl RowSource for Source {
    fn read(&self, block: BlockId, keys: &mut [u16], values: &mut [u16]) -> Result<(), Error> {
        let segment = &self.segments[block.segment as usize];
        let index = IndexView::open(segment.segment()).unwrap().unwrap();
        let start = index.head(block.kv_head as usize).unwrap().offsets[block.cluster as usize] as usize;
        let at = (block.kv_head as usize * segment.rows() + start) * self.dim * 2;
        for (kind, to) in [(ColumnKind::KEYS, keys), (ColumnKind::VALUES, values)] {
            let bytes = segment.segment().column(kind).unwrap().bytes(at..at + to.len() * 2).unwrap();
            to.copy_from_slice(bytemuck::cast_slice(bytes));
        }
        Ok(())
    }
}

fn noise(dtype: Dtype, count: usize, numbers: &mut Numbers) -> Vec<u16> {
    let drift = numbers.unit();
    let numbers: Vec<f32> = (0..count).map(|_| numbers.unit() + drift).collect();
    stored(dtype, &numbers)
}

fn segment(dtype: Dtype, dim: usize, rows: usize, first: u64, numbers: &mut Numbers) -> Segment {
    let columns: Vec<_> = (0..KV_HEADS)
        .map(|_| (noise(dtype, rows * dim, numbers), noise(dtype, rows * dim, numbers)))
        .collect();
    let of = |stored| Rows::from_bytes(dtype, bytemuck::cast_slice(stored)).unwrap();
    let heads: Vec<_> = columns.iter().map(|(k, v)| HeadInput { keys: of(k), values: of(v) }).collect();
    let options = ClusterOptions { tokens_per_cluster: 11, iterations: 4, split_factor: None, seed: 5 };
    let built = build_segment(&heads, dim, dim, &options, 1000 + first, None);
    let element = ElementKind::from_code(dtype.code()).unwrap();
    let geometry =
        Geometry { kv_heads: KV_HEADS as u32, key_dim: dim as u32, value_dim: dim as u32, element };
    let (identity, rows) = (Identity([7; 32]), rows as u32);
    let header = SegmentHeader {
        id: [9; 16],
        identity,
        layer: 4,
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

fn places(answer: &TierAnswer) -> [usize; 3] {
    let placement = answer.placement.as_ref().expect("the device took part");
    [Place::Slots, Place::Transfer, Place::Host]
        .map(|place| placement.places.iter().filter(|&&p| p == place).count())
}

#[test]
fn every_division_gives_the_same_answer() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    for (dtype, dim, softcap) in
        [(Dtype::F16, 64, None), (Dtype::Bf16, 128, Some(20.0)), (Dtype::F16, 96, None)]
    {
        let layer = Layer::new(dtype, dim, softcap);
        let reads = layer.reads();
        assert!(reads.len() > 10);
        let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 200, 8, dim).unwrap());
        let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 17).unwrap();
        for pinned in [0, reads.len() / 2, reads.len()] {
            for &(block, rows) in &reads[..pinned] {
                cache.pin(block, rows as u32, &layer.source());
            }
            cache.settle();
            assert_eq!(cache.slots().len(), pinned);
            for per_mille in [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000] {
                let answer = layer.ask(&tier, Division::HostPerMille(per_mille));
                let [slots, transfer, host] = places(&answer);
                assert_eq!(host, reads.len() * per_mille as usize / 1000);
                assert!(slots <= pinned && transfer <= reads.len() - pinned);
                layer.expect(
                    &answer,
                    &format!("{dtype} {dim}, {pinned} pinned, {per_mille} of 1000 on the CPU"),
                );
            }
            let answer = layer.ask(&tier, Division::Cost);
            assert_eq!(places(&answer)[0], pinned);
            layer.expect(&answer, "by cost");
        }
        assert_eq!(tier.fallbacks(), 0);
    }
}

#[test]
fn what_was_read_is_there_the_next_time_and_is_not_copied_again() {
    let emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), 200, 4, 64).unwrap());
    let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 16).unwrap();
    let first = layer.ask(&tier, Division::HostPerMille(0));
    assert_eq!(places(&first), [0, layer.reads().len(), 0]);
    let scored = layer.reads().into_iter().map(|(block, rows)| Scored {
        block,
        rows: rows as u32,
        score: 0.1,
        wanted: true,
    });
    cache.note(0, scored.collect(), &layer.source());
    cache.settle();
    let copied = emulation.is_emulated().then(|| emulation.copied());
    let second = layer.ask(&tier, Division::HostPerMille(0));
    assert_eq!(places(&second), [layer.reads().len(), 0, 0]);
    // Queries and lists, and no row.
    if let Some(copied) = copied {
        assert!(emulation.copied() - copied < 8192, "{} bytes", emulation.copied() - copied);
    }
    layer.expect(&second, "from slots");
    let report = cache.report();
    assert_eq!((report.hits, report.admissions), (0, layer.reads().len() as u64));
}

#[test]
fn blocks_that_leave_are_not_served_from_slots_that_others_have() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let layer = Layer::new(Dtype::F16, 64, None);
    let reads = layer.reads();
    // Room for a third of what is read: every step throws out what the one before brought in.
    let slots = reads.iter().map(|(_, rows)| rows.div_ceil(4)).sum::<usize>() / 3;
    let cache = Arc::new(BlockCache::new(&device, Box::new(LeastRecentlyUsed), slots, 4, 64).unwrap());
    let tier = Tier::new(&device, MACHINE, Some(cache.clone()), 1 << 16).unwrap();
    for step in 0..12 {
        let some = reads.iter().skip(step % 4).step_by(4);
        let scored = some.map(|&(block, rows)| Scored { block, rows: rows as u32, score: 0.1, wanted: true });
        cache.note(step as u64, scored.collect(), &layer.source());
        // Answered while the thread is at work, and when it is done.
        layer.expect(&layer.ask(&tier, Division::HostPerMille(0)), "while blocks come and go");
        cache.settle();
        layer.expect(&layer.ask(&tier, Division::HostPerMille(300)), "after blocks came and went");
    }
    assert!(cache.report().evictions > 10, "{:?}", cache.report());
}

#[test]
fn calls_without_kernels_are_the_cpus_and_no_failure() {
    let _emulation = install();
    let device = Arc::new(Device::open(0).unwrap());
    let tier = Tier::new(&device, MACHINE, None, 1 << 16).unwrap();
    let layer = Layer::new(Dtype::F16, 80, None);
    let answer = layer.ask(&tier, Division::HostPerMille(0));
    assert!(answer.placement.is_none());
    layer.expect(&answer, "80 elements");
    assert_eq!(tier.fallbacks(), 0);
}

/// What needs a device that does as it is told.
mod emulated {
    use super::*;

    #[test]
    fn a_device_that_fails_leaves_the_answer_to_the_cpu() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        let layer = Layer::new(Dtype::F16, 64, None);
        let tier = Tier::new(&device, MACHINE, None, 1 << 16).unwrap();
        for nth in 1..=6 {
            emulation.fail_allocation(nth);
            let answer = layer.ask(&tier, Division::HostPerMille(0));
            assert_eq!(
                (answer.placement.is_none(), tier.fallbacks()),
                (true, nth as u64),
                "allocation {nth}"
            );
            layer.expect(&answer, "out of memory");
        }
        emulation.fail_allocation(0);
        for nth in 1..=3 {
            emulation.fail_launch(nth);
            let answer = layer.ask(&tier, Division::HostPerMille(0));
            assert_eq!(
                (answer.placement.is_none(), tier.fallbacks()),
                (true, 6 + nth as u64),
                "launch {nth}"
            );
            layer.expect(&answer, "a launch that is refused");
        }
        emulation.fail_launch(0);
        let answer = layer.ask(&tier, Division::HostPerMille(0));
        assert!(answer.placement.is_some() && tier.fallbacks() == 9, "the device goes on");
        layer.expect(&answer, "afterwards");
        // Clusters that do not fit into the staging area are the CPU's, too.
        let small = Tier::new(&device, MACHINE, None, 64).unwrap();
        layer.expect(&layer.ask(&small, Division::HostPerMille(0)), "no room to stage");
        assert_eq!(small.fallbacks(), 1);
    }

    #[test]
    fn a_device_without_memory_makes_no_cache() {
        let emulation = install();
        let device = Arc::new(Device::open(0).unwrap());
        emulation.set_memory(1 << 20);
        let error = BlockCache::new(&device, Box::new(LeastRecentlyUsed), 1000, 8, 64).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { what: "a buffer", bytes: 1000 * 8 * 2 * 64 * 2 });
    }
}
