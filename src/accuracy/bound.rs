//! Budgets as rules of tau, and bounds from predicted errors.

use super::calibration::{BANDS, Band, Calibration, Multipliers, floored};
use super::steering::CALL_MAX;
use super::{CONFIDENCE, Steering};
use crate::error::Error;
use longwave_query::{Answer, Attempt, Budget, FixedTau, LayerView, Next, QueryBatch, Report, TauRule};

/// Answers with the state of a layer: budgets become taus, and predicted errors become bounds.
pub(crate) fn attend(
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    budget: &Budget,
    (calibration, steering): (&Calibration, &Steering),
) -> Result<Answer, Error> {
    let mut answer = match *budget {
        Budget::Tau(tau) | Budget::Soonest(tau) if tau > 0.0 => {
            longwave_query::attend(view, queries, budget)?
        }
        Budget::Bytes(share) => {
            let rule = FixedTau::new(steering.tau(share)).capped(CALL_MAX * share);
            longwave_query::attend_by(view, queries, &rule)?
        }
        Budget::Error { target, confidence } => {
            let rule = TargetRule::new(calibration, view.shape.group(), target, confidence);
            let mut answer = longwave_query::attend_by(view, queries, &rule)?;
            bound_by_target(&mut answer.report, view.shape.group(), rounded_down(target), confidence);
            return Ok(answer);
        }
        _ => return Ok(longwave_query::attend(view, queries, budget)?),
    };
    bound(&mut answer.report, calibration, view.shape.group(), CONFIDENCE);
    Ok(answer)
}

/// The budget whose plan stands for that of `budget`: what the state says it would start with.
pub(crate) fn explain_budget(
    budget: &Budget,
    group: usize,
    (calibration, steering): (&Calibration, &Steering),
) -> Budget {
    match *budget {
        Budget::Bytes(share) => Budget::Tau(steering.tau(share)),
        Budget::Error { target, confidence } => {
            let rule = TargetRule::new(calibration, group, target, confidence);
            let starts = (0..calibration.query_heads() / group).map(|head| rule.start(0, head));
            // One plan stands for all heads: that of the one that reads most.
            let least = starts.map(|tau| tau.unwrap_or(0.0)).fold(f32::INFINITY, f32::min);
            Budget::Tau(f64::from(least))
        }
        other => other,
    }
}

/// The target as the nearest f32 that is no larger, so that a bound never reads as missing it.
fn rounded_down(target: f64) -> f32 {
    let nearest = target as f32;
    if f64::from(nearest) > target { nearest.next_down() } else { nearest }
}

/// An answer that a [`TargetRule`] accepted is bounded by its target: that is what it was accepted for.
fn bound_by_target(report: &mut Report, group: usize, target: f32, confidence: f64) {
    let bound = |&tau: &f32| Some(if tau == 0.0 { 0.0 } else { target });
    report.bound = report.taus.iter().flat_map(|tau| vec![bound(tau); group]).collect();
    report.confidence = Some(confidence);
}

/// Fills the bounds in.
fn bound(report: &mut Report, calibration: &Calibration, group: usize, confidence: f64) {
    let multipliers = calibration.multipliers(confidence);
    let heads = calibration.query_heads();
    let units = report.taus.iter().zip(&report.capped);
    report.bound = (report.predicted_error.chunks_exact(group).zip(units).enumerate())
        .flat_map(|(unit, (predicted, (&tau, &capped)))| {
            let first = unit * group % heads;
            let band = Band::of(f64::from(tau)).filter(|_| !capped);
            let bound = |(at, predicted): (usize, &f32)| match band {
                // Rows were read with several taus where a cap interfered: no band was audited like that.
                _ if tau == 0.0 => Some(0.0),
                None => None,
                Some(band) => {
                    let multiplier = multipliers[band.index() * heads + first + at]?;
                    Some(multiplier * floored(*predicted)).filter(|bound| bound.is_finite())
                }
            };
            predicted.iter().enumerate().map(bound).collect::<Vec<_>>()
        })
        .collect();
    report.confidence = Some(confidence);
}

/// Lowers tau along the bands until the query heads of the group keep to the target with the confidence asked for. That
/// is a share of answers, so it is the mean over the heads that counts: their bytes are shared, and a head that is
/// surely far below the target makes up for one that just misses its own quantile.
struct TargetRule<'a> {
    calibration: &'a Calibration,
    multipliers: Multipliers,
    group: usize,
    target: f32,
    confidence: f64,
}

/// `Error` budgets start where the typical bound is this many times the target: a band that is tried in vain costs less
/// than one that reads more than the answer needs.
const START: f32 = 2.0;

impl<'a> TargetRule<'a> {
    fn new(calibration: &'a Calibration, group: usize, target: f64, confidence: f64) -> Self {
        let multipliers = calibration.multipliers(confidence);
        TargetRule { calibration, multipliers, group, target: rounded_down(target), confidence }
    }

    /// The multipliers of a group in a band, if all are known.
    fn of_group(&self, band: Band, kv_head: usize) -> Option<impl Iterator<Item = f32>> {
        let first = band.index() * self.calibration.query_heads() + kv_head * self.group;
        let multipliers = &self.multipliers[first..first + self.group];
        multipliers.iter().all(Option::is_some).then(|| multipliers.iter().flatten().copied())
    }

    /// Bands that can be bounded, by falling tau.
    fn bands(&self, kv_head: usize) -> impl Iterator<Item = Band> {
        Band::all().filter(move |&band| self.of_group(band, kv_head).is_some())
    }

    /// Whether the answers of an attempt keep to the target, on average over the group.
    fn kept(&self, band: Band, attempt: &Attempt<'_>) -> bool {
        let first = attempt.kv_head * self.group;
        let missed = attempt.predicted.iter().zip(first..).map(|(&predicted, head)| {
            let limit = self.target / floored(predicted);
            self.calibration.exceedance(band, head, limit, self.confidence).unwrap_or(1.0)
        });
        missed.sum::<f64>() <= (1.0 - self.confidence) * self.group as f64
    }

    /// The largest typical bound of the group.
    fn typical(&self, band: Band, kv_head: usize) -> f32 {
        let heads = kv_head * self.group..;
        let bounds = self.of_group(band, kv_head).into_iter().flatten().zip(heads);
        bounds.map(|(multiplier, head)| multiplier * self.calibration.typical(band, head)).fold(0.0, f32::max)
    }
}

impl TauRule for TargetRule<'_> {
    fn start(&self, _position: usize, kv_head: usize) -> Option<f32> {
        let near = |&band: &Band| self.typical(band, kv_head) <= START * self.target;
        let start = self.bands(kv_head).find(near).or_else(|| self.bands(kv_head).last());
        start.map(|band| band.tau() as f32)
    }

    fn next(&self, attempt: &Attempt<'_>) -> Next {
        let band = Band::of(f64::from(attempt.tau));
        let Some(multipliers) = band.and_then(|band| self.of_group(band, attempt.kv_head)) else {
            return Next::Exact;
        };
        let worst = multipliers
            .zip(attempt.predicted)
            .map(|(multiplier, &predicted)| multiplier * floored(predicted))
            .fold(0.0, |worst: f32, bound| if bound.is_nan() { f32::INFINITY } else { worst.max(bound) });
        if band.is_some_and(|band| self.kept(band, attempt)) {
            return Next::Accept;
        }
        // The error falls more slowly than tau: this many steps are needed at the least.
        let steps = (2.0 * (worst / self.target).log2()).clamp(1.0, BANDS as f32) as usize;
        let lowest = band.map_or(BANDS, |band| band.index() + steps);
        let next = self.bands(attempt.kv_head).find(|band| band.index() >= lowest);
        let last = || self.bands(attempt.kv_head).last().filter(|&last| Some(last) > band);
        next.or_else(last).map_or(Next::Exact, |band| Next::Lower(band.tau() as f32))
    }
}
