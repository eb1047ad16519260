//! What audits have shown of a layer's answers.

use anyhow::Result;
use longwave::{Band, CONFIDENCE, LayerKind, Snapshot};
use serde::Serialize;

/// One query head. Keys are a contract: see docs/cli.md.
#[derive(Serialize)]
pub(super) struct HeadCalibration {
    pub(super) query_head: usize,
    /// Bands of tau with audits of this head, by falling tau.
    pub(super) bands: Vec<AuditedBand>,
}

#[derive(Serialize)]
pub(super) struct AuditedBand {
    /// Middle of the band.
    pub(super) tau: f64,
    /// Audits that count.
    pub(super) audits: usize,
    /// What a predicted error is multiplied with for its bound at the confidence of 0.95; `None` where too few calls
    /// were audited.
    pub(super) multiplier: Option<f32>,
}

/// The query heads of a layer; `None` where nothing was audited.
pub(super) fn gather(snapshot: &Snapshot, layer: usize) -> Result<Option<Vec<HeadCalibration>>> {
    if snapshot.model().layer_kind(layer) == LayerKind::Absent {
        return Ok(None);
    }
    let calibration = snapshot.calibration(layer)?;
    if calibration.is_empty() {
        return Ok(None);
    }
    let of_head = |query_head: usize| {
        let audited = Band::all().filter(|&band| calibration.audits(band, query_head) > 0);
        let bands = audited.map(|band| AuditedBand {
            tau: band.tau(),
            audits: calibration.audits(band, query_head),
            multiplier: calibration.multiplier(band, query_head, CONFIDENCE),
        });
        HeadCalibration { query_head, bands: bands.collect() }
    };
    Ok(Some((0..calibration.query_heads()).map(of_head).collect()))
}
