//! Errors and bytes of many answers as one row of a table, or one JSON object.

use crate::output;
use anyhow::Result;
use longwave::Budget;
use std::collections::BTreeSet;

/// One query head of one answer.
pub(crate) struct Sample {
    pub(crate) layer: usize,
    pub(crate) query: usize,
    pub(crate) error: f64,
    pub(crate) bytes_share: f64,
    pub(crate) page_share: f64,
}

/// The figures of one method and budget. Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
pub(crate) struct Row {
    method: &'static str,
    budget: String,
    tau: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    layers: usize,
    queries: usize,
    error_mean: f64,
    error_p50: f64,
    error_p95: f64,
    error_p999: f64,
    error_max: f64,
    bytes_share: f64,
    page_share: f64,
    bound_covered: Option<f64>,
    bound_p50: Option<f64>,
    ratio_p50: Option<f64>,
    ratio_p99: Option<f64>,
}

impl Row {
    pub(crate) fn new<'a>(
        budget: &Budget,
        layer: Option<usize>,
        samples: impl Iterator<Item = &'a Sample>,
    ) -> Row {
        let samples: Vec<&Sample> = samples.collect();
        let mut errors: Vec<f64> = samples.iter().map(|sample| sample.error).collect();
        errors.sort_by(f64::total_cmp);
        let mean =
            |value: fn(&Sample) -> f64| samples.iter().map(|s| value(s)).sum::<f64>() / samples.len() as f64;
        Row {
            method: budget.method().name(),
            budget: budget.to_string(),
            tau: None,
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
            bound_covered: None,
            bound_p50: None,
            ratio_p50: None,
            ratio_p99: None,
        }
    }
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
    if json {
        return output::print_lines(rows);
    }
    let mut text = format!(
        "{:<12} {:<29} {:>5} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}\n",
        "method", "budget", "layer", "queries", "error mean", "p50", "p95", "p99.9", "max", "bytes", "pages"
    );
    for row in rows {
        let layer = row.layer.map_or("all".to_string(), |layer| layer.to_string());
        text += &format!(
            "{:<12} {:<29} {:>5} {:>8} {:>10.2e} {:>10.2e} {:>10.2e} {:>10.2e} {:>10.2e} {:>8.2}% {:>8.2}%\n",
            row.method,
            row.budget,
            layer,
            row.queries,
            row.error_mean,
            row.error_p50,
            row.error_p95,
            row.error_p999,
            row.error_max,
            100.0 * row.bytes_share,
            100.0 * row.page_share
        );
    }
    output::print(&text)
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

    #[test]
    fn a_row_counts_layers_and_queries_and_averages() {
        let sample =
            |layer, query, error, bytes_share| Sample { layer, query, error, bytes_share, page_share: 0.5 };
        let samples = [sample(2, 7, 0.1, 0.02), sample(2, 8, 0.3, 0.04), sample(9, 7, 0.5, 0.06)];
        let row = Row::new(&Budget::RETROINFER, None, samples.iter());
        assert_eq!((row.method, row.layers, row.queries), ("retroinfer", 2, 2));
        assert!((row.error_mean - 0.3).abs() < 1e-12 && (row.bytes_share - 0.04).abs() < 1e-12);
        assert_eq!((row.error_p50, row.error_max), (0.3, 0.5));
        let json = serde_json::to_value(&row).unwrap();
        assert!(json.get("layer").is_none() && json["tau"].is_null() && json["bound_covered"].is_null());
    }
}
