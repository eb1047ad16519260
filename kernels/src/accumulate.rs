//! Accumulation: the sums of value rows, weighted for several query heads.

use crate::isa::Kernels;
use crate::lanes::Lanes;
use crate::rows::{Ahead, BLOCK_ROWS, Block, BlockOf, Element, Matrix, Pick, Rows, Stream};
use crate::score::{check_heads, check_per_row};

impl Kernels {
    /// `out[head * dim + i] += Σ_row weights[row * heads + head] * rows[row][i]`, in `f32`.
    ///
    /// Sixteen rows at a time, counted from the first, are summed by themselves and then added to `out`: with n rows
    /// an element is off by the rounding of at most 16 + n / 16 additions. Splitting the rows at a multiple of
    /// sixteen gives the same bits, elsewhere the same up to that rounding. A weight of zero does not hide a row that
    /// is not finite.
    ///
    /// # Panics
    /// If `dim` is not supported, `rows` not whole rows, `weights` not `heads` times as long as there are rows, or
    /// `out` not `heads * dim` long.
    pub fn accumulate(&self, weights: &[f32], heads: usize, dim: usize, rows: Rows<'_>, out: &mut [f32]) {
        self.accumulate_of(weights, heads, Matrix::new(rows, dim, Pick::All), out);
    }

    /// Like [`Kernels::accumulate`], over the listed rows, in the order of the list:
    /// `out[head * dim + i] += Σ_j weights[j * heads + head] * rows[indices[j]][i]`. Rows that are not listed are not
    /// read.
    ///
    /// # Panics
    /// As [`Kernels::accumulate`], with the list for the rows; and, before `out` is touched, if an index is out of
    /// range.
    pub fn accumulate_gathered(
        &self,
        weights: &[f32],
        heads: usize,
        dim: usize,
        rows: Rows<'_>,
        indices: &[u32],
        out: &mut [f32],
    ) {
        self.accumulate_of(weights, heads, Matrix::new(rows, dim, Pick::Listed(indices)), out);
    }

    pub(crate) fn accumulate_of(&self, weights: &[f32], heads: usize, rows: Matrix<'_>, out: &mut [f32]) {
        check_heads(heads, out.len(), rows.dim(), "output");
        check_per_row(weights.len(), rows.len(), heads, "weights");
        let mut start = 0;
        let mut next = rows.first();
        while let Some(block) = next {
            next = rows.after(start);
            let ahead = rows.ahead(next.as_ref());
            let weights = &weights[start * heads..][..block.count * heads];
            (self.accumulate)(weights, heads, &block, ahead, out);
            start += BLOCK_ROWS;
        }
    }
}

/// Adds one block's weighted rows to the output of all heads, `[head][dim]`.
#[inline(always)]
pub(crate) fn accumulate_block<L: Lanes>(
    isa: L,
    weights: &[f32],
    heads: usize,
    block: &Block<'_>,
    ahead: Ahead<'_>,
    out: &mut [f32],
) {
    match block.rows {
        Rows::F16(elements) => accumulate_heads(isa, weights, heads, block.of(elements), ahead, out),
        Rows::Bf16(elements) => accumulate_heads(isa, weights, heads, block.of(elements), ahead, out),
        Rows::F32(elements) => accumulate_heads(isa, weights, heads, block.of(elements), ahead, out),
    }
}

#[inline(always)]
fn accumulate_heads<L: Lanes, T: Element>(
    isa: L,
    weights: &[f32],
    heads: usize,
    block: BlockOf<'_, T>,
    mut ahead: Ahead<'_>,
    out: &mut [f32],
) {
    let mut head = 0;
    while head < heads {
        let group = (heads - head).min(4);
        let place = Place { heads, head, ahead };
        match group {
            4 => accumulate_group::<L, T, 4, 2>(isa, weights, place, block, out),
            3 => accumulate_group::<L, T, 3, 2>(isa, weights, place, block, out),
            2 => accumulate_group::<L, T, 2, 4>(isa, weights, place, block, out),
            _ => accumulate_group::<L, T, 1, 8>(isa, weights, place, block, out),
        }
        ahead = Ahead::NOTHING;
        head += group;
    }
}

/// Where a group of heads lies among all, and what to prefetch meanwhile.
#[derive(Clone, Copy)]
struct Place<'a> {
    heads: usize,
    head: usize,
    ahead: Ahead<'a>,
}

/// Sweeps `W` vectors wide over the dimensions, then one vector wide over the rest.
#[inline(always)]
fn accumulate_group<L: Lanes, T: Element, const H: usize, const W: usize>(
    isa: L,
    weights: &[f32],
    place: Place<'_>,
    block: BlockOf<'_, T>,
    out: &mut [f32],
) {
    let wide = block.vectors / W;
    let sweeps = wide + block.vectors % W;
    let stream = place.ahead.stream(sweeps * block.count);
    for sweep in 0..wide {
        place.ahead.fetch_scattered(isa, sweep, sweeps);
        let next = sweep * block.count * stream.stride;
        accumulate_sweep::<L, T, H, W>(isa, weights, place, block, sweep * W, (stream, next), out);
    }
    for vector in wide * W..block.vectors {
        let sweep = wide + vector - wide * W;
        place.ahead.fetch_scattered(isa, sweep, sweeps);
        let next = sweep * block.count * stream.stride;
        accumulate_sweep::<L, T, H, 1>(isa, weights, place, block, vector, (stream, next), out);
    }
}

/// One sweep over the block's rows with `H * W` accumulators in registers.
#[inline(always)]
fn accumulate_sweep<L: Lanes, T: Element, const H: usize, const W: usize>(
    isa: L,
    weights: &[f32],
    place: Place<'_>,
    block: BlockOf<'_, T>,
    first: usize,
    (stream, mut next): (Stream<'_>, usize),
    out: &mut [f32],
) {
    let mut sums = [[isa.splat(0.0); W]; H];
    for (row, weights) in weights.chunks_exact(place.heads).enumerate().take(block.count) {
        stream.fetch(isa, &mut next);
        let weights = &weights[place.head..][..H];
        let row = block.part(row, first, W);
        for w in 0..W {
            let x = T::load(isa, &row[w]);
            for h in 0..H {
                sums[h][w] = isa.mul_add(isa.splat(weights[h]), x, sums[h][w]);
            }
        }
    }
    let (out, _) = out.as_chunks_mut::<8>();
    for h in 0..H {
        let out = &mut out[(place.head + h) * block.vectors + first..][..W];
        for w in 0..W {
            let total = isa.add(isa.load(&out[w]), sums[h][w]);
            isa.store(total, &mut out[w]);
        }
    }
}
