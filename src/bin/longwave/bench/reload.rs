//! `longwave bench reload`: from the files of a store to the first answer.

use super::layer::Layer;
use super::{Place, page_cache};
use crate::method::TAUS;
use crate::{output, progress};
use anyhow::Result;
use longwave::{Budget, ContextOptions, Durability, LayerKind, Rebuild, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    layer: Layer,
    /// Thresholds of `longwave`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [TAUS[1]])]
    tau: Vec<f64>,
    /// Also `longwave` with these caps on the bytes of codes and rows that an answer may fetch from disk, separated by commas.
    #[arg(long, value_delimiter = ',')]
    disk_bytes: Vec<u64>,
    /// Reloads of each kind, each with a query of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    #[command(flatten)]
    place: Place,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Row {
    method: &'static str,
    tau: Option<f64>,
    disk_bytes_max: Option<u64>,
    cache: &'static str,
    tokens: u32,
    open_ms_p50: Option<f64>,
    ms_p50: Option<f64>,
    ms_max: Option<f64>,
    read_bytes: Option<u64>,
    file_bytes: u64,
    read_share: Option<f64>,
    speedup_vs_exact: Option<f64>,
    disk_bytes: Option<u64>,
    error_mean: f64,
    error_max: f64,
}

/// Reloads of one method with the files in one state of the page cache.
struct Reloads {
    budget: Budget,
    cold: bool,
    open_ms: Vec<f64>,
    ms: Vec<f64>,
    read_bytes: Vec<f64>,
    /// Of codes and rows, as the answers say, where a cap asks them to.
    disk_bytes: Vec<f64>,
    /// Relative errors of all query heads against `exact`.
    errors: Vec<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let layer = &arguments.layer;
    layer.check()?;
    let mut budgets = crate::method::capped(&arguments.tau, &arguments.disk_bytes)?;
    budgets.insert(0, Budget::Exact);
    let pool = layer.pool()?;
    let directory = arguments.place.make()?;
    eprintln!(
        "writing: {} synthetic tokens, {} query heads on {} KV heads of dim {}, f16, below {}",
        layer.tokens,
        layer.query_heads,
        layer.kv_heads,
        layer.head_dim,
        directory.path().display()
    );
    write(layer, &pool, directory.path())?;
    let files = page_cache::files(directory.path())?;
    let mut file_bytes = 0;
    for file in &files {
        file_bytes += std::fs::metadata(file)?.len();
    }
    let reloads = measure(arguments, &budgets, &pool, (directory.path(), &files))?;
    let dropped = pages_were_dropped(layer, &reloads);
    if !dropped {
        eprintln!("the pages of the files could not be dropped here: cold reloads were not measured");
    }
    let rows = rows(layer, reloads, file_bytes, dropped);
    if arguments.json { output::print_lines(&rows) } else { output::print(&table(&rows)) }
}

fn write(layer: &Layer, pool: &Arc<rayon::ThreadPool>, directory: &Path) -> Result<()> {
    let synthetic = layer.synthetic();
    let store = Store::open(directory, Layer::store_options(pool))?;
    let options = ContextOptions::default().with_rebuild(Rebuild::Never);
    let mut context = store.create_with("bench", &layer.model(LayerKind::Clustered), options)?;
    layer.observe(&synthetic, &mut context)?;
    let bar = progress::bar("writing", layer.tokens as usize);
    for chunk in layer.chunks(&synthetic) {
        layer.append(&mut context, &chunk)?;
        bar.inc(chunk.count as u64);
    }
    context.seal()?;
    context.commit(Durability::Strict)?;
    bar.finish_and_clear();
    Ok(())
}

/// All methods in turn, with the files in the page cache, then all with the files dropped from it before each.
fn measure(
    arguments: &Arguments,
    budgets: &[Budget],
    pool: &Arc<rayon::ThreadPool>,
    (directory, files): (&Path, &[PathBuf]),
) -> Result<Vec<Reloads>> {
    let synthetic = arguments.layer.synthetic();
    let empty = |budget: Budget, cold| Reloads {
        budget,
        cold,
        open_ms: Vec::new(),
        ms: Vec::new(),
        read_bytes: Vec::new(),
        disk_bytes: Vec::new(),
        errors: Vec::new(),
    };
    let mut reloads: Vec<Reloads> = [false, true]
        .iter()
        .flat_map(|&cold| budgets.iter().map(move |&budget| empty(budget, cold)))
        .collect();
    let bar = progress::bar("reloading", arguments.rounds as usize);
    for number in 0..arguments.rounds as usize {
        let query = synthetic.query(number, arguments.layer.query_heads);
        page_cache::warm(files)?;
        let mut exact = Vec::new();
        for reload in &mut reloads {
            if reload.cold {
                page_cache::drop_pages(files)?;
            }
            let read_before = page_cache::bytes_read();
            let started = Instant::now();
            let store = Store::open(directory, Layer::store_options(pool))?;
            let snapshot = store.snapshot("bench")?;
            reload.open_ms.push(started.elapsed().as_secs_f64() * 1e3);
            let answer = snapshot.attend(0, &arguments.layer.query_view(&query), &reload.budget)?;
            reload.ms.push(started.elapsed().as_secs_f64() * 1e3);
            reload.disk_bytes.extend(answer.report.disk.map(|disk| disk.bytes as f64));
            if reload.budget == Budget::Exact {
                exact.clone_from(&answer.output);
            }
            reload.errors.extend(errors(&answer.output, &exact, arguments.layer.head_dim));
            let read = page_cache::bytes_read().zip(read_before).map(|(after, before)| after - before);
            reload.read_bytes.extend(read.map(|read| read as f64));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(reloads)
}

/// Relative error of each query head.
fn errors(output: &[f32], exact: &[f32], dim: usize) -> Vec<f64> {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let heads = output.chunks_exact(dim).zip(exact.chunks_exact(dim));
    let of_head = |(output, exact): (&[f32], &[f32])| {
        let off = norm(&mut output.iter().zip(exact).map(|(&o, &e)| f64::from(o) - f64::from(e)));
        off / norm(&mut exact.iter().map(|&e| f64::from(e))).max(f64::MIN_POSITIVE)
    };
    heads.map(of_head).collect()
}

/// Whether `exact` had to fetch its rows from the disk: file systems in memory, for one, keep their pages.
fn pages_were_dropped(layer: &Layer, reloads: &[Reloads]) -> bool {
    let exact = reloads.iter().find(|reload| reload.cold && reload.budget == Budget::Exact);
    let least = layer.kv_bytes() as f64 / 2.0;
    exact.is_some_and(|exact| {
        !exact.read_bytes.is_empty() && exact.read_bytes.iter().all(|&bytes| bytes >= least)
    })
}

fn rows(layer: &Layer, mut reloads: Vec<Reloads>, file_bytes: u64, dropped: bool) -> Vec<Row> {
    let medians: Vec<f64> = reloads.iter_mut().map(|reload| super::share(&mut reload.ms, 0.5)).collect();
    let exact_ms: Vec<f64> = reloads
        .iter()
        .map(|reload| {
            let exact =
                reloads.iter().position(|other| other.cold == reload.cold && other.budget == Budget::Exact);
            exact.map_or(f64::NAN, |at| medians[at])
        })
        .collect();
    let rows = reloads.iter_mut().zip(medians).zip(exact_ms).map(|((reload, ms_p50), exact_ms)| {
        let measured = dropped || !reload.cold;
        let read = (!reload.read_bytes.is_empty()).then(|| super::share(&mut reload.read_bytes, 0.5));
        let read = read.filter(|_| measured);
        Row {
            method: reload.budget.method().name(),
            tau: crate::method::tau_of(&reload.budget),
            disk_bytes_max: crate::method::disk_bytes_of(&reload.budget),
            cache: if reload.cold { "cold" } else { "warm" },
            tokens: layer.tokens,
            open_ms_p50: measured.then(|| super::share(&mut reload.open_ms, 0.5)),
            ms_p50: measured.then_some(ms_p50),
            ms_max: measured.then(|| super::share(&mut reload.ms, 1.0)),
            read_bytes: read.map(|bytes| bytes as u64),
            file_bytes,
            read_share: read.map(|bytes| bytes / file_bytes as f64),
            speedup_vs_exact: measured.then_some(exact_ms / ms_p50),
            disk_bytes: (measured && !reload.disk_bytes.is_empty())
                .then(|| super::share(&mut reload.disk_bytes, 0.5) as u64),
            error_mean: reload.errors.iter().sum::<f64>() / reload.errors.len() as f64,
            error_max: super::share(&mut reload.errors, 1.0),
        }
    });
    rows.collect()
}

fn table(rows: &[Row]) -> String {
    let titles =
        ["cache", "method", "tau", "disk max", "tokens", "open ms", "ms p50", "ms max", "bytes read"];
    let titles = titles.iter().chain(&["file bytes", "share", "speed-up", "from disk", "error", "worst"]);
    let mut lines: Vec<Vec<String>> = vec![titles.map(ToString::to_string).collect()];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let ms = |ms: Option<f64>| or_dash(ms.map(|ms| format!("{ms:.3}")));
    let bytes = |bytes: Option<u64>| or_dash(bytes.map(|bytes| bytes.to_string()));
    lines.extend(rows.iter().map(|row| {
        vec![
            row.cache.into(),
            row.method.into(),
            or_dash(row.tau.map(|tau| tau.to_string())),
            bytes(row.disk_bytes_max),
            row.tokens.to_string(),
            ms(row.open_ms_p50),
            ms(row.ms_p50),
            ms(row.ms_max),
            bytes(row.read_bytes),
            row.file_bytes.to_string(),
            or_dash(row.read_share.map(|share| format!("{:.2}%", share * 100.0))),
            or_dash(row.speedup_vs_exact.map(|ratio| format!("{ratio:.1}x"))),
            bytes(row.disk_bytes),
            format!("{:.4}", row.error_mean),
            format!("{:.4}", row.error_max),
        ]
    }));
    let widths = [5, -9, 8, 11, 9, 10, 10, 10, 12, 12, 8, 9, 11, 7, 7];
    lines.iter().map(|line| columns(line, &widths)).collect()
}

/// One line of a table; a negative width is flush left.
fn columns(line: &[String], widths: &[isize]) -> String {
    let cells = line.iter().zip(widths).map(|(cell, &width)| {
        let wide = width.unsigned_abs();
        if width < 0 { format!("{cell:<wide$}") } else { format!("{cell:>wide$}") }
    });
    cells.collect::<Vec<_>>().join(" ") + "\n"
}
