//! A commit that fails at every one of its operations, followed by every kind of crash: what is found afterwards is
//! the state before or the state after, whole.

use std::io::ErrorKind;
use std::sync::Arc;

use longwave_storage::check::{CheckOptions, check_store};
use longwave_storage::fault::{FaultBackend, Injection, InjectionKind};
use longwave_storage::{
    Backend, Crash, Durability, Error, LogWriter, Manifest, MemoryBackend, Result, StoreHeader, context_dir,
    create_store, discard_recent_manifest, log_path, read_durable_manifest, read_manifest, read_store,
    write_manifest,
};

use crate::sample::{
    CONTEXT, META_LOG, ROW_LOG, build_store, empty_manifest, log_header, log_record, pattern, read_all,
    rows_record, segment_header, write_sample_segment,
};

/// Takes the lock, seals a segment of layer 1, appends to the log, makes a further log, commits.
fn commit(backend: &dyn Backend, durability: Durability) -> Result<()> {
    let dir = context_dir(CONTEXT);
    let _lock = backend.lock(&format!("{dir}/lock"))?;
    let mut manifest = read_manifest(backend, &dir)?;
    let sequence = manifest.generation + 10;
    let segment = write_sample_segment(backend, sequence, &segment_header(1, 41 + 10 * sequence, 9), 8)?;
    manifest.layers[1].length = segment.first_position + u64::from(segment.rows);
    manifest.layers[1].segments.push(segment);
    let length = manifest.layers[1].length;
    manifest.layers[1].sealed_at.push(length);

    let row_log = manifest.row_logs.last_mut().unwrap();
    let path = row_log.path(CONTEXT);
    let mut rows = LogWriter::resume(backend, &path, log_header(0x31), row_log.len)?;
    rows.append(&rows_record(0, 60, 40), &[&pattern(1700, 6)])?;
    rows.append_batch([
        (rows_record(1, 60, 1), &[&pattern(90, 7)[..]][..]),
        (rows_record(0, 61, 2), &[][..]),
    ])?;
    if durability != Durability::None {
        rows.sync()?;
    }
    row_log.len = rows.len();

    let file = format!("{sequence}.meta.log");
    if backend.exists(&log_path(&file))? {
        backend.remove(&log_path(&file))?;
    }
    let meta = LogWriter::create(backend, &log_path(&file), log_header(sequence as u8))?;
    manifest.meta_logs = vec![log_record(sequence as u8, &file, meta.len())];
    manifest.generation += 1;
    write_manifest(backend, &dir, &manifest, durability)
}

fn kinds() -> Vec<InjectionKind> {
    let short = [0, 1, 50, 1000].map(|written| InjectionKind::ShortWrite { written });
    [InjectionKind::Fail { error: ErrorKind::StorageFull }, InjectionKind::DoneButFails]
        .into_iter()
        .chain(short)
        .collect()
}

fn crashes(durability: Durability) -> Vec<Crash> {
    if durability == Durability::None {
        return vec![Crash::Kill];
    }
    let torn = (0..24).map(|seed| Crash::Torn { seed });
    [Crash::Kill, Crash::DropUnsynced, Crash::KeepNames, Crash::KeepContents]
        .into_iter()
        .chain(torn)
        .collect()
}

/// Runs `commit` with `injection`, then crashes; the state must be old or new, and new if that was promised.
fn recovers(
    base: &MemoryBackend,
    injection: Option<Injection>,
    durability: Durability,
    fresh: &MemoryBackend,
) {
    let old = read_all(&shared(base)).unwrap();
    let new = read_all(&shared(fresh)).unwrap();
    assert_ne!(old, new);
    let disk = base.after(Crash::Kill);
    let faulty = FaultBackend::new(Arc::new(disk.clone()), injection);
    let acknowledged = commit(&faulty, durability).is_ok();
    for crash in crashes(durability) {
        let label = format!("{injection:?}, {crash:?}, {durability:?}");
        let survivor = disk.after(crash);
        let backend = shared(&survivor);
        let found = read_all(&backend).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert!(found == old || found == new, "{label}: neither the old nor the new state");
        if acknowledged && (durability == Durability::Strict || crash == Crash::Kill) {
            assert!(found == new, "{label}: an acknowledged commit was lost");
        }
        assert_eq!(check_store(&backend, &CheckOptions::default()).faults, [], "{label}");
        // The next process commits over whatever was left behind.
        let generation = found.manifest.generation;
        commit(&survivor, Durability::Strict).unwrap_or_else(|error| panic!("{label}: {error}"));
        let again = read_all(&shared(&survivor.after(Crash::DropUnsynced))).unwrap();
        assert_eq!(again.manifest.generation, generation + 1, "{label}");
    }
}

fn shared(backend: &MemoryBackend) -> Arc<dyn Backend> {
    Arc::new(backend.clone())
}

fn crash_everywhere(durability: Durability) {
    let base = build_store();
    let fresh = base.after(Crash::Kill);
    let counter = FaultBackend::new(shared(&fresh), None);
    commit(&counter, durability).unwrap();
    let operations = counter.operations();
    assert!(operations > 30, "{operations}");
    recovers(&base, None, durability, &fresh);
    for at in 0..operations {
        for kind in kinds() {
            recovers(&base, Some(Injection { at, kind, then_dead: true }), durability, &fresh);
        }
    }
    let points = operations as usize * kinds().len() * crashes(durability).len();
    println!(
        "crash points: {points} (death at each of {operations} operations of one commit, {durability:?})"
    );
}

#[test]
fn a_strict_commit_survives_every_crash() {
    crash_everywhere(Durability::Strict);
}

#[test]
fn a_flushed_commit_is_whole_or_absent_after_every_crash() {
    crash_everywhere(Durability::Flushed);
}

#[test]
fn an_unforced_commit_survives_every_kill() {
    crash_everywhere(Durability::None);
}

#[test]
fn a_store_that_is_being_made_is_absent_or_whole() {
    let header = StoreHeader { store_id: [9; 16] };
    let counter = FaultBackend::new(Arc::new(MemoryBackend::new()), None);
    create_store(&counter, &header).unwrap();
    for at in 0..=counter.operations() {
        for kind in kinds() {
            let disk = MemoryBackend::new();
            let faulty = FaultBackend::new(shared(&disk), Some(Injection { at, kind, then_dead: true }));
            let acknowledged = create_store(&faulty, &header).is_ok();
            for crash in crashes(Durability::Strict) {
                let survivor = disk.after(crash);
                let found = read_store(&survivor).ok();
                assert!(
                    found == Some(header) || (found.is_none() && !acknowledged),
                    "{at} {kind:?} {crash:?}"
                );
                if found.is_none() {
                    create_store(&survivor, &header)
                        .unwrap_or_else(|error| panic!("{at} {kind:?} {crash:?}: {error}"));
                }
                assert_eq!(read_store(&survivor).unwrap(), header);
            }
        }
    }
}

/// Makes a context as the engine does: directory, lock, a log that holds nothing, first manifest.
fn create_context(backend: &dyn Backend) -> Result<()> {
    let dir = context_dir("chat-17");
    backend.create_dir_all(&dir)?;
    let _lock = backend.lock(&format!("{dir}/lock"))?;
    if backend.exists("logs/0.rows.log")? {
        backend.remove("logs/0.rows.log")?;
    }
    let log = LogWriter::create(backend, "logs/0.rows.log", log_header(0x44))?;
    let row_logs = vec![log_record(0x44, "0.rows.log", log.len())];
    let manifest = Manifest { name: "chat-17".to_owned(), row_logs, ..empty_manifest() };
    write_manifest(backend, &dir, &manifest, Durability::Strict)
}

#[test]
fn a_context_that_is_being_made_is_absent_or_whole() {
    let base = build_store();
    let counter = FaultBackend::new(shared(&base.after(Crash::Kill)), None);
    create_context(&counter).unwrap();
    for at in 0..=counter.operations() {
        for kind in kinds() {
            let disk = base.after(Crash::Kill);
            let faulty = FaultBackend::new(shared(&disk), Some(Injection { at, kind, then_dead: true }));
            let acknowledged = create_context(&faulty).is_ok();
            for crash in crashes(Durability::Strict) {
                let label = format!("{at} {kind:?} {crash:?}");
                let survivor = disk.after(crash);
                match read_manifest(&survivor, &context_dir("chat-17")) {
                    Ok(manifest) => assert_eq!(manifest.name, "chat-17", "{label}"),
                    Err(Error::Missing { .. }) => assert!(!acknowledged, "{label}: lost"),
                    Err(error) => panic!("{label}: {error}"),
                }
                assert_eq!(check_store(&shared(&survivor), &CheckOptions::default()).faults, [], "{label}");
                create_context(&survivor).unwrap_or_else(|error| panic!("{label}: {error}"));
            }
        }
    }
}

/// The simulation itself must be able to lose things, or the tests above prove nothing.
#[test]
fn unsynced_work_is_lost_in_a_power_failure() {
    let disk = MemoryBackend::new();
    disk.create_dir_all("contexts").unwrap();
    disk.sync_dir("").unwrap();
    let mut writer = disk.create_new("contexts/a").unwrap();
    writer.write_all(&[1; 600]).unwrap();
    assert!(!disk.after(Crash::DropUnsynced).exists("contexts/a").unwrap());
    disk.sync_dir("contexts").unwrap();
    assert_eq!(disk.after(Crash::DropUnsynced).contents("contexts/a").unwrap(), []);
    writer.sync().unwrap();
    writer.write_all(&[2; 600]).unwrap();
    assert_eq!(disk.after(Crash::DropUnsynced).contents("contexts/a").unwrap(), [1; 600]);
    assert_eq!(disk.after(Crash::Kill).contents("contexts/a").unwrap().len(), 1200);
    let torn: std::collections::BTreeSet<Vec<u8>> =
        (0..64).map(|seed| disk.after(Crash::Torn { seed }).contents("contexts/a").unwrap()).collect();
    assert!(torn.len() > 4, "{}", torn.len());
    assert!(torn.iter().all(|bytes| bytes.starts_with(&[1; 512])), "what was synced stays");
    disk.rename("contexts/a", "contexts/b").unwrap();
    assert!(disk.after(Crash::DropUnsynced).exists("contexts/a").unwrap());
    assert!(!disk.after(Crash::KeepNames).exists("contexts/a").unwrap());
    assert!(disk.after(Crash::DropUnsynced).files() == ["contexts/a"] && disk.files() == ["contexts/b"]);
}

/// What a commit without syncs names may be lost, what was durable before it may not.
#[test]
fn an_unforced_commit_may_be_undone_by_a_power_failure_and_costs_nothing() {
    let base = build_store();
    let before = read_all(&shared(&base)).unwrap();
    commit(base.as_ref(), Durability::None).unwrap();
    let after = read_all(&shared(&base)).unwrap();
    let mut undone = 0;
    for crash in crashes(Durability::Strict) {
        let survivor = shared(&base.after(crash));
        let durable = read_durable_manifest(survivor.as_ref(), &context_dir(CONTEXT)).unwrap();
        assert_eq!(durable, before.manifest, "{crash:?}");
        let report = check_store(&survivor, &CheckOptions::default());
        assert_eq!(report.faults, [], "{crash:?}");
        undone += usize::from(read_all(&survivor).ok().as_ref() != Some(&after));
        // Without the commit that may be torn, everything before it is there.
        discard_recent_manifest(survivor.as_ref(), &context_dir(CONTEXT)).unwrap();
        assert_eq!(read_all(&survivor).unwrap(), before, "{crash:?}");
    }
    assert!(undone > 0);
}

#[test]
fn a_writer_that_failed_refuses_to_go_on() {
    let base = build_store();
    let path = log_path(ROW_LOG);
    let len = base.contents(&path).unwrap().len() as u64;
    let open = |at| {
        let injection =
            Injection { at, kind: InjectionKind::Fail { error: ErrorKind::Other }, then_dead: false };
        FaultBackend::new(Arc::new(base.after(Crash::Kill)), Some(injection))
    };
    // Opening takes four operations; then come the write and the sync.
    for failing in [4, 5] {
        let backend = open(failing);
        let mut log = LogWriter::resume(&backend, &path, log_header(0x31), len).unwrap();
        let first = log.append(&rows_record(0, 60, 1), &[b"row"]).and_then(|_| log.sync());
        assert!(first.unwrap_err().to_string().contains("injected fault"));
        let expected = format!("{path}: an earlier write or sync failed; this writer cannot go on");
        assert_eq!(log.append(&rows_record(0, 60, 1), &[b"row"]).unwrap_err().to_string(), expected);
        assert_eq!(log.sync().unwrap_err().to_string(), expected);
    }
    assert!(base.contents(&log_path(META_LOG)).is_ok());
}
