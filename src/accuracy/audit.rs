//! Audits: calls that are answered by the ladder and exactly, to see how far the prediction was off.

use super::calibration::{Band, BandErrors};
use crate::error::Error;
use crate::layer::LayerRows;
use longwave_query::{Budget, LayerView, QueryBatch};
use rayon::prelude::*;

/// Audits queries `[query_heads, key_dim]` that stand at the last position of `rows`, each as a call of its own, in
/// the bands given. Errors are measured against exact attention over the same rows.
pub(crate) fn audit(
    rows: &LayerRows,
    queries: &[Vec<f32>],
    bands: &[Band],
) -> Result<Vec<BandErrors>, Error> {
    let view = rows.view();
    let Some(first_position) = rows.length().checked_sub(1) else { return Ok(Vec::new()) };
    let audited: Vec<_> = queries
        .par_iter()
        .map(|data| audit_one(&view, &QueryBatch { data, first_position, positions: 1 }, bands))
        .collect::<Result<_, Error>>()?;
    Ok(audited.concat())
}

/// Whether an audit of these rows could find anything.
pub(crate) fn prepared(rows: &LayerRows) -> bool {
    !rows.segments.is_empty() && rows.scoring.sliding_window.is_none()
}

fn audit_one(view: &LayerView<'_>, batch: &QueryBatch<'_>, bands: &[Band]) -> Result<Vec<BandErrors>, Error> {
    let (group, dim) = (view.shape.group(), view.shape.value_dim);
    let truth = longwave_query::attend(view, batch, &Budget::Exact)?;
    let mut found = Vec::new();
    for &band in bands {
        let answer = longwave_query::attend(view, batch, &Budget::Tau(band.tau()))?;
        let pairs = answer.output.chunks_exact(dim).zip(truth.output.chunks_exact(dim));
        let errors = pairs.zip(&answer.report.predicted_error).enumerate();
        // A head that read every row has no prediction to compare with.
        let heads: Vec<_> = errors
            .filter(|(head, _)| answer.report.taus[head / group] > 0.0)
            .map(|(head, ((output, truth), &predicted))| (head, predicted, relative_error(output, truth)))
            .collect();
        if !heads.is_empty() {
            found.push(BandErrors { band, bytes_share: answer.report.bytes_share(), heads });
        }
    }
    Ok(found)
}

/// `|o' - o| / |o|`; 0 where both are zero.
fn relative_error(output: &[f32], truth: &[f32]) -> f32 {
    let norm2 = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let off = norm2(&mut output.iter().zip(truth).map(|(&o, &t)| f64::from(o) - f64::from(t)));
    if off == 0.0 {
        return 0.0;
    }
    (off / norm2(&mut truth.iter().map(|&t| f64::from(t)))).sqrt() as f32
}
