//! Calls on segments of one's own choice, by any rule: what contexts do not offer.

use super::Case;
use crate::sample::{Kv, Numbers};
use longwave::{Answer, Dtype, LayerSegment};
use longwave_query::{Error, LayerView, QueryBatch, RowBlock, Scoring, Shape, TauRule, attend_by};
use std::ops::Range;

impl Case {
    /// The answer to queries at the last positions from `segments`, which hold the case's rows, by `rule`.
    pub fn attend_over(&self, segments: &[&LayerSegment], queries: &[f32], rule: &dyn TauRule) -> Answer {
        self.try_attend_over(segments, queries, rule).unwrap()
    }

    /// The same, where a segment may be damaged.
    pub fn try_attend_over(
        &self,
        segments: &[&LayerSegment],
        queries: &[f32],
        rule: &dyn TauRule,
    ) -> Result<Answer, Error> {
        let model = &self.model;
        let end = segments.last().unwrap().end() as usize;
        let ranges = [0..self.options.sinks as usize, end..self.kv.tokens()];
        let numbers: Vec<_> =
            ranges.iter().map(|range| numbers(&self.kv, model.dtype, range.clone())).collect();
        let blocks = ranges.iter().zip(&numbers).map(|(range, heads)| RowBlock {
            first_position: range.start as u64,
            rows: range.len(),
            keys: heads.iter().map(|(keys, _)| keys.rows()).collect(),
            values: heads.iter().map(|(_, values)| values.rows()).collect(),
        });
        let scoring = Scoring {
            scale: model.scale,
            softcap: model.softcap,
            sink_logits: model.sink_logits.first().cloned().unwrap_or_default(),
            sliding_window: None,
            window: u64::from(self.options.window),
        };
        let shape = Shape {
            query_heads: model.query_heads,
            kv_heads: model.kv_heads,
            key_dim: model.key_dim,
            value_dim: model.value_dim,
            dtype: model.dtype,
        };
        let view = LayerView {
            shape,
            scoring: &scoring,
            segments: segments.to_vec(),
            blocks: blocks.collect(),
            demoted: vec![],
            watched: false,
        };
        let positions = queries.len() / model.query_heads / model.key_dim;
        let first_position = (self.kv.tokens() - positions) as u64;
        attend_by(&view, &QueryBatch { data: queries, first_position, positions }, rule)
    }
}

/// Keys and values of each KV head at the tokens `range`, in the element type.
fn numbers(kv: &Kv, dtype: Dtype, range: Range<usize>) -> Vec<(Numbers, Numbers)> {
    let of = |numbers: &[f32], dim: usize, head: usize| {
        let rows = numbers.chunks_exact(dim).skip(head).step_by(kv.kv_heads);
        let rows: Vec<f32> = rows.skip(range.start).take(range.len()).flatten().copied().collect();
        Numbers::of(dtype, &rows)
    };
    (0..kv.kv_heads).map(|h| (of(&kv.keys, kv.key_dim, h), of(&kv.values, kv.value_dim, h))).collect()
}
