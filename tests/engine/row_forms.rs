//! Segments that keep their rows in 8 bits, or as codes alone: what is exact over them, and how rows come back.

use crate::sample::{
    Kv, Sample, as_backend, bits, faults, memory_store, model, queries, query_view, round, small_options,
    store_on,
};
use crate::truth::check_exact;
use longwave::storage::{Expected, MemoryBackend, Segment, segment_path};
use longwave::{
    Answer, Budget, ClusterOptions, Context, ContextOptions, Dtype, Durability, LayerKind, ModelSpec,
    Rebuild, RowForm, Snapshot, Store, TensorView, salvage,
};
use std::time::{Duration, Instant};

const ROWS: usize = 160;
const REDUCED: [RowForm; 2] = [RowForm::EightBits, RowForm::Codes];

fn spec() -> ModelSpec {
    model([2, 4, 24, 16], Dtype::F16, 1)
}

fn options(form: RowForm) -> ContextOptions {
    let clusters = ClusterOptions { tokens_per_cluster: 6, ..ClusterOptions::ladder() };
    small_options().with_clusters(clusters).with_rows(form)
}

fn observe(context: &mut Context, positions: usize) {
    let spec = context.model().clone();
    context.observe_at(0, 0, &query_view(&queries(8, positions, &spec), &spec)).unwrap();
}

/// Sinks 0..3, segments 3..51, 51..99, 99..147 and 147..155 in bulk, a window.
fn sealed(store: &Store, form: RowForm) -> Context {
    let mut context = store.create_with("reduced", &spec(), options(form)).unwrap();
    observe(&mut context, 9);
    rows().append(&mut context, 0, 0..ROWS);
    context.seal().unwrap();
    context
}

fn rows() -> Kv {
    Kv::new(31, ROWS, &spec())
}

fn forms(snapshot: &Snapshot, layer: usize) -> Vec<RowForm> {
    snapshot.segments(layer).unwrap().iter().map(|segment| segment.row_form()).collect()
}

/// All rows as the context keeps them: those of segments as they give them back, the others as they came.
fn kept(snapshot: &Snapshot, layer: usize, mut kv: Kv) -> Kv {
    let spec = snapshot.model();
    let shape = longwave::Shape {
        query_heads: spec.query_heads,
        kv_heads: spec.kv_heads,
        key_dim: spec.key_dim,
        value_dim: spec.value_dim,
        dtype: spec.dtype,
    };
    for segment in snapshot.segments(layer).unwrap() {
        let positions = segment.segment().column(longwave::storage::ColumnKind::POSITIONS).unwrap();
        let (positions, rows) = (positions.all().unwrap().as_chunks::<4>().0, segment.rows());
        for head in 0..spec.kv_heads {
            let take = |first: usize, keys: longwave::Rows<'_>, values: longwave::Rows<'_>| {
                for row in 0..keys.len() / spec.key_dim {
                    let position = u32::from_le_bytes(positions[head * rows + first + row]) as usize;
                    let at = (segment.first_position() as usize + position) * spec.kv_heads + head;
                    for (to, from, dim) in
                        [(&mut kv.keys, keys, spec.key_dim), (&mut kv.values, values, spec.value_dim)]
                    {
                        (0..dim).for_each(|i| to[at * dim + i] = from.get(row * dim + i));
                    }
                }
            };
            segment.read_rows(&shape, head, 0..rows, take).unwrap();
        }
    }
    kv
}

fn ask(snapshot: &Snapshot, budget: &Budget) -> Answer {
    let asked = queries(5, 3, snapshot.model());
    snapshot.attend(0, &query_view(&asked, snapshot.model()), budget).unwrap()
}

/// Relative distance of two answers.
fn distance(a: &Answer, b: &Answer) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = a.output.iter().zip(&b.output).map(|(a, b)| square(a - b)).sum();
    (off / b.output.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

#[test]
fn exact_is_exact_over_the_rows_as_they_are_kept_and_says_so() {
    let full = sealed(&memory_store(), RowForm::Full).snapshot().unwrap();
    let golden = ask(&full, &Budget::Exact);
    assert_eq!(golden.report.row_form, RowForm::Full);
    let mut before = 0.0;
    for form in REDUCED {
        let snapshot = sealed(&memory_store(), form).snapshot().unwrap();
        assert_eq!(forms(&snapshot, 0), [form; 4]);
        let asked = queries(5, 3, &spec());
        let answer = ask(&snapshot, &Budget::Exact);
        assert_eq!(answer.report.row_form, form);
        check_exact(&spec(), 0, &kept(&snapshot, 0, rows()), ROWS as u64, &asked, &answer);
        // Near to what full rows give, and the nearer the more is kept of them.
        let off = distance(&answer, &golden);
        assert!(off > 2.0 * before && off < 0.2, "{form}: {off}");
        before = off;
        let plan = snapshot.explain(0, &query_view(&asked, &spec()), &Budget::Exact).unwrap().to_string();
        assert!(plan.contains("as they are kept"), "{plan}");
        let read = answer.report.traffic;
        let bytes = read.keys + read.values + read.key_codes + read.value_codes;
        let row = if form == RowForm::EightBits { 24 + 4 + 16 + 4 } else { 24 / 2 + 2 + 16 / 2 + 2 };
        assert_eq!(bytes, 3 * 2 * 152 * row);
    }
    let plan = full.explain(0, &query_view(&queries(5, 1, &spec()), &spec()), &Budget::Exact).unwrap();
    assert!(!plan.to_string().contains("as they are kept"), "{plan}");
}

#[test]
fn every_method_goes_to_the_exact_answer_over_the_kept_rows() {
    for form in REDUCED {
        let snapshot = sealed(&memory_store(), form).snapshot().unwrap();
        let exact = ask(&snapshot, &Budget::Exact);
        for (budget, most) in [
            // Sketches are scored by tables of 8 bits, and codes say what sketches leave.
            (Budget::Tau(1e-6), if form == RowForm::Codes { 0.01 } else { 2e-5 }),
            (Budget::Tau(0.002), 0.1),
            (Budget::RetroInfer { retrieve: 1.0, estimate: 0.0 }, 1e-5),
        ] {
            let answer = ask(&snapshot, &budget);
            let off = distance(&answer, &exact);
            assert!(off <= most, "{form}, {budget}: {off}");
            assert_eq!(answer.report.row_form, form);
        }
        // Codes are the finest that there is: nothing is read in full.
        let read = ask(&snapshot, &Budget::Tau(1e-6)).report;
        assert_eq!(read.traffic.keys == 0, form == RowForm::Codes, "{:?}", read.traffic);
        // And what is read of a row is then known of it.
        let predicted = read.predicted_error.iter().fold(0.0f32, |most, &error| most.max(error));
        let ratio = f64::from(predicted) / distance(&ask(&snapshot, &Budget::Tau(1e-6)), &exact);
        let expected = if form == RowForm::Codes { 0.4..4.0 } else { 0.0..1e-3 };
        let found = if form == RowForm::Codes { ratio } else { f64::from(predicted) };
        assert!(expected.contains(&found), "{form}: predicted {predicted}, {ratio} of the error");
    }
}

#[test]
fn smaller_forms_take_less_room() {
    let size = |form| {
        let memory = MemoryBackend::new();
        let mut context = sealed(&store_on(&as_backend(&memory)), form);
        context.commit(Durability::Strict).unwrap();
        assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
        let mut rows = |name: &str| -> u64 {
            let snapshot = context.snapshot().unwrap();
            let segments = snapshot.segments(0).unwrap();
            let columns = segments.iter().flat_map(|segment| segment.segment().columns());
            columns.filter(|column| column.name.starts_with(name)).map(|column| column.len).sum()
        };
        (rows("keys"), rows("values"))
    };
    let rows = 2 * 152;
    assert_eq!(size(RowForm::Full), (rows * 48, rows * 32));
    assert_eq!(size(RowForm::EightBits), (rows * 28, rows * 20));
    assert_eq!(size(RowForm::Codes), (0, 0));
}

#[test]
fn cuts_forks_and_reopened_contexts_have_the_same_rows() {
    for form in REDUCED {
        let memory = MemoryBackend::new();
        let store = store_on(&as_backend(&memory));
        let mut context = sealed(&store, form);
        context.commit(Durability::Strict).unwrap();
        let kept = kept(&context.snapshot().unwrap(), 0, rows());
        // Rows of the tail are of the model's type.
        let rounded = Kv {
            keys: kept.keys.iter().map(|&x| round(Dtype::F16, x)).collect(),
            values: kept.values.iter().map(|&x| round(Dtype::F16, x)).collect(),
            ..kept.clone()
        };
        let cut = 70;
        let mut fork = store.fork("reduced", "fork", &spec(), Some(cut)).unwrap();
        context.truncate(cut).unwrap();
        context.commit(Durability::Strict).unwrap();
        assert_eq!(context.sealed_rows(0).unwrap(), 48, "the second segment is rows of the tail");
        // Its first segment is as it was.
        let expected = kept.joined(51, &rounded);
        let asked = queries(5, 3, &spec());
        let answers: Vec<Vec<u32>> =
            [context.snapshot().unwrap(), fork.snapshot().unwrap(), store.snapshot("reduced").unwrap()]
                .iter()
                .map(|snapshot| {
                    let answer = ask(snapshot, &Budget::Exact);
                    check_exact(&spec(), 0, &expected, cut, &asked, &answer);
                    bits(&answer)
                })
                .collect();
        assert!(answers[1..].iter().all(|answer| *answer == answers[0]));
        // They go on, and seal what came back.
        let more = Kv::new(77, 130, &spec());
        for context in [&mut context, &mut fork] {
            more.append(context, 0, cut as usize..130);
            context.seal().unwrap();
            context.commit(Durability::Strict).unwrap();
            assert_eq!(forms(&context.snapshot().unwrap(), 0), [form; 3]);
        }
        let [one, other] = [&mut context, &mut fork].map(|context| context.snapshot().unwrap());
        assert_eq!(bits(&ask(&one, &Budget::Exact)), bits(&ask(&other, &Budget::Exact)));
        assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
    }
}

#[test]
fn rows_in_8_bits_are_the_same_after_a_rebuild() {
    let store = memory_store();
    let mut context = sealed(&store, RowForm::EightBits);
    let before = ask(&context.snapshot().unwrap(), &Budget::Exact);
    for _ in 0..3 {
        assert_eq!(context.rebuild(None).unwrap(), 4);
    }
    let after = ask(&context.snapshot().unwrap(), &Budget::Exact);
    // The factor of a row is rounded once, with its largest element.
    assert!(distance(&after, &before) < 5e-4, "{}", distance(&after, &before));
    assert_eq!(after.report.row_form, RowForm::EightBits);
}

#[test]
fn rows_are_coded_once_they_are_final() {
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let kv = rows();
    let mut context = store
        .create_with(
            "late",
            &spec(),
            options(RowForm::Codes).with_rebuild(Rebuild::WhenObserved { positions: 6 }),
        )
        .unwrap();
    // Without queries, segments are to be built again, and stay in full until then.
    kv.append(&mut context, 0, 0..60);
    context.seal().unwrap();
    assert_eq!(forms(&context.snapshot().unwrap(), 0), [RowForm::Full; 2]);
    observe(&mut context, 9);
    let started = Instant::now();
    while forms(&context.snapshot().unwrap(), 0) != [RowForm::Codes; 2] {
        assert!(started.elapsed() < Duration::from_secs(60), "no rebuild");
        std::thread::sleep(Duration::from_millis(2));
    }
    // Decoding seals small segments, which are merged later.
    (60..130).for_each(|token| kv.append(&mut context, 0, token..token + 1));
    context.seal().unwrap();
    let found = forms(&context.snapshot().unwrap(), 0);
    assert_eq!(found[..2], [RowForm::Codes; 2]);
    assert!(found[2..found.len() - 1].iter().all(|form| *form == RowForm::Full), "{found:?}");
    let before = ask(&context.snapshot().unwrap(), &Budget::Exact);
    assert!(context.compact(None).unwrap() > 0);
    let snapshot = context.snapshot().unwrap();
    assert!(forms(&snapshot, 0).iter().filter(|form| **form == RowForm::Full).count() <= 1);
    assert!(distance(&ask(&snapshot, &Budget::Exact), &before) < 0.2);
    assert_eq!(context.compact(None).unwrap(), 0, "what is coded is not coded again");
    context.commit(Durability::Strict).unwrap();
    drop(context);
    // The choice is the context's, not the process's.
    let reopened = store.context("late", &spec()).unwrap();
    assert_eq!(reopened.options().rows, RowForm::Codes);
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn segments_of_the_same_text_are_shared_in_the_same_form_alone() {
    let store = memory_store();
    let mut files = Vec::new();
    for (name, form) in [
        ("full", RowForm::Full),
        ("codes", RowForm::Codes),
        ("again", RowForm::Codes),
        ("8bit", RowForm::EightBits),
    ] {
        let mut context = store.create_with(name, &spec(), options(form)).unwrap();
        observe(&mut context, 9);
        context.extend_tokens(&(0..ROWS as u32).collect::<Vec<_>>()).unwrap();
        rows().append(&mut context, 0, 0..ROWS);
        context.seal().unwrap();
        context.commit(Durability::Strict).unwrap();
        assert_eq!(forms(&context.snapshot().unwrap(), 0), [form; 4]);
        let segments = store.manifest(name).unwrap().layers[0].segments.clone();
        files.push(segments.into_iter().map(|record| record.file).collect::<Vec<_>>());
    }
    assert_eq!(files[1], files[2]);
    assert!(files[0] != files[1] && files[3] != files[0] && files[3] != files[1]);
}

#[test]
fn every_layer_keeps_its_own_form() {
    let mut spec = model([2, 4, 24, 16], Dtype::Bf16, 5);
    spec.layer_kinds = vec![
        LayerKind::Clustered,
        LayerKind::Clustered,
        LayerKind::ExactOnly,
        LayerKind::SlidingWindow(30),
        LayerKind::Absent,
    ];
    use RowForm::{Codes, EightBits, Full};
    let asked = vec![Codes, Full, EightBits, Codes, Full];
    let memory = MemoryBackend::new();
    let store = store_on(&as_backend(&memory));
    let options = options(Full).with_layer_rows(asked.clone());
    let mut context = store.create_with("layers", &spec, options).unwrap();
    for layer in 0..4 {
        context.observe_at(layer, 0, &query_view(&queries(8, 9, &spec), &spec)).unwrap();
        Kv::new(layer as u64, 80, &spec).append(&mut context, layer, 0..80);
    }
    context.seal().unwrap();
    context.commit(Durability::Strict).unwrap();
    drop(context);
    let context = store.context("layers", &spec).unwrap();
    assert_eq!(context.options().layer_rows, asked);
    let snapshot = store.snapshot("layers").unwrap();
    // There are no codes without clusters: such a layer stays in full.
    for (layer, form) in [(0, Codes), (1, Full), (2, EightBits), (3, Full)] {
        assert_eq!(forms(&snapshot, layer), [form; 2], "layer {layer}");
        let (asked, kv) = (queries(5, 3, &spec), Kv::new(layer as u64, 80, &spec));
        let answer = snapshot.attend(layer, &query_view(&asked, &spec), &Budget::Exact).unwrap();
        check_exact(&spec, layer, &kept(&snapshot, layer, kv), 80, &asked, &answer);
    }
    assert_eq!(faults(&as_backend(&memory)), Vec::<String>::new());
}

#[test]
fn forms_that_cannot_be_are_refused() {
    let store = memory_store();
    for (options, word) in [
        (options(RowForm::Full).with_layer_rows(vec![RowForm::Full; 2]), "layer_rows"),
        (options(RowForm::Codes).with_ladder(false), "rows"),
    ] {
        let refused = store.create_with("bad", &spec(), options).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
}

#[test]
fn rows_before_a_damaged_one_are_saved() {
    for (form, column) in [(RowForm::EightBits, "keys.8bit"), (RowForm::Codes, "ladder.value_code")] {
        let memory = MemoryBackend::new();
        let store = store_on(&as_backend(&memory));
        let mut context = sealed(&store, form);
        context.commit(Durability::Strict).unwrap();
        let snapshot = context.snapshot().unwrap();
        let kept = kept(&snapshot, 0, rows());
        drop((snapshot, context));
        let manifest = store.manifest("reduced").unwrap();
        let file = segment_path(&manifest.layers[0].segments[1].file);
        let expected = Expected::of_model(manifest.model.identity);
        let segment = Segment::open(as_backend(&memory), &file, &expected).unwrap();
        let offset = segment.columns().find(|found| found.name == column).unwrap().offset as usize;
        let mut bytes = memory.contents(&file).unwrap();
        bytes[offset + 7] ^= 0x20;
        memory.replace(&file, &bytes).unwrap();
        let found: Vec<String> = faults(&as_backend(&memory));
        assert!(found.len() == 1 && found[0].contains(column), "{found:?}");
        let into = memory_store();
        let saved = salvage(&as_backend(&memory), &into).unwrap().remove(0);
        // The block holds the first rows of the segment at least.
        assert!((51..99).contains(&saved.rows_kept) && !saved.whole, "{form}: {}", saved.rows_kept);
        let answer = ask(&into.snapshot("reduced").unwrap(), &Budget::Exact);
        // Coded once more where codes were all there was.
        let most = if form == RowForm::EightBits { 2e-3 } else { 0.2 };
        let expected = memory_store();
        let mut context = expected.create_with("rows", &spec(), options(RowForm::Full)).unwrap();
        kept.append(&mut context, 0, 0..saved.rows_kept as usize);
        let off = distance(&answer, &ask(&context.snapshot().unwrap(), &Budget::Exact));
        assert!(off < most, "{form}: {off}");
    }
}

#[test]
fn rows_of_one_length_keep_their_heads_apart() {
    // Values of head h are near h + 1: a mix-up of heads, sides or rows shows in every answer.
    let spec = model([3, 3, 16, 16], Dtype::F16, 1);
    let mut noise = Sample::new(4);
    for form in REDUCED {
        let mut context = memory_store().create_with("heads", &spec, options(form)).unwrap();
        context.observe_at(0, 0, &query_view(&queries(8, 9, &spec), &spec)).unwrap();
        let keys = noise.numbers(60 * 3 * 16, 1.0);
        let values: Vec<f32> =
            (0..60 * 3 * 16).map(|at| (at / 16 % 3 + 1) as f32 + 0.05 * noise.number()).collect();
        let view = |rows| TensorView::token_major(rows, 60, 3, 16);
        context.append(0, &view(&keys[..]), &view(&values[..])).unwrap();
        context.seal().unwrap();
        let answer = context.snapshot().unwrap();
        let answer = answer.attend(0, &query_view(&queries(5, 2, &spec), &spec), &Budget::Exact).unwrap();
        for (at, x) in answer.output.iter().enumerate() {
            assert!((x - (at / 16 % 3 + 1) as f32).abs() < 0.1, "{form}, element {at}: {x}");
        }
    }
}
