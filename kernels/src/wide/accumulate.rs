//! Weighted sums of blocks of rows, sixteen lanes at a time.

use super::{Wide, load_of};
use crate::block::{Ahead, BlockRows, Fetch};
use crate::lanes::Lanes;
use crate::rows::Element;

/// Sweeps four vectors wide over the dimensions, then one vector wide over the rest, whose last may be of eight lanes.
#[inline(always)]
pub(crate) fn sum_group<'a, I: Wide, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
    isa: I,
    weights: &[[f32; H]],
    rows: R,
    ahead: Ahead<'_>,
    out: &mut [f32],
) {
    let (vectors, weights) = (rows.vectors(), &weights[..rows.count()]);
    let wide = vectors.div_ceil(2);
    let fours = vectors / 8;
    let mut fetch = ahead.fetch_in_shares(fours + wide - fours * 4, rows.count());
    let (out, _) = out.as_chunks_mut::<8>();
    let out = &mut out[..H * vectors];
    for step in 0..fours {
        let sums = sum_rows::<I, T, R, H, 4>(isa, weights, rows, step * 4, &mut fetch);
        add_sums(isa, sums, &mut out[step * 8..], vectors);
    }
    for w in fours * 4..wide {
        let sums = sum_rows::<I, T, R, H, 1>(isa, weights, rows, w, &mut fetch);
        if 2 * w + 1 < vectors {
            add_sums(isa, sums, &mut out[2 * w..], vectors);
        } else {
            for (h, [sum]) in sums.into_iter().enumerate() {
                let (eight, out) = (isa.eight(), &mut out[h * vectors + 2 * w]);
                eight.store(eight.add(eight.load(out), isa.lower(sum)), out);
            }
        }
    }
}

/// Sums of `W` vectors of the rows from vector `first` on, weighted for `H` heads, in as many registers. Each row asks for a share of
/// what is needed next: asked for all at once, lines wait for each other.
#[inline(always)]
fn sum_rows<'a, I: Wide, T: Element + 'a, R: BlockRows<'a, T>, const H: usize, const W: usize>(
    isa: I,
    weights: &[[f32; H]],
    rows: R,
    first: usize,
    fetch: &mut Fetch<'_>,
) -> [[I::V; W]; H] {
    fetch.step_rows(isa);
    let mut sums = [[isa.splat(0.0); W]; H];
    #[expect(
        clippy::needless_range_loop,
        reason = "so that neither rows nor weights are checked within the loop"
    )]
    for row in 0..rows.count() {
        fetch.share(isa);
        // Cut to a length that the compiler knows, but for the last eight elements.
        let whole = 2 * (first + W) <= rows.vectors();
        let vectors = &rows.row(row)[2 * first..][..if whole { 2 * W } else { 1 }];
        let mut x = [isa.splat(0.0); W];
        for w in 0..W {
            x[w] = load_of(isa, vectors, w);
        }
        for h in 0..H {
            let weight = isa.splat(weights[row][h]);
            for w in 0..W {
                sums[h][w] = isa.mul_add(weight, x[w], sums[h][w]);
            }
        }
    }
    sums
}

/// Adds the sums to the outputs of `H` heads, which are `pitch` vectors of eight apart.
#[inline(always)]
fn add_sums<I: Wide, const H: usize, const W: usize>(
    isa: I,
    sums: [[I::V; W]; H],
    out: &mut [[f32; 8]],
    pitch: usize,
) {
    for h in 0..H {
        let (out, _) = out[h * pitch..][..2 * W].as_flattened_mut().as_chunks_mut();
        for w in 0..W {
            let total = isa.add(isa.load(&out[w]), sums[h][w]);
            isa.store(total, &mut out[w]);
        }
    }
}
