//! The method `retroinfer` (arXiv 2505.02922): the clusters with the largest softmax share are read whole, the next
//! ones are estimated as `count * exp(q.c)` with the value mean, the rest is dropped.
//!
//! The query heads that share a KV head select together: the softmax over the centroid scores is taken per head and
//! summed over the group.

use crate::budget::Method;
use crate::error::Error;
use crate::exact::{Output, finish_plan};
use crate::plan::{ClusterId, HeadPlan, Plan, PlannedRows};
use crate::report::{Answer, Operator, Timings, Traffic};
use crate::stored::RowReads;
use crate::view::{LayerSegment, LayerView, Partition, QueryBatch, Shape};
use crate::work::{HeadQueries, Pages, Piece, Source, pieces, read_piece, reading};
use longwave_index::IndexView;
use longwave_kernels::{AttentionState, Kernels};
use rayon::prelude::*;
use std::time::Instant;

/// A plan with the centroid scores that it was made from.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    /// Per entry of `plan.heads`: the scores of the clusters in `estimated`, `[clusters, group]`.
    scores: Vec<Vec<f32>>,
    /// Rows of the tail that are read, summed over positions and KV heads.
    tail_rows: u64,
    timings: Timings,
}

/// Scores the centroids and chooses, per position and KV head.
pub(crate) fn plan(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    retrieve: f64,
    estimate: f64,
) -> Result<Planned, Error> {
    let partition = view.partition(queries.first_position)?;
    let done: Vec<PlannedHead> = units(view, queries)
        .into_par_iter()
        .map(|(position, head)| {
            plan_head(kernels, view, queries, &partition, (position, head), (retrieve, estimate))
        })
        .collect::<Result<_, Error>>()?;
    let (mut heads, mut scores, mut tail_rows, mut timings) = (Vec::new(), Vec::new(), 0, Timings::default());
    for planned in done {
        heads.push(planned.plan);
        scores.push(planned.scores);
        tail_rows += planned.tail_rows;
        timings.merge(&planned.timings);
    }
    Ok(Planned { plan: finish_plan(view, Method::RetroInfer, heads), scores, tail_rows, timings })
}

/// Every (index into the batch, KV head), positions outermost.
pub(crate) fn units(view: &LayerView<'_>, queries: &QueryBatch<'_>) -> Vec<(usize, usize)> {
    let kv_heads = view.shape.kv_heads;
    (0..queries.positions).flat_map(|position| (0..kv_heads).map(move |head| (position, head))).collect()
}

/// One entry of a plan, with what [`Planned`] keeps beside it.
struct PlannedHead {
    plan: HeadPlan,
    scores: Vec<f32>,
    tail_rows: u64,
    timings: Timings,
}

fn plan_head(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    partition: &Partition<'_>,
    (position, kv_head): (usize, usize),
    (retrieve, estimate): (f64, f64),
) -> Result<PlannedHead, Error> {
    let mut timings = Timings::default();
    let mut started = Instant::now();
    let group = view.shape.group();
    let mine = HeadQueries::gather(view, queries, kv_head, position..position + 1);
    let (scores, clusters) = score_centroids(kernels, view, &mine, partition, kv_head)?;
    timings.add(Operator::Score, started.elapsed());

    started = Instant::now();
    let order = rank(&scores, group, clusters.len());
    let top = share_of(retrieve, order.len()).max(1).min(order.len());
    let zone = (top + share_of(estimate, order.len())).min(order.len());
    let (mut read, mut estimated) = (order[..top].to_vec(), order[top..zone].to_vec());
    // In stored order: reads move forward through the file, and the sums do not depend on ties in the ranking.
    read.sort_unstable();
    estimated.sort_unstable();
    let mut kept = Vec::with_capacity(estimated.len() * group);
    for &cluster in &estimated {
        kept.extend_from_slice(&scores[cluster as usize * group..][..group]);
    }
    let rows = |list: &[u32]| list.iter().map(|&c| u64::from(clusters[c as usize].1)).sum::<u64>();
    let named = |list: &[u32]| list.iter().map(|&c| clusters[c as usize].0).collect::<Vec<_>>();
    let plain = reading(view, kv_head, mine.span, &partition.plain)?;
    let mut head = HeadPlan {
        position: queries.first_position + position as u64,
        kv_head,
        clusters: clusters.len(),
        rows_scanned: 0,
        rows_coded: 0,
        rows_read: rows(&read),
        rows_estimated: rows(&estimated),
        rows_plain: plain.sealed_rows,
        read: named(&read),
        estimated: named(&estimated),
        rows: PlannedRows::default(),
        traffic: plain.all(),
    };
    head.traffic += traffic_of(&view.shape, partition, &head)?;
    timings.add(Operator::Plan, started.elapsed());
    Ok(PlannedHead { plan: head, scores: kept, tail_rows: plain.tail_rows, timings })
}

/// `round(share * clusters)`, half to even as numpy has it.
fn share_of(share: f64, clusters: usize) -> usize {
    (share * clusters as f64).round_ties_even() as usize
}

/// A cluster, and how many rows it has.
type Counted = (ClusterId, u32);

/// The scores `[clusters, group]` of one KV head over all segments, and each cluster's name and row count.
fn score_centroids(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &HeadQueries,
    partition: &Partition<'_>,
    kv_head: usize,
) -> Result<(Vec<f32>, Vec<Counted>), Error> {
    let (mut scores, mut clusters) = (Vec::new(), Vec::new());
    for (number, (_, index)) in partition.clustered.iter().enumerate() {
        let head = index.head(kv_head)?;
        let start = scores.len();
        scores.resize(start + head.clusters() * queries.heads, 0.0);
        kernels.scores(
            &queries.data,
            queries.heads,
            view.shape.key_dim,
            head.centroids,
            &mut scores[start..],
        );
        clusters.extend(head.offsets.windows(2).enumerate().map(|(cluster, bounds)| {
            (ClusterId { segment: number as u32, cluster: cluster as u32 }, bounds[1] - bounds[0])
        }));
    }
    if let Some(cap) = view.scoring.softcap {
        kernels.softcap(&mut scores, cap);
    }
    Ok((scores, clusters))
}

/// Cluster numbers by falling softmax share summed over the group; equal shares by rising number.
fn rank(scores: &[f32], group: usize, clusters: usize) -> Vec<u32> {
    let mut share = vec![0.0f32; clusters];
    for head in 0..group {
        let of_head = || scores.iter().skip(head).step_by(group);
        let top = of_head().fold(f32::NEG_INFINITY, |top, &score| top.max(score));
        let total: f32 = of_head().map(|score| (score - top).exp()).sum();
        for (share, score) in share.iter_mut().zip(of_head()) {
            *share += (score - top).exp() / total;
        }
    }
    let mut order: Vec<u32> = (0..clusters as u32).collect();
    order.sort_unstable_by(|&a, &b| share[b as usize].total_cmp(&share[a as usize]).then(a.cmp(&b)));
    order
}

/// Bytes of every column that the clusters of one head's plan touch.
fn traffic_of(shape: &Shape, partition: &Partition<'_>, plan: &HeadPlan) -> Result<Traffic, Error> {
    let (key, value) = (shape.key_bytes(), shape.value_bytes());
    let mut traffic = Traffic::default();
    for (number, (segment, index)) in partition.clustered.iter().enumerate() {
        let head = index.head(plan.kv_head)?;
        let first = index.first_cluster(plan.kv_head);
        let [mut centroids, mut counts, mut means] = [(); 3].map(|()| Pages::default());
        let (mut reads, mut summaries) = (RowReads::new(segment, shape, plan.kv_head), Traffic::default());
        traffic.centroids += centroids.add(first, head.clusters(), key);
        traffic.counts += counts.add(first, head.clusters(), size_of::<f32>());
        for id in plan.read.iter().filter(|id| id.segment as usize == number) {
            let (start, end) = bounds(head.offsets, id.cluster);
            reads.add(start..end, &mut traffic)?;
        }
        for id in plan.estimated.iter().filter(|id| id.segment as usize == number) {
            traffic.value_means += means.add(first + id.cluster as usize, 1, value);
        }
        reads.finish(&mut traffic, &mut summaries)?;
        traffic += summaries;
        traffic.pages += centroids.count + counts.count + means.count;
    }
    Ok(traffic)
}

fn bounds(offsets: &[u32], cluster: u32) -> (usize, usize) {
    (offsets[cluster as usize] as usize, offsets[cluster as usize + 1] as usize)
}

/// Runs a plan.
pub(crate) fn attend(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    planned: Planned,
) -> Result<Answer, Error> {
    let Planned { plan, scores, tail_rows, mut timings } = planned;
    let partition = view.partition(queries.first_position)?;
    let done: Vec<Unit> = plan
        .heads
        .par_iter()
        .zip(scores)
        .map_init(Vec::new, |scratch, (head, scores)| {
            attend_head(kernels, view, queries, &partition, head, scores, scratch)
        })
        .collect::<Result<_, Error>>()?;

    let started = Instant::now();
    let mut output = Output::new(view, queries);
    for (unit, head) in done.into_iter().zip(&plan.heads) {
        let position = (head.position - queries.first_position) as usize;
        output.put(view, head.kv_head, position..position + 1, unit.state);
        timings.merge(&unit.timings);
    }
    timings.add(Operator::Merge, started.elapsed());
    Ok(output.answer(view, &plan, tail_rows, timings))
}

struct Unit {
    state: AttentionState,
    timings: Timings,
}

fn attend_head(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    partition: &Partition<'_>,
    plan: &HeadPlan,
    mut scores: Vec<f32>,
    scratch: &mut Vec<f32>,
) -> Result<Unit, Error> {
    let position = (plan.position - queries.first_position) as usize;
    let mine = HeadQueries::gather(view, queries, plan.kv_head, position..position + 1);
    let mut state = AttentionState::new(mine.heads, view.shape.value_dim);
    let mut timings = Timings::default();

    let mut started = Instant::now();
    for id in &plan.read {
        let (segment, index) = &partition.clustered[id.segment as usize];
        read_cluster(
            kernels,
            view,
            &mine,
            (segment, index),
            (plan.kv_head, id.cluster),
            &mut state,
            scratch,
        )?;
    }
    for segment in &partition.plain {
        for piece in pieces(plan.kv_head, Source::Segment(segment)) {
            read_piece(kernels, view, &mine, &piece, &mut state, scratch)?;
        }
    }
    timings.add(Operator::Read, started.elapsed());

    started = Instant::now();
    estimate(kernels, &mine, partition, plan, &mut scores, &mut state)?;
    timings.add(Operator::Estimate, started.elapsed());

    started = Instant::now();
    for block in &view.blocks {
        for piece in pieces(plan.kv_head, Source::Block(block)) {
            read_piece(kernels, view, &mine, &piece, &mut state, scratch)?;
        }
    }
    timings.add(Operator::Tail, started.elapsed());
    Ok(Unit { state, timings })
}

fn read_cluster(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &HeadQueries,
    (segment, index): (&LayerSegment, &IndexView<'_>),
    (head, cluster): (usize, u32),
    state: &mut AttentionState,
    scratch: &mut Vec<f32>,
) -> Result<(), Error> {
    let (start, end) = bounds(index.head(head)?.offsets, cluster);
    let piece = Piece { head, source: Source::Segment(segment), rows: start..end };
    read_piece(kernels, view, queries, &piece, state, scratch)?;
    Ok(())
}

/// Lets the summaries of the estimated clusters stand for their rows, segment by segment.
fn estimate(
    kernels: &Kernels,
    queries: &HeadQueries,
    partition: &Partition<'_>,
    plan: &HeadPlan,
    scores: &mut [f32],
    state: &mut AttentionState,
) -> Result<(), Error> {
    let mut rest = scores;
    for of_segment in plan.estimated.chunk_by(|a, b| a.segment == b.segment) {
        let (_, index) = &partition.clustered[of_segment[0].segment as usize];
        let head = index.head(plan.kv_head)?;
        let indices: Vec<u32> = of_segment.iter().map(|id| id.cluster).collect();
        let counts: Vec<f32> = indices.iter().map(|&cluster| head.counts[cluster as usize]).collect();
        let (mine, later) = rest.split_at_mut(of_segment.len() * queries.heads);
        rest = later;
        state.absorb_estimates_gathered(kernels, mine, &counts, head.value_means, &indices);
    }
    Ok(())
}
