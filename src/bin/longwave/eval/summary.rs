//! Errors and bytes of many answers as one row of a table, or one JSON object.

use super::bounds::{Bounds, STATED};
use crate::output;
use crate::rungs::RungShares;
use anyhow::Result;
use longwave::{Answer, Budget, RowForm};
use std::collections::BTreeSet;

/// One query head of one answer.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) layer: usize,
    pub(crate) query: usize,
    /// `|o' - o| / |o|`.
    pub(crate) error: f64,
    pub(crate) bytes_share: f64,
    pub(crate) page_share: f64,
    pub(crate) rungs: RungShares,
    /// The error that the method predicts for itself.
    pub(crate) predicted: Option<f64>,
    /// The bound at the confidence asked for, where the method is calibrated.
    pub(crate) bound: Option<f64>,
    /// Bounds at [`STATED`], where they can be had.
    pub(crate) stated: Vec<Option<f64>>,
}

/// An answer with a bound of 0 is exact up to rounding, which this is more than.
const ROUNDING: f64 = 1e-4;

impl Sample {
    /// The query heads of an answer to one position, whose outputs should be `truth`, `[query_heads, value_dim]`.
    pub(crate) fn of(
        (layer, query): (usize, usize),
        answer: &Answer,
        bounds: &Bounds,
        truth: &[f64],
    ) -> Vec<Sample> {
        let report = &answer.report;
        let dim = answer.output.len() / answer.lse.len();
        let rungs = RungShares::of(report, dim);
        let heads = answer.output.chunks_exact(dim).zip(truth.chunks_exact(dim)).enumerate();
        heads
            .map(|(head, (output, truth))| {
                let bounds = bounds.of(answer, head);
                Sample {
                    layer,
                    query,
                    error: error(output.iter().map(|&x| f64::from(x)), truth),
                    bytes_share: report.bytes_share(),
                    page_share: report.page_share(),
                    rungs,
                    predicted: report.predicted_error.get(head).map(|&x| f64::from(x)),
                    bound: bounds.asked,
                    stated: bounds.stated,
                }
            })
            .collect()
    }

    /// Whether the error is within a bound.
    fn keeps(&self, bound: f64) -> bool {
        self.error <= if bound == 0.0 { ROUNDING } else { bound }
    }

    /// Actual over predicted; an answer that is exact predicts 0 and has no ratio.
    fn ratio(&self) -> Option<f64> {
        self.predicted.filter(|&predicted| predicted > 0.0).map(|predicted| self.error / predicted)
    }
}

/// `|o' - o| / |o|`.
pub(crate) fn error(output: impl Iterator<Item = f64>, truth: &[f64]) -> f64 {
    let off: f64 = output.zip(truth).map(|(o, t)| (o - t).powi(2)).sum();
    off.sqrt() / truth.iter().map(|t| t * t).sum::<f64>().sqrt()
}

/// The share of answers with a bound that keep to it; `None` where none has one.
fn covered(samples: &[&Sample], bound: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let bounded: Vec<bool> =
        samples.iter().filter_map(|sample| bound(sample).map(|bound| sample.keeps(bound))).collect();
    let kept = bounded.iter().filter(|&&kept| kept).count();
    (!bounded.is_empty()).then(|| kept as f64 / bounded.len() as f64)
}

/// The confidences of [`STATED`] with the share of answers that keep to the bounds at each, where there are any.
pub(crate) fn coverage(samples: &[Sample]) -> Vec<(f64, f64)> {
    let samples: Vec<&Sample> = samples.iter().collect();
    let at = |(number, &confidence): (usize, &f64)| {
        covered(&samples, |sample| sample.stated.get(number).copied().flatten()).map(|c| (confidence, c))
    };
    STATED.iter().enumerate().filter_map(at).collect()
}

/// What a row of the table is about.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) method: &'static str,
    pub(crate) budget: String,
    pub(crate) tau: Option<f64>,
    /// How the rows were kept, where that is compared.
    pub(crate) kept: Option<Kept>,
}

/// How rows were kept, and what that took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) form: RowForm,
    /// Bytes of the segments' files over the 16-bit bytes of their keys and values.
    pub(crate) disk_share: f64,
}

impl Label {
    /// A method with its budget, and the tau of one that names it.
    pub(crate) fn of(budget: &Budget) -> Label {
        let tau = if let Budget::Tau(tau) | Budget::Even(tau) = *budget { Some(tau) } else { None };
        Label { method: budget.method().name(), budget: budget.to_string(), tau, kept: None }
    }
}

/// The figures of one method and budget. Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
pub(crate) struct Row {
    pub(crate) method: &'static str,
    pub(crate) budget: String,
    pub(crate) tau: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layer: Option<usize>,
    layers: usize,
    queries: usize,
    pub(crate) error_mean: f64,
    error_p50: f64,
    error_p95: f64,
    error_p999: f64,
    error_max: f64,
    pub(crate) bytes_share: f64,
    page_share: f64,
    #[serde(flatten)]
    rungs: RungShares,
    bound_covered: Option<f64>,
    bound_p50: Option<f64>,
    ratio_p50: Option<f64>,
    ratio_p99: Option<f64>,
}

impl Row {
    pub(crate) fn new<'a>(
        label: &Label,
        layer: Option<usize>,
        samples: impl Iterator<Item = &'a Sample>,
    ) -> Row {
        let samples: Vec<&Sample> = samples.collect();
        let sorted = |value: fn(&Sample) -> Option<f64>| {
            let mut values: Vec<f64> = samples.iter().filter_map(|sample| value(sample)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let errors = sorted(|sample| Some(sample.error));
        let (bounds, ratios) = (sorted(|sample| sample.bound), sorted(Sample::ratio));
        let some = |sorted: &[f64], share| (!sorted.is_empty()).then(|| percentile(sorted, share));
        let mean =
            |value: fn(&Sample) -> f64| samples.iter().map(|s| value(s)).sum::<f64>() / samples.len() as f64;
        Row {
            method: label.method,
            budget: label.budget.clone(),
            tau: label.tau,
            rows: label.kept.map(|kept| kept.form.to_string()),
            disk_share: label.kept.map(|kept| kept.disk_share),
            layer,
            layers: samples.iter().map(|sample| sample.layer).collect::<BTreeSet<_>>().len(),
            queries: samples.iter().map(|sample| sample.query).collect::<BTreeSet<_>>().len(),
            error_mean: mean(|sample| sample.error),
            error_p50: percentile(&errors, 0.5),
            error_p95: percentile(&errors, 0.95),
            error_p999: percentile(&errors, 0.999),
            error_max: percentile(&errors, 1.0),
            bytes_share: mean(|sample| sample.bytes_share),
            page_share: mean(|sample| sample.page_share),
            rungs: RungShares::mean(samples.iter().map(|sample| sample.rungs)),
            bound_covered: covered(&samples, |sample| sample.bound),
            bound_p50: some(&bounds, 0.5),
            ratio_p50: some(&ratios, 0.5),
            ratio_p99: some(&ratios, 0.99),
        }
    }
}

/// The rows of one method and budget: of each of `layers` by itself, then of all.
pub(crate) fn rows(label: &Label, layers: &[usize], samples: &[Sample]) -> Vec<Row> {
    let of_layer = |&layer: &usize| Row::new(label, Some(layer), samples.iter().filter(|s| s.layer == layer));
    layers.iter().map(of_layer).chain([Row::new(label, None, samples.iter())]).collect()
}

/// The value below which a share of the sorted values lies, interpolated between neighbours.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Prints a table, or one JSON object a line.
pub(crate) fn print(rows: &[Row], json: bool) -> Result<()> {
    if json { output::print_lines(rows) } else { output::print(&table(rows)) }
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.budget.len()).fold(6, usize::max);
    let mut text = format!(
        "{:<10} {:<width$} {}{:>5} {:>7} {:>10} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {} {:>7} {:>8} {:>9} {:>9}\n",
        "method",
        "budget",
        if rows.iter().any(|row| row.rows.is_some()) { "rows     disk " } else { "" },
        "layer",
        "queries",
        "error mean",
        "p50",
        "p95",
        "p99.9",
        "max",
        "bytes",
        "pages",
        RungShares::TITLES,
        "covered",
        "bound",
        "ratio p50",
        "ratio p99"
    );
    let figure = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.1e}"));
    let ratio = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.2}"));
    let percent = |x: f64| format!("{:.2}%", 100.0 * x);
    let kept = |row: &Row| match (&row.rows, row.disk_share) {
        (Some(form), Some(share)) => format!("{form:<5} {:>6.1}% ", 100.0 * share),
        _ => String::new(),
    };
    for row in rows {
        text += &format!(
            "{:<10} {:<width$} {}{:>5} {:>7} {:>10.2e} {:>8.1e} {:>8.1e} {:>8.1e} {:>8.1e} {:>7} {:>7} {} {:>7} {:>8} \
             {:>9} {:>9}\n",
            row.method,
            row.budget,
            kept(row),
            row.layer.map_or("all".to_string(), |layer| layer.to_string()),
            row.queries,
            row.error_mean,
            row.error_p50,
            row.error_p95,
            row.error_p999,
            row.error_max,
            percent(row.bytes_share),
            percent(row.page_share),
            row.rungs.columns(),
            row.bound_covered.map_or("-".to_string(), percent),
            figure(row.bound_p50),
            ratio(row.ratio_p50),
            ratio(row.ratio_p99)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&sorted, 0.5), 3.0);
        assert!((percentile(&sorted, 0.95) - 7.4).abs() < 1e-12);
        assert_eq!((percentile(&sorted, 0.0), percentile(&sorted, 1.0)), (1.0, 8.0));
        assert!(percentile(&[], 0.5).is_nan());
    }

    fn sample(layer: usize, query: usize, error: f64, bytes_share: f64) -> Sample {
        Sample {
            layer,
            query,
            error,
            bytes_share,
            page_share: 0.5,
            rungs: RungShares { zone_share: bytes_share * 5.0, ..RungShares::default() },
            predicted: None,
            bound: None,
            stated: Vec::new(),
        }
    }

    #[test]
    fn a_row_counts_layers_and_queries_and_averages() {
        let samples = [sample(2, 7, 0.1, 0.02), sample(2, 8, 0.3, 0.04), sample(9, 7, 0.5, 0.06)];
        let row = Row::new(&Label::of(&Budget::RETROINFER), None, samples.iter());
        assert_eq!((row.method, row.layers, row.queries), ("retroinfer", 2, 2));
        assert!((row.error_mean - 0.3).abs() < 1e-12 && (row.bytes_share - 0.04).abs() < 1e-12);
        assert_eq!((row.error_p50, row.error_max), (0.3, 0.5));
        assert!((row.rungs.zone_share - 0.2).abs() < 1e-12, "{:?}", row.rungs);
        assert_eq!((row.bound_covered, row.bound_p50, row.ratio_p50, row.tau), (None, None, None, None));
    }

    #[test]
    fn bounds_and_ratios_are_over_the_answers_that_have_them() {
        let mut samples = [0.1, 0.2, 0.3, 0.4, 1e-6, 0.01].map(|error| sample(1, 1, error, 0.1));
        for (sample, (predicted, bound)) in samples.iter_mut().zip([
            (Some(0.05), Some(0.15)),
            (Some(0.1), Some(0.1)),
            (Some(0.1), None),
            (None, None),
            (Some(0.0), Some(0.0)),
            (Some(0.0), Some(0.0)),
        ]) {
            (sample.predicted, sample.bound) = (predicted, bound);
        }
        let row = Row::new(&Label::of(&Budget::Tau(0.5)), None, samples.iter());
        // Of the bounds 0.15, 0.1 and two of exact answers, the second and the last do not hold.
        assert_eq!((row.tau, row.bound_covered, row.bound_p50), (Some(0.5), Some(0.5), Some(0.05)));
        assert_eq!(row.ratio_p50.unwrap(), 2.0);
        assert!(row.ratio_p99.unwrap() > 2.97, "{:?}", row.ratio_p99);
    }

    #[test]
    fn coverage_is_by_stated_confidence() {
        let mut samples = [0.1, 0.2].map(|error| sample(1, 1, error, 0.1));
        samples[0].stated = vec![None, Some(0.05), Some(0.3)];
        samples[1].stated = vec![None, Some(0.25), Some(0.3)];
        assert_eq!(coverage(&samples), [(STATED[1], 0.5), (STATED[2], 1.0)]);
    }

    #[test]
    fn the_error_is_relative_to_the_truth() {
        assert_eq!(error([3.0, 0.0].into_iter(), &[0.0, 4.0]), 1.25);
    }
}
