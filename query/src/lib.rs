//! One attention call over a layer's rows: plan, probe, read, estimate, merge.
//!
//! The query layer is given a [`LayerView`]: sealed segments (with their index) and the exact rows that are not
//! sealed yet. A [`Budget`] names the method. Every method is a composition of the same operators ([`Operator`]):
//! it scores centroids, plans what to read, reads rows exactly, estimates the rest from summaries and merges the
//! partial attention states in a fixed order, so that the same view, query and budget give the same bits at any
//! number of threads.
//!
//! Three methods exist: `exact`, which reads every row; `longwave`, the resolution ladder, whose threshold tau a
//! [`TauRule`] chooses for each position and KV head; and `retroinfer`, the published algorithm of RetroInfer
//! (arXiv 2505.02922). Nothing is kept between calls: rules that learn belong to the caller.

mod budget;
mod error;
mod exact;
mod importance;
mod longwave;
mod numbers;
mod plan;
mod planner;
mod report;
mod retroinfer;
mod rule;
mod steady;
mod stored;
mod view;
mod work;

pub use budget::{Budget, Method};
pub use error::Error;
pub use longwave::{Following, Rising, Slope, constants, slope_of};
pub use plan::{ClusterId, HeadPlan, Plan, PlannedRows, RowId};
pub use report::{Answer, DiskReport, Operator, PositionReport, Report, Timings, Traffic};
pub use rule::{Attempt, EvenTau, FixedTau, Next, TauRule};
pub use steady::{Divided, Summaries, read_steady};
pub use view::{LayerSegment, LayerView, QueryBatch, RowBlock, Scoring, Shape, Spreads};

use longwave_kernels::Kernels;

/// Plans a call without running it: scores the centroids and chooses what would be read.
///
/// # Errors
/// [`Error::Storage`] when an index column cannot be read or is corrupt; [`Error::NeedsState`] as in [`attend`].
pub fn explain(view: &LayerView<'_>, queries: &QueryBatch<'_>, budget: &Budget) -> Result<Plan, Error> {
    match *budget {
        // At a tau of 0 every row is read in full, which `exact` does without looking first.
        Budget::Exact | Budget::Tau(0.0) => exact::plan(view, queries),
        Budget::Soonest(tau) if planner::exact_is_sooner(view, queries, tau) => exact::plan(view, queries),
        Budget::Tau(tau) | Budget::Soonest(tau) => {
            longwave::plan(Kernels::get(), view, queries, (tau as f32, None))
        }
        // What a first attempt reads.
        Budget::Even(tau) => longwave::plan(Kernels::get(), view, queries, (above_zero(tau), None)),
        Budget::FromDisk { tau, bytes } => {
            longwave::plan(Kernels::get(), view, queries, (above_zero(tau), Some(bytes)))
        }
        Budget::Bytes(_) | Budget::Error { .. } => Err(Error::NeedsState { budget: *budget }),
        Budget::RetroInfer { retrieve, estimate } => {
            retroinfer::plan(Kernels::get(), view, queries, retrieve, estimate).map(|planned| planned.plan)
        }
    }
}

/// Answers the queries of one layer.
///
/// # Errors
/// [`Error::Storage`] when a column cannot be read or is corrupt; nothing of a corrupt block enters an answer.
/// [`Error::NeedsState`] for budgets that a caller with state turns into a rule for [`attend_by`].
pub fn attend(view: &LayerView<'_>, queries: &QueryBatch<'_>, budget: &Budget) -> Result<Answer, Error> {
    let kernels = Kernels::get();
    let answer = match *budget {
        Budget::Exact | Budget::Tau(0.0) => exact::attend(kernels, view, queries)?,
        Budget::Soonest(tau) if planner::exact_is_sooner(view, queries, tau) => {
            longwave::attend(kernels, view, queries, &FixedTau::new(0.0))?
        }
        Budget::Tau(tau) | Budget::Soonest(tau) => {
            longwave::attend(kernels, view, queries, &FixedTau::new(tau))?
        }
        Budget::Even(tau) => longwave::attend(kernels, view, queries, &EvenTau::new(tau))?,
        Budget::FromDisk { tau, bytes } => {
            let rule = FixedTau::new(above_zero(tau).into()).from_disk(bytes);
            longwave::attend(kernels, view, queries, &rule)?
        }
        Budget::Bytes(_) | Budget::Error { .. } => return Err(Error::NeedsState { budget: *budget }),
        Budget::RetroInfer { retrieve, estimate } => {
            let planned = retroinfer::plan(kernels, view, queries, retrieve, estimate)?;
            retroinfer::attend(kernels, view, queries, planned)?
        }
    };
    importance::complete(kernels, view, queries, answer)
}

/// A tau that a cap is asked with: one that rounds to 0 would read everything.
fn above_zero(tau: f64) -> f32 {
    (tau as f32).max(f32::MIN_POSITIVE)
}

/// Answers the queries of one layer by the resolution ladder, with the taus that `rule` chooses.
///
/// # Errors
/// [`Error::Storage`] as in [`attend`].
pub fn attend_by(
    view: &LayerView<'_>,
    queries: &QueryBatch<'_>,
    rule: &dyn TauRule,
) -> Result<Answer, Error> {
    let answer = longwave::attend(Kernels::get(), view, queries, rule)?;
    importance::complete(Kernels::get(), view, queries, answer)
}
