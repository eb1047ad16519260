//! One layer of a trace: built once for each kind of index, and asked.

use super::bounds::Bounds;
use super::oracle::Oracle;
use super::reference::Reference;
use super::summary::Sample;
use crate::import::{append, observe};
use crate::method::IndexKind;
use crate::trace::{Trace, TraceLayer};
use anyhow::Result;
use longwave::{Budget, Dtype, Durability, Rebuild, RowForm, Snapshot, Store, StoreOptions, TensorView};
use rayon::prelude::*;

/// A layer with the answers that its asked queries should have.
pub(super) struct Layer<'a> {
    pub(super) trace: &'a Trace,
    pub(super) number: usize,
    pub(super) dtype: Dtype,
    form: RowForm,
    /// All recorded queries, `[queries, query_heads, key_dim]`.
    queries: Vec<f32>,
    asked: &'a [usize],
    /// The trace whose queries the index is built with, where it is another.
    moment: Option<&'a Trace>,
    /// Per asked query: `[query_heads, value_dim]`.
    truth: Vec<Vec<f64>>,
    built: Vec<(IndexKind, Snapshot)>,
}

/// What one method did with one query.
pub(super) struct Asked {
    pub(super) samples: Vec<Sample>,
    /// Bytes of sealed columns.
    pub(super) bytes: u64,
}

impl<'a> Layer<'a> {
    /// Reads a layer, finds the true answers, and builds the indexes in `kinds`.
    pub(super) fn new(
        (trace, moment): (&'a Trace, Option<&'a Trace>),
        number: usize,
        asked: &'a [usize],
        (dtype, form): (Dtype, RowForm),
        kinds: &[(IndexKind, Option<u32>)],
    ) -> Result<Layer<'a>> {
        let rows = trace.layer(number)?;
        let reference = Reference::new(trace, &rows, dtype);
        let truth = asked.par_iter().map(|&query| reference.attend(trace, &rows, query)).collect();
        drop(reference);
        let mut layer = Layer {
            trace,
            number,
            dtype,
            form,
            queries: Vec::new(),
            asked,
            moment,
            truth,
            built: Vec::new(),
        };
        for &(kind, tokens) in kinds {
            layer.built.push((kind, layer.build(&rows, kind, tokens)?));
        }
        layer.queries = rows.queries;
        Ok(layer)
    }

    /// A context in memory that holds the layer up to the first query.
    fn build(&self, rows: &TraceLayer, kind: IndexKind, tokens: Option<u32>) -> Result<Snapshot> {
        let store = Store::in_memory(StoreOptions::default())?;
        let model = self.trace.model(self.dtype, &[self.number]);
        if let Some(other) = self.moment {
            // As a store knows queries of the model from another text: by the profile that its context leaves.
            let options = kind.options(tokens).with_sample_positions(other.queries as u32);
            let mut earlier = store.create_with("earlier", &model, options)?;
            observe(other, &mut earlier, self.number)?;
            earlier.commit(Durability::None)?;
        }
        let mut options = kind.options(tokens).with_rows(self.form);
        if self.form == RowForm::Codes {
            // Rows that are to be built again would stay in full until then.
            options = options.with_rebuild(Rebuild::Never);
        }
        let mut context = store.create_with("eval", &model, options)?;
        let Trace { query_heads, key_dim, first_query_position, .. } = *self.trace;
        let (quarter, row) = (self.trace.queries / 4, query_heads * key_dim);
        let part = |number: usize| {
            let queries = &rows.queries[number * quarter * row..(number + 1) * quarter * row];
            TensorView::token_major(queries, quarter, query_heads, key_dim)
        };
        if quarter > 0 && self.moment.is_none() {
            context.observe_at(self.number, first_query_position as u64, &part(0))?;
        }
        append(self.trace, &mut context, self.number, first_query_position)?;
        context.seal()?;
        if quarter > 0 && kind == IndexKind::Ladder {
            context.audit(self.number, &part(1))?;
        }
        Ok(context.snapshot()?)
    }

    /// Asks every query.
    pub(super) fn ask(&self, budget: &Budget, confidence: f64) -> Result<Vec<Asked>> {
        let (query_heads, key_dim) = (self.trace.query_heads, self.trace.key_dim);
        let snapshot = self.snapshot(self.kind_for(budget));
        let bounds = Bounds::new(snapshot.calibration(self.number)?, budget, confidence);
        let ask = |(&query, truth): (&usize, &Vec<f64>)| {
            let queries = TensorView::token_major(self.query(query), 1, query_heads, key_dim);
            let answer = snapshot.attend(self.number, &queries, budget)?;
            let samples = Sample::of((self.number, query), &answer, &bounds, truth);
            Ok(Asked { samples, bytes: answer.report.traffic.bytes() })
        };
        self.asked.par_iter().zip(&self.truth).map(ask).collect()
    }

    /// Asks the oracle, which may spend on each query what each of `spent` did.
    pub(super) fn ask_oracle(&self, spent: &[&[Asked]]) -> Result<Vec<Vec<Sample>>> {
        let rows = self.trace.layer(self.number)?;
        let oracle =
            Oracle::new(self.trace, &rows, self.dtype, self.number, self.snapshot(IndexKind::Ladder))?;
        let ask = |at: usize| -> Vec<Vec<Sample>> {
            let known = oracle.look(self.query(self.asked[at]));
            let budgets = spent.iter().map(|answers| answers[at].bytes);
            budgets
                .map(|bytes| {
                    let read = known.read(&oracle, bytes);
                    read.samples(self.number, self.asked[at], &self.truth[at])
                })
                .collect()
        };
        let done: Vec<Vec<Vec<Sample>>> = (0..self.asked.len()).into_par_iter().map(ask).collect();
        let mut samples: Vec<Vec<Sample>> = spent.iter().map(|_| Vec::new()).collect();
        for (all, of_query) in done.into_iter().flat_map(|query| query.into_iter().enumerate()) {
            samples[all].extend(of_query);
        }
        Ok(samples)
    }

    /// Recorded query `query`, `[query_heads, key_dim]`.
    pub(super) fn query(&self, query: usize) -> &[f32] {
        let row = self.trace.query_heads * self.trace.key_dim;
        &self.queries[query * row..(query + 1) * row]
    }

    /// Bytes of the segments of the index that a budget reads, and those of their keys and values at 16 bits an element.
    pub(super) fn disk_bytes(&self, budget: &Budget) -> Result<[u64; 2]> {
        let segments = self.snapshot(self.kind_for(budget)).segments(self.number)?;
        let rows: u64 = segments.iter().map(|segment| segment.rows() as u64).sum();
        let row = 2 * self.trace.kv_heads * (self.trace.key_dim + self.trace.value_dim);
        Ok([segments.iter().map(|segment| segment.segment().file_len()).sum(), rows * row as u64])
    }

    /// The index that a budget reads: where rows are codes, they are the ladder's.
    fn kind_for(&self, budget: &Budget) -> IndexKind {
        if self.form == RowForm::Codes { IndexKind::Ladder } else { IndexKind::of(budget) }
    }

    pub(super) fn snapshot(&self, kind: IndexKind) -> &Snapshot {
        let found = self.built.iter().find(|(built, _)| *built == kind);
        &found.expect("the indexes of all budgets are built first").1
    }
}
