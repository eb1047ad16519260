//! `longwave import`: stores a trace as a context.

use crate::progress;
use crate::trace::{Trace, TraceLayer};
use anyhow::{Context as _, Result, ensure};
use longwave::{
    Compaction, Context, ContextOptions, Dtype, Durability, ModelSpec, RowForm, Store, StoreOptions,
    TensorView,
};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

/// Rows appended at a time.
const CHUNK: usize = 1024;
/// Sampled queries of each layer that are audited at once, so that the context has error bounds from the start.
pub(crate) const FIRST_AUDITS: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The trace, a safetensors file.
    trace: PathBuf,
    /// Directory of the store; made if it is missing.
    store: PathBuf,
    /// Name of the new context.
    name: String,
    /// Element type of the stored rows.
    #[arg(long, default_value = "f16")]
    dtype: Dtype,
    /// Tokens stored, from the first on; by default all.
    #[arg(long)]
    tokens: Option<usize>,
    /// How many of the last of them come one at a time, as while decoding, and are sealed in small segments.
    #[arg(long, default_value_t = 0)]
    decoded: usize,
    /// Form in which sealed rows are kept: in full, in 8 bits an element, or as the ladder's codes alone.
    #[arg(long, value_name = "full|8bit|codes", default_value = "full")]
    rows: RowForm,
    /// The form in single layers, as LAYER=FORM, separated by commas.
    #[arg(long, value_name = "LAYER=FORM", value_delimiter = ',')]
    layer_rows: Vec<LayerRows>,
}

/// The form of rows in one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LayerRows {
    layer: usize,
    form: RowForm,
}

impl FromStr for LayerRows {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (layer, form) = text.split_once('=').context("expected LAYER=FORM")?;
        let layer = layer.parse().with_context(|| format!("expected a layer's number, not {layer}"))?;
        Ok(LayerRows { layer, form: form.parse()? })
    }
}

/// Options of the context: the form of rows in every layer, and in those that are named.
fn context_options(arguments: &Arguments, model: &ModelSpec) -> Result<ContextOptions> {
    let mut forms = vec![arguments.rows; model.layers];
    for &LayerRows { layer, form } in &arguments.layer_rows {
        let slot = forms.get_mut(layer);
        *slot.with_context(|| {
            format!("--layer-rows: expected a layer below {}, not {layer}", model.layers)
        })? = form;
    }
    let options = ContextOptions::default().with_rows(arguments.rows);
    Ok(if arguments.layer_rows.is_empty() { options } else { options.with_layer_rows(forms) })
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let trace = Trace::open(&arguments.trace)?;
    // Before anything is made: a trace that cannot be stored leaves no half of it behind.
    for &layer in &trace.layers {
        trace
            .layer(layer)?
            .check_finite(arguments.dtype)
            .with_context(|| format!("layer {layer} of the trace"))?;
    }
    let tokens = arguments.tokens.unwrap_or(trace.tokens);
    ensure!(
        (1..=trace.tokens).contains(&tokens),
        "--tokens must be 1 to the {} tokens of the trace, not {tokens}",
        trace.tokens
    );
    ensure!(
        arguments.decoded < tokens,
        "--decoded must be less than the {tokens} tokens stored, not {}",
        arguments.decoded
    );
    let model = trace.model(arguments.dtype, &trace.layers);
    let context_options = context_options(arguments, &model)?;
    // Whether small segments are merged is the user's to say, by `compact`.
    let mut options = StoreOptions::default();
    options.compaction = Compaction::Never;
    let store = Store::open(&arguments.store, options)
        .with_context(|| format!("opening store {}", arguments.store.display()))?;
    let mut context = store.create_with(&arguments.name, &model, context_options)?;
    let bar = progress::bar("importing", 2 * trace.layers.len());
    for &layer in &trace.layers {
        observe(&trace, &mut context, layer)?;
        append(&trace, &mut context, layer, tokens - arguments.decoded)?;
        let rows = trace.layer(layer)?;
        for token in tokens - arguments.decoded..tokens {
            append_rows(&trace, &rows, &mut context, layer, token..token + 1)?;
        }
        bar.inc(1);
    }
    context.seal()?;
    for &layer in &trace.layers {
        context.calibrate(Some(layer), FIRST_AUDITS)?;
        bar.inc(1);
    }
    context.commit(Durability::Strict)?;
    bar.finish_and_clear();
    eprintln!(
        "imported {tokens} tokens, layers {:?}, {} KV heads, dims {}/{}, {} as context {}",
        trace.layers, trace.kv_heads, trace.key_dim, trace.value_dim, arguments.dtype, arguments.name
    );
    Ok(())
}

/// Lets a context see the queries of a layer before it has any of its rows: its first segment is then built in their
/// metric.
pub(crate) fn observe(trace: &Trace, context: &mut Context, layer: usize) -> Result<()> {
    let rows = trace.layer(layer)?;
    let queries = TensorView::token_major(&rows.queries[..], trace.queries, trace.query_heads, trace.key_dim);
    context.observe_at(layer, trace.first_query_position as u64, &queries)?;
    Ok(())
}

/// Appends the first `tokens` rows of a layer.
pub(crate) fn append(trace: &Trace, context: &mut Context, layer: usize, tokens: usize) -> Result<()> {
    let rows = trace.layer(layer)?;
    for start in (0..tokens).step_by(CHUNK) {
        append_rows(trace, &rows, context, layer, start..tokens.min(start + CHUNK))?;
    }
    Ok(())
}

fn append_rows(
    trace: &Trace,
    rows: &TraceLayer,
    context: &mut Context,
    layer: usize,
    tokens: Range<usize>,
) -> Result<()> {
    let (key, value) = (trace.kv_heads * trace.key_dim, trace.kv_heads * trace.value_dim);
    let keys = &rows.keys[tokens.start * key..tokens.end * key];
    let values = &rows.values[tokens.start * value..tokens.end * value];
    context.append(
        layer,
        &TensorView::token_major(keys, tokens.len(), trace.kv_heads, trace.key_dim),
        &TensorView::token_major(values, tokens.len(), trace.kv_heads, trace.value_dim),
    )?;
    Ok(())
}
