//! Contexts that several threads commit at once.

use crate::sample::{Kv, UNEQUAL, as_backend, faults, model, queries, query_view, small_options, store_on};
use crate::truth::check_exact;
use longwave::storage::fault::{FaultBackend, Injection, InjectionKind};
use longwave::storage::{Backend, Crash, MemoryBackend};
use longwave::{Budget, Compaction, Context, Dtype, Durability, LayerKind, ModelSpec, Store, StoreOptions};
use std::io::ErrorKind;
use std::sync::Arc;

const LAYERS: usize = 2;
const ROWS: usize = 150;
const WRITERS: usize = 4;
/// Rows of each context after its first commit, its second, and its third.
const LENGTHS: [usize; 3] = [20, 70, 75];

fn spec() -> ModelSpec {
    let mut model = model(UNEQUAL, Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

fn rows() -> Vec<Kv> {
    (0..LAYERS).map(|layer| Kv::new(140 + layer as u64, ROWS, &spec())).collect()
}

fn name(number: usize) -> String {
    format!("c{number}")
}

/// Every context commits three times, all of them at once each time. How many of its commits each was told are done;
/// a context ends with the first that fails.
fn live(backend: &Arc<dyn Backend>, kv: &[Kv]) -> Vec<usize> {
    let mut acknowledged = vec![0; WRITERS];
    let mut options = StoreOptions::default();
    options.compaction = Compaction::Never;
    let Ok(store) = Store::on_backend(Arc::clone(backend), options) else { return acknowledged };
    let made = (0..WRITERS).map_while(|at| store.create_with(&name(at), &spec(), small_options()).ok());
    let mut contexts: Vec<Context> = made.collect();
    let mut lives: Vec<usize> = (0..contexts.len()).collect();
    let mut before = 0;
    for length in LENGTHS {
        for context in &mut contexts {
            kv.iter().enumerate().for_each(|(layer, kv)| kv.append(context, layer, before..length));
        }
        before = length;
        let results = Store::commit_all(&mut contexts, Durability::Strict);
        let ended: Vec<bool> = results.iter().map(Result::is_err).collect();
        for (number, _) in lives.iter().zip(&ended).filter(|(_, ended)| !**ended) {
            acknowledged[*number] += 1;
        }
        let mut keep = ended.iter();
        contexts.retain(|_| keep.next().is_none_or(|ended| !ended));
        let mut keep = ended.iter();
        lives.retain(|_| keep.next().is_none_or(|ended| !ended));
    }
    acknowledged
}

fn check(left: &MemoryBackend, kv: &[Kv], acknowledged: &[usize], place: &str) {
    let store = store_on(&as_backend(left));
    for (number, &commits) in acknowledged.iter().enumerate() {
        if !store.contains(&name(number)).unwrap() {
            assert_eq!(commits, 0, "{place}: context {number} is lost");
            continue;
        }
        let snapshot = store.snapshot(&name(number)).unwrap_or_else(|error| panic!("{place}: {error}"));
        let length = snapshot.length(0).unwrap() as usize;
        let last = commits.checked_sub(1).map_or(0, |at| LENGTHS[at]);
        let next = LENGTHS.get(commits).copied().unwrap_or(last);
        assert!(length == last || length == next, "{place}: {length} rows after {commits} commits");
        for (layer, kv) in kv.iter().enumerate().filter(|_| length > 0) {
            let asked = queries(layer as u64, 2, &spec());
            let answer = snapshot.attend(layer, &query_view(&asked, &spec()), &Budget::Exact).unwrap();
            check_exact(&spec(), layer, kv, length as u64, &asked, &answer);
        }
    }
    assert_eq!(faults(&as_backend(left)), Vec::<String>::new(), "{place}");
}

/// Which operation of which context fails differs from run to run. What must hold then does not.
#[test]
fn a_failure_anywhere_among_commits_at_once_loses_nothing_acknowledged() {
    let kv = rows();
    let counting = Arc::new(FaultBackend::new(as_backend(&MemoryBackend::new()), None));
    let all = live(&(Arc::clone(&counting) as Arc<dyn Backend>), &kv);
    assert_eq!(all, [LENGTHS.len(); WRITERS]);
    let (operations, mut points, mut told) = (counting.operations(), 0, 0);
    let kinds = [
        (InjectionKind::Fail { error: ErrorKind::StorageFull }, false),
        (InjectionKind::DoneButFails, false),
        (InjectionKind::SyncLoses, false),
        (InjectionKind::Fail { error: ErrorKind::StorageFull }, true),
    ];
    for at in (0..operations).step_by(3) {
        let (kind, then_dead) = kinds[at as usize / 3 % kinds.len()];
        let memory = MemoryBackend::new();
        let injection = Some(Injection { at, kind, then_dead });
        let backend: Arc<dyn Backend> = Arc::new(FaultBackend::new(as_backend(&memory), injection));
        let acknowledged = live(&backend, &kv);
        told += usize::from(acknowledged.iter().any(|commits| *commits < LENGTHS.len()));
        for crash in [Crash::Kill, Crash::DropUnsynced, Crash::KeepNames, Crash::Torn { seed: at }] {
            check(&memory.after(crash), &kv, &acknowledged, &format!("{kind:?} at {at}, {crash:?}"));
            points += 1;
        }
    }
    assert!(told > 10, "{told} failures were told");
    println!("crash points: {points} (a failure among {WRITERS} contexts that commit at once)");
}

#[test]
fn contexts_are_committed_at_once_and_each_is_told_what_became_of_it() {
    let (memory, kv) = (MemoryBackend::new(), rows());
    let store = store_on(&as_backend(&memory));
    let mut contexts: Vec<Context> = (0..5)
        .map(|number| {
            let mut context = store.create_with(&format!("c{number}"), &spec(), small_options()).unwrap();
            let rows = 20 + 30 * number;
            kv.iter().enumerate().for_each(|(layer, kv)| kv.append(&mut context, layer, 0..rows));
            context
        })
        .collect();
    // Layers of unequal length cannot be committed.
    kv[0].append(&mut contexts[3], 0, 110..111);
    let results = Store::commit_all(&mut contexts, Durability::Strict);
    let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, false, true, false]);
    let left = store_on(&as_backend(&memory.after(Crash::DropUnsynced)));
    let lengths: Vec<u64> =
        (0..5).map(|number| left.snapshot(&format!("c{number}")).unwrap().length(0).unwrap()).collect();
    assert_eq!(lengths, [20, 50, 80, 0, 140]);
}
