//! What calls have spent on a layer, head by head, and how wrong their answers were.

use super::document::Layer;
use anyhow::Result;
use longwave::{Band, CONFIDENCE, LayerKind, Snapshot};
use serde::Serialize;

/// Keys are a contract: see docs/cli.md.
#[derive(Serialize)]
pub(super) struct Spending {
    /// Query positions that `longwave` answered since the layer's index was built.
    pub(super) calls: u64,
    /// One entry a KV head.
    pub(super) heads: Vec<KvHead>,
}

#[derive(Serialize)]
pub(super) struct KvHead {
    pub(super) kv_head: usize,
    /// Mean over the calls, of the 16-bit bytes of the head's sealed rows.
    pub(super) bytes_share: f64,
    /// Mean over the calls; one that read every row counts with 0.
    pub(super) tau: f64,
    /// The query heads that share it.
    pub(super) query_heads: Vec<QueryHead>,
}

#[derive(Serialize)]
pub(super) struct QueryHead {
    pub(super) query_head: usize,
    /// Mean over the calls.
    pub(super) predicted_error: f64,
    /// Calls that were audited, at most 128.
    pub(super) audits: usize,
    /// Of the audited calls; `None` without any.
    pub(super) error_mean: Option<f64>,
    pub(super) error_p95: Option<f64>,
    /// What a predicted error is multiplied with for its bound, in the band of the KV head's mean tau.
    pub(super) multiplier: Option<f32>,
}

/// `None` where nothing was asked.
pub(super) fn gather(snapshot: &Snapshot, layer: usize) -> Result<Option<Spending>> {
    if snapshot.model().layer_kind(layer) == LayerKind::Absent {
        return Ok(None);
    }
    let (spending, calibration) = (snapshot.spending(layer)?, snapshot.calibration(layer)?);
    if spending.calls() == 0 {
        return Ok(None);
    }
    let group = spending.query_heads().len() / spending.kv_heads().len();
    let groups = spending.query_heads().chunks_exact(group);
    let heads = spending.kv_heads().iter().zip(groups).enumerate().map(|(kv_head, (spent, group))| {
        let band = Band::of(spent.tau);
        let query_heads = group.iter().zip(kv_head * group.len()..).map(|(head, query_head)| QueryHead {
            query_head,
            predicted_error: head.predicted_error(),
            audits: head.audits(),
            error_mean: head.error_mean(),
            error_p95: head.error_p95(),
            multiplier: band.and_then(|band| calibration.multiplier(band, query_head, CONFIDENCE)),
        });
        let (bytes_share, tau) = (spent.bytes_share, spent.tau);
        KvHead { kv_head, bytes_share, tau, query_heads: query_heads.collect() }
    });
    Ok(Some(Spending { calls: spending.calls(), heads: heads.collect() }))
}

/// A line for each layer that was called; empty where none was.
pub(super) fn by_layer<'a>(layers: impl Iterator<Item = &'a Layer>) -> String {
    let called: Vec<_> = layers.filter_map(|layer| Some((layer.layer, layer.spending.as_ref()?))).collect();
    if called.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\nwhat calls spent, and how wrong they were: means over the heads, the worst head's p95\n\
         {:>5} {:>9} {:>9} {:>9} {:>10} {:>9} {:>11} {:>9}\n",
        "layer", "calls", "KV read", "tau", "predicted", "audited", "error mean", "p95"
    );
    for (layer, spending) in called {
        let query_heads = || spending.heads.iter().flat_map(|head| &head.query_heads);
        let errors: Vec<f64> = query_heads().filter_map(|head| head.error_mean).collect();
        let p95 = query_heads().filter_map(|head| head.error_p95).reduce(f64::max);
        text += &format!(
            "{layer:>5} {:>9} {:>8.2}% {:>9.2e} {:>10.4} {:>9} {:>11} {:>9}\n",
            spending.calls,
            100.0 * mean(spending.heads.iter().map(|head| head.bytes_share)),
            mean(spending.heads.iter().map(|head| head.tau)),
            mean(query_heads().map(|head| head.predicted_error)),
            query_heads().map(|head| head.audits).max().unwrap_or_default(),
            shown((!errors.is_empty()).then(|| mean(errors.into_iter()))),
            shown(p95)
        );
    }
    text
}

/// A line for each query head of a layer.
pub(super) fn by_head(layer: &Layer) -> String {
    let Some(spending) = &layer.spending else {
        return format!("\nlayer {}: nothing was asked by `longwave` yet\n", layer.layer);
    };
    let mut text = format!(
        "\nlayer {}: what {} calls spent, and how wrong they were where they were audited\n\
         {:>7} {:>10} {:>9} {:>9} {:>10} {:>9} {:>11} {:>9} {:>11}\n",
        layer.layer,
        spending.calls,
        "KV head",
        "query head",
        "KV read",
        "tau",
        "predicted",
        "audited",
        "error mean",
        "p95",
        "bound x"
    );
    for head in &spending.heads {
        for query_head in &head.query_heads {
            let multiplier = query_head.multiplier.map(f64::from);
            text += &format!(
                "{:>7} {:>10} {:>8.2}% {:>9.2e} {:>10.4} {:>9} {:>11} {:>9} {:>11}\n",
                head.kv_head,
                query_head.query_head,
                100.0 * head.bytes_share,
                head.tau,
                query_head.predicted_error,
                query_head.audits,
                shown(query_head.error_mean),
                shown(query_head.error_p95),
                multiplier.map_or("-".to_string(), |multiplier| format!("{multiplier:.2}"))
            );
        }
    }
    text
}

fn shown(error: Option<f64>) -> String {
    error.map_or("-".into(), |error| format!("{error:.4}"))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0usize, 0.0), |(count, sum), x| (count + 1, sum + x));
    sum / count as f64
}
