//! Accumulation: the sums of value rows, weighted for several query heads.

use crate::block::{Ahead, BLOCK_ROWS, Block, BlockRows, OfAnyDim, with_rows};
use crate::isa::Kernels;
use crate::lanes::{EightLanes, Lanes};
use crate::rows::{Element, Matrix, Pick, Rows};
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
        let mut next = rows.from(0);
        while let Some(block) = next {
            next = rows.from(start + BLOCK_ROWS);
            let ahead = Matrix::ahead(next.as_ref());
            let weights = &weights[start * heads..][..block.count * heads];
            (self.accumulate)(weights, heads, &block, ahead, out);
            start += BLOCK_ROWS;
        }
    }
}

/// How the rows of a block are summed on one instruction set.
pub(crate) trait SumRows: Copy {
    /// Adds all rows of the block, weighted for `H` heads, to the outputs of these, one after the other.
    fn sum_group<'a, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
        self,
        weights: &[[f32; H]],
        rows: R,
        ahead: Ahead<'_>,
        out: &mut [f32],
    );
}

impl<L: EightLanes> SumRows for L {
    #[inline(always)]
    fn sum_group<'a, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
        self,
        weights: &[[f32; H]],
        rows: R,
        ahead: Ahead<'_>,
        out: &mut [f32],
    ) {
        match H {
            4 => sweep::<L, T, R, H, 2>(self, weights, rows, ahead, out),
            1 => sweep::<L, T, R, H, 8>(self, weights, rows, ahead, out),
            _ => sweep::<L, T, R, H, 4>(self, weights, rows, ahead, out),
        }
    }
}

/// Adds one block's weighted rows to the output of all heads, `[head][dim]`.
#[inline(always)]
pub(crate) fn accumulate_block<S: SumRows>(
    isa: S,
    weights: &[f32],
    heads: usize,
    block: &Block<'_>,
    ahead: Ahead<'_>,
    out: &mut [f32],
) {
    match block.rows {
        Rows::F16(all) => {
            with_rows!(block, all, rows => accumulate_heads(isa, weights, heads, rows, ahead, out))
        }
        Rows::Bf16(all) => {
            with_rows!(block, all, rows => accumulate_heads(isa, weights, heads, rows, ahead, out))
        }
        // Of models in f32, or decoded from 8 bits or codes. A form of their own would be a third more code; what they would gain by it
        // was not measured.
        Rows::F32(all) => {
            let rows = block.slices(all);
            accumulate_heads(isa, weights, heads, OfAnyDim(&rows[..block.count]), ahead, out);
        }
    }
}

#[inline(always)]
fn accumulate_heads<'a, S: SumRows, T: Element + 'a>(
    isa: S,
    weights: &[f32],
    heads: usize,
    rows: impl BlockRows<'a, T>,
    mut ahead: Ahead<'_>,
    out: &mut [f32],
) {
    let mut head = 0;
    while head < heads {
        let group = (heads - head).min(4);
        let out = &mut out[head * rows.vectors() * 8..];
        match group {
            4 => accumulate_group::<S, T, _, 4>(isa, weights, (heads, head), rows, ahead, out),
            3 => accumulate_group::<S, T, _, 3>(isa, weights, (heads, head), rows, ahead, out),
            2 => accumulate_group::<S, T, _, 2>(isa, weights, (heads, head), rows, ahead, out),
            _ => accumulate_group::<S, T, _, 1>(isa, weights, (heads, head), rows, ahead, out),
        }
        ahead = Ahead::NOTHING;
        head += group;
    }
}

/// Sums of `H` heads over the block, from head `head` of `heads` on.
#[inline(always)]
fn accumulate_group<'a, S: SumRows, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
    isa: S,
    weights: &[f32],
    (heads, head): (usize, usize),
    rows: R,
    ahead: Ahead<'_>,
    out: &mut [f32],
) {
    if heads == H {
        let (weights, _) = weights.as_chunks::<H>();
        return isa.sum_group(weights, rows, ahead, out);
    }
    let mut mine = [[0.0; H]; BLOCK_ROWS];
    for (mine, all) in mine.iter_mut().zip(weights.chunks_exact(heads)) {
        mine.copy_from_slice(&all[head..][..H]);
    }
    isa.sum_group(&mine, rows, ahead, out);
}

/// Sweeps `W` vectors wide over the dimensions, then one vector wide over the rest.
#[inline(always)]
fn sweep<'a, L: Lanes, T: Element + 'a, R: BlockRows<'a, T>, const H: usize, const W: usize>(
    isa: L,
    weights: &[[f32; H]],
    rows: R,
    ahead: Ahead<'_>,
    out: &mut [f32],
) {
    let (vectors, weights) = (rows.vectors(), &weights[..rows.count()]);
    let wide = vectors / W * W;
    let mut fetch = ahead.fetch(wide / W + vectors - wide);
    let (out, _) = out.as_chunks_mut::<8>();
    let out = &mut out[..H * vectors];
    for step in 0..wide / W {
        fetch.step(isa);
        let sums = sum_rows::<L, T, R, H, W>(isa, weights, rows, step * W);
        add_sums(isa, sums, &mut out[step * W..], vectors);
    }
    for first in wide..vectors {
        fetch.step(isa);
        let sums = sum_rows::<L, T, R, H, 1>(isa, weights, rows, first);
        add_sums(isa, sums, &mut out[first..], vectors);
    }
}

/// Sums of `W` vectors of the rows from vector `first` on, weighted for `H` heads, in as many registers.
#[inline(always)]
fn sum_rows<'a, L: Lanes, T: Element + 'a, R: BlockRows<'a, T>, const H: usize, const W: usize>(
    isa: L,
    weights: &[[f32; H]],
    rows: R,
    first: usize,
) -> [[L::V; W]; H] {
    let mut sums = [[isa.splat(0.0); W]; H];
    #[expect(
        clippy::needless_range_loop,
        reason = "so that neither rows nor weights are checked within the loop"
    )]
    for row in 0..rows.count() {
        let vectors = &rows.row(row)[first..][..W];
        for w in 0..W {
            let x = T::load(isa, &vectors[w]);
            for h in 0..H {
                sums[h][w] = isa.mul_add(isa.splat(weights[row][h]), x, sums[h][w]);
            }
        }
    }
    sums
}

/// Adds the sums to the outputs of `H` heads, which are `pitch` vectors apart.
#[inline(always)]
fn add_sums<L: Lanes, const H: usize, const W: usize>(
    isa: L,
    sums: [[L::V; W]; H],
    out: &mut [[f32; 8]],
    pitch: usize,
) {
    for h in 0..H {
        let out = &mut out[h * pitch..][..W];
        for w in 0..W {
            let total = isa.add(isa.load(&out[w]), sums[h][w]);
            isa.store(total, &mut out[w]);
        }
    }
}
