//! `longwave bench commits`: what threads that commit at once gain by sharing syncs.

use super::{Place, share};
use crate::output;
use anyhow::{Result, ensure};
use longwave::{
    Context, ContextOptions, Dtype, Durability, LayerKind, ModelIdentity, ModelSpec, Store, StoreOptions,
    TensorView,
};
use serde::Serialize;
use std::time::Instant;

/// Rows of a context before it is timed, enough for segments, and elements of a row.
const PROMPT: usize = 1024;
const DIM: usize = 16;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Contexts that are committed at once.
    #[arg(long, default_value_t = 16)]
    writers: usize,
    /// Commits of each context in a round, each of one row.
    #[arg(long, default_value_t = 10)]
    commits: usize,
    /// Rounds of both ways, in turn.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Commits a second over all writers: medians of the rounds, and the lowest and highest.
#[derive(Serialize)]
struct Report {
    writers: usize,
    commits: usize,
    shared_per_s: [f64; 3],
    separate_per_s: [f64; 3],
    /// Median of the rounds' ratios.
    ratio: f64,
}

fn model() -> ModelSpec {
    ModelSpec {
        identity: ModelIdentity { weights: [9; 32], tokenizer: [8; 32], rope: "none".into() },
        layers: 2,
        query_heads: 1,
        kv_heads: 1,
        key_dim: DIM,
        value_dim: DIM,
        dtype: Dtype::F16,
        scale: 0.25,
        softcap: None,
        layer_kinds: vec![LayerKind::ExactOnly; 2],
        sink_logits: vec![],
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.writers > 0 && arguments.commits > 0, "--writers and --commits: expected 1 or more");
    ensure!(arguments.rounds > 0, "--rounds: expected 1 or more");
    let dir = arguments.place.make()?;
    let mut separate = StoreOptions::default();
    separate.separate_syncs = true;
    let mut ways = [("shared", StoreOptions::default()), ("separate", separate)]
        .map(|(name, options)| contexts(&dir.path().join(name), options, arguments.writers))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds {
        for (contexts, rates) in ways.iter_mut().zip(&mut rates) {
            rates.push(round(contexts, arguments.commits)?);
        }
    }
    let mut ratios: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(shared, alone)| shared / alone).collect();
    let spread = |rates: &mut [f64]| [0.5, 0.0, 1.0].map(|part| share(rates, part));
    let [shared, alone] = &mut rates;
    let report = Report {
        writers: arguments.writers,
        commits: arguments.commits,
        shared_per_s: spread(shared),
        separate_per_s: spread(alone),
        ratio: share(&mut ratios, 0.5),
    };
    if arguments.json {
        return output::print_lines(&[report]);
    }
    output::print(&report.table())
}

impl Report {
    fn table(&self) -> String {
        let line = |[median, least, most]: [f64; 3]| format!("{median:.0} ({least:.0} to {most:.0})");
        format!(
            "{} writers, strict commits of one row\nshared    {} commits/s\nseparate  {} commits/s\nratio     {:.2}\n",
            self.writers,
            line(self.shared_per_s),
            line(self.separate_per_s),
            self.ratio
        )
    }
}

fn contexts(dir: &std::path::Path, options: StoreOptions, writers: usize) -> Result<Vec<Context>> {
    let store = Store::open(dir, options)?;
    let made = (0..writers).map(|number| {
        let options = ContextOptions::default().with_ladder(false).with_segment_rows(512, 512);
        let mut context = store.create_with(&format!("writer-{number}"), &model(), options)?;
        append(&mut context, PROMPT)?;
        context.seal()?;
        context.commit(Durability::Strict)?;
        Ok(context)
    });
    made.collect()
}

/// Commits a second, over all contexts.
fn round(contexts: &mut [Context], commits: usize) -> Result<f64> {
    let (count, started) = (contexts.len() * commits, Instant::now());
    std::thread::scope(|scope| {
        let writers: Vec<_> = contexts
            .iter_mut()
            .map(|context| {
                scope.spawn(move || -> Result<()> {
                    for _ in 0..commits {
                        append(context, 1)?;
                        context.commit(Durability::Strict)?;
                    }
                    Ok(())
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn append(context: &mut Context, rows: usize) -> Result<()> {
    let numbers: Vec<f32> = (0..rows * DIM).map(|at| (at % 97) as f32 * 0.01).collect();
    for layer in 0..model().layers {
        let rows = TensorView::token_major(&numbers[..], rows, 1, DIM);
        context.append(layer, &rows, &rows)?;
    }
    Ok(())
}
