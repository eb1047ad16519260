//! Exact attention against float64, wherever rows lie and however they came.

use crate::sample::{
    Kv, Numbers, Sample, UNEQUAL, bits, logits, memory_store, model, queries, query_view, small_options,
};
use crate::truth::check_exact;
use longwave::{Budget, Context, Dtype, LayerKind, ModelSpec, Rows, TensorView};

/// Clustered, exact-only and sliding layers, and one without KV.
fn all_kinds(dtype: Dtype) -> ModelSpec {
    let mut model = model(UNEQUAL, dtype, 5);
    model.layer_kinds = vec![
        LayerKind::Clustered,
        LayerKind::ExactOnly,
        LayerKind::Absent,
        LayerKind::SlidingWindow(7),
        LayerKind::SlidingWindow(70),
    ];
    model
}

fn present(model: &ModelSpec) -> impl Iterator<Item = usize> {
    (0..model.layers).filter(|&layer| model.layer_kind(layer) != LayerKind::Absent)
}

fn rows(model: &ModelSpec, tokens: usize) -> Vec<Kv> {
    (0..model.layers).map(|layer| Kv::new(100 + layer as u64, tokens, model)).collect()
}

fn attend_and_check(context: &mut Context, kv: &[Kv], layer: usize, positions: usize, seed: u64) {
    let model = context.model().clone();
    let length = context.length(layer).unwrap();
    let queries = queries(seed, positions, &model);
    let answer = context.attend(layer, &query_view(&queries, &model), &Budget::Exact).unwrap();
    check_exact(&model, layer, &kv[layer], length, &queries, &answer);
}

#[test]
fn decoding_is_exact_at_every_length() {
    let model = all_kinds(Dtype::F16);
    let kv = rows(&model, 330);
    let mut context = memory_store().create_with("decode", &model, small_options()).unwrap();
    for token in 0..330 {
        for layer in present(&model) {
            kv[layer].append(&mut context, layer, token..token + 1);
            attend_and_check(&mut context, &kv, layer, 1 + token.min(layer), token as u64);
        }
    }
    context.seal().unwrap();
    assert_eq!(context.sealed_rows(0).unwrap(), 330 - 3 - 5);
    for layer in present(&model) {
        attend_and_check(&mut context, &kv, layer, 2, 9);
    }
}

#[test]
fn appends_of_any_size_are_exact_at_every_boundary() {
    let mut model = all_kinds(Dtype::Bf16);
    model.softcap = Some(3.0);
    model.sink_logits = (0..5).map(|layer| if layer == 1 { vec![] } else { logits(layer, &model) }).collect();
    let kv = rows(&model, 1100);
    let mut context = memory_store().create_with("mixed", &model, small_options()).unwrap();
    let mut sample = Sample::new(4);
    let mut token = 0;
    while token < 1100 {
        let step = [1, 2, 3, 7, 8, 9, 47, 48, 49, 96, 100][sample.below(11)].min(1100 - token);
        for layer in present(&model) {
            kv[layer].append(&mut context, layer, token..token + step);
        }
        token += step;
        let positions = (1 + sample.below(step.max(4))).min(token);
        for layer in present(&model) {
            attend_and_check(&mut context, &kv, layer, positions, token as u64);
        }
    }
    assert!(context.sealed_rows(0).unwrap() > 900 && context.sealed_rows(3).unwrap() > 900);
}

#[test]
fn a_whole_context_as_queries_is_causal_over_sealed_rows() {
    let model = all_kinds(Dtype::F32);
    let kv = rows(&model, 260);
    let mut context = memory_store().create_with("prefill", &model, small_options()).unwrap();
    for layer in present(&model) {
        kv[layer].append(&mut context, layer, 0..260);
    }
    context.seal().unwrap();
    for layer in present(&model) {
        assert_eq!(context.sealed_rows(layer).unwrap(), 252);
        attend_and_check(&mut context, &kv, layer, 260, 31);
        attend_and_check(&mut context, &kv, layer, 199, 32);
    }
}

#[test]
fn long_segments_are_read_in_several_pieces() {
    let mut model = model([2, 4, 16, 8], Dtype::F16, 3);
    model.layer_kinds = vec![LayerKind::Clustered, LayerKind::ExactOnly, LayerKind::SlidingWindow(2500)];
    let kv = rows(&model, 5000);
    let options = small_options().with_segment_rows(4700, 16);
    let mut context = memory_store().create_with("long", &model, options).unwrap();
    for layer in 0..3 {
        kv[layer].append(&mut context, layer, 0..5000);
        attend_and_check(&mut context, &kv, layer, 3, 1);
    }
    context.seal().unwrap();
    for layer in 0..3 {
        attend_and_check(&mut context, &kv, layer, 1, 2);
        attend_and_check(&mut context, &kv, layer, 3, 3);
    }
    attend_and_check(&mut context, &kv, 2, 1500, 4);
}

/// `tokens` rows of `kv` in another order of memory, with what lies between them set to NaN.
fn laid_out(kv: &Kv, keys: bool, layout: usize) -> (Vec<f32>, [usize; 3], [usize; 2]) {
    let (source, dim) = if keys { (&kv.keys, kv.key_dim) } else { (&kv.values, kv.value_dim) };
    let (tokens, heads) = (kv.tokens(), kv.kv_heads);
    let strides = match layout {
        0 => [heads * dim, dim],
        1 => [dim, tokens * dim],
        // Heads beside each other with room for another tensor between them, as in fused projections.
        2 => [heads * (2 * dim + 3), 2 * dim + 3],
        _ => [dim + 5, tokens * (dim + 5) + 11],
    };
    let end = (tokens - 1) * strides[0] + (heads - 1) * strides[1] + dim;
    let mut data = vec![f32::NAN; end];
    for token in 0..tokens {
        for head in 0..heads {
            let from = (token * heads + head) * dim;
            data[token * strides[0] + head * strides[1]..][..dim].copy_from_slice(&source[from..from + dim]);
        }
    }
    (data, [tokens, heads, dim], strides)
}

#[test]
fn every_type_shape_and_layout_is_taken() {
    let shapes = [UNEQUAL, [2, 8, 64, 64], [4, 4, 40, 72], [1, 5, 24, 8], [5, 5, 8, 24], [1, 1, 576, 512]];
    for (case, shape) in shapes.into_iter().enumerate() {
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
            for layout in 0..4 {
                let mut model = model(shape, dtype, 1);
                if (case + layout) % 2 == 0 {
                    model.softcap = Some(5.0);
                    model.sink_logits = vec![logits(8, &model)];
                }
                let native = layout % 2 == case % 2;
                let tokens = if shape[2] > 500 { 70 } else { 140 };
                let kv = Kv::new(case as u64, tokens, &model);
                let mut context = memory_store().create_with("layout", &model, small_options()).unwrap();
                append_laid_out(&mut context, &kv, layout, if native { dtype } else { Dtype::F32 });
                context.seal().unwrap();
                assert_eq!(context.length(0).unwrap(), tokens as u64);
                attend_and_check(&mut context, &[kv], 0, 4, layout as u64);
            }
        }
    }
}

fn append_laid_out(context: &mut Context, kv: &Kv, layout: usize, dtype: Dtype) {
    let (keys, key_shape, key_strides) = laid_out(kv, true, layout);
    // Values come in another layout than keys.
    let (values, value_shape, value_strides) = laid_out(kv, false, (layout + 1) % 4);
    let (keys, values) = (Numbers::of(dtype, &keys), Numbers::of(dtype, &values));
    let keys = TensorView::with_strides(keys.rows(), key_shape, key_strides);
    let values = TensorView::with_strides(values.rows(), value_shape, value_strides);
    context.append(0, &keys, &values).unwrap();
}

#[test]
fn queries_of_any_type_and_layout_ask_the_same() {
    let model = model(UNEQUAL, Dtype::F16, 1);
    let kv = Kv::new(1, 100, &model);
    let mut context = memory_store().create_with("queries", &model, small_options()).unwrap();
    kv.append(&mut context, 0, 0..100);
    context.seal().unwrap();
    let (positions, heads, dim) = (5, 6, 24);
    // Numbers that all three types hold.
    let asked: Vec<f32> = queries(3, positions, &model).iter().map(|x| (x * 32.0).round() / 32.0).collect();
    let expected = context.attend(0, &query_view(&asked, &model), &Budget::Exact).unwrap();
    check_exact(&model, 0, &kv, 100, &asked, &expected);
    let by_head: Vec<f32> = (0..heads)
        .flat_map(|head| (0..positions).map(move |position| (position * heads + head) * dim))
        .flat_map(|start| asked[start..start + dim].to_vec())
        .collect();
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        let by_head = Numbers::of(dtype, &by_head);
        let view = TensorView::head_major(by_head.rows(), positions, heads, dim);
        let answer = context.attend(0, &view, &Budget::Exact).unwrap();
        assert_eq!(bits(&answer), bits(&expected), "{dtype}");
    }
}

#[test]
fn f32_input_is_rounded_to_nearest_even() {
    let mut model = model([1, 1, 8, 8], Dtype::F16, 1);
    model.scale = 1.0;
    let mut context = memory_store().create("rounding", &model).unwrap();
    // One row: the output is its value. 1 + 2^-11 lies between 1 and the next f16, and 1 is even.
    let keys = [0.25f32; 8];
    let values = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65519.0, -65504.0, 1e-9, 6e-8, -0.1, 3.0f32];
    let view = |data| TensorView::token_major(Rows::F32(data), 1, 1, 8);
    context.append(0, &view(&keys), &view(&values)).unwrap();
    let answer = context.attend(0, &view(&keys), &Budget::Exact).unwrap();
    let expected = [1.0, 1.0 + 4.0 / 2048.0, 65504.0, -65504.0, 0.0, 5.960_464_5e-8, -0.099_975_586, 3.0];
    assert_eq!(answer.output, expected);
    assert_eq!(answer.lse, [0.5]);
}

#[test]
fn extreme_rows_and_queries_are_survived() {
    // Larger rows than these could not be added up in f32.
    for (dtype, most) in [(Dtype::F16, 65504.0f32), (Dtype::Bf16, 1e30), (Dtype::F32, 1e30)] {
        let mut model = model(UNEQUAL, dtype, 1);
        model.scale = 1.0;
        let mut kv = Kv::new(1, 200, &model);
        for (at, x) in kv.keys.iter_mut().chain(&mut kv.values).enumerate() {
            *x = crate::sample::round(dtype, [most, -most, 0.0, 1e-7, 1.0][at % 5]);
        }
        let mut context = memory_store().create_with("extreme", &model, small_options()).unwrap();
        kv.append(&mut context, 0, 0..200);
        context.seal().unwrap();
        // Tiny queries: finite scores, although the distances between keys overflow. Huge ones: whatever the scores
        // are, there is an answer of the right size.
        for scale in [1e-38f32, 1e30] {
            let queries: Vec<f32> = queries(1, 2, &model).iter().map(|x| x * scale).collect();
            for budget in [Budget::Exact, Budget::RETROINFER] {
                let answer = context.attend(0, &query_view(&queries, &model), &budget).unwrap();
                assert_eq!((answer.output.len(), answer.lse.len()), (2 * 6 * 16, 2 * 6));
                if scale < 1.0 {
                    assert!(answer.output.iter().chain(&answer.lse).all(|x| !x.is_nan()), "{dtype} {budget}");
                }
            }
        }
    }
}
