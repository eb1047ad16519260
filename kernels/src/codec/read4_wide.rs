//! Scores and sums of coded rows, sixteen lanes at a time: the operations of [`read4`](super::read4).

use super::forms::{BLOCK, Block, Codes, Form, Half, Pairs, Records, Whole};
use crate::lanes::Lanes;
use crate::rows::DIM_STEP;
use crate::wide::{Wide, load_of};

/// Sixteen lanes that decode.
pub(crate) trait WideCodes: Wide {
    /// As [`EightLanes::load_levels4`](crate::lanes::EightLanes::load_levels4).
    fn load_levels4(self, codes: &[u8; 8]) -> Self::V;
    /// As [`EightLanes::load_half`](crate::lanes::EightLanes::load_half).
    fn load_half(self, high: &[u8; 4]) -> Self::V;
    /// As [`EightLanes::load_whole`](crate::lanes::EightLanes::load_whole).
    fn load_whole(self, high: &[u8; 4], low: &[u8; 4]) -> Self::V;
}

/// Codes of a row that are decoded sixteen at a time.
trait CodesOf<'a>: Codes<'a> {
    /// Vector `w` of sixteen elements; behind the last eight of a row come levels of no meaning.
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V;
}

impl<'a> CodesOf<'a> for Pairs<'a> {
    #[inline(always)]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V {
        isa.load_levels4(&wide_bytes(self.0, w))
    }
}

impl<'a> CodesOf<'a> for Half<'a> {
    #[inline(always)]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V {
        isa.load_half(&wide_bytes(self.0, w))
    }
}

impl<'a> CodesOf<'a> for Whole<'a> {
    #[inline(always)]
    fn load_wide<I: WideCodes>(self, isa: I, w: usize) -> I::V {
        isa.load_whole(&wide_bytes(self.0, w), &wide_bytes(self.1, w))
    }
}

/// The bytes of vector `w` of sixteen, of which `B` hold eight; filled up where there are no more.
#[inline(always)]
fn wide_bytes<const B: usize, const W: usize>(vectors: &[[u8; B]], w: usize) -> [u8; W] {
    let (first, second) = (&vectors[2 * w], vectors.get(2 * w + 1).unwrap_or(&[0; B]));
    let mut bytes = [0; W];
    bytes[..B].copy_from_slice(first);
    bytes[B..].copy_from_slice(second);
    bytes
}

/// Rows that are scored together.
const ROWS: usize = 4;
/// Vectors that are summed together.
const VECTORS: usize = 4;

/// Scores of all heads and rows, `[row][head]`.
#[inline(always)]
pub(crate) fn scores4_wide<I: WideCodes>(
    isa: I,
    queries: &[f32],
    heads: usize,
    records: Records<'_>,
    scores: &mut [f32],
) {
    match records.form {
        Form::Pairs => scores_as::<I, Pairs<'_>>(isa, queries, heads, records, scores),
        Form::Half => scores_as::<I, Half<'_>>(isa, queries, heads, records, scores),
        Form::Whole => scores_as::<I, Whole<'_>>(isa, queries, heads, records, scores),
    }
}

#[inline(always)]
fn scores_as<'a, I: WideCodes, C: CodesOf<'a>>(
    isa: I,
    queries: &[f32],
    heads: usize,
    records: Records<'a>,
    scores: &mut [f32],
) {
    for start in (0..records.len).step_by(BLOCK) {
        records.prefetch(isa.eight(), start + BLOCK);
        let block = records.block::<_, C>(isa.eight(), start);
        let scores = &mut scores[start * heads..][..block.count * heads];
        let mut head = 0;
        while head < heads {
            let group = (heads - head).min(4);
            match group {
                4 => score_group::<I, C, 4>(isa, queries, heads, head, &block, scores),
                3 => score_group::<I, C, 3>(isa, queries, heads, head, &block, scores),
                2 => score_group::<I, C, 2>(isa, queries, heads, head, &block, scores),
                _ => score_group::<I, C, 1>(isa, queries, heads, head, &block, scores),
            }
            head += group;
        }
    }
}

/// Scores of heads `head..head + H`, four rows at a time: places past the last row of a block repeat it.
#[inline(always)]
fn score_group<'a, I: WideCodes, C: CodesOf<'a>, const H: usize>(
    isa: I,
    queries: &[f32],
    heads: usize,
    head: usize,
    block: &Block<C>,
    scores: &mut [f32],
) {
    let vectors = block.vectors;
    let (queries, _) = queries.as_chunks::<DIM_STEP>();
    for first in (0..block.count).step_by(ROWS) {
        let mut sums = [[isa.splat(0.0); H]; ROWS];
        for w in 0..vectors.div_ceil(2) {
            let mut x = [isa.splat(0.0); ROWS];
            #[expect(clippy::needless_range_loop, reason = "an iterator keeps the vectors in memory")]
            for r in 0..ROWS {
                x[r] = block.codes[first + r].load_wide(isa, w);
            }
            for h in 0..H {
                let q = load_of(isa, &queries[(head + h) * vectors..][..vectors], w);
                for r in 0..ROWS {
                    sums[r][h] = isa.mul_add(x[r], q, sums[r][h]);
                }
            }
        }
        let mut flat = [isa.splat(0.0); 16];
        for r in 0..ROWS {
            for h in 0..H {
                flat[r * H + h] = sums[r][h];
            }
        }
        let mut totals = [0.0; 16];
        isa.store(isa.sum_each(flat), &mut totals);
        for (row, totals) in totals.chunks_exact(H).enumerate().take(ROWS.min(block.count - first)) {
            let scores = &mut scores[(first + row) * heads + head..][..H];
            for (score, total) in scores.iter_mut().zip(totals) {
                *score = block.factors[first + row] * total;
            }
        }
    }
}

/// Adds the weighted rows to the output of all heads, `[head][dim]`.
#[inline(always)]
pub(crate) fn accumulate4_wide<I: WideCodes>(
    isa: I,
    weights: &[f32],
    heads: usize,
    records: Records<'_>,
    out: &mut [f32],
) {
    match records.form {
        Form::Pairs => accumulate_as::<I, Pairs<'_>>(isa, weights, heads, records, out),
        Form::Half => accumulate_as::<I, Half<'_>>(isa, weights, heads, records, out),
        Form::Whole => accumulate_as::<I, Whole<'_>>(isa, weights, heads, records, out),
    }
}

#[inline(always)]
fn accumulate_as<'a, I: WideCodes, C: CodesOf<'a>>(
    isa: I,
    weights: &[f32],
    heads: usize,
    records: Records<'a>,
    out: &mut [f32],
) {
    for start in (0..records.len).step_by(BLOCK) {
        records.prefetch(isa.eight(), start + BLOCK);
        let block = records.block::<_, C>(isa.eight(), start);
        let weights = &weights[start * heads..][..block.count * heads];
        let mut head = 0;
        while head < heads {
            let group = (heads - head).min(4);
            match group {
                4 => accumulate_group::<I, C, 4>(isa, weights, heads, head, &block, out),
                3 => accumulate_group::<I, C, 3>(isa, weights, heads, head, &block, out),
                2 => accumulate_group::<I, C, 2>(isa, weights, heads, head, &block, out),
                _ => accumulate_group::<I, C, 1>(isa, weights, heads, head, &block, out),
            }
            head += group;
        }
    }
}

/// Sweeps four vectors wide over the dimensions, then one vector wide over the rest, whose last may be of eight lanes.
#[inline(always)]
fn accumulate_group<'a, I: WideCodes, C: CodesOf<'a>, const H: usize>(
    isa: I,
    weights: &[f32],
    heads: usize,
    head: usize,
    block: &Block<C>,
    out: &mut [f32],
) {
    let mut scaled = [[0.0; H]; BLOCK];
    for (row, scaled) in scaled.iter_mut().enumerate().take(block.count) {
        for h in 0..H {
            scaled[h] = weights[row * heads + head + h] * block.factors[row];
        }
    }
    let vectors = block.vectors;
    let (out, _) = out.as_chunks_mut::<DIM_STEP>();
    let out = &mut out[head * vectors..][..H * vectors];
    let fours = vectors / (2 * VECTORS);
    for four in 0..fours {
        let sums = sum_rows::<I, C, H, VECTORS>(isa, &scaled, block, four * VECTORS);
        add_sums(isa, sums, vectors, four * VECTORS, out);
    }
    for w in fours * VECTORS..vectors.div_ceil(2) {
        let sums = sum_rows::<I, C, H, 1>(isa, &scaled, block, w);
        add_sums(isa, sums, vectors, w, out);
    }
}

/// Sums of `W` vectors of the block's rows from vector `first` on, weighted for `H` heads.
#[inline(always)]
fn sum_rows<'a, I: WideCodes, C: CodesOf<'a>, const H: usize, const W: usize>(
    isa: I,
    weights: &[[f32; H]; BLOCK],
    block: &Block<C>,
    first: usize,
) -> [[I::V; W]; H] {
    let mut sums = [[isa.splat(0.0); W]; H];
    for (codes, weights) in block.codes[..block.count].iter().zip(weights) {
        // Cut to a length that the compiler knows, but for the last eight elements.
        let whole = 2 * (first + W) <= block.vectors;
        let codes = if whole { codes.cut(2 * first, 2 * W) } else { codes.cut(2 * first, 1) };
        let mut x = [isa.splat(0.0); W];
        #[expect(clippy::needless_range_loop, reason = "an iterator keeps the vectors in memory")]
        for w in 0..W {
            x[w] = codes.load_wide(isa, w);
        }
        for h in 0..H {
            let weight = isa.splat(weights[h]);
            for w in 0..W {
                sums[h][w] = isa.mul_add(weight, x[w], sums[h][w]);
            }
        }
    }
    sums
}

/// Adds sums of vectors from `first` on to the outputs of `H` heads, which are `vectors` vectors of eight each.
#[inline(always)]
fn add_sums<I: WideCodes, const H: usize, const W: usize>(
    isa: I,
    sums: [[I::V; W]; H],
    vectors: usize,
    first: usize,
    out: &mut [[f32; DIM_STEP]],
) {
    for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(vectors)) {
        for (w, sum) in sums.into_iter().enumerate() {
            let out = &mut out[2 * (first + w)..];
            match out.as_flattened_mut().first_chunk_mut() {
                Some(out) => isa.store(isa.add(isa.load(out), sum), out),
                None => {
                    let eight = isa.eight();
                    eight.store(eight.add(eight.load(&out[0]), isa.lower(sum)), &mut out[0]);
                }
            }
        }
    }
}
