//! Several contexts asked in one call.

use crate::sample::{Kv, bits, memory_store, model, queries, query_view, small_options};
use longwave::{BatchCall, Budget, Dtype, Error, ModelSpec, Snapshot, attend_batch};

/// Contexts of unequal models and lengths in one store.
fn contexts() -> Vec<(ModelSpec, Snapshot)> {
    let store = memory_store();
    let shapes = [([1, 4, 32, 24], 900), ([3, 6, 16, 40], 2300), ([2, 8, 24, 16], 40)];
    let build = |(number, (shape, tokens)): (usize, ([usize; 4], usize))| {
        let model = model(shape, Dtype::F16, 2);
        let options = small_options().with_segment_rows(300, 90);
        let mut context = store.create_with(&format!("context-{number}"), &model, options).unwrap();
        for layer in 0..2 {
            Kv::new((10 * number + layer) as u64, tokens, &model).append(&mut context, layer, 0..tokens);
        }
        context.seal().unwrap();
        (model, context.snapshot().unwrap())
    };
    shapes.into_iter().enumerate().map(build).collect()
}

#[test]
fn a_batch_gives_the_bits_of_its_calls_and_errors_stay_where_they_belong() {
    let contexts = contexts();
    let asked: Vec<(usize, usize, Vec<f32>, Budget)> = (0..12)
        .map(|number| {
            let context = number % 3;
            let budget =
                [Budget::Exact, Budget::Tau(0.003), Budget::RETROINFER, Budget::Soonest(0.01)][number % 4];
            let queries = queries(number as u64, 1 + number % 5, &contexts[context].0);
            // One of them asks a layer that is not there.
            (context, if number == 7 { 9 } else { number / 3 % 2 }, queries, budget)
        })
        .collect();
    let calls: Vec<BatchCall<'_>> = asked
        .iter()
        .map(|(context, layer, queries, budget)| {
            let (model, snapshot) = &contexts[*context];
            BatchCall { snapshot, layer: *layer, queries: query_view(queries, model), budget: *budget }
        })
        .collect();
    let answers = attend_batch(&calls);
    assert_eq!(answers.len(), 12);
    for (number, (call, answer)) in calls.iter().zip(&answers).enumerate() {
        if number == 7 {
            assert!(matches!(answer, Err(Error::LayerOutOfRange { layer: 9, layers: 2 })), "{answer:?}");
            continue;
        }
        let (alone, answer) =
            (call.snapshot.attend(call.layer, &call.queries, &call.budget), answer.as_ref());
        let (alone, answer) = (alone.unwrap(), answer.unwrap());
        assert_eq!(bits(answer), bits(&alone), "call {number}");
        assert_eq!(answer.report.traffic, alone.report.traffic, "call {number}");
    }
    // Sequences differ, so that answers in another order would be noticed.
    assert_ne!(bits(answers[0].as_ref().unwrap()), bits(answers[3].as_ref().unwrap()));
    assert!(attend_batch(&[]).is_empty());
}
