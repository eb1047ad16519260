//! Each kernel alone, on one thread, over rows that do not fit the caches and rows that do: `cargo bench -p longwave-kernels`.
//!
//! The shape is that of the figures in docs/benchmarks.md: four query heads a KV head, dimension 128, f16. Throughput is in
//! bytes of rows, or in elements where the time does not depend on rows.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longwave_kernels::codec::{
    Laid, SketchLayout, SketchQuery, Summaries, encode_sketch, encode4, record_len,
};
use longwave_kernels::{AttentionState, Kernels, Rows, f16};

const HEADS: usize = 4;
const DIM: usize = 128;
/// 128 KiB of f16 rows, which a second-level cache holds, and 32 MiB.
const ROWS: [usize; 2] = [512, 131_072];
/// Rows of a cluster.
const CLUSTER_ROWS: usize = 32;

/// Numbers between -1 and 1 that look arbitrary and are always the same.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(30);
    group
}

/// Every eighth row, in an order without runs.
fn listed(rows: usize) -> Vec<u32> {
    (0..rows / 8).map(|at| (at * 5_003 % rows) as u32).collect()
}

fn full_rows(criterion: &mut Criterion) {
    let kernels = Kernels::get();
    let queries = numbers(HEADS * DIM);
    for rows in ROWS {
        let stored: Vec<f16> = numbers(rows * DIM).into_iter().map(f16::from_f32).collect();
        let view = Rows::F16(&stored);
        let listed = listed(rows);
        let mut scores = vec![0.0; rows * HEADS];
        let mut out = vec![0.0; HEADS * DIM];
        let weights = numbers(rows * HEADS);
        let row_bytes = (DIM * size_of::<f16>()) as u64;

        let mut group = group(criterion, "rows_f16");
        group.throughput(Throughput::Bytes(rows as u64 * row_bytes));
        group.bench_function(BenchmarkId::new("scores", rows), |bencher| {
            bencher.iter(|| kernels.scores(black_box(&queries), HEADS, DIM, view, &mut scores));
        });
        group.bench_function(BenchmarkId::new("accumulate", rows), |bencher| {
            bencher.iter(|| kernels.accumulate(black_box(&weights), HEADS, DIM, view, &mut out));
        });
        group.throughput(Throughput::Bytes(listed.len() as u64 * row_bytes));
        group.bench_function(BenchmarkId::new("scores_gathered", rows), |bencher| {
            let scores = &mut scores[..listed.len() * HEADS];
            bencher.iter(|| kernels.scores_gathered(black_box(&queries), HEADS, DIM, view, &listed, scores));
        });
        group.bench_function(BenchmarkId::new("accumulate_gathered", rows), |bencher| {
            let weights = &weights[..listed.len() * HEADS];
            bencher.iter(|| {
                kernels.accumulate_gathered(black_box(weights), HEADS, DIM, view, &listed, &mut out)
            });
        });
        group.finish();
    }
}

/// Keys and values together, as exact attention reads them.
fn attention(criterion: &mut Criterion) {
    let kernels = Kernels::get();
    let queries = numbers(HEADS * DIM);
    for rows in ROWS {
        let stored: Vec<f16> = numbers(2 * rows * DIM).into_iter().map(f16::from_f32).collect();
        let (keys, values) = stored.split_at(rows * DIM);
        let mut state = AttentionState::new(HEADS, DIM);
        let mut scratch = Vec::new();
        let mut group = group(criterion, "attention_f16");
        group.throughput(Throughput::Bytes((2 * rows * DIM * size_of::<f16>()) as u64));
        group.bench_function(BenchmarkId::new("attend_rows", rows), |bencher| {
            bencher.iter(|| {
                let (keys, values) = (Rows::F16(keys), Rows::F16(values));
                kernels.attend_rows(&mut state, black_box(&queries), DIM, keys, values, None, &mut scratch);
            });
        });
        group.finish();
    }
}

fn codes_of_four_bits(criterion: &mut Criterion) {
    let kernels = Kernels::get();
    let (queries, sigma) = (numbers(HEADS * DIM), vec![0.5; DIM]);
    for rows in ROWS {
        let record_len = record_len(DIM);
        let mut records = vec![0; rows * record_len];
        for (row, record) in numbers(rows * DIM).chunks_exact(DIM).zip(records.chunks_exact_mut(record_len)) {
            encode4(row, &sigma, true, record);
        }
        let listed = listed(rows);
        let mut scores = vec![0.0; rows * HEADS];
        let mut out = vec![0.0; HEADS * DIM];
        let weights = numbers(rows * HEADS);

        let mut group = group(criterion, "codes4");
        group.throughput(Throughput::Bytes(records.len() as u64));
        group.bench_function(BenchmarkId::new("scores4", rows), |bencher| {
            bencher.iter(|| kernels.scores4(black_box(&queries), HEADS, DIM, &records, &mut scores));
        });
        group.bench_function(BenchmarkId::new("accumulate4", rows), |bencher| {
            bencher.iter(|| kernels.accumulate4(black_box(&weights), HEADS, DIM, &records, &mut out));
        });
        group.throughput(Throughput::Bytes((listed.len() * record_len) as u64));
        group.bench_function(BenchmarkId::new("scores4_gathered", rows), |bencher| {
            let scores = &mut scores[..listed.len() * HEADS];
            bencher.iter(|| {
                kernels.scores4_gathered(black_box(&queries), HEADS, DIM, &records, &listed, scores)
            });
        });
        group.bench_function(BenchmarkId::new("accumulate4_gathered", rows), |bencher| {
            let weights = &weights[..listed.len() * HEADS];
            bencher.iter(|| {
                kernels.accumulate4_gathered(black_box(weights), HEADS, DIM, &records, &listed, &mut out);
            });
        });
        group.finish();
    }
}

/// Centroids and value means, of 131,072 rows in clusters of 32, and of a segment.
fn summaries(criterion: &mut Criterion) {
    let kernels = Kernels::get();
    let (queries, sigma) = (numbers(HEADS * DIM), vec![0.5; DIM]);
    for clusters in [256, 4096] {
        let record_len = record_len(DIM);
        let mut records = vec![0; clusters * record_len];
        for (row, record) in
            numbers(clusters * DIM).chunks_exact(DIM).zip(records.chunks_exact_mut(record_len))
        {
            encode4(row, &sigma, true, record);
        }
        // Every third.
        let listed: Vec<u32> = (0..clusters as u32).step_by(3).collect();
        let mut query = Laid::default();
        query.set(&queries, HEADS, &sigma);
        let mut scores = vec![0.0; clusters * HEADS];
        let weights = numbers(clusters * 3 * HEADS);

        let mut group = group(criterion, "summaries");
        group.throughput(Throughput::Elements(clusters as u64));
        group.bench_function(BenchmarkId::new("scores", clusters), |bencher| {
            let all = Summaries::all(&records, DIM);
            bencher.iter(|| {
                kernels.scores_summaries(black_box(&query), all, &[0.0; HEADS], clusters, &mut scores)
            });
        });
        group.throughput(Throughput::Elements(listed.len() as u64));
        group.bench_function(BenchmarkId::new("scores_listed", clusters), |bencher| {
            let some = Summaries::listed(&records, DIM, &listed);
            bencher.iter(|| {
                kernels.scores_summaries(black_box(&query), some, &[0.0; HEADS], clusters, &mut scores)
            });
        });
        for sets in [1, 3] {
            let mut sums = Laid::default();
            sums.reset(sets * HEADS, DIM);
            group.bench_function(BenchmarkId::new(format!("sum_listed_{sets}"), clusters), |bencher| {
                let some = Summaries::listed(&records, DIM, &listed);
                bencher.iter(|| kernels.sum_summaries(black_box(&weights), clusters, some, &mut sums));
            });
        }
        group.finish();
    }
}

/// Sketches of one bit a dimension on average: half of the dimensions with two bits, half with none, and all with one.
fn sketches(criterion: &mut Criterion) {
    let kernels = Kernels::get();
    let (queries, sigma) = (numbers(HEADS * DIM), vec![0.5; DIM]);
    let uneven: Vec<u8> = (0..DIM).map(|dim| if dim < DIM / 2 { 2 } else { 0 }).collect();
    for (name, bits) in [("one_bit", vec![1; DIM]), ("two_bits_of_half", uneven)] {
        let layout = SketchLayout::new(&bits);
        let query = SketchQuery::new(&layout, &queries, HEADS);
        for rows in ROWS {
            let record_len = layout.record_len(CLUSTER_ROWS);
            let mut records = vec![0; rows / CLUSTER_ROWS * record_len];
            let clusters = numbers(rows * DIM);
            let clusters = clusters.chunks_exact(CLUSTER_ROWS * DIM);
            for (cluster, record) in clusters.zip(records.chunks_exact_mut(record_len)) {
                encode_sketch(&layout, cluster, &sigma, record);
            }
            let mut scores = vec![0.0; CLUSTER_ROWS * HEADS];
            let mut factors = vec![0.0; CLUSTER_ROWS];
            let mut group = group(criterion, "sketches");
            group.throughput(Throughput::Bytes(records.len() as u64));
            group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                bencher.iter(|| {
                    for record in records.chunks_exact(record_len) {
                        let query = black_box(&query);
                        kernels.scores_sketch(
                            query,
                            record,
                            CLUSTER_ROWS,
                            CLUSTER_ROWS,
                            &mut scores,
                            &mut factors,
                        );
                    }
                });
            });
            group.finish();
        }
    }
}

fn exponentials(criterion: &mut Criterion) {
    let kernels = Kernels::get();
    let count = 4096;
    let fresh: Vec<f32> = numbers(count * HEADS).into_iter().map(|x| x * 8.0 - 8.0).collect();
    let mut scores = fresh.clone();
    let mut sums = [0.0; HEADS];
    let mut group = group(criterion, "exp");
    group.throughput(Throughput::Elements((count * HEADS) as u64));
    // Both work in place: the copy of fresh scores is part of the time, and is measured beside them.
    group.bench_function("copy", |bencher| bencher.iter(|| scores.copy_from_slice(black_box(&fresh))));
    group.bench_function("exp_weights", |bencher| {
        bencher.iter(|| {
            scores.copy_from_slice(black_box(&fresh));
            kernels.exp_weights(&mut scores, HEADS, &[0.0, -0.5, -1.0, 0.5], &mut sums);
        });
    });
    let deviations: Vec<f32> = numbers(count * HEADS).into_iter().map(|x| x.abs() * 0.5).collect();
    group.bench_function("weigh_rows", |bencher| {
        bencher.iter(|| {
            scores.copy_from_slice(black_box(&fresh));
            black_box(kernels.weigh_rows(&mut scores, &deviations, 0.0, 4.0))
        });
    });
    group.finish();
}

criterion_group!(kernels, full_rows, attention, codes_of_four_bits, summaries, sketches, exponentials);
criterion_main!(kernels);
