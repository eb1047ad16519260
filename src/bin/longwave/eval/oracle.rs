//! The method `oracle`: what could be had for the same bytes by knowing every score in advance.
//!
//! For each query it may spend the bytes that `longwave` spent on it, all of them on full rows: knowing which rows matter
//! costs it nothing, and neither do the summaries of the rest. It takes the rows with the largest exact softmax share
//! (root of the sum of squares over the query heads that share the KV head), over all KV heads of the layer together. The
//! rest it estimates as a summary would, cluster by cluster of the ladder's index: the rows that were not taken have the
//! mean of their keys and the mean of their values, exact means of just these rows.

use super::summary::{Sample, error};
use crate::rungs::RungShares;
use crate::trace::{Trace, TraceLayer, stored};
use anyhow::{Context as _, Result};
use longwave::storage::{Column, ColumnKind};
use longwave::{Dtype, Kernels, LayerSegment, Rows, Snapshot};
use std::collections::BTreeSet;

/// The rows of a layer, as stored.
pub(super) struct Oracle {
    heads: Vec<Head>,
    /// Index of each segment's first row, and the number of all rows.
    segments: Vec<usize>,
    group: usize,
    key_dim: usize,
    value_dim: usize,
    scale: f32,
    key_bytes: usize,
    value_bytes: usize,
}

/// One KV head: sealed rows in stored order, so that clusters lie together, and the others, which are always exact.
struct Head {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// First row of each cluster, and the number of rows.
    clusters: Vec<usize>,
    steady_keys: Vec<f32>,
    steady_values: Vec<f32>,
}

impl Oracle {
    pub(super) fn new(
        trace: &Trace,
        rows: &TraceLayer,
        dtype: Dtype,
        layer: usize,
        snapshot: &Snapshot,
    ) -> Result<Oracle> {
        let segments = snapshot.segments(layer)?;
        let mut starts = vec![0];
        for segment in &segments {
            starts.push(starts[starts.len() - 1] + segment.rows());
        }
        let heads = (0..trace.kv_heads).map(|head| Head::new(trace, rows, dtype, head, &segments));
        Ok(Oracle {
            heads: heads.collect::<Result<_>>()?,
            segments: starts,
            group: trace.query_heads / trace.kv_heads,
            key_dim: trace.key_dim,
            value_dim: trace.value_dim,
            scale: (trace.key_dim as f32).powf(-0.5),
            key_bytes: trace.key_dim * dtype.size_of(),
            value_bytes: trace.value_dim * dtype.size_of(),
        })
    }

    fn rows(&self) -> usize {
        self.segments[self.segments.len() - 1]
    }

    /// Scores every row for the queries `[query_heads, key_dim]`.
    pub(super) fn look(&self, queries: &[f32]) -> Known {
        let mut known = Known { heads: Vec::new(), order: Vec::new() };
        for (number, head) in self.heads.iter().enumerate() {
            let of_head = self.group * self.key_dim;
            let scaled = queries[number * of_head..][..of_head].iter().map(|x| x * self.scale);
            let seen = KnownHead::new(head, scaled.collect(), self.key_dim);
            let share = |weights: &[f64]| weights.iter().zip(&seen.total).map(|(w, t)| (w / t).powi(2)).sum();
            let shares = seen.weights.chunks_exact(self.group).map(share);
            known.order.extend(shares.enumerate().map(|(row, share): (usize, f64)| (share, number, row)));
            known.heads.push(seen);
        }
        // Rows of equal shares are taken in order, so that the same are taken every time.
        known.order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        known
    }
}

impl Head {
    fn new(
        trace: &Trace,
        rows: &TraceLayer,
        dtype: Dtype,
        head: usize,
        segments: &[&LayerSegment],
    ) -> Result<Head> {
        let (mut keys, mut values, mut clusters) = (Vec::new(), Vec::new(), vec![0]);
        for segment in segments {
            let index = segment.index()?.context("a segment without an index")?;
            let first = clusters[clusters.len() - 1];
            clusters.extend(index.head(head)?.offsets[1..].iter().map(|&end| first + end as usize));
            let stored = segment.segment();
            let take = |kind, dim: usize| {
                let size = segment.rows() * dim * dtype.size_of();
                widened(stored.column(kind)?, dtype, head * size, size)
            };
            keys.extend(take(ColumnKind::KEYS, trace.key_dim)?);
            values.extend(take(ColumnKind::VALUES, trace.value_dim)?);
        }
        let sealed = segments.first().map_or(0, |first| first.first_position() as usize)
            ..segments.last().map_or(0, |last| last.end() as usize);
        let steady = |data: &[f32], dim: usize| -> Vec<f32> {
            let of_head = data.chunks_exact(dim).skip(head).step_by(trace.kv_heads).enumerate();
            let seen = of_head.take(trace.first_query_position);
            seen.filter(|(at, _)| !sealed.contains(at))
                .flat_map(|(_, row)| row.iter().map(|&x| stored(x, dtype)))
                .collect()
        };
        Ok(Head {
            steady_keys: steady(&rows.keys, trace.key_dim),
            steady_values: steady(&rows.values, trace.value_dim),
            keys,
            values,
            clusters,
        })
    }
}

fn widened(column: Column<'_>, dtype: Dtype, start: usize, size: usize) -> Result<Vec<f32>> {
    let rows = Rows::from_bytes(dtype, column.bytes(start..start + size)?).context("rows out of line")?;
    let mut wide = vec![0.0; rows.len()];
    Kernels::get().widen(rows, &mut wide);
    Ok(wide)
}

/// What the oracle knows of one query.
pub(super) struct Known {
    heads: Vec<KnownHead>,
    /// Share, KV head and row, by falling share.
    order: Vec<(f64, usize, usize)>,
}

struct KnownHead {
    /// Scaled, `[group, key_dim]`.
    queries: Vec<f32>,
    /// `[rows, group]`, `exp(score - top)`.
    weights: Vec<f64>,
    steady: Vec<f64>,
    top: Vec<f32>,
    /// Sum of all weights, per head of the group.
    total: Vec<f64>,
}

impl KnownHead {
    fn new(head: &Head, queries: Vec<f32>, dim: usize) -> KnownHead {
        let group = queries.len() / dim;
        let score = |keys: &[f32]| {
            let mut scores = vec![0.0; keys.len() / dim * group];
            Kernels::get().scores(&queries, group, dim, Rows::F32(keys), &mut scores);
            scores
        };
        let (scores, steady) = (score(&head.keys), score(&head.steady_keys));
        let mut top = vec![f32::NEG_INFINITY; group];
        for scores in scores.chunks_exact(group).chain(steady.chunks_exact(group)) {
            top.iter_mut().zip(scores).for_each(|(top, &score)| *top = top.max(score));
        }
        let weigh = |scores: Vec<f32>| -> Vec<f64> {
            let weights = scores.iter().enumerate();
            weights.map(|(i, score)| f64::from(score - top[i % group]).exp()).collect()
        };
        let (weights, steady) = (weigh(scores), weigh(steady));
        let mut total = vec![0.0; group];
        for weights in weights.chunks_exact(group).chain(steady.chunks_exact(group)) {
            total.iter_mut().zip(weights).for_each(|(total, weight)| *total += weight);
        }
        KnownHead { queries, weights, steady, top, total }
    }
}

/// An answer of the oracle.
pub(super) struct Read {
    /// `[query_heads, value_dim]`.
    output: Vec<f64>,
    value_dim: usize,
    bytes_share: f64,
    page_share: f64,
    /// Rows taken, over all rows.
    read_share: f64,
}

impl Known {
    /// The answer from the best rows that fit into `bytes`.
    pub(super) fn read(&self, oracle: &Oracle, bytes: u64) -> Read {
        let row_bytes = oracle.key_bytes + oracle.value_bytes;
        let count = (bytes as usize / row_bytes).min(self.order.len());
        let mut taken: Vec<Vec<bool>> = oracle.heads.iter().map(|_| vec![false; oracle.rows()]).collect();
        self.order[..count].iter().for_each(|&(_, head, row)| taken[head][row] = true);
        let heads = oracle.heads.iter().zip(&self.heads).zip(&taken);
        let full = (oracle.rows() * oracle.heads.len() * (oracle.key_dim + oracle.value_dim) * 2) as f64;
        Read {
            output: heads.flat_map(|((head, known), taken)| known.answer(oracle, head, taken)).collect(),
            value_dim: oracle.value_dim,
            bytes_share: (count * row_bytes) as f64 / full,
            read_share: count as f64 / (oracle.rows() * oracle.heads.len()) as f64,
            page_share: (oracle.pages(&self.order[..count]) * 4096) as f64 / full,
        }
    }
}

impl Oracle {
    /// 4 KiB pages of keys and of values that hold the rows taken.
    fn pages(&self, taken: &[(f64, usize, usize)]) -> usize {
        let mut pages = BTreeSet::new();
        for &(_, head, row) in taken {
            let segment = self.segments.partition_point(|&first| first <= row) - 1;
            let (first, end) = (self.segments[segment], self.segments[segment + 1]);
            let stored = head * (end - first) + row - first;
            for (column, size) in [(0, self.key_bytes), (1, self.value_bytes)] {
                let touched = stored * size / 4096..((stored + 1) * size).div_ceil(4096);
                pages.extend(touched.map(|page| (segment, column, page)));
            }
        }
        pages.len()
    }
}

impl KnownHead {
    /// The output `[group, value_dim]`.
    fn answer(&self, oracle: &Oracle, head: &Head, taken: &[bool]) -> Vec<f64> {
        let (group, dim) = (self.top.len(), oracle.value_dim);
        let mut sum = vec![0.0; group * dim];
        let mut total = vec![0.0; group];
        let mut add = |weights: &[f64], value: &mut dyn Iterator<Item = f64>| {
            total.iter_mut().zip(weights).for_each(|(total, weight)| *total += weight);
            for (i, value) in value.enumerate() {
                weights.iter().enumerate().for_each(|(g, weight)| sum[g * dim + i] += weight * value);
            }
        };
        for (weights, value) in self.steady.chunks_exact(group).zip(head.steady_values.chunks_exact(dim)) {
            add(weights, &mut value.iter().map(|&x| f64::from(x)));
        }
        for bounds in head.clusters.windows(2) {
            let rest: Vec<usize> = (bounds[0]..bounds[1]).filter(|&row| !taken[row]).collect();
            for row in (bounds[0]..bounds[1]).filter(|&row| taken[row]) {
                let value = &head.values[row * dim..(row + 1) * dim];
                add(&self.weights[row * group..(row + 1) * group], &mut value.iter().map(|&x| f64::from(x)));
            }
            if !rest.is_empty() {
                let mean_key = mean(&head.keys, oracle.key_dim, &rest);
                let weights = self.estimate(&mean_key, rest.len());
                add(&weights, &mut mean(&head.values, dim, &rest).into_iter());
            }
        }
        sum.chunks_exact(dim)
            .zip(&total)
            .flat_map(|(sum, total)| sum.iter().map(move |x| x / total))
            .collect()
    }

    /// Weights of `count` rows whose keys are all `key`.
    fn estimate(&self, key: &[f64], count: usize) -> Vec<f64> {
        let queries = self.queries.chunks_exact(key.len()).zip(&self.top);
        queries
            .map(|(query, &top)| {
                let score: f64 = query.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
                count as f64 * (score - f64::from(top)).exp()
            })
            .collect()
    }
}

fn mean(data: &[f32], dim: usize, rows: &[usize]) -> Vec<f64> {
    let mut mean = vec![0.0; dim];
    for &row in rows {
        mean.iter_mut().zip(&data[row * dim..]).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    mean.iter().map(|sum| sum / rows.len() as f64).collect()
}

impl Read {
    /// One sample a query head.
    pub(super) fn samples(&self, layer: usize, query: usize, truth: &[f64]) -> Vec<Sample> {
        let heads = self.output.chunks_exact(self.value_dim).zip(truth.chunks_exact(self.value_dim));
        heads
            .map(|(output, truth)| Sample {
                layer,
                query,
                error: error(output.iter().copied(), truth),
                bytes_share: self.bytes_share,
                page_share: self.page_share,
                rungs: RungShares { read_share: self.read_share, ..RungShares::default() },
                predicted: None,
                bound: None,
                stated: Vec::new(),
            })
            .collect()
    }
}
