//! Budgets as rules of tau, and bounds from predicted errors.

use super::calibration::{Band, Calibration, floored};
use super::share::ShareRule;
use super::target::{TargetRule, rounded_down};
use super::{CONFIDENCE, Steering};
use crate::error::Error;
use longwave_query::{Answer, Budget, LayerView, QueryBatch, Report, TauRule};

/// Answers with the state of a layer: budgets become taus, and predicted errors become bounds.
pub(crate) fn attend(
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    budget: &Budget,
    (calibration, steering): (&Calibration, &Steering),
) -> Result<Answer, Error> {
    let mut answer = match *budget {
        Budget::Tau(tau) | Budget::Soonest(tau) | Budget::Even(tau) | Budget::FromDisk { tau, .. }
            if tau > 0.0 =>
        {
            longwave_query::attend(view, queries, budget)?
        }
        Budget::Bytes(share) => longwave_query::attend_by(view, queries, &ShareRule::new(steering, share))?,
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
                // Rows were read with several taus, or not as tau says, where a cap interfered: no band was audited like that.
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
