//! `longwave bench decode`: how evenly calls are answered while segments are sealed behind them.

use super::Place;
use super::layer::Layer;
use crate::method::TAUS;
use crate::{output, progress};
use anyhow::{Result, ensure};
use longwave::{
    AuditOptions, Budget, Compaction, ContextOptions, Kernels, LayerKind, Rebuild, Store, TensorView,
};
use std::hint::black_box;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    layer: Layer,
    /// Decode steps: a token is appended and a query asked in each.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    steps: u32,
    /// Threshold of `longwave`; every row is read where that is expected to be sooner.
    #[arg(long, default_value_t = TAUS[1])]
    tau: f64,
    /// Also audit one call in so many behind the calls, as contexts do by default; 0 audits none.
    #[arg(long, default_value_t = 64)]
    audit_every: u32,
    #[command(flatten)]
    place: Place,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// Which steps a line is about.
#[derive(Clone, Copy, PartialEq)]
enum Steps {
    All,
    /// Those that began while rows were being sealed.
    Sealing,
    /// The others.
    Still,
}

/// Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Row {
    steps: &'static str,
    count: usize,
    tokens: u32,
    seals: usize,
    attend_ms_p50: Option<f64>,
    attend_ms_p99: Option<f64>,
    attend_ms_max: Option<f64>,
    attend_p99_to_p50: Option<f64>,
    append_ms_p50: Option<f64>,
    append_ms_p99: Option<f64>,
    append_ms_max: Option<f64>,
}

/// Milliseconds of a step.
struct Step {
    sealing: bool,
    append_ms: f64,
    attend_ms: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let layer = &arguments.layer;
    layer.check()?;
    ensure!(arguments.tau.is_finite() && arguments.tau > 0.0, "--tau: expected a number above 0");
    eprintln!(
        "decoding: {} steps behind {} synthetic tokens, {} query heads on {} KV heads of dim {}, f16, {}",
        arguments.steps,
        layer.tokens,
        layer.query_heads,
        layer.kv_heads,
        layer.head_dim,
        Kernels::get().isa()
    );
    let (steps, seals) = measure(arguments)?;
    let rows: Vec<Row> = [Steps::All, Steps::Sealing, Steps::Still]
        .into_iter()
        .map(|which| row(arguments, which, &steps, seals))
        .collect();
    if arguments.json { output::print_lines(&rows) } else { output::print(&table(&rows)) }
}

/// Fills a context in bulk and then decodes; gives the steps and how many segments were sealed behind them.
fn measure(arguments: &Arguments) -> Result<(Vec<Step>, usize)> {
    let (layer, pool) = (&arguments.layer, arguments.layer.pool()?);
    let directory = arguments.place.make()?;
    let mut store_options = Layer::store_options(&pool);
    store_options.audits = AuditOptions::none();
    if arguments.audit_every > 0 {
        store_options.audits.share = 1.0 / f64::from(arguments.audit_every);
    }
    store_options.compaction = Compaction::WhenFull;
    let store = Store::open(directory.path(), store_options)?;
    let options = ContextOptions::default().with_rebuild(Rebuild::Never);
    let rows_of_a_seal = u64::from(options.decode_segment_rows);
    let exact_rows = u64::from(options.sinks + options.window);
    let mut context = store.create_with("bench", &layer.model(LayerKind::Clustered), options)?;
    let synthetic = layer.synthetic();
    layer.observe(&synthetic, &mut context)?;
    let bar = progress::bar("filling", layer.tokens as usize);
    for chunk in layer.chunks(&synthetic) {
        layer.append(&mut context, &chunk)?;
        bar.inc(chunk.count as u64);
    }
    context.seal()?;
    bar.finish_and_clear();
    let (first, count) = (layer.tokens as usize, arguments.steps as usize);
    let (keys, values) = synthetic.rows(first, count);
    let (sealed, mut steps) = (context.sealed_rows(0)?, Vec::with_capacity(count));
    let budget = Budget::Soonest(arguments.tau);
    let bar = progress::bar("decoding", count);
    let part = count * layer.head_dim;
    let row = |rows: &[half::f16], step: usize| -> Vec<half::f16> {
        let heads = rows.chunks_exact(part);
        heads.flat_map(|head| &head[step * layer.head_dim..][..layer.head_dim]).copied().collect()
    };
    for step in 0..count {
        let (key, value) = (row(&keys, step), row(&values, step));
        let query = synthetic.query(step, layer.query_heads);
        let started = Instant::now();
        let view = |row| TensorView::head_major(row, 1, layer.kv_heads, layer.head_dim);
        context.append(0, &view(&key[..]), &view(&value[..]))?;
        let append_ms = started.elapsed().as_secs_f64() * 1e3;
        // What has left the window and is in no segment: a segment's worth of it is being sealed.
        let waiting = context.length(0)?.saturating_sub(exact_rows + context.sealed_rows(0)?);
        let sealing = waiting >= rows_of_a_seal;
        let started = Instant::now();
        let answer = context.attend(0, &layer.query_view(&query), &budget)?;
        let attend_ms = started.elapsed().as_secs_f64() * 1e3;
        black_box(answer.output.len());
        steps.push(Step { sealing, append_ms, attend_ms });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let rows = context.sealed_rows(0)? - sealed;
    Ok((steps, (rows / rows_of_a_seal) as usize))
}

fn row(arguments: &Arguments, which: Steps, steps: &[Step], seals: usize) -> Row {
    let of = |step: &&Step| match which {
        Steps::All => true,
        Steps::Sealing => step.sealing,
        Steps::Still => !step.sealing,
    };
    let mut attend: Vec<f64> = steps.iter().filter(of).map(|step| step.attend_ms).collect();
    let mut append: Vec<f64> = steps.iter().filter(of).map(|step| step.append_ms).collect();
    let at = |values: &mut Vec<f64>, share| (!values.is_empty()).then(|| super::share(values, share));
    let (p50, p99) = (at(&mut attend, 0.5), at(&mut attend, 0.99));
    Row {
        steps: match which {
            Steps::All => "all",
            Steps::Sealing => "sealing",
            Steps::Still => "still",
        },
        count: attend.len(),
        tokens: arguments.layer.tokens,
        seals,
        attend_ms_p50: p50,
        attend_ms_p99: p99,
        attend_ms_max: at(&mut attend, 1.0),
        attend_p99_to_p50: p99.zip(p50).map(|(p99, p50)| p99 / p50),
        append_ms_p50: at(&mut append, 0.5),
        append_ms_p99: at(&mut append, 0.99),
        append_ms_max: at(&mut append, 1.0),
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<8} {:>7} {:>6} {:>11} {:>11} {:>11} {:>9} {:>11} {:>11} {:>11}\n",
        "steps",
        "count",
        "seals",
        "attend p50",
        "attend p99",
        "attend max",
        "p99/p50",
        "append p50",
        "append p99",
        "append max"
    );
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_string(), |ms| format!("{ms:.3}"));
    for row in rows {
        text += &format!(
            "{:<8} {:>7} {:>6} {:>11} {:>11} {:>11} {:>9} {:>11} {:>11} {:>11}\n",
            row.steps,
            row.count,
            row.seals,
            ms(row.attend_ms_p50),
            ms(row.attend_ms_p99),
            ms(row.attend_ms_max),
            row.attend_p99_to_p50.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.2}x")),
            ms(row.append_ms_p50),
            ms(row.append_ms_p99),
            ms(row.append_ms_max)
        );
    }
    text
}
