//! Forking, renaming and removing contexts, and collecting what nothing names.

use crate::opening::open_store;
use anyhow::Result;
use indicatif::HumanBytes;
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
        println!("{}", serde_json::to_string(&Collected { dry_run, files, bytes, in_use })?);
        return Ok(());
    }
    files.iter().for_each(|file| println!("{file}"));
    let done = if arguments.dry_run { "would be removed" } else { "removed" };
    eprintln!("{} files, {}, {done}; {in_use} in use", files.len(), HumanBytes(*bytes));
    Ok(())
}
