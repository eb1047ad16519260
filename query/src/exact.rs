//! The method `exact`: every row is read.

use crate::budget::Method;
use crate::error::Error;
use crate::plan::{HeadPlan, Plan, PlannedRows};
use crate::report::{Answer, Operator, PositionReport, Report, Timings};
use crate::view::{LayerView, QueryBatch};
use crate::work::{HeadQueries, Piece, Source, Span, pieces, read_piece, reading};
use longwave_kernels::{AttentionState, Kernels};
use rayon::prelude::*;
use std::time::Instant;

/// What exact attention would read: every row that a query sees.
pub(crate) fn plan(view: &LayerView<'_>, queries: &QueryBatch<'_>) -> Result<Plan, Error> {
    Ok(plan_with_tail(view, queries)?.0)
}

/// The plan, and the rows of the tail that are read, summed over positions and KV heads.
fn plan_with_tail(view: &LayerView<'_>, queries: &QueryBatch<'_>) -> Result<(Plan, u64), Error> {
    let (mut heads, mut tail_rows) = (Vec::new(), 0);
    for position in queries.first_position..queries.first_position + queries.positions as u64 {
        for kv_head in 0..view.shape.kv_heads {
            let reading =
                reading(view, kv_head, Span { oldest: position, newest: position }, &view.segments)?;
            tail_rows += reading.tail_rows;
            heads.push(HeadPlan {
                position,
                kv_head,
                clusters: 0,
                read: Vec::new(),
                estimated: Vec::new(),
                rows: PlannedRows::default(),
                rows_scanned: 0,
                rows_coded: 0,
                rows_read: 0,
                rows_estimated: 0,
                rows_plain: reading.sealed_rows,
                traffic: reading.all(),
            });
        }
    }
    Ok((finish_plan(view, Method::Exact, heads), tail_rows))
}

pub(crate) fn finish_plan(view: &LayerView<'_>, method: Method, heads: Vec<HeadPlan>) -> Plan {
    let tail_rows = view.blocks.iter().map(|block| block.rows as u64).sum();
    Plan {
        method,
        heads,
        tail_rows,
        sealed_rows: sealed_rows(view),
        sealed_bytes_16bit: sealed_bytes_16bit(view),
        row_form: view.row_form(),
        disk: None,
    }
}

/// Sealed rows per KV head.
pub(crate) fn sealed_rows(view: &LayerView<'_>) -> u64 {
    view.segments.iter().map(|segment| segment.rows() as u64).sum()
}

/// Bytes of the sealed rows of all KV heads at 16 bits an element.
pub(crate) fn sealed_bytes_16bit(view: &LayerView<'_>) -> u64 {
    sealed_rows(view) * (view.shape.kv_heads * (view.shape.key_dim + view.shape.value_dim) * 2) as u64
}

/// Reads every row. Pieces of fixed size are read in parallel; their states merge in order of position.
pub(crate) fn attend(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
) -> Result<Answer, Error> {
    let heads: Vec<HeadQueries> = (0..view.shape.kv_heads)
        .map(|head| HeadQueries::gather(view, queries, head, 0..queries.positions))
        .collect();
    let work: Vec<Piece<'_>> = (0..view.shape.kv_heads).flat_map(|head| all_pieces(view, head)).collect();
    let done: Vec<(AttentionState, std::time::Duration)> = work
        .par_iter()
        .map_init(Vec::new, |scratch, piece| {
            let started = Instant::now();
            let mut state = AttentionState::new(heads[piece.head].heads, view.shape.value_dim);
            read_piece(kernels, view, &heads[piece.head], piece, &mut state, scratch)?;
            Ok((state, started.elapsed()))
        })
        .collect::<Result<_, Error>>()?;

    let mut started = Instant::now();
    let mut output = Output::new(view, queries);
    let mut timings = Timings::default();
    let mut states: Vec<AttentionState> =
        heads.iter().map(|head| AttentionState::new(head.heads, view.shape.value_dim)).collect();
    for (piece, (state, spent)) in work.iter().zip(&done) {
        states[piece.head].merge(state);
        let operator = if matches!(piece.source, Source::Block(_)) { Operator::Tail } else { Operator::Read };
        timings.add(operator, *spent);
    }
    for (head, state) in states.into_iter().enumerate() {
        output.put(view, head, 0..queries.positions, state);
    }
    timings.add(Operator::Merge, started.elapsed());

    started = Instant::now();
    let (plan, tail_rows) = plan_with_tail(view, queries)?;
    timings.add(Operator::Plan, started.elapsed());
    Ok(output.answer(view, &plan, tail_rows, timings))
}

fn all_pieces<'a>(view: &'a LayerView<'a>, head: usize) -> impl Iterator<Item = Piece<'a>> {
    let segments = view.segments.iter().flat_map(move |&segment| pieces(head, Source::Segment(segment)));
    segments.chain(view.blocks.iter().flat_map(move |block| pieces(head, Source::Block(block))))
}

/// The output of a call while its heads arrive.
pub(crate) struct Output {
    output: Vec<f32>,
    lse: Vec<f32>,
}

impl Output {
    pub(crate) fn new(view: &LayerView<'_>, queries: &QueryBatch<'_>) -> Self {
        let heads = queries.positions * view.shape.query_heads;
        Output { output: vec![0.0; heads * view.shape.value_dim], lse: vec![f32::NEG_INFINITY; heads] }
    }

    /// Takes the finished state of KV head `head` for `positions`: its heads are `[positions, group]`. Learned sink
    /// logits enter here, once.
    pub(crate) fn put(
        &mut self,
        view: &LayerView<'_>,
        head: usize,
        positions: std::ops::Range<usize>,
        mut state: AttentionState,
    ) {
        let (group, dim, query_heads) = (view.shape.group(), view.shape.value_dim, view.shape.query_heads);
        if !view.scoring.sink_logits.is_empty() {
            for local in 0..state.heads() {
                state.absorb_logit(local, view.scoring.sink_logits[head * group + local % group]);
            }
        }
        let mut output = vec![0.0; state.heads() * dim];
        let mut lse = vec![0.0; state.heads()];
        state.finish(&mut output, &mut lse);
        for (i, position) in positions.enumerate() {
            let to = position * query_heads + head * group;
            self.output[to * dim..(to + group) * dim]
                .copy_from_slice(&output[i * group * dim..(i + 1) * group * dim]);
            self.lse[to..to + group].copy_from_slice(&lse[i * group..(i + 1) * group]);
        }
    }

    /// Takes the finished output `[group, value_dim]` of KV head `head` at one position.
    pub(crate) fn put_finished(
        &mut self,
        view: &LayerView<'_>,
        head: usize,
        position: usize,
        output: &[f32],
        lse: &[f32],
    ) {
        let to = position * view.shape.query_heads + head * view.shape.group();
        self.output[to * view.shape.value_dim..][..output.len()].copy_from_slice(output);
        self.lse[to..][..lse.len()].copy_from_slice(lse);
    }

    /// The finished answer; what it read is what `plan` says.
    pub(crate) fn answer(
        self,
        view: &LayerView<'_>,
        plan: &Plan,
        tail_rows: u64,
        timings: Timings,
    ) -> Answer {
        let report = Report {
            method: plan.method,
            positions: plan.heads.chunks(view.shape.kv_heads).map(position_report).collect(),
            traffic: plan.traffic(),
            head_bytes: plan.heads.iter().map(|head| head.traffic.bytes()).collect(),
            tail_rows,
            sealed_rows: plan.sealed_rows * view.shape.kv_heads as u64,
            sealed_bytes_16bit: plan.sealed_bytes_16bit,
            row_form: plan.row_form,
            predicted_error: Vec::new(),
            bound: Vec::new(),
            confidence: None,
            taus: Vec::new(),
            capped: Vec::new(),
            disk: None,
            attempts: plan.heads.len() as u64,
            demoted_clusters: 0,
            dropped_rows: 0,
            timings,
        };
        Answer { output: self.output, lse: self.lse, report, important: None }
    }
}

/// Sums the KV heads of one position.
fn position_report(heads: &[HeadPlan]) -> PositionReport {
    let mut report = PositionReport { position: heads[0].position, ..PositionReport::default() };
    for head in heads {
        report.clusters += head.clusters as u64;
        report.clusters_read += head.read.len() as u64;
        report.clusters_estimated += head.estimated.len() as u64;
        report.rows_scanned += head.rows_scanned;
        report.rows_coded += head.rows_coded;
        report.rows_read += head.rows_read + head.rows_plain;
        report.bytes += head.traffic.bytes();
    }
    report
}
