//! Directory syncs that several threads share.

use longwave_storage::{
    Backend, Crash, Error, FileReader, FileWriter, GroupedBackend, LockGuard, MemoryBackend, Region,
};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Directory syncs wait until the test lets them go, one by one, and are counted.
#[derive(Debug)]
struct Gated {
    memory: MemoryBackend,
    syncs: AtomicUsize,
    begun: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
    fails: AtomicBool,
}

impl Backend for Gated {
    fn create_dir_all(&self, dir: &str) -> Result<(), Error> {
        self.memory.create_dir_all(dir)
    }
    fn create_new(&self, path: &str) -> Result<Box<dyn FileWriter>, Error> {
        self.memory.create_new(path)
    }
    fn open_append(&self, path: &str, at: u64) -> Result<Box<dyn FileWriter>, Error> {
        self.memory.open_append(path, at)
    }
    fn open_read(&self, path: &str) -> Result<Arc<dyn FileReader>, Error> {
        self.memory.open_read(path)
    }
    fn map(&self, path: &str) -> Result<Region, Error> {
        self.memory.map(path)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.memory.rename(from, to)
    }
    fn remove(&self, path: &str) -> Result<(), Error> {
        self.memory.remove(path)
    }
    fn remove_dir(&self, dir: &str) -> Result<(), Error> {
        self.memory.remove_dir(dir)
    }
    fn list(&self, dir: &str) -> Result<Vec<String>, Error> {
        self.memory.list(dir)
    }
    fn exists(&self, path: &str) -> Result<bool, Error> {
        self.memory.exists(path)
    }
    fn sync_dir(&self, dir: &str) -> Result<(), Error> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.begun.lock().unwrap().send(()).unwrap();
        self.go.lock().unwrap().recv().unwrap();
        if self.fails.load(Ordering::SeqCst) {
            let source = ErrorKind::StorageFull.into();
            return Err(Error::Io { path: dir.into(), operation: "sync directory", source });
        }
        self.memory.sync_dir(dir)
    }
    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>, Error> {
        self.memory.lock(path)
    }
}

struct Gate {
    backend: Arc<Gated>,
    begun: Receiver<()>,
    go: Sender<()>,
}

fn gate() -> Gate {
    let ((begin, begun), (go, went)) = (channel(), channel());
    let memory = MemoryBackend::new();
    memory.create_dir_all("d").unwrap();
    memory.sync_dir("").unwrap();
    let backend = Gated {
        memory,
        syncs: AtomicUsize::new(0),
        begun: Mutex::new(begin),
        go: Mutex::new(went),
        fails: AtomicBool::new(false),
    };
    Gate { backend: Arc::new(backend), begun, go }
}

/// Waiting threads cannot be seen from outside; a thread that is late makes the test prove less, not fail.
fn let_them_wait() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn who_comes_while_a_sync_runs_shares_the_next_and_is_covered_by_it() {
    let Gate { backend, begun, go } = gate();
    let grouped = Arc::new(GroupedBackend::new(Arc::clone(&backend) as Arc<dyn Backend>));
    let sync = |name: &str| {
        let (grouped, path) = (Arc::clone(&grouped), format!("d/{name}"));
        std::thread::spawn(move || {
            grouped.create_new(&path)?.sync()?;
            grouped.sync_dir("d")
        })
    };
    let first = sync("first");
    begun.recv().unwrap();
    let others: Vec<_> = (0..6).map(|number| sync(&number.to_string())).collect();
    let_them_wait();
    assert_eq!(backend.syncs.load(Ordering::SeqCst), 1, "two syncs of a directory ran at once");
    go.send(()).unwrap();
    first.join().unwrap().unwrap();
    // However late some of them are, nobody waits for more than all of the others' syncs.
    for _ in 0..6 {
        go.send(()).unwrap();
    }
    others.into_iter().for_each(|other| other.join().unwrap().unwrap());
    let syncs = backend.syncs.load(Ordering::SeqCst);
    assert!((2..=7).contains(&syncs), "{syncs} syncs");
    println!("{syncs} syncs for 7 threads");
    // What each was told is durable is.
    let left = backend.memory.after(Crash::DropUnsynced);
    for name in ["first", "0", "1", "2", "3", "4", "5"] {
        assert!(left.exists(&format!("d/{name}")).unwrap(), "{name} was lost");
    }
}

#[test]
fn all_that_share_a_sync_are_told_of_its_failure_and_no_other() {
    let Gate { backend, begun, go } = gate();
    let grouped = Arc::new(GroupedBackend::new(Arc::clone(&backend) as Arc<dyn Backend>));
    let sync = || {
        let grouped = Arc::clone(&grouped);
        std::thread::spawn(move || grouped.sync_dir("d"))
    };
    let first = sync();
    begun.recv().unwrap();
    let others = [sync(), sync(), sync()];
    let_them_wait();
    go.send(()).unwrap();
    first.join().unwrap().unwrap();
    // From here on syncs fail, until all of those that were waiting have been told.
    backend.fails.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    for other in others {
        let failure = other.join().unwrap().unwrap_err();
        let Error::Io { path, operation, source } = &failure else { panic!("{failure}") };
        assert_eq!(
            (path.as_str(), *operation, source.kind()),
            ("d", "sync directory", ErrorKind::StorageFull)
        );
    }
    backend.fails.store(false, Ordering::SeqCst);
    go.send(()).unwrap();
    grouped.sync_dir("d").unwrap();
}

#[test]
fn a_thread_that_panics_in_a_sync_leaves_nobody_waiting() {
    let Gate { backend, begun, go } = gate();
    let grouped = Arc::new(GroupedBackend::new(Arc::clone(&backend) as Arc<dyn Backend>));
    let sync = || {
        let grouped = Arc::clone(&grouped);
        std::thread::spawn(move || grouped.sync_dir("d"))
    };
    let first = sync();
    begun.recv().unwrap();
    let second = sync();
    let_them_wait();
    // The gate is gone: whoever syncs panics.
    drop(go);
    assert!(first.join().is_err());
    assert!(second.join().is_err(), "it leads the next one, and panics as well");
}
