//! The resolution ladder's columns: every piece of KV once more, at lower resolutions.
//!
//! | | keys | values |
//! |---|---|---|
//! | cluster | centroid, 4 bits a dimension | mean, 4 bits |
//! | row, scanned with its cluster | sketch, 1 bit a dimension on average | |
//! | row, read singly | code, 4 bits | code, 4 bits |
//!
//! Distances between keys are measured as queries see them: by the second moment of the head's queries ([`Moment`]).
//! Clusters are found in that metric, and keys are coded along the principal axes that residual keys (less their
//! centroid) have in it ([`Basis`]), with more bits where queries and keys vary more. A basis is fixed with the first
//! segment of a context's layer; each later segment is built with it and keeps its own copy ([`LadderView::basis`]).
//! Values are coded after a fixed rotation ([`longwave_kernels::rotate`]), less their cluster's mean.
//!
//! A key k has the coordinates `z = k · inverse⁻¹` (as rows), a query q the coordinates `inverse · q`, and the product of
//! the two is that of q and k. [`columns`] has the layout.

mod allocation;
mod basis;
mod build;
pub mod columns;
mod decode;
mod head;
mod input;
mod linear;
mod slope;
mod validate;
mod view;

pub use basis::Basis;
pub use columns::LadderColumns;
pub use decode::{DecodeRoom, KeyDecoder};
pub use head::{ClusterSummary, HeadLadder};
pub use input::{LadderInput, Moment, MomentSource};
pub use slope::steepness;
pub use view::LadderView;

pub(crate) use build::{HeadColumns, HeadTask, LadderScratch, join};
pub(crate) use validate::validate;
