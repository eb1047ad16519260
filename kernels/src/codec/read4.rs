//! Scores and sums of rows in 4 bits.

use half::f16;

use super::code4::record_len;
use crate::isa::Kernels;
use crate::lanes::Lanes;
use crate::rows::{DIM_STEP, is_supported_dim};
use crate::score::{check_heads, check_per_row};

/// Rows that are worked on together.
const BLOCK: usize = 16;

impl Kernels {
    /// `scores[row * heads + head] = factor[row] * Σ_i queries[head][i] * level[row][i]` for every coded row.
    ///
    /// `queries` is `[heads, dim]`, already times the scales that the rows were coded with; `records` are those of
    /// [`encode4`](crate::codec::encode4), one after the other. A score depends on nothing but its query and its row.
    ///
    /// # Panics
    /// If `dim` is not supported, `queries` is not `heads * dim` long, `records` not whole records, or `scores` not
    /// `heads` times as long as there are rows.
    pub fn scores4(&self, queries: &[f32], heads: usize, dim: usize, records: &[u8], scores: &mut [f32]) {
        self.scores4_of(queries, heads, Records::new(records, dim, None), scores);
    }

    /// Like [`Kernels::scores4`], for the listed rows in the order of the list. Others are not read.
    ///
    /// # Panics
    /// As [`Kernels::scores4`], with the list for the rows; and, before anything is read, if an index is out of range.
    pub fn scores4_gathered(
        &self,
        queries: &[f32],
        heads: usize,
        dim: usize,
        records: &[u8],
        indices: &[u32],
        scores: &mut [f32],
    ) {
        self.scores4_of(queries, heads, Records::new(records, dim, Some(indices)), scores);
    }

    fn scores4_of(&self, queries: &[f32], heads: usize, records: Records<'_>, scores: &mut [f32]) {
        check_heads(heads, queries.len(), records.dim, "queries");
        check_per_row(scores.len(), records.len, heads, "scores");
        (self.scores4)(queries, heads, records, scores);
    }

    /// `out[head * dim + i] += Σ_row weights[row * heads + head] * factor[row] * level[row][i]` over every coded row.
    ///
    /// The caller multiplies by the scales that the rows were coded with, once, at the end. Sixteen rows at a time are
    /// summed by themselves and then added to `out`.
    ///
    /// # Panics
    /// If `dim` is not supported, `records` not whole records, `weights` not `heads` times as long as there are rows, or
    /// `out` not `heads * dim` long.
    pub fn accumulate4(&self, weights: &[f32], heads: usize, dim: usize, records: &[u8], out: &mut [f32]) {
        self.accumulate4_of(weights, heads, Records::new(records, dim, None), out);
    }

    /// Like [`Kernels::accumulate4`], over the listed rows in the order of the list. Others are not read.
    ///
    /// # Panics
    /// As [`Kernels::accumulate4`], with the list for the rows; and, before `out` is touched, if an index is out of
    /// range.
    pub fn accumulate4_gathered(
        &self,
        weights: &[f32],
        heads: usize,
        dim: usize,
        records: &[u8],
        indices: &[u32],
        out: &mut [f32],
    ) {
        self.accumulate4_of(weights, heads, Records::new(records, dim, Some(indices)), out);
    }

    fn accumulate4_of(&self, weights: &[f32], heads: usize, records: Records<'_>, out: &mut [f32]) {
        check_heads(heads, out.len(), records.dim, "output");
        check_per_row(weights.len(), records.len, heads, "weights");
        (self.accumulate4)(weights, heads, records, out);
    }
}

/// Checked records of one dimension, and which of them an operation works on.
#[derive(Clone, Copy)]
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    dim: usize,
    listed: Option<&'a [u32]>,
    len: usize,
}

/// Up to sixteen records.
struct Block<'a> {
    /// The codes of each row; places past `count` repeat the last row.
    codes: [&'a [[u8; 4]]; BLOCK],
    factors: [f32; BLOCK],
    count: usize,
}

impl<'a> Records<'a> {
    #[track_caller]
    fn new(bytes: &'a [u8], dim: usize, listed: Option<&'a [u32]>) -> Records<'a> {
        assert!(is_supported_dim(dim), "dimension {dim} is not supported");
        let stored = bytes.len() / record_len(dim);
        assert!(
            bytes.len() == stored * record_len(dim),
            "{} bytes are not whole records of {dim}",
            bytes.len()
        );
        if let Some(largest) = listed.and_then(|listed| listed.iter().max()) {
            assert!((*largest as usize) < stored, "row {largest} is listed, but there are {stored} rows");
        }
        Records { bytes, dim, listed, len: listed.map_or(stored, <[u32]>::len) }
    }

    #[inline(always)]
    fn record(&self, place: usize) -> &'a [u8] {
        let row = self.listed.map_or(place, |listed| listed[place] as usize);
        &self.bytes[row * record_len(self.dim)..][..record_len(self.dim)]
    }

    /// The records from `start`, which is less than their number.
    #[inline(always)]
    fn block(&self, start: usize) -> Block<'a> {
        let count = (self.len - start).min(BLOCK);
        let mut block = Block { codes: [&[]; BLOCK], factors: [0.0; BLOCK], count };
        for row in 0..BLOCK {
            let (codes, factor) = self.record(start + row.min(count - 1)).split_at(self.dim / 2);
            block.codes[row] = codes.as_chunks().0;
            block.factors[row] = f16::from_le_bytes([factor[0], factor[1]]).to_f32_const();
        }
        block
    }

    /// Asks for the listed records of the block that begins at `start`; the processor foresees those that follow each
    /// other.
    #[inline(always)]
    fn prefetch<L: Lanes>(&self, isa: L, start: usize) {
        if self.listed.is_some() {
            for place in start..(start + BLOCK).min(self.len) {
                let record = self.record(place);
                for byte in record.iter().step_by(64) {
                    isa.prefetch_address(byte);
                }
                isa.prefetch_address(&record[record.len() - 1]);
            }
        }
    }
}

/// Scores of all heads and rows, `[row][head]`.
#[inline(always)]
pub(crate) fn scores4<L: Lanes>(
    isa: L,
    queries: &[f32],
    heads: usize,
    records: Records<'_>,
    scores: &mut [f32],
) {
    for start in (0..records.len).step_by(BLOCK) {
        records.prefetch(isa, start + BLOCK);
        let block = records.block(start);
        let scores = &mut scores[start * heads..][..block.count * heads];
        let mut head = 0;
        while head < heads {
            let group = (heads - head).min(4);
            match group {
                4 => score_group::<L, 4>(isa, queries, heads, head, &block, scores),
                3 => score_group::<L, 3>(isa, queries, heads, head, &block, scores),
                2 => score_group::<L, 2>(isa, queries, heads, head, &block, scores),
                _ => score_group::<L, 1>(isa, queries, heads, head, &block, scores),
            }
            head += group;
        }
    }
}

/// Scores of heads `head..head + H`, in eight accumulators of `8 / H` rows by `H` heads.
#[inline(always)]
fn score_group<L: Lanes, const H: usize>(
    isa: L,
    queries: &[f32],
    heads: usize,
    head: usize,
    block: &Block<'_>,
    scores: &mut [f32],
) {
    let at_once = 8 / H;
    let vectors = block.codes[0].len();
    let (queries, _) = queries.as_chunks::<DIM_STEP>();
    for first in (0..block.count).step_by(at_once) {
        let mut sums = [isa.splat(0.0); 8];
        for v in 0..vectors {
            let mut q = [isa.splat(0.0); H];
            for h in 0..H {
                q[h] = isa.load(&queries[(head + h) * vectors + v]);
            }
            for r in 0..at_once {
                let x = isa.load_levels4(&block.codes[(first + r).min(BLOCK - 1)][v]);
                for h in 0..H {
                    sums[r * H + h] = isa.mul_add(x, q[h], sums[r * H + h]);
                }
            }
        }
        let mut totals = [0.0; 8];
        isa.store(isa.sum_each(sums), &mut totals);
        for (row, totals) in totals.chunks_exact(H).enumerate().take(block.count - first) {
            let scores = &mut scores[(first + row) * heads + head..][..H];
            for (score, total) in scores.iter_mut().zip(totals) {
                *score = block.factors[first + row] * total;
            }
        }
    }
}

/// Adds the weighted rows to the output of all heads, `[head][dim]`.
#[inline(always)]
pub(crate) fn accumulate4<L: Lanes>(
    isa: L,
    weights: &[f32],
    heads: usize,
    records: Records<'_>,
    out: &mut [f32],
) {
    for start in (0..records.len).step_by(BLOCK) {
        records.prefetch(isa, start + BLOCK);
        let block = records.block(start);
        let weights = &weights[start * heads..][..block.count * heads];
        let mut head = 0;
        while head < heads {
            let group = (heads - head).min(4);
            match group {
                4 => accumulate_group::<L, 4, 2>(isa, weights, heads, head, &block, out),
                3 => accumulate_group::<L, 3, 2>(isa, weights, heads, head, &block, out),
                2 => accumulate_group::<L, 2, 4>(isa, weights, heads, head, &block, out),
                _ => accumulate_group::<L, 1, 8>(isa, weights, heads, head, &block, out),
            }
            head += group;
        }
    }
}

/// Sweeps `W` vectors wide over the dimensions, then one vector wide over the rest.
#[inline(always)]
fn accumulate_group<L: Lanes, const H: usize, const W: usize>(
    isa: L,
    weights: &[f32],
    heads: usize,
    head: usize,
    block: &Block<'_>,
    out: &mut [f32],
) {
    let mut scaled = [[0.0; H]; BLOCK];
    for (row, scaled) in scaled.iter_mut().enumerate().take(block.count) {
        for h in 0..H {
            scaled[h] = weights[row * heads + head + h] * block.factors[row];
        }
    }
    let vectors = block.codes[0].len();
    let wide = vectors / W * W;
    for v in (0..wide).step_by(W) {
        accumulate_sweep::<L, H, W>(isa, &scaled, head, block, v, out);
    }
    for v in wide..vectors {
        accumulate_sweep::<L, H, 1>(isa, &scaled, head, block, v, out);
    }
}

/// One sweep over the block's rows, for vectors `v..v + W` of the dimensions.
#[inline(always)]
fn accumulate_sweep<L: Lanes, const H: usize, const W: usize>(
    isa: L,
    weights: &[[f32; H]; BLOCK],
    head: usize,
    block: &Block<'_>,
    v: usize,
    out: &mut [f32],
) {
    let mut sums = [[isa.splat(0.0); W]; H];
    for (codes, weights) in block.codes[..block.count].iter().zip(weights) {
        let codes = &codes[v..][..W];
        for w in 0..W {
            let x = isa.load_levels4(&codes[w]);
            for h in 0..H {
                sums[h][w] = isa.mul_add(isa.splat(weights[h]), x, sums[h][w]);
            }
        }
    }
    let vectors = block.codes[0].len();
    let (out, _) = out.as_chunks_mut::<DIM_STEP>();
    for h in 0..H {
        for w in 0..W {
            let out = &mut out[(head + h) * vectors + v + w];
            isa.store(isa.add(isa.load(out), sums[h][w]), out);
        }
    }
}
