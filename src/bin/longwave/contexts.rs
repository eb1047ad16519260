//! Forking, renaming and removing contexts, and collecting what nothing names.

use crate::opening::open_store;
use crate::output;
use anyhow::{Result, ensure};
use indicatif::HumanBytes;
use longwave::{EvictionOrder, Retention};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Fork {
    /// Directory of the store.
    store: PathBuf,
    /// The context to fork.
    name: String,
    /// The new context.
    new_name: String,
    /// Rows to take over; all of them where it is not given.
    #[arg(long)]
    at: Option<u64>,
}

#[derive(clap::Args)]
pub(crate) struct Rename {
    /// Directory of the store.
    store: PathBuf,
    /// The context.
    name: String,
    /// Its new name.
    new_name: String,
}

#[derive(clap::Args)]
pub(crate) struct Remove {
    /// Directory of the store.
    store: PathBuf,
    /// The contexts.
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct Collect {
    /// Directory of the store.
    store: PathBuf,
    /// Say what would go, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Pin {
    /// Directory of the store.
    store: PathBuf,
    /// The contexts.
    #[arg(required = true)]
    names: Vec<String>,
    /// Let them go again.
    #[arg(long)]
    off: bool,
}

#[derive(clap::Args)]
pub(crate) struct Retain {
    /// Directory of the store.
    store: PathBuf,
    /// Most bytes of all contexts.
    #[arg(long)]
    bytes: Option<u64>,
    /// Most contexts.
    #[arg(long)]
    contexts: Option<u64>,
    /// What goes first: the least recently used, or what costs least to compute again per byte.
    #[arg(long, value_enum, default_value = "lru")]
    order: Order,
    /// Say what would go, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Order {
    Lru,
    Cost,
}

#[derive(Serialize)]
struct Evicted {
    name: String,
    bytes: u64,
    used: u64,
    cost: f64,
}

#[derive(Serialize)]
struct Retained {
    dry_run: bool,
    evicted: Vec<Evicted>,
    kept: Vec<String>,
    contexts: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Collected<'a> {
    dry_run: bool,
    files: &'a [String],
    bytes: u64,
    in_use: u64,
}

pub(crate) fn fork(arguments: &Fork) -> Result<()> {
    let store = open_store(&arguments.store)?;
    let model = store.snapshot(&arguments.name)?.model().clone();
    store.fork(&arguments.name, &arguments.new_name, &model, arguments.at)?;
    Ok(())
}

pub(crate) fn rename(arguments: &Rename) -> Result<()> {
    Ok(open_store(&arguments.store)?.rename(&arguments.name, &arguments.new_name)?)
}

pub(crate) fn remove(arguments: &Remove) -> Result<()> {
    let store = open_store(&arguments.store)?;
    Ok(arguments.names.iter().try_for_each(|name| store.remove(name))?)
}

pub(crate) fn collect(arguments: &Collect) -> Result<()> {
    let collected = open_store(&arguments.store)?.collect(arguments.dry_run)?;
    let longwave::Collected { files, bytes, in_use } = &collected;
    if arguments.json {
        let (dry_run, bytes, in_use) = (arguments.dry_run, *bytes, *in_use);
        return output::print_lines(&[Collected { dry_run, files, bytes, in_use }]);
    }
    output::print(&files.iter().map(|file| format!("{file}\n")).collect::<String>())?;
    let done = if arguments.dry_run { "would be removed" } else { "removed" };
    eprintln!("{} files, {}, {done}; {in_use} in use", files.len(), HumanBytes(*bytes));
    Ok(())
}

pub(crate) fn pin(arguments: &Pin) -> Result<()> {
    let store = open_store(&arguments.store)?;
    Ok(arguments.names.iter().try_for_each(|name| store.pin(name, !arguments.off))?)
}

pub(crate) fn retain(arguments: &Retain) -> Result<()> {
    ensure!(
        arguments.bytes.is_some() || arguments.contexts.is_some(),
        "no bound is given: --bytes or --contexts"
    );
    let mut policy = Retention::unbounded(match arguments.order {
        Order::Lru => EvictionOrder::LeastRecentlyUsed,
        Order::Cost => EvictionOrder::RecomputePerByte,
    });
    (policy.bytes_max, policy.contexts_max) = (arguments.bytes, arguments.contexts);
    let retained = open_store(&arguments.store)?.retain(&policy, arguments.dry_run)?;
    let evicted = retained.evicted.into_iter().map(|gone| Evicted {
        name: gone.name,
        bytes: gone.bytes,
        used: gone.used,
        cost: gone.cost,
    });
    let retained = Retained {
        dry_run: arguments.dry_run,
        evicted: evicted.collect(),
        kept: retained.kept,
        contexts: retained.contexts,
        bytes: retained.bytes,
    };
    if arguments.json {
        return output::print_lines(&[retained]);
    }
    let line = |gone: &Evicted| format!("{}  {}\n", gone.name, HumanBytes(gone.bytes));
    output::print(&retained.evicted.iter().map(line).collect::<String>())?;
    let done = if arguments.dry_run { "would go" } else { "gone" };
    eprintln!(
        "{} contexts {done}; {} stay with {}",
        retained.evicted.len(),
        retained.contexts,
        HumanBytes(retained.bytes)
    );
    retained.kept.iter().for_each(|name| eprintln!("{name} stays: it is pinned or open for writing"));
    Ok(())
}
