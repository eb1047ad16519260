//! Scores of blocks of rows, sixteen lanes at a time.

use super::{Wide, load_of};
use crate::block::{Ahead, Block, BlockRows, OfAnyDim, with_rows};
use crate::rows::{Element, Rows};

/// Scores of all heads against one block, `[row][head]`.
#[inline(always)]
pub(crate) fn score_block<I: Wide>(
    isa: I,
    queries: &[f32],
    heads: usize,
    block: &Block<'_>,
    ahead: Ahead<'_>,
    scores: &mut [f32],
) {
    match block.rows {
        Rows::F16(all) => {
            with_rows!(block, all, rows => score_heads(isa, queries, heads, rows, ahead, scores))
        }
        Rows::Bf16(all) => {
            with_rows!(block, all, rows => score_heads(isa, queries, heads, rows, ahead, scores))
        }
        Rows::F32(all) => {
            let rows = block.slices(all);
            score_heads(isa, queries, heads, OfAnyDim(&rows[..block.count]), ahead, scores);
        }
    }
}

/// Takes the heads four at a time, then the rest at once: a row is loaded and widened once for each group.
#[inline(always)]
fn score_heads<'a, I: Wide, T: Element + 'a>(
    isa: I,
    queries: &[f32],
    heads: usize,
    rows: impl BlockRows<'a, T>,
    mut ahead: Ahead<'_>,
    scores: &mut [f32],
) {
    let mut head = 0;
    while head < heads {
        let group = (heads - head).min(4);
        match group {
            4 => score_group::<I, T, _, 4>(isa, queries, (heads, head), rows, ahead, scores),
            3 => score_group::<I, T, _, 3>(isa, queries, (heads, head), rows, ahead, scores),
            2 => score_group::<I, T, _, 2>(isa, queries, (heads, head), rows, ahead, scores),
            _ => score_group::<I, T, _, 1>(isa, queries, (heads, head), rows, ahead, scores),
        }
        ahead = Ahead::NOTHING;
        head += group;
    }
}

/// Rows that are scored together.
const ROWS: usize = 4;

/// Scores of heads `head..head + H`. Where fewer rows are left than are scored together, the last is scored again in their place: one
/// alone would wait for itself.
#[inline(always)]
fn score_group<'a, I: Wide, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
    isa: I,
    queries: &[f32],
    (heads, head): (usize, usize),
    rows: R,
    ahead: Ahead<'_>,
    scores: &mut [f32],
) {
    let (vectors, count) = (rows.vectors(), rows.count());
    let (queries, _) = queries.as_chunks::<8>();
    let mut query: [&[[f32; 8]]; H] = [&[]; H];
    for h in 0..H {
        query[h] = &queries[(head + h) * vectors..][..vectors];
    }
    let mut fetch = ahead.fetch(count.div_ceil(ROWS));
    for first in (0..count).step_by(ROWS) {
        fetch.step(isa.eight());
        let mut row: [&[[T; 8]]; ROWS] = [&[]; ROWS];
        for (r, row) in row.iter_mut().enumerate() {
            *row = rows.row((first + r).min(count - 1));
        }
        let totals = products::<I, T, H>(isa, &query, row);
        let taken = ROWS.min(count - first);
        if heads == H && taken == ROWS {
            scores[first * H..][..ROWS * H].copy_from_slice(&totals[..ROWS * H]);
        } else {
            for (row, totals) in totals.chunks_exact(H).enumerate().take(taken) {
                scores[(first + row) * heads + head..][..H].copy_from_slice(totals);
            }
        }
    }
}

/// Products of rows with the queries of `H` heads, `[row][head]`, in as many accumulators.
#[inline(always)]
fn products<I: Wide, T: Element, const H: usize>(
    isa: I,
    query: &[&[[f32; 8]]; H],
    row: [&[[T; 8]]; ROWS],
) -> [f32; 16] {
    let mut sums = [[isa.splat(0.0); H]; ROWS];
    for w in 0..query[0].len().div_ceil(2) {
        let mut x = [isa.splat(0.0); ROWS];
        for r in 0..ROWS {
            x[r] = load_of(isa, row[r], w);
        }
        for h in 0..H {
            let q = load_of(isa, query[h], w);
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
    totals
}
