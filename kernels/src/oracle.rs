//! The same operations in `f64`, and how far the kernels may be off from them.
//!
//! The bounds are derived, not tuned. With u = 2^-24, the unit roundoff of `f32`, a value that goes through k
//! roundings is off by a relative k·u at most, to first order; a sum of products is therefore off by at most k·u times
//! the sum of the products' magnitudes, whatever cancels, where k is the longest chain of roundings from a product to
//! the total. Products may also underflow, by half the smallest subnormal each. [`FIRST_ORDER`] covers higher orders.
//!
//! Nothing here is fast; nothing here shares code with the kernels, [`Rows::get`] excepted.

use crate::rows::Rows;

/// Unit roundoff of `f32`: half the distance from 1 to the next number.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// Relative error of one exponential, as `Kernels::exp_weights` states it.
pub const EXP_ERROR: f64 = 1.0 / (1u64 << 23) as f64;

/// Error of the soft cap, relative to the cap, as `Kernels::softcap` states it.
pub const SOFTCAP_ERROR: f64 = 1.0 / (1u64 << 21) as f64;

/// Factor on first-order bounds: (1 + u)^k is below 1 + 1.01·k·u while k·u is below 0.01.
pub const FIRST_ORDER: f64 = 1.01;

/// Half the smallest subnormal `f32`: what rounding a product that underflows may cost.
const UNDERFLOW: f64 = 0.5 * 1.401_298_464_324_817e-45;

/// Values, and how far a kernel's may lie from each.
#[derive(Clone, Debug)]
pub struct Bounded {
    /// The values, in `f64`.
    pub values: Vec<f64>,
    /// The largest absolute error that rounding explains, one for each value.
    pub bounds: Vec<f64>,
}

impl Bounded {
    /// Numbers that are what they are.
    pub fn exact(numbers: &[f32]) -> Bounded {
        Bounded { values: numbers.iter().map(|&x| f64::from(x)).collect(), bounds: vec![0.0; numbers.len()] }
    }

    /// The first place where `actual` is further off than its bound, as a sentence.
    ///
    /// # Errors
    /// If there is such a place, or the lengths differ.
    pub fn check(&self, actual: &[f32]) -> Result<(), String> {
        if actual.len() != self.values.len() {
            return Err(format!("{} values for {}", actual.len(), self.values.len()));
        }
        for (place, ((&actual, &value), &bound)) in
            actual.iter().zip(&self.values).zip(&self.bounds).enumerate()
        {
            let actual = f64::from(actual);
            // Equality first, since infinities have no difference.
            let off = (actual - value).abs();
            if actual != value && (off > bound || off.is_nan()) {
                return Err(format!("place {place}: {actual} for {value}, off by {off:e}, bound {bound:e}"));
            }
        }
        Ok(())
    }
}

/// Scores as `Kernels::scores` defines them, `[row][head]`.
///
/// A product is rounded once, added to a lane's sum in at most dim / 8 additions, and then goes through three more; with
/// sixteen lanes, half as many and four more.
///
/// # Panics
/// If the shapes do not fit.
pub fn scores(queries: &[f32], heads: usize, dim: usize, rows: Rows<'_>) -> Bounded {
    assert_eq!(queries.len(), heads * dim, "queries");
    let roundings = (dim / 8 + 4) as f64;
    let mut result = Bounded { values: Vec::new(), bounds: Vec::new() };
    for row in 0..rows.len() / dim {
        let key: Vec<f64> = (0..dim).map(|i| f64::from(rows.get(row * dim + i))).collect();
        for query in queries.chunks_exact(dim) {
            let products = query.iter().zip(&key).map(|(&q, &k)| f64::from(q) * k);
            let magnitude: f64 = products.clone().map(f64::abs).sum();
            result.values.push(products.sum());
            result.bounds.push(FIRST_ORDER * (roundings * UNIT * magnitude + dim as f64 * UNDERFLOW));
        }
    }
    result
}

/// What `Kernels::accumulate` makes of `out`, `[head][dim]`.
///
/// A product is rounded once, goes through at most 16 additions within its block and one for each block after it.
///
/// # Panics
/// If the shapes do not fit.
pub fn accumulate(weights: &[f32], heads: usize, dim: usize, rows: Rows<'_>, out: &[f32]) -> Bounded {
    let count = rows.len() / dim;
    assert_eq!(weights.len(), heads * count, "weights");
    assert_eq!(out.len(), heads * dim, "output");
    let roundings = (1 + 16 + count.div_ceil(16)) as f64;
    let mut result = Bounded { values: Vec::new(), bounds: Vec::new() };
    for head in 0..heads {
        for i in 0..dim {
            let before = f64::from(out[head * dim + i]);
            let (mut value, mut magnitude) = (before, before.abs());
            for row in 0..count {
                let product = f64::from(weights[row * heads + head]) * f64::from(rows.get(row * dim + i));
                value += product;
                magnitude += product.abs();
            }
            result.values.push(value);
            result.bounds.push(FIRST_ORDER * (roundings * UNIT * magnitude + count as f64 * UNDERFLOW));
        }
    }
    result
}

/// The weight `exp(score - shift)`, and the bound on a kernel's.
///
/// Rounding the difference is a relative error of the weight as large as the rounding itself. Below -87 the kernels
/// give 0, which the bound allows.
pub fn weight(score: f32, shift: f32) -> (f64, f64) {
    let shift = if shift == f32::NEG_INFINITY { 0.0 } else { f64::from(shift) };
    let difference = f64::from(score) - shift;
    if difference == f64::NEG_INFINITY {
        return (0.0, 0.0);
    }
    let value = difference.min(88.0).exp();
    let relative = EXP_ERROR + UNIT * difference.abs();
    (value, FIRST_ORDER * relative * value + if difference < -86.9 { value } else { 0.0 })
}

/// The capped score `cap * tanh(score / cap)`; minus infinity stays.
pub fn softcap(score: f64, cap: f64) -> f64 {
    if score == f64::NEG_INFINITY { score } else { cap * (score / cap).tanh() }
}

/// One attention call over all rows of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// `[heads, key_dim]`, already scaled.
    pub queries: &'a [f32],
    /// Number of query heads.
    pub heads: usize,
    /// Dimension of keys.
    pub key_dim: usize,
    /// Keys, row by row.
    pub keys: Rows<'a>,
    /// Dimension of values.
    pub value_dim: usize,
    /// Values, row by row.
    pub values: Rows<'a>,
    /// How many rows each row stands for; one where there are none.
    pub counts: Option<&'a [f32]>,
    /// Cap on scores.
    pub softcap: Option<f32>,
}

/// Outputs `[heads, value_dim]` and log-sum-exps `[heads]`; zeros and minus infinity where there is no row.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention(call: &Attention<'_>) -> (Vec<f64>, Vec<f64>) {
    let (output, lse) = attention_bounded(call, 0);
    (output.values, lse.values)
}

/// [`attention`], with bounds on the kernels' results: the scores' bounds, carried through [`softmax`].
///
/// # Panics
/// If the shapes do not fit.
pub fn attention_bounded(call: &Attention<'_>, additions: usize) -> (Bounded, Bounded) {
    let mut scores = scores(call.queries, call.heads, call.key_dim, call.keys);
    if let Some(cap) = call.softcap.map(f64::from) {
        scores.values.iter_mut().for_each(|score| *score = softcap(*score, cap));
        scores.bounds.iter_mut().for_each(|off| *off += SOFTCAP_ERROR * cap);
    }
    softmax(&scores, call.heads, call.counts, call.value_dim, call.values, additions)
}

/// Outputs and log-sum-exps of rows with given scores, `[row][head]`. `additions` is the longest chain of additions
/// that a weight goes through: 16 within a block, plus the number of blocks, spans and merges that follow it.
///
/// A row's weight is off by a relative e: the error of its score; the rounding of its difference from the maximum and
/// of every later rise of that, which together are of no more than its difference from the final one; the exponential;
/// the count; and for each addition, at most, the factor that makes it relative to a larger maximum (an exponential
/// and two products) and the addition itself. A weight below e^-87 of the largest may be lost altogether. An output
/// Σ p v, with p the softmax, then moves by Σ p e |v| through the numerator and by |output| Σ p e through the
/// denominator.
///
/// # Panics
/// If the shapes do not fit.
pub fn softmax(
    scores: &Bounded,
    heads: usize,
    counts: Option<&[f32]>,
    value_dim: usize,
    values: Rows<'_>,
    additions: usize,
) -> (Bounded, Bounded) {
    let count = values.len() / value_dim;
    assert_eq!(scores.values.len(), count * heads, "one score for each row and head");
    assert!(counts.is_none_or(|counts| counts.len() == count), "one count for each row");
    let values: Vec<f64> = (0..values.len()).map(|i| f64::from(values.get(i))).collect();
    let chain = additions as f64 * (EXP_ERROR + 3.0 * UNIT) + EXP_ERROR + 3.0 * UNIT;
    let mut output = Bounded { values: Vec::new(), bounds: Vec::new() };
    let mut lse = Bounded { values: Vec::new(), bounds: Vec::new() };
    for head in 0..heads {
        let of_head = |all: &[f64]| -> Vec<f64> { all.iter().skip(head).step_by(heads).copied().collect() };
        let (own, off) = (of_head(&scores.values), of_head(&scores.bounds));
        let max = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // (row, weight, weight times e) of the rows that weigh anything.
        let weighed: Vec<(usize, f64, f64)> = (0..count)
            .filter(|&row| own[row] > f64::NEG_INFINITY)
            .map(|row| {
                let weight = counts.map_or(1.0, |counts| f64::from(counts[row])) * (own[row] - max).exp();
                let lost = if own[row] - max < -86.9 { 1.0 } else { 0.0 };
                (row, weight, off[row].exp_m1() + UNIT * (max - own[row]) + chain + lost)
            })
            .filter(|&(_, weight, _)| weight > 0.0)
            .map(|(row, weight, relative)| (row, weight, weight * relative))
            .collect();
        let total: f64 = weighed.iter().map(|(_, weight, _)| weight).sum();
        if total == 0.0 {
            output.values.extend(vec![0.0; value_dim]);
            output.bounds.extend(vec![0.0; value_dim]);
            lse.values.push(f64::NEG_INFINITY);
            lse.bounds.push(0.0);
            continue;
        }
        let off_total = weighed.iter().map(|(_, _, off)| off).sum::<f64>() / total;
        for i in 0..value_dim {
            let (mut value, mut bound) = (0.0, 0.0);
            for &(row, weight, off) in &weighed {
                let x = values[row * value_dim + i];
                value += weight * x / total;
                bound += (off * x.abs() + UNDERFLOW) / total;
            }
            output.values.push(value);
            output.bounds.push(FIRST_ORDER * (bound + value.abs() * (off_total + UNIT)));
        }
        let value = max + total.ln();
        lse.values.push(value);
        lse.bounds.push(FIRST_ORDER * (off_total + UNIT * value.abs()));
    }
    (output, lse)
}
