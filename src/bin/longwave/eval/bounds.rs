//! Bounds at other confidences than the one that an answer reports.

use longwave::{Answer, Band, Budget, Calibration};

/// Confidences that coverage is looked at for, in the plot.
pub(crate) const STATED: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99];

/// What turns the bounds of one budget's answers into those at other confidences.
pub(crate) struct Bounds {
    /// Of each band that an answer may be in, per query head: the factor at the confidence asked for, then those at
    /// [`STATED`]; `None` where there were too few audits for it. Empty where answers report the confidence asked for, and
    /// no other can be had.
    factors: Vec<(Band, Vec<Vec<Option<f64>>>)>,
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
        let taus = match *budget {
            Budget::Tau(tau) => vec![tau],
            // Heads are answered with down to a quarter of it; bands are half an octave wide.
            Budget::Balanced(tau) => (0..=8).map(|step| tau * 0.5f64.powf(f64::from(step) / 4.0)).collect(),
            _ => Vec::new(),
        };
        let mut bands: Vec<Band> = taus.into_iter().filter_map(Band::of).collect();
        bands.dedup();
        let none = vec![Vec::new(); calibration.query_heads()];
        let mut factors: Vec<_> = bands.into_iter().map(|band| (band, none.clone())).collect();
        let factor = |band: Band, head: usize, confidence: f64| -> Option<f64> {
            let at = |confidence| calibration.multiplier(band, head, confidence).map(f64::from);
            Some(at(confidence)? / at(longwave::CONFIDENCE).filter(|&multiplier| multiplier > 0.0)?)
        };
        // A calibration knows the multipliers of few confidences at a time, but those of all bands and heads.
        for confidence in [confidence].into_iter().chain(STATED) {
            for (band, heads) in &mut factors {
                for (head, factors) in heads.iter_mut().enumerate() {
                    factors.push(factor(*band, head, confidence));
                }
            }
        }
        Bounds { factors }
    }

    /// The bounds of query head `head` of an answer.
    pub(crate) fn of(&self, answer: &Answer, head: usize) -> HeadBounds {
        let reported = answer.report.bound.get(head).copied().flatten().map(f64::from);
        if self.factors.is_empty() {
            return HeadBounds { asked: reported, stated: Vec::new() };
        }
        let report = &answer.report;
        let group = report.bound.len() / report.taus.len().max(1);
        let tau = report.taus.get(head / group.max(1)).map_or(0.0, |&tau| f64::from(tau));
        let mut factors = self.factors.iter().filter(|(band, _)| Band::of(tau) == Some(*band));
        match factors.next().and_then(|(_, heads)| heads.get(head)) {
            // One that read every row is bounded by 0 at any confidence.
            None if reported == Some(0.0) => {
                HeadBounds { asked: reported, stated: vec![reported; STATED.len()] }
            }
            None => HeadBounds { asked: None, stated: vec![None; STATED.len()] },
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
