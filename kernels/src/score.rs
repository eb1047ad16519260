//! Scores: the products of several query heads with key rows.

use crate::block::{Ahead, BLOCK_ROWS, Block, BlockRows, OfAnyDim, with_rows};
use crate::isa::Kernels;
use crate::lanes::EightLanes;
use crate::rows::{DIM_STEP, Element, Matrix, Pick, Rows, is_supported_dim};

impl Kernels {
    /// `scores[row * heads + head] = query[head] · rows[row]`, for every row, in `f32`.
    ///
    /// `queries` is `[heads, dim]`, already scaled. A score's bits depend on nothing but its query and its row: not
    /// on how rows are split over calls, nor on how many heads there are.
    ///
    /// # Panics
    /// If `dim` is not supported, `queries` is not `heads * dim` long, `rows` not whole rows, or `scores` not
    /// `heads` times as long as there are rows.
    pub fn scores(&self, queries: &[f32], heads: usize, dim: usize, rows: Rows<'_>, scores: &mut [f32]) {
        self.scores_of(queries, heads, Matrix::new(rows, dim, Pick::All), scores);
    }

    /// Like [`Kernels::scores`], for the listed rows, in the order of the list:
    /// `scores[i * heads + head] = query[head] · rows[indices[i]]`. Rows that are not listed are not read.
    ///
    /// # Panics
    /// As [`Kernels::scores`], with the list for the rows; and, before anything is read, if an index is out of range.
    pub fn scores_gathered(
        &self,
        queries: &[f32],
        heads: usize,
        dim: usize,
        rows: Rows<'_>,
        indices: &[u32],
        scores: &mut [f32],
    ) {
        self.scores_of(queries, heads, Matrix::new(rows, dim, Pick::Listed(indices)), scores);
    }

    /// `scores[row * heads + head] = Σ_i queries[head][i] * rows[row][i]`, for rows of 8-bit integers.
    ///
    /// # Panics
    /// If `dim` is not supported, `queries` is not `heads * dim` long, `rows` not whole rows, or `scores` not
    /// `heads` times as long as there are rows.
    pub fn scores_i8(&self, queries: &[f32], heads: usize, dim: usize, rows: &[i8], scores: &mut [f32]) {
        assert!(is_supported_dim(dim) && rows.len().is_multiple_of(dim), "{} elements of {dim}", rows.len());
        check_heads(heads, queries.len(), dim, "queries");
        check_per_row(scores.len(), rows.len() / dim, heads, "scores");
        (self.scores_i8)(queries, heads, rows, scores);
    }

    fn scores_of(&self, queries: &[f32], heads: usize, rows: Matrix<'_>, scores: &mut [f32]) {
        check_heads(heads, queries.len(), rows.dim(), "queries");
        check_per_row(scores.len(), rows.len(), heads, "scores");
        let mut start = 0;
        let mut next = rows.from(0);
        while let Some(block) = next {
            next = rows.from(start + BLOCK_ROWS);
            let ahead = Matrix::ahead(next.as_ref());
            let scores = &mut scores[start * heads..][..block.count * heads];
            (self.score)(queries, heads, &block, ahead, scores);
            start += BLOCK_ROWS;
        }
    }
}

/// Panics where `len` elements are not `heads` vectors of `dim`.
#[track_caller]
pub(crate) fn check_heads(heads: usize, len: usize, dim: usize, what: &str) {
    assert!(heads > 0, "there must be at least one head");
    assert!(len == heads * dim, "{what}: expected {heads} heads of {dim}, found {len} elements");
}

/// Panics where `len` elements are not one for each of `heads` heads and each of `rows` rows.
#[track_caller]
pub(crate) fn check_per_row(len: usize, rows: usize, heads: usize, what: &str) {
    assert!(len == rows * heads, "{what}: expected {rows} rows of {heads} heads, found {len} elements");
}

/// How the rows of a block are scored on one instruction set.
pub(crate) trait ScoreRows: Copy {
    /// Scores of heads `head..head + H` of `heads` against all rows of the block, `[row][head]`.
    fn score_group<'a, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
        self,
        queries: &[f32],
        of: (usize, usize),
        rows: R,
        ahead: Ahead<'_>,
        scores: &mut [f32],
    );
}

impl<L: EightLanes> ScoreRows for L {
    #[inline(always)]
    fn score_group<'a, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
        self,
        queries: &[f32],
        of: (usize, usize),
        rows: R,
        ahead: Ahead<'_>,
        scores: &mut [f32],
    ) {
        match H {
            4 => score_group::<L, T, R, H, 3>(self, queries, of, rows, ahead, scores),
            1 => score_group::<L, T, R, H, 8>(self, queries, of, rows, ahead, scores),
            _ => score_group::<L, T, R, H, 4>(self, queries, of, rows, ahead, scores),
        }
    }
}

/// Scores of all heads against one block, `[row][head]`.
#[inline(always)]
pub(crate) fn score_block<S: ScoreRows>(
    isa: S,
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
        // Of models in f32, or decoded from 8 bits or codes. A form of their own would be a third more code; what they would gain by it
        // was not measured.
        Rows::F32(all) => {
            let rows = block.slices(all);
            score_heads(isa, queries, heads, OfAnyDim(&rows[..block.count]), ahead, scores);
        }
    }
}

/// Takes the heads four at a time, then the rest at once: a row is loaded and widened once for each group.
#[inline(always)]
fn score_heads<'a, S: ScoreRows, T: Element + 'a>(
    isa: S,
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
            4 => isa.score_group::<T, _, 4>(queries, (heads, head), rows, ahead, scores),
            3 => isa.score_group::<T, _, 3>(queries, (heads, head), rows, ahead, scores),
            2 => isa.score_group::<T, _, 2>(queries, (heads, head), rows, ahead, scores),
            _ => isa.score_group::<T, _, 1>(queries, (heads, head), rows, ahead, scores),
        }
        ahead = Ahead::NOTHING;
        head += group;
    }
}

/// Scores of heads `head..head + H`, `N` rows at a time and then two; of four rows left by threes, two and two, since a single one
/// would wait for itself.
#[inline(always)]
fn score_group<'a, L: EightLanes, T: Element + 'a, R: BlockRows<'a, T>, const H: usize, const N: usize>(
    isa: L,
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
    let mut fetch = ahead.fetch(count.div_ceil(N));
    let mut first = 0;
    while first < count {
        fetch.step(isa);
        let left = count - first;
        let mut totals = [[0.0; 8]; 2];
        let taken = if left < N || (N == 3 && left == 4) { left.min(2) } else { N };
        if taken == N {
            products::<L, T, R, H, N>(isa, &query, rows, first, &mut totals);
        } else if taken == 2 {
            products::<L, T, R, H, 2>(isa, &query, rows, first, &mut totals);
        } else {
            products::<L, T, R, H, 1>(isa, &query, rows, first, &mut totals);
        }
        for (row, totals) in totals.as_flattened().chunks_exact(H).enumerate().take(taken) {
            scores[(first + row) * heads + head..][..H].copy_from_slice(totals);
        }
        first += taken;
    }
}

/// Products of `N` rows from row `first` on with the queries of `H` heads, `[row][head]`, in as many accumulators: twelve hide the
/// latency of their additions, and leave registers for what they add.
#[inline(always)]
fn products<'a, L: EightLanes, T: Element + 'a, R: BlockRows<'a, T>, const H: usize, const N: usize>(
    isa: L,
    query: &[&[[f32; 8]]; H],
    rows: R,
    first: usize,
    totals: &mut [[f32; 8]; 2],
) {
    let mut row: [&[[T; 8]]; N] = [&[]; N];
    for (r, row) in row.iter_mut().enumerate() {
        *row = rows.row(first + r);
    }
    let mut sums = [[isa.splat(0.0); H]; N];
    for v in 0..rows.vectors() {
        // Whatever is fewer waits in registers for the others.
        if N <= H {
            let mut x = [isa.splat(0.0); N];
            for r in 0..N {
                x[r] = T::load(isa, &row[r][v]);
            }
            for h in 0..H {
                let q = isa.load(&query[h][v]);
                for r in 0..N {
                    sums[r][h] = isa.mul_add(x[r], q, sums[r][h]);
                }
            }
        } else {
            let mut q = [isa.splat(0.0); H];
            for h in 0..H {
                q[h] = isa.load(&query[h][v]);
            }
            for r in 0..N {
                let x = T::load(isa, &row[r][v]);
                for h in 0..H {
                    sums[r][h] = isa.mul_add(x, q[h], sums[r][h]);
                }
            }
        }
    }
    let mut flat = [isa.splat(0.0); 16];
    for r in 0..N {
        for h in 0..H {
            flat[r * H + h] = sums[r][h];
        }
    }
    let (eights, _) = flat.as_chunks::<8>();
    let (first, rest) = totals.split_at_mut(1);
    isa.store(isa.sum_each(eights[0]), &mut first[0]);
    if N * H > 8 {
        let (fours, _) = eights[1].as_chunks::<4>();
        rest[0][..4].copy_from_slice(&isa.sum_four(fours[0]));
    }
}

/// Scores of rows of 8-bit integers, `[row][head]`.
#[inline(always)]
pub(crate) fn scores_i8<L: EightLanes>(
    isa: L,
    queries: &[f32],
    heads: usize,
    rows: &[i8],
    scores: &mut [f32],
) {
    let (queries, _) = queries.as_chunks::<DIM_STEP>();
    let (rows, _) = rows.as_chunks::<DIM_STEP>();
    let vectors = queries.len() / heads;
    for (row, scores) in rows.chunks_exact(vectors).zip(scores.chunks_exact_mut(heads)) {
        for (queries, scores) in queries.chunks(8 * vectors).zip(scores.chunks_mut(8)) {
            let mut sums = [isa.splat(0.0); 8];
            for (v, integers) in row.iter().enumerate() {
                let x = isa.load_i8(integers);
                for (h, query) in queries.chunks_exact(vectors).enumerate() {
                    sums[h] = isa.mul_add(x, isa.load(&query[v]), sums[h]);
                }
            }
            let mut totals = [0.0; 8];
            isa.store(isa.sum_each(sums), &mut totals);
            scores.copy_from_slice(&totals[..scores.len()]);
        }
    }
}
