//! `longwave bench contexts`: what forks, cuts, and the search for a prefix cost.

use crate::output;
use anyhow::{Result, ensure};
use longwave::{
    Context, ContextOptions, Dtype, Durability, LayerKind, ModelIdentity, ModelSpec, Store, StoreOptions,
    TensorView,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rows of one append.
const BULK: usize = 8192;
/// Rows of a guess that is taken back.
const GUESS: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory for the store, which is made in it and removed; by default that of temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Rows of the context that is forked.
    #[arg(long, default_value_t = 131_072)]
    tokens: usize,
    /// Layers of the model.
    #[arg(long, default_value_t = 32)]
    layers: usize,
    /// Contexts, forks of the first, among which a prefix is searched.
    #[arg(long, default_value_t = 10_000)]
    contexts: usize,
    /// Token ids that each of them has of its own.
    #[arg(long, default_value_t = 100)]
    own_tokens: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    tokens: usize,
    layers: usize,
    contexts: usize,
    fork_ms_p50: f64,
    fork_ms_p95: f64,
    fork_bytes: u64,
    rollback_ms_p50: f64,
    cut_ms: f64,
    cut_rows: usize,
    match_ms_p50: f64,
    match_ms_p95: f64,
    match_tokens: usize,
    match_first_ms: f64,
}

/// Small rows: what is measured does not depend on their size, but for the rows of a segment that is cut.
fn model(layers: usize) -> ModelSpec {
    ModelSpec {
        identity: ModelIdentity { weights: [7; 32], tokenizer: [8; 32], rope: "none".into() },
        layers,
        query_heads: 1,
        kv_heads: 1,
        key_dim: 16,
        value_dim: 16,
        dtype: Dtype::F16,
        scale: 0.25,
        softcap: None,
        layer_kinds: vec![LayerKind::ExactOnly; layers],
        sink_logits: vec![],
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.tokens >= 2 * BULK, "--tokens: expected {} or more", 2 * BULK);
    ensure!(arguments.contexts > 0 && arguments.layers > 0, "--contexts and --layers: expected 1 or more");
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = parent.join(format!("longwave-bench-contexts-{}", std::process::id()));
    let report = measure(arguments, &dir);
    let removed = std::fs::remove_dir_all(&dir);
    let report = report?;
    removed?;
    if arguments.json {
        return output::print_lines(&[report]);
    }
    output::print(&report.table())
}

impl Report {
    fn table(&self) -> String {
        let Report { tokens, layers, contexts, fork_ms_p50, fork_ms_p95, fork_bytes, .. } = self;
        let Report { rollback_ms_p50, cut_ms, cut_rows, match_first_ms, .. } = self;
        let Report { match_ms_p50, match_ms_p95, match_tokens, .. } = self;
        format!(
            "{tokens} rows in {layers} layers, {contexts} contexts\n\
             fork      {fork_ms_p50:.2} ms, p95 {fork_ms_p95:.2} ms, {fork_bytes} bytes written\n\
             rollback  {rollback_ms_p50:.3} ms for {GUESS} rows of the tail\n\
             cut       {cut_ms:.1} ms inside segments of {cut_rows} rows\n\
             match     {match_ms_p50:.3} ms, p95 {match_ms_p95:.3} ms, of {match_tokens} ids\n\
             first     {match_first_ms:.0} ms, the first match of a process\n"
        )
    }
}

fn measure(arguments: &Arguments, dir: &Path) -> Result<Report> {
    let model = model(arguments.layers);
    let store = Store::open(dir, StoreOptions::default())?;
    let mut base = store.create_with("base", &model, ContextOptions::default().with_ladder(false))?;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut text: Vec<u32> = (0..arguments.tokens).map(|_| rng.next_u32() >> 16).collect();
    for ids in text.chunks(BULK) {
        append(&mut base, &model, ids)?;
    }
    // Or each fork would seal what is left in the tail, with its own rows, by itself.
    base.seal()?;
    base.commit(Durability::Strict)?;
    let mut fork_ms = Vec::new();
    let mut fork_bytes = 0;
    let mut texts = Vec::new();
    for number in 0..arguments.contexts {
        let name = format!("fork-{number}");
        let before = if number == 0 { bytes_written(dir) } else { 0 };
        let started = Instant::now();
        let mut fork = base.fork(&name)?;
        fork_ms.push(ms(started));
        if number == 0 {
            fork_bytes = bytes_written(dir) - before;
        }
        if arguments.own_tokens > 0 {
            let own: Vec<u32> = (0..arguments.own_tokens).map(|_| rng.next_u32() >> 16).collect();
            append(&mut fork, &model, &own)?;
            fork.commit(Durability::None)?;
            texts.push(own);
        }
    }
    let rollback = rollbacks(&mut base, &model)?;
    drop(base);
    let first = Store::open(dir, StoreOptions::default())?;
    let started = Instant::now();
    first.match_prefix(&model, &text)?;
    let match_first_ms = ms(started);
    let mut match_ms = Vec::new();
    let prefix = text.len();
    for _ in 0..1000 {
        let own = texts.get(rng.next_u32() as usize % texts.len().max(1));
        text.truncate(prefix);
        text.extend(own.into_iter().flatten());
        let started = Instant::now();
        let found = first.match_prefix(&model, &text)?;
        match_ms.push(ms(started));
        let length = found.map_or(0, |found| found.length);
        ensure!(length == text.len() as u64, "{length} of {} ids matched", text.len());
    }
    let mut cut = store.context("base", &model)?;
    let place = arguments.tokens - BULK - BULK / 2;
    let started = Instant::now();
    cut.truncate(place as u64)?;
    let cut_ms = ms(started);
    Ok(Report {
        tokens: arguments.tokens,
        layers: arguments.layers,
        contexts: arguments.contexts,
        fork_ms_p50: percentile(&mut fork_ms, 50),
        fork_ms_p95: percentile(&mut fork_ms, 95),
        fork_bytes,
        rollback_ms_p50: rollback,
        cut_ms,
        cut_rows: BULK,
        match_ms_p50: percentile(&mut match_ms, 50),
        match_ms_p95: percentile(&mut match_ms, 95),
        match_tokens: text.len(),
        match_first_ms,
    })
}

/// Guesses that are taken back before they are committed.
fn rollbacks(context: &mut Context, model: &ModelSpec) -> Result<f64> {
    let length = context.length(0)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        append(context, model, &[1; GUESS])?;
        let started = Instant::now();
        context.truncate(length)?;
        times.push(ms(started));
    }
    Ok(percentile(&mut times, 50))
}

fn append(context: &mut Context, model: &ModelSpec, ids: &[u32]) -> Result<()> {
    let rows: Vec<f32> =
        ids.iter().flat_map(|id| (0..16).map(move |i| (id % 97 + i) as f32 * 0.01)).collect();
    for layer in 0..model.layers {
        let rows = TensorView::token_major(&rows[..], ids.len(), 1, 16);
        context.append(layer, &rows, &rows)?;
    }
    Ok(context.extend_tokens(ids)?)
}

/// Bytes of all files below a directory.
fn bytes_written(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_written(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

fn ms(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}

fn percentile(times: &mut [f64], percent: usize) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}
