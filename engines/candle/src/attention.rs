//! Exact causal attention over f32 rows, for prefill and as the yardstick of every approximate cache.
//!
//! The work is cut into tasks of one block of positions, one KV head and one span of keys; a task walks its span in
//! tiles small enough for the second-level cache and keeps a running softmax, so that no score outlives its tile.
//! All query heads of the KV head's group share a tile's key reads. Cuts depend on lengths alone and partial results
//! merge in order: the same input gives the same bits at any number of threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Positions of one task.
const BLOCK: usize = 128;
/// Keys of one task.
const SPAN: usize = 4096;
/// Keys of one tile: its scores for a block of a three-head group are 384 KiB.
const TILE: usize = 256;
/// Stands for minus infinity: far below any score, and differences of two such values are still numbers.
const MASKED: f32 = -1e30;

/// Shape of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`. Query head `h` reads KV head `h / (query_heads / kv_heads)`.
    pub query_heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head's query, key and value.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads that share a KV head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Elements of one position's keys or values over all heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of one position's queries over all heads.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.query_heads * self.head_dim
    }
}

/// Attention of the last positions' queries over all rows up to their own.
///
/// `keys` and `values` are `[tokens, kv_heads, head_dim]`, `queries` and `output` `[n, query_heads, head_dim]` with
/// `n <= tokens`: query `i` stands at position `tokens - n + i` and sees that position and those before it. Scores are
/// scaled by `head_dim^-0.5`.
///
/// # Panics
/// If the slices do not have these shapes.
pub fn attend_causal(
    shape: AttentionShape,
    keys: &[f32],
    values: &[f32],
    queries: &[f32],
    output: &mut [f32],
) {
    let tokens = keys.len() / shape.kv_width();
    let count = queries.len() / shape.query_width();
    assert_eq!(keys.len(), tokens * shape.kv_width(), "ragged keys");
    assert_eq!(values.len(), keys.len(), "one value a key");
    assert_eq!(queries.len(), count * shape.query_width(), "ragged queries");
    assert_eq!(output.len(), queries.len(), "one output a query");
    assert!(count <= tokens, "{count} queries over {tokens} rows");
    let first_position = tokens - count;
    let mut tasks = Vec::new();
    for first in (0..count).step_by(BLOCK) {
        let rows = BLOCK.min(count - first);
        // The block's last query sees this many rows.
        let seen = first_position + first + rows;
        for kv_head in 0..shape.kv_heads {
            let spans = (0..seen).step_by(SPAN).map(|start| (start, seen.min(start + SPAN)));
            tasks.extend(spans.map(|(start, end)| Task { first, rows, kv_head, start, end }));
        }
    }
    let input = Input { shape, keys, values, queries, first_position };
    let partials: Vec<Partial> =
        tasks.par_iter().map_init(Scratch::default, |scratch, task| task.run(&input, scratch)).collect();
    let mut partials = tasks.iter().zip(partials).peekable();
    while let Some((task, mut partial)) = partials.next() {
        while let Some((_, further)) =
            partials.next_if(|(next, _)| (next.first, next.kv_head) == (task.first, task.kv_head))
        {
            partial.merge(&further, shape.head_dim);
        }
        partial.write(shape, task, output);
    }
}

struct Input<'a> {
    shape: AttentionShape,
    keys: &'a [f32],
    values: &'a [f32],
    queries: &'a [f32],
    first_position: usize,
}

/// Positions `first .. first + rows` of the queries against keys `start .. end` of one KV head.
struct Task {
    first: usize,
    rows: usize,
    kv_head: usize,
    start: usize,
    end: usize,
}

/// Buffers that a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
}

/// Softmax under way for the rows of a block, position-major, the group's heads inside a position.
struct Partial {
    /// Largest score so far.
    max: Vec<f32>,
    /// Sum of `exp(score - max)`.
    sum: Vec<f32>,
    /// Sum of `exp(score - max) * value`, `[rows, head_dim]`.
    values: Vec<f32>,
}

impl Task {
    fn run(&self, input: &Input<'_>, scratch: &mut Scratch) -> Partial {
        let AttentionShape { head_dim: dim, .. } = input.shape;
        let (group, width) = (input.shape.group(), input.shape.kv_width());
        let rows = self.rows * group;
        self.gather_queries(input, &mut scratch.queries);
        scratch.scores.resize(rows * TILE, 0.0);
        let queries = MatRef::from_row_major_slice(&scratch.queries, rows, dim);
        let mut partial =
            Partial { max: vec![MASKED; rows], sum: vec![0.0; rows], values: vec![0.0; rows * dim] };
        for start in (self.start..self.end).step_by(TILE) {
            let len = TILE.min(self.end - start);
            let at = start * width + self.kv_head * dim;
            // The last row ends with its head, not with the whole width.
            let tile = at..at + (len - 1) * width + dim;
            let keys = strided(&input.keys[tile.clone()], len, dim, width);
            let values = strided(&input.values[tile], len, dim, width);
            let scores = &mut scratch.scores[..rows * len];
            let target = MatMut::from_row_major_slice_mut(scores, rows, len);
            matmul(target, Accum::Replace, queries, keys.transpose(), 1.0, Par::Seq);
            for (row, scores) in scores.chunks_exact_mut(len).enumerate() {
                let position = input.first_position + self.first + row / group;
                let seen = (position + 1).saturating_sub(start).min(len);
                scores[seen..].fill(MASKED);
                partial.absorb(row, scores, dim);
            }
            let target = MatMut::from_row_major_slice_mut(&mut partial.values, rows, dim);
            matmul(
                target,
                Accum::Add,
                MatRef::from_row_major_slice(scores, rows, len),
                values,
                1.0,
                Par::Seq,
            );
        }
        partial
    }

    /// The block's queries of the group's heads, scaled, one row after the other.
    fn gather_queries(&self, input: &Input<'_>, gathered: &mut Vec<f32>) {
        let AttentionShape { head_dim: dim, .. } = input.shape;
        let (run, width) = (input.shape.group() * dim, input.shape.query_width());
        let scale = (dim as f32).sqrt().recip();
        gathered.clear();
        for position in self.first..self.first + self.rows {
            let at = position * width + self.kv_head * run;
            gathered.extend(input.queries[at..at + run].iter().map(|element| element * scale));
        }
    }
}

impl Partial {
    /// Turns a row's scores into weights and rescales what the row holds so far; the weights' values are added later.
    fn absorb(&mut self, row: usize, scores: &mut [f32], dim: usize) {
        let max = maximum(scores, self.max[row]);
        if max > self.max[row] {
            let scale = exponential(self.max[row] - max);
            self.max[row] = max;
            self.sum[row] *= scale;
            self.values[row * dim..(row + 1) * dim].iter_mut().for_each(|value| *value *= scale);
        }
        self.sum[row] += exponentiate(scores, max);
    }

    fn merge(&mut self, other: &Self, dim: usize) {
        for row in 0..self.max.len() {
            let max = self.max[row].max(other.max[row]);
            let (scale, other_scale) = (exponential(self.max[row] - max), exponential(other.max[row] - max));
            self.max[row] = max;
            self.sum[row] = self.sum[row] * scale + other.sum[row] * other_scale;
            let at = row * dim..(row + 1) * dim;
            for (value, other) in self.values[at.clone()].iter_mut().zip(&other.values[at]) {
                *value = *value * scale + other * other_scale;
            }
        }
    }

    fn write(&self, shape: AttentionShape, task: &Task, output: &mut [f32]) {
        let run = shape.group() * shape.head_dim;
        for (position, rows) in (task.first..).zip(self.values.chunks_exact(run)) {
            let at = position * shape.query_width() + task.kv_head * run;
            let sums = &self.sum[(position - task.first) * shape.group()..];
            for (element, (output, value)) in output[at..at + run].iter_mut().zip(rows).enumerate() {
                *output = value / sums[element / shape.head_dim];
            }
        }
    }
}

/// One head's rows out of token-major rows.
fn strided(slice: &[f32], rows: usize, dim: usize, stride: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice_with_stride(slice, rows, dim, stride)
}

/// Independent lanes, so that the loops below compile to vector instructions.
const LANES: usize = 8;

fn maximum(scores: &[f32], start: f32) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [start; LANES];
    let chunks = scores.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(start, larger);
    for chunk in chunks {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, score);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

/// Replaces every score by `exp(score - max)` and returns their sum.
fn exponentiate(scores: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = scores.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *score = exponential(*score - max);
            *lane += *score;
        }
    }
    let mut sum = 0.0;
    for score in chunks.into_remainder() {
        *score = exponential(*score - max);
        sum += *score;
    }
    sum + lanes.into_iter().sum::<f32>()
}

/// `exp(x)` for `x <= 0`, to about 2 units in the last place; below -87 it stays at `exp(-87)`, about 1e-38.
///
/// Without branches or calls, unlike the standard one, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn exponential(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// The high part of ln 2 has few enough bits that its product with a small integer is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = x - power * LN_2_HIGH - power * LN_2_LOW;
    // Taylor to the sixth power: |r| <= ln 2 / 2, where the next term is below 1.3e-7 relative.
    let series =
        1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r / 720.0)))));
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    series * f32::from_bits(exponent)
}

#[cfg(test)]
#[path = "attention/tests.rs"]
mod tests;
