//! The method `longwave`: every piece of KV is read at the lowest resolution that the answer's error allows.
//!
//! | | keys | values |
//! |---|---|---|
//! | cluster | centroid, 4 bits a dimension | mean, 4 bits |
//! | row, scanned in opened clusters | sketch, 1 bit a dimension on average | – |
//! | row, read singly | code, 4 bits | code, 4 bits |
//! | row, read singly | full row | full row |
//!
//! A step down is taken where its expected contribution to the relative error of the output, root-sum-squared over
//! the query heads that share the KV head, exceeds tau times a fixed factor for the kind of step. What is not yet
//! known is judged by an upper estimate.

mod constants;
mod head;
mod predict;
mod probe;
mod rows;

use crate::budget::Method;
use crate::error::Error;
use crate::exact::{Output, finish_plan};
use crate::plan::{ClusterId, HeadPlan, Plan};
use crate::report::{Answer, Operator, Timings, Traffic};
use crate::retroinfer::units;
use crate::view::{LayerView, QueryBatch, Shape};
use crate::work::{HeadQueries, Reading, Source, pieces, read_piece, reading};
use head::{Head, Ladders};
use longwave_index::ladder::columns::CLUSTER_SIZE;
use longwave_kernels::codec::record_len;
use longwave_kernels::{AttentionState, Kernels, rotate};
use probe::{Clusters, Rough, Steady};
use rayon::prelude::*;
use rows::{Resolution, Zone, capped};
use std::time::Instant;

/// Answers the queries: every position and KV head by itself, in parallel.
pub(crate) fn attend(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    tau: f32,
) -> Result<Answer, Error> {
    let ladders = Ladders::open(view, queries.first_position)?;
    let units = units(view, queries);
    let done: Vec<Unit> = units
        .par_iter()
        .map_init(Vec::new, |scratch, &unit| {
            attend_head(kernels, view, queries, &ladders, unit, tau, scratch)
        })
        .collect::<Result<_, Error>>()?;

    let started = Instant::now();
    let group = view.shape.group();
    let mut output = Output::new(view, queries);
    let mut predicted = vec![0.0; queries.positions * view.shape.query_heads];
    let (mut heads, mut tail_rows, mut timings) = (Vec::new(), 0, Timings::default());
    for (unit, (position, head)) in done.into_iter().zip(units) {
        let first = position * view.shape.query_heads + head * group;
        predicted[first..first + group].copy_from_slice(&unit.predicted);
        output.put_finished(view, head, position, &unit.output, &unit.lse);
        tail_rows += unit.tail_rows;
        timings.merge(&unit.timings);
        heads.push(unit.plan);
    }
    timings.add(Operator::Merge, started.elapsed());
    let plan = finish_plan(view, Method::Longwave, heads);
    let mut answer = output.answer(view, &plan, tail_rows, timings);
    answer.report.predicted_error = predicted;
    Ok(answer)
}

/// What would be read. Sketches are scanned, since only they say which rows matter; nothing is read after them, so
/// the values are chosen with the weights of the sketches.
pub(crate) fn plan(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    tau: f32,
) -> Result<Plan, Error> {
    let ladders = Ladders::open(view, queries.first_position)?;
    let heads = units(view, queries)
        .into_par_iter()
        .map_init(Vec::new, |scratch, unit| {
            let mut call = Call::open(kernels, view, queries, &ladders, unit, scratch)?;
            let mut zone = call.zone(tau)?;
            zone.select_keys(&call.head, &call.clusters, &call.steady, tau);
            zone.select_values(&call.head, &call.clusters, &call.steady, tau);
            Ok(call.plan(&zone))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(finish_plan(view, Method::Longwave, heads))
}

/// The finished answer of one position and KV head.
struct Unit {
    /// `[group, value_dim]`.
    output: Vec<f32>,
    lse: Vec<f32>,
    predicted: Vec<f32>,
    plan: HeadPlan,
    tail_rows: u64,
    timings: Timings,
}

/// One position and KV head under way.
struct Call<'a, 'v> {
    kernels: &'a Kernels,
    view: &'a LayerView<'v>,
    queries: HeadQueries,
    kv_head: usize,
    head: Head<'a>,
    clusters: Clusters,
    steady: Steady,
    /// Rows that are read one by one in any case.
    plain: Reading,
    timings: Timings,
}

impl<'a, 'v: 'a> Call<'a, 'v> {
    /// Reads the rows that are exact in any case and scores the centroids.
    fn open(
        kernels: &'a Kernels,
        view: &'a LayerView<'v>,
        batch: &QueryBatch<'_>,
        ladders: &'a Ladders<'v>,
        (position, kv_head): (usize, usize),
        scratch: &mut Vec<f32>,
    ) -> Result<Self, Error> {
        let mut timings = Timings::default();
        let mut started = Instant::now();
        let queries = HeadQueries::gather(view, batch, kv_head, position..position + 1);
        let mut state = AttentionState::new(queries.heads, view.shape.value_dim);
        let plain = ladders.plain.iter().flat_map(|segment| pieces(kv_head, Source::Segment(segment)));
        for piece in plain.chain(view.blocks.iter().flat_map(|block| pieces(kv_head, Source::Block(block)))) {
            read_piece(kernels, view, &queries, &piece, &mut state, scratch)?;
        }
        let plain = reading(view, kv_head, queries.span, &ladders.plain)?;
        let steady = Steady::new(view, state, kv_head);
        timings.add(Operator::Tail, started.elapsed());

        started = Instant::now();
        let head = Head::open(view, ladders, &queries, kv_head)?;
        let mut centre = Vec::with_capacity(head.clusters * queries.heads);
        for segment in &head.segments {
            centre.extend(segment.score_centroids(kernels, &head.bases, &queries, view.shape.key_dim));
        }
        centre.iter_mut().for_each(|score| *score = capped(view, *score));
        let clusters = Clusters::new(&head, centre, &steady, view.shape.value_dim);
        timings.add(Operator::Score, started.elapsed());
        Ok(Call { kernels, view, queries, kv_head, head, clusters, steady, plain, timings })
    }

    /// Opens clusters and scans their sketches.
    fn zone(&mut self, tau: f32) -> Result<Zone, Error> {
        let mut started = Instant::now();
        self.clusters.probe(&self.head, &self.steady, tau);
        self.timings.add(Operator::Plan, started.elapsed());
        started = Instant::now();
        let zone = Zone::scan(self.kernels, self.view, &self.head, &self.clusters)?;
        self.timings.add(Operator::Scan, started.elapsed());
        Ok(zone)
    }

    /// Chooses and reads rows.
    fn read(&mut self, zone: &mut Zone, tau: f32) -> Result<Rough, Error> {
        let mut started = Instant::now();
        zone.select_keys(&self.head, &self.clusters, &self.steady, tau);
        self.timings.add(Operator::Select, started.elapsed());
        started = Instant::now();
        zone.read_keys(self.kernels, self.view, &self.head, &self.clusters, &self.queries, self.kv_head)?;
        self.timings.add(Operator::Read, started.elapsed());
        started = Instant::now();
        zone.select_values(&self.head, &self.clusters, &self.steady, tau);
        self.timings.add(Operator::Select, started.elapsed());
        started = Instant::now();
        let answer = zone.read_values(
            self.kernels,
            self.view,
            &self.head,
            &self.clusters,
            &self.steady,
            self.kv_head,
        )?;
        self.timings.add(Operator::Read, started.elapsed());
        Ok(answer)
    }

    fn plan(&self, zone: &Zone) -> HeadPlan {
        let Shape { key_dim, value_dim, .. } = self.view.shape;
        let (key, value) = (self.view.shape.key_bytes() as u64, self.view.shape.value_bytes() as u64);
        let count = |of: &[Resolution], as_: Resolution| of.iter().filter(|&&r| r == as_).count() as u64;
        let (full_keys, full_values) =
            (count(&zone.key, Resolution::Full), count(&zone.value, Resolution::Full));
        let (coded_keys, coded_values) =
            (count(&zone.key, Resolution::Code), count(&zone.value, Resolution::Code));
        let means = self.clusters.mean_at.iter().flatten().count() as u64;
        let clusters = self.head.clusters as u64;
        let traffic = Traffic {
            keys: self.plain.traffic.keys + full_keys * key,
            values: self.plain.traffic.values + full_values * value,
            centroids: clusters * record_len(key_dim) as u64,
            counts: clusters * CLUSTER_SIZE as u64,
            value_means: means * record_len(value_dim) as u64,
            bases: self.head.basis_bytes(key_dim, value_dim),
            sketches: zone.sketch_bytes,
            key_codes: coded_keys * record_len(key_dim) as u64,
            value_codes: coded_values * record_len(value_dim) as u64,
            ..self.plain.traffic
        };
        let opened = zone.opened.iter().map(|opened| ClusterId {
            segment: opened.segment as u32,
            cluster: (opened.cluster - self.head.segments[opened.segment].first) as u32,
        });
        HeadPlan {
            position: self.queries.span.oldest,
            kv_head: self.kv_head,
            clusters: self.head.clusters,
            read: opened.collect(),
            estimated: Vec::new(),
            rows_scanned: zone.key.len() as u64,
            rows_coded: coded_keys.max(coded_values),
            rows_read: full_keys.max(full_values),
            rows_estimated: self.clusters.count.iter().sum::<f32>() as u64 - zone.key.len() as u64,
            rows_plain: self.plain.sealed_rows,
            traffic,
        }
    }
}

fn attend_head(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    ladders: &Ladders<'_>,
    unit: (usize, usize),
    tau: f32,
    scratch: &mut Vec<f32>,
) -> Result<Unit, Error> {
    let mut call = Call::open(kernels, view, queries, ladders, unit, scratch)?;
    let mut zone = call.zone(tau)?;
    let mut answer = call.read(&mut zone, tau)?;
    let started = Instant::now();
    let deviation = |cluster| call.head.segments[call.head.segment_of(cluster)].ladder.mean_deviation;
    let predicted = predict::predicted_error(&call.head, &call.clusters, &zone, &deviation, &answer);
    let weights = zone.cluster_weights(&call.head, &call.clusters);
    let total = call.clusters.totals(&weights, call.queries.heads);
    let lse = total.iter().zip(&call.clusters.top).map(|(total, top)| top + total.ln()).collect();
    rotate(&mut answer.output, view.shape.value_dim, true);
    call.timings.add(Operator::Estimate, started.elapsed());
    let plan = call.plan(&zone);
    Ok(Unit {
        output: answer.output,
        lse,
        predicted,
        plan,
        tail_rows: call.plain.tail_rows,
        timings: call.timings,
    })
}

impl Steady {
    /// Finishes the rows that are read exactly; learned sink logits are among them.
    fn new(view: &LayerView<'_>, mut state: AttentionState, kv_head: usize) -> Self {
        let (heads, dim) = (state.heads(), view.shape.value_dim);
        if !view.scoring.sink_logits.is_empty() {
            for local in 0..heads {
                state.absorb_logit(local, view.scoring.sink_logits[kv_head * heads + local]);
            }
        }
        let (mut output, mut lse) = (vec![0.0; heads * dim], vec![0.0; heads]);
        state.finish(&mut output, &mut lse);
        rotate(&mut output, dim, false);
        Steady { lse, output }
    }
}
