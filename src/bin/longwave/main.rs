//! The `longwave` command: import traces, look into stores, verify them, compare methods.

mod audit;
mod bench;
mod contexts;
mod eval;
mod explain;
mod fsck;
mod import;
mod inspect;
mod method;
mod opening;
mod output;
mod progress;
mod rebuild;
mod rungs;
mod trace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Embedded storage engine for the key-value cache of long-context language models.
#[derive(Parser)]
#[command(name = "longwave", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Store the keys and values of an attention trace as a context.
    Import(import::Arguments),
    /// Show contexts, segments, columns and clusters.
    Inspect(inspect::Arguments),
    /// Show what one query would read.
    Explain(explain::Arguments),
    /// Build a context's segments again, in the metric of the queries that it keeps.
    Rebuild(rebuild::Arguments),
    /// Merge a context's small segments into large ones.
    Compact(rebuild::Compact),
    /// Set what becomes of rows that no query finds important, and drop those that are to go.
    Forget(rebuild::Forget),
    /// Make a context of its own that begins with the rows of another; nothing is copied.
    Fork(contexts::Fork),
    /// Rename a context.
    Mv(contexts::Rename),
    /// Remove contexts.
    Rm(contexts::Remove),
    /// Remove the files that no context names.
    Gc(contexts::Collect),
    /// Keep contexts from being evicted.
    Pin(contexts::Pin),
    /// Remove contexts until a store is within bounds.
    Retain(contexts::Retain),
    /// Verify every byte of a store; exit 1 and name each fault.
    Fsck(fsck::Arguments),
    /// Compare methods on the queries that a stored context keeps as a sample.
    Audit(audit::Arguments),
    /// Compare methods with exact attention on a trace.
    Eval(eval::Arguments),
    /// Measure speed.
    #[command(subcommand)]
    Bench(bench::Command),
}

fn main() -> ExitCode {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("LONGWAVE_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    // A choice of instruction set that this machine does not have is told before anything runs.
    if let Err(error) = longwave::Kernels::try_get() {
        eprintln!("longwave: {error}");
        return ExitCode::from(2);
    }
    let done = match arguments.command {
        Command::Import(arguments) => import::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Inspect(arguments) => inspect::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Explain(arguments) => explain::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Compact(arguments) => rebuild::compact(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Forget(arguments) => rebuild::forget(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Rebuild(arguments) => rebuild::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Fork(arguments) => contexts::fork(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Mv(arguments) => contexts::rename(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Rm(arguments) => contexts::remove(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Gc(arguments) => contexts::collect(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Pin(arguments) => contexts::pin(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Retain(arguments) => contexts::retain(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Fsck(arguments) => fsck::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Eval(arguments) => eval::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Bench(command) => bench::run(&command).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("longwave: {error:#}");
        ExitCode::from(2)
    })
}
