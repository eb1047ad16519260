//! The method `longwave`: every piece of KV is read at the lowest resolution that the answer's error allows.
//!
//! | | keys | values |
//! |---|---|---|
//! | cluster | centroid, 4 bits a dimension | mean, 4 bits |
//! | row, scanned in opened clusters | sketch, 1 bit a dimension on average | – |
//! | row, read singly | half a code, 2 bits, of what the sketch leaves | half a code, 2 bits |
//! | row, read singly | code, 4 bits | code, 4 bits |
//! | row, read singly | full row | full row |
//!
//! A step down is taken where its expected contribution to the relative error of the output, root-sum-squared over
//! the query heads that share the KV head, exceeds tau times a fixed factor for the kind of step. What is not yet
//! known is judged by an upper estimate. Keys are chosen by their sketches, and those that were read as codes are judged
//! once more by what these say.

mod answer;
mod bytes;
mod clusters;
pub mod constants;
mod disk;
mod head;
mod listed;
mod pages;
mod predict;
mod read;
mod rows;
mod scan;
mod select;
mod sharing;
mod slope;
mod softcap;
mod steps;
mod touched;
mod unit;
mod zone;

use crate::budget::Method;
use crate::error::Error;
use crate::exact::{self, Output, finish_plan};
use crate::importance;
use crate::plan::{HeadPlan, Plan};
use crate::report::{Answer, Operator, Timings};
use crate::retroinfer::units;
use crate::rule::TauRule;
use crate::view::{LayerView, QueryBatch};
use disk::Disk;
use head::Ladders;
use longwave_kernels::Kernels;
use rayon::prelude::*;
pub use slope::{Following, Rising, Slope, slope_of};
use std::time::Instant;
use steps::Calls;
use unit::{Call, Room, Threshold};

/// The sum of products, in eight parts that the processor adds up side by side.
fn product(a: &[f32], b: &[f32]) -> f32 {
    let ((eights, rest), (others, other_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut parts = [0.0f32; 8];
    for (eight, other) in eights.iter().zip(others) {
        for lane in 0..8 {
            parts[lane] += eight[lane] * other[lane];
        }
    }
    parts.iter().sum::<f32>() + rest.iter().zip(other_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Answers the queries: every position and KV head by itself, in parallel, with the taus that `rule` chooses.
pub(crate) fn attend(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    rule: &dyn TauRule,
) -> Result<Answer, Error> {
    let units = units(view, queries);
    let disk_max = rule.disk_bytes_max();
    // Who caps what comes from disk wants it counted.
    if disk_max.is_none() && units.iter().all(|&(position, head)| rule.start(position, head).is_none()) {
        return attend_exactly(kernels, view, queries);
    }
    let disk = disk_max.map(|bytes| Disk::new(view, bytes, units.len(), true));
    let ladders = Ladders::open(view, queries, units.len(), disk)?;
    let calls = Calls { kernels, view, batch: queries, ladders: &ladders, rule };
    let done = calls.answer(&units)?;

    let started = Instant::now();
    let group = view.shape.group();
    let mut output = Output::new(view, queries);
    let mut predicted = vec![0.0; queries.positions * view.shape.query_heads];
    let (mut heads, mut tail_rows, mut timings) = (Vec::new(), 0, Timings::default());
    let (mut taus, mut capped, mut attempts) = (Vec::new(), Vec::new(), 0);
    let (mut important, mut demoted) = (view.watched.then(Vec::new), 0);
    for (unit, (position, head)) in done.into_iter().zip(units) {
        let first = position * view.shape.query_heads + head * group;
        predicted[first..first + group].copy_from_slice(&unit.predicted);
        output.put_finished(view, head, position, &unit.output, &unit.lse);
        tail_rows += unit.tail_rows;
        timings.merge(&unit.timings);
        heads.push(unit.plan);
        taus.push(unit.tau);
        capped.push(unit.capped);
        attempts += unit.attempts;
        demoted += unit.kept_closed;
        // One that read every row did not look at them one by one.
        important = important.zip(unit.important).map(|(mut all, mine)| {
            all.push((head, mine));
            all
        });
    }
    timings.add(Operator::Merge, started.elapsed());
    let plan = finish_plan(view, Method::Longwave, heads);
    let mut answer = output.answer(view, &plan, tail_rows, timings);
    let report = &mut answer.report;
    report.predicted_error = predicted;
    (report.taus, report.capped, report.attempts) = (taus, capped, attempts);
    report.demoted_clusters = demoted;
    report.disk = ladders.disk.as_ref().map(Disk::report);
    answer.important = important.map(|found| ladders.important(view, &found)).transpose()?;
    if ladders.disk.is_some() && view.watched && answer.important.is_none() {
        // To look at all rows one by one would fetch them.
        answer.important = Some(importance::every_cluster(view)?);
    }
    Ok(answer)
}

/// Reads every row at once, in pieces that all threads share.
fn attend_exactly(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
) -> Result<Answer, Error> {
    let mut answer = exact::attend(kernels, view, queries)?;
    let (units, report) = (queries.positions * view.shape.kv_heads, &mut answer.report);
    report.method = Method::Longwave;
    report.predicted_error = vec![0.0; queries.positions * view.shape.query_heads];
    (report.taus, report.capped) = (vec![0.0; units], vec![false; units]);
    Ok(answer)
}

/// What would be read. Sketches are scanned, since only they say which rows matter; nothing is read after them, so no key is chosen
/// again, and values, and slopes, are chosen with the weights of the sketches. Where it is said how many bytes may come from disk, pages are
/// looked at and not fetched.
pub(crate) fn plan(
    kernels: &Kernels,
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    (tau, disk_bytes_max): (f32, Option<u64>),
) -> Result<Plan, Error> {
    let units = units(view, queries);
    let disk = disk_bytes_max.map(|bytes| Disk::new(view, bytes, units.len(), false));
    let ladders = Ladders::open(view, queries, units.len(), disk)?;
    let heads = units
        .into_par_iter()
        .map_init(Vec::new, |scratch, unit| {
            let mut call = Call::open(kernels, view, queries, &ladders, unit, scratch)?;
            let mut threshold = Threshold::of(tau);
            call.open_clusters(&mut threshold);
            call.reader.head.expect_sketches(&call.room.clusters.opened);
            call.scan()?;
            let rough = call.rough();
            call.select_keys(&mut threshold, &rough)?;
            call.select_values(&mut threshold, &rough)?;
            let (head, Room { clusters, zone, touched, slopes, .. }) = (&call.reader.head, &mut call.room);
            slopes.rise(kernels, head, clusters, zone);
            slopes.choose(head, &rough, threshold.tau, (&[], usize::MAX));
            touched.add(head, clusters, zone, slopes);
            let rows = call.room.touched.rows(&call.reader.head);
            let traffic = Call::traffic(&view.shape, &call.reader.head, &call.room.touched);
            Ok(HeadPlan { rows, ..call.plan(traffic) })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let disk = ladders.disk.as_ref().map(Disk::report);
    Ok(Plan { disk, ..finish_plan(view, Method::Longwave, heads) })
}
