//! `longwave eval`: methods and budgets compared with exact attention on a trace.
//!
//! The context is the tokens before the first recorded query, sealed as bulk ingestion seals it, so that queries do
//! not see their own recent tokens. The first quarter of the queries is observed, the second is for calibration,
//! the rest is asked. Errors are `|o' - o| / |o|` per query head against float64 attention over the stored rows.

mod reference;
mod summary;

use crate::import::append;
use crate::method::{MethodName, Shares};
use crate::progress;
use crate::trace::{Trace, TraceLayer};
use anyhow::{Result, ensure};
use longwave::{Budget, ClusterOptions, ContextOptions, Dtype, Snapshot, Store, StoreOptions, TensorView};
use rayon::prelude::*;
use reference::Reference;
use std::path::PathBuf;
pub(crate) use summary::percentile;
use summary::{Row, Sample};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The trace, a safetensors file.
    trace: PathBuf,
    /// Methods to compare.
    #[arg(long = "method", value_enum, default_values = ["exact", "longwave", "retroinfer"])]
    methods: Vec<MethodName>,
    /// Layers to ask, separated by commas; all that the trace holds by default.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Report each layer by itself.
    #[arg(long)]
    by_layer: bool,
    #[command(flatten)]
    shares: Shares,
    /// Tokens per cluster; the method's own by default.
    #[arg(long)]
    cluster: Option<u32>,
    /// Queries asked, spread over the second half of those recorded; all of them by default.
    #[arg(long)]
    queries: Option<usize>,
    /// Element type of the stored rows.
    #[arg(long, default_value = "f16")]
    dtype: Dtype,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is compared: a budget, and the index that its method builds.
#[derive(Clone, Copy)]
struct Candidate {
    budget: Budget,
    clusters: ClusterOptions,
    ladder: bool,
}

impl Arguments {
    fn candidates(&self, method: MethodName) -> Result<Vec<Candidate>> {
        let ladder = method == MethodName::Longwave;
        let mut clusters = if ladder { ClusterOptions::ladder() } else { ClusterOptions::retroinfer() };
        if let Some(tokens) = self.cluster {
            clusters.tokens_per_cluster = tokens;
        }
        let budgets = method.budgets(&self.shares)?.into_iter();
        Ok(budgets.map(|budget| Candidate { budget, clusters, ladder }).collect())
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let candidates = arguments.methods.iter().map(|&method| arguments.candidates(method));
    let candidates: Vec<Candidate> = candidates.collect::<Result<Vec<_>>>()?.concat();
    let trace = Trace::open(&arguments.trace)?;
    let layers = trace.chosen_layers(&arguments.layers)?;
    let asked = asked(trace.queries, arguments.queries)?;
    let mut samples: Vec<Vec<Sample>> = candidates.iter().map(|_| Vec::new()).collect();
    let bar = progress::bar("comparing", layers.len() * (1 + candidates.len()));
    for &layer in &layers {
        let rows = trace.layer(layer)?;
        let reference = Reference::new(&trace, &rows, arguments.dtype);
        let truth: Vec<Vec<f64>> =
            asked.par_iter().map(|&query| reference.attend(&trace, &rows, query)).collect();
        bar.inc(1);
        // Candidates that build the same index share it.
        let mut built: Vec<(Candidate, Snapshot)> = Vec::new();
        for (candidate, samples) in candidates.iter().zip(&mut samples) {
            let same = |(other, _): &(Candidate, _)| {
                (other.clusters, other.ladder) == (candidate.clusters, candidate.ladder)
            };
            let at = match built.iter().position(same) {
                Some(at) => at,
                None => {
                    let snapshot = build(&trace, layer, &rows, candidate, arguments.dtype)?;
                    built.push((*candidate, snapshot));
                    built.len() - 1
                }
            };
            for (&query, truth) in asked.iter().zip(&truth) {
                samples.extend(ask(&trace, layer, &rows, &built[at].1, candidate, query, truth)?);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let mut table = Vec::new();
    for (candidate, samples) in candidates.iter().zip(&samples) {
        if arguments.by_layer {
            for &layer in &layers {
                table.push(Row::new(
                    &candidate.budget,
                    Some(layer),
                    samples.iter().filter(|s| s.layer == layer),
                ));
            }
        }
        table.push(Row::new(&candidate.budget, None, samples.iter()));
    }
    summary::print(&table, arguments.json)
}

/// Indices of the queries asked: the second half, thinned evenly to `limit`.
fn asked(queries: usize, limit: Option<usize>) -> Result<Vec<usize>> {
    let half = queries / 2;
    ensure!(queries >= 2, "the trace holds {queries} queries; at least 2 are needed");
    let count = limit.unwrap_or(queries - half).min(queries - half);
    ensure!(count > 0, "--queries must be at least 1");
    let step = |i: usize| if count == 1 { 0 } else { i * (queries - 1 - half) / (count - 1) };
    Ok((0..count).map(|i| half + step(i)).collect())
}

/// A context in memory that holds one layer of the trace, up to the first query.
fn build(
    trace: &Trace,
    layer: usize,
    rows: &TraceLayer,
    candidate: &Candidate,
    dtype: Dtype,
) -> Result<Snapshot> {
    let store = Store::in_memory(StoreOptions::default())?;
    let options = ContextOptions::default().with_clusters(candidate.clusters).with_ladder(candidate.ladder);
    let mut context = store.create_with("eval", &trace.model(dtype, &[layer]), options)?;
    let observed = trace.queries / 4;
    let queries = &rows.queries[..observed * trace.query_heads * trace.key_dim];
    if observed > 0 {
        let queries = TensorView::token_major(queries, observed, trace.query_heads, trace.key_dim);
        context.observe_at(layer, trace.first_query_position as u64, &queries)?;
    }
    append(trace, &mut context, layer, trace.first_query_position)?;
    context.seal()?;
    Ok(context.snapshot()?)
}

fn ask(
    trace: &Trace,
    layer: usize,
    rows: &TraceLayer,
    snapshot: &Snapshot,
    candidate: &Candidate,
    query: usize,
    truth: &[f64],
) -> Result<Vec<Sample>> {
    let row = trace.query_heads * trace.key_dim;
    let data = &rows.queries[query * row..(query + 1) * row];
    let queries = TensorView::token_major(data, 1, trace.query_heads, trace.key_dim);
    let answer = snapshot.attend(layer, &queries, &candidate.budget)?;
    let heads = answer.output.chunks_exact(trace.value_dim).zip(truth.chunks_exact(trace.value_dim));
    let (bytes_share, page_share) = (answer.report.bytes_share(), answer.report.page_share());
    Ok(heads
        .map(|(output, truth)| Sample { layer, query, error: error(output, truth), bytes_share, page_share })
        .collect())
}

/// `|o' - o| / |o|`.
fn error(output: &[f32], truth: &[f64]) -> f64 {
    let norm = |squares: f64| squares.sqrt();
    let off: f64 = output.iter().zip(truth).map(|(&o, &t)| (f64::from(o) - t).powi(2)).sum();
    norm(off) / norm(truth.iter().map(|t| t * t).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_is_asked_and_thinned_evenly() {
        assert_eq!(asked(8, None).unwrap(), [4, 5, 6, 7]);
        // numpy.linspace(128, 255, 12).astype(int)
        let expected = [128, 139, 151, 162, 174, 185, 197, 208, 220, 231, 243, 255];
        assert_eq!(asked(256, Some(12)).unwrap(), expected);
        assert_eq!(asked(9, Some(1)).unwrap(), [4]);
        assert!(asked(1, None).is_err() && asked(8, Some(0)).is_err());
    }

    #[test]
    fn the_error_is_relative_to_the_truth() {
        assert_eq!(error(&[3.0, 0.0], &[0.0, 4.0]), 1.25);
    }
}
