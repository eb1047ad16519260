//! What a layer has learnt about its answers: how far predictions of the error are off, and which tau spends how much.

mod audit;
mod auditor;
mod bound;
mod calibration;
mod state;
mod steering;

pub(crate) use audit::{audit, prepared};
pub(crate) use auditor::{AuditJob, Auditor, Audits};
pub(crate) use bound::{attend, explain_budget};
pub use calibration::{BANDS, Band, Calibration, WINDOW};
pub(crate) use state::{KIND, VERSION, decode, encode};
pub(crate) use steering::Steering;

/// Confidence of the bounds that are reported for budgets that name none.
pub const CONFIDENCE: f64 = 0.95;
