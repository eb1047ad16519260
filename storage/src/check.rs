//! `fsck`: reads everything there is and names what is wrong with it. Changes nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::log::{LOG_HEADER_SIZE, LogHeader, LogReader, Record};
use crate::manifest::{
    LogPlace, LogRecord, Manifest, SegmentRecord, read_durable_manifest, read_recent_manifest,
};
use crate::names::{
    CONTEXTS_DIR, LOCK_FILE, LOGS_DIR, MANIFEST_FILE, MANIFEST_NEW_FILE, MANIFEST_RECENT_FILE,
    MANIFEST_REMOVED_FILE, PINNED_FILE, PREFIXES_FILE, PROFILES_DIR, SEGMENTS_DIR, STORE_FILE, USED_FILE,
    context_dir, context_file, file_maker, segment_path, share_path, validate_name,
};
use crate::profile::check_profile;
use crate::segment::{Expected, Segment, Validator};
use crate::store::read_store;

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fault {
    /// The file, as a path in the store.
    pub file: String,
    /// The column, where the fault lies in one.
    pub column: Option<String>,
    /// Offset in the file in bytes, where there is one.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(column) = &self.column {
            write!(f, ", column {column}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let bare =
            |file: &str, what: String| Self { file: file.to_owned(), column: None, offset: None, what };
        let named = |file: &str, column: &str, what: String| Self {
            column: Some(column.to_owned()),
            ..bare(file, what)
        };
        match &error {
            Error::Corrupt { file, column, offset, expected, found } => Self {
                column: column.clone(),
                offset: Some(*offset),
                ..bare(file, format!("expected {expected}, found {found}"))
            },
            Error::ByteOrder { file } => bare(file, "big-endian byte order".to_owned()),
            Error::Version { file, found, oldest, newest } => {
                bare(file, format!("format version {found}, supported are {oldest} to {newest}"))
            }
            Error::Identity { file, expected, found } => {
                bare(file, format!("model {found}, expected model {expected}"))
            }
            Error::Missing { file } => bare(file, "missing".to_owned()),
            Error::MissingColumn { file, column } => named(file, column, "missing".to_owned()),
            Error::Range { file, column, start, end, len } => {
                named(file, column, format!("range {start}..{end} lies outside {len} bytes"))
            }
            Error::Io { path, operation, source } => bare(path, format!("{operation}: {source}")),
            Error::Name { name, .. } => bare(name, error.to_string()),
            Error::Limit { what, .. } => bare(what, error.to_string()),
            Error::Locked { path }
            | Error::AlreadyExists { path }
            | Error::TooManyMappings { path, .. }
            | Error::Poisoned { path }
            | Error::Input { file: path, .. } => bare(path, error.to_string()),
        }
    }
}

/// What a check found and how much it looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Everything that is wrong, in the order of the walk.
    pub faults: Vec<Fault>,
    /// Files that nothing names, and the like: harmless.
    pub notes: Vec<String>,
    /// Files that were read.
    pub files: u64,
    /// Blocks and records whose checksums were compared.
    pub blocks: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

/// Checks a record against the manifest it belongs to: what only the one who wrote its payload understands.
pub type RecordValidator = fn(&Manifest, &Record) -> Result<()>;

/// What the caller adds to a check.
#[derive(Clone, Copy, Default)]
pub struct CheckOptions<'a> {
    /// Called for every segment whose blocks are all right.
    pub segment: Option<Validator>,
    /// Called for every record of a log that is all right.
    pub record: Option<RecordValidator>,
    /// Called with the bytes read so far, now and then, from several threads.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl fmt::Debug for CheckOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckOptions").finish_non_exhaustive()
    }
}

/// Bytes of all files in the store: what [`CheckOptions::progress`] counts up to, about.
///
/// # Errors
/// Where a directory or file cannot be read.
pub fn store_bytes(backend: &dyn Backend) -> Result<u64> {
    let mut paths = list_files(backend, SEGMENTS_DIR)?;
    for dir in [LOGS_DIR, PROFILES_DIR] {
        if backend.exists(dir)? {
            paths.extend(list_files(backend, dir)?);
        }
    }
    if backend.exists(PREFIXES_FILE)? {
        paths.push(PREFIXES_FILE.to_owned());
    }
    for context in backend.list(CONTEXTS_DIR)? {
        paths.extend(list_files(backend, &context_dir(&context))?);
    }
    paths.iter().map(|path| backend.open_read(path)?.len()).sum()
}

fn list_files(backend: &dyn Backend, dir: &str) -> Result<Vec<String>> {
    Ok(backend.list(dir)?.into_iter().map(|name| format!("{dir}/{name}")).collect())
}

/// Checks everything in a store: its header, every context, every segment that a context names, every profile. A
/// segment that several contexts name is read once.
pub fn check_store(backend: &Arc<dyn Backend>, options: &CheckOptions<'_>) -> Report {
    let mut check = Check::new(backend, options);
    check.store_header();
    match backend.list(CONTEXTS_DIR) {
        Ok(names) => names.iter().for_each(|name| check.context(name)),
        Err(error) => check.fault(error),
    }
    check.orphans();
    check.profiles();
    check.report
}

/// Checks one context: its manifest, its logs, the segments that it names.
pub fn check_context(backend: &Arc<dyn Backend>, name: &str, options: &CheckOptions<'_>) -> Report {
    let mut check = Check::new(backend, options);
    check.context(name);
    check.report
}

struct Check<'a> {
    backend: &'a Arc<dyn Backend>,
    options: &'a CheckOptions<'a>,
    report: Report,
    /// Paths of segments and logs that a manifest names.
    named: HashSet<String>,
    /// Segments that were verified, and what their record said.
    verified: HashMap<String, SegmentRecord>,
    /// Logs that were verified, and how far.
    verified_logs: HashMap<String, ([u8; 16], u64)>,
    /// Faults that were found by looking at one file at a time.
    told: HashSet<Fault>,
    /// The contexts that have a manifest.
    known: HashSet<[u8; 16]>,
    /// Directories without one, not because the context was removed.
    without_manifest: Vec<String>,
    /// Whether every manifest could be read: only then is a file that none names an orphan.
    manifests_complete: bool,
}

impl<'a> Check<'a> {
    fn new(backend: &'a Arc<dyn Backend>, options: &'a CheckOptions<'a>) -> Self {
        Self {
            backend,
            options,
            report: Report::default(),
            named: HashSet::new(),
            verified: HashMap::new(),
            verified_logs: HashMap::new(),
            told: HashSet::new(),
            known: HashSet::new(),
            without_manifest: Vec::new(),
            manifests_complete: true,
        }
    }

    /// Several contexts may name the same file: what is wrong with it is said once.
    fn fault(&mut self, fault: impl Into<Fault>) {
        let fault = fault.into();
        if self.told.insert(fault.clone()) {
            self.report.faults.push(fault);
        }
    }

    fn read_bytes(&mut self, bytes: u64) {
        self.report.bytes += bytes;
        if let Some(progress) = self.options.progress {
            progress(self.report.bytes);
        }
    }

    /// Counts a file that was read whole.
    fn count_file(&mut self, path: &str) {
        self.report.files += 1;
        let len = self.backend.open_read(path).and_then(|reader| reader.len());
        self.read_bytes(len.unwrap_or_default());
    }

    fn store_header(&mut self) {
        match read_store(self.backend.as_ref()) {
            Ok(_) => self.count_file(STORE_FILE),
            Err(error) => self.fault(error),
        }
    }

    fn context(&mut self, name: &str) {
        if validate_name(name).is_err() {
            return self.report.notes.push(format!("{CONTEXTS_DIR}/{name}: not a context"));
        }
        let dir = context_dir(name);
        if self.backend.exists(&context_file(name, MANIFEST_REMOVED_FILE)).unwrap_or(false) {
            return self.report.notes.push(format!("{dir}: was removed"));
        }
        if self.was_never_committed(&dir) {
            self.without_manifest.push(context_file(name, MANIFEST_FILE));
            return self.report.notes.push(format!("{dir}: holds no commit yet"));
        }
        let manifest = match read_durable_manifest(self.backend.as_ref(), &dir) {
            Ok(manifest) => manifest,
            Err(error) => {
                self.manifests_complete = false;
                return self.fault(error);
            }
        };
        self.known.insert(manifest.context_id);
        self.count_file(&context_file(name, MANIFEST_FILE));
        if manifest.name != name {
            self.report.notes.push(format!("{dir}: was {} at its last commit", manifest.name));
        }
        self.contents(name, &manifest);
        self.recent(name, &manifest);
        self.context_orphans(name, &manifest);
    }

    /// Everything that a manifest names.
    fn contents(&mut self, name: &str, manifest: &Manifest) {
        for log in manifest.row_logs.iter().chain(&manifest.meta_logs) {
            if let Err(error) = self.log(name, manifest, log) {
                self.fault(error);
            }
        }
        for (layer, record) in (0..).zip(&manifest.layers) {
            for segment in record.segments.iter().chain(record.cuts.iter().map(|cut| &cut.segment)) {
                if let Err(error) = self.segment(manifest, layer, segment) {
                    self.fault(error);
                }
            }
        }
    }

    /// A commit that asked for no durability may have been undone by a power loss: that is no fault.
    fn recent(&mut self, name: &str, durable: &Manifest) {
        let path = context_file(name, MANIFEST_RECENT_FILE);
        let recent = match read_recent_manifest(self.backend.as_ref(), &context_dir(name)) {
            Err(Error::Missing { .. }) => return,
            Err(error) => return self.report.notes.push(format!("does not count: {}", Fault::from(error))),
            Ok(recent) if recent.generation <= durable.generation => {
                return self.report.notes.push(format!("{path}: a later commit counts"));
            }
            Ok(recent) => recent,
        };
        self.count_file(&path);
        let before = self.report.faults.len();
        self.contents(name, &recent);
        let undone = self.report.faults.split_off(before);
        self.report.notes.extend(undone.into_iter().map(|fault| {
            format!("{path}: commit {} does not count if power was lost: {fault}", recent.generation)
        }));
    }

    /// A process that died before a context's first commit leaves a directory with a lock, logs that hold nothing
    /// and perhaps a provisional manifest. A log with records says that a manifest was there and is lost.
    fn was_never_committed(&self, dir: &str) -> bool {
        let Ok(files) = self.backend.list(dir) else { return false };
        files.iter().all(|file| match file.as_str() {
            LOCK_FILE | MANIFEST_NEW_FILE | MANIFEST_RECENT_FILE | PINNED_FILE | USED_FILE => true,
            MANIFEST_FILE => false,
            _ => {
                let len = self.backend.open_read(&format!("{dir}/{file}")).and_then(|reader| reader.len());
                len.is_ok_and(|len| len <= LOG_HEADER_SIZE)
            }
        })
    }

    fn log(&mut self, name: &str, manifest: &Manifest, log: &LogRecord) -> Result<()> {
        let path = log.path(name);
        self.named.insert(path.clone());
        let header = LogHeader { log_id: log.id, identity: manifest.model.identity };
        let mut reader = LogReader::open(self.backend.as_ref(), &path, header, log.len)?;
        // A log that several contexts name is read once, unless one of them counts more of it.
        match self.verified_logs.insert(path.clone(), (log.id, log.len)) {
            Some((id, len)) if id == log.id && len >= log.len => {
                self.verified_logs.insert(path, (id, len));
                return Ok(());
            }
            Some(_) => {}
            None => self.report.files += 1,
        }
        let mut offset = 0;
        while let Some(record) = reader.next()? {
            self.report.blocks += 1;
            self.read_bytes(reader.offset() - offset);
            offset = reader.offset();
            if let Some(Err(error)) = self.options.record.map(|validate| validate(manifest, &record)) {
                self.fault(error);
            }
        }
        Ok(())
    }

    fn segment(&mut self, manifest: &Manifest, layer: u32, record: &SegmentRecord) -> Result<()> {
        let path = segment_path(&record.file);
        self.named.insert(path.clone());
        let expected = Expected {
            identity: manifest.model.identity,
            layer: Some(layer),
            geometry: Some(manifest.model.geometry()),
            record: Some(record.clone()),
        };
        let segment = Segment::open(Arc::clone(self.backend), &path, &expected)?;
        if self.verified.get(&record.file) == Some(record) {
            return Ok(());
        }
        self.verified.insert(record.file.clone(), record.clone());
        self.report.files += 1;
        self.report.blocks += segment.block_count();
        let (before, options) = (self.report.bytes, self.options);
        let bytes = AtomicU64::new(before);
        let faults = segment.verify_with(&|block_len| {
            let bytes = bytes.fetch_add(block_len, Ordering::Relaxed) + block_len;
            if let Some(progress) = options.progress {
                progress(bytes);
            }
        });
        self.report.bytes = before + segment.file_len();
        if !faults.is_empty() {
            self.report.faults.extend(faults);
            return Ok(());
        }
        options.segment.map_or(Ok(()), |validate| validate(&segment))
    }

    fn context_orphans(&mut self, name: &str, manifest: &Manifest) {
        let logs = manifest.row_logs.iter().chain(&manifest.meta_logs);
        let logs = logs.filter(|log| log.place == LogPlace::Context).map(|log| log.file.as_str());
        let known: HashSet<&str> =
            logs.chain([MANIFEST_FILE, MANIFEST_RECENT_FILE, LOCK_FILE, PINNED_FILE, USED_FILE]).collect();
        match self.backend.list(&context_dir(name)) {
            Ok(files) => {
                let orphans = files.iter().filter(|file| !known.contains(file.as_str()));
                self.report.notes.extend(
                    orphans.map(|file| format!("{}: not part of the context", context_file(name, file))),
                );
            }
            Err(error) => self.fault(error),
        }
    }

    fn orphans(&mut self) {
        let mut lost = false;
        for dir in [SEGMENTS_DIR, LOGS_DIR] {
            if !self.manifests_complete {
                self.report
                    .notes
                    .push(format!("{dir}: not searched for orphans, since a manifest is unreadable"));
                continue;
            }
            match list_files(self.backend.as_ref(), dir) {
                Ok(paths) => {
                    let orphans: Vec<&String> =
                        paths.iter().filter(|path| !self.named.contains(*path)).collect();
                    lost |= orphans.iter().any(|path| self.is_lost(path));
                    self.report
                        .notes
                        .extend(orphans.iter().map(|path| format!("{path}: named by no context")));
                }
                // Stores of older versions have no directory of logs.
                Err(Error::Missing { .. }) if dir == LOGS_DIR => {}
                Err(error) => self.fault(error),
            }
        }
        if lost {
            let missing = std::mem::take(&mut self.without_manifest);
            missing.into_iter().for_each(|file| self.fault(Error::Missing { file }));
        }
    }

    /// Whether a file that no manifest names was made by a context that has none, and that was not removed. Then the
    /// directory of a context without a manifest is not one whose creation was cut off.
    fn is_lost(&self, path: &str) -> bool {
        let maker = path.rsplit_once('/').and_then(|(_, file)| file_maker(file));
        maker.is_some_and(|(maker, _)| {
            let shared = self.backend.exists(&share_path(&maker)).unwrap_or(false);
            !self.known.contains(&maker) && !shared
        })
    }

    /// A damaged profile is a fault, though no context needs it: indexes are built without what it knows.
    fn profiles(&mut self) {
        let names = match self.backend.list(PROFILES_DIR) {
            Ok(names) => names,
            Err(Error::Missing { .. }) => return,
            Err(error) => return self.fault(error),
        };
        for name in names {
            let path = format!("{PROFILES_DIR}/{name}");
            if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                self.report.notes.push(format!("{path}: not a profile"));
                continue;
            }
            match check_profile(self.backend.as_ref(), &path) {
                Ok(bytes) => {
                    self.report.files += 1;
                    self.read_bytes(bytes);
                }
                Err(error) => self.fault(error),
            }
        }
    }
}
