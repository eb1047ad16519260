//! Bytes on disk that are not what was written: reported or harmless, never served.

use crate::sample::{
    Kv, UNEQUAL, as_backend, bits, faults, is_full, logits, model, queries, query_view, small_options,
    store_on,
};
use longwave::storage::{
    Backend, ColumnKind, Crash, Expected, FileBackend, MemoryBackend, NewColumn, Segment, segment_path,
    write_segment,
};
use longwave::{Budget, Dtype, Durability, Error, LayerKind, ModelSpec, RowForm, Store, StoreOptions};
use std::sync::Arc;

fn spec() -> ModelSpec {
    let mut model = model([2, 4, 8, 16], Dtype::F16, 2);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::SlidingWindow(60)];
    model.sink_logits = vec![logits(1, &model), vec![]];
    model
}

/// A committed store with everything in it: both kinds of segment, tails, token ids, sampled queries.
fn small_store() -> MemoryBackend {
    store_of([RowForm::Full; 2])
}

/// The same, its layers' rows kept in these forms.
fn store_of(forms: [RowForm; 2]) -> MemoryBackend {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let model = spec();
    let options = small_options().with_sample_positions(3).with_layer_rows(forms.to_vec());
    let mut context = store.create_with("small", &model, options).unwrap();
    for layer in 0..2 {
        let kv = Kv::new(layer as u64, 60, &model);
        kv.append(&mut context, layer, 0..50);
        context.seal().unwrap();
        kv.append(&mut context, layer, 50..60);
        context.observe(layer, &query_view(&queries(1, 20, &model), &model)).unwrap();
    }
    context.extend_tokens(&(500..560).collect::<Vec<_>>()).unwrap();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    memory
}

/// All that a store says: answers of every layer and method, token ids, sampled queries.
type Content = (Vec<Vec<u32>>, Vec<u32>, Vec<u16>, String);

fn content(store: &Store) -> Result<Content, Error> {
    let snapshot = store.snapshot("small")?;
    let mut answers = Vec::new();
    for layer in 0..2 {
        let queries = queries(3 + layer as u64, 4, snapshot.model());
        for budget in [Budget::Exact, Budget::RetroInfer { retrieve: 0.3, estimate: 0.5 }, Budget::Tau(0.005)]
        {
            // Only layer 0 has a ladder; the other is exact whatever is asked.
            answers.push(bits(&snapshot.attend(layer, &query_view(&queries, snapshot.model()), &budget)?));
        }
    }
    let samples = (0..2).map(|layer| snapshot.sampled_queries(layer)).collect::<Result<Vec<_>, _>>()?;
    let samples = samples.into_iter().flatten().flat_map(|(position, queries)| {
        queries.iter().map(|x| x.to_bits()).chain([*position as u16]).collect::<Vec<_>>()
    });
    Ok((answers, snapshot.tokens().to_vec(), samples.collect(), format!("{:?}", snapshot.model())))
}

fn open(memory: &MemoryBackend) -> Result<Content, Error> {
    content(&Store::on_backend(as_backend(memory), StoreOptions::default())?)
}

/// Damage to one file: either an error, or what was written and a fault in the report of `fsck`. Gives whether it was
/// served.
fn judge(memory: &MemoryBackend, golden: &Content, file: &str, what: &str) -> bool {
    let found = faults(&as_backend(memory));
    assert!(found.iter().all(|fault| fault.starts_with(file)), "{what}: blamed was {found:?}");
    match open(memory) {
        Err(Error::Storage(_)) => {
            assert!(!found.is_empty(), "{what}: refused, but fsck is clean");
            false
        }
        Err(other) => panic!("{what}: {other}"),
        Ok(content) => {
            assert!(content == *golden, "{what}: served something else");
            assert!(!found.is_empty(), "{what}: served, and fsck is clean");
            true
        }
    }
}

/// No answer depends on a profile: one that is damaged is done without, and reported.
/// The files that `fsck` vouches for: not the locks, nor what is made anew when it is torn, or means nothing.
fn checked(memory: &MemoryBackend) -> Vec<String> {
    let mut files = memory.files();
    files.retain(|file| !["lock", "prefixes.log", "/used"].iter().any(|end| file.ends_with(end)));
    files
}

fn is_profile(file: &str) -> bool {
    file.starts_with("profiles/")
}

#[test]
fn any_flipped_byte_is_reported_and_never_served() {
    flip_every_byte(&small_store());
}

#[test]
fn nor_is_one_where_rows_are_not_kept_in_full() {
    let memory = store_of([RowForm::Codes, RowForm::EightBits]);
    let store = store_on(&as_backend(&memory));
    let snapshot = store.snapshot("small").unwrap();
    for (layer, form) in [(0, RowForm::Codes), (1, RowForm::EightBits)] {
        assert_eq!(snapshot.segments(layer).unwrap()[0].row_form(), form);
    }
    flip_every_byte(&memory);
}

fn flip_every_byte(memory: &MemoryBackend) {
    let golden = open(memory).unwrap();
    assert_eq!(faults(&as_backend(memory)), Vec::<String>::new());
    let files = checked(memory);
    let mut work: Vec<(String, usize, u8)> = Vec::new();
    for file in &files {
        let len = memory.contents(file).unwrap().len();
        // Every bit in turn, over the bytes of a file; all of them when the full figures are asked for.
        let masks = |at: usize| {
            if is_full() { (0..8).map(|bit| 1 << bit).chain([0xff]).collect() } else { vec![1u8 << (at % 8)] }
        };
        work.extend(
            (0..len)
                .flat_map(|at| masks(at).into_iter().map(move |mask| (at, mask)))
                .map(|(at, mask)| (file.clone(), at, mask)),
        );
    }
    let kinds = ["longwave.store", "manifest", ".rows.log", ".meta.log", ".segment"];
    assert!(kinds.iter().all(|kind| files.iter().any(|file| file.ends_with(kind))), "{files:?}");
    assert!(files.iter().any(|file| is_profile(file)), "{files:?}");
    let served = std::thread::scope(|scope| {
        let half = work.len() / 2;
        let threads: Vec<_> = [&work[..half], &work[half..]]
            .map(|part| {
                let (memory, golden) = (memory.after(Crash::Kill), &golden);
                scope.spawn(move || {
                    let flip = |(file, at, mask): &(String, usize, u8)| {
                        let original = memory.contents(file).unwrap();
                        let mut bytes = original.clone();
                        bytes[*at] ^= mask;
                        memory.replace(file, &bytes).unwrap();
                        let served = judge(&memory, golden, file, &format!("{file}, byte {at}"));
                        memory.replace(file, &original).unwrap();
                        served
                    };
                    part.iter().filter(|place| flip(place)).count()
                })
            })
            .into_iter()
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    println!(
        "damages: {} (flipped bytes; {served} in paddings and unread columns, the others refused)",
        work.len()
    );
    assert!(served < work.len() && work.len() > 20_000);
}

#[test]
fn files_cut_short_or_gone_are_reported_and_never_served() {
    let memory = small_store();
    let golden = open(&memory).unwrap();
    let mut cuts = 0;
    for file in checked(&memory) {
        let bytes = memory.contents(&file).unwrap();
        let step = if is_full() { 1 } else { (bytes.len() / 60).max(1) };
        for len in (0..bytes.len()).step_by(step).chain([bytes.len() - 1]) {
            let damaged = memory.after(Crash::Kill);
            damaged.replace(&file, &bytes[..len]).unwrap();
            let served = judge(&damaged, &golden, &file, &format!("{file} cut to {len} bytes"));
            cuts += 1;
            assert_eq!(served, is_profile(&file), "{file} cut to {len} bytes");
        }
        // A model may have no profile.
        if is_profile(&file) {
            continue;
        }
        let damaged = memory.after(Crash::Kill);
        damaged.remove(&file).unwrap();
        match open(&damaged) {
            Err(Error::Storage(_) | Error::ContextMissing { .. }) => {}
            found => panic!("{file} is gone: {found:?}"),
        }
        assert!(!faults(&as_backend(&damaged)).is_empty(), "{file} is gone and fsck is clean");
    }
    println!("damages: {cuts} (files cut short)");
}

#[test]
fn files_in_each_others_place_are_not_served() {
    let memory = small_store();
    let golden = open(&memory).unwrap();
    let files = checked(&memory);
    for to in &files {
        for from in files.iter().filter(|from| *from != to) {
            let damaged = memory.after(Crash::Kill);
            damaged.replace(to, &memory.contents(from).unwrap()).unwrap();
            let served = judge(&damaged, &golden, to, &format!("{from} in the place of {to}"));
            assert_eq!(served, is_profile(to), "{from} in the place of {to}");
        }
    }
}

#[test]
fn a_segment_of_another_model_or_context_is_refused() {
    let model = model(UNEQUAL, Dtype::F16, 1);
    let build = |model: &ModelSpec, name: &str, seed: u64| {
        let memory = MemoryBackend::new();
        let store = store_on(&as_backend(&memory));
        let mut context = store.create_with(name, model, small_options()).unwrap();
        Kv::new(seed, 60, model).append(&mut context, 0, 0..60);
        context.seal().unwrap();
        context.commit(Durability::Strict).unwrap();
        memory
    };
    let segment =
        |memory: &MemoryBackend| memory.files().into_iter().find(|file| file.ends_with(".segment")).unwrap();
    let memory = build(&model, "own", 1);
    let mut other_model = model.clone();
    other_model.identity.rope = "theta 500000".into();
    for (what, donor) in [("model", build(&other_model, "own", 1)), ("context", build(&model, "own", 2))] {
        let damaged = memory.after(Crash::Kill);
        damaged.replace(&segment(&memory), &donor.contents(&segment(&donor)).unwrap()).unwrap();
        let error = store_on(&as_backend(&damaged)).snapshot("own").unwrap_err();
        let is_identity = matches!(error, Error::Storage(longwave::storage::Error::Identity { .. }));
        assert!(is_identity == (what == "model"), "{what}: {error}");
        assert_eq!(faults(&as_backend(&damaged)).len(), 1);
    }
}

#[test]
fn damage_under_a_live_snapshot_is_an_error_of_the_call() {
    let (memory, place) = (small_store(), tempfile::tempdir().unwrap());
    let disk: Arc<dyn Backend> = Arc::new(FileBackend::new(place.path()));
    for file in memory.files() {
        disk.create_dir_all(file.rsplit_once('/').map_or("", |(dir, _)| dir)).unwrap();
        disk.create_new(&file).unwrap().write_all(&memory.contents(&file).unwrap()).unwrap();
    }
    let store = store_on(&disk);
    // Mapped, not yet read.
    let snapshot = store.snapshot("small").unwrap();
    let file = segment_path(&store.manifest("small").unwrap().layers[1].segments[0].file);
    let bytes: Vec<u8> = memory.contents(&file).unwrap()[4096..4100].iter().map(|byte| byte ^ 0x40).collect();
    let on_disk = std::fs::OpenOptions::new().write(true).open(place.path().join(&file)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&on_disk, &bytes, 4096).unwrap();
    let queries = queries(3, 4, snapshot.model());
    let errors: Vec<Error> = (0..2)
        .filter_map(|layer| {
            snapshot.attend(layer, &query_view(&queries, snapshot.model()), &Budget::Exact).err()
        })
        .collect();
    let [Error::Storage(longwave::storage::Error::Corrupt { file: named, column, .. })] = &errors[..] else {
        panic!("{errors:?}")
    };
    assert_eq!((named, column.as_deref()), (&file, Some("keys")));
}

#[test]
fn rows_that_the_ladder_reads_one_by_one_are_verified() {
    for (kind, name) in [(ColumnKind::KEYS, "keys"), (ColumnKind::VALUES, "values")] {
        let memory = small_store();
        let store = store_on(&as_backend(&memory));
        let manifest = store.manifest("small").unwrap();
        let file = segment_path(&manifest.layers[0].segments[0].file);
        let expected = Expected::of_model(manifest.model.identity);
        let segment = Segment::open(as_backend(&memory), &file, &expected).unwrap();
        let offset = segment.columns().find(|info| info.kind == kind).unwrap().offset as usize;
        let mut bytes = memory.contents(&file).unwrap();
        bytes[offset + 5] ^= 0x10;
        memory.replace(&file, &bytes).unwrap();
        let snapshot = store.snapshot("small").unwrap();
        let queries = queries(3, 1, snapshot.model());
        let ask = |tau| snapshot.attend(0, &query_view(&queries, snapshot.model()), &Budget::Tau(tau));
        // No row is worth reading: the column stays unread.
        assert!(ask(1e3).is_ok());
        let refused = ask(1e-6).unwrap_err();
        let Error::Storage(longwave::storage::Error::Corrupt { file: named, column, .. }) = &refused else {
            panic!("{refused}")
        };
        assert_eq!((named, column.as_deref()), (&file, Some(name)));
    }
}

/// The segment at `path` written again, checksums and all, with the first two bytes of every record of a column changed.
fn with_factors(memory: &MemoryBackend, segment: &Segment, name: &str, factor: [u8; 2]) {
    let columns: Vec<_> = segment.columns().cloned().collect();
    let contents: Vec<Vec<u8>> = columns
        .iter()
        .map(|info| {
            let mut bytes = segment.column(info.kind).unwrap().all().unwrap().to_vec();
            if info.name == name {
                for record in bytes.chunks_exact_mut(info.element_size as usize) {
                    record[..2].copy_from_slice(&factor);
                }
            }
            bytes
        })
        .collect();
    let parts: Vec<[&[u8]; 1]> = contents.iter().map(|bytes| [bytes.as_slice()]).collect();
    let new: Vec<NewColumn<'_>> = columns
        .iter()
        .zip(&parts)
        .map(|(info, parts)| NewColumn {
            kind: info.kind,
            name: &info.name,
            element_size: info.element_size,
            alignment: info.alignment,
            parts: parts.to_vec(),
        })
        .collect();
    let path = format!("{}.new", segment.path());
    write_segment(memory, &path, segment.header(), &new).unwrap();
    memory.replace(segment.path(), &memory.contents(&path).unwrap()).unwrap();
}

#[test]
fn factors_that_cannot_be_are_refused_where_rows_are_read() {
    for name in ["ladder.key_code", "ladder.value_code"] {
        // Not a number, and minus two: neither may come into an answer.
        for factor in [[0, 0x7e], [0, 0xc0]] {
            let memory = small_store();
            let store = store_on(&as_backend(&memory));
            let manifest = store.manifest("small").unwrap();
            let file = segment_path(&manifest.layers[0].segments[0].file);
            let expected = Expected::of_model(manifest.model.identity);
            let segment = Segment::open(as_backend(&memory), &file, &expected).unwrap();
            with_factors(&memory, &segment, name, factor);
            let snapshot = store.snapshot("small").unwrap();
            let queries = queries(3, 1, snapshot.model());
            let ask = |tau| snapshot.attend(0, &query_view(&queries, snapshot.model()), &Budget::Tau(tau));
            assert!(ask(1e3).is_ok(), "no code is read");
            let refused = ask(0.005).unwrap_err();
            let Error::Storage(longwave::storage::Error::Corrupt { file: named, column, .. }) = &refused
            else {
                panic!("{refused}")
            };
            assert_eq!((named, column.as_deref()), (&file, Some(name)));
        }
    }
}

#[test]
fn a_writer_survives_what_it_cannot_read() {
    let memory = small_store();
    let backend: Arc<dyn Backend> = as_backend(&memory);
    let log = memory.files().into_iter().find(|file| file.ends_with(".rows.log")).unwrap();
    let good = memory.contents(&log).unwrap();
    let mut bad = good.clone();
    bad[200] ^= 4;
    memory.replace(&log, &bad).unwrap();
    let store = store_on(&backend);
    assert!(matches!(store.context("small", &spec()), Err(Error::Storage(_))));
    // The refusal gave the lock back and touched nothing.
    memory.replace(&log, &good).unwrap();
    assert_eq!(store.context("small", &spec()).unwrap().tokens().len(), 60);
    assert_eq!(faults(&backend), Vec::<String>::new());
}
