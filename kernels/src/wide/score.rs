//! Scores of blocks of rows, sixteen lanes at a time.

use super::{Wide, load_of};
use crate::block::{Ahead, BlockRows};
use crate::rows::Element;

/// Rows that are scored together.
pub(crate) const ROWS: usize = 4;

/// Scores of heads `head..head + H`. Where fewer rows are left than are scored together, the last is scored again in their place: one
/// alone would wait for itself.
#[inline(always)]
pub(crate) fn score_group<'a, I: Wide, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
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
        fetch.step(isa);
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
    totals(isa, sums)
}

/// The sums over the lanes of each accumulator, `[row][head]`.
#[inline(always)]
pub(crate) fn totals<I: Wide, const H: usize>(isa: I, sums: [[I::V; H]; ROWS]) -> [f32; 16] {
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
