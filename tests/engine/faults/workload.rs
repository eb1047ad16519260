//! A whole life of a context, the operations of which are made to fail one by one, and what must be found afterwards.

use crate::sample::{
    Kv, as_backend, faults, model, own_key_queries, queries, query_view, small_options, store_on,
};
use crate::truth::check_own_values;
use longwave::storage::fault::FaultBackend;
use longwave::storage::{Backend, Crash, Error as StorageError, MemoryBackend};
use longwave::{
    Budget, Context, Dtype, Durability, Error, LayerKind, ModelSpec, Snapshot, Store, StoreOptions,
};
use std::sync::Arc;

const LAYERS: usize = 2;
const ROWS: usize = 132;
/// Where the context is cut, and where its fork is: inside a segment.
const CUT: usize = 121;
const TWIG: usize = 70;

pub struct Workload {
    pub model: ModelSpec,
    pub kv: Vec<Kv>,
    /// Of all commits.
    pub durability: Durability,
    /// How often a call is made at most. What sealing met in the background is told one failure a call.
    pub tries: usize,
}

/// What a workload has done when it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Whether the context's creation was acknowledged.
    pub created: bool,
    /// Rows of the acknowledged commits, oldest first. Creating a context commits none.
    pub committed: Vec<usize>,
    /// Rows of a commit that was begun.
    pub begun: usize,
}

impl Progress {
    pub fn done() -> Progress {
        Progress { created: true, committed: vec![80, 92, ROWS, ROWS, CUT, ROWS], begun: ROWS }
    }

    /// The lengths that may be found.
    fn allowed(&self, durability: Durability, crash: Crash) -> Vec<usize> {
        // A power loss may bring commits back that did not wait for the device, but none before the last strict one,
        // which here is the empty one of the creation.
        let kept = if durability == Durability::Flushed && crash != Crash::Kill {
            self.committed.len() + 1
        } else {
            1
        };
        let all: Vec<usize> = [0].into_iter().chain(self.committed.iter().copied()).collect();
        all.into_iter().rev().take(kept).chain([self.begun]).collect()
    }
}

/// Asked when a call fails: whether to call again. It may look at the backend meanwhile.
pub type React<'a> = &'a mut dyn FnMut(&Error, &Progress) -> bool;

impl Workload {
    pub fn new(durability: Durability) -> Workload {
        let mut model = model([2, 2, 16, 8], Dtype::F16, LAYERS);
        model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly];
        let kv = (0..LAYERS).map(|layer| Kv::scattered(11 + layer as u64, ROWS, &model)).collect();
        Workload { model, kv, durability, tries: 2 }
    }

    /// One sealing thread: a pool for each store that is opened would take most of the time.
    pub fn options() -> StoreOptions {
        let mut options = StoreOptions::default();
        options.sealing_threads = 1;
        options
    }

    /// Create, bulk, seal, commit, decode with queries, commit (which updates the profile), reopen, decode over a seal,
    /// commit, build segments again, merge, commit, fork, cut, remove the fork, collect. Ends at the first error after which `react` does not want to go on.
    pub fn run(
        &self,
        backend: &Arc<dyn Backend>,
        react: React<'_>,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let open = || Store::on_backend(Arc::clone(backend), Self::options());
        let store = self.attempt(react, progress, open)?;
        let mut context = self.attempt(react, progress, || {
            match store.create_with("life", &self.model, small_options()) {
                // A creation that failed may have come about all the same.
                Err(Error::ContextExists { .. }) => store.context("life", &self.model),
                created => created,
            }
        })?;
        progress.created = true;
        self.append(&mut context, 0..80);
        self.attempt(react, progress, || context.seal())?;
        self.commit((&mut context, &store), react, progress)?;
        for token in 80..92 {
            self.append(&mut context, token..token + 1);
            let asked = queries(token as u64, 1, &self.model);
            self.attempt(react, progress, || {
                context.attend(0, &query_view(&asked, &self.model), &Budget::RETROINFER).map(|_| ())
            })?;
        }
        self.commit((&mut context, &store), react, progress)?;
        drop(context);
        let mut context = self.attempt(react, progress, || store.context("life", &self.model))?;
        assert_eq!(context.length(0)?, 92);
        for token in 92..ROWS {
            self.append(&mut context, token..token + 1);
        }
        self.attempt(react, progress, || context.seal())?;
        self.commit((&mut context, &store), react, progress)?;
        self.attempt(react, progress, || context.rebuild(None).map(|_| ()))?;
        self.attempt(react, progress, || context.compact(None).map(|_| ()))?;
        self.commit((&mut context, &store), react, progress)?;
        self.branch((&mut context, &store), react, progress)
    }

    /// A fork, which is cut and committed; a cut of the context itself, which then goes on; the removal of the fork, and
    /// a collection.
    fn branch(
        &self,
        (context, store): (&mut Context, &Store),
        react: React<'_>,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let mut fork = self.attempt(react, progress, || match context.fork("twig") {
            // One that failed may have come about all the same.
            Err(Error::ContextExists { .. }) => store.context("twig", &self.model),
            forked => forked,
        })?;
        self.attempt(react, progress, || fork.truncate(TWIG as u64))?;
        // Whether it is cut or not is open until the commit.
        let _ = self.attempt(react, progress, || fork.commit(self.durability));
        drop(fork);
        self.attempt(react, progress, || context.truncate(CUT as u64))?;
        self.commit((context, store), react, progress)?;
        self.append(context, CUT..ROWS);
        self.commit((context, store), react, progress)?;
        self.attempt(react, progress, || match store.remove("twig") {
            Err(Error::ContextMissing { .. }) => Ok(()),
            removed => removed,
        })?;
        self.attempt(react, progress, || store.collect(false).map(|_| ()))
    }

    fn attempt<T>(
        &self,
        react: React<'_>,
        progress: &Progress,
        mut call: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut tries = 1;
        loop {
            match call() {
                Err(error) if react(&error, progress) && tries < self.tries => tries += 1,
                other => return other,
            }
        }
    }

    pub fn append(&self, context: &mut Context, tokens: std::ops::Range<usize>) {
        self.kv.iter().enumerate().for_each(|(layer, kv)| kv.append(context, layer, tokens.clone()));
        let ids: Vec<u32> = tokens.map(|token| 3 * token as u32).collect();
        context.extend_tokens(&ids).unwrap();
    }

    fn commit(
        &self,
        (context, store): (&mut Context, &Store),
        react: React<'_>,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        progress.begun = context.length(0)? as usize;
        let mut dead = false;
        self.attempt(react, progress, || {
            if dead {
                self.reopen(context, store)?;
                dead = false;
            }
            let (before, rows) = (context.generation(), context.length(1)?);
            let mut committed = context.commit(self.durability);
            if let Err(error) = &committed {
                assert_eq!((context.generation(), context.length(1)?), (before, rows), "{error}");
                // After a sync that failed nothing but the files themselves is believed. That of a segment, which
                // was written aside, is told here as well, and is no such end.
                if matches!(
                    error,
                    Error::Storage(StorageError::Io { operation: "sync" | "sync directory", .. })
                ) {
                    match context.commit(self.durability) {
                        Err(Error::Storage(StorageError::Poisoned { .. })) => dead = true,
                        again => committed = again,
                    }
                }
            }
            committed
        })?;
        progress.committed.push(progress.begun);
        Ok(())
    }

    /// Opens a context again that no longer commits, and appends what it has lost. The lock goes with the writer.
    fn reopen(&self, context: &mut Context, store: &Store) -> Result<(), Error> {
        let (length, elsewhere) = (context.length(0)? as usize, Store::in_memory(Self::options())?);
        drop(std::mem::replace(context, elsewhere.create("aside", &self.model)?));
        *context = store.context("life", &self.model)?;
        let committed = context.length(0)? as usize;
        if committed < length {
            self.append(context, committed..length);
        } else {
            context.truncate(length as u64)?;
        }
        Ok(())
    }

    /// The store is sound, and what it holds is what was acknowledged or what was begun, whole.
    pub fn check(&self, memory: &MemoryBackend, progress: &Progress, crash: Crash, place: &str) {
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
        let (length, allowed) =
            (snapshot.length(0).unwrap() as usize, progress.allowed(self.durability, crash));
        assert!(allowed.contains(&length), "{place}: {length} rows, {progress:?}");
        self.check_content(&snapshot, place);
        match store.snapshot("twig") {
            Err(Error::ContextMissing { .. }) => {}
            twig => {
                let twig = twig.unwrap_or_else(|error| panic!("{place}: {error}"));
                let length = twig.length(0).unwrap() as usize;
                assert!([TWIG, ROWS].contains(&length), "{place}: a fork of {length} rows");
                self.check_content(&twig, place);
            }
        }
    }

    /// Every row, in its place, with its own content.
    pub fn check_content(&self, snapshot: &Snapshot, place: &str) {
        let length = snapshot.length(0).unwrap() as usize;
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
    pub fn check_goes_on(&self, memory: &MemoryBackend, place: &str) {
        let store = Store::on_backend(as_backend(memory), Self::options()).unwrap();
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
        let left = memory.after(Crash::DropUnsynced);
        let done = Progress { created: true, committed: vec![ROWS], begun: ROWS };
        // Strict: no commit before this one may come back, as after a kill.
        self.check(&left, &done, Crash::Kill, place);
        self.check_files(memory, &store, place);
        let unfinished = |file: &String| file.ends_with(".new") && !file.starts_with("prefixes");
        assert!(!memory.files().iter().any(unfinished), "{place}: {:?}", memory.files());
    }

    /// Every segment and every log is named by a manifest: without a collection, unless there was a fork.
    fn check_files(&self, memory: &MemoryBackend, store: &Store, place: &str) {
        let manifest = store.manifest("life").unwrap();
        let orphans = |named: &[String]| {
            let files = ["segments", "logs"].map(|dir| {
                let files = memory.list(dir).unwrap().into_iter();
                files
                    .map(|file| format!("{dir}/{file}"))
                    .filter(|file| !named.contains(file))
                    .collect::<Vec<_>>()
            });
            files.concat()
        };
        let id: String = manifest.context_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut left = orphans(&manifest.files("life"));
        if !memory.files().iter().any(|file| file.starts_with("shares/")) {
            left.retain(|file| file.contains(&id));
            assert_eq!(left, Vec::<String>::new(), "{place}: files that nothing names stay");
        }
        if store.contains("twig").unwrap() {
            store.remove("twig").unwrap();
        }
        store.collect(false).unwrap();
        let left = orphans(&store.manifest("life").unwrap().files("life"));
        assert_eq!(left, Vec::<String>::new(), "{place}: a collection leaves files that nothing names");
    }

    /// Verbs of the operations of the whole workload. Sealing goes on beside the writer, so the order varies a little,
    /// and with it what is at which number; that every number fails once is what counts.
    pub fn trace(&self) -> Vec<&'static str> {
        let memory = MemoryBackend::new();
        let counting = Arc::new(FaultBackend::new(as_backend(&memory), None));
        let mut progress = Progress::default();
        let backend: Arc<dyn Backend> = Arc::clone(&counting) as Arc<dyn Backend>;
        self.run(&backend, &mut |error, _| panic!("{error}"), &mut progress).unwrap();
        assert_eq!(progress, Progress::done());
        let trace = counting.trace();
        self.check(&memory, &progress, Crash::Kill, "no fault");
        assert!(trace.len() > 150);
        trace
    }
}

/// The error that the injected one was reported as: the system's, with a path, or that of a writer that failed before.
pub fn check_typed(error: &Error, kinds: &[std::io::ErrorKind], place: &str) {
    match error {
        Error::Storage(StorageError::Io { path, source, operation }) => {
            assert!(kinds.contains(&source.kind()), "{place}: {error}");
            assert!(!operation.is_empty(), "{place}: {path}");
        }
        Error::Storage(StorageError::Poisoned { .. }) => {}
        other => panic!("{place}: {other:?}"),
    }
}
