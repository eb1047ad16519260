//! The attention state: what several query heads know so far, and how two such states merge.

use crate::exp::exp_one;
use crate::isa::Kernels;
use crate::rows::{Matrix, Pick, Rows};
use crate::score::{check_heads, check_per_row};

/// Softmax-weighted sums of several query heads under construction, as output and log-sum-exp.
///
/// Each head keeps the largest score so far, the sum of its weights relative to that score, and the weighted sum of
/// values. States over disjoint sets of rows merge into the state over their union, in any order and grouping up to
/// rounding; an empty state changes nothing. Logarithms are natural.
///
/// Scores may be minus infinity, which masks a row. They must not be plus infinity or NaN: those heads' output is
/// then NaN. Value rows must be finite even where they are masked.
#[derive(Clone, Debug)]
pub struct AttentionState {
    value_dim: usize,
    max: Vec<f32>,
    sum: Vec<f32>,
    output: Vec<f32>,
    /// Room for the maxima with the next rows included.
    risen: Vec<f32>,
}

/// The parts of a state, wherever they lie.
pub(crate) struct Parts<'a> {
    pub(crate) max: &'a mut [f32],
    pub(crate) sum: &'a mut [f32],
    pub(crate) output: &'a mut [f32],
    pub(crate) risen: &'a mut [f32],
}

impl AttentionState {
    /// The empty state of `heads` query heads with values of `value_dim` elements.
    ///
    /// # Panics
    /// If there is no head, or `value_dim` is not supported.
    pub fn new(heads: usize, value_dim: usize) -> AttentionState {
        assert!(heads > 0, "there must be at least one head");
        assert!(crate::is_supported_dim(value_dim), "value dimension {value_dim} is not supported");
        AttentionState {
            value_dim,
            max: vec![f32::NEG_INFINITY; heads],
            sum: vec![0.0; heads],
            output: vec![0.0; heads * value_dim],
            risen: vec![0.0; heads],
        }
    }

    /// Makes the state empty again, keeping its memory.
    pub fn reset(&mut self) {
        self.parts().reset();
    }

    /// Number of query heads.
    pub fn heads(&self) -> usize {
        self.max.len()
    }

    /// Dimension of the values.
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// Takes in the rows of `values` with `scores`, `[row][head]`, which become weights.
    ///
    /// # Panics
    /// If `values` are not whole rows of the state's dimension, or `scores` not one for each of them and each head.
    pub fn absorb(&mut self, kernels: &Kernels, scores: &mut [f32], values: Rows<'_>) {
        self.absorb_picked(kernels, scores, None, values, Pick::All);
    }

    /// Takes in the listed rows of `values`; `scores` are in the order of the list.
    ///
    /// # Panics
    /// As [`AttentionState::absorb`], with the list for the rows; and, before anything is touched, if an index is out
    /// of range.
    pub fn absorb_gathered(
        &mut self,
        kernels: &Kernels,
        scores: &mut [f32],
        values: Rows<'_>,
        indices: &[u32],
    ) {
        self.absorb_picked(kernels, scores, None, values, Pick::Listed(indices));
    }

    /// Takes in clusters that stand for `counts[c]` rows each: weight `counts[c] * exp(score)`, value the cluster's
    /// mean. Counts are finite and not negative.
    ///
    /// # Panics
    /// As [`AttentionState::absorb`], and if there is not one count for each cluster.
    pub fn absorb_estimates(
        &mut self,
        kernels: &Kernels,
        scores: &mut [f32],
        counts: &[f32],
        value_means: Rows<'_>,
    ) {
        self.absorb_picked(kernels, scores, Some(counts), value_means, Pick::All);
    }

    /// Takes in the listed clusters; `scores` and `counts` are in the order of the list.
    ///
    /// # Panics
    /// As [`AttentionState::absorb_gathered`], and if there is not one count for each listed cluster.
    pub fn absorb_estimates_gathered(
        &mut self,
        kernels: &Kernels,
        scores: &mut [f32],
        counts: &[f32],
        value_means: Rows<'_>,
        indices: &[u32],
    ) {
        self.absorb_picked(kernels, scores, Some(counts), value_means, Pick::Listed(indices));
    }

    fn absorb_picked(
        &mut self,
        kernels: &Kernels,
        scores: &mut [f32],
        counts: Option<&[f32]>,
        values: Rows<'_>,
        pick: Pick<'_>,
    ) {
        let heads = self.heads();
        let values = Matrix::new(values, self.value_dim, pick);
        check_per_row(scores.len(), values.len(), heads, "scores");
        if let Some(counts) = counts {
            assert!(counts.len() == values.len(), "{} counts for {} clusters", counts.len(), values.len());
        }
        let mut parts = self.parts();
        parts.weigh(kernels, scores, counts);
        kernels.accumulate_of(scores, heads, values, parts.output);
    }

    /// Adds `exp(logit)` to the head's denominator, without a value: a learned sink.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn absorb_logit(&mut self, head: usize, logit: f32) {
        assert!(head < self.heads(), "head {head} of {}", self.heads());
        self.parts().raise(head, logit);
        if logit != f32::NEG_INFINITY {
            self.sum[head] += exp_one(logit - self.max[head]);
        }
    }

    /// Takes in everything that `other` holds.
    ///
    /// # Panics
    /// If the states' shapes differ.
    pub fn merge(&mut self, other: &AttentionState) {
        assert!(
            self.heads() == other.heads() && self.value_dim == other.value_dim,
            "states of {} heads of {} and {} heads of {} do not merge",
            self.heads(),
            self.value_dim,
            other.heads(),
            other.value_dim
        );
        self.parts().merge(&other.max, &other.sum, &other.output);
    }

    /// Log-sum-exp of the head's scores; minus infinity when it has none.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn lse(&self, head: usize) -> f32 {
        // In f64, so that a large maximum and the logarithm are rounded once.
        (f64::from(self.max[head]) + f64::from(self.sum[head]).ln()) as f32
    }

    /// Writes the outputs, `[head][value_dim]`, and the log-sum-exps. A head without any unmasked row gets zeros and
    /// minus infinity.
    ///
    /// # Panics
    /// If `output` or `lse` is not as long as the state's shape says.
    pub fn finish(&self, output: &mut [f32], lse: &mut [f32]) {
        check_heads(self.heads(), output.len(), self.value_dim, "output");
        check_heads(self.heads(), lse.len(), 1, "log-sum-exp");
        let rows = output.chunks_exact_mut(self.value_dim).zip(self.output.chunks_exact(self.value_dim));
        for (head, (to, from)) in rows.enumerate() {
            lse[head] = self.lse(head);
            let sum = self.sum[head];
            for (to, from) in to.iter_mut().zip(from) {
                *to = if sum == 0.0 { 0.0 } else { from / sum };
            }
        }
    }

    pub(crate) fn parts(&mut self) -> Parts<'_> {
        Parts { max: &mut self.max, sum: &mut self.sum, output: &mut self.output, risen: &mut self.risen }
    }
}

impl Parts<'_> {
    pub(crate) fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.output.fill(0.0);
    }

    /// Makes everything relative to the maxima with `scores` included.
    pub(crate) fn rise(&mut self, kernels: &Kernels, scores: &[f32]) {
        let heads = self.max.len();
        self.risen.copy_from_slice(self.max);
        kernels.max_per_head(scores, heads, self.risen);
        for head in 0..heads {
            self.raise(head, self.risen[head]);
        }
    }

    /// Turns scores into weights relative to the maxima, which first rise to them, and adds them to the sums.
    pub(crate) fn weigh(&mut self, kernels: &Kernels, scores: &mut [f32], counts: Option<&[f32]>) {
        let heads = self.max.len();
        self.rise(kernels, scores);
        let Some(counts) = counts else {
            kernels.exp_weights(scores, heads, self.max, self.sum);
            return;
        };
        // The plain sums go where the maxima were: what counts is summed here, after the counts.
        kernels.exp_weights(scores, heads, self.max, self.risen);
        self.risen.fill(0.0);
        for (weights, count) in scores.chunks_exact_mut(heads).zip(counts) {
            for (weight, total) in weights.iter_mut().zip(self.risen.iter_mut()) {
                *weight *= count;
                *total += *weight;
            }
        }
        for (sum, total) in self.sum.iter_mut().zip(self.risen.iter()) {
            *sum += total;
        }
    }

    /// Makes the head's sums relative to `max`, where that is larger than what they are relative to.
    fn raise(&mut self, head: usize, max: f32) {
        if max > self.max[head] {
            let factor = exp_one(self.max[head] - max);
            self.max[head] = max;
            self.sum[head] *= factor;
            let dim = self.output.len() / self.max.len();
            for x in &mut self.output[head * dim..][..dim] {
                *x *= factor;
            }
        }
    }

    /// Takes in another state's parts.
    pub(crate) fn merge(&mut self, max: &[f32], sum: &[f32], output: &[f32]) {
        let dim = self.output.len() / self.max.len();
        for (head, theirs) in output.chunks_exact(dim).enumerate() {
            // An empty head has a maximum of minus infinity: nothing to add, and no difference to take.
            if sum[head] == 0.0 {
                continue;
            }
            self.raise(head, max[head]);
            let factor = exp_one(max[head] - self.max[head]);
            self.sum[head] += sum[head] * factor;
            for (x, theirs) in self.output[head * dim..][..dim].iter_mut().zip(theirs) {
                *x += theirs * factor;
            }
        }
    }
}
