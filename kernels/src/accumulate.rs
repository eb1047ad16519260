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

/// Sums of one group of heads over the block, in whatever way its rows lie.
#[inline(always)]
fn accumulate_group<L: Lanes, T: Element, const H: usize, const W: usize>(
    isa: L,
    weights: &[f32],
    place: Place<'_>,
    block: BlockOf<'_, T>,
    out: &mut [f32],
) {
    let weights = weights.chunks_exact(place.heads);
    if block.contiguous {
        accumulate_rows::<L, T, H, W>(isa, weights.zip(block.following()), place, block, out);
    } else {
        accumulate_rows::<L, T, H, W>(isa, weights.zip(block.scattered()), place, block, out);
    }
}

/// Sweeps `W` vectors wide over the dimensions, then one vector wide over the rest.
///
/// `rows`, each row's weights and elements, is made once and copied for each sweep: making it divides lengths.
#[inline(always)]
fn accumulate_rows<'a, L: Lanes, T: Element + 'a, const H: usize, const W: usize>(
    isa: L,
    rows: impl Iterator<Item = (&'a [f32], &'a [[T; 8]])> + Clone,
    place: Place<'_>,
    block: BlockOf<'_, T>,
    out: &mut [f32],
) {
    let wide = block.vectors / W * W;
    let sweeps = wide / W + block.vectors - wide;
    let mut stream = place.ahead.stream(sweeps * block.count);
    let (out, _) = out.as_chunks_mut::<8>();
    let out = &mut out[place.head * block.vectors..][..H * block.vectors];
    for (sweep, first) in (0..wide).step_by(W).chain(wide..block.vectors).enumerate() {
        place.ahead.fetch_scattered(isa, sweep, sweeps);
        let rows = rows.clone();
        if first < wide {
            let sums = sum_rows::<L, T, H, W>(isa, rows, place.head, first, &mut stream);
            add_sums(isa, sums, &mut out[first..], block.vectors);
        } else {
            let sums = sum_rows::<L, T, H, 1>(isa, rows, place.head, first, &mut stream);
            add_sums(isa, sums, &mut out[first..], block.vectors);
        }
    }
}

/// Sums of `W` vectors of the rows from vector `first` on, weighted for `H` heads, in as many registers.
#[inline(always)]
fn sum_rows<'a, L: Lanes, T: Element + 'a, const H: usize, const W: usize>(
    isa: L,
    rows: impl Iterator<Item = (&'a [f32], &'a [[T; 8]])>,
    head: usize,
    first: usize,
    stream: &mut Stream,
) -> [[L::V; W]; H] {
    let mut sums = [[isa.splat(0.0); W]; H];
    for (weights, row) in rows {
        stream.fetch(isa);
        let weights = &weights[head..][..H];
        let row = &row[first..][..W];
        for w in 0..W {
            let x = T::load(isa, &row[w]);
            for h in 0..H {
                sums[h][w] = isa.mul_add(isa.splat(weights[h]), x, sums[h][w]);
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
