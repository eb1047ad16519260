//! `longwave audit`: methods and budgets compared on the queries that a stored context keeps as a sample.
//!
//! No engine and no model are needed. A snapshot places queries at its end, so each sampled query is asked at the
//! context's last position, with all rows in sight. Errors are against exact attention of the engine itself, in float32.

use crate::eval::{Bounds, Label, Sample, plot, print, rows};
use crate::method::{MethodName, Shares, TAUS, checked};
use crate::opening::open_store;
use crate::progress;
use anyhow::{Context as _, Result, bail, ensure};
use indicatif::ProgressBar;
use longwave::{Budget, LayerKind, Snapshot, TensorView};
use rayon::prelude::*;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the store.
    store: PathBuf,
    /// Name of the context.
    name: String,
    /// Methods to compare.
    #[arg(long = "method", value_enum, default_values = ["exact", "longwave", "retroinfer"])]
    methods: Vec<MethodName>,
    /// Layers to ask, separated by commas; by default all that are clustered and keep sampled queries.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Report each layer by itself.
    #[arg(long)]
    by_layer: bool,
    /// Thresholds of `longwave`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = TAUS)]
    tau: Vec<f64>,
    /// Most relative error, separated by commas: tau is lowered until the bound meets it.
    #[arg(long, value_delimiter = ',')]
    error: Vec<f64>,
    /// Share of the answers that bounds hold for.
    #[arg(long, default_value_t = longwave::CONFIDENCE)]
    confidence: f64,
    #[command(flatten)]
    shares: Shares,
    /// Queries asked of each layer, spread over its sample; all of them by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    queries: Option<u32>,
    /// Also draws the comparison: error against bytes, and the calibration of the bound.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let budgets = arguments.budgets()?;
    let snapshot = open_store(&arguments.store)?.snapshot(&arguments.name)?;
    let numbers = arguments.chosen_layers(&snapshot)?;
    let mut results: Vec<(Label, Vec<Sample>)> =
        budgets.iter().map(|budget| (Label::of(budget), Vec::new())).collect();
    let bar = progress::bar("asking", numbers.len() * (1 + budgets.len()));
    for &number in &numbers {
        let layer = Layer::new(&snapshot, number, arguments.queries, &bar)?;
        for (budget, (_, samples)) in budgets.iter().zip(&mut results) {
            samples.extend(layer.ask(budget, arguments.confidence)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    eprintln!(
        "queries of the sample, asked at the context's last position; errors against exact attention in float32"
    );
    if let Some(path) = &arguments.plot {
        let title = format!("context {}: sampled queries of {} layers", arguments.name, numbers.len());
        std::fs::write(path, plot(&title, &results))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let by_layer = if arguments.by_layer { &numbers[..] } else { &[] };
    let table: Vec<_> = results.iter().flat_map(|(label, samples)| rows(label, by_layer, samples)).collect();
    print(&table, arguments.json)
}

impl Arguments {
    fn budgets(&self) -> Result<Vec<Budget>> {
        let confidence = self.confidence;
        checked(vec![Budget::Error { target: 1.0, confidence }])?;
        let mut budgets = Vec::new();
        for &method in &self.methods {
            budgets.extend(method.budgets(&self.tau, &self.shares)?);
            if method == MethodName::Longwave {
                let errors = self.error.iter().map(|&target| Budget::Error { target, confidence });
                budgets.extend(checked(errors.collect())?);
            }
        }
        Ok(budgets)
    }

    fn chosen_layers(&self, snapshot: &Snapshot) -> Result<Vec<usize>> {
        for &layer in &self.layers {
            ensure!(
                !snapshot.sampled_queries(layer)?.is_empty(),
                "layer {layer} of context {} holds no sampled queries",
                self.name
            );
        }
        if !self.layers.is_empty() {
            return Ok(self.layers.clone());
        }
        let mut layers = Vec::new();
        for layer in 0..snapshot.model().layers {
            let clustered = snapshot.model().layer_kind(layer) == LayerKind::Clustered;
            if clustered && !snapshot.sampled_queries(layer)?.is_empty() {
                layers.push(layer);
            }
        }
        if layers.is_empty() {
            bail!("context {} holds no sampled queries of a clustered layer", self.name);
        }
        Ok(layers)
    }
}

/// The sampled queries of one layer, with their exact answers.
struct Layer<'a> {
    snapshot: &'a Snapshot,
    number: usize,
    /// Index in the sample, `[query_heads, key_dim]`, and `[query_heads, value_dim]`.
    asked: Vec<(usize, &'a [half::f16], Vec<f64>)>,
}

impl<'a> Layer<'a> {
    fn new(snapshot: &'a Snapshot, number: usize, limit: Option<u32>, bar: &ProgressBar) -> Result<Self> {
        let sample = snapshot.sampled_queries(number)?;
        let count = limit.map_or(sample.len(), |limit| sample.len().min(limit as usize));
        let at: Vec<usize> = (0..count).map(|i| i * sample.len() / count).collect();
        let mut layer = Layer { snapshot, number, asked: Vec::new() };
        let exact = |&at: &usize| {
            let (_, query) = &sample[at];
            let answer = layer.attend(query, &Budget::Exact)?;
            Ok((at, query.as_slice(), answer.output.iter().map(|&x| f64::from(x)).collect()))
        };
        layer.asked = at.par_iter().map(exact).collect::<Result<_>>()?;
        bar.inc(1);
        Ok(layer)
    }

    fn attend(&self, query: &[half::f16], budget: &Budget) -> Result<longwave::Answer> {
        let model = self.snapshot.model();
        let queries = TensorView::token_major(query, 1, model.query_heads, model.key_dim);
        Ok(self.snapshot.attend(self.number, &queries, budget)?)
    }

    fn ask(&self, budget: &Budget, confidence: f64) -> Result<Vec<Sample>> {
        let bounds = Bounds::new(self.snapshot.calibration(self.number)?, budget, confidence);
        let ask = |(at, query, truth): &(usize, &[half::f16], Vec<f64>)| {
            let answer = self.attend(query, budget)?;
            Ok(Sample::of((self.number, *at), &answer, &bounds, truth))
        };
        let samples: Vec<Vec<Sample>> = self.asked.par_iter().map(ask).collect::<Result<_>>()?;
        Ok(samples.concat())
    }
}
