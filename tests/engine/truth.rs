//! What an answer must be, in float64, with the error that rounding explains.

use crate::sample::Kv;
use longwave::{Answer, LayerKind, ModelSpec, Rows};
use longwave_kernels::oracle::{self, Bounded};
use std::ops::Range;

/// What stands in the softmax of one query position and KV head: rows, or clusters that stand for `counts` rows.
#[derive(Default)]
pub struct Pool {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    pub counts: Vec<f32>,
}

impl Pool {
    pub fn push(&mut self, key: &[f32], value: &[f32], count: f32) {
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
        self.counts.push(count);
    }

    /// Rows `range` of one KV head.
    pub fn push_rows(&mut self, kv: &Kv, head: usize, range: Range<u64>) {
        for token in range.start as usize..range.end as usize {
            let at = token * kv.kv_heads + head;
            let key = &kv.keys[at * kv.key_dim..(at + 1) * kv.key_dim];
            self.push(key, &kv.values[at * kv.value_dim..(at + 1) * kv.value_dim], 1.0);
        }
    }
}

/// Scores `[row][group]` of the queries of one position and KV head, with the softcap.
pub fn scores(model: &ModelSpec, queries: &[f32], keys: &[f32]) -> Bounded {
    let scaled: Vec<f32> = queries.iter().map(|x| x * model.scale).collect();
    let heads = queries.len() / model.key_dim;
    let mut scores = oracle::scores(&scaled, heads, model.key_dim, Rows::F32(keys));
    if let Some(cap) = model.softcap.map(f64::from) {
        scores.values.iter_mut().for_each(|score| *score = oracle::softcap(*score, cap));
        scores.bounds.iter_mut().for_each(|bound| *bound += oracle::SOFTCAP_ERROR * cap);
    }
    scores
}

/// Panics unless the heads of `answer` at index `at` of the batch that share KV head `head` are the attention over
/// `pool`.
pub fn check_head(
    model: &ModelSpec,
    layer: usize,
    (at, head): (usize, usize),
    queries: &[f32],
    pool: Pool,
    answer: &Answer,
) {
    let Pool { keys, mut values, mut counts } = pool;
    let group = model.query_heads / model.kv_heads;
    let first = at * model.query_heads + head * group;
    let mine = &queries[first * model.key_dim..(first + group) * model.key_dim];
    let mut scores = scores(model, mine, &keys);
    if let Some(logits) = model.sink_logits.get(layer).filter(|logits| !logits.is_empty()) {
        scores.values.extend(logits[head * group..(head + 1) * group].iter().map(|&x| f64::from(x)));
        scores.bounds.extend(vec![0.0; group]);
        values.extend(vec![0.0; model.value_dim]);
        counts.push(1.0);
    }
    // A block is 16 rows; at the worst every few rows are a piece of their own, whose state is merged.
    let additions = 40 + counts.len() / 4;
    let (output, lse) =
        oracle::softmax(&scores, group, Some(&counts), model.value_dim, Rows::F32(&values), additions);
    let place = format!("layer {layer}, query {at}, KV head {head}, {} entries", counts.len());
    let dim = model.value_dim;
    output
        .check(&answer.output[first * dim..(first + group) * dim])
        .unwrap_or_else(|off| panic!("{place}: output {off}"));
    lse.check(&answer.lse[first..first + group]).unwrap_or_else(|off| panic!("{place}: lse {off}"));
}

/// The positions that a query at `position` may see.
pub fn visible(model: &ModelSpec, layer: usize, position: u64) -> Range<u64> {
    match model.layer_kind(layer) {
        LayerKind::SlidingWindow(window) => (position + 1).saturating_sub(window)..position + 1,
        _ => 0..position + 1,
    }
}

/// Panics unless `answer` is exact attention of `queries` at the last positions of `length` rows.
pub fn check_exact(model: &ModelSpec, layer: usize, kv: &Kv, length: u64, queries: &[f32], answer: &Answer) {
    let positions = queries.len() / model.query_heads / model.key_dim;
    assert_eq!(answer.output.len(), positions * model.query_heads * model.value_dim);
    assert_eq!(answer.lse.len(), positions * model.query_heads);
    for at in 0..positions {
        let position = length - positions as u64 + at as u64;
        for head in 0..model.kv_heads {
            let mut pool = Pool::default();
            pool.push_rows(kv, head, visible(model, layer, position));
            check_head(model, layer, (at, head), queries, pool, answer);
        }
    }
}

/// Panics unless the answers to queries made by `own_key_queries` for `positions` are those positions' values: every one
/// of the rows is there, with its own content, in its own place.
pub fn check_own_values(model: &ModelSpec, kv: &Kv, positions: Range<usize>, answer: &Answer) {
    let (group, dim) = (model.query_heads / model.kv_heads, model.value_dim);
    for (at, token) in positions.enumerate() {
        for head in 0..model.query_heads {
            let output = &answer.output[(at * model.query_heads + head) * dim..][..dim];
            let value = &kv.values[(token * kv.kv_heads + head / group) * dim..][..dim];
            let off = output.iter().zip(value).map(|(o, v)| (o - v).abs()).fold(0.0, f32::max);
            assert!(off < 0.01, "row {token}, head {head}: {output:?} for {value:?}");
        }
    }
}
