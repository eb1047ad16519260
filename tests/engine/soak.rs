//! Writers, readers, forks, cuts, removal and collection on one store at once, from several threads and processes, every
//! answer checked, while memory, open files and the disk stay as small as what is live.

use crate::sample::{Kv, Sample, faults, model, own_key_queries, query_view, small_options};
use crate::truth::check_own_values;
use longwave::storage::{Backend, Error as StorageError, FileBackend, context_dir, read_durable_manifest};
use longwave::{
    Budget, Context, Dtype, Durability, Error, LayerKind, ModelSpec, Snapshot, Store, StoreOptions,
};
use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "LONGWAVE_TEST_SOAK_DIRECTORY";
const MINUTES: &str = "LONGWAVE_SOAK_MINUTES";
const THREADS: u64 = 4;
const PROCESSES: u64 = 2;
/// Rows of a context when its writer begins anew under the next name.
const ROWS: usize = 400;
/// Names that one writer uses in turn.
const NAMES: u64 = 3;
const LAYERS: usize = 2;

fn spec() -> ModelSpec {
    let mut model = model([2, 2, 16, 8], Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

/// Token ids of a writer's contexts.
fn ids(writer: u64, tokens: std::ops::Range<usize>) -> Vec<u32> {
    tokens.map(|token| 1000 * writer as u32 + token as u32).collect()
}

/// The rows of any context: they depend on its name alone.
fn rows(writer: u64) -> Vec<Kv> {
    (0..LAYERS).map(|layer| Kv::scattered(3000 + 10 * writer + layer as u64, ROWS, &spec())).collect()
}

fn duration() -> Duration {
    let minutes = std::env::var(MINUTES).ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(60.0 * minutes.unwrap_or(0.3))
}

fn open(directory: &Path) -> Store {
    let mut options = StoreOptions::default();
    options.sealing_threads = 1;
    Store::open(directory.join("store"), options).unwrap()
}

/// Whatever a snapshot of a writer's context holds is what the writer's rows are. Gives how many answers were compared.
fn check(snapshot: &Snapshot, writer: u64, sample: &mut Sample) -> u64 {
    let (model, kv) = (spec(), rows(writer));
    let length = snapshot.length(0).unwrap() as usize;
    assert_eq!(snapshot.length(1).unwrap() as usize, length, "layers of one commit");
    assert_eq!(snapshot.tokens(), ids(writer, 0..length));
    if length == 0 {
        return 0;
    }
    let start = sample.below(length);
    let positions = start..length.min(start + 12);
    for (layer, kv) in kv.iter().enumerate() {
        // Queries stand at the end and see every row, so that any row can be asked for.
        let queries = own_key_queries(kv, &model, positions.clone());
        for at in 0..positions.len() {
            let row = model.query_heads * model.key_dim;
            let query = &queries[at * row..(at + 1) * row];
            let answer = snapshot.attend(layer, &query_view(query, &model), &Budget::Exact).unwrap();
            check_own_values(&model, kv, positions.start + at..positions.start + at + 1, &answer);
        }
    }
    (LAYERS * positions.len()) as u64
}

fn name(writer: u64, turn: u64) -> String {
    format!("writer-{writer}-{}", turn % NAMES)
}

/// Opens the context, as long as it is short enough to be written on, or makes it.
fn begin(store: &Store, name: &str) -> Option<Context> {
    let context = match store.context(name, &spec()) {
        Err(Error::ContextMissing { .. }) => store.create_with(name, &spec(), small_options()),
        found => found,
    };
    Some(context.unwrap()).filter(|context| (context.length(0).unwrap() as usize) < ROWS)
}

fn append(context: &mut Context, writer: u64, kv: &[Kv], count: usize) {
    if count == 0 {
        return;
    }
    let start = context.length(0).unwrap() as usize;
    for (layer, kv) in kv.iter().enumerate() {
        kv.append(context, layer, start..start + count);
    }
    context.extend_tokens(&ids(writer, start..start + count)).unwrap();
}

/// Appends, seals, commits, rebuilds, forks, cuts and asks until the time is over; a context that is full is removed
/// when its name comes up again. Gives answers compared.
fn write(store: &Store, writer: u64, end: Instant) -> u64 {
    let (kv, mut sample, mut answers) = (rows(writer), Sample::new(writer), 0);
    for turn in 0.. {
        if Instant::now() >= end {
            break;
        }
        let name = name(writer, turn);
        let Some(mut context) = begin(store, &name) else {
            store.remove(&name).unwrap();
            continue;
        };
        while Instant::now() < end {
            let start = context.length(0).unwrap() as usize;
            let count = [1, 1, 3, 9, 40][sample.below(5)].min(ROWS - start);
            if count == 0 {
                break;
            }
            append(&mut context, writer, &kv, count);
            match sample.below(12) {
                0 => context.seal().unwrap(),
                1 => drop(context.rebuild(None).unwrap()),
                2 => answers += check(&context.snapshot().unwrap(), writer, &mut sample),
                3 => answers += branch(store, &mut context, (writer, &kv), &mut sample),
                5 => drop(context.compact(None).unwrap()),
                4 => context.truncate((start + count).saturating_sub(sample.below(60)) as u64).unwrap(),
                _ => {}
            }
            let durability = [Durability::None, Durability::Flushed, Durability::Strict][sample.below(3)];
            context.commit(durability).unwrap();
        }
    }
    answers
}

/// A fork that is cut, goes on, and is removed.
fn branch(store: &Store, context: &mut Context, (writer, kv): (u64, &[Kv]), sample: &mut Sample) -> u64 {
    let name = format!("branch-{writer}");
    // The one before may have been left by a process that reached its end.
    if store.contains(&name).unwrap() {
        store.remove(&name).unwrap();
    }
    let mut fork = context.fork(&name).unwrap();
    let left = sample.below(fork.length(0).unwrap() as usize + 1);
    fork.truncate(left as u64).unwrap();
    append(&mut fork, writer, kv, sample.below(30).min(ROWS - left));
    let answers = check(&fork.snapshot().unwrap(), writer, sample);
    fork.commit([Durability::Flushed, Durability::Strict][sample.below(2)]).unwrap();
    drop(fork);
    let answers = answers + check(&store.snapshot(&name).unwrap(), writer, sample);
    store.remove(&name).unwrap();
    answers
}

/// Reads what any writer has committed, searches for prefixes, and collects now and then.
fn read(store: &Store, seed: u64, end: Instant) -> u64 {
    let (mut sample, mut answers) = (Sample::new(500 + seed), 0);
    while Instant::now() < end {
        let writer = sample.below((THREADS / 2 + PROCESSES) as usize) as u64;
        let wanted = name(writer, sample.below(NAMES as usize) as u64);
        match store.snapshot(&wanted).and_then(|snapshot| snapshot.length(0).map(|_| snapshot)) {
            Ok(snapshot) => answers += check_beside_a_writer(&snapshot, writer, &mut sample),
            Err(Error::ContextMissing { .. } | Error::Storage(StorageError::Missing { .. })) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{wanted}: {error}"),
        }
        match sample.below(50) {
            0 => drop(store.collect(false).unwrap()),
            1..5 => {
                let found = store.match_prefix(&spec(), &ids(writer, 0..ROWS)).unwrap();
                let own = [format!("writer-{writer}-"), format!("branch-{writer}")];
                if let Some(found) = found {
                    assert!(own.iter().any(|own| found.context.starts_with(own)), "{writer}: {found:?}");
                }
            }
            _ => {}
        }
    }
    answers
}

/// What a snapshot was opened on stays readable, whatever becomes of the context.
fn check_beside_a_writer(snapshot: &Snapshot, writer: u64, sample: &mut Sample) -> u64 {
    let (model, kv) = (spec(), rows(writer));
    let length = snapshot.length(0).unwrap() as usize;
    if length == 0 {
        return 0;
    }
    let token = sample.below(length);
    for (layer, kv) in kv.iter().enumerate() {
        let query = own_key_queries(kv, &model, token..token + 1);
        let answer = snapshot.attend(layer, &query_view(&query, &model), &Budget::Exact).unwrap();
        check_own_values(&model, kv, token..token + 1, &answer);
    }
    LAYERS as u64
}

/// A process of its own: writes one of the contexts, and reads the others. It does nothing unless it is started.
#[test]
#[ignore = "started by the soak"]
fn process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let writer: u64 = std::env::var("LONGWAVE_TEST_SOAK_WRITER").unwrap().parse().unwrap();
    let (store, end) = (open(Path::new(&directory)), Instant::now() + duration());
    let answers = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&store, writer, end));
        write(&store, writer, end) + reader.join().unwrap()
    });
    assert!(answers > 0);
}

fn start(directory: &Path, writer: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "soak::process", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env("LONGWAVE_TEST_SOAK_WRITER", writer.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Resident memory in bytes, and open files, of this process.
fn held() -> (u64, usize) {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096, std::fs::read_dir("/proc/self/fd").unwrap().count())
}

#[test]
fn contexts_are_written_and_read_by_many_at_once() {
    let place = tempfile::tempdir().unwrap();
    let (directory, store) = (place.path(), open(place.path()));
    let (started, end) = (Instant::now(), Instant::now() + duration());
    // Threads write contexts 0 and 1, processes those behind.
    let processes: Vec<Child> = (0..PROCESSES).map(|at| start(directory, THREADS / 2 + at)).collect();
    let answers = AtomicU64::new(0);
    let (mut early, mut late) = ((0, 0), (0, 0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, answers) = (&store, &answers);
            scope.spawn(move || {
                let done =
                    if thread % 2 == 0 { write(store, thread / 2, end) } else { read(store, thread, end) };
                answers.fetch_add(done, Ordering::Relaxed);
            });
        }
        // What is held a third of the way, when all contexts are there, and later. Peaks of either.
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            let (memory, files) = held();
            let third = started.elapsed() * 3;
            let peak = if third < duration() {
                continue;
            } else if third < 2 * duration() {
                &mut early
            } else {
                &mut late
            };
            *peak = (memory.max(peak.0), files.max(peak.1));
        }
    });
    for mut process in processes {
        assert!(process.wait().unwrap().success(), "a process met something wrong");
    }
    let answers = answers.into_inner();
    let mut sample = Sample::new(9);
    for writer in 0..THREADS / 2 + PROCESSES {
        for turn in 0..NAMES {
            match store.snapshot(&name(writer, turn)) {
                Err(Error::ContextMissing { .. }) => {}
                snapshot => drop(check(&snapshot.unwrap(), writer, &mut sample)),
            }
        }
    }
    let left = check_disk(&store, directory);
    println!(
        "soak: {answers} answers of {THREADS} threads right, {PROCESSES} processes beside them; memory {} then {} KiB, \
         open files {} then {}; {left} bytes on disk, all live",
        early.0 >> 10,
        late.0 >> 10,
        early.1,
        late.1
    );
    assert!(answers > 0);
    assert!(late.0 < early.0 + early.0 / 4 + (16 << 20), "memory grew from {} to {} bytes", early.0, late.0);
    assert!(late.1 <= early.1 + 24, "open files grew from {} to {}", early.1, late.1);
}

/// After a collection every file is named by a manifest.
fn check_disk(store: &Store, directory: &Path) -> u64 {
    let mut named = HashSet::new();
    for name in store.contexts().unwrap() {
        // Whoever wrote it last may have had no time to remove what it replaced.
        drop(store.context(&name, &spec()).unwrap());
        named.extend(store.manifest(&name).unwrap().files(&name));
        // After a commit without durability the one before it may come back.
        let durable = read_durable_manifest(store.backend().as_ref(), &context_dir(&name)).unwrap();
        named.extend(durable.files(&name));
    }
    store.collect(false).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(FileBackend::new(directory.join("store")));
    assert_eq!(faults(&backend), Vec::<String>::new());
    for dir in ["segments", "logs"] {
        let files = backend.list(dir).unwrap();
        let orphans: Vec<_> = files.iter().filter(|file| !named.contains(&format!("{dir}/{file}"))).collect();
        assert_eq!(orphans, Vec::<&String>::new(), "files that nothing names");
    }
    store.bytes_on_disk().unwrap()
}
