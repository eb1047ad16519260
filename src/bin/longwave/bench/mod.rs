//! `longwave bench`: speed, measured.

mod attend;
mod contexts;
mod synthetic;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Time attention over one layer in memory, each method in turn, beside a plain read of memory. Keys, values and
    /// queries are synthetic: speed is what is measured, not quality (`longwave eval` does that, on a trace).
    Attend(attend::Arguments),
    /// Time forks, cuts, and the search for a prefix among many contexts, in a store on disk.
    Contexts(contexts::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Attend(arguments) => attend::run(arguments),
        Command::Contexts(arguments) => contexts::run(arguments),
    }
}
