//! `longwave bench`: speed, measured.

mod attend;
mod build;
mod commits;
mod contexts;
mod decode;
mod export;
mod ingest;
mod layer;
mod page_cache;
mod reload;
mod synthetic;

use crate::eval::percentile;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use tempfile::TempDir;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Time attention over one layer in memory, each method in turn, beside a plain read of memory. Keys, values and
    /// queries are synthetic: speed is what is measured, not quality (`longwave eval` does that, on a trace).
    Attend(attend::Arguments),
    /// Time the index build of one layer of synthetic rows, beside the matrix product that limits it.
    Build(build::Arguments),
    /// Time opening a store on disk up to the first answer, with and without its files in the page cache.
    Reload(reload::Arguments),
    /// Time bulk ingestion into a store on disk, with an index and without one, beside the index build alone and a
    /// plain write of the disk.
    Ingest(ingest::Arguments),
    /// Time decode steps while segments are sealed behind them: how much longer than the median the slowest calls take.
    Decode(decode::Arguments),
    /// Time forks, cuts, and the search for a prefix among many contexts, in a store on disk.
    Contexts(contexts::Arguments),
    /// Time strict commits of several contexts at once, each by a thread of its own, sharing syncs and not.
    Commits(commits::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Attend(arguments) => attend::run(arguments),
        Command::Build(arguments) => build::run(arguments),
        Command::Reload(arguments) => reload::run(arguments),
        Command::Ingest(arguments) => ingest::run(arguments),
        Command::Decode(arguments) => decode::run(arguments),
        Command::Contexts(arguments) => contexts::run(arguments),
        Command::Commits(arguments) => commits::run(arguments),
    }
}

/// Where stores are written that a measurement needs and nobody else.
#[derive(clap::Args)]
struct Place {
    /// Directory on the disk that is to be measured; what is written there is removed again. Default: the system's for
    /// temporary files, which may lie in memory.
    #[arg(long)]
    directory: Option<PathBuf>,
}

impl Place {
    fn make(&self) -> Result<TempDir> {
        let directory = self.directory.clone().unwrap_or_else(std::env::temp_dir);
        tempfile::Builder::new()
            .prefix("longwave-bench-")
            .tempdir_in(&directory)
            .with_context(|| format!("making a directory in {}", directory.display()))
    }
}

/// The value that `share` of the values are not above. Sorts them.
fn share(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(values, share)
}
