//! `longwave bench build`: the time of an index, and how much of it the matrix product needs at least.

use super::layer::{Chunk, Layer};
use crate::{output, progress};
use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use longwave::index::ladder::{Basis, LadderInput, LadderView, Moment, MomentSource};
use longwave::index::{BuiltSegment, HeadInput, build_segment, cluster};
use longwave::storage::{
    Backend, ElementKind, Expected, Geometry, Identity, MemoryBackend, SEGMENTS_DIR, Segment, SegmentHeader,
    write_segment,
};
use longwave::{ClusterOptions, Kernels, Rows};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Rows and columns of the product that the peak is taken from: its operands are beyond any cache, and the time of
/// its ends is small.
const PEAK_SIZE: usize = 2048;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    layer: Layer,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Row {
    tokens: u32,
    kv_heads: usize,
    head_dim: usize,
    threads: usize,
    segments: usize,
    build_s: f64,
    tokens_per_s: f64,
    clustering_s: f64,
    clustering_gflop: f64,
    peak_gflop_per_s: f64,
    efficiency: f64,
    build_efficiency: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let layer = &arguments.layer;
    layer.check()?;
    let pool = layer.pool()?;
    let threads = pool.current_num_threads();
    eprintln!(
        "building: {} synthetic tokens, {} KV heads of dim {}, f16, on {threads} threads, {}",
        layer.tokens,
        layer.kv_heads,
        layer.head_dim,
        Kernels::get().isa()
    );
    let row = measure(layer, &pool)?;
    if arguments.json { output::print_lines(&[row]) } else { output::print(&table(&row)) }
}

/// Builds segment after segment, and after each measures its clustering alone and the peak.
fn measure(layer: &Layer, pool: &rayon::ThreadPool) -> Result<Row> {
    let synthetic = layer.synthetic();
    let mut index = IndexBuild::new(layer, layer.observed(&synthetic));
    let mut peak = Peak::new();
    pool.install(|| peak.seconds());
    let (mut segments, mut build_s, mut clustering_s, mut flop) = (0, 0.0, 0.0, 0.0);
    let mut peak_s = Vec::new();
    let bar = progress::bar("building", layer.tokens as usize);
    for chunk in layer.chunks(&synthetic) {
        let started = Instant::now();
        let built = pool.install(|| index.build(&chunk));
        build_s += started.elapsed().as_secs_f64();
        index.keep_bases(&built, &chunk)?;
        drop(built);
        clustering_s += clustering(layer, pool, &chunk);
        flop += products(layer, &chunk);
        peak_s.push(pool.install(|| peak.seconds()));
        segments += 1;
        bar.inc(chunk.count as u64);
    }
    bar.finish_and_clear();
    let peak_gflop_per_s = Peak::FLOP / super::share(&mut peak_s, 0.5) / 1e9;
    let least_s = flop / 1e9 / peak_gflop_per_s;
    Ok(Row {
        tokens: layer.tokens,
        kv_heads: layer.kv_heads,
        head_dim: layer.head_dim,
        threads: pool.current_num_threads(),
        segments,
        build_s,
        tokens_per_s: f64::from(layer.tokens) / build_s,
        clustering_s,
        clustering_gflop: flop / 1e9,
        peak_gflop_per_s,
        efficiency: least_s / clustering_s,
        build_efficiency: least_s / build_s,
    })
}

/// Seconds of clustering alone, on the keys as they are.
fn clustering(layer: &Layer, pool: &rayon::ThreadPool, chunk: &Chunk) -> f64 {
    let mut keys = vec![0.0; chunk.keys.len()];
    Kernels::get().widen(Rows::F16(&chunk.keys), &mut keys);
    let (options, dim) = (ClusterOptions::ladder().at(chunk.first as u64), layer.head_dim);
    let started = Instant::now();
    pool.install(|| {
        let heads = keys.par_chunks_exact(chunk.count * dim).enumerate().with_max_len(1);
        heads.for_each(|(head, keys)| {
            black_box(cluster(keys, dim, &options, head as u64));
        });
    });
    started.elapsed().as_secs_f64()
}

/// Floating-point operations of the products of rows and centroids, all rounds and the last assignment.
fn products(layer: &Layer, chunk: &Chunk) -> f64 {
    let ClusterOptions { tokens_per_cluster, iterations, .. } =
        ClusterOptions::ladder().at(chunk.first as u64);
    let clusters = (chunk.count / tokens_per_cluster as usize).max(1);
    let round = 2.0 * (chunk.count * clusters * layer.head_dim) as f64;
    round * f64::from(iterations + 1) * layer.kv_heads as f64
}

/// A large matrix product, by the library that clusters.
struct Peak {
    a: Mat<f32>,
    b: Mat<f32>,
    product: Mat<f32>,
}

impl Peak {
    const FLOP: f64 = 2.0 * (PEAK_SIZE * PEAK_SIZE * PEAK_SIZE) as f64;

    fn new() -> Self {
        let matrix = |step: usize| {
            Mat::from_fn(PEAK_SIZE, PEAK_SIZE, |row, column| ((row * step + column) % 17) as f32 - 8.0)
        };
        Peak { a: matrix(5), b: matrix(3), product: matrix(1) }
    }

    /// Seconds of one product on all threads of the current pool.
    fn seconds(&mut self) -> f64 {
        let started = Instant::now();
        let parallel = Par::rayon(rayon::current_num_threads());
        matmul(&mut self.product, Accum::Replace, &self.a, &self.b, 1.0, parallel);
        black_box(&self.product);
        started.elapsed().as_secs_f64()
    }
}

/// What sealing does to rows before they are written, without the store around it.
pub(super) struct IndexBuild {
    kv_heads: usize,
    dim: usize,
    moments: Vec<Moment>,
    /// Fixed by the first segment.
    bases: Option<Vec<Basis>>,
}

impl IndexBuild {
    /// Of `layer`, with the queries `[query_heads, dim]` that are known.
    pub(super) fn new(layer: &Layer, queries: Vec<Vec<f32>>) -> Self {
        let (kv_heads, dim, scale) = (layer.kv_heads, layer.head_dim, layer.scale());
        let group = layer.query_heads / kv_heads * dim;
        let moment = |head: usize| {
            let of_head = queries.iter().flat_map(|query| &query[head * group..(head + 1) * group]);
            let scaled: Vec<f32> = of_head.map(|x| x * scale).collect();
            Moment::from_queries(&scaled, dim)
        };
        IndexBuild { kv_heads, dim, moments: (0..kv_heads).map(moment).collect(), bases: None }
    }

    /// Clusters, summaries and ladder of one segment, on the current pool.
    pub(super) fn build(&self, chunk: &Chunk) -> BuiltSegment {
        let part = chunk.count * self.dim;
        let parts = chunk.keys.chunks_exact(part).zip(chunk.values.chunks_exact(part));
        let heads: Vec<HeadInput<'_>> = parts
            .map(|(keys, values)| HeadInput { keys: Rows::F16(keys), values: Rows::F16(values) })
            .collect();
        let ladder = LadderInput {
            moments: &self.moments,
            bases: self.bases.as_deref(),
            source: MomentSource::Context,
            slopes: true,
        };
        let stream = (chunk.first as u64) << 8;
        let options = ClusterOptions::ladder().at(chunk.first as u64);
        build_segment(&heads, self.dim, self.dim, &options, stream, Some(&ladder))
    }

    /// Keeps the bases of the first segment for those after it, as a store does.
    pub(super) fn keep_bases(&mut self, built: &BuiltSegment, chunk: &Chunk) -> Result<()> {
        if self.bases.is_some() {
            return Ok(());
        }
        let backend = MemoryBackend::new();
        backend.create_dir_all(SEGMENTS_DIR)?;
        let path = format!("{SEGMENTS_DIR}/bench.segment");
        let dim = self.dim as u32;
        let header = SegmentHeader {
            id: [1; 16],
            identity: Identity([1; 32]),
            layer: 0,
            geometry: Geometry {
                kv_heads: self.kv_heads as u32,
                key_dim: dim,
                value_dim: dim,
                element: ElementKind::F16,
            },
            first_position: chunk.first as u64,
            rows: chunk.count as u32,
            prefix_hash: [0; 32],
        };
        write_segment(&backend, &path, &header, &built.columns())?;
        let expected = Expected::of_model(header.identity);
        let segment = Segment::open(std::sync::Arc::new(backend), &path, &expected)?;
        let ladder = LadderView::open(&segment)?;
        ensure!(ladder.is_some(), "the built segment has no ladder");
        let bases = ladder
            .into_iter()
            .flat_map(|ladder| (0..self.kv_heads).map(|head| ladder.basis(head)).collect::<Vec<_>>());
        self.bases = Some(bases.collect::<Result<_, _>>()?);
        Ok(())
    }
}

fn table(row: &Row) -> String {
    format!(
        "{:>9} {:>8} {:>8} {:>9} {:>11} {:>13} {:>12} {:>12} {:>10} {:>12}\n\
         {:>9} {:>8} {:>8} {:>9.3} {:>11.0} {:>13.3} {:>12.1} {:>12.1} {:>9.1}% {:>11.1}%\n",
        "tokens",
        "segments",
        "threads",
        "build s",
        "tokens/s",
        "clustering s",
        "products GF",
        "peak GF/s",
        "efficiency",
        "of the build",
        row.tokens,
        row.segments,
        row.threads,
        row.build_s,
        row.tokens_per_s,
        row.clustering_s,
        row.clustering_gflop,
        row.peak_gflop_per_s,
        row.efficiency * 100.0,
        row.build_efficiency * 100.0
    )
}
