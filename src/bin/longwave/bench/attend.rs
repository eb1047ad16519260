//! `longwave bench attend`: the time of one attention call.

use super::Place;
use super::layer::{Layer, QUERIES_MAX};
use super::synthetic::Synthetic;
use crate::method::{IndexKind, MethodName, Shares, TAUS, disk_bytes_of, tau_of};
use crate::output;
use crate::progress;
use crate::rungs::RungShares;
use anyhow::Result;
use longwave::{Budget, Context, Dtype, Kernels, LayerKind, Operator, Report, Snapshot, Store, TensorView};
use rayon::prelude::*;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The plain read goes over a buffer of the KV's size, up to this many bytes.
const READ_BYTES_MAX: usize = 256 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    layer: Layer,
    /// Methods to time.
    #[arg(long = "method", value_enum, default_values = ["exact", "longwave", "retroinfer"])]
    methods: Vec<MethodName>,
    /// Thresholds of `longwave`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [TAUS[1]])]
    tau: Vec<f64>,
    /// Have `longwave` read every row where the planner expects that to be sooner; with `false` it never does.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    planner: bool,
    /// Also `longwave` with these caps on the bytes of codes and rows that a call may fetch from disk, separated by commas.
    #[arg(long, value_delimiter = ',')]
    disk_bytes: Vec<u64>,
    /// Keep the rows in files below this directory, mapped, instead of in memory; they are removed again.
    #[arg(long)]
    directory: Option<PathBuf>,
    #[command(flatten)]
    shares: Shares,
    /// Calls of each method, each with a query of its own.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=QUERIES_MAX))]
    queries: u32,
    /// Query positions of each call, one after the other, each with a query of its own. What one brings from
    /// memory to the caches, the next finds there.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    positions: u32,
    /// Also print where the time goes: milliseconds of each operator, summed over the threads.
    #[arg(long)]
    operators: bool,
    /// Also write the rows and the queries to this file, for programs that are to be timed on the same ones.
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "positions")]
    export: Option<PathBuf>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let queries = (i64::from(arguments.queries) + 1) * i64::from(arguments.positions);
    anyhow::ensure!(
        queries <= QUERIES_MAX,
        "{} queries of {} positions are too many: {queries} with the first, at most {QUERIES_MAX}",
        arguments.queries,
        arguments.positions
    );
    let pool = arguments.layer.pool()?;
    let budgets = arguments.budgets()?;
    let directory = arguments.directory.clone().map(|directory| Place { directory: Some(directory) }.make());
    let directory = directory.transpose()?;
    let built = build(arguments, &budgets, (&pool, directory.as_ref().map(|directory| directory.path())))?;
    if let Some(path) = &arguments.export {
        super::export::write(&arguments.layer, arguments.queries as usize, path)?;
    }
    eprintln!("timing {} calls of each method on {} threads", arguments.queries, pool.current_num_threads());
    let timed: Vec<(Budget, &Snapshot)> = budgets
        .iter()
        .filter_map(|budget| {
            let kind = IndexKind::of(budget);
            built.iter().find(|(built, _)| *built == kind).map(|(_, snapshot)| (*budget, snapshot))
        })
        .collect();
    let (rows, operators) = measure(arguments, &timed, &pool)?;
    if arguments.operators {
        eprint!("{operators}");
    }
    if arguments.json { output::print_lines(&rows) } else { output::print(&table(&rows)) }
}

impl Arguments {
    /// What is timed: `exact` in any case and first, since the others are compared with it.
    fn budgets(&self) -> Result<Vec<Budget>> {
        let mut budgets = vec![Budget::Exact];
        for method in self.methods.iter().filter(|&&method| method != MethodName::Exact) {
            budgets.extend(method.budgets(&self.tau, &self.shares)?.into_iter().map(|budget| match budget {
                Budget::Tau(tau) if self.planner && tau > 0.0 => Budget::Soonest(tau),
                other => other,
            }));
            if *method == MethodName::Longwave {
                let capped = crate::method::capped(&self.tau, &self.disk_bytes)?;
                budgets.extend(capped.into_iter().filter(|budget| disk_bytes_of(budget).is_some()));
            }
        }
        Ok(budgets)
    }
}

/// A context for each kind of index that the budgets read, in memory or in files, with one layer of the same synthetic rows, sealed.
fn build(
    arguments: &Arguments,
    budgets: &[Budget],
    (pool, directory): (&Arc<rayon::ThreadPool>, Option<&Path>),
) -> Result<Vec<(IndexKind, Snapshot)>> {
    let asked = |method| arguments.methods.contains(&method);
    let layer = &arguments.layer;
    // `exact` reads the rows of any context.
    let only_ladder = asked(MethodName::Longwave) && !asked(MethodName::Retroinfer);
    let mut contexts: Vec<(IndexKind, Context)> = Vec::new();
    for budget in budgets.iter().filter(|budget| !only_ladder || **budget != Budget::Exact) {
        let kind = IndexKind::of(budget);
        if contexts.iter().all(|(built, _)| *built != kind) {
            let options = Layer::store_options(pool);
            let store = match directory {
                Some(directory) => Store::open(directory.join(contexts.len().to_string()), options)?,
                None => Store::in_memory(options)?,
            };
            // Refuses a geometry that cannot be worked with, before anything is generated.
            let model = layer.model(LayerKind::Clustered);
            let mut options = kind.options(None);
            // No segment reaches into the window of the oldest position: it would be read row by row.
            options.window += arguments.positions - 1;
            contexts.push((kind, store.create_with("bench", &model, options)?));
        }
    }
    eprintln!(
        "building: {} synthetic tokens, {} query heads on {} KV heads of dim {}, f16, {}",
        layer.tokens,
        layer.query_heads,
        layer.kv_heads,
        layer.head_dim,
        Kernels::get().isa()
    );
    let synthetic = layer.synthetic();
    let bar = progress::bar("building", layer.tokens as usize);
    for (_, context) in &mut contexts {
        layer.observe(&synthetic, context)?;
    }
    for chunk in layer.chunks(&synthetic) {
        for (_, context) in &mut contexts {
            layer.append(context, &chunk)?;
        }
        bar.inc(chunk.count as u64);
    }
    let mut built = Vec::new();
    for (kind, mut context) in contexts {
        context.seal()?;
        built.push((kind, context.snapshot()?));
    }
    bar.finish_and_clear();
    if only_ladder {
        let (_, ladder) = &built[0];
        built.push((IndexKind::Clusters, ladder.clone()));
    }
    Ok(built)
}

/// What was timed of one method.
#[derive(Default)]
struct Times {
    ms: Vec<f64>,
    bytes: Vec<f64>,
    rungs: Vec<RungShares>,
    /// Milliseconds of each operator, one number a call.
    operators: [Vec<f64>; Operator::ALL.len()],
}

/// The figures of one method. Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Row {
    method: &'static str,
    tau: Option<f64>,
    disk_bytes_max: Option<u64>,
    tokens: u32,
    positions: u32,
    ms_p50: f64,
    ms_p95: f64,
    bytes: u64,
    gb_per_s: f64,
    read_gb_per_s: f64,
    speedup_vs_exact: f64,
    /// The mean over the calls.
    #[serde(flatten)]
    rungs: RungShares,
}

/// Times the methods and the plain read in turn, so that a change of the machine's speed meets them all.
fn measure(
    arguments: &Arguments,
    timed: &[(Budget, &Snapshot)],
    pool: &rayon::ThreadPool,
) -> Result<(Vec<Row>, String)> {
    let synthetic = arguments.layer.synthetic();
    let buffer = vec![1_u64; plain_read_bytes(arguments) / size_of::<u64>()];
    // The first call of each touches and verifies what it reads.
    for (budget, snapshot) in timed {
        attend(arguments, snapshot, &query(arguments, &synthetic, 0), budget)?;
    }
    black_box(read(&buffer, pool));
    let mut times: Vec<Times> = timed.iter().map(|_| Times::default()).collect();
    let mut reads = Vec::new();
    let bar = progress::bar("timing", arguments.queries as usize);
    for number in 1..=arguments.queries as usize {
        let query = query(arguments, &synthetic, number);
        for ((budget, snapshot), times) in timed.iter().zip(&mut times) {
            let started = Instant::now();
            let report = attend(arguments, snapshot, &query, budget)?;
            times.ms.push(started.elapsed().as_secs_f64() * 1e3);
            times.bytes.push(bytes(arguments, &report) as f64);
            times.rungs.push(RungShares::of(&report, arguments.layer.head_dim));
            for (operator, ms) in Operator::ALL.iter().zip(&mut times.operators) {
                ms.push(report.timings.of(*operator).as_secs_f64() * 1e3);
            }
        }
        let started = Instant::now();
        black_box(read(&buffer, pool));
        reads.push(started.elapsed().as_secs_f64() * 1e3);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let read_ms = super::share(&mut reads, 0.5);
    let read_gb_per_s = size_of_val(&buffer[..]) as f64 / read_ms / 1e6;
    let exact_ms = super::share(&mut times[0].ms, 0.5);
    let asked = |budget: &Budget| *budget != Budget::Exact || arguments.methods.contains(&MethodName::Exact);
    let rows = timed.iter().map(|(budget, _)| budget).zip(&mut times).filter(|(budget, _)| asked(budget));
    let rows = rows.map(|(budget, times)| {
        let (ms_p50, bytes) = (super::share(&mut times.ms, 0.5), super::share(&mut times.bytes, 0.5));
        Row {
            method: budget.method().name(),
            tau: tau_of(budget),
            disk_bytes_max: disk_bytes_of(budget),
            tokens: arguments.layer.tokens,
            positions: arguments.positions,
            ms_p50,
            ms_p95: super::share(&mut times.ms, 0.95),
            bytes: bytes as u64,
            gb_per_s: bytes / ms_p50 / 1e6,
            read_gb_per_s,
            speedup_vs_exact: exact_ms / ms_p50,
            rungs: RungShares::mean(times.rungs.iter().copied()),
        }
    });
    let rows = rows.collect();
    let operators = timed.iter().zip(&mut times).map(|((budget, _), times)| operators(budget, times));
    Ok((rows, operators.collect()))
}

/// The median time of each operator, in one line.
fn operators(budget: &Budget, times: &mut Times) -> String {
    let mut text = format!("{:<12} {budget}:", budget.method().name());
    for (operator, ms) in Operator::ALL.iter().zip(&mut times.operators) {
        text += &format!("  {} {:.3}", operator.name(), super::share(ms, 0.5));
    }
    text + "  ms\n"
}

/// The queries of call `number`, `[positions, query_heads, head_dim]`.
fn query(arguments: &Arguments, synthetic: &Synthetic, number: usize) -> Vec<f32> {
    let positions = arguments.positions as usize;
    let numbers = number * positions..(number + 1) * positions;
    numbers.flat_map(|number| synthetic.query(number, arguments.layer.query_heads)).collect()
}

fn attend(arguments: &Arguments, snapshot: &Snapshot, query: &[f32], budget: &Budget) -> Result<Report> {
    let (heads, dim) = (arguments.layer.query_heads, arguments.layer.head_dim);
    let view = TensorView::token_major(query, arguments.positions as usize, heads, dim);
    let answer = snapshot.attend(0, &view, budget)?;
    black_box(answer.output.len());
    Ok(answer.report)
}

/// Bytes that a call read: sealed columns, and the rows of the tail.
fn bytes(arguments: &Arguments, report: &Report) -> u64 {
    let row = 2 * arguments.layer.head_dim * Dtype::F16.size_of();
    report.traffic.bytes() + report.tail_rows * row as u64
}

fn plain_read_bytes(arguments: &Arguments) -> usize {
    usize::try_from(arguments.layer.kv_bytes()).unwrap_or(usize::MAX).clamp(1 << 20, READ_BYTES_MAX)
}

/// Reads the buffer once on all threads. The sum keeps the compiler from leaving the read out.
fn read(buffer: &[u64], pool: &rayon::ThreadPool) -> u64 {
    let part = buffer.len().div_ceil(pool.current_num_threads() * 4);
    pool.install(|| {
        let sums =
            buffer.par_chunks(part).map(|part| part.iter().fold(0_u64, |sum, &word| sum.wrapping_add(word)));
        sums.reduce(|| 0, u64::wrapping_add)
    })
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<12} {:>8} {:>11} {:>9} {:>10} {:>10} {:>13} {:>8} {:>10} {:>9} {}\n",
        "method",
        "tau",
        "disk max",
        "tokens",
        "ms p50",
        "ms p95",
        "bytes",
        "GB/s",
        "read GB/s",
        "speed-up",
        RungShares::TITLES
    );
    for row in rows {
        text += &format!(
            "{:<12} {:>8} {:>11} {:>9} {:>10.3} {:>10.3} {:>13} {:>8.2} {:>10.2} {:>8.1}x {}\n",
            row.method,
            row.tau.map_or("-".to_string(), |tau| tau.to_string()),
            row.disk_bytes_max.map_or("-".to_string(), |bytes| bytes.to_string()),
            row.tokens,
            row.ms_p50,
            row.ms_p95,
            row.bytes,
            row.gb_per_s,
            row.read_gb_per_s,
            row.speedup_vs_exact,
            row.rungs.columns()
        );
    }
    text
}
