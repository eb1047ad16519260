//! `longwave fsck`: verifies a store. Exit 0: clean; 1: faults were found; 2: the check could not run.

use crate::output;
use crate::progress;
use anyhow::{Context as _, Result, ensure};
use indicatif::HumanBytes;
use longwave::storage::check::{Fault, Report, store_bytes};
use longwave::storage::{Backend, CONTEXTS_DIR, FileBackend, STORE_FILE};
use longwave::{Salvaged, Store, StoreOptions};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the store.
    store: PathBuf,
    /// Also saves what is intact into a new store in this directory: whole contexts, and of others the first rows.
    #[arg(long, value_name = "DEST")]
    salvage: Option<PathBuf>,
    /// One JSON document instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let path = &arguments.store;
    // A store whose header is gone but whose contexts are there is faulty; where neither is, there is no store.
    ensure!(
        path.join(STORE_FILE).exists() || path.join(CONTEXTS_DIR).is_dir(),
        "{} holds no store: there is no file {STORE_FILE} in it",
        path.display()
    );
    let backend: Arc<dyn Backend> = Arc::new(FileBackend::new(path));
    // Only the bar's length: what cannot be read is told by the check itself.
    let bar = progress::bytes("checking", store_bytes(backend.as_ref()).unwrap_or_default());
    let report = longwave::check(&backend, Some(&|read| bar.set_position(read)));
    bar.finish_and_clear();
    let saved = arguments.salvage.as_deref().map(|into| save(&backend, into)).transpose()?;
    if arguments.json {
        let document = Document::new(path.display().to_string(), &report, saved.as_deref());
        output::print_document(&document)?;
    } else {
        output::print(&(text(&report) + &saved.as_deref().map(saved_text).unwrap_or_default()))?;
    }
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Saves what is intact into a new store, which must not be there.
fn save(backend: &Arc<dyn Backend>, into: &Path) -> Result<Vec<Salvaged>> {
    let is_empty = !into.exists() || into.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    ensure!(is_empty, "{} is there and not an empty directory: salvage makes a new store", into.display());
    let store = Store::open(into, StoreOptions::default())
        .with_context(|| format!("making a store in {}", into.display()))?;
    Ok(longwave::salvage(backend, &store)?)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for fault in &report.faults {
        let _ = writeln!(text, "fault: {fault}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let verdict = match report.faults.len() {
        0 => "clean".to_string(),
        1 => "1 fault".to_string(),
        faults => format!("{faults} faults"),
    };
    let (files, blocks, bytes) = (report.files, report.blocks, HumanBytes(report.bytes));
    let _ = writeln!(text, "{verdict}: {files} files, {blocks} blocks and records, {bytes} read");
    text
}

fn saved_text(saved: &[Salvaged]) -> String {
    let mut text = String::new();
    for context in saved {
        let rows = match context.rows_committed {
            Some(rows) => format!("{} of {rows} rows", context.rows_kept),
            None => "nothing: its manifest is lost".to_string(),
        };
        let how = match (context.whole, context.rows_kept) {
            (true, _) => ", copied as it is",
            (false, 0) => "",
            (false, _) if context.token_ids => ", its index built again",
            (false, _) => ", its index built again, without token ids",
        };
        let _ = writeln!(text, "saved: {}: {rows}{how}", context.name);
    }
    text
}

/// The report as JSON. Keys are a contract: see docs/cli.md.
#[derive(serde::Serialize)]
struct Document<'a> {
    store: String,
    clean: bool,
    files: u64,
    blocks: u64,
    bytes: u64,
    faults: Vec<FaultRecord<'a>>,
    notes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    salvage: Option<Vec<SalvageRecord<'a>>>,
}

#[derive(serde::Serialize)]
struct SalvageRecord<'a> {
    context: &'a str,
    rows_committed: Option<u64>,
    rows_kept: u64,
    whole: bool,
    token_ids: bool,
    faults: Vec<FaultRecord<'a>>,
}

#[derive(serde::Serialize)]
struct FaultRecord<'a> {
    file: &'a str,
    column: Option<&'a str>,
    offset: Option<u64>,
    what: &'a str,
}

impl<'a> FaultRecord<'a> {
    fn new(fault: &'a Fault) -> Self {
        FaultRecord {
            file: &fault.file,
            column: fault.column.as_deref(),
            offset: fault.offset,
            what: &fault.what,
        }
    }
}

impl<'a> Document<'a> {
    fn new(store: String, report: &'a Report, saved: Option<&'a [Salvaged]>) -> Self {
        let salvage = |context: &'a Salvaged| SalvageRecord {
            context: &context.name,
            rows_committed: context.rows_committed,
            rows_kept: context.rows_kept,
            whole: context.whole,
            token_ids: context.token_ids,
            faults: context.faults.iter().map(FaultRecord::new).collect(),
        };
        Document {
            store,
            clean: report.faults.is_empty(),
            files: report.files,
            blocks: report.blocks,
            bytes: report.bytes,
            faults: report.faults.iter().map(FaultRecord::new).collect(),
            notes: &report.notes,
            salvage: saved.map(|saved| saved.iter().map(salvage).collect()),
        }
    }
}
