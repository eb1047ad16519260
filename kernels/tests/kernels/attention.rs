use longwave_kernels::oracle::{Attention, attention, attention_bounded};
use longwave_kernels::{AttentionState, Dtype, Kernels, Rows};

use crate::DIMS;
use crate::isas::every_isa;
use crate::sample::{Sample, Stored, bits, panics_with};

/// The longest chain of additions for `rows` rows that `attend_rows` is called with `calls` times: sixteen in a
/// block, the blocks of a span, the spans, the calls.
fn additions(rows: usize, calls: usize) -> usize {
    16 + rows.div_ceil(16).min(64) + rows.div_ceil(1024) + calls
}

fn finish(state: &AttentionState) -> (Vec<f32>, Vec<f32>) {
    let mut output = vec![f32::NAN; state.heads() * state.value_dim()];
    let mut lse = vec![f32::NAN; state.heads()];
    state.finish(&mut output, &mut lse);
    (output, lse)
}

fn attend(kernels: &Kernels, call: &Attention<'_>) -> (Vec<f32>, Vec<f32>) {
    let mut state = AttentionState::new(call.heads, call.value_dim);
    // Whatever the scratch holds must not matter.
    let mut scratch = vec![f32::NAN; 100];
    let (keys, values) = (call.keys, call.values);
    kernels.attend_rows(&mut state, call.queries, call.key_dim, keys, values, call.softcap, &mut scratch);
    finish(&state)
}

fn check(kernels: &Kernels, call: &Attention<'_>, context: &str) {
    let (output, lse) = attend(kernels, call);
    let (expected_output, expected_lse) =
        attention_bounded(call, additions(call.keys.len() / call.key_dim, 1));
    assert_eq!(expected_output.check(&output), Ok(()), "{} output, {context}", kernels.isa());
    assert_eq!(expected_lse.check(&lse), Ok(()), "{} lse, {context}", kernels.isa());
}

#[test]
fn every_number_of_rows_and_heads() {
    let (key_dim, value_dim) = (24, 40);
    for dtype in Dtype::ALL {
        for heads in 1..=9 {
            let mut sample = Sample::new(heads as u64 + 40);
            let queries = sample.numbers(heads * key_dim, 1.0);
            let keys = sample.stored(dtype, 40 * key_dim, 2.0);
            let values = sample.stored(dtype, 40 * value_dim, 5.0);
            for count in 0..=40 {
                let call = Attention {
                    queries: &queries,
                    heads,
                    key_dim,
                    keys: keys.rows().slice(0..count * key_dim),
                    value_dim,
                    values: values.rows().slice(0..count * value_dim),
                    counts: None,
                    softcap: None,
                };
                for kernels in every_isa() {
                    check(kernels, &call, &format!("{dtype}, {heads} heads, {count} rows"));
                }
            }
        }
    }
}

#[test]
fn every_dimension_with_keys_and_values_of_different_ones_and_types() {
    for (place, key_dim) in DIMS.into_iter().enumerate() {
        let value_dim = DIMS[(place + 3) % DIMS.len()];
        let mut sample = Sample::new(place as u64 + 60);
        let (heads, count) = (1 + place % 7, 90 + place);
        let queries = sample.numbers(heads * key_dim, 1.0 / (key_dim as f32).sqrt());
        let keys = sample.stored(Dtype::ALL[place % 3], count * key_dim, 8.0);
        let values = sample.stored(Dtype::ALL[(place / 3) % 3], count * value_dim, 1.0);
        for softcap in [None, Some(3.0)] {
            let call = Attention {
                queries: &queries,
                heads,
                key_dim,
                keys: keys.rows(),
                value_dim,
                values: values.rows(),
                counts: None,
                softcap,
            };
            for kernels in every_isa() {
                check(kernels, &call, &format!("{key_dim} and {value_dim}, cap {softcap:?}"));
            }
        }
    }
}

/// Keys, values and queries whose scores rise along the rows, so that maxima change in many blocks.
fn rising(count: usize, key_dim: usize, value_dim: usize) -> (Vec<f32>, Stored, Stored) {
    let mut sample = Sample::new(count as u64);
    let queries = sample.numbers(3 * key_dim, 1.0).iter().map(|x| x.abs()).collect();
    let keys: Vec<f32> =
        (0..count * key_dim).map(|i| sample.number(0.5) + (i / key_dim) as f32 * 0.001).collect();
    let values = sample.stored(Dtype::F16, count * value_dim, 2.0);
    (queries, Stored::narrow(Dtype::F16, &keys), values)
}

#[test]
fn long_runs_of_rows_and_their_spans() {
    let (key_dim, value_dim) = (16, 8);
    for count in [1023, 1024, 1025, 5000] {
        let (queries, keys, values) = rising(count, key_dim, value_dim);
        let call = Attention {
            queries: &queries,
            heads: 3,
            key_dim,
            keys: keys.rows(),
            value_dim,
            values: values.rows(),
            counts: None,
            softcap: None,
        };
        for kernels in every_isa() {
            check(kernels, &call, &format!("{count} rows"));
        }
    }
}

#[test]
fn splitting_at_spans_keeps_the_bits_and_elsewhere_the_bound() {
    let (key_dim, value_dim, count) = (16, 8, 2500);
    let (queries, keys, values) = rising(count, key_dim, value_dim);
    let call = Attention {
        queries: &queries,
        heads: 3,
        key_dim,
        keys: keys.rows(),
        value_dim,
        values: values.rows(),
        counts: None,
        softcap: None,
    };
    let (expected_output, expected_lse) = attention_bounded(&call, additions(count, 2));
    for kernels in every_isa() {
        let whole = attend(kernels, &call);
        for cut in [0, 1, 15, 16, 700, 1024, 1025, 2048, 2499, 2500] {
            let mut state = AttentionState::new(3, value_dim);
            let mut scratch = Vec::new();
            for part in [0..cut, cut..count] {
                let keys = keys.rows().slice(part.start * key_dim..part.end * key_dim);
                let values = values.rows().slice(part.start * value_dim..part.end * value_dim);
                kernels.attend_rows(&mut state, &queries, key_dim, keys, values, None, &mut scratch);
            }
            let (output, lse) = finish(&state);
            assert_eq!(expected_output.check(&output), Ok(()), "{} cut at {cut}", kernels.isa());
            assert_eq!(expected_lse.check(&lse), Ok(()), "{} cut at {cut}", kernels.isa());
            if cut % 1024 == 0 {
                assert_eq!(bits(&output), bits(&whole.0), "{} cut at {cut}", kernels.isa());
                assert_eq!(bits(&lse), bits(&whole.1), "{} cut at {cut}", kernels.isa());
            }
        }
    }
}

#[test]
fn many_heads_as_several_positions_make_them() {
    let (heads, key_dim, value_dim, count) = (1030, 16, 24, 37);
    let mut sample = Sample::new(90);
    let queries = sample.numbers(heads * key_dim, 1.0);
    let keys = sample.stored(Dtype::Bf16, count * key_dim, 2.0);
    let values = sample.stored(Dtype::Bf16, count * value_dim, 1.0);
    let call = Attention {
        queries: &queries,
        heads,
        key_dim,
        keys: keys.rows(),
        value_dim,
        values: values.rows(),
        counts: None,
        softcap: None,
    };
    for kernels in every_isa() {
        check(kernels, &call, "1030 heads");
    }
}

#[test]
fn gathered_attention_has_the_bits_of_the_listed_rows_and_touches_no_other() {
    let (heads, key_dim, value_dim) = (3, 72, 24);
    for dtype in Dtype::ALL {
        let mut sample = Sample::new(91);
        let queries = sample.numbers(heads * key_dim, 0.3);
        let keys = sample.stored(dtype, 200 * key_dim, 2.0);
        let values = sample.stored(dtype, 200 * value_dim, 1.0);
        for count in [0, 1, 15, 16, 17, 31, 33, 100] {
            let listed: Vec<u32> = (0..count).map(|_| sample.below(190) as u32).collect();
            let (picked_keys, picked_values) =
                (keys.picked(key_dim, &listed), values.picked(value_dim, &listed));
            let (keys, values) = (keys.poisoned(key_dim, &listed), values.poisoned(value_dim, &listed));
            for softcap in [None, Some(5.0)] {
                let call = Attention {
                    queries: &queries,
                    heads,
                    key_dim,
                    keys: picked_keys.rows(),
                    value_dim,
                    values: picked_values.rows(),
                    counts: None,
                    softcap,
                };
                for kernels in every_isa() {
                    let mut state = AttentionState::new(heads, value_dim);
                    kernels.attend_gathered(
                        &mut state,
                        &queries,
                        key_dim,
                        keys.rows(),
                        values.rows(),
                        &listed,
                        softcap,
                        &mut Vec::new(),
                    );
                    let (output, lse) = finish(&state);
                    let expected = attend(kernels, &call);
                    assert_eq!(bits(&output), bits(&expected.0), "{} {count}", kernels.isa());
                    assert_eq!(bits(&lse), bits(&expected.1), "{} {count}", kernels.isa());
                    assert!(output.iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}

#[test]
fn extreme_scores_neither_overflow_nor_lose_the_largest() {
    let (key_dim, value_dim) = (8, 8);
    for scores in [
        vec![1e30f32, -1e30, 1e30, 0.0],
        vec![-3e38, -3e38, -3.1e38],
        vec![-200.0, 0.0, 200.0, 100.0],
        vec![1e-40, -1e-40, 0.0, -0.0],
    ] {
        let count = scores.len();
        let mut keys = vec![0.0; count * key_dim];
        for (row, score) in scores.iter().enumerate() {
            keys[row * key_dim + 3] = *score;
        }
        let mut queries = vec![0.0; key_dim];
        queries[3] = 1.0;
        let values: Vec<f32> = (0..count * value_dim).map(|i| i as f32 - 3.0).collect();
        let call = Attention {
            queries: &queries,
            heads: 1,
            key_dim,
            keys: Rows::F32(&keys),
            value_dim,
            values: Rows::F32(&values),
            counts: None,
            softcap: None,
        };
        let (expected, expected_lse) = attention(&call);
        for kernels in every_isa() {
            let (output, lse) = attend(kernels, &call);
            for (actual, expected) in output.iter().zip(&expected) {
                assert!((f64::from(*actual) - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{scores:?}");
            }
            let error = (f64::from(lse[0]) - expected_lse[0]).abs();
            assert!(error <= 2.4e-7 * expected_lse[0].abs().max(1.0), "{scores:?}");
        }
    }
}

#[test]
fn wrong_shapes_panic_and_leave_the_state() {
    for kernels in every_isa() {
        let mut state = AttentionState::new(2, 16);
        let (keys, values) = (vec![1.0f32; 5 * 8], vec![1.0f32; 6 * 16]);
        let (keys, values) = (Rows::F32(&keys), Rows::F32(&values));
        let mut scratch = Vec::new();
        assert!(panics_with("5 keys for 6 values", || {
            kernels.attend_rows(&mut state, &[1.0; 16], 8, keys, values, None, &mut scratch);
        }));
        assert!(panics_with("row 5 is listed, but there are 5 rows", || {
            let listed = [1, 5];
            kernels.attend_gathered(&mut state, &[1.0; 16], 8, keys, values, &listed, None, &mut scratch);
        }));
        assert!(panics_with("expected 2 heads of 8, found 24", || {
            let values = values.slice(0..80);
            kernels.attend_rows(&mut state, &[1.0; 24], 8, keys, values, None, &mut scratch);
        }));
        assert_eq!(state.lse(0), f32::NEG_INFINITY);
    }
}
