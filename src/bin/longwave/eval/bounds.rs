//! Bounds at other confidences than the one that an answer reports.

use longwave::{Answer, Band, Budget, Calibration};

/// Confidences that coverage is looked at for, in the plot.
pub(crate) const STATED: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99];

/// What turns the bounds of one budget's answers into those at other confidences.
pub(crate) struct Bounds {
    /// Per query head: the factor at the confidence asked for, then those at [`STATED`]; `None` where there were too
    /// few audits for it. Empty where answers report the confidence asked for, and no other can be had.
    factors: Vec<Vec<Option<f64>>>,
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
        let band = if let Budget::Tau(tau) = *budget { Band::of(tau) } else { None };
        let Some(band) = band else { return Bounds { factors: Vec::new() } };
        let head = |head: usize| -> Vec<Option<f64>> {
            let at = |confidence| calibration.multiplier(band, head, confidence).map(f64::from);
            let reported = at(longwave::CONFIDENCE).filter(|&multiplier| multiplier > 0.0);
            let confidences = [confidence].into_iter().chain(STATED);
            confidences.map(|confidence| Some(at(confidence)? / reported?)).collect()
        };
        Bounds { factors: (0..calibration.query_heads()).map(head).collect() }
    }

    /// The bounds of query head `head` of an answer.
    pub(crate) fn of(&self, answer: &Answer, head: usize) -> HeadBounds {
        let reported = answer.report.bound.get(head).copied().flatten().map(f64::from);
        match self.factors.get(head) {
            None => HeadBounds { asked: reported, stated: Vec::new() },
            Some(factors) => {
                // A head that read every row is bounded by 0 at any confidence.
                let at = |factor: &Option<f64>| match reported {
                    Some(0.0) => reported,
                    _ => Some(reported? * (*factor)?),
                };
                HeadBounds { asked: at(&factors[0]), stated: factors[1..].iter().map(at).collect() }
            }
        }
    }
}
