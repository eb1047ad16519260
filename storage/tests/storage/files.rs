//! The backend of files, and that it and the one in memory answer alike.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use longwave_storage::check::{CheckOptions, check_store};
use longwave_storage::{
    Backend, ColumnKind, Error, Expected, FileBackend, MemoryBackend, Region, Segment, segment_path,
};

use crate::sample::{IDENTITY, build_store, read_all};

/// Copies the sample store to a directory.
fn on_disk(root: &std::path::Path) -> Arc<FileBackend> {
    let backend = FileBackend::new(root);
    backend.create_dir_all("contexts/manual-v3").unwrap();
    backend.create_dir_all("segments").unwrap();
    backend.create_dir_all("logs").unwrap();
    backend.create_dir_all("profiles").unwrap();
    let store = build_store();
    for path in store.files() {
        let mut writer = backend.create_new(&path).unwrap();
        writer.write_all(&store.contents(&path).unwrap()).unwrap();
        writer.sync().unwrap();
    }
    Arc::new(backend)
}

#[test]
fn a_store_on_disk_reads_as_in_memory() {
    let root = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Backend> = on_disk(&root.path().join("store"));
    let memory: Arc<dyn Backend> = build_store();
    assert_eq!(read_all(&disk).unwrap(), read_all(&memory).unwrap());
    let options = CheckOptions::default();
    assert_eq!(check_store(&disk, &options), check_store(&memory, &options));
    let progress = std::sync::atomic::AtomicU64::new(0);
    let options = CheckOptions { progress: Some(&|bytes| _ = progress.fetch_max(bytes, Relaxed)), ..options };
    let report = check_store(&disk, &options);
    let progress = progress.into_inner();
    assert!(progress > 30_000 && progress <= report.bytes);
}

/// A version is what it is: whoever changes a byte of it has to make another.
#[test]
fn the_bytes_of_a_version_do_not_change() {
    let store = build_store();
    let sums: Vec<(String, u64)> = store
        .files()
        .into_iter()
        .map(|path| {
            let sum = xxhash_rust::xxh3::xxh3_64(&store.contents(&path).unwrap());
            (path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name).to_owned(), sum)
        })
        .collect();
    let segment = |number| format!("{}-{number}.segment", "636f6e746578742d69642d3136627974");
    let (first, second) = (segment(0), segment(1));
    let expected = [
        ("manifest", 2_321_646_605_039_988_001),
        ("1.meta.log", 10_694_524_176_991_973_420),
        ("1.rows.log", 10_266_895_022_783_940_250),
        ("longwave.store", 15_359_990_328_122_470_207),
        ("776569676874732c20746f6b656e697a65722c20526f50452c20647479706521", 1_634_509_996_965_511_676),
        (&first, 14_320_680_487_096_491_337),
        (&second, 8_565_753_985_657_356_045),
    ];
    assert_eq!(sums, expected.map(|(name, sum)| (name.to_owned(), sum)));
}

#[test]
fn keys_are_mapped_at_a_page_boundary() {
    let root = tempfile::tempdir().unwrap();
    let disk = on_disk(root.path());
    let path = segment_path(&disk.list("segments").unwrap()[0]);
    assert!(matches!(disk.map(&path).unwrap(), Region::Mapped(_)));
    let segment = Segment::open(disk, &path, &Expected::of_model(IDENTITY)).unwrap();
    for kind in [ColumnKind::KEYS, ColumnKind::VALUES] {
        assert_eq!(segment.column(kind).unwrap().all().unwrap().as_ptr().align_offset(4096), 0);
    }
}

#[test]
fn only_the_owner_may_read() {
    let root = tempfile::tempdir().unwrap();
    let disk = on_disk(&root.path().join("store"));
    let _lock = disk.lock("contexts/manual-v3/lock").unwrap();
    let mode = |path: &str| disk.root().join(path).metadata().unwrap().permissions().mode() & 0o777;
    for dir in ["", "contexts", "contexts/manual-v3", "segments", "profiles"] {
        assert_eq!(mode(dir), 0o700, "{dir}");
    }
    for file in ["longwave.store", "contexts/manual-v3/manifest", "contexts/manual-v3/lock"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
}

#[test]
fn other_modes_are_taken_when_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let disk = FileBackend::new(root.path().join("store")).with_modes(0o4_440, 0o750);
    disk.create_dir_all("contexts").unwrap();
    disk.create_new("contexts/a").unwrap();
    let mode = |path: &str| disk.root().join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("contexts"), mode("contexts/a")), (0o750, 0o440));
}

/// Names from outside and from damaged manifests lead nowhere else: every operation refuses them alike.
#[test]
fn no_path_leads_out_of_the_store() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("secret"), b"secret").unwrap();
    let disk = FileBackend::new(root.path().join("store"));
    disk.create_dir_all("segments").unwrap();
    disk.create_new("segments/a").unwrap();
    let absolute = root.path().join("secret").display().to_string();
    for path in ["../secret", "segments/../../secret", &absolute, "segments/./a", "segments//a", "a\\..\\b"] {
        let refused = [
            disk.create_dir_all(path).err(),
            disk.create_new(path).err(),
            disk.open_append(path, 0).err(),
            disk.open_read(path).err(),
            disk.map(path).err(),
            disk.rename(path, "segments/b").err(),
            disk.rename("segments/a", path).err(),
            disk.remove(path).err(),
            disk.list(path).err(),
            disk.exists(path).err(),
            disk.sync_dir(path).err(),
            disk.lock(path).err(),
        ];
        assert!(refused.iter().all(|error| matches!(error, Some(Error::Name { .. }))), "{path}: {refused:?}");
    }
    assert_eq!(std::fs::read(root.path().join("secret")).unwrap(), b"secret");
}

/// Does the same to both backends and compares what comes of it.
#[test]
fn both_backends_answer_alike() {
    let root = tempfile::tempdir().unwrap();
    let backends: [Box<dyn Backend>; 2] =
        [Box::new(FileBackend::new(root.path())), Box::new(MemoryBackend::new())];
    for backend in backends {
        assert!(matches!(backend.open_read("a/b"), Err(Error::Missing { .. })));
        assert!(matches!(backend.create_new("a/b"), Err(Error::Missing { .. })));
        assert!(matches!(backend.list("a"), Err(Error::Missing { .. })));
        backend.create_dir_all("a/deep/er").unwrap();
        backend.create_dir_all("a").unwrap();
        let mut writer = backend.create_new("a/b").unwrap();
        assert!(matches!(backend.create_new("a/b"), Err(Error::AlreadyExists { .. })));
        writer.write_all(b"hello ").unwrap();
        writer.write_all(b"world").unwrap();
        let reader = backend.open_read("a/b").unwrap();
        assert_eq!(reader.len().unwrap(), 11);
        let mut middle = [0; 3];
        reader.read_exact_at(&mut middle, 4).unwrap();
        assert_eq!(&middle, b"o w");
        assert!(reader.read_exact_at(&mut middle, 9).is_err());
        backend.open_append("a/b", 6).unwrap().write_all(b"W").unwrap();
        assert_eq!(&*backend.map("a/b").unwrap(), b"hello World");
        assert!(matches!(backend.open_append("a/b", 12), Err(Error::Corrupt { offset: 11, .. })));
        assert!(matches!(backend.open_append("a/c", 0), Err(Error::Missing { .. })));
        let region = backend.map("a/b").unwrap();
        backend.create_new("a/c").unwrap().write_all(b"other").unwrap();
        assert_eq!(backend.list("a").unwrap(), ["b", "c", "deep"]);
        backend.rename("a/c", "a/b").unwrap();
        assert_eq!(&*backend.map("a/b").unwrap(), b"other");
        assert_eq!(&*region, b"hello World", "a region outlives its file's name");
        assert!(
            !backend.exists("a/c").unwrap() && backend.exists("a/b").unwrap() && backend.exists("a").unwrap()
        );
        backend.sync_dir("a").unwrap();
        backend.sync_dir("").unwrap();
        backend.remove("a/b").unwrap();
        assert!(matches!(backend.remove("a/b"), Err(Error::Missing { .. })));
        assert!(matches!(backend.rename("a/b", "a/d"), Err(Error::Missing { .. })));
        for path in ["../x", "/x", "a/../x", ".x", "a//b"] {
            assert!(matches!(backend.open_read(path), Err(Error::Name { .. })), "{path}");
            assert!(matches!(backend.create_new(path), Err(Error::Name { .. })), "{path}");
            assert!(matches!(backend.remove(path), Err(Error::Name { .. })), "{path}");
            assert!(matches!(backend.lock(path), Err(Error::Name { .. })), "{path}");
        }
        let lock = backend.lock("a/lock").unwrap();
        assert!(matches!(backend.lock("a/lock"), Err(Error::Locked { .. })));
        let _other = backend.lock("a/other").unwrap();
        drop(lock);
        let _again = backend.lock("a/lock").unwrap();
    }
}

const ROOT_VARIABLE: &str = "LONGWAVE_TEST_LOCK_ROOT";

#[test]
fn hold_a_lock() {
    // The child of the test below: only there is it given a directory. It holds the lock until it is killed.
    let Ok(root) = std::env::var(ROOT_VARIABLE) else { return };
    let _lock = FileBackend::new(root).lock("lock").unwrap();
    println!("locked");
    std::thread::park();
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    let root = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["files::hold_a_lock", "--exact", "--nocapture"])
        .env(ROOT_VARIABLE, root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("locked")), "the child takes the lock");
    let backend = FileBackend::new(root.path());
    assert!(matches!(backend.lock("lock"), Err(Error::Locked { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    backend.lock("lock").unwrap();
}
