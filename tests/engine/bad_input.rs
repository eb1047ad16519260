//! What the public API refuses, and that a refusal changes nothing.

use crate::sample::{
    Kv, Numbers, UNEQUAL, bits, logits, memory_store, model, queries, query_view, small_options,
};
use longwave::{
    Budget, ClusterOptions, Context, ContextOptions, Dtype, Durability, Error, LayerKind, ModelSpec, Rebuild,
    Rows, Store, StoreOptions, TensorView, storage,
};
use proptest::prelude::*;

const ROWS: usize = 130;

fn spec(dtype: Dtype) -> ModelSpec {
    let mut model = model(UNEQUAL, dtype, 3);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::SlidingWindow(30), LayerKind::Absent];
    model
}

/// A context with rows, some of them sealed.
fn filled(dtype: Dtype) -> (Store, Context) {
    let (store, model) = (memory_store(), spec(dtype));
    let mut context = store.create_with("target", &model, small_options()).unwrap();
    for layer in 0..2 {
        Kv::new(layer as u64, ROWS, &model).append(&mut context, layer, 0..ROWS);
    }
    context.seal().unwrap();
    context.commit(Durability::None).unwrap();
    (store, context)
}

/// What may not change: lengths, answers, samples, commits.
fn state(context: &mut Context) -> (Vec<u64>, Vec<Vec<u32>>, Vec<usize>, u64, usize) {
    let snapshot = context.snapshot().unwrap();
    let queries = queries(4, 3, snapshot.model());
    let view = query_view(&queries, snapshot.model());
    let answers = (0..2).flat_map(|layer| [Budget::Exact, Budget::RETROINFER].map(|budget| (layer, budget)));
    (
        (0..3).map(|layer| snapshot.length(layer).unwrap()).collect(),
        answers.map(|(layer, budget)| bits(&snapshot.attend(layer, &view, &budget).unwrap())).collect(),
        (0..3).map(|layer| snapshot.sampled_queries(layer).unwrap().len()).collect(),
        snapshot.generation(),
        snapshot.tokens().len(),
    )
}

/// Runs a call that must be refused on a context that must not change, and gives the refusal.
fn refused<T: std::fmt::Debug>(
    context: &mut Context,
    call: impl FnOnce(&mut Context) -> Result<T, Error>,
) -> Error {
    let before = state(context);
    let error = call(context).unwrap_err();
    assert_eq!(state(context), before, "{error}");
    error
}

fn zeros(tokens: usize, heads: usize, dim: usize) -> Vec<f32> {
    vec![0.25; tokens * heads * dim]
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (_, mut context) = filled(Dtype::F16);
    let shapes = [
        ([2, 2, 24], [2, 3, 16]),
        ([2, 3, 16], [2, 3, 16]),
        ([2, 3, 24], [2, 3, 24]),
        ([2, 3, 24], [3, 3, 16]),
    ];
    let empty = [([0, 3, 24], [0, 3, 16]), ([2, 6, 24], [2, 6, 16]), ([2, 0, 0], [2, 3, 16])];
    for (k, v) in shapes.into_iter().chain(empty) {
        let (keys, values) = (zeros(k[0], k[1], k[2]), zeros(v[0], v[1], v[2]));
        let error = refused(&mut context, |context| {
            let keys = TensorView::token_major(&keys[..], k[0], k[1], k[2]);
            context.append(0, &keys, &TensorView::token_major(&values[..], v[0], v[1], v[2]))
        });
        assert!(matches!(error, Error::Shape { .. }), "{k:?} {v:?}: {error}");
    }
    for shape in [[1, 3, 24], [1, 6, 16], [0, 6, 24], [1, 5, 24]] {
        let data = zeros(shape[0], shape[1], shape[2]);
        let view = TensorView::token_major(&data[..], shape[0], shape[1], shape[2]);
        for error in [
            refused(&mut context, |context| context.attend(0, &view, &Budget::Exact)),
            refused(&mut context, |context| context.observe(0, &view)),
            refused(&mut context, |context| context.explain(0, &view, &Budget::RETROINFER)),
        ] {
            assert!(matches!(&error, Error::Shape { what: "queries", .. }), "{error}");
            assert!(error.to_string().contains("24]"), "{error}");
        }
    }
}

#[test]
fn views_that_leave_their_data_are_refused() {
    let (_, mut context) = filled(Dtype::F16);
    let values = zeros(4, 3, 16);
    let values = TensorView::token_major(&values[..], 4, 3, 16);
    let data = zeros(4, 3, 24);
    let views = [
        TensorView::token_major(&data[1..], 4, 3, 24),
        TensorView::head_major(&data[..287], 4, 3, 24),
        TensorView::token_major(&[] as &[f32], 4, 3, 24),
        TensorView::with_strides(&data[..], [4, 3, 24], [73, 24]),
        TensorView::with_strides(&data[..], [4, 3, 24], [72, 25]),
        TensorView::with_strides(&data[..], [4, 3, 24], [usize::MAX, 24]),
        TensorView::with_strides(&data[..], [4, 3, 24], [usize::MAX / 3, usize::MAX / 2]),
        TensorView::with_strides(&data[..287], [4, 3, 24], [0, 0]),
        TensorView::with_strides(&data[..], [usize::MAX, 3, 24], [0, 24]),
        TensorView::token_major(&data[..], usize::MAX, 3, 24),
        TensorView::head_major(&data[..], usize::MAX / 24 + 1, 3, 24),
    ];
    for view in views {
        let error = refused(&mut context, |context| context.append(1, &view, &values));
        assert!(matches!(error, Error::Shape { what: "keys", .. }), "{view:?}: {error}");
        // The same as queries, which stand at no more positions than there are rows.
        let error = refused(&mut context, |context| context.attend(1, &view, &Budget::Exact));
        assert!(matches!(error, Error::Shape { .. } | Error::TooManyPositions { .. }), "{view:?}: {error}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    for (dtype, bad) in [
        (Dtype::F16, f32::NAN),
        (Dtype::F16, 65520.0),
        (Dtype::F16, -1e30),
        (Dtype::Bf16, f32::INFINITY),
        (Dtype::Bf16, f32::MAX),
        (Dtype::F32, f32::NEG_INFINITY),
        (Dtype::F32, f32::NAN),
    ] {
        let (_, mut context) = filled(dtype);
        for of_keys in [true, false] {
            let (mut keys, mut values) = (zeros(5, 3, 24), zeros(5, 3, 16));
            let (data, dim) = if of_keys { (&mut keys, 24) } else { (&mut values, 16) };
            data[(4 * 3 + 2) * dim + 7] = bad;
            let error = refused(&mut context, |context| {
                let keys = TensorView::token_major(&keys[..], 5, 3, 24);
                context.append(0, &keys, &TensorView::token_major(&values[..], 5, 3, 16))
            });
            let expected = if of_keys { "keys" } else { "values" };
            let Error::NotFinite { what, value, token: 4, head: 2, element: 7, dtype: of } = error else {
                panic!("{error}")
            };
            assert!(what == expected && of == dtype && (value.is_nan() && bad.is_nan() || value == bad));
        }
    }
    // Of a long append, which several threads copy, the first fault is told.
    let (_, mut context) = filled(Dtype::F16);
    let (mut keys, values) = (zeros(5000, 3, 24), zeros(5000, 3, 16));
    for (token, head) in [(4700, 0), (1801, 2), (2600, 1)] {
        keys[(token * 3 + head) * 24 + 7] = f32::NAN;
    }
    let error = refused(&mut context, |context| {
        let keys = TensorView::token_major(&keys[..], 5000, 3, 24);
        context.append(0, &keys, &TensorView::token_major(&values[..], 5000, 3, 16))
    });
    assert!(matches!(error, Error::NotFinite { token: 1801, head: 2, .. }), "{error}");
    for native in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        let mut asked = zeros(2, 6, 24);
        asked[(6 + 5) * 24 + 3] = f32::INFINITY;
        let asked = Numbers::of(native, &asked);
        let view = TensorView::token_major(asked.rows(), 2, 6, 24);
        let error = refused(&mut context, |context| context.attend(0, &view, &Budget::RETROINFER));
        assert!(
            matches!(error, Error::NotFinite { what: "queries", token: 1, head: 5, element: 3, .. }),
            "{error}"
        );
    }
}

#[test]
fn element_types_that_would_lose_numbers_are_refused() {
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        let (_, mut context) = filled(dtype);
        for given in [Dtype::F16, Dtype::Bf16].into_iter().filter(|given| *given != dtype) {
            let (right, wrong) = (zeros(1, 3, 24), Numbers::of(given, &zeros(1, 3, 24)));
            let values = zeros(1, 3, 16);
            let error = refused(&mut context, |context| {
                let keys = TensorView::token_major(wrong.rows(), 1, 3, 24);
                context.append(0, &keys, &TensorView::token_major(&values[..], 1, 3, 16))
            });
            assert!(matches!(&error, Error::Dtype { what: "keys", .. }), "{error}");
            assert!(error.to_string().contains(&given.to_string()), "{error}");
            let wrong = Numbers::of(given, &values);
            let error = refused(&mut context, |context| {
                let keys = TensorView::token_major(&right[..], 1, 3, 24);
                context.append(0, &keys, &TensorView::token_major(wrong.rows(), 1, 3, 16))
            });
            assert!(matches!(&error, Error::Dtype { what: "values", .. }), "{error}");
        }
    }
}

#[test]
fn layers_and_positions_that_are_not_there_are_refused() {
    let (store, mut context) = filled(Dtype::F16);
    let (keys, values, asked) = (zeros(1, 3, 24), zeros(1, 3, 16), zeros(131, 6, 24));
    let (keys, values) =
        (TensorView::token_major(&keys[..], 1, 3, 24), TensorView::token_major(&values[..], 1, 3, 16));
    let one = TensorView::token_major(&asked[..144], 1, 6, 24);
    let snapshot = store.snapshot("target").unwrap();
    for layer in [2, 3, usize::MAX] {
        let errors = [
            refused(&mut context, |context| context.append(layer, &keys, &values)),
            refused(&mut context, |context| context.attend(layer, &one, &Budget::Exact)),
            refused(&mut context, |context| context.observe(layer, &one)),
            refused(&mut context, |context| context.explain(layer, &one, &Budget::Exact)),
            refused(&mut context, |context| context.length(layer)),
            refused(&mut context, |context| context.sealed_rows(layer)),
            snapshot.attend(layer, &one, &Budget::Exact).unwrap_err(),
            snapshot.explain(layer, &one, &Budget::Exact).unwrap_err(),
            snapshot.segments(layer).unwrap_err(),
        ];
        for error in errors {
            match error {
                Error::LayerAbsent { layer: found } => assert_eq!((layer, found), (2, 2)),
                Error::LayerOutOfRange { layer: found, layers: 3 } => assert!(found == layer && layer > 2),
                other => panic!("layer {layer}: {other}"),
            }
        }
    }
    assert!(matches!(snapshot.length(3), Err(Error::LayerOutOfRange { layer: 3, layers: 3 })));
    assert!(matches!(snapshot.sampled_queries(9), Err(Error::LayerOutOfRange { layer: 9, layers: 3 })));
    let all = TensorView::token_major(&asked[..], 131, 6, 24);
    let error = refused(&mut context, |context| context.attend(1, &all, &Budget::Exact));
    assert!(matches!(error, Error::TooManyPositions { layer: 1, length: 130, positions: 131 }), "{error}");
    assert!(matches!(snapshot.attend(0, &all, &Budget::RETROINFER), Err(Error::TooManyPositions { .. })));
    let mut empty = store.create("empty", &spec(Dtype::F16)).unwrap();
    assert!(matches!(empty.attend(0, &one, &Budget::Exact), Err(Error::TooManyPositions { length: 0, .. })));
    assert!(matches!(
        empty.explain(0, &one, &Budget::RETROINFER),
        Err(Error::TooManyPositions { length: 0, .. })
    ));
}

#[test]
fn budgets_out_of_range_are_refused() {
    let (_, mut context) = filled(Dtype::F16);
    let asked = zeros(1, 6, 24);
    let view = TensorView::token_major(&asked[..], 1, 6, 24);
    let shares = [(-0.1, 0.2), (1.1, 0.2), (0.1, -1e-9), (0.1, 1.5), (f64::NAN, 0.1), (0.1, f64::INFINITY)];
    let shares = shares.map(|(retrieve, estimate)| Budget::RetroInfer { retrieve, estimate });
    let taus = [-1e-9, f64::NAN, f64::INFINITY].map(Budget::Tau);
    let soonest = [0.0, -1.0, f64::NAN, f64::INFINITY].map(Budget::Soonest);
    let from_disk = [0.0, -1.0, f64::NAN, f64::INFINITY].map(|tau| Budget::FromDisk { tau, bytes: 1 << 20 });
    for budget in shares.into_iter().chain(taus).chain(soonest).chain(from_disk) {
        let error = refused(&mut context, |context| context.attend(0, &view, &budget));
        assert!(matches!(&error, Error::Invalid { what: "budget", .. }), "{error}");
        let error = refused(&mut context, |context| context.explain(0, &view, &budget));
        assert!(matches!(&error, Error::Invalid { what: "budget", .. }), "{error}");
    }
    // Any cap is one, and a tau that rounds to 0 does not read everything.
    for (tau, bytes) in [(1e-300, 0), (1e-300, u64::MAX), (1e300, 1), (f64::MAX, 4095)] {
        let answer = context.attend(0, &view, &Budget::FromDisk { tau, bytes }).unwrap();
        assert!(answer.report.disk.is_some_and(|disk| disk.bytes_max == bytes), "{:?}", answer.report);
        assert!(answer.output.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn commits_ask_for_equal_layers_and_one_token_id_a_row() {
    let (store, mut context) = filled(Dtype::F16);
    let model = spec(Dtype::F16);
    let kv = Kv::new(9, 7, &model);
    kv.append(&mut context, 1, 0..7);
    let error = refused(&mut context, |context| context.commit(Durability::Strict));
    assert!(
        matches!(error, Error::UnequalLayers { first: 0, expected: 130, layer: 1, found: 137 }),
        "{error}"
    );
    assert_eq!(store.snapshot("target").unwrap().length(1).unwrap(), 130, "the last commit counts");
    kv.append(&mut context, 0, 0..7);
    context.commit(Durability::Strict).unwrap();
    for (ids, total) in [(&[1u32, 2][..], 2), (&[7; 136], 138)] {
        context.extend_tokens(ids).unwrap();
        let error = refused(&mut context, |context| context.commit(Durability::None));
        assert!(matches!(error, Error::TokenCount { tokens, rows: 137 } if tokens == total), "{error}");
    }
    assert!(store.snapshot("target").unwrap().tokens().is_empty());
    for layer in 0..2 {
        kv.append(&mut context, layer, 3..4);
    }
    context.commit(Durability::None).unwrap();
    assert_eq!(store.snapshot("target").unwrap().tokens().len(), 138);
}

#[test]
fn a_context_is_reopened_under_its_own_model_only() {
    let store = memory_store();
    let mut model = spec(Dtype::F16);
    model.softcap = Some(20.0);
    model.sink_logits = vec![logits(1, &model), vec![], vec![]];
    drop(store.create_with("own", &model, small_options()).unwrap());
    let other = |field: &'static str, change: &dyn Fn(&mut ModelSpec)| {
        let mut other = model.clone();
        change(&mut other);
        match store.context("own", &other) {
            Err(Error::ModelMismatch { name, difference }) => {
                assert_eq!((name.as_str(), difference.field), ("own", field), "{difference}");
                assert_ne!(difference.stored, difference.given);
            }
            found => panic!("{field}: {found:?}"),
        }
    };
    other("weights digest", &|model| model.identity.weights[31] ^= 1);
    other("tokenizer digest", &|model| model.identity.tokenizer[0] ^= 128);
    other("rope", &|model| model.identity.rope.push('0'));
    other("layers", &|model| model.layers = 4);
    other("layers", &|model| model.layers = usize::MAX);
    other("query_heads", &|model| model.query_heads = 9);
    other("kv_heads", &|model| model.kv_heads = 6);
    other("key_dim", &|model| model.key_dim = 16);
    other("value_dim", &|model| model.value_dim = 24);
    other("dtype", &|model| model.dtype = Dtype::Bf16);
    other("scale", &|model| model.scale = 0.2);
    other("softcap", &|model| model.softcap = None);
    other("layer_kinds", &|model| model.layer_kinds[1] = LayerKind::SlidingWindow(31));
    other("sink_logits", &|model| model.sink_logits[0][5] = 0.25);
    // Empty lists and lists of the usual are the same model.
    let mut plain = spec(Dtype::F16);
    plain.layer_kinds = vec![];
    drop(store.create("plain", &plain).unwrap());
    plain.layer_kinds = vec![LayerKind::Clustered; 3];
    plain.sink_logits = vec![vec![]; 3];
    assert_eq!(store.context("plain", &plain).unwrap().model().layers, 3);
    assert_eq!(store.context("own", &model).unwrap().model(), &model);
}

#[test]
fn models_and_options_out_of_range_are_refused() {
    let store = memory_store();
    let model = spec(Dtype::F16);
    let invalid = |what: &str, change: &dyn Fn(&mut ModelSpec)| {
        let mut model = model.clone();
        change(&mut model);
        match store.create("invalid", &model) {
            Err(Error::Invalid { what: found, .. }) => assert_eq!(found, what),
            found => panic!("{what}: {found:?}"),
        }
    };
    invalid("layers", &|model| model.layers = 0);
    invalid("layers", &|model| model.layers = longwave::LAYERS_MAX + 1);
    invalid("query_heads", &|model| model.query_heads = 0);
    invalid("query_heads", &|model| model.query_heads = 7);
    invalid("kv_heads", &|model| model.kv_heads = 0);
    invalid("kv_heads", &|model| model.kv_heads = 7);
    for dim in [0, 4, 12, 584, usize::MAX] {
        invalid("key_dim", &|model| model.key_dim = dim);
        invalid("value_dim", &|model| model.value_dim = dim);
    }
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        invalid("scale", &|model| model.scale = bad);
        invalid("softcap", &|model| model.softcap = Some(bad));
    }
    invalid("layer_kinds", &|model| model.layer_kinds.truncate(2));
    invalid("layer_kinds", &|model| model.layer_kinds[0] = LayerKind::SlidingWindow(0));
    invalid("sink_logits", &|model| model.sink_logits = vec![vec![]; 2]);
    invalid("sink_logits", &|model| model.sink_logits = vec![vec![0.5; 3]; 3]);
    invalid("sink_logits", &|model| model.sink_logits = vec![vec![f32::NAN; 6]; 3]);
    let option = |what: &str, change: &dyn Fn(&mut ContextOptions)| {
        let mut options = small_options();
        change(&mut options);
        match store.create_with("invalid", &model, options) {
            Err(Error::Invalid { what: found, .. }) => assert_eq!(found, what),
            found => panic!("{what}: {found:?}"),
        }
    };
    option("sinks", &|options| options.sinks = (1 << 16) + 1);
    option("window", &|options| options.window = 0);
    option("window", &|options| options.window = u32::MAX);
    option("bulk_segment_rows", &|options| options.bulk_segment_rows = longwave::SEGMENT_ROWS_MAX + 1);
    option("decode_segment_rows", &|options| options.decode_segment_rows = 0);
    option("decode_segment_rows", &|options| options.decode_segment_rows = 49);
    option("bulk_append_rows", &|options| options.bulk_append_rows = 1);
    option("clusters.tokens_per_cluster", &|options| options.clusters.tokens_per_cluster = 0);
    option("clusters.iterations", &|options| options.clusters.iterations = 1001);
    option("clusters.split_factor", &|options| {
        options.clusters = ClusterOptions { split_factor: Some(0.5), ..ClusterOptions::ladder() };
    });
    option("clusters.split_factor", &|options| options.clusters.split_factor = Some(f32::NAN));
    option("sample_positions", &|options| options.sample_positions = (1 << 16) + 1);
    option("rebuild", &|options| options.rebuild = Rebuild::WhenObserved { positions: 0 });
    assert!(store.contexts().unwrap().is_empty());
}

#[test]
fn names_that_escape_and_contexts_that_are_not_there_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, StoreOptions::default()).unwrap();
    let model = spec(Dtype::F16);
    for name in ["", ".", "..", "../up", "a/b", "/etc", ".hidden", "a b", "a\0b", "ä", &"n".repeat(200)] {
        let name_error =
            |error: Error| assert!(matches!(error, Error::Storage(storage::Error::Name { .. })), "{error}");
        name_error(store.create(name, &model).unwrap_err());
        name_error(store.context(name, &model).unwrap_err());
        name_error(store.snapshot(name).unwrap_err());
        name_error(store.contains(name).unwrap_err());
        name_error(store.manifest(name).unwrap_err());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing beside the store");
    assert!(matches!(store.context("none", &model), Err(Error::ContextMissing { name }) if name == "none"));
    assert!(matches!(store.snapshot("none"), Err(Error::ContextMissing { .. })));
    assert!(matches!(store.manifest("none"), Err(Error::ContextMissing { .. })));
    assert!(!store.contains("none").unwrap() && store.contexts().unwrap().is_empty());

    let context = store.create("once", &model).unwrap();
    let second = Store::open(&path, StoreOptions::default()).unwrap();
    for store in [&store, &second] {
        assert!(matches!(store.context("once", &model), Err(Error::Storage(storage::Error::Locked { .. }))));
        assert!(store.create("once", &model).is_err());
    }
    drop(context);
    assert!(matches!(second.create("once", &model), Err(Error::ContextExists { name }) if name == "once"));
    assert_eq!(second.context("once", &model).unwrap().generation(), 1);
}

#[test]
fn directories_that_hold_something_else_are_not_made_stores() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "unique").unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Storage(_)), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was added");
    let file = dir.path().join("thesis.txt");
    assert!(matches!(Store::open(&file, StoreOptions::default()), Err(Error::Storage(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "unique");
}

/// Often what fits, else anything.
fn sizes(fitting: usize) -> impl Strategy<Value = usize> {
    prop_oneof![12 => Just(fitting), 6 => 0usize..10, 1 => Just(16), 1 => any::<usize>(), 1 => Just(usize::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_shape_or_stride_panics(
        shape in [sizes(2), sizes(3), sizes(24)],
        strides in [sizes(72), sizes(24)],
        len in 0usize..600,
        layer in 0usize..4,
    ) {
        let model = spec(Dtype::F32);
        let mut context = memory_store().create_with("any", &model, small_options()).unwrap();
        let data: Vec<f32> = (0..len).map(|i| i as f32 * 0.01).collect();
        let view = TensorView::with_strides(Rows::F32(&data), shape, strides);
        let tokens = view.tokens().min(9);
        let values = zeros(tokens, 3, 16);
        let values = TensorView::token_major(&values[..], tokens, 3, 16);
        let taken = context.append(layer, &view, &values).is_ok();
        let length = context.length(layer).unwrap_or(0);
        prop_assert_eq!(length, if taken { tokens as u64 } else { 0 });
        let _ = context.append(layer, &values, &view);
        let _ = context.attend(layer, &view, &Budget::Exact);
        let _ = context.observe(layer, &view);
    }
}
