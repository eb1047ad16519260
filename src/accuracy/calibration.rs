//! How far the predicted errors of a layer are off: conformal quantiles over audited calls.

use super::CONFIDENCE;
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
    /// How many of them, the first ones, are of queries that were replayed.
    pub(crate) replayed: usize,
    /// Geometric running mean of the predictions, natural logarithm. It only chooses where `Error` budgets start.
    pub(crate) log_predicted: f32,
}

impl Audited {
    fn record(&mut self, predicted: f32, actual: f32) {
        let predicted = floored(predicted).min(PREDICTED_MAX);
        if self.ratios.len() >= WINDOW {
            self.ratios.remove(0);
            self.replayed = self.replayed.saturating_sub(1);
        }
        let ratio = (f64::from(actual) / f64::from(predicted)).min(f64::from(f16::MAX));
        // An actual error that is no number says that nothing can be promised.
        self.ratios.push(if ratio.is_nan() { f16::MAX } else { f16::from_f64(ratio) });
        let share = 1.0 / self.ratios.len().min(16) as f32;
        self.log_predicted += share * (predicted.ln() - self.log_predicted);
    }

    /// Ratios of calls, not of replayed queries.
    fn called(&self) -> usize {
        self.ratios.len() - self.replayed
    }

    fn forget_replayed(&mut self) {
        self.ratios.drain(..self.replayed);
        self.replayed = 0;
    }
}

/// Where an audited query comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audit {
    /// A query that was seen before, asked at the end of the context.
    Replayed,
    /// A query that is asked there.
    Asked,
}

/// Once audits of so many calls are known in a band, those of replayed queries are forgotten.
const CALLED_ENOUGH: usize = 48;

/// Multipliers of the predicted error at one confidence, `[bands, query_heads]`; `None` where uncalibrated.
pub(crate) type Multipliers = Arc<Vec<Option<f32>>>;

/// The calibration of one layer: per query head and band of tau, how the actual error of audited calls compared with
/// the predicted one. It changes only when its writer records an audit.
#[derive(Debug)]
pub struct Calibration {
    query_heads: usize,
    /// `[bands, query_heads]`.
    pub(crate) audited: Vec<Audited>,
    /// Natural logarithm of what multipliers are corrected by; see [`Self::follow`].
    pub(crate) correction: f32,
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
            correction: 0.0,
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

    /// Whether nothing was audited in a band.
    pub(crate) fn is_empty_in(&self, band: Band) -> bool {
        self.of_band(band).iter().all(|audited| audited.ratios.is_empty())
    }

    /// Audits that count for a query head in a band, at most [`WINDOW`].
    pub fn audits(&self, band: Band, query_head: usize) -> usize {
        self.audited[band.index() * self.query_heads + query_head].ratios.len()
    }

    /// Those of them that are audits of calls.
    pub(crate) fn audits_of_calls(&self, band: Band) -> usize {
        self.of_band(band).iter().map(Audited::called).max().unwrap_or(0)
    }

    /// What audits have shown of each query head in a band.
    fn of_band(&self, band: Band) -> &[Audited] {
        &self.audited[band.index() * self.query_heads..][..self.query_heads]
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
        let correction = self.correction.exp();
        let of_band = |heads: &[Audited]| -> Vec<Option<f32>> {
            let mut pooled = None;
            let mut of_layer = || {
                let ratios = || heads.iter().flat_map(|head| &head.ratios).copied().collect();
                *pooled.get_or_insert_with(|| quantile(ratios(), confidence))
            };
            let own = heads.iter().map(|head| quantile(head.ratios.clone(), confidence));
            own.map(|own| own.or_else(&mut of_layer).map(|ratio| ratio * correction)).collect()
        };
        self.audited.chunks_exact(self.query_heads).flat_map(of_band).collect()
    }

    /// The share of the answers of a group of heads, from head `first` on, whose actual error is expected to exceed their
    /// limits times the predicted one, from the ratios that [`Self::multiplier`] rests on: the conformal p-value, which
    /// is right on average over the audits; `None` where that is `None`.
    pub(crate) fn exceedance(
        &self,
        band: Band,
        first: usize,
        limits: impl ExactSizeIterator<Item = f32>,
        confidence: f64,
    ) -> Option<f64> {
        let (heads, group) = (self.of_band(band), limits.len());
        let own = &heads[first..first + group];
        let counts_alone = own.iter().all(|head| are_enough(head.ratios.len(), confidence));
        let of_head = |head: usize| if counts_alone { &own[head..=head] } else { heads };
        let (mut above, mut count) = (0, 0);
        let correction = self.correction.exp();
        for (head, limit) in limits.enumerate() {
            let limit = limit / correction;
            let ratios = || of_head(head).iter().flat_map(|head| &head.ratios);
            count += ratios().count();
            above += ratios().filter(|ratio| ratio.to_f32() > limit).count();
        }
        // The one more is the answer itself, which may be worse than all audits. Where heads share their audits, it
        // counts against those, however often they were looked at.
        let one = if counts_alone { 1.0 } else { group as f64 };
        (counts_alone || are_enough(count / group.max(1), confidence))
            .then(|| (above as f64 + one) / (count as f64 + one))
    }

    /// The error that audits predicted for a head in a band, typically.
    pub(crate) fn typical(&self, band: Band, query_head: usize) -> f32 {
        self.audited[band.index() * self.query_heads + query_head].log_predicted.exp()
    }

    /// Takes an audit in: predicted and actual errors of some query heads, in one band.
    pub(crate) fn record(&mut self, errors: &BandErrors, audit: Audit) {
        self.multipliers.get_mut().clear();
        let heads = &mut self.audited[errors.band.index() * self.query_heads..][..self.query_heads];
        for &(head, predicted, actual) in &errors.heads {
            heads[head].record(predicted, actual);
            if audit == Audit::Replayed {
                // It stands before those of calls only where there are none; behind them it is one of them.
                heads[head].replayed += usize::from(heads[head].called() == 1);
            }
        }
        for head in heads.iter_mut().filter(|head| head.called() >= CALLED_ENOUGH) {
            head.forget_replayed();
        }
    }

    /// Lets the correction follow the audit of a call in the band that it was answered in, before that is recorded: up
    /// where more of its bounds at [`CONFIDENCE`] missed than may, back down where fewer did. In the long run no more
    /// miss than may, whatever the calls are (Gibbs and Candès, *Adaptive conformal inference under distribution
    /// shift*, with a factor on the ratios in place of their rank). Bounds are never corrected down.
    pub(crate) fn follow(&mut self, errors: &BandErrors) {
        let multipliers = self.multipliers(CONFIDENCE);
        let of_band = &multipliers[errors.band.index() * self.query_heads..][..self.query_heads];
        let bounded = errors
            .heads
            .iter()
            .filter_map(|&(head, predicted, actual)| Some((of_band[head]? * floored(predicted), actual)));
        let (mut count, mut missed) = (0.0, 0.0);
        for (bound, actual) in bounded {
            count += 1.0;
            // An actual error that is no number misses every bound.
            missed += if actual <= bound { 0.0 } else { 1.0 };
        }
        if count > 0.0 {
            self.multipliers.get_mut().clear();
            let step = STEP * (missed / count - (1.0 - CONFIDENCE as f32));
            self.correction = (self.correction + step).clamp(0.0, CORRECTION_MAX);
        }
    }
}

/// How far the correction moves where all bounds of a call missed, and how far it may go.
const STEP: f32 = 0.3;
pub(crate) const CORRECTION_MAX: f32 = 1.5;

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

/// Whether [`rank`] finds one: whether the largest of `count` values is one.
fn are_enough(count: usize, confidence: f64) -> bool {
    count as f64 * confidence.ln() <= (1.0 - SURENESS).ln()
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
        let (query_heads, correction) = (self.query_heads, self.correction);
        Calibration { query_heads, audited: self.audited.clone(), correction, multipliers }
    }
}

impl PartialEq for Calibration {
    fn eq(&self, other: &Self) -> bool {
        (self.query_heads, self.correction, &self.audited)
            == (other.query_heads, other.correction, &other.audited)
    }
}

#[cfg(test)]
#[path = "calibration_tests.rs"]
mod tests;
