//! What the calls of a layer have read, and how wrong they were: for people who look at a context. Nothing that is
//! answered depends on it.

use super::WINDOW;
use half::f16;
use longwave_query::{Report, Shape};

/// Errors, predicted or measured, and shares above this are recorded as this.
pub(crate) const MOST: f64 = 6e4;

/// What calls of `longwave` have spent on a layer since its index was built, and how far off they were where they were
/// audited. Calls of other methods, and those before anything was sealed, do not count.
#[derive(Clone, Debug, PartialEq)]
pub struct Spending {
    pub(crate) calls: u64,
    pub(crate) kv_heads: Vec<KvHeadSpending>,
    pub(crate) query_heads: Vec<QueryHeadSpending>,
}

/// What was spent on a KV head.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KvHeadSpending {
    /// Mean share of the 16-bit bytes of the head's sealed rows that a call read.
    pub bytes_share: f64,
    /// Mean tau; a call that read every row counts with 0.
    pub tau: f64,
}

/// How wrong the answers of a query head were.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryHeadSpending {
    pub(crate) predicted_error: f64,
    /// Of the latest [`WINDOW`] audited calls, oldest first.
    pub(crate) errors: Vec<f16>,
}

impl QueryHeadSpending {
    /// Mean of the relative errors that the answers predicted.
    pub fn predicted_error(&self) -> f64 {
        self.predicted_error
    }

    /// Audited calls that count, at most [`WINDOW`]. Only calls that were made count, not queries that were replayed to
    /// calibrate.
    pub fn audits(&self) -> usize {
        self.errors.len()
    }

    /// Mean of their measured relative errors; `None` without any.
    pub fn error_mean(&self) -> Option<f64> {
        let sum: f64 = self.errors.iter().map(|&error| f64::from(error)).sum();
        (!self.errors.is_empty()).then(|| sum / self.errors.len() as f64)
    }

    /// The measured error of rank `ceil(0.95 n)` of n; `None` without any.
    pub fn error_p95(&self) -> Option<f64> {
        let mut sorted = self.errors.clone();
        sorted.sort_by(f16::total_cmp);
        let rank = (sorted.len() * 95).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).map(|&error| error.into())
    }
}

impl Spending {
    pub(crate) fn new(shape: &Shape) -> Self {
        Spending {
            calls: 0,
            kv_heads: vec![KvHeadSpending::default(); shape.kv_heads],
            query_heads: vec![QueryHeadSpending::default(); shape.query_heads],
        }
    }

    /// Query positions answered.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// One entry a KV head.
    pub fn kv_heads(&self) -> &[KvHeadSpending] {
        &self.kv_heads
    }

    /// One entry a query head.
    pub fn query_heads(&self) -> &[QueryHeadSpending] {
        &self.query_heads
    }

    /// Takes an answer in: every position counts as a call.
    pub(crate) fn record(&mut self, report: &Report) {
        if report.taus.is_empty() || report.sealed_bytes_16bit == 0 {
            return;
        }
        let full = report.sealed_bytes_16bit as f64 / self.kv_heads.len() as f64;
        let bytes = report.head_bytes.chunks_exact(self.kv_heads.len());
        let taus = report.taus.chunks_exact(self.kv_heads.len());
        let predicted = report.predicted_error.chunks_exact(self.query_heads.len());
        for ((bytes, taus), predicted) in bytes.zip(taus).zip(predicted) {
            self.calls = self.calls.saturating_add(1);
            let share = 1.0 / self.calls as f64;
            // What is no number says that nothing is known: it counts as the most.
            let learn = |mean: &mut f64, x: f64| {
                *mean += share * (if x.is_nan() { MOST } else { x.clamp(0.0, MOST) } - *mean);
            };
            for ((head, &bytes), &tau) in self.kv_heads.iter_mut().zip(bytes).zip(taus) {
                learn(&mut head.bytes_share, bytes as f64 / full);
                learn(&mut head.tau, tau.into());
            }
            for (head, &predicted) in self.query_heads.iter_mut().zip(predicted) {
                learn(&mut head.predicted_error, predicted.into());
            }
        }
    }

    /// Takes the measured errors of an audited call in: `(query head, error)`.
    pub(crate) fn audited(&mut self, errors: &[(usize, f32)]) {
        for &(head, error) in errors {
            let Some(head) = self.query_heads.get_mut(head) else { continue };
            if head.errors.len() >= WINDOW {
                head.errors.remove(0);
            }
            let error = if error.is_nan() { MOST } else { f64::from(error).min(MOST) };
            head.errors.push(f16::from_f64(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spending() -> Spending {
        Spending::new(&Shape {
            query_heads: 4,
            kv_heads: 2,
            key_dim: 8,
            value_dim: 8,
            dtype: longwave_kernels::Dtype::F16,
        })
    }

    #[test]
    fn the_latest_audits_count_and_their_percentile_is_one_of_them() {
        let mut spending = spending();
        assert_eq!((spending.query_heads[3].error_mean(), spending.query_heads[3].error_p95()), (None, None));
        for call in 0..WINDOW + 100 {
            spending.audited(&[(3, call as f32), (9, 1.0)]);
        }
        let head = &spending.query_heads[3];
        assert_eq!((head.audits(), spending.query_heads[2].audits()), (WINDOW, 0));
        // 128 of them, from 100 to 227: the 122nd is 221.
        assert_eq!((head.error_mean(), head.error_p95()), (Some(163.5), Some(221.0)));
    }

    #[test]
    fn what_is_no_number_counts_as_the_most() {
        let mut spending = spending();
        spending.audited(&[(0, f32::NAN), (1, f32::INFINITY), (2, 0.25)]);
        let mean = |head: usize| spending.query_heads[head].error_mean();
        assert_eq!((mean(0), mean(1), mean(2)), (Some(MOST), Some(MOST), Some(0.25)));
    }
}
