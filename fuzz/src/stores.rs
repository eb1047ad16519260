//! Whole contexts: what a manifest carries for the engine, what its logs say, and answers from damaged files.

use crate::golden;
use crate::reseal::reseal;
use longwave::{Budget, LayerKind, Snapshot, Store, StoreOptions, TensorView};
use longwave_storage::{
    Backend, Crash, Durability, Manifest, MemoryBackend, PREFIXES_FILE, StateRecord, context_dir,
    write_manifest,
};
use std::sync::{Arc, OnceLock};

const NAME: &str = "small";

fn open(memory: &MemoryBackend) -> Result<Store, longwave::Error> {
    Store::on_backend(Arc::new(memory.clone()) as Arc<dyn Backend>, StoreOptions::default())
}

fn golden_manifest() -> &'static Manifest {
    static MANIFEST: OnceLock<Manifest> = OnceLock::new();
    MANIFEST.get_or_init(|| {
        open(&golden()).and_then(|store| store.manifest(NAME)).expect("the fixture has this context")
    })
}

thread_local! {
    /// One store a thread: opening one for every input would take most of the time.
    static STORE: (MemoryBackend, Store) = {
        let memory = golden();
        let store = open(&memory).expect("the fixture opens");
        (memory, store)
    };
}

/// Opens the context with another manifest, which is newer than the one that is there.
fn with_manifest(manifest: &Manifest, look: impl FnOnce(&Snapshot)) {
    STORE.with(|(memory, store)| {
        let manifest = &Manifest { generation: manifest.generation + 1, ..manifest.clone() };
        if write_manifest(memory, &context_dir(NAME), manifest, Durability::None).is_err() {
            return;
        }
        // Where it cannot be opened, the durable one counts.
        if let Ok(snapshot) = store.snapshot(NAME) {
            look(&snapshot);
        }
    });
}

/// Kinds of state.
const KINDS: u8 = 5;

/// A kind (1 to 5) and a version (1 or 2), then the state of the context of this kind. Answers that use it come about, or are an error.
pub(crate) fn state(bytes: &[u8]) {
    let Some((kind, state)) = bytes.split_first() else { return };
    let mut manifest = golden_manifest().clone();
    let (kind, version) = (1 + u32::from(kind % KINDS), 1 + u32::from(kind / KINDS % 2));
    let record = StateRecord { kind, version, bytes: state.to_vec() };
    manifest.state = vec![record];
    with_manifest(&manifest, |snapshot| {
        let _ = (snapshot.calibration(0), snapshot.spending(0));
        let from_disk = Budget::FromDisk { tau: 0.01, bytes: 8192 };
        let budgets = [Budget::Error { target: 0.05, confidence: 0.95 }, Budget::Bytes(0.3), from_disk];
        ask(snapshot, 0, &budgets);
    });
}

pub(crate) fn state_seeds() -> Vec<Vec<u8>> {
    let store = open(&golden()).expect("the fixture opens");
    let of = |name: &str| store.manifest(name).expect("the fixture has this context").state;
    let records = [NAME, "forgetful", "reduced"].into_iter().flat_map(of);
    records
        .map(|record| {
            let (kind, version) = (record.kind as u8, record.version as u8);
            [&[kind.wrapping_sub(1) + KINDS * version.wrapping_sub(1)][..], &record.bytes].concat()
        })
        .collect()
}

/// Which log, then its records: they are taken with their checksums put right, and all of them count.
pub(crate) fn replay(bytes: &[u8]) {
    let Some((which, records)) = bytes.split_first() else { return };
    let mut manifest = golden_manifest().clone();
    let log = if which & 1 == 0 { manifest.row_logs.last_mut() } else { manifest.meta_logs.last_mut() };
    let Some(log) = log else { return };
    let path = log.path(NAME);
    let original = STORE.with(|(memory, _)| memory.contents(&path)).expect("the fixture has this log");
    let mut changed = [&original[..96], records].concat();
    reseal(&path, &mut changed);
    log.len = changed.len() as u64;
    let replace = |bytes: &[u8]| {
        STORE.with(|(memory, _)| memory.replace(&path, bytes).expect("a plain name"));
    };
    replace(&changed);
    with_manifest(&manifest, |snapshot| {
        let tokens = snapshot.tokens().len() as u64;
        assert!(tokens == 0 || Ok(tokens) == snapshot.length(0).map_err(|_| ()));
    });
    replace(&original);
}

pub(crate) fn replay_seeds() -> Vec<Vec<u8>> {
    let (memory, manifest) = (golden(), golden_manifest());
    let logs = manifest.row_logs.last().into_iter().chain(manifest.meta_logs.last()).zip(0..);
    logs.map(|(log, which)| {
        let bytes = memory.contents(&log.path(NAME)).expect("the fixture has this log");
        [&[which][..], &bytes[96..log.len as usize]].concat()
    })
    .collect()
}

/// Records of the index of prefixes, all of which count: what they say is searched, and no context is found that does not
/// begin so.
pub(crate) fn prefixes(bytes: &[u8]) {
    thread_local!(static GOLDEN: MemoryBackend = golden());
    let memory = GOLDEN.with(|golden| golden.after(Crash::Kill));
    let mut changed = [&prefix_header()[..], bytes].concat();
    reseal(PREFIXES_FILE, &mut changed);
    memory.replace(PREFIXES_FILE, &changed).expect("a plain name");
    let store = open(&memory).expect("the index is advice");
    let snapshot = store.snapshot(NAME).expect("the index is advice");
    for ids in [snapshot.tokens(), &snapshot.tokens()[..3], &[7, 10, 14, 16], &[1; 200]] {
        let Ok(Some(found)) = store.match_prefix(snapshot.model(), ids) else { continue };
        let named = store.snapshot(&found.context).expect("a context that is there");
        assert!(found.length <= ids.len() as u64 && found.length <= named.tokens().len() as u64, "{found:?}");
        // What is opened is compared with the context's own ids, whatever the index said of them.
        let fork = store.open_prefix(&found, "fuzzed", snapshot.model(), ids).expect("a prefix of a context");
        assert_eq!(fork.tokens(), &ids[..fork.tokens().len()]);
        drop(fork);
        store.remove("fuzzed").expect("it was made");
    }
}

/// Header of the golden index of prefixes.
fn prefix_header() -> Vec<u8> {
    golden().contents(PREFIXES_FILE).expect("the fixture has this file")[..96].to_vec()
}

pub(crate) fn prefixes_seeds() -> Vec<Vec<u8>> {
    let memory = golden();
    vec![memory.contents(PREFIXES_FILE).expect("the fixture has this file")[96..].to_vec()]
}

fn files() -> &'static Vec<String> {
    static FILES: OnceLock<Vec<String>> = OnceLock::new();
    FILES.get_or_init(|| golden().files().into_iter().filter(|file| !file.ends_with("lock")).collect())
}

/// Which file of the store, then what lies there instead, checksums put right: whatever still opens is checked and
/// asked with every method.
pub(crate) fn context(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let path = &files()[usize::from(*which) % files().len()];
    let mut changed = bytes.to_vec();
    reseal(path, &mut changed);
    thread_local!(static GOLDEN: MemoryBackend = golden());
    let memory = GOLDEN.with(|golden| golden.after(Crash::Kill));
    memory.replace(path, &changed).expect("a plain name");
    let Ok(store) = open(&memory) else { return };
    let _ = store.check(None);
    for name in store.contexts().unwrap_or_default() {
        let Ok(snapshot) = store.snapshot(&name) else { continue };
        let budgets = [
            Budget::Exact,
            Budget::Tau(0.0),
            Budget::Tau(0.02),
            Budget::RetroInfer { retrieve: 0.3, estimate: 0.4 },
        ];
        let _ = store.match_prefix(snapshot.model(), &[7, 10, 13, 16]);
        for layer in 0..snapshot.model().layers {
            if snapshot.model().layer_kind(layer) != LayerKind::Absent {
                ask(&snapshot, layer, &budgets);
            }
        }
    }
}

pub(crate) fn context_seeds() -> Vec<Vec<u8>> {
    let memory = golden();
    let seed = |(which, path): (usize, &String)| {
        [&[which as u8][..], &memory.contents(path).expect("the fixture has this file")].concat()
    };
    files().iter().enumerate().map(seed).collect()
}

/// Asks two queries. An error is an answer, too.
fn ask(snapshot: &Snapshot, layer: usize, budgets: &[Budget]) {
    let model = snapshot.model();
    let (heads, dim) = (model.query_heads, model.key_dim);
    // A model that a damaged manifest makes up may be of any size.
    if heads * dim > 1 << 16 || model.layers > 64 {
        return;
    }
    let queries: Vec<f32> = (0..2 * heads * dim).map(|at| ((at * 37 % 23) as f32 - 11.0) * 0.2).collect();
    let queries = TensorView::token_major(&queries[..], 2, heads, dim);
    for budget in budgets {
        if let Ok(answer) = snapshot.attend(layer, &queries, budget) {
            assert_eq!(answer.output.len(), 2 * heads * model.value_dim);
        }
    }
}
