//! What attention calls read, how far their answers were off, and what they said of it themselves.

/// An error below this is rounding: what a bound of 0 promises.
const ROUNDING: f64 = 1e-4;

/// What the calls of a cache read, and how far they were off where they were audited, layer by layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spent {
    layers: Vec<LayerSpent>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct LayerSpent {
    /// Share of the 16-bit KV bytes that each call read.
    bytes_shares: Vec<f64>,
    answers: Vec<AuditedAnswer>,
}

/// One query head's answer that was compared with the exact one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuditedAnswer {
    /// `|o' - o| / |o|` against exact attention.
    pub error: f64,
    /// The error that the answer predicted; `None` from methods that predict none.
    pub predicted: Option<f64>,
    /// The bound that the answer gave; `None` where it gave none.
    pub bound: Option<f64>,
}

/// Numbers over all calls, or over those of a layer. NaN where there was nothing to count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean share of the 16-bit KV bytes that a call read.
    pub bytes_share: f64,
    /// Audited answers: calls times query heads.
    pub answers: usize,
    /// Mean of their errors.
    pub error_mean: f64,
    /// Median of their errors.
    pub error_p50: f64,
    /// The error that 95 of 100 stay below.
    pub error_p95: f64,
    /// The error that 999 of 1000 stay below.
    pub error_p999: f64,
    /// The largest error.
    pub error_max: f64,
    /// Median of the errors that they predicted.
    pub predicted_p50: f64,
    /// Audited answers that gave a bound.
    pub bounded: usize,
    /// Median of those bounds.
    pub bound_p50: f64,
    /// Share of those bounds, 0 to 1, that held.
    pub bound_covered: f64,
}

impl Spent {
    /// Notes the share of the bytes that a call in `layer` read.
    pub fn read(&mut self, layer: usize, bytes_share: f64) {
        self.layer(layer).bytes_shares.push(bytes_share);
    }

    /// Notes answers of an audited call in `layer`.
    pub fn audited(&mut self, layer: usize, answers: impl IntoIterator<Item = AuditedAnswer>) {
        self.layer(layer).answers.extend(answers);
    }

    /// Layers that calls were made in, or that stand before one.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Over all layers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary::of(&self.layers)
    }

    /// Over one layer; NaN in one without calls.
    #[must_use]
    pub fn of_layer(&self, layer: usize) -> Summary {
        Summary::of(self.layers.get(layer..=layer).unwrap_or_default())
    }

    fn layer(&mut self, layer: usize) -> &mut LayerSpent {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, LayerSpent::default);
        }
        &mut self.layers[layer]
    }
}

impl Summary {
    fn of(layers: &[LayerSpent]) -> Self {
        let answers = || layers.iter().flat_map(|layer| &layer.answers);
        let errors = sorted(answers().map(|answer| answer.error));
        let bounds = sorted(answers().filter_map(|answer| answer.bound));
        let holds = |answer: &AuditedAnswer| {
            answer.bound.is_some_and(|bound| answer.error <= if bound == 0.0 { ROUNDING } else { bound })
        };
        let held = answers().filter(|answer| holds(answer)).count();
        Self {
            bytes_share: mean(
                &layers.iter().flat_map(|layer| &layer.bytes_shares).copied().collect::<Vec<_>>(),
            ),
            answers: errors.len(),
            error_mean: mean(&errors),
            error_p50: quantile(&errors, 0.5),
            error_p95: quantile(&errors, 0.95),
            error_p999: quantile(&errors, 0.999),
            error_max: quantile(&errors, 1.0),
            predicted_p50: quantile(&sorted(answers().filter_map(|answer| answer.predicted)), 0.5),
            bounded: bounds.len(),
            bound_p50: quantile(&bounds, 0.5),
            bound_covered: held as f64 / bounds.len() as f64,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// A quantile of sorted values, between two of them in proportion; NaN of none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (Some(low), Some(high)) = (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize)) else {
        return f64::NAN;
    };
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: f64, bound: Option<f64>) -> AuditedAnswer {
        AuditedAnswer { error, predicted: bound.map(|bound| bound / 2.0), bound }
    }

    #[test]
    fn layers_are_summed_up_apart_and_together() {
        let mut spent = Spent::default();
        spent.audited(2, (0..=100).rev().map(|error| answer(f64::from(error), None)));
        spent.audited(0, [answer(400.0, None)]);
        spent.read(0, 0.1);
        spent.read(2, 0.3);
        spent.read(2, 0.5);
        assert_eq!(spent.layers(), 3);
        let layer = spent.of_layer(2);
        assert_eq!((layer.answers, layer.error_mean, layer.error_p50), (101, 50.0, 50.0));
        assert_eq!((layer.error_p95, layer.error_max, layer.bytes_share), (95.0, 100.0, 0.4));
        assert!((layer.error_p999 - 99.9).abs() < 1e-9, "{layer:?}");
        let all = spent.summary();
        assert_eq!((all.answers, all.error_max), (102, 400.0));
        assert!((all.bytes_share - 0.3).abs() < 1e-12);
        assert!(spent.of_layer(1).error_p95.is_nan() && spent.of_layer(7).bytes_share.is_nan());
    }

    #[test]
    fn bounds_hold_up_to_rounding_and_those_without_count_for_nothing() {
        let mut spent = Spent::default();
        let answers = [(0.2, Some(0.3)), (0.4, Some(0.3)), (1e-5, Some(0.0)), (0.1, None), (0.3, Some(0.3))];
        spent.audited(0, answers.map(|(error, bound)| answer(error, bound)));
        let summary = spent.summary();
        assert_eq!((summary.answers, summary.bounded, summary.bound_covered), (5, 4, 0.75));
        assert_eq!((summary.bound_p50, summary.predicted_p50), (0.3, 0.15));
    }
}
