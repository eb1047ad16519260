//! From scores to weights: running maxima, exponentials, the soft cap.

use crate::isa::Kernels;
use crate::lanes::{EightLanes, Lanes, Portable};
use crate::score::check_per_row;

/// Rows whose weights are summed before they are added to the running sum, so that rounding grows with the number of
/// such groups and not with the number of rows.
const SUM_ROWS: usize = 256;

impl Kernels {
    /// Raises `max[head]` to the largest of the head's `scores`, which are `[row][head]`. A score that is not a
    /// number is passed over.
    ///
    /// # Panics
    /// If `max` is not `heads` long, or `scores` not whole rows of `heads`.
    pub fn max_per_head(&self, scores: &[f32], heads: usize, max: &mut [f32]) {
        check_shape(scores.len(), heads, max.len(), "maxima");
        (self.max_per_head)(scores, heads, max);
    }

    /// Turns scores into weights in place, `exp(score - shift[head])`, and adds each head's to `sums[head]`.
    ///
    /// A weight is within a relative 2^-23 of the exponential of the rounded difference. Differences below -87, minus
    /// infinity among them, give exactly 0; those above 88 count as 88. A shift of minus infinity, which is the
    /// maximum of a head all of whose rows are masked, counts as 0.
    ///
    /// # Panics
    /// If `shift` or `sums` is not `heads` long, or `scores` not whole rows of `heads`.
    pub fn exp_weights(&self, scores: &mut [f32], heads: usize, shift: &[f32], sums: &mut [f32]) {
        check_shape(scores.len(), heads, shift.len(), "shifts");
        check_shape(scores.len(), heads, sums.len(), "sums");
        for scores in scores.chunks_mut(SUM_ROWS * heads) {
            (self.exp_weights)(scores, heads, shift, sums);
        }
    }

    /// Caps scores in place: `cap * tanh(score / cap)`, within `cap` times 2^-21. Minus infinity stays, so that masked
    /// rows stay masked.
    ///
    /// # Panics
    /// If `cap` is not a positive, finite number.
    pub fn softcap(&self, scores: &mut [f32], cap: f32) {
        assert!(cap > 0.0 && cap.is_finite(), "soft cap {cap} is not a positive number");
        (self.softcap)(scores, cap);
    }
}

#[track_caller]
fn check_shape(scores: usize, heads: usize, per_head: usize, what: &str) {
    assert!(heads > 0, "there must be at least one head");
    assert!(per_head == heads, "{what}: expected {heads}, one for each head, found {per_head}");
    check_per_row(scores, scores / heads, heads, "scores");
}

/// `exp(x)` of one number, with the portable lanes: the same bits on every instruction set.
pub(crate) fn exp_one(x: f32) -> f32 {
    exp(Portable, [x; 8])[0]
}

/// `exp(x)`: 0 below -87, otherwise within a relative 2^-23, saturating at 88.
///
/// With n the integer nearest to x / ln 2, exp(x) = 2^n · exp(r), where r = x - n·ln 2 lies within ±0.347. The
/// polynomial 1 + r + r²·p(r) is within a relative 2^-26.5 of exp(r). ln 2 is split in two so that n times its larger
/// part is exact. Rounding r (at most 2^-26 in all, ln 2's smaller part times n included), r²·p (2^-29) and the two
/// sums (2^-26 and, the last, 2^-25 below 1 or 2^-24 above) adds up, relative to exp(r), to less than
/// 2^-23.3; what is lost to a second rounding where there is no fused operation is in it.
#[inline(always)]
pub(crate) fn exp<L: Lanes<N>, const N: usize>(isa: L, x: L::V) -> L::V {
    const LN_2_LARGE: f32 = 0.693_359_4;
    const LN_2_SMALL: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 leaves the nearest integer in the low bits of the sum.
    let magic = isa.splat(12_582_912.0);
    let capped = isa.min(isa.splat(88.0), x);
    let shifted = isa.mul_add(capped, isa.splat(std::f32::consts::LOG2_E), magic);
    let n = isa.sub(shifted, magic);
    let r = isa.mul_add(n, isa.splat(-LN_2_LARGE), capped);
    let r = isa.mul_add(n, isa.splat(-LN_2_SMALL), r);
    let mut p = isa.splat(0.001_392_625);
    for coefficient in [0.008_363_233, 0.041_666_552, 0.166_665_76, 0.5] {
        p = isa.mul_add(p, r, isa.splat(coefficient));
    }
    let near = isa.add(isa.mul_add(p, isa.mul(r, r), r), isa.splat(1.0));
    let y = isa.mul(near, isa.power_of_low_bits(shifted));
    isa.where_less(x, isa.splat(-87.0), isa.splat(0.0), y)
}

/// `exp(x) - 1` for x from 0 to 1/2, within a relative 4e-7: the series, whose first left-out term is less than 1e-7.
#[inline(always)]
pub(crate) fn small_exp_m1<L: Lanes<N>, const N: usize>(isa: L, x: L::V) -> L::V {
    let mut sum = isa.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
        sum = isa.mul_add(sum, x, isa.splat(coefficient));
    }
    isa.mul(x, sum)
}

/// Variances that [`relative_variance`] is good for.
pub(crate) const RELATIVE_VARIANCE_MAX: f32 = 4.0;

/// `exp(x) - 1` for x from 0 to [`RELATIVE_VARIANCE_MAX`], which the exponential of a normal number of variance x has as its
/// relative variance, within a relative 1.1e-5: x times the polynomial of degree 7 of least relative error (Remez), whose
/// own is 9.7e-6. It goes into what is said of an error, which is not known to more digits, and costs half of an exponential.
#[inline(always)]
pub(crate) fn relative_variance<L: Lanes<N>, const N: usize>(isa: L, x: L::V) -> L::V {
    let mut sum = isa.splat(0.000_144_554);
    for coefficient in [
        -0.000_727_251_8,
        0.004_604_579_3,
        0.002_549_236,
        0.047_061_855,
        0.164_293_1,
        0.500_381_7,
        0.999_990_4,
    ] {
        sum = isa.mul_add(sum, x, isa.splat(coefficient));
    }
    isa.mul(x, sum)
}

/// Running maxima of all heads over `[row][head]` scores.
#[inline(always)]
pub(crate) fn max_per_head<L: Lanes<N>, const N: usize>(
    isa: L,
    scores: &[f32],
    heads: usize,
    max: &mut [f32],
) {
    match heads {
        1 | 2 | 4 | 8 => max_interleaved::<L, N, 1>(isa, scores, heads, max),
        3 | 6 => max_interleaved::<L, N, 3>(isa, scores, heads, max),
        5 => max_interleaved::<L, N, 5>(isa, scores, heads, max),
        7 => max_interleaved::<L, N, 7>(isa, scores, heads, max),
        _ => max_strided(isa, scores, heads, max),
    }
}

/// Up to eight heads: `P` vectors of `N` hold a whole number of rows, and lane l of vector p always belongs to head
/// `(N p + l) mod heads`.
#[inline(always)]
fn max_interleaved<L: Lanes<N>, const N: usize, const P: usize>(
    isa: L,
    scores: &[f32],
    heads: usize,
    max: &mut [f32],
) {
    let mut largest = [isa.splat(f32::NEG_INFINITY); P];
    let (vectors, _) = scores.as_chunks::<N>();
    let periods = vectors.chunks_exact(P);
    let whole = periods.len() * P * N;
    for period in periods {
        for p in 0..P {
            largest[p] = isa.max(isa.load(&period[p]), largest[p]);
        }
    }
    for (p, rest) in scores[whole..].chunks(N).enumerate() {
        largest[p] = isa.max(isa.load_or(rest, f32::NEG_INFINITY), largest[p]);
    }
    let mut lanes = [[0.0; N]; P];
    for (largest, lanes) in largest.into_iter().zip(&mut lanes) {
        isa.store(largest, lanes);
    }
    for row in lanes.as_flattened().chunks_exact(heads) {
        for (max, &x) in max.iter_mut().zip(row) {
            if x > *max {
                *max = x;
            }
        }
    }
}

/// Many heads: as many at a time as there are lanes, row by row.
#[inline(always)]
fn max_strided<L: Lanes<N>, const N: usize>(isa: L, scores: &[f32], heads: usize, max: &mut [f32]) {
    for (group, max) in max.chunks_mut(N).enumerate() {
        let mut largest = isa.load_or(max, f32::NEG_INFINITY);
        for row in scores.chunks_exact(heads) {
            largest = isa.max(isa.load_or(&row[group * N..][..max.len()], f32::NEG_INFINITY), largest);
        }
        isa.store_first(largest, max);
    }
}

/// Weights of all heads from `[row][head]` scores, in place, and their sums.
#[inline(always)]
pub(crate) fn exp_weights<L: Lanes<N>, const N: usize>(
    isa: L,
    scores: &mut [f32],
    heads: usize,
    shift: &[f32],
    sums: &mut [f32],
) {
    match heads {
        1 | 2 | 4 | 8 => exp_interleaved::<L, N, 1>(isa, scores, heads, shift, sums),
        3 | 6 => exp_interleaved::<L, N, 3>(isa, scores, heads, shift, sums),
        5 => exp_interleaved::<L, N, 5>(isa, scores, heads, shift, sums),
        7 => exp_interleaved::<L, N, 7>(isa, scores, heads, shift, sums),
        _ => exp_strided(isa, scores, heads, shift, sums),
    }
}

#[inline(always)]
fn exp_interleaved<L: Lanes<N>, const N: usize, const P: usize>(
    isa: L,
    scores: &mut [f32],
    heads: usize,
    shift: &[f32],
    sums: &mut [f32],
) {
    let mut lanes = [[0.0; N]; P];
    for row in lanes.as_flattened_mut().chunks_exact_mut(heads) {
        for (lane, &shift) in row.iter_mut().zip(shift) {
            *lane = finite_shift(shift);
        }
    }
    let mut shifts = [isa.splat(0.0); P];
    for (shifts, lanes) in shifts.iter_mut().zip(&lanes) {
        *shifts = isa.load(lanes);
    }
    let mut totals = [isa.splat(0.0); P];
    let whole = scores.len() / (P * N) * (P * N);
    let (periods, rest) = scores.split_at_mut(whole);
    let (vectors, _) = periods.as_chunks_mut::<N>();
    for period in vectors.chunks_exact_mut(P) {
        for p in 0..P {
            let weights = exp(isa, isa.sub(isa.load(&period[p]), shifts[p]));
            isa.store(weights, &mut period[p]);
            totals[p] = isa.add(totals[p], weights);
        }
    }
    for (p, rest) in rest.chunks_mut(N).enumerate() {
        let weights = exp(isa, isa.sub(isa.load_or(rest, f32::NEG_INFINITY), shifts[p]));
        isa.store_first(weights, rest);
        totals[p] = isa.add(totals[p], weights);
    }
    for (totals, lanes) in totals.into_iter().zip(&mut lanes) {
        isa.store(totals, lanes);
    }
    let mut per_head = [0.0; 8];
    for row in lanes.as_flattened().chunks_exact(heads) {
        for (total, &x) in per_head.iter_mut().zip(row) {
            *total += x;
        }
    }
    for (sum, total) in sums.iter_mut().zip(per_head) {
        *sum += total;
    }
}

#[inline(always)]
fn exp_strided<L: Lanes<N>, const N: usize>(
    isa: L,
    scores: &mut [f32],
    heads: usize,
    shift: &[f32],
    sums: &mut [f32],
) {
    for (group, (shift, sums)) in shift.chunks(N).zip(sums.chunks_mut(N)).enumerate() {
        let mut lanes = [0.0; N];
        for (lane, &shift) in lanes.iter_mut().zip(shift) {
            *lane = finite_shift(shift);
        }
        let shifts = isa.load(&lanes);
        let mut totals = isa.splat(0.0);
        for row in scores.chunks_exact_mut(heads) {
            let row = &mut row[group * N..][..shift.len()];
            let weights = exp(isa, isa.sub(isa.load_or(row, f32::NEG_INFINITY), shifts));
            isa.store_first(weights, row);
            totals = isa.add(totals, weights);
        }
        isa.store(totals, &mut lanes);
        for (sum, total) in sums.iter_mut().zip(lanes) {
            *sum += total;
        }
    }
}

/// A head without any unmasked row has a maximum of minus infinity, which would make masked minus shift no number.
#[inline(always)]
fn finite_shift(shift: f32) -> f32 {
    if shift == f32::NEG_INFINITY { 0.0 } else { shift }
}

/// `cap * tanh(score / cap)` in place, from tanh(|y|) = (1 - e) / (1 + e) with e = exp(-2|y|).
///
/// e is off by at most 2^-23 + 2^-24 of itself, which tanh takes at most half of; the five roundings that follow are
/// of numbers up to 1: less than 2^-21 in all.
#[inline(always)]
pub(crate) fn softcap<L: EightLanes>(isa: L, scores: &mut [f32], cap: f32) {
    let one = isa.splat(1.0);
    for scores in scores.chunks_mut(8) {
        let x = isa.load_or(scores, f32::NEG_INFINITY);
        let y = isa.abs(isa.div(x, isa.splat(cap)));
        let e = exp(isa, isa.mul(y, isa.splat(-2.0)));
        let tanh = isa.div(isa.sub(one, e), isa.add(one, e));
        let capped = isa.with_sign(isa.mul(tanh, isa.splat(cap)), x);
        isa.store_first(isa.where_less(x, isa.splat(f32::MIN), x, capped), scores);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relative_variance_is_that_of_a_log_normal() {
        for step in 1..=40_000 {
            // From 1e-6 on by equal factors, so that small ones are seen as well.
            let x = 1e-6 * (f64::from(RELATIVE_VARIANCE_MAX) * 1e6).powf(f64::from(step) / 40_000.0);
            let [found, ..] = relative_variance(Portable, [x as f32; 8]);
            let expected = f64::from(x as f32).exp_m1();
            assert!((f64::from(found) / expected - 1.0).abs() < 1.1e-5, "{found} for {expected} at {x}");
        }
        assert_eq!(relative_variance(Portable, [0.0; 8]), [0.0; 8]);
    }
}
