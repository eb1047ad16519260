//! Scores: the products of several query heads with key rows.

use crate::isa::Kernels;
use crate::lanes::Lanes;
use crate::rows::{
    Ahead, BLOCK_ROWS, Block, BlockOf, DIM_STEP, Element, Matrix, Pick, Rows, is_supported_dim,
};

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
        let mut next = rows.first();
        while let Some(block) = next {
            next = rows.after(start);
            let ahead = rows.ahead(next.as_ref());
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

/// Scores of all heads against one block, `[row][head]`.
#[inline(always)]
pub(crate) fn score_block<L: Lanes>(
    isa: L,
    queries: &[f32],
    heads: usize,
    block: &Block<'_>,
    ahead: Ahead<'_>,
    scores: &mut [f32],
) {
    match block.rows {
        Rows::F16(elements) => score_heads(isa, queries, heads, block.of(elements), ahead, scores),
        Rows::Bf16(elements) => score_heads(isa, queries, heads, block.of(elements), ahead, scores),
        Rows::F32(elements) => score_heads(isa, queries, heads, block.of(elements), ahead, scores),
    }
}

/// Takes the heads four at a time, then the rest at once: a row is loaded and widened once for each group.
#[inline(always)]
fn score_heads<L: Lanes, T: Element>(
    isa: L,
    queries: &[f32],
    heads: usize,
    block: BlockOf<'_, T>,
    mut ahead: Ahead<'_>,
    scores: &mut [f32],
) {
    let mut head = 0;
    while head < heads {
        let group = (heads - head).min(4);
        match group {
            4 => score_group::<L, T, 4>(isa, queries, heads, head, block, ahead, scores),
            3 => score_group::<L, T, 3>(isa, queries, heads, head, block, ahead, scores),
            2 => score_group::<L, T, 2>(isa, queries, heads, head, block, ahead, scores),
            _ => score_group::<L, T, 1>(isa, queries, heads, head, block, ahead, scores),
        }
        ahead = Ahead::NOTHING;
        head += group;
    }
}

/// Scores of heads `head..head + H`: eight accumulators, of `8 / H` rows by `H` heads, are enough to hide the latency
/// of their additions and few enough to stay in registers.
#[inline(always)]
fn score_group<L: Lanes, T: Element, const H: usize>(
    isa: L,
    queries: &[f32],
    heads: usize,
    head: usize,
    block: BlockOf<'_, T>,
    ahead: Ahead<'_>,
    scores: &mut [f32],
) {
    let at_once = 8 / H;
    let vectors = block.vectors;
    let (queries, _) = queries.as_chunks::<8>();
    let mut query: [&[[f32; 8]]; H] = [&[]; H];
    for h in 0..H {
        query[h] = &queries[(head + h) * vectors..][..vectors];
    }
    let steps = block.count.div_ceil(at_once);
    let mut stream = ahead.stream(steps * vectors);
    for (step, first) in (0..block.count).step_by(at_once).enumerate() {
        ahead.fetch_scattered(isa, step, steps);
        let mut rows: [&[[T; 8]]; 8] = [&[]; 8];
        for (r, row) in rows.iter_mut().enumerate().take(at_once) {
            // The last step may begin rows that are not there; the block repeats its last row in their places.
            *row = block.row(first + r);
        }
        let mut sums = [isa.splat(0.0); 8];
        for v in 0..vectors {
            stream.fetch(isa);
            let mut q = [isa.splat(0.0); H];
            for h in 0..H {
                q[h] = isa.load(&query[h][v]);
            }
            for r in 0..at_once {
                let x = T::load(isa, &rows[r][v]);
                for h in 0..H {
                    sums[r * H + h] = isa.mul_add(x, q[h], sums[r * H + h]);
                }
            }
        }
        let mut totals = [0.0; 8];
        isa.store(isa.sum_each(sums), &mut totals);
        for (row, totals) in totals.chunks_exact(H).enumerate().take(block.count - first) {
            scores[(first + row) * heads + head..][..H].copy_from_slice(totals);
        }
    }
}

/// Scores of rows of 8-bit integers, `[row][head]`.
#[inline(always)]
pub(crate) fn scores_i8<L: Lanes>(isa: L, queries: &[f32], heads: usize, rows: &[i8], scores: &mut [f32]) {
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
