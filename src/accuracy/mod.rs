//! What a layer has learnt about its answers: how far predictions of the error are off, and which tau spends how much.

mod audit;
mod auditor;
mod bound;
mod calibration;
mod reader;
mod share;
mod spending;
mod spending_state;
mod state;
mod steering;
mod target;

pub(crate) use audit::{audit, prepared};
pub(crate) use auditor::{AuditJob, Auditor, Audits};
pub(crate) use bound::{attend, explain_budget};
pub(crate) use calibration::Audit;
pub use calibration::{BANDS, Band, Calibration, WINDOW};
pub(crate) use reader::{Fault, Reader};
pub use spending::{KvHeadSpending, QueryHeadSpending, Spending};
pub(crate) use spending_state::{SPENDING_KIND, SPENDING_VERSION, decode_spending, encode_spending};
pub(crate) use state::{KIND, OLDEST, VERSION, decode, encode};
pub(crate) use steering::Steering;

/// Confidence of the bounds that are reported for budgets that name none.
pub const CONFIDENCE: f64 = 0.95;
