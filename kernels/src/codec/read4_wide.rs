//! Scores and sums of coded rows, sixteen lanes at a time.

use super::forms::{BLOCK, Block, Codes, WideCodes};
use super::read4::ReadCodes;
use crate::avx512::Avx512;
use crate::lanes::Lanes;
use crate::rows::DIM_STEP;
use crate::wide::{ROWS, load_of, totals};

/// Vectors that are summed together.
const VECTORS: usize = 4;

impl ReadCodes<16> for Avx512 {
    #[inline(always)]
    fn score_codes<'a, C: Codes<'a>, const H: usize>(
        self,
        queries: &[f32],
        of: (usize, usize),
        block: &Block<C>,
        scores: &mut [f32],
    ) {
        score_group::<Avx512, C, H>(self, queries, of, block, scores);
    }

    #[inline(always)]
    fn sum_codes<'a, C: Codes<'a>, const H: usize>(
        self,
        weights: &[[f32; H]; BLOCK],
        block: &Block<C>,
        out: &mut [[f32; DIM_STEP]],
    ) {
        sum_group::<Avx512, C, H>(self, weights, block, out);
    }
}

/// Scores of heads `head..head + H`, four rows at a time: places past the last row of a block repeat it.
#[inline(always)]
fn score_group<'a, I: WideCodes, C: Codes<'a>, const H: usize>(
    isa: I,
    queries: &[f32],
    (heads, head): (usize, usize),
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
        for (row, totals) in totals(isa, sums).chunks_exact(H).enumerate().take(ROWS.min(block.count - first))
        {
            let scores = &mut scores[(first + row) * heads + head..][..H];
            for (score, total) in scores.iter_mut().zip(totals) {
                *score = block.factors[first + row] * total;
            }
        }
    }
}

/// Sweeps four vectors wide over the dimensions, then one vector wide over the rest, whose last may be of eight lanes.
#[inline(always)]
fn sum_group<'a, I: WideCodes, C: Codes<'a>, const H: usize>(
    isa: I,
    weights: &[[f32; H]; BLOCK],
    block: &Block<C>,
    out: &mut [[f32; DIM_STEP]],
) {
    let vectors = block.vectors;
    let fours = vectors / (2 * VECTORS);
    for four in 0..fours {
        let sums = sum_rows::<I, C, H, VECTORS>(isa, weights, block, four * VECTORS);
        add_sums(isa, sums, vectors, four * VECTORS, out);
    }
    for w in fours * VECTORS..vectors.div_ceil(2) {
        let sums = sum_rows::<I, C, H, 1>(isa, weights, block, w);
        add_sums(isa, sums, vectors, w, out);
    }
}

/// Sums of `W` vectors of the block's rows from vector `first` on, weighted for `H` heads.
#[inline(always)]
fn sum_rows<'a, I: WideCodes, C: Codes<'a>, const H: usize, const W: usize>(
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
