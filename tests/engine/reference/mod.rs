//! The method `longwave` once more, in float64, from what a segment stores: what it answers, what it says of its
//! error, and which bytes it touches.

mod follow;
mod keys;
mod method;
mod pieces;
mod rewrite;
mod stored;
mod view;

pub use method::{Choice, Question, Reference, Resolution, Steady, answer};
pub use pieces::{Piece, pieces, plain_pieces, traffic};
pub use rewrite::{columns_of, replace};
pub use stored::{StoredHead, distance2, dot, wide};

use crate::sample::{Kv, Sample, query_view, round, small_options, store_on};
use longwave::storage::{Backend, MemoryBackend};
use longwave::{ClusterOptions, ContextOptions, Durability, LayerSegment, ModelSpec, Snapshot};
use std::sync::Arc;

/// Decisions closer to their threshold than this may go either way for float32's rounding.
pub const MARGIN: f64 = 1e-4;

/// A committed context of one layer whose first segments were sealed in bulk and the others while decoding.
pub struct Case {
    pub model: ModelSpec,
    pub options: ContextOptions,
    pub kv: Kv,
    pub backend: Arc<dyn Backend>,
    /// The same files.
    pub memory: MemoryBackend,
    pub snapshot: Snapshot,
}

impl Case {
    pub fn new(model: ModelSpec, options: ContextOptions, kv: Kv, observed: &[f32]) -> Case {
        let bulk = kv.tokens() * 3 / 4;
        Case::sealed(model, options, kv, observed, bulk)
    }

    /// A context whose first `bulk` tokens come at once and the others one by one.
    pub fn sealed(model: ModelSpec, options: ContextOptions, kv: Kv, observed: &[f32], bulk: usize) -> Case {
        let memory = MemoryBackend::new();
        let backend: Arc<dyn Backend> = Arc::new(memory.clone());
        let store = store_on(&backend);
        let mut context = store.create_with("case", &model, options.clone()).unwrap();
        context.observe_at(0, 0, &query_view(observed, &model)).unwrap();
        kv.append(&mut context, 0, 0..bulk);
        context.seal().unwrap();
        (bulk..kv.tokens()).for_each(|token| kv.append(&mut context, 0, token..token + 1));
        context.seal().unwrap();
        context.commit(Durability::Strict).unwrap();
        let snapshot = context.snapshot().unwrap();
        Case { model, options, kv, backend, memory, snapshot }
    }

    /// The context as the backend holds it by now.
    pub fn reopened(&self) -> Snapshot {
        store_on(&self.backend).snapshot("case").unwrap()
    }

    pub fn segments(&self) -> Vec<&LayerSegment> {
        self.snapshot.segments(0).unwrap()
    }

    /// How many segments may be summarised for queries at the last `positions` positions.
    pub fn summarised(&self, positions: usize) -> usize {
        let last = (self.kv.tokens() - positions + 1).saturating_sub(self.options.window.max(1) as usize);
        self.segments().iter().take_while(|segment| segment.end() <= last as u64).count()
    }

    pub fn group(&self) -> usize {
        self.model.query_heads / self.model.kv_heads
    }

    /// What one position and KV head of a batch is answered from besides summaries, and its queries, scaled.
    pub fn unit(&self, queries: &[f32], at: usize, kv_head: usize) -> (Vec<Vec<f64>>, Vec<Steady>) {
        let (model, group) = (&self.model, self.group());
        let positions = queries.len() / model.query_heads / model.key_dim;
        let first = (at * model.query_heads + kv_head * group) * model.key_dim;
        let scaled: Vec<Vec<f64>> = queries[first..first + group * model.key_dim]
            .chunks_exact(model.key_dim)
            .map(|query| query.iter().map(|&x| f64::from(x) * f64::from(model.scale)).collect())
            .collect();
        let sinks = self.options.sinks as usize;
        let sealed = self
            .summarised(positions)
            .checked_sub(1)
            .map_or(sinks as u64, |last| self.segments()[last].end());
        let rows = (0..sinks).chain(sealed as usize..self.kv.tokens() - positions + at + 1);
        let rows: Vec<usize> = rows.collect();
        let steady = scaled.iter().enumerate().map(|(g, query)| {
            let logit = model.sink_logits.first().and_then(|logits| logits.get(kv_head * group + g));
            self.steady(kv_head, query, &rows, logit.map(|&logit| f64::from(logit)))
        });
        (scaled.clone(), steady.collect())
    }

    fn steady(&self, kv_head: usize, query: &[f64], rows: &[usize], logit: Option<f64>) -> Steady {
        let row = |numbers: &[f32], dim: usize, token: usize| {
            wide(&numbers[(token * self.model.kv_heads + kv_head) * dim..][..dim])
        };
        let softcap = self.model.softcap.map(f64::from);
        let score =
            |token: &usize| method::cap(dot(query, &row(&self.kv.keys, self.model.key_dim, *token)), softcap);
        let scores: Vec<f64> = rows.iter().map(score).collect();
        let top = scores.iter().copied().chain(logit).fold(f64::NEG_INFINITY, f64::max);
        let mut total = logit.map_or(0.0, |logit| (logit - top).exp());
        let mut output = vec![0.0; self.model.value_dim];
        for (&token, score) in rows.iter().zip(scores) {
            let weight = (score - top).exp();
            total += weight;
            stored::add(&mut output, weight, &row(&self.kv.values, self.model.value_dim, token));
        }
        output.iter_mut().for_each(|x| *x /= total);
        Steady { lse: top + total.ln(), output }
    }

    /// The ladders of all KV heads, for queries at the last `positions` positions.
    pub fn ladders(&self, positions: usize) -> Vec<StoredHead> {
        let segments = &self.segments()[..self.summarised(positions)];
        (0..self.model.kv_heads).map(|head| StoredHead::read(segments, &self.model, head)).collect()
    }

    /// The reference's answer to one position and KV head of a batch.
    pub fn answer(
        &self,
        ladder: &StoredHead,
        queries: &[f32],
        (at, kv_head): (usize, usize),
        tau: f64,
    ) -> Reference {
        self.answer_with(ladder, queries, (at, kv_head), tau, true)
    }

    /// The same where rows can be had in full, or as codes and no finer.
    pub fn answer_with(
        &self,
        ladder: &StoredHead,
        queries: &[f32],
        (at, kv_head): (usize, usize),
        tau: f64,
        has_full: bool,
    ) -> Reference {
        let (queries, steady) = self.unit(queries, at, kv_head);
        let softcap = self.model.softcap.map(f64::from);
        answer(Question { head: ladder, queries: &queries, steady: &steady, softcap, tau, has_full })
    }
}

/// Segments of 300 rows in bulk and 90 in decoding, clusters of 12 rows.
pub fn case_options() -> ContextOptions {
    small_options()
        .with_segment_rows(300, 90)
        .with_clusters(ClusterOptions { tokens_per_cluster: 12, ..ClusterOptions::ladder() })
}

/// Rows around centres. `tight[head % 2]` says how far values lie from their centre's: where they are close, what
/// is wrong with a value mean matters; where they are not, what is wrong with single values.
pub fn centred(seed: u64, tokens: usize, model: &ModelSpec, tight: [f32; 2]) -> Kv {
    let mut kv = Kv::new(seed, 0, model);
    for token in 0..tokens {
        for head in 0..model.kv_heads {
            let mut row = Sample::new(seed ^ (token as u64) << 20 ^ (head as u64) << 44);
            let mut centre = Sample::new(seed ^ 99 ^ (row.below(40) as u64) << 8 ^ (head as u64) << 30);
            // Real keys share a mean that is large against their spread, and vary more in some directions.
            kv.keys.extend((0..model.key_dim).map(|i| {
                let (shared, wide) = (2.0 * (0.7 * i as f32).sin(), 1.4 / (1.0 + 0.2 * i as f32));
                round(model.dtype, shared + wide * centre.number() + 0.5 * wide * row.number())
            }));
            kv.values.extend((0..model.value_dim).map(|i| {
                let shared = 0.4 * (i as f32).cos();
                round(model.dtype, shared + centre.number() + tight[head % 2] * row.number())
            }));
        }
    }
    kv
}
