//! Stores that earlier builds wrote, one for each format version, and one for each later version of a part of it,
//! which must be read for ever.
//!
//! `tests/fixtures/v1/` is a store, `tests/fixtures/v1.expected` what it must answer. To make one of a new version: run
//! `LONGWAVE_WRITE_FIXTURE=NAME cargo test --test engine fixtures::write -- --ignored`, and never touch the old ones.

use crate::sample::{
    Kv, as_backend, bits, faults, logits, model, own_key_queries, queries, query_view, small_options,
    store_on,
};
use crate::truth::check_exact;
use longwave::storage::{Backend, ColumnKind, Crash, FileBackend, MemoryBackend};
use longwave::{
    AuditOptions, Budget, ClusterOptions, Dtype, Durability, Error, Forgetting, LayerKind, ModelSpec,
    Rebuild, RowForm, Snapshot, Store, StoreOptions,
};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Each with the number of layers that it is asked.
const VERSIONS: [(&str, usize); 6] =
    [("v1", 4), ("v2", 7), ("v2-state2", 7), ("v2-ladder2", 7), ("v3", 10), ("v3-segment2", 13)];
pub const NEWEST: &str = "v3-segment2";
/// Query positions that are asked of every layer.
const ASKED: usize = 2;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// All files of a stored fixture, in memory.
pub fn fixture(version: &str) -> MemoryBackend {
    let root = directory().join(version);
    let memory = MemoryBackend::new();
    let mut dirs = vec![String::new()];
    let mut at = 0;
    while let Some(dir) = dirs.get(at).cloned() {
        at += 1;
        for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if entry.file_type().unwrap().is_dir() {
                memory.create_dir_all(&path).unwrap();
                dirs.push(path);
            } else {
                memory.replace(&path, &std::fs::read(entry.path()).unwrap()).unwrap();
            }
        }
    }
    dirs.iter().for_each(|dir| memory.sync_dir(dir).unwrap());
    memory
}

/// Three kinds of layer, token ids, a sample, sinks logits, all budgets learnt from.
fn small() -> ModelSpec {
    let mut model = model([2, 4, 16, 8], Dtype::F16, 4);
    model.layer_kinds =
        vec![LayerKind::Clustered, LayerKind::SlidingWindow(40), LayerKind::Absent, LayerKind::ExactOnly];
    model.sink_logits = vec![logits(1, &model), vec![], vec![], vec![]];
    model
}

/// Another shape and type, no token ids, no ladder, a soft-cap.
fn plain() -> ModelSpec {
    let mut model = model([3, 3, 8, 24], Dtype::F32, 1);
    model.softcap = Some(20.0);
    model
}

/// Writes the store of the version that this build writes. It does nothing unless it is asked by name.
#[test]
#[ignore = "writes the fixture of a new format version"]
fn write() {
    let Some(version) = std::env::var_os("LONGWAVE_WRITE_FIXTURE") else { return };
    let version = version.into_string().unwrap();
    let root = directory().join(&version);
    assert!(!root.exists(), "{} is there: fixtures stay as they are", root.display());
    let mut options = StoreOptions::default();
    options.audits = AuditOptions::inline(1.0);
    let store = Store::open(&root, options).unwrap();
    write_small(&store);
    write_plain(&store);
    write_branch(&store);
    write_forgetful(&store);
    write_reduced(&store);
    let mut text = String::new();
    for name in store.contexts().unwrap() {
        describe(&store.snapshot(&name).unwrap(), &mut text);
    }
    std::fs::write(directory().join(format!("{version}.expected")), text).unwrap();
}

fn write_small(store: &Store) {
    let spec = small();
    let mut options = small_options().with_sample_positions(3);
    options.clusters = ClusterOptions { tokens_per_cluster: 6, ..ClusterOptions::ladder() };
    let mut context = store.create_with("small", &spec, options).unwrap();
    let layers: Vec<usize> = vec![0, 1, 3];
    let kv: Vec<Kv> = (0..4).map(|layer| Kv::new(70 + layer, 80, &spec)).collect();
    for &layer in &layers {
        kv[layer].append(&mut context, layer, 0..60);
    }
    context.seal().unwrap();
    context.extend_tokens(&(0..60).map(|token| 7 + 3 * token).collect::<Vec<_>>()).unwrap();
    context.commit(Durability::Strict).unwrap();
    for token in 60..80 {
        for &layer in &layers {
            kv[layer].append(&mut context, layer, token..token + 1);
            let asked = queries(token as u64, 1, &spec);
            context.attend(layer, &query_view(&asked, &spec), &Budget::Tau(0.01)).unwrap();
        }
        context.extend_tokens(&[7 + 3 * token as u32]).unwrap();
    }
    context.commit(Durability::Strict).unwrap();
    let snapshot = context.snapshot().unwrap();
    for &layer in &layers {
        let asked = queries(layer as u64, ASKED, &spec);
        let answer = snapshot.attend(layer, &query_view(&asked, &spec), &Budget::Exact).unwrap();
        check_exact(&spec, layer, &kv[layer], 80, &asked, &answer);
    }
}

fn write_plain(store: &Store) {
    let spec = plain();
    let mut context = store.create_with("plain", &spec, small_options().with_ladder(false)).unwrap();
    let kv = Kv::new(90, 41, &spec);
    kv.append(&mut context, 0, 0..41);
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    let asked = queries(0, ASKED, &spec);
    let answer = context.attend(0, &query_view(&asked, &spec), &Budget::Exact).unwrap();
    check_exact(&spec, 0, &kv, 41, &asked, &answer);
}

/// A fork that was cut inside a segment and went on: logs of two contexts, one of them no longer to its end.
fn write_branch(store: &Store) {
    let spec = small();
    let mut branch = store.fork("small", "branch", &spec, None).unwrap();
    branch.truncate(47).unwrap();
    let kv: Vec<Kv> = (0..4).map(|layer| Kv::new(170 + layer, 52, &spec)).collect();
    for layer in [0, 1, 3] {
        kv[layer].append(&mut branch, layer, 47..52);
    }
    branch.extend_tokens(&[901, 902, 903, 904, 905]).unwrap();
    branch.commit(Durability::Strict).unwrap();
    let manifest = store.manifest("branch").unwrap();
    assert!(manifest.layers[0].cuts.iter().any(|cut| cut.end == 47), "{:?}", manifest.layers[0]);
    assert!(manifest.row_logs.len() > 1 && manifest.row_logs[0].end == 47, "{:?}", manifest.row_logs);
    store.pin("branch", true).unwrap();
}

/// A context that has dropped rows of its one clustered layer, and demoted others.
fn write_forgetful(store: &Store) {
    let spec = small();
    let options = small_options().with_forgetting(Forgetting::Drop { steps: 6 });
    let mut context = store.create_with("forgetful", &spec, options).unwrap();
    let mut kv: Vec<Kv> = (0..4).map(|layer| Kv::new(270 + layer, 130, &spec)).collect();
    kv[0] = Kv::scattered(271, 130, &spec);
    for layer in [0, 1, 3] {
        kv[layer].append(&mut context, layer, 0..130);
    }
    context.extend_tokens(&(0..130).map(|token| 2 + 5 * token).collect::<Vec<_>>()).unwrap();
    context.seal().unwrap();
    for step in 0..14 {
        let row = [20, 21, 100][step % 3];
        let asked: Vec<f32> = own_key_queries(&kv[0], &spec, row..row + 1).iter().map(|x| x * 0.1).collect();
        context.attend(0, &query_view(&asked, &spec), &Budget::Tau(0.004)).unwrap();
    }
    assert!(context.forget(None).unwrap() > 20);
    context.commit(Durability::Strict).unwrap();
    let forgotten = context.forgotten(0).unwrap();
    assert!(forgotten.clusters_demoted > 0 && forgotten.rows_dropped < 110, "{forgotten:?}");
}

/// A context whose layers keep their rows as codes alone, in 8 bits, and in 8 bits without an index.
fn write_reduced(store: &Store) {
    let spec = small();
    let mut options = small_options().with_rebuild(Rebuild::Never).with_layer_rows(vec![
        RowForm::Codes,
        RowForm::EightBits,
        RowForm::Full,
        RowForm::EightBits,
    ]);
    options.clusters = ClusterOptions { tokens_per_cluster: 6, ..ClusterOptions::ladder() };
    let mut context = store.create_with("reduced", &spec, options).unwrap();
    for layer in [0, 1, 3] {
        context.observe_at(layer, 0, &query_view(&queries(8, 9, &spec), &spec)).unwrap();
        Kv::new(370 + layer as u64, 80, &spec).append(&mut context, layer, 0..80);
    }
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    assert_eq!(forms(&context.snapshot().unwrap(), 0), [RowForm::Codes; 2]);
}

fn forms(snapshot: &Snapshot, layer: usize) -> Vec<RowForm> {
    snapshot.segments(layer).unwrap().iter().map(|segment| segment.row_form()).collect()
}

fn hex(numbers: impl IntoIterator<Item = u32>) -> String {
    numbers.into_iter().map(|number| format!(" {number:x}")).collect()
}

fn numbers(words: &str) -> Vec<u32> {
    words.split_whitespace().map(|word| u32::from_str_radix(word, 16).unwrap()).collect()
}

fn present_layers(snapshot: &Snapshot) -> Vec<usize> {
    let kinds = 0..snapshot.model().layers;
    kinds.filter(|&layer| snapshot.model().layer_kind(layer) != LayerKind::Absent).collect()
}

/// What a snapshot says, a line a fact, numbers in hexadecimal: `ask LAYER queries : output and lse`.
fn describe(snapshot: &Snapshot, text: &mut String) {
    writeln!(text, "context {}", snapshot.name()).unwrap();
    writeln!(text, "tokens{}", hex(snapshot.tokens().iter().copied())).unwrap();
    for layer in present_layers(snapshot) {
        writeln!(text, "rows {layer} {}", snapshot.length(layer).unwrap()).unwrap();
        let forms: Vec<String> = forms(snapshot, layer).iter().map(RowForm::to_string).collect();
        writeln!(text, "forms {layer} {}", forms.join(" ")).unwrap();
        for (position, sampled) in snapshot.sampled_queries(layer).unwrap() {
            let sampled = hex(sampled.iter().map(|x| u32::from(x.to_bits())));
            writeln!(text, "sampled {layer} {position} :{sampled}").unwrap();
        }
        let asked = queries(layer as u64, ASKED, snapshot.model());
        let answer = snapshot.attend(layer, &query_view(&asked, snapshot.model()), &Budget::Exact).unwrap();
        let asked = hex(asked.iter().map(|x| x.to_bits()));
        writeln!(text, "ask {layer}{asked} :{}", hex(bits(&answer))).unwrap();
    }
}

/// Token ids, samples and lengths are what was written; answers are within the rounding of another instruction set.
fn check(store: &Store, expected: &str) -> usize {
    let mut snapshot: Option<Snapshot> = None;
    let mut answers = 0;
    for line in expected.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "context" {
            snapshot = Some(store.snapshot(rest).unwrap());
            continue;
        }
        let snapshot = snapshot.as_ref().unwrap();
        let (left, right) = rest.split_once(':').unwrap_or((rest, ""));
        let (layer, left) = left.split_once(' ').unwrap_or((left, ""));
        match word {
            "tokens" => assert_eq!(snapshot.tokens(), numbers(rest), "{}", snapshot.name()),
            "rows" => {
                assert_eq!(snapshot.length(layer.parse().unwrap()).unwrap().to_string(), left, "{line}");
            }
            "forms" => {
                let found: Vec<String> =
                    forms(snapshot, layer.parse().unwrap()).iter().map(RowForm::to_string).collect();
                assert_eq!(found.join(" "), left, "{line}");
            }
            "sampled" => {
                let position: u64 = left.trim().parse().unwrap();
                let sampled = snapshot.sampled_queries(layer.parse().unwrap()).unwrap();
                let (_, found) = sampled.iter().find(|(at, _)| *at == position).unwrap();
                let found: Vec<u32> = found.iter().map(|x| u32::from(x.to_bits())).collect();
                assert_eq!(found, numbers(right));
            }
            "ask" => {
                let asked: Vec<f32> = numbers(left).into_iter().map(f32::from_bits).collect();
                check_answer(snapshot, layer.parse().unwrap(), &asked, &numbers(right));
                answers += 1;
            }
            other => panic!("{other}"),
        }
    }
    answers
}

fn check_answer(snapshot: &Snapshot, layer: usize, asked: &[f32], expected: &[u32]) {
    let view = query_view(asked, snapshot.model());
    let off = |budget: &Budget| {
        let found = bits(&snapshot.attend(layer, &view, budget).unwrap());
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().zip(expected).map(|(f, e)| (f32::from_bits(*f), f32::from_bits(*e)));
        pairs.map(|(found, expected)| (found - expected).abs() / (1.0 + expected.abs())).fold(0.0, f32::max)
    };
    let exact = off(&Budget::Exact);
    assert!(exact <= 2e-6, "{exact} off in layer {layer} of {}", snapshot.name());
    let segments = snapshot.segments(layer).unwrap();
    if segments.first().is_some_and(|first| first.segment().column(ColumnKind(0x110)).is_ok()) {
        // The ladder is there and readable: nothing left out, and little.
        let (all, most) = (off(&Budget::Tau(0.0)), off(&Budget::Tau(0.001)));
        // Of codes, the sketches below them are scored by tables of 8 bits.
        let is_coded = forms(snapshot, layer).contains(&RowForm::Codes);
        assert!(
            all <= if is_coded { 0.02 } else { 1e-5 } && most < 0.5,
            "{all} and {most} off in layer {layer}"
        );
    }
}

#[test]
fn stores_of_all_versions_answer_as_they_did() {
    for (version, answers) in VERSIONS {
        let memory = fixture(version);
        assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new(), "{version}");
        let expected = std::fs::read_to_string(directory().join(format!("{version}.expected"))).unwrap();
        let store = store_on(&as_backend(&memory));
        assert_eq!(check(&store, &expected), answers, "{version}");
        // The test itself must be able to fail.
        let other = expected.replacen("tokens 7 a", "tokens 7 b", 1);
        assert!(
            other != expected
                && std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&store, &other))).is_err()
        );
    }
}

#[test]
fn stores_of_all_versions_are_written_on() {
    for (version, _) in VERSIONS {
        let memory = fixture(version);
        let (store, spec) = (store_on(&as_backend(&memory)), small());
        let mut context = store.context("small", &spec).unwrap();
        let kv: Vec<Kv> = (0..4).map(|layer| Kv::new(70 + layer, 120, &spec)).collect();
        for layer in [0, 1, 3] {
            kv[layer].append(&mut context, layer, 80..120);
        }
        context.extend_tokens(&(80..120).collect::<Vec<_>>()).unwrap();
        context.seal().unwrap();
        context.commit(Durability::Strict).unwrap();
        drop(context);
        let left = memory.after(Crash::DropUnsynced);
        assert_eq!(faults(&as_backend(&left)), Vec::<String>::new(), "{version}");
        let snapshot = store_on(&as_backend(&left)).snapshot("small").unwrap();
        for layer in [0, 1, 3] {
            let asked = queries(5, 3, &spec);
            let answer = snapshot.attend(layer, &query_view(&asked, &spec), &Budget::Exact).unwrap();
            check_exact(&spec, layer, &kv[layer], 120, &asked, &answer);
        }
    }
}

/// What a reader, a writer of `small` and `fsck` say of a store.
fn said(memory: &MemoryBackend) -> Vec<String> {
    let open = || Store::on_backend(as_backend(memory), StoreOptions::default());
    let found = [
        open().and_then(|store| store.snapshot("small")).err(),
        open().and_then(|store| store.context("small", &small())).err(),
    ];
    found.into_iter().map(|error| error.expect("an error").to_string()).collect()
}

/// Version and byte-order mark of a prologue, its checksum put right.
fn with_prologue(memory: &MemoryBackend, file: &str, version: u16, foreign: bool) -> MemoryBackend {
    let changed = memory.after(Crash::Kill);
    let mut bytes = memory.contents(file).unwrap();
    bytes[10..12].copy_from_slice(&version.to_le_bytes());
    if foreign {
        bytes[8..10].reverse();
    }
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..12]) as u32;
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    changed.replace(file, &bytes).unwrap();
    changed
}

#[test]
fn another_version_byte_order_or_a_missing_file_is_named_as_such() {
    let memory = fixture(NEWEST);
    let manifest = store_on(&as_backend(&memory)).manifest("small").unwrap();
    let log = |logs: &[longwave::storage::LogRecord]| logs.last().unwrap().path("small");
    let segment = format!("segments/{}", manifest.layers[3].segments[0].file);
    let files = [
        "longwave.store".to_string(),
        "contexts/small/manifest".into(),
        log(&manifest.row_logs),
        log(&manifest.meta_logs),
        segment,
    ];
    for file in &files {
        for (version, word) in [(0, "older"), (9, "newer")] {
            let newest = match file.as_str() {
                file if file.ends_with("manifest") => 3,
                file if file.ends_with(".segment") => 2,
                _ => 1,
            };
            let expected = format!(
                "{file}: format version {version} is {word} than the supported versions 1 to {newest}"
            );
            assert_eq!(said(&with_prologue(&memory, file, version, false)), [expected.clone(), expected]);
        }
        let expected =
            format!("{file}: written in big-endian byte order; only little-endian files can be read");
        assert_eq!(said(&with_prologue(&memory, file, 1, true)), [expected.clone(), expected]);
    }
    for file in &files[2..] {
        let damaged = memory.after(Crash::Kill);
        damaged.remove(file).unwrap();
        let expected = format!("{file}: no such file");
        assert_eq!(said(&damaged), [expected.clone(), expected.clone()]);
        let found = faults(&as_backend(&damaged));
        assert_eq!(found, [format!("{file}: missing")]);
    }
}

#[test]
fn another_model_is_told_what_differs() {
    let memory = fixture(NEWEST);
    let store = store_on(&as_backend(&memory));
    let refused = |change: &dyn Fn(&mut ModelSpec)| {
        let mut other = small();
        change(&mut other);
        match store.context("small", &other) {
            Err(error @ Error::ModelMismatch { .. }) => error.to_string(),
            found => panic!("{found:?}"),
        }
    };
    let weights = refused(&|model| model.identity.weights[31] ^= 1);
    assert!(
        weights.starts_with("context small was made by another model: weights digest is 0303"),
        "{weights}"
    );
    let rope = refused(&|model| model.identity.rope = "theta 500000".into());
    assert!(rope.contains("rope") && rope.contains("theta 500000"), "{rope}");
    let dims = refused(&|model| model.value_dim = 16);
    assert!(dims.contains("value_dim"), "{dims}");
    assert!(store.context("small", &small()).is_ok());
}

/// No path of the machine that wrote a store is in its files.
#[test]
fn a_store_can_be_moved() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("first-place");
    let backend = FileBackend::new(&root);
    for file in fixture(NEWEST).files() {
        let dir = file.rsplit_once('/').map_or("", |(dir, _)| dir);
        backend.create_dir_all(dir).unwrap();
        backend.create_new(&file).unwrap().write_all(&fixture(NEWEST).contents(&file).unwrap()).unwrap();
    }
    let store = Store::open(&root, StoreOptions::default()).unwrap();
    let spec = small();
    let mut context = store.context("small", &spec).unwrap();
    for layer in [0, 1, 3] {
        Kv::new(layer as u64, 110, &spec).append(&mut context, layer, 80..110);
    }
    context.extend_tokens(&[5; 30]).unwrap();
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    let asked = queries(5, 3, &spec);
    let answer = context.attend(0, &query_view(&asked, &spec), &Budget::Exact).unwrap();
    drop((context, store));
    let moved = place.path().join("second-place");
    std::fs::rename(&root, &moved).unwrap();
    let store = Store::open(&moved, StoreOptions::default()).unwrap();
    let again =
        store.snapshot("small").unwrap().attend(0, &query_view(&asked, &spec), &Budget::Exact).unwrap();
    assert_eq!(bits(&again), bits(&answer));
    let disk: Arc<dyn Backend> = Arc::new(FileBackend::new(&moved));
    assert_eq!(faults(&disk), Vec::<String>::new());
    for file in fixture(NEWEST).files() {
        let Ok(bytes) = std::fs::read(moved.join(&file)) else { continue };
        assert!(!bytes.windows(11).any(|window| window == b"first-place"), "{file}");
    }
}
