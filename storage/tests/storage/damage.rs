//! Every byte of every file flipped, every file cut at every length: reported or harmless, never served.

use std::sync::Arc;

use longwave_storage::check::{CheckOptions, check_store};
use longwave_storage::{Backend, LogWriter, MemoryBackend};

use crate::sample::{build_store, log_header, read_all};

/// Reads and checks `store` with one file replaced. Returns whether reading failed and whether `fsck` complained.
fn with_damage(store: &MemoryBackend, path: &str, bytes: &[u8]) -> (bool, bool) {
    let original = store.contents(path).unwrap();
    let intact: Arc<dyn Backend> = Arc::new(store.clone());
    let contents = read_all(&intact).unwrap();
    store.replace(path, bytes).unwrap();
    let damaged = read_all(&intact);
    let faults = check_store(&intact, &CheckOptions::default()).faults;
    store.replace(path, &original).unwrap();
    if let Ok(damaged) = &damaged {
        assert!(*damaged == contents, "{path}: other contents than were written were served");
    }
    for fault in &faults {
        assert!(fault.file.starts_with(path), "{path} was damaged, blamed was {fault}");
    }
    (damaged.is_err(), !faults.is_empty())
}

#[test]
fn an_intact_store_has_no_faults() {
    let store: Arc<dyn Backend> = build_store();
    let report = check_store(&store, &CheckOptions::default());
    assert_eq!(report.faults, []);
    assert_eq!(report.notes, Vec::<String>::new());
    // Header, manifest, two logs, two segments, a profile.
    assert_eq!(report.files, 7);
    // Three records; blocks of 2 + 2 + 1 + 0 + 1 and of 1 + 2 + 1 + 0 + 1.
    assert_eq!(report.blocks, 3 + 6 + 5);
    let store = build_store();
    let total: u64 = store.files().iter().map(|path| store.contents(path).unwrap().len() as u64).sum();
    assert_eq!(report.bytes, total);
}

#[test]
fn every_flipped_byte_is_reported() {
    let store = build_store();
    let mut flips = 0;
    for path in store.files() {
        let bytes = store.contents(&path).unwrap();
        for at in 0..bytes.len() {
            // One bit, and all of them.
            for mask in [1 << (at % 8), 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= mask;
                let (refused, reported) = with_damage(&store, &path, &damaged);
                assert!(reported, "{path}: fsck missed the flip at {at}");
                // Only a padding may be flipped without a reader's noticing.
                assert!(refused || path.ends_with(".segment"), "{path}: reading missed the flip at {at}");
                flips += 1;
            }
        }
    }
    println!("damages: {flips} (flipped bytes)");
    assert!(flips > 60_000, "{flips}");
}

#[test]
fn every_truncation_is_reported() {
    let store = build_store();
    let mut cuts = 0;
    for path in store.files() {
        let bytes = store.contents(&path).unwrap();
        for len in 0..bytes.len() {
            assert_eq!(with_damage(&store, &path, &bytes[..len]), (true, true), "{path} cut to {len}");
        }
        cuts += bytes.len();
    }
    println!("damages: {cuts} (files cut short)");
}

#[test]
fn a_longer_file_is_reported_unless_it_is_a_log() {
    let store = build_store();
    for path in store.files() {
        let mut bytes = store.contents(&path).unwrap();
        for extra in [1, 64, 5000] {
            bytes.resize(bytes.len() + extra, 0);
            let is_log = path.ends_with(".log");
            assert_eq!(with_damage(&store, &path, &bytes), (!is_log, !is_log), "{path} longer by {extra}");
        }
    }
}

#[test]
fn a_missing_file_is_reported() {
    let store = build_store();
    // A model may have no profile.
    for path in store.files().into_iter().filter(|path| !path.starts_with("profiles/")) {
        let store = store.after(longwave_storage::Crash::Kill);
        store.remove(&path).unwrap();
        let store: Arc<dyn Backend> = Arc::new(store);
        let error = read_all(&store).unwrap_err();
        assert_eq!(error.to_string(), format!("{path}: no such file"));
        let faults = check_store(&store, &CheckOptions::default()).faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!((faults[0].file.as_str(), faults[0].what.as_str()), (path.as_str(), "missing"));
    }
}

#[test]
fn orphans_are_notes() {
    let store = build_store();
    let orphans = [
        "contexts/manual-v3/7.rows.log",
        "logs/7.rows.log",
        "contexts/manual-v3/manifest.new",
        "segments/left-over.segment",
        "segments/x.segment.new",
        "profiles/left-over.new",
    ];
    for path in orphans {
        store.replace(path, b"whatever").unwrap();
    }
    store.create_dir_all("contexts/never-committed").unwrap();
    store.replace("contexts/never-committed/lock", b"").unwrap();
    LogWriter::create(store.as_ref(), "contexts/never-committed/0.rows.log", log_header(5)).unwrap();
    let store: Arc<dyn Backend> = store;
    let report = check_store(&store, &CheckOptions::default());
    assert_eq!(report.faults, []);
    assert_eq!(report.notes.len(), 7, "{:?}", report.notes);
    assert!(report.notes.contains(&"contexts/never-committed: holds no commit yet".to_owned()));
    for path in orphans {
        assert!(report.notes.iter().any(|note| note.starts_with(path)), "{path}");
    }
}

#[test]
fn a_swapped_segment_is_reported() {
    let store = build_store();
    let segments: Vec<String> = store.files().into_iter().filter(|path| path.ends_with(".segment")).collect();
    let other = store.contents(&segments[1]).unwrap();
    assert_eq!(with_damage(&store, &segments[0], &other), (true, true));
    let log = store.contents("logs/1.meta.log").unwrap();
    assert_eq!(with_damage(&store, "logs/1.rows.log", &log), (true, true));
}
