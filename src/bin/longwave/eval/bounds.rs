//! Bounds at other confidences than the one that an answer reports.

use longwave::{Answer, Band, Budget, Calibration};

/// Confidences that coverage is looked at for, in the plot.
pub(crate) const STATED: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99];

/// What turns the bounds of one budget's answers into those at other confidences.
pub(crate) struct Bounds {
    /// Multipliers at the confidence that is reported, at that asked for, and at [`STATED`], each `[bands, query_heads]`; `None` where
    /// there were too few audits. Empty where answers report the confidence asked for, and no other can be had.
    multipliers: Vec<Vec<Option<f64>>>,
    query_heads: usize,
}

/// Bounds of one query head of one answer.
pub(crate) struct HeadBounds {
    /// At the confidence asked for.
    pub(crate) asked: Option<f64>,
    /// At each of [`STATED`]; empty where they cannot be had.
    pub(crate) stated: Vec<Option<f64>>,
}

impl Bounds {
    /// For answers to `budget`, with what was audited of the layer.
    pub(crate) fn new(calibration: &Calibration, budget: &Budget, confidence: f64) -> Bounds {
        let query_heads = calibration.query_heads();
        if !matches!(budget, Budget::Tau(_) | Budget::Even(_)) {
            return Bounds { multipliers: Vec::new(), query_heads };
        }
        let places = || Band::all().flat_map(|band| (0..query_heads).map(move |head| (band, head)));
        let at = |confidence| {
            let multiplier = |(band, head)| calibration.multiplier(band, head, confidence).map(f64::from);
            places().map(multiplier).collect()
        };
        let confidences = [longwave::CONFIDENCE, confidence].into_iter().chain(STATED);
        Bounds { multipliers: confidences.map(at).collect(), query_heads }
    }

    /// The bounds of query head `head` of an answer, whose KV head may have been answered with another tau than others.
    pub(crate) fn of(&self, answer: &Answer, head: usize) -> HeadBounds {
        let report = &answer.report;
        let reported = report.bound.get(head).copied().flatten().map(f64::from);
        if self.multipliers.is_empty() {
            return HeadBounds { asked: reported, stated: Vec::new() };
        }
        let tau = report.taus.get(head * report.taus.len() / report.predicted_error.len().max(1));
        let band = tau.and_then(|&tau| Band::of(f64::from(tau)));
        let multiplier = |at: usize| self.multipliers[at][band?.index() * self.query_heads + head];
        let factor = |at: usize| Some(multiplier(at)? / multiplier(0).filter(|&reported| reported > 0.0)?);
        // A head that read every row is bounded by 0 at any confidence.
        let bound = |at: usize| match reported {
            Some(0.0) => reported,
            _ => Some(reported? * factor(at)?),
        };
        HeadBounds { asked: bound(1), stated: (2..2 + STATED.len()).map(bound).collect() }
    }
}
