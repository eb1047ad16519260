//! Scores and sums of coded rows: in 4 bits, or in one or two planes of 2.

use super::forms::{BLOCK, Block, Codes, Form, Half, Pairs, Records, RowCodes, Whole};
use crate::isa::Kernels;
use crate::lanes::{EightLanes, Lanes};
use crate::rows::DIM_STEP;
use crate::score::{check_heads, check_per_row};

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
        self.scores4_of(queries, heads, Records::new(records, dim, Form::Pairs, None), scores);
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
        self.scores4_of(queries, heads, Records::new(records, dim, Form::Pairs, Some(indices)), scores);
    }

    /// `scores[place * heads + head] = factor[row] * Σ_i queries[head][i] * level[row][i]` for the row in each place of the
    /// list, of which no more is read than the depth says. `queries` is `[heads, dim]`, already times the rows' scales.
    ///
    /// # Panics
    /// As [`Kernels::scores4_gathered`].
    pub fn scores_codes(
        &self,
        queries: &[f32],
        heads: usize,
        codes: RowCodes<'_>,
        indices: &[u32],
        scores: &mut [f32],
    ) {
        self.scores4_of(queries, heads, codes.listed(indices), scores);
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
        self.accumulate4_of(weights, heads, Records::new(records, dim, Form::Pairs, None), out);
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
        self.accumulate4_of(weights, heads, Records::new(records, dim, Form::Pairs, Some(indices)), out);
    }

    /// `out[head * dim + i] += Σ_place weights[place * heads + head] * factor[row] * level[row][i]` over the row in each
    /// place of the list, of which no more is read than the depth says.
    ///
    /// # Panics
    /// As [`Kernels::accumulate4_gathered`].
    pub fn accumulate_codes(
        &self,
        weights: &[f32],
        heads: usize,
        codes: RowCodes<'_>,
        indices: &[u32],
        out: &mut [f32],
    ) {
        self.accumulate4_of(weights, heads, codes.listed(indices), out);
    }

    fn accumulate4_of(&self, weights: &[f32], heads: usize, records: Records<'_>, out: &mut [f32]) {
        check_heads(heads, out.len(), records.dim, "output");
        check_per_row(weights.len(), records.len, heads, "weights");
        (self.accumulate4)(weights, heads, records, out);
    }
}

/// How a block of coded rows is read on one instruction set.
pub(crate) trait ReadCodes<const N: usize>: Lanes<N> {
    /// Scores of heads `head..head + H` of `heads` against all rows of the block, `[row][head]`.
    fn score_codes<'a, C: Codes<'a>, const H: usize>(
        self,
        queries: &[f32],
        of: (usize, usize),
        block: &Block<C>,
        scores: &mut [f32],
    );
    /// Adds all rows of the block, weighted for `H` heads, to the outputs of these, one after the other.
    fn sum_codes<'a, C: Codes<'a>, const H: usize>(
        self,
        weights: &[[f32; H]; BLOCK],
        block: &Block<C>,
        out: &mut [[f32; DIM_STEP]],
    );
}

impl<L: EightLanes> ReadCodes<8> for L {
    #[inline(always)]
    fn score_codes<'a, C: Codes<'a>, const H: usize>(
        self,
        queries: &[f32],
        of: (usize, usize),
        block: &Block<C>,
        scores: &mut [f32],
    ) {
        score_group::<L, C, H>(self, queries, of, block, scores);
    }

    #[inline(always)]
    fn sum_codes<'a, C: Codes<'a>, const H: usize>(
        self,
        weights: &[[f32; H]; BLOCK],
        block: &Block<C>,
        out: &mut [[f32; DIM_STEP]],
    ) {
        match H {
            1 => sweep::<L, C, H, 8>(self, weights, block, out),
            2 => sweep::<L, C, H, 4>(self, weights, block, out),
            _ => sweep::<L, C, H, 2>(self, weights, block, out),
        }
    }
}

/// Scores of all heads and rows, `[row][head]`.
#[inline(always)]
pub(crate) fn scores4<S: ReadCodes<N>, const N: usize>(
    isa: S,
    queries: &[f32],
    heads: usize,
    records: Records<'_>,
    scores: &mut [f32],
) {
    match records.form {
        Form::Pairs => scores_as::<S, N, Pairs<'_>>(isa, queries, heads, records, scores),
        Form::Half => scores_as::<S, N, Half<'_>>(isa, queries, heads, records, scores),
        Form::Whole => scores_as::<S, N, Whole<'_>>(isa, queries, heads, records, scores),
    }
}

#[inline(always)]
fn scores_as<'a, S: ReadCodes<N>, const N: usize, C: Codes<'a>>(
    isa: S,
    queries: &[f32],
    heads: usize,
    records: Records<'a>,
    scores: &mut [f32],
) {
    for start in (0..records.len).step_by(BLOCK) {
        records.prefetch(isa, start + BLOCK);
        let block = records.block::<S, N, C>(isa, start);
        let scores = &mut scores[start * heads..][..block.count * heads];
        let mut head = 0;
        while head < heads {
            let group = (heads - head).min(4);
            match group {
                4 => isa.score_codes::<C, 4>(queries, (heads, head), &block, scores),
                3 => isa.score_codes::<C, 3>(queries, (heads, head), &block, scores),
                2 => isa.score_codes::<C, 2>(queries, (heads, head), &block, scores),
                _ => isa.score_codes::<C, 1>(queries, (heads, head), &block, scores),
            }
            head += group;
        }
    }
}

/// Scores of heads `head..head + H`, in eight accumulators of `8 / H` rows by `H` heads.
#[inline(always)]
fn score_group<'a, L: EightLanes, C: Codes<'a>, const H: usize>(
    isa: L,
    queries: &[f32],
    (heads, head): (usize, usize),
    block: &Block<C>,
    scores: &mut [f32],
) {
    let at_once = 8 / H;
    let vectors = block.vectors;
    let (queries, _) = queries.as_chunks::<DIM_STEP>();
    for first in (0..block.count).step_by(at_once) {
        let mut sums = [isa.splat(0.0); 8];
        for v in 0..vectors {
            let mut q = [isa.splat(0.0); H];
            for h in 0..H {
                q[h] = isa.load(&queries[(head + h) * vectors + v]);
            }
            for r in 0..at_once {
                let x = block.codes[(first + r).min(BLOCK - 1)].load(isa, v);
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
pub(crate) fn accumulate4<S: ReadCodes<N>, const N: usize>(
    isa: S,
    weights: &[f32],
    heads: usize,
    records: Records<'_>,
    out: &mut [f32],
) {
    match records.form {
        Form::Pairs => accumulate_as::<S, N, Pairs<'_>>(isa, weights, heads, records, out),
        Form::Half => accumulate_as::<S, N, Half<'_>>(isa, weights, heads, records, out),
        Form::Whole => accumulate_as::<S, N, Whole<'_>>(isa, weights, heads, records, out),
    }
}

#[inline(always)]
fn accumulate_as<'a, S: ReadCodes<N>, const N: usize, C: Codes<'a>>(
    isa: S,
    weights: &[f32],
    heads: usize,
    records: Records<'a>,
    out: &mut [f32],
) {
    for start in (0..records.len).step_by(BLOCK) {
        records.prefetch(isa, start + BLOCK);
        let block = records.block::<S, N, C>(isa, start);
        let weights = &weights[start * heads..][..block.count * heads];
        let mut head = 0;
        while head < heads {
            let group = (heads - head).min(4);
            match group {
                4 => accumulate_group::<S, N, C, 4>(isa, weights, (heads, head), &block, out),
                3 => accumulate_group::<S, N, C, 3>(isa, weights, (heads, head), &block, out),
                2 => accumulate_group::<S, N, C, 2>(isa, weights, (heads, head), &block, out),
                _ => accumulate_group::<S, N, C, 1>(isa, weights, (heads, head), &block, out),
            }
            head += group;
        }
    }
}

/// Adds the rows of a block, weighted for heads `head..head + H`.
#[inline(always)]
fn accumulate_group<'a, S: ReadCodes<N>, const N: usize, C: Codes<'a>, const H: usize>(
    isa: S,
    weights: &[f32],
    (heads, head): (usize, usize),
    block: &Block<C>,
    out: &mut [f32],
) {
    let mut scaled = [[0.0; H]; BLOCK];
    for (row, scaled) in scaled.iter_mut().enumerate().take(block.count) {
        for h in 0..H {
            scaled[h] = weights[row * heads + head + h] * block.factors[row];
        }
    }
    let (out, _) = out.as_chunks_mut::<DIM_STEP>();
    isa.sum_codes(&scaled, block, &mut out[head * block.vectors..][..H * block.vectors]);
}

/// Sweeps `W` vectors wide over the dimensions, then one vector wide over the rest.
#[inline(always)]
fn sweep<'a, L: EightLanes, C: Codes<'a>, const H: usize, const W: usize>(
    isa: L,
    scaled: &[[f32; H]; BLOCK],
    block: &Block<C>,
    out: &mut [[f32; DIM_STEP]],
) {
    let wide = block.vectors / W * W;
    for v in (0..wide).step_by(W) {
        accumulate_sweep::<L, C, H, W>(isa, scaled, block, v, out);
    }
    for v in wide..block.vectors {
        accumulate_sweep::<L, C, H, 1>(isa, scaled, block, v, out);
    }
}

/// One sweep over the block's rows, for vectors `v..v + W` of the dimensions.
#[inline(always)]
fn accumulate_sweep<'a, L: EightLanes, C: Codes<'a>, const H: usize, const W: usize>(
    isa: L,
    weights: &[[f32; H]; BLOCK],
    block: &Block<C>,
    v: usize,
    out: &mut [[f32; DIM_STEP]],
) {
    let mut sums = [[isa.splat(0.0); H]; W];
    for (codes, weights) in block.codes[..block.count].iter().zip(weights) {
        let codes = codes.cut(v, W);
        for (w, sums) in sums.iter_mut().enumerate() {
            let x = codes.load(isa, w);
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = isa.mul_add(isa.splat(weight), x, *sum);
            }
        }
    }
    let vectors = block.vectors;
    for (w, sums) in sums.iter().enumerate() {
        for (h, &sum) in sums.iter().enumerate() {
            let out = &mut out[h * vectors + v + w];
            isa.store(isa.add(isa.load(out), sum), out);
        }
    }
}
