//! What to look at: clusters of keys, their postings and their summaries.
//!
//! The rows of a segment are clustered per KV head by k-means on the keys ([`cluster`]), stored cluster by cluster, and each
//! cluster summarised by its count, its mean key (centroid), its mean value, and the spread of both around them
//! ([`build_segment`]). A query scores the centroids and from them decides which clusters to open; the others are
//! estimated from their summaries. The value sum that RetroInfer's method estimates with is count times value mean.
//!
//! The index lies in the segment beside the rows, as columns that are opaque to storage ([`columns`] has their layout).
//! [`IndexView`] reads them, and [`validate`] is the validator to register for them. A segment without these columns can
//! be read exactly and not otherwise.
//!
//! On request a segment also gets the resolution ladder ([`ladder`]): all of this once more at lower resolutions, and
//! clusters found as the head's queries measure distances. `validate` covers its columns, too.
//!
//! Nothing here depends on the number of threads, and the same rows, options and stream give the same bytes.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod build;
mod clustering;
pub mod columns;
mod kmeans;
pub mod ladder;
mod options;
mod order;
mod outliers;
mod postings;
mod rows8;
mod split;
mod statistics;
mod summary;
mod validate;
mod view;

pub use build::{BuiltSegment, HeadInput, build_segment, build_segment_on, eight_bits, row_columns};
pub use clustering::{Clustering, cluster};
pub use columns::{IndexColumns, column_name};
pub use options::{ClusterOptions, OptionsError};
pub use postings::Postings;
pub use rows8::checked8;
pub use statistics::{ClusterStatistics, statistics};
pub use validate::validate;
pub use view::{HeadIndex, IndexView};
