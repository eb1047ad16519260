//! `longwave bench`: speed, measured.

mod attend;
mod synthetic;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Time attention over one layer in memory, each method in turn, beside a plain read of memory. Keys, values and
    /// queries are synthetic: speed is what is measured, not quality (`longwave eval` does that, on a trace).
    Attend(attend::Arguments),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Attend(arguments) => attend::run(arguments),
    }
}
