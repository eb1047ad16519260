//! A storage operation that fails, at every place of a whole life of a context, followed by every kind of crash.

use crate::sample::{
    Kv, as_backend, faults, model, own_key_queries, queries, query_view, small_options, store_on,
};
use crate::truth::{check_exact, check_own_values};
use longwave::storage::fault::{FaultBackend, Injection, InjectionKind};
use longwave::storage::{Backend, Crash, Error as StorageError, MemoryBackend};
use longwave::{Budget, Context, Dtype, Durability, Error, LayerKind, ModelSpec, Store, StoreOptions};
use std::io::ErrorKind;
use std::sync::Arc;

const LAYERS: usize = 2;
const ROWS: usize = 132;

fn spec() -> ModelSpec {
    let mut model = model([2, 2, 16, 8], Dtype::F16, LAYERS);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
    model
}

struct Workload {
    model: ModelSpec,
    kv: Vec<Kv>,
}

/// What a workload has done when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Progress {
    /// Whether the context's creation was acknowledged.
    created: bool,
    /// Rows of the last acknowledged commit, and of one that was begun.
    committed: usize,
    begun: usize,
}

impl Workload {
    fn new() -> Workload {
        let model = spec();
        let kv = (0..LAYERS).map(|layer| Kv::scattered(11 + layer as u64, ROWS, &model)).collect();
        Workload { model, kv }
    }

    /// Create, bulk, seal, commit, decode with queries, commit (which updates the profile), reopen, decode over a seal,
    /// commit, build segments again, commit. Ends at the first error, or calls again what failed if it is `stubborn`.
    fn run(&self, backend: Arc<dyn Backend>, stubborn: bool, progress: &mut Progress) -> Result<(), Error> {
        let again = |result: Result<(), Error>, call: &mut dyn FnMut() -> Result<(), Error>| match result {
            Err(_) if stubborn => call(),
            other => other,
        };
        let open = || Store::on_backend(Arc::clone(&backend), StoreOptions::default());
        let store = open().or_else(|error| if stubborn { open() } else { Err(error) })?;
        let create = || store.create_with("life", &self.model, small_options());
        let mut context = match create() {
            Ok(context) => context,
            // A creation that failed may have come about all the same.
            Err(_) if stubborn => create().or_else(|_| store.context("life", &self.model))?,
            Err(error) => return Err(error),
        };
        progress.created = true;
        self.append(&mut context, 0..80);
        let sealed = context.seal();
        again(sealed, &mut || context.seal())?;
        self.commit((&mut context, &store), stubborn, progress)?;
        for token in 80..92 {
            self.append(&mut context, token..token + 1);
            let asked = queries(token as u64, 1, &self.model);
            let attend = |context: &mut Context| {
                context.attend(0, &query_view(&asked, &self.model), &Budget::RETROINFER).map(|_| ())
            };
            let answered = attend(&mut context);
            again(answered, &mut || attend(&mut context))?;
        }
        self.commit((&mut context, &store), stubborn, progress)?;
        drop(context);
        let reopen = || store.context("life", &self.model);
        let mut context = reopen().or_else(|error| if stubborn { reopen() } else { Err(error) })?;
        assert_eq!(context.length(0)?, 92);
        for token in 92..ROWS {
            self.append(&mut context, token..token + 1);
        }
        let sealed = context.seal();
        again(sealed, &mut || context.seal())?;
        self.commit((&mut context, &store), stubborn, progress)?;
        let rebuilt = context.rebuild(None).map(|_| ());
        again(rebuilt, &mut || context.rebuild(None).map(|_| ()))?;
        self.commit((&mut context, &store), stubborn, progress)
    }

    fn append(&self, context: &mut Context, tokens: std::ops::Range<usize>) {
        self.kv.iter().enumerate().for_each(|(layer, kv)| kv.append(context, layer, tokens.clone()));
        let ids: Vec<u32> = tokens.map(|token| 3 * token as u32).collect();
        context.extend_tokens(&ids).unwrap();
    }

    /// Opens a context again that no longer commits, and appends what it has lost. The lock goes with the writer.
    fn reopen(&self, context: &mut Context, store: &Store) -> Result<(), Error> {
        let length = context.length(0)? as usize;
        let dead = std::mem::replace(context, store.create_with("aside", &self.model, small_options())?);
        drop(dead);
        let aside = std::mem::replace(context, store.context("life", &self.model)?);
        drop(aside);
        store.remove("aside")?;
        let committed = context.length(0)? as usize;
        if committed < length {
            self.append(context, committed..length);
        }
        Ok(())
    }

    fn commit(
        &self,
        (context, store): (&mut Context, &Store),
        stubborn: bool,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        progress.begun = context.length(0)? as usize;
        let (before, rows) = (context.generation(), context.length(1)?);
        if let Err(error) = context.commit(Durability::Strict) {
            assert_eq!((context.generation(), context.length(1)?), (before, rows), "{error}");
            if !stubborn {
                return Err(error);
            }
            if let Err(error) = context.commit(Durability::Strict) {
                // After a sync that failed nothing but the files themselves is believed.
                assert!(matches!(error, Error::Storage(StorageError::Poisoned { .. })), "{error}");
                self.reopen(context, store)?;
                context.commit(Durability::Strict)?;
            }
        }
        progress.committed = progress.begun;
        Ok(())
    }

    /// The store is sound, and what it holds is what was acknowledged or what was begun, whole.
    fn check(&self, memory: &MemoryBackend, progress: Progress, place: &str) {
        let backend = as_backend(memory);
        if !progress.created && !memory.files().iter().any(|file| file == "longwave.store") {
            return;
        }
        assert_eq!(faults(&backend), Vec::<String>::new(), "{place}");
        let store = store_on(&backend);
        let snapshot = match store.snapshot("life") {
            Err(Error::ContextMissing { .. }) if !progress.created => return,
            found => found.unwrap_or_else(|error| panic!("{place}: {error}")),
        };
        let length = snapshot.length(0).unwrap() as usize;
        assert!(
            [progress.committed, progress.begun].contains(&length),
            "{place}: {length} rows, {progress:?}"
        );
        let ids: Vec<u32> = (0..length as u32).map(|token| 3 * token).collect();
        assert_eq!(snapshot.tokens(), ids, "{place}");
        for (layer, kv) in self.kv.iter().enumerate().filter(|_| length > 0) {
            assert_eq!(snapshot.length(layer).unwrap() as usize, length, "{place}");
            let queries = own_key_queries(kv, &self.model, 0..length);
            let answer = snapshot.attend(layer, &query_view(&queries, &self.model), &Budget::Exact).unwrap();
            check_own_values(&self.model, kv, 0..length, &answer);
        }
    }

    /// A recovered store is written on as if nothing had happened.
    fn check_goes_on(&self, memory: &MemoryBackend, place: &str) {
        let store = store_on(&as_backend(memory));
        let mut context = match store.context("life", &self.model) {
            Err(Error::ContextMissing { .. }) => store.create_with("life", &self.model, small_options()),
            found => found,
        }
        .unwrap_or_else(|error| panic!("{place}: {error}"));
        let length = context.length(0).unwrap() as usize;
        if length < ROWS {
            self.append(&mut context, length..ROWS);
        }
        context.seal().unwrap();
        context.commit(Durability::Strict).unwrap();
        drop(context);
        let done = Progress { created: true, committed: ROWS, begun: ROWS };
        self.check(&memory.after(Crash::DropUnsynced), done, place);
        let named =
            store.manifest("life").unwrap().layers.iter().map(|layer| layer.segments.len()).sum::<usize>();
        let kept = memory.files().iter().filter(|file| file.contains(".segment")).count();
        assert_eq!(kept, named, "{place}: segments that nothing names stay");
        let unfinished = |file: &String| file.ends_with(".new") && !file.starts_with("prefixes");
        assert!(!memory.files().iter().any(unfinished), "{place}: {:?}", memory.files());
    }
}

fn kinds() -> Vec<InjectionKind> {
    let full = InjectionKind::Fail { error: ErrorKind::StorageFull };
    vec![full, InjectionKind::DoneButFails, InjectionKind::ShortWrite { written: 300 }]
}

fn crashes(at: u64) -> Vec<Crash> {
    let torn = (0..3).map(|seed| Crash::Torn { seed: seed + 3 * at });
    [Crash::Kill, Crash::DropUnsynced, Crash::KeepNames, Crash::KeepContents]
        .into_iter()
        .chain(torn)
        .collect()
}

/// Operations of the whole workload. Sealing goes on beside the writer, so the order varies a little, and with it what
/// is at which number; that every number fails once is what counts.
fn operations(workload: &Workload) -> u64 {
    let memory = MemoryBackend::new();
    let counting = Arc::new(FaultBackend::new(as_backend(&memory), None));
    let mut progress = Progress::default();
    workload.run(Arc::clone(&counting) as Arc<dyn Backend>, false, &mut progress).unwrap();
    let done = Progress { created: true, committed: ROWS, begun: ROWS };
    assert_eq!(progress, done);
    workload.check(&memory, done, "no fault");
    counting.operations()
}

#[test]
fn death_at_any_operation_leaves_the_old_state_or_the_new() {
    let workload = Workload::new();
    let operations = operations(&workload);
    let mut checked = 0;
    for at in 0..operations {
        for kind in kinds() {
            let memory = MemoryBackend::new();
            let injection = Injection { at, kind, then_dead: true };
            let backend = Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
            let mut progress = Progress::default();
            // What is removed after a commit may fail without a word, so an early end is not asked for.
            let _ = workload.run(backend, false, &mut progress);
            for crash in crashes(at) {
                let left = memory.after(crash);
                let place = format!("{kind:?} at {at}, {crash:?}");
                workload.check(&left, progress, &place);
                workload.check_goes_on(&left, &place);
                checked += 1;
            }
        }
    }
    println!("{operations} operations, {checked} recoveries");
    assert!(operations > 150);
}

#[test]
fn one_failure_anywhere_is_made_good_by_calling_again() {
    let workload = Workload::new();
    for at in 0..operations(&workload) {
        for kind in kinds() {
            let memory = MemoryBackend::new();
            let injection = Injection { at, kind, then_dead: false };
            let backend = Arc::new(FaultBackend::new(as_backend(&memory), Some(injection)));
            let mut progress = Progress::default();
            let place = format!("{kind:?} at {at}");
            workload.run(backend, true, &mut progress).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(progress, Progress { created: true, committed: ROWS, begun: ROWS }, "{place}");
            for crash in crashes(at) {
                workload.check(&memory.after(crash), progress, &format!("{place}, {crash:?}"));
            }
        }
    }
}

#[test]
fn rows_stay_readable_while_the_disk_is_full() {
    let workload = Workload::new();
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
    let left = Progress { created: true, committed: 20, begun: 20 };
    workload.check(&memory.after(Crash::Kill), left, "full");
}
