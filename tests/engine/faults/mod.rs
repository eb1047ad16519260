//! A storage operation that fails, at every place of a whole life of a context, followed by every kind of crash.

mod workload;

use crate::sample::{as_backend, is_full, queries, query_view, small_options, store_on};
use crate::truth::check_exact;
use longwave::storage::fault::{Condition, FaultBackend, Injection, InjectionKind};
use longwave::storage::{Backend, Crash, MemoryBackend};
use longwave::{Budget, Durability, Error, Store};
use std::io::ErrorKind;
use std::sync::Arc;
use workload::{Progress, Workload, check_typed};

/// Operations that change what is on the medium, or what of it is durable.
const CHANGES: [&str; 7] =
    ["create directory", "create", "write", "sync", "rename", "remove", "sync directory"];

/// What can go wrong with an operation. A short write is one of a write only, a lost sync of a sync only.
fn kinds(operation: &str) -> Vec<InjectionKind> {
    let mut kinds = vec![InjectionKind::Fail { error: ErrorKind::StorageFull }, InjectionKind::DoneButFails];
    match operation {
        "write" if is_full() => {
            kinds.extend([0, 1, 300].map(|written| InjectionKind::ShortWrite { written }));
        }
        "write" => kinds.push(InjectionKind::ShortWrite { written: 300 }),
        "sync" => kinds.push(InjectionKind::SyncLoses),
        _ => {}
    }
    kinds
}

/// Kinds of the errors that [`kinds`] may be reported as, that of a dead process among them.
const ERROR_KINDS: [ErrorKind; 4] =
    [ErrorKind::StorageFull, ErrorKind::Interrupted, ErrorKind::Other, ErrorKind::BrokenPipe];

/// What may follow. An operation that changes nothing leaves what the one before it left, which has met all of them.
fn crashes(at: u64, operation: &str, durability: Durability) -> Vec<Crash> {
    if durability == Durability::None {
        return vec![Crash::Kill];
    }
    if !is_full() {
        let half = if at.is_multiple_of(2) { Crash::KeepNames } else { Crash::KeepContents };
        let all = vec![Crash::Torn { seed: at }, Crash::DropUnsynced, half, Crash::Kill];
        return if CHANGES.contains(&operation) { all } else { all[..1].to_vec() };
    }
    let torn = (0..8).map(|seed| Crash::Torn { seed: seed + 8 * at });
    [Crash::Kill, Crash::DropUnsynced, Crash::KeepNames, Crash::KeepContents]
        .into_iter()
        .chain(torn)
        .collect()
}

/// Whoever runs the tests adds these lines up.
fn tell(points: usize, what: &str) {
    println!("crash points: {points} ({what})");
}

/// The process dies at every operation, in every way, and every crash follows.
fn die_everywhere(durability: Durability) {
    let workload = Workload::new(durability);
    let trace = workload.trace();
    let mut checked = 0;
    for (at, operation) in (0..).zip(&trace) {
        // Reading is the same whatever a commit waits for: once is enough for a sample.
        if !is_full() && durability != Durability::Strict && !CHANGES.contains(operation) {
            continue;
        }
        for kind in kinds(operation) {
            let memory = MemoryBackend::new();
            let injection = Injection { at, kind, then_dead: true };
            let backend: Arc<dyn Backend> = Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
            let mut progress = Progress::default();
            let mut react = |error: &Error, _: &Progress| {
                check_typed(error, &ERROR_KINDS, &format!("{kind:?} at {at}"));
                false
            };
            // What is removed after a commit may fail without a word, so an early end is not asked for.
            let _ = workload.run(&backend, &mut react, &mut progress);
            for crash in crashes(at, operation, durability) {
                let left = memory.after(crash);
                let place = format!("{kind:?} at {at} ({operation}), {crash:?}, {durability:?}");
                workload.check(&left, &progress, crash, &place);
                workload.check_goes_on(&left, &place);
                checked += 1;
            }
        }
    }
    tell(checked, &format!("death at each of {} operations, {durability:?}", trace.len()));
}

#[test]
fn death_at_any_operation_leaves_the_old_state_or_the_new() {
    die_everywhere(Durability::Strict);
}

#[test]
fn death_at_any_operation_of_flushed_commits_leaves_one_of_them() {
    die_everywhere(Durability::Flushed);
}

#[test]
fn death_at_any_operation_of_unforced_commits_loses_none_of_them() {
    die_everywhere(Durability::None);
}

#[test]
fn one_failure_anywhere_is_made_good_by_calling_again() {
    let workload = Workload::new(Durability::Strict);
    let mut checked = 0;
    for (at, operation) in (0..).zip(workload.trace()) {
        for kind in kinds(operation) {
            let memory = MemoryBackend::new();
            let injection = Injection { at, kind, then_dead: false };
            let backend: Arc<dyn Backend> = Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
            let mut progress = Progress::default();
            let place = format!("{kind:?} at {at} ({operation})");
            let mut react = |error: &Error, _: &Progress| {
                check_typed(error, &ERROR_KINDS, &place);
                true
            };
            workload
                .run(&backend, &mut react, &mut progress)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(progress, Progress::done(), "{place}");
            for crash in crashes(at, operation, Durability::Strict) {
                workload.check(&memory.after(crash), &progress, crash, &format!("{place}, {crash:?}"));
                checked += 1;
            }
        }
    }
    tell(checked, "one failure at each operation, the call made again");
}

/// From any operation on the disk is full, the medium read-only, or the permission gone: the error says so, the last
/// commit stays readable, and the same writer goes on once the condition has passed.
#[test]
fn a_medium_that_refuses_is_told_and_waited_for() {
    let workload = Workload { tries: 6, ..Workload::new(Durability::Strict) };
    let trace = workload.trace();
    let mut checked = 0;
    for condition in Condition::ALL {
        let mut told = 0;
        for (at, operation) in (0..).zip(&trace) {
            let memory = MemoryBackend::new();
            let injection = Injection { at, kind: InjectionKind::Lasting(condition), then_dead: false };
            let faulty = Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
            let backend: Arc<dyn Backend> = Arc::clone(&faulty) as Arc<dyn Backend>;
            let place = format!("{condition:?} from {at} on");
            let mut react = |error: &Error, progress: &Progress| {
                check_typed(error, &[condition.error()], &place);
                told += 1;
                if condition != Condition::PermissionLost && progress.created {
                    let snapshot = Store::on_backend(Arc::clone(&backend), Workload::options())
                        .and_then(|store| store.snapshot("life"))
                        .unwrap_or_else(|error| panic!("{place}: {error}"));
                    let last = progress.committed.last().copied().unwrap_or_default() as u64;
                    assert!(
                        [last, progress.begun as u64].contains(&snapshot.length(0).unwrap()),
                        "{place}: {progress:?}"
                    );
                    workload.check_content(&snapshot, &place);
                }
                faulty.heal();
                true
            };
            let mut progress = Progress::default();
            workload
                .run(&backend, &mut react, &mut progress)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(progress, Progress::done(), "{place}");
            for crash in crashes(at, operation, Durability::Strict) {
                let left = memory.after(crash);
                let place = format!("{place}, then {crash:?}");
                workload.check(&left, &progress, crash, &place);
                workload.check_goes_on(&left, &place);
                checked += 1;
            }
        }
        assert!(told > 50, "{condition:?} was met {told} times");
    }
    tell(checked, "a full disk, read-only media or no permission from each operation on");
}

#[test]
fn rows_stay_readable_while_the_disk_is_full() {
    let workload = Workload::new(Durability::Strict);
    let memory = MemoryBackend::new();
    {
        let store = store_on(&as_backend(&memory));
        let mut context = store.create_with("life", &workload.model, small_options()).unwrap();
        workload.append(&mut context, 0..20);
        context.commit(Durability::Strict).unwrap();
    }
    let counting = Arc::new(FaultBackend::new(as_backend(&memory.after(Crash::Kill)), None));
    drop(store_on(&(Arc::clone(&counting) as Arc<dyn Backend>)).context("life", &workload.model).unwrap());
    // Soon after the context is opened, nothing can be written or read any more.
    let kind = InjectionKind::Fail { error: ErrorKind::StorageFull };
    let injection = Injection { at: counting.operations() + 2, kind, then_dead: true };
    let backend: Arc<dyn Backend> = Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
    let store = store_on(&backend);
    let mut context = store.context("life", &workload.model).unwrap();
    for token in 20..120 {
        workload.append(&mut context, token..token + 1);
    }
    let failures =
        [context.seal().is_err(), context.commit(Durability::Strict).is_err(), context.seal().is_err()];
    assert!(failures.iter().any(|failed| *failed));
    assert_eq!(context.generation(), 2);
    assert_eq!(context.length(1).unwrap(), 120);
    let asked = queries(1, 3, &workload.model);
    if context.sealed_rows(0).unwrap() == 0 {
        let answer = context.attend(0, &query_view(&asked, &workload.model), &Budget::Exact).unwrap();
        check_exact(&workload.model, 0, &workload.kv[0], 120, &asked, &answer);
    }
    drop(context);
    let left = Progress { created: true, committed: vec![20], begun: 20 };
    workload.check(&memory.after(Crash::Kill), &left, Crash::Kill, "full");
}
