//! How far the predicted errors of a layer are off: conformal quantiles over audited calls.

use half::f16;
use parking_lot::Mutex;
use std::sync::Arc;

/// Bands of tau.
pub const BANDS: usize = 17;
/// Ratios kept per query head and band.
pub const WINDOW: usize = 128;
/// The tau of the first band; each band's is the one before divided by the square root of 2.
const FIRST_TAU: f64 = 0.0256;
/// A predicted error below this is taken for this: rounding alone makes as much.
const ROUNDING: f32 = 1e-5;

/// A prediction as ratios and bounds use it.
pub(crate) fn floored(predicted: f32) -> f32 {
    // A prediction that is no number says nothing: it bounds nothing either.
    if predicted.is_nan() { f32::INFINITY } else { predicted.max(ROUNDING) }
}

/// Predictions above this are recorded as this.
const PREDICTED_MAX: f32 = 1e6;

/// A band of tau: the taus nearest to one point of a geometric grid. [`crate::Budget::Error`] uses the points alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Band(u8);

impl Band {
    /// All bands, from the largest tau to the smallest.
    pub fn all() -> impl DoubleEndedIterator<Item = Band> + ExactSizeIterator {
        (0..BANDS as u8).map(Band)
    }

    /// The band of a tau; `None` more than half a step outside the grid.
    pub fn of(tau: f64) -> Option<Band> {
        let steps = (2.0 * (FIRST_TAU / tau).log2()).round();
        (steps >= 0.0 && steps < BANDS as f64).then_some(Band(steps as u8))
    }

    /// The grid point of the band.
    pub fn tau(self) -> f64 {
        FIRST_TAU * 0.5f64.powf(f64::from(self.0) / 2.0)
    }

    /// Number of the band, 0 for the largest tau.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What audits have shown of one query head in one band.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Audited {
    /// Actual over predicted error of the latest [`WINDOW`] audits, oldest first.
    pub(crate) ratios: Vec<f16>,
    /// Geometric running mean of the predictions, natural logarithm. It only chooses where `Error` budgets start.
    pub(crate) log_predicted: f32,
}

impl Audited {
    fn record(&mut self, predicted: f32, actual: f32) {
        let predicted = floored(predicted).min(PREDICTED_MAX);
        if self.ratios.len() >= WINDOW {
            self.ratios.remove(0);
        }
        let ratio = (f64::from(actual) / f64::from(predicted)).min(f64::from(f16::MAX));
        // An actual error that is no number says that nothing can be promised.
        self.ratios.push(if ratio.is_nan() { f16::MAX } else { f16::from_f64(ratio) });
        let share = 1.0 / self.ratios.len().min(16) as f32;
        self.log_predicted += share * (predicted.ln() - self.log_predicted);
    }
}

/// Multipliers of the predicted error at one confidence, `[bands, query_heads]`; `None` where uncalibrated.
pub(crate) type Multipliers = Arc<Vec<Option<f32>>>;

/// The calibration of one layer: per query head and band of tau, how the actual error of audited calls compared with
/// the predicted one. It changes only when its writer records an audit.
#[derive(Debug)]
pub struct Calibration {
    query_heads: usize,
    /// `[bands, query_heads]`.
    pub(crate) audited: Vec<Audited>,
    /// Multipliers by the bits of their confidence: computed when they are first asked for.
    multipliers: Mutex<Vec<(u64, Multipliers)>>,
}

/// Confidences whose multipliers are kept.
const CONFIDENCES_KEPT: usize = 4;

impl Calibration {
    pub(crate) fn new(query_heads: usize) -> Self {
        Calibration {
            query_heads,
            audited: vec![Audited::default(); BANDS * query_heads],
            multipliers: Mutex::default(),
        }
    }

    /// Query heads of the layer.
    pub fn query_heads(&self) -> usize {
        self.query_heads
    }

    /// Whether nothing was audited.
    pub fn is_empty(&self) -> bool {
        self.audited.iter().all(|audited| audited.ratios.is_empty())
    }

    /// Audits that count for a query head in a band, at most [`WINDOW`].
    pub fn audits(&self, band: Band, query_head: usize) -> usize {
        self.audited[band.index() * self.query_heads + query_head].ratios.len()
    }

    /// What a predicted error is multiplied with to bound the actual one at `confidence`: of the audited ratios of
    /// the head in the band, the smallest that exceeds a share `confidence` of all ratios with a probability of nine in
    /// ten, over the audits that could have been drawn. Where the head has too few for that, the ratios of all heads of
    /// the layer in the same band count instead; `None` (uncalibrated) where those are too few as well: 45 are
    /// needed at 0.95, 230 at 0.99. It is what was measured and may be below 1.
    pub fn multiplier(&self, band: Band, query_head: usize, confidence: f64) -> Option<f32> {
        self.multipliers(confidence)[band.index() * self.query_heads + query_head]
    }

    /// The multipliers of all bands and heads.
    pub(crate) fn multipliers(&self, confidence: f64) -> Multipliers {
        let key = confidence.to_bits();
        let known = |kept: &Vec<(u64, Multipliers)>| {
            kept.iter().find(|(bits, _)| *bits == key).map(|(_, multipliers)| Arc::clone(multipliers))
        };
        if let Some(multipliers) = known(&self.multipliers.lock()) {
            return multipliers;
        }
        // Computed without the lock: two threads may do it, to the same bits.
        let computed = Arc::new(self.compute(confidence));
        let mut kept = self.multipliers.lock();
        if known(&kept).is_none() {
            kept.truncate(CONFIDENCES_KEPT - 1);
            kept.insert(0, (key, Arc::clone(&computed)));
        }
        computed
    }

    fn compute(&self, confidence: f64) -> Vec<Option<f32>> {
        let of_band = |heads: &[Audited]| -> Vec<Option<f32>> {
            let mut pooled = None;
            heads
                .iter()
                .map(|audited| {
                    quantile(audited.ratios.clone(), confidence).or_else(|| {
                        *pooled.get_or_insert_with(|| {
                            quantile(
                                heads.iter().flat_map(|head| &head.ratios).copied().collect(),
                                confidence,
                            )
                        })
                    })
                })
                .collect()
        };
        self.audited.chunks_exact(self.query_heads).flat_map(of_band).collect()
    }

    /// How likely the actual error of a head exceeds `limit` times the predicted one: the conformal p-value of the
    /// ratios that [`Self::multiplier`] rests on; `None` where it is `None`.
    pub(crate) fn exceedance(
        &self,
        band: Band,
        query_head: usize,
        limit: f32,
        confidence: f64,
    ) -> Option<f64> {
        let heads = &self.audited[band.index() * self.query_heads..][..self.query_heads];
        let p_value = |heads: &[Audited]| {
            let count: usize = heads.iter().map(|head| head.ratios.len()).sum();
            rank(count, confidence)?;
            let above = heads.iter().flat_map(|head| &head.ratios).filter(|ratio| ratio.to_f32() > limit);
            Some((above.count() + 1) as f64 / (count + 1) as f64)
        };
        p_value(&heads[query_head..=query_head]).or_else(|| p_value(heads))
    }

    /// The error that audits predicted for a head in a band, typically.
    pub(crate) fn typical(&self, band: Band, query_head: usize) -> f32 {
        self.audited[band.index() * self.query_heads + query_head].log_predicted.exp()
    }

    /// Takes an audit in: predicted and actual errors of some query heads, in one band.
    pub(crate) fn record(&mut self, errors: &BandErrors) {
        self.multipliers.get_mut().clear();
        let first = errors.band.index() * self.query_heads;
        for &(head, predicted, actual) in &errors.heads {
            self.audited[first + head].record(predicted, actual);
        }
    }
}

/// One audit in one band: `(query head, predicted, actual)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BandErrors {
    pub(crate) band: Band,
    /// What the answer read, as a share of the 16-bit KV bytes.
    pub(crate) bytes_share: f64,
    pub(crate) heads: Vec<(usize, f32, f32)>,
}

/// How sure it must be, over the draw of the audits, that a bound covers its share.
const SURENESS: f64 = 0.9;

/// The ratio of rank [`rank`].
fn quantile(mut ratios: Vec<f16>, confidence: f64) -> Option<f32> {
    let at = rank(ratios.len(), confidence)? - 1;
    let (_, ratio, _) = ratios.select_nth_unstable_by(at, f16::total_cmp);
    // The next number of 16 bits: the ratio was rounded when it was kept.
    Some(ratio.to_f32() * (1.0 + 1.0 / 1024.0))
}

/// The smallest rank, from 1, whose value exceeds a share `confidence` of the distribution with probability
/// [`SURENESS`]; `None` where even the largest of `count` values does not. The k-th value does so when fewer than k of
/// them fall below that quantile, and their number is binomial. The plain conformal rank `ceil((n + 1) * confidence)`
/// is right on average over audits, but falls short about every other time.
fn rank(count: usize, confidence: f64) -> Option<usize> {
    let odds = confidence.ln() - (-confidence).ln_1p();
    let mut log_term = count as f64 * (-confidence).ln_1p();
    let mut below = 0.0;
    for rank in 1..=count {
        below += log_term.exp();
        if below >= SURENESS {
            return Some(rank);
        }
        log_term += ((count + 1 - rank) as f64 / rank as f64).ln() + odds;
    }
    None
}

impl Clone for Calibration {
    fn clone(&self) -> Self {
        let multipliers = Mutex::new(self.multipliers.lock().clone());
        Calibration { query_heads: self.query_heads, audited: self.audited.clone(), multipliers }
    }
}

impl PartialEq for Calibration {
    fn eq(&self, other: &Self) -> bool {
        (self.query_heads, &self.audited) == (other.query_heads, &other.audited)
    }
}

#[cfg(test)]
#[path = "calibration_tests.rs"]
mod tests;
