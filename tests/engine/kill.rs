//! A process that appends and commits in a loop is killed, again and again, on the same store.

use crate::sample::{Kv, Sample, faults, is_full, model, own_key_queries, query_view, small_options};
use crate::truth::check_own_values;
use longwave::storage::{Backend, FileBackend};
use longwave::{Budget, Context, Dtype, Durability, Error, LayerKind, ModelSpec, Store, StoreOptions};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LAYERS: usize = 2;
const DIRECTORY: &str = "LONGWAVE_TEST_KILL_DIRECTORY";
/// Rows that one child appends at most, so that the check of every row stays affordable.
const ROWS_PER_CHILD: usize = 160;

fn kills() -> usize {
    if is_full() { 240 } else { 50 }
}

fn spec() -> ModelSpec {
    let mut model = model([2, 2, 16, 8], Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

fn rows(model: &ModelSpec) -> Vec<Kv> {
    (0..LAYERS)
        .map(|layer| Kv::scattered(900 + layer as u64, (kills() + 1) * ROWS_PER_CHILD, model))
        .collect()
}

fn open(directory: &Path) -> Store {
    Store::open(directory.join("store"), StoreOptions::default()).unwrap()
}

fn append(context: &mut Context, kv: &[Kv], count: usize) {
    let start = context.length(0).unwrap() as usize;
    for (layer, kv) in kv.iter().enumerate() {
        kv.append(context, layer, start..start + count);
    }
    context.extend_tokens(&(start as u32..(start + count) as u32).collect::<Vec<_>>()).unwrap();
}

/// Says what is about to be committed, or was: one line, one write.
fn tell(journal: &mut File, word: &str, context: &Context, generation: u64) {
    let line = format!("{word} {generation} {}\n", context.length(0).unwrap());
    journal.write_all(line.as_bytes()).unwrap();
}

/// The process that is killed. It does nothing but when the test below starts it.
#[test]
#[ignore = "started by the test that kills it"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let (model, store) = (spec(), open(directory));
    let kv = rows(&model);
    let mut journal = OpenOptions::new().create(true).append(true).open(directory.join("journal")).unwrap();
    let mut context = match store.context("victim", &model) {
        Err(Error::ContextMissing { .. }) => store.create_with("victim", &model, small_options()).unwrap(),
        found => found.unwrap(),
    };
    let first = context.length(0).unwrap() as usize;
    let mut sample = Sample::new(first as u64);
    tell(&mut journal, "done", &context, context.generation());
    loop {
        let left = first + ROWS_PER_CHILD - context.length(0).unwrap() as usize;
        let count = [1, 1, 2, 5, 12, 40][sample.below(6)].min(left);
        if count > 0 {
            append(&mut context, &kv, count);
        }
        if sample.below(8) == 0 {
            context.seal().unwrap();
        }
        let durability = [Durability::Strict, Durability::Flushed, Durability::None][sample.below(3)];
        tell(&mut journal, "next", &context, context.generation() + 1);
        context.commit(durability).unwrap();
        tell(&mut journal, "done", &context, context.generation());
    }
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A commit: its generation and its rows.
type Commit = (u64, u64);

/// The journal's last acknowledged commit, and the one that was begun after it.
fn told(directory: &Path) -> (Option<Commit>, Option<Commit>) {
    let journal = std::fs::read_to_string(directory.join("journal")).unwrap_or_default();
    let (mut done, mut next) = (None, None);
    // A line without its end was cut off by the kill, before what it tells of was begun.
    for line in journal.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let state = (words[1].parse().unwrap(), words[2].parse().unwrap());
        if words[0] == "done" { (done, next) = (Some(state), None) } else { next = Some(state) }
    }
    (done, next)
}

/// Lets the child work until it has acknowledged `commits` more commits and `wait` has passed, then kills it.
fn kill(directory: &Path, mut child: Child, commits: u64, wait: Duration) {
    let before = told(directory).0.map_or(0, |state| state.0);
    let patience = Instant::now();
    while told(directory).0.map_or(0, |state| state.0) < before + commits {
        if let Some(status) = child.try_wait().unwrap() {
            let mut stderr = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
            panic!("the child ended by itself, {status}: {stderr}");
        }
        assert!(patience.elapsed() < Duration::from_secs(120), "the child does not commit");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(wait);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The store holds exactly what the journal says; gives the rows.
fn check(directory: &Path, model: &ModelSpec, kv: &[Kv], from: u64, round: usize) -> u64 {
    let backend: Arc<dyn Backend> = Arc::new(FileBackend::new(directory.join("store")));
    assert_eq!(faults(&backend), Vec::<String>::new(), "round {round}");
    let snapshot = open(directory).snapshot("victim").unwrap();
    let length = snapshot.length(0).unwrap();
    let found = Some((snapshot.generation(), length));
    let (done, next) = told(directory);
    assert!(
        found == done || next.is_some() && found == next,
        "round {round}: {found:?}, {done:?} or {next:?} was told"
    );
    assert_eq!(snapshot.tokens(), (0..length as u32).collect::<Vec<_>>());
    let positions = from.min(length) as usize..length as usize;
    for (layer, kv) in kv.iter().enumerate().filter(|_| !positions.is_empty()) {
        assert_eq!(snapshot.length(layer).unwrap(), length);
        let queries = own_key_queries(kv, model, positions.clone());
        let answer = snapshot.attend(layer, &query_view(&queries, model), &Budget::Exact).unwrap();
        check_own_values(model, kv, positions.clone(), &answer);
    }
    length
}

#[test]
fn a_killed_writer_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (directory, model) = (directory.path(), spec());
    let kv = rows(&model);
    let mut sample = Sample::new(50);
    let (mut interrupted, mut ahead) = (0, 0);
    for round in 0..kills() {
        // Some are killed while they start and recover, most while they work.
        let commits = [0, 1, 1, 2, 5][sample.below(5)];
        let wait = Duration::from_micros(sample.below(25_000) as u64);
        kill(directory, start(directory), commits, wait);
        let (done, next) = told(directory);
        if done.is_none() {
            continue;
        }
        interrupted += usize::from(next.is_some());
        // Every row now and then, and always what the last children wrote.
        let from =
            if round % 10 == 9 { 0 } else { done.unwrap().1.saturating_sub(2 * ROWS_PER_CHILD as u64) };
        let length = check(directory, &model, &kv, from, round);
        ahead += usize::from(
            Some(length) == next.map(|state| state.1) && Some(length) != done.map(|state| state.1),
        );
    }
    let rows = check(directory, &model, &kv, 0, kills());
    println!(
        "process kills: {} ({interrupted} inside a commit, {ahead} commits whole all the same, {rows} rows)",
        kills()
    );
    assert!(interrupted > 0 && rows > 500, "{interrupted} interrupted, {rows} rows");
    let mut context = open(directory).context("victim", &model).unwrap();
    append(&mut context, &kv, 30);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let (snapshot, end) = (open(directory).snapshot("victim").unwrap(), rows as usize + 30);
    let queries = own_key_queries(&kv[0], &model, 0..end);
    let answer = snapshot.attend(0, &query_view(&queries, &model), &Budget::Exact).unwrap();
    check_own_values(&model, &kv[0], 0..end, &answer);
}
