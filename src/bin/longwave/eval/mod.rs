//! `longwave eval`: methods and budgets compared with exact attention on a trace.
//!
//! The context is the tokens before the first recorded query, sealed as bulk ingestion seals it, so that queries do
//! not see their own recent tokens. The first quarter of the queries is observed (or another trace's queries stand for
//! it), the second audited, the rest asked. Errors are `|o' - o| / |o|` per query head against float64 attention over the stored rows.

mod bounds;
mod cache;
mod layer;
mod oracle;
mod plot;
mod reference;
mod steering;
mod summary;

use crate::method::{IndexKind, MethodName, Shares, TAUS, checked};
use crate::progress;
use crate::trace::Trace;
use anyhow::{Context as _, Result, ensure};
pub(crate) use bounds::Bounds;
use indicatif::ProgressBar;
use layer::{Asked, Layer};
use longwave::{Budget, Dtype, RowForm};
pub(crate) use plot::plot;
use std::path::{Path, PathBuf};
pub(crate) use summary::{Kept, Label, Sample, percentile, print, rows};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The trace, a safetensors file.
    trace: PathBuf,
    /// Methods to compare.
    #[arg(long = "method", value_enum, default_values = ["exact", "longwave", "oracle", "retroinfer"])]
    methods: Vec<Compared>,
    /// Layers to ask, separated by commas; all that the trace holds by default.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Report each layer by itself.
    #[arg(long)]
    by_layer: bool,
    /// Thresholds of `longwave`, separated by commas: smaller ones read more and are more accurate. 0.0032, 0.0016 and
    /// 0.0008 by default, unless --bytes or --error is given.
    #[arg(long, value_delimiter = ',')]
    tau: Vec<f64>,
    /// Shares of the bytes, separated by commas: finds the tau whose mean share over the trace this is.
    #[arg(long, value_delimiter = ',')]
    bytes: Vec<f64>,
    /// Most relative error, separated by commas: tau is lowered until the bound meets it.
    #[arg(long, value_delimiter = ',')]
    error: Vec<f64>,
    /// Share of the answers that bounds hold for.
    #[arg(long, default_value_t = longwave::CONFIDENCE)]
    confidence: f64,
    #[command(flatten)]
    shares: Shares,
    /// Takes the query moment from all queries of this trace, of the same shape, instead of the first quarter of TRACE's.
    #[arg(long, value_name = "OTHER_TRACE")]
    moment: Option<PathBuf>,
    /// Tokens per cluster; the method's own by default.
    #[arg(long)]
    cluster: Option<u32>,
    /// Queries asked, spread over the second half of those recorded; all of them by default.
    #[arg(long)]
    queries: Option<usize>,
    /// Element type of the stored rows.
    #[arg(long, default_value = "f16")]
    dtype: Dtype,
    /// Forms in which the built index keeps its rows, separated by commas and reported side by side; errors are against the
    /// rows as they were. With codes, `exact` reads the index of `longwave`, and `retroinfer` and `oracle` have none.
    #[arg(long, value_name = "full|8bit|codes", value_delimiter = ',', default_value = "full")]
    rows: Vec<RowForm>,
    /// Instead of comparing answers, runs all recorded queries as decode steps through the policies of a block cache with room
    /// for this share of the KV bytes.
    #[arg(long, value_name = "SHARE")]
    cache: Option<f64>,
    /// Also draws the comparison: error against bytes, and the calibration of the bound.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// A method that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compared {
    Exact,
    Longwave,
    Retroinfer,
    /// The truly best rows at the bytes of each budget of `longwave`.
    Oracle,
}

impl Arguments {
    /// The budgets of `longwave`: taus, those found for shares of bytes, and bounds on the error.
    fn ladder_budgets(&self, layers: &[Layer<'_>]) -> Result<Vec<(Label, Budget)>> {
        let usual = if self.bytes.is_empty() && self.error.is_empty() { &TAUS[..] } else { &[] };
        let taus = if self.tau.is_empty() { usual } else { &self.tau };
        let budgets = MethodName::Longwave.budgets(taus, &self.shares)?;
        let mut all: Vec<(Label, Budget)> = budgets.into_iter().map(|b| (Label::of(&b), b)).collect();
        for &share in &self.bytes {
            let tau = steering::tau_of_share(layers, share)?;
            let label = Label { budget: format!("bytes={share}"), ..Label::of(&Budget::Even(tau)) };
            all.push((label, Budget::Even(tau)));
        }
        let errors = self.error.iter();
        let errors = errors.map(|&target| Budget::Error { target, confidence: self.confidence });
        all.extend(checked(errors.collect())?.into_iter().map(|b| (Label::of(&b), b)));
        Ok(all)
    }

    /// Refuses numbers that are out of their range, before anything is built.
    fn check(&self) -> Result<()> {
        MethodName::Longwave.budgets(&self.tau, &self.shares)?;
        MethodName::Retroinfer.budgets(&[], &self.shares)?;
        let targets = [&[0.1], &self.error[..]].concat();
        let confidence = self.confidence;
        checked(targets.into_iter().map(|target| Budget::Error { target, confidence }).collect())?;
        for &form in &self.rows {
            let codes = form == RowForm::Codes && self.asks_for(Compared::Retroinfer);
            ensure!(!codes, "--rows codes: retroinfer has no codes to read; leave it out with --method");
            let reduced = form != RowForm::Full && self.asks_for(Compared::Oracle);
            ensure!(!reduced, "--rows {form}: the oracle reads rows in full; leave it out with --method");
        }
        let drawn = self.plot.is_some() && self.rows.len() > 1;
        ensure!(!drawn, "--plot: expected one form of rows, not {}", self.rows.len());
        let cached = self.cache.is_some() && self.rows != [RowForm::Full];
        ensure!(!cached, "--cache: expected rows in full, and no other form in --rows");
        self.cache.map_or(Ok(()), cache::check)?;
        checked(self.bytes.iter().map(|&share| Budget::Bytes(share)).collect())?;
        Ok(())
    }

    /// The policies of a block cache, for the methods asked for that read clusters.
    fn run_cache(&self, layers: &[Layer<'_>], steps: usize, share: f64) -> Result<()> {
        let known =
            [(Compared::Longwave, MethodName::Longwave), (Compared::Retroinfer, MethodName::Retroinfer)];
        let methods: Vec<MethodName> =
            known.into_iter().filter(|(asked, _)| self.asks_for(*asked)).map(|(_, method)| method).collect();
        let tau = self.tau.first().copied().unwrap_or(TAUS[1]);
        let (shares, json) = (&self.shares, self.json);
        cache::run(layers, &cache::Request { steps, share, methods: &methods, tau, shares, json })
    }

    fn asks_for(&self, method: Compared) -> bool {
        self.methods.contains(&method)
    }

    fn kinds(&self, form: RowForm) -> Vec<IndexKind> {
        // Without a ladder there are no codes.
        let codes = form == RowForm::Codes;
        let ladder = self.asks_for(Compared::Longwave) || self.asks_for(Compared::Oracle) || codes;
        let clusters = (self.asks_for(Compared::Exact) && !codes) || self.asks_for(Compared::Retroinfer);
        let kinds = [(IndexKind::Ladder, ladder), (IndexKind::Clusters, clusters)];
        kinds.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| kind).collect()
    }

    /// Asks every layer by every method and budget: the methods in the order asked for.
    fn compare(&self, layers: &[Layer<'_>], form: RowForm) -> Result<Vec<Figures>> {
        let has_ladder = self.kinds(form).contains(&IndexKind::Ladder);
        let ladder = if has_ladder { self.ladder_budgets(layers)? } else { Vec::new() };
        let bar = progress::bar("asking", layers.len() * (ladder.len() + self.methods.len()));
        let answers = ladder.iter().map(|(_, budget)| ask(layers, (budget, self.confidence), &bar));
        let answers: Vec<Vec<Vec<Asked>>> = answers.collect::<Result<_>>()?;
        let mut results = Vec::new();
        for &method in &self.methods {
            match method {
                Compared::Longwave => {
                    let labels = ladder.iter().map(|(label, _)| label.clone());
                    results.extend(labels.zip(answers.iter().map(|answers| flat(answers))));
                }
                Compared::Oracle => results.extend(oracle(layers, &ladder, &answers, &bar)?),
                Compared::Exact => results.push(whole(layers, Budget::Exact, &bar)?),
                Compared::Retroinfer => {
                    for budget in MethodName::Retroinfer.budgets(&[], &self.shares)? {
                        results.push(whole(layers, budget, &bar)?);
                    }
                }
            }
        }
        bar.finish_and_clear();
        for (label, _) in &mut results {
            label.kept = Some(kept(layers, form, label.method)?);
        }
        Ok(results)
    }
}

/// How the layers' rows are kept, and the room of the segments that a method reads.
fn kept(layers: &[Layer<'_>], form: RowForm, method: &str) -> Result<Kept> {
    let ladder = ["longwave", "oracle"].contains(&method);
    let budget = if ladder { Budget::Tau(TAUS[0]) } else { Budget::Exact };
    let (mut disk, mut full) = (0, 0);
    for layer in layers {
        let [of_disk, of_rows] = layer.disk_bytes(&budget)?;
        (disk, full) = (disk + of_disk, full + of_rows);
    }
    Ok(Kept { form, disk_share: disk as f64 / full as f64 })
}

/// A method with its budget, and its answers over all layers.
type Figures = (Label, Vec<Sample>);

/// Per layer and asked query.
fn ask(
    layers: &[Layer<'_>],
    (budget, confidence): (&Budget, f64),
    bar: &ProgressBar,
) -> Result<Vec<Vec<Asked>>> {
    let ask = |layer: &Layer<'_>| {
        bar.inc(1);
        layer.ask(budget, confidence)
    };
    layers.iter().map(ask).collect()
}

fn flat(answers: &[Vec<Asked>]) -> Vec<Sample> {
    answers.iter().flatten().flat_map(|asked| asked.samples.iter().cloned()).collect()
}

/// A method that bounds nothing.
fn whole(layers: &[Layer<'_>], budget: Budget, bar: &ProgressBar) -> Result<Figures> {
    Ok((Label::of(&budget), flat(&ask(layers, (&budget, longwave::CONFIDENCE), bar)?)))
}

/// The oracle at the bytes of each budget of `longwave`.
fn oracle(
    layers: &[Layer<'_>],
    ladder: &[(Label, Budget)],
    answers: &[Vec<Vec<Asked>>],
    bar: &ProgressBar,
) -> Result<Vec<Figures>> {
    let label =
        |of: &Label| Label { method: "oracle", budget: format!("bytes of {}", of.budget), ..of.clone() };
    let mut results: Vec<Figures> = ladder.iter().map(|(of, _)| (label(of), Vec::new())).collect();
    for (number, layer) in layers.iter().enumerate() {
        let spent: Vec<&[Asked]> = answers.iter().map(|answers| &answers[number][..]).collect();
        for ((_, samples), of_layer) in results.iter_mut().zip(layer.ask_oracle(&spent)?) {
            samples.extend(of_layer);
        }
        bar.inc(1);
    }
    Ok(results)
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let trace = Trace::open(&arguments.trace)?;
    let numbers = trace.chosen_layers(&arguments.layers)?;
    arguments.check()?;
    // The cache looks at every step, and at no answer.
    let asked = if arguments.cache.is_some() { Vec::new() } else { asked(trace.queries, arguments.queries)? };
    let moment = arguments.moment.as_deref().map(|path| moment_trace(path, &trace, &numbers)).transpose()?;
    let mut results = Vec::new();
    for &form in &arguments.rows {
        let kinds: Vec<(IndexKind, Option<u32>)> =
            arguments.kinds(form).into_iter().map(|kind| (kind, arguments.cluster)).collect();
        let bar = progress::bar("building", numbers.len());
        let mut layers = Vec::new();
        for &number in &numbers {
            let kept = (arguments.dtype, form);
            layers.push(Layer::new((&trace, moment.as_ref()), number, &asked, kept, &kinds)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(share) = arguments.cache {
            return arguments.run_cache(&layers, trace.queries, share);
        }
        results.extend(arguments.compare(&layers, form)?);
    }
    if let Some(path) = &arguments.plot {
        let name = arguments.trace.file_name().unwrap_or_default().to_string_lossy();
        let context = trace.first_query_position;
        let title = format!("{name}: {context} tokens, {} layers, {} queries", numbers.len(), asked.len());
        std::fs::write(path, plot(&title, &results))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let by_layer = if arguments.by_layer { &numbers[..] } else { &[] };
    let table: Vec<_> = results.iter().flat_map(|(label, samples)| rows(label, by_layer, samples)).collect();
    print(&table, arguments.json)
}

/// Opens the trace whose queries stand for those of `trace`.
fn moment_trace(path: &Path, trace: &Trace, layers: &[usize]) -> Result<Trace> {
    let other = Trace::open(path)?;
    let shape = |trace: &Trace| (trace.query_heads, trace.kv_heads, trace.key_dim);
    ensure!(
        shape(&other) == shape(trace),
        "--moment: expected query heads, KV heads and dimension {:?}, found {:?}",
        shape(trace),
        shape(&other)
    );
    other.chosen_layers(layers).context("--moment")?;
    Ok(other)
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
}
