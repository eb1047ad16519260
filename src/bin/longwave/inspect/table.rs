//! What a store holds, as text.

use super::document::{Clusters, Context, Document, Layer, Segment};
use super::ladder::Ladder;
use super::spending;
use indicatif::HumanBytes;
use std::fmt::Write;

/// A line of a table. Writing into a string does not fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { let _ = writeln!($text, $($format)*); };
}

/// One line a context.
pub(super) fn overview(document: &Document) -> String {
    let mut text = String::new();
    let contexts = document.contexts.len();
    let plural = if contexts == 1 { "" } else { "s" };
    line!(
        text,
        "store {}: {contexts} context{plural}, {} on disk",
        document.store,
        HumanBytes(document.bytes)
    );
    if contexts == 0 {
        return text;
    }
    let width = document.contexts.iter().map(|context| context.name.len()).fold(4, usize::max);
    line!(
        text,
        "{:<width$} {:>10} {:>9} {:>6} {:>8} {:>7} {:>5} {:>11}  identity",
        "name",
        "generation",
        "tokens",
        "layers",
        "KV heads",
        "dims",
        "dtype",
        "on disk"
    );
    for context in &document.contexts {
        let model = &context.model;
        line!(
            text,
            "{:<width$} {:>10} {:>9} {:>6} {:>8} {:>7} {:>5} {:>11}  {}",
            context.name,
            context.generation,
            context.tokens,
            kept(context).count(),
            model.kv_heads,
            format!("{}/{}", model.key_dim, model.value_dim),
            model.dtype,
            HumanBytes(context.bytes.total).to_string(),
            context.identity.get(..16).unwrap_or_default()
        );
    }
    text
}

/// A context with its layers and segments; with `columns`, also the columns and clusters of each segment.
pub(super) fn context(context: &Context, columns: bool) -> String {
    let mut text = String::new();
    head(&mut text, context);
    layers(&mut text, context);
    forgotten(&mut text, context);
    if !columns {
        text += &spending::by_layer(kept(context));
    }
    for layer in kept(context).filter(|layer| !layer.segments.is_empty()) {
        if columns {
            layer.segments.iter().for_each(|segment| detail(&mut text, layer, segment));
            calibration(&mut text, layer);
            text += &spending::by_head(layer);
        } else {
            segments(&mut text, layer);
        }
    }
    text
}

/// Layers that keep KV.
fn kept(context: &Context) -> impl Iterator<Item = &Layer> {
    context.layers.iter().filter(|layer| layer.kind != "absent")
}

fn head(text: &mut String, context: &Context) {
    let Context { name, generation, tokens, token_ids, model, settings, bytes, .. } = context;
    line!(text, "context {name}: generation {generation}, {tokens} tokens, {token_ids} token ids known");
    line!(text, "identity {}", context.identity);
    let softcap = model.softcap.map_or(String::new(), |cap| format!(", softcap {cap}"));
    line!(
        text,
        "model    {} layers, {} query heads, {} KV heads, key dim {}, value dim {}, {}, scale {}{softcap}, rope {}",
        model.layers,
        model.query_heads,
        model.kv_heads,
        model.key_dim,
        model.value_dim,
        model.dtype,
        model.scale,
        model.rope
    );
    let split = settings
        .split_factor
        .map_or("not split".to_string(), |factor| format!("split above {factor} x the mean"));
    line!(
        text,
        "settings sinks {}, window {}, segments of {} rows in bulk and {} in decoding, {} sampled positions a layer",
        settings.sinks,
        settings.window,
        settings.bulk_segment_rows,
        settings.decode_segment_rows,
        settings.sample_positions
    );
    let rebuilt = settings.rebuild_positions.map_or("only when asked".to_string(), |positions| {
        format!("once {positions} positions are observed, where a segment knew none")
    });
    let more = if settings.ladder { " (more from position 16384 on)" } else { "" };
    line!(
        text,
        "clusters {} tokens each{more}, {} iterations, {split}, seed {}, {} ladder",
        settings.tokens_per_cluster,
        settings.iterations,
        settings.seed,
        if settings.ladder { "with a" } else { "without a" }
    );
    line!(text, "rebuilt  {rebuilt}");
    line!(
        text,
        "on disk  {}: segments {}, row log {}, meta log {}, manifest {}",
        HumanBytes(bytes.total),
        HumanBytes(bytes.segments),
        HumanBytes(bytes.row_log),
        HumanBytes(bytes.meta_log),
        HumanBytes(bytes.manifest)
    );
}

fn layers(text: &mut String, context: &Context) {
    line!(
        text,
        "\n{:>5} {:<12} {:>9} {:>9} {:>6} {:>8} {:>9} {:>9} {:>5} {:>7} {:>11}",
        "layer",
        "kind",
        "rows",
        "sealed",
        "tail",
        "segments",
        "clusters",
        "size mean",
        "max",
        "sampled",
        "on disk"
    );
    for layer in kept(context) {
        let heads: Vec<&Clusters> =
            layer.segments.iter().filter_map(|s| s.clusters.as_ref()).flatten().collect();
        let clusters: usize = heads.iter().map(|head| head.clusters).sum();
        let rows: f64 = heads.iter().map(|head| head.size_mean * head.clusters as f64).sum();
        let mean = if clusters == 0 { "-".to_string() } else { format!("{:.1}", rows / clusters as f64) };
        let max = heads.iter().map(|head| head.size_max).max().map_or("-".to_string(), |max| max.to_string());
        let kind =
            layer.sliding_window.map_or(layer.kind.to_string(), |window| format!("{} {window}", layer.kind));
        line!(
            text,
            "{:>5} {kind:<12} {:>9} {:>9} {:>6} {:>8} {clusters:>9} {mean:>9} {max:>5} {:>7} {:>11}",
            layer.layer,
            layer.rows,
            layer.sealed_rows,
            layer.tail_rows,
            layer.segments.len(),
            layer.sampled_positions.len(),
            HumanBytes(layer.segments.iter().map(|segment| segment.file_bytes).sum()).to_string()
        );
    }
}

fn forgotten(text: &mut String, context: &Context) {
    let layers: Vec<_> = kept(context).filter_map(|layer| Some((layer, layer.forgotten.as_ref()?))).collect();
    if layers.is_empty() {
        return;
    }
    line!(
        text,
        "\n{:>5} {:<8} {:>11} {:>9} {:>9} {:>9} {:>9}",
        "layer",
        "forgets",
        "after steps",
        "steps",
        "clusters",
        "demoted",
        "dropped"
    );
    for (layer, forgotten) in layers {
        let after = forgotten.after_steps.map_or("-".to_string(), |steps| steps.to_string());
        line!(
            text,
            "{:>5} {:<8} {after:>11} {:>9} {:>9} {:>9} {:>9}",
            layer.layer,
            forgotten.policy,
            forgotten.steps,
            forgotten.clusters,
            forgotten.clusters_demoted,
            forgotten.rows_dropped
        );
    }
}

fn segments(text: &mut String, layer: &Layer) {
    line!(text, "\n{:>5} {:>10} {:>9} {:>11}  segment", "layer", "first", "rows", "on disk");
    for segment in &layer.segments {
        let size = HumanBytes(segment.file_bytes).to_string();
        line!(
            text,
            "{:>5} {:>10} {:>9} {size:>11}  {}",
            layer.layer,
            segment.first_position,
            segment.rows,
            segment.file
        );
    }
}

fn detail(text: &mut String, layer: &Layer, segment: &Segment) {
    let (first, rows, size) = (segment.first_position, segment.rows, HumanBytes(segment.file_bytes));
    line!(text, "\n{}", segment.file);
    line!(
        text,
        "layer {}, positions {first} to {}, {rows} rows, {size}",
        layer.layer,
        first + u64::from(rows) - 1
    );
    line!(text, "{:<24} {:>12} {:>12} {:>8} {:>8}", "column", "offset", "bytes", "element", "blocks");
    for column in &segment.columns {
        line!(
            text,
            "{:<24} {:>12} {:>12} {:>8} {:>8}",
            column.name,
            column.offset,
            column.bytes,
            column.element_size,
            column.blocks
        );
    }
    let Some(clusters) = &segment.clusters else {
        line!(text, "no index: these rows are always read in full");
        return;
    };
    line!(
        text,
        "{:>4} {:>9} {:>9} {:>6} {:>6} {:>6} {:>12} {:>12}",
        "head",
        "clusters",
        "size mean",
        "p50",
        "p95",
        "max",
        "key spread",
        "value spread"
    );
    for head in clusters {
        line!(
            text,
            "{:>4} {:>9} {:>9.1} {:>6} {:>6} {:>6} {:>12.4} {:>12.4}",
            head.kv_head,
            head.clusters,
            head.size_mean,
            head.size_p50,
            head.size_p95,
            head.size_max,
            head.key_spread_mean,
            head.value_spread_mean
        );
    }
    if let Some(ladder) = &segment.ladder {
        ladder_detail(text, ladder);
    }
}

fn ladder_detail(text: &mut String, ladder: &Ladder) {
    let moment = match ladder.moment_source {
        "identity" => "identity, since no queries were known".to_string(),
        source => format!("{source}, {} positions", ladder.moment_positions),
    };
    line!(text, "ladder: basis {}, query moment {moment}", ladder.basis_digest);
    line!(
        text,
        "{:>4} {:>6} {:>6} {:>6} {:>6} {:>12} {:>12}",
        "head",
        "4 bits",
        "2 bits",
        "1 bit",
        "0 bits",
        "key spread",
        "value spread"
    );
    for head in &ladder.heads {
        let [four, two, one, none] = head.sketch_dims;
        line!(
            text,
            "{:>4} {four:>6} {two:>6} {one:>6} {none:>6} {:>12.4} {:>12.4}",
            head.kv_head,
            head.key_spread_mean,
            head.value_spread_mean
        );
    }
}

/// Taus whose bands are shown: those that `eval` compares.
const SHOWN: [f64; 3] = crate::method::TAUS;

fn calibration(text: &mut String, layer: &Layer) {
    let Some(heads) = &layer.calibration else {
        line!(text, "\nlayer {}: not calibrated, nothing was audited", layer.layer);
        return;
    };
    line!(text, "\nlayer {}: bound at confidence 0.95, in units of the predicted error", layer.layer);
    let taus: String = SHOWN.iter().map(|tau| format!(" {:>12}", format!("tau {tau}"))).collect();
    line!(text, "{:>10} {:>8}{taus}", "query head", "audits");
    for head in heads {
        let audits = head.bands.iter().map(|band| band.audits).max().unwrap_or_default();
        let at = |tau: &f64| {
            let band = head.bands.iter().find(|band| (band.tau / tau).log2().abs() < 0.25);
            let multiplier = band.and_then(|band| band.multiplier);
            format!(" {:>12}", multiplier.map_or("-".to_string(), |multiplier| format!("{multiplier:.2}")))
        };
        let multipliers: String = SHOWN.iter().map(at).collect();
        line!(text, "{:>10} {audits:>8}{multipliers}", head.query_head);
    }
}
