//! `longwave bench ingest`: bulk ingestion into a store on disk, with Strict commits.

use super::Place;
use super::build::IndexBuild;
use super::layer::{Chunk, Layer};
use super::synthetic::Synthetic;
use crate::{output, progress};
use anyhow::{Context as _, Result};
use longwave::{ContextOptions, Durability, LayerKind, Rebuild, Store};
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    layer: Layer,
    /// Tokens between two commits.
    #[arg(long, default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    commit_every: u32,
    /// Times that each part is run, in turn with the others.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    place: Place,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is timed, each beside what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// Clusters, summaries and ladder columns of rows in memory; nothing is kept.
    Build,
    /// Append, seal and commit of a layer with an index.
    Indexed,
    /// Append, seal and commit of a layer that is stored without an index.
    Plain,
    /// The rows' bytes written to one file from start to end, and synced.
    Write,
}

impl Part {
    const ALL: [Part; 4] = [Part::Build, Part::Indexed, Part::Write, Part::Plain];

    fn name(self) -> &'static str {
        match self {
            Part::Build => "build",
            Part::Indexed => "indexed",
            Part::Write => "write",
            Part::Plain => "plain",
        }
    }

    fn compared_with(self) -> Option<Part> {
        match self {
            Part::Indexed => Some(Part::Build),
            Part::Plain => Some(Part::Write),
            Part::Build | Part::Write => None,
        }
    }
}

/// Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Row {
    part: &'static str,
    tokens: u32,
    kv_bytes: u64,
    file_bytes: u64,
    seconds_p50: f64,
    seconds_min: f64,
    seconds_max: f64,
    kv_mb_per_s: f64,
    compared_with: Option<&'static str>,
    share_of_rate: Option<f64>,
}

/// The seconds of a part, a round each, and the bytes of its files.
#[derive(Default)]
struct Times {
    seconds: Vec<f64>,
    file_bytes: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let layer = &arguments.layer;
    layer.check()?;
    let pool = layer.pool()?;
    // Before anything is generated: a directory that cannot be written to.
    let directory = arguments.place.make()?;
    eprintln!(
        "ingesting: {} synthetic tokens, {} KV heads of dim {}, f16, {} threads, below {}",
        layer.tokens,
        layer.kv_heads,
        layer.head_dim,
        pool.current_num_threads(),
        directory.path().display()
    );
    let synthetic = layer.synthetic();
    let ingest = Ingest { arguments, pool, chunks: layer.chunks(&synthetic).collect(), synthetic };
    let mut times: [Times; 4] = Default::default();
    let bar = progress::bar("ingesting", arguments.rounds as usize * Part::ALL.len());
    for _ in 0..arguments.rounds {
        for (part, times) in Part::ALL.into_iter().zip(&mut times) {
            let (seconds, file_bytes) = ingest.run(part)?;
            times.seconds.push(seconds);
            times.file_bytes = file_bytes;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let rows = rows(layer, times);
    if arguments.json { output::print_lines(&rows) } else { output::print(&table(&rows)) }
}

struct Ingest<'a> {
    arguments: &'a Arguments,
    pool: Arc<rayon::ThreadPool>,
    synthetic: Synthetic,
    chunks: Vec<Chunk>,
}

impl Ingest<'_> {
    /// Seconds of a part, and bytes of the files that it wrote.
    fn run(&self, part: Part) -> Result<(f64, u64)> {
        match part {
            Part::Build => Ok((self.build()?, 0)),
            Part::Indexed => self.store(LayerKind::Clustered),
            Part::Plain => self.store(LayerKind::ExactOnly),
            Part::Write => self.write(),
        }
    }

    fn build(&self) -> Result<f64> {
        let layer = &self.arguments.layer;
        let mut index = IndexBuild::new(layer, layer.observed(&self.synthetic));
        let mut seconds = 0.0;
        for chunk in &self.chunks {
            let started = Instant::now();
            let built = self.pool.install(|| index.build(chunk));
            seconds += started.elapsed().as_secs_f64();
            index.keep_bases(&built, chunk)?;
            black_box(built);
        }
        Ok(seconds)
    }

    fn store(&self, kind: LayerKind) -> Result<(f64, u64)> {
        let layer = &self.arguments.layer;
        let directory = self.arguments.place.make()?;
        let store = Store::open(directory.path(), Layer::store_options(&self.pool))?;
        let options = ContextOptions::default().with_rebuild(Rebuild::Never);
        let mut context = store.create_with("bench", &layer.model(kind), options)?;
        layer.observe(&self.synthetic, &mut context)?;
        let mut uncommitted = 0;
        let started = Instant::now();
        for (number, chunk) in self.chunks.iter().enumerate() {
            layer.append(&mut context, chunk)?;
            uncommitted += chunk.count;
            // After the last chunk comes the seal first.
            if number + 1 < self.chunks.len() && uncommitted >= self.arguments.commit_every as usize {
                context.commit(Durability::Strict)?;
                uncommitted = 0;
            }
        }
        context.seal()?;
        context.commit(Durability::Strict)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok((seconds, store.bytes_on_disk()?))
    }

    fn write(&self) -> Result<(f64, u64)> {
        let directory = self.arguments.place.make()?;
        let path = directory.path().join("rows");
        let started = Instant::now();
        let written = File::create_new(&path).and_then(|mut file| {
            for chunk in &self.chunks {
                file.write_all(bytemuck::cast_slice(&chunk.keys))?;
                file.write_all(bytemuck::cast_slice(&chunk.values))?;
            }
            file.sync_all()?;
            Ok(started.elapsed().as_secs_f64())
        });
        let seconds = written.with_context(|| format!("writing {}", path.display()))?;
        Ok((seconds, std::fs::metadata(&path)?.len()))
    }
}

fn rows(layer: &Layer, mut times: [Times; 4]) -> Vec<Row> {
    let medians = times.each_mut().map(|times| super::share(&mut times.seconds, 0.5));
    let median = |part: Part| medians[Part::ALL.iter().position(|&other| other == part).unwrap_or(0)];
    let row = |(part, times): (Part, &Times)| Row {
        part: part.name(),
        tokens: layer.tokens,
        kv_bytes: layer.kv_bytes(),
        file_bytes: times.file_bytes,
        seconds_p50: median(part),
        seconds_min: times.seconds.first().copied().unwrap_or(0.0),
        seconds_max: times.seconds.last().copied().unwrap_or(0.0),
        kv_mb_per_s: layer.kv_bytes() as f64 / median(part) / 1e6,
        compared_with: part.compared_with().map(Part::name),
        share_of_rate: part.compared_with().map(|other| median(other) / median(part)),
    };
    Part::ALL.into_iter().zip(&times).map(row).collect()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<8} {:>9} {:>13} {:>13} {:>9} {:>9} {:>9} {:>10}  {}\n",
        "part", "tokens", "KV bytes", "file bytes", "s p50", "s min", "s max", "KV MB/s", "share of rate"
    );
    for row in rows {
        let share = row.compared_with.zip(row.share_of_rate);
        text += &format!(
            "{:<8} {:>9} {:>13} {:>13} {:>9.3} {:>9.3} {:>9.3} {:>10.1}  {}\n",
            row.part,
            row.tokens,
            row.kv_bytes,
            row.file_bytes,
            row.seconds_p50,
            row.seconds_min,
            row.seconds_max,
            row.kv_mb_per_s,
            share.map_or("-".into(), |(other, share)| format!("{:.1}% of {other}", share * 100.0))
        );
    }
    text
}
