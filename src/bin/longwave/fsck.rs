//! `longwave fsck`: verifies a store. Exit 0: clean; 1: faults were found; 2: the check could not run.

use crate::output;
use crate::progress;
use anyhow::{Result, ensure};
use indicatif::HumanBytes;
use longwave::storage::check::{CheckOptions, Fault, Report, check_store, store_bytes};
use longwave::storage::{Backend, CONTEXTS_DIR, FileBackend, MANIFEST_FILE, STORE_FILE, context_file};
use longwave::{Error, Store, StoreOptions, index};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the store.
    store: PathBuf,
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
    let mut report = check_files(&backend);
    report.faults.extend(check_contexts(&backend, &report));
    if arguments.json {
        output::print_document(&Document::new(path.display().to_string(), &report))?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Reads every file.
fn check_files(backend: &Arc<dyn Backend>) -> Report {
    // Only the bar's length: what cannot be read is told by the check itself.
    let bar = progress::bytes("checking", store_bytes(backend.as_ref()).unwrap_or_default());
    let progress = |read| bar.set_position(read);
    let options =
        CheckOptions { segment: Some(index::validate), progress: Some(&progress), ..CheckOptions::default() };
    let report = check_store(backend, &options);
    bar.finish_and_clear();
    report
}

/// Opens every context as a reader does: that finds what is right by itself and does not go together.
fn check_contexts(backend: &Arc<dyn Backend>, report: &Report) -> Vec<Fault> {
    let mut faults = Vec::new();
    // A store that cannot be opened or listed has been named by the check of the files.
    let Ok(store) = Store::on_backend(Arc::clone(backend), StoreOptions::default()) else { return faults };
    for name in store.contexts().unwrap_or_default() {
        let fault = match store.snapshot(&name) {
            Ok(_) => continue,
            Err(Error::Storage(error)) => Fault::from(error),
            Err(error) => {
                let (file, what) = (context_file(&name, MANIFEST_FILE), error.to_string());
                Fault { file, column: None, offset: None, what }
            }
        };
        if report.faults.iter().all(|known| known.file != fault.file) {
            faults.push(fault);
        }
    }
    faults
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
}

#[derive(serde::Serialize)]
struct FaultRecord<'a> {
    file: &'a str,
    column: Option<&'a str>,
    offset: Option<u64>,
    what: &'a str,
}

impl<'a> Document<'a> {
    fn new(store: String, report: &'a Report) -> Self {
        let fault = |fault: &'a Fault| FaultRecord {
            file: &fault.file,
            column: fault.column.as_deref(),
            offset: fault.offset,
            what: &fault.what,
        };
        Document {
            store,
            clean: report.faults.is_empty(),
            files: report.files,
            blocks: report.blocks,
            bytes: report.bytes,
            faults: report.faults.iter().map(fault).collect(),
            notes: &report.notes,
        }
    }
}
