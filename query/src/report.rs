//! The answer of a call, and what it cost.

use crate::budget::Method;
use longwave_storage::RowForm;
use std::ops::{Add, AddAssign};
use std::time::Duration;

/// Attention output with its log-sum-exp, and what was spent on it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// `[positions, query_heads, value_dim]`, row-major.
    pub output: Vec<f32>,
    /// Natural logarithm of the sum of the exponentiated scores: `[positions, query_heads]`.
    pub lse: Vec<f32>,
    /// What the call read, and how long each operator took.
    pub report: Report,
    /// Where the view asks for it ([`crate::LayerView::watched`]): of each segment the clusters that held a row of more
    /// than an equal share of some query's softmax, numbered through the KV heads, in rising order.
    pub important: Option<Vec<Vec<u32>>>,
}

/// What one call did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The method that answered.
    pub method: Method,
    /// One entry per query position.
    pub positions: Vec<PositionReport>,
    /// Bytes of sealed columns that were touched, summed over positions and KV heads. Query heads that share a KV head
    /// decide together, so a byte counts once for the group; positions that were answered by one reading count each.
    pub traffic: Traffic,
    /// The bytes of [`Self::traffic`] by position and KV head, `[positions, kv_heads]`.
    pub head_bytes: Vec<u64>,
    /// Rows of the tail, sinks and window included, that were read from memory, summed over positions and KV heads.
    pub tail_rows: u64,
    /// Sealed rows that the layer holds: rows times KV heads.
    pub sealed_rows: u64,
    /// Bytes that the keys and values of the sealed rows take at 16 bits an element. Shares of bytes are against it.
    pub sealed_bytes_16bit: u64,
    /// The form in which sealed rows are kept, the smallest of any segment: where it is not full, `exact` is exact over
    /// the rows as they are kept, and errors are against these.
    pub row_form: RowForm,
    /// Predicted relative error of each query head, `[positions, query_heads]`; empty where the method does not
    /// predict it.
    pub predicted_error: Vec<f32>,
    /// Bound on the relative error of each query head at [`Self::confidence`], `[positions, query_heads]`: `None` where
    /// too few calls were audited to say one (uncalibrated), 0 where the answer is exact up to rounding. For
    /// [`crate::Budget::Error`] it is the target. Empty where nobody calibrates.
    pub bound: Vec<Option<f32>>,
    /// The share of answers that the bounds are to cover; `None` where there are no bounds.
    pub confidence: Option<f64>,
    /// Tau that each KV head was answered with, `[positions, kv_heads]`; 0 where every row was read. Empty for methods
    /// without a tau.
    pub taus: Vec<f32>,
    /// Where a cap had a say, `[positions, kv_heads]`: that on a call's bytes raised tau on the way, or that on bytes from disk
    /// left rows to coarser resolutions than the tau asks for. Empty for methods without a tau.
    pub capped: Vec<bool>,
    /// What came from disk; `None` where no cap on it was asked for, and nobody looked.
    pub disk: Option<DiskReport>,
    /// How often a position and KV head was answered, summed: above positions times KV heads where a first answer
    /// did not meet its bound.
    pub attempts: u64,
    /// Clusters that would have been opened and stayed closed since they are demoted, summed over positions and KV heads.
    /// What that costs is part of [`Self::predicted_error`].
    pub demoted_clusters: u64,
    /// Rows of the layer that the context has dropped for good. No answer knows what they would have added: where there
    /// are any, errors and bounds are about the rows that are left, and [`Self::bound`] holds none.
    pub dropped_rows: u64,
    /// Time per operator, summed over threads.
    pub timings: Timings,
}

impl Report {
    /// Bytes touched as a share of what exact attention over 16-bit rows would read; 0 when nothing is sealed.
    pub fn bytes_share(&self) -> f64 {
        self.share(self.traffic.bytes())
    }

    /// As [`Self::bytes_share`], in whole 4 KiB pages.
    pub fn page_share(&self) -> f64 {
        self.share(self.traffic.pages * 4096)
    }

    fn share(&self, bytes: u64) -> f64 {
        let full = self.sealed_bytes_16bit * self.positions.len() as u64;
        if full == 0 { 0.0 } else { bytes as f64 / full as f64 }
    }
}

/// What came from disk for a call under [`crate::Budget::FromDisk`]: 4 KiB pages of codes and rows that were not in memory
/// when the call first looked at them, each once. Summaries and sketches are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Bytes of the pages.
    pub bytes: u64,
    /// The cap.
    pub bytes_max: u64,
}

impl DiskReport {
    /// Whether more was fetched than the cap allows: rows that no summary stands for are read whatever it says.
    pub fn is_exceeded(&self) -> bool {
        self.bytes > self.bytes_max
    }
}

/// What one query position did, over all its heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PositionReport {
    /// The query's position in the context.
    pub position: u64,
    /// Clusters whose centroid was scored.
    pub clusters: u64,
    /// Clusters that were read row by row.
    pub clusters_read: u64,
    /// Clusters that were estimated from their summaries.
    pub clusters_estimated: u64,
    /// Sealed rows whose sketches were scanned.
    pub rows_scanned: u64,
    /// Sealed rows that were read in 4 bits.
    pub rows_coded: u64,
    /// Sealed rows that were read in full.
    pub rows_read: u64,
    /// Bytes of sealed columns that this position touched.
    pub bytes: u64,
}

/// Bytes touched, by column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Full keys.
    pub keys: u64,
    /// Full values.
    pub values: u64,
    /// Positions of rows, where a mask hides some rows of a segment from a query.
    pub positions: u64,
    /// Centroids.
    pub centroids: u64,
    /// Cluster sizes.
    pub counts: u64,
    /// Value means.
    pub value_means: u64,
    /// Query matrices and scales.
    pub bases: u64,
    /// Sketches, with their factors and the padding of their blocks.
    pub sketches: u64,
    /// Keys in 4 bits.
    pub key_codes: u64,
    /// Values in 4 bits.
    pub value_codes: u64,
    /// 4 KiB pages that hold those bytes, counted within each column.
    pub pages: u64,
}

impl Traffic {
    /// Bytes over all columns.
    pub fn bytes(&self) -> u64 {
        let rows =
            self.keys + self.values + self.positions + self.key_codes + self.value_codes + self.sketches;
        rows + self.centroids + self.counts + self.value_means + self.bases
    }
}

impl Add for Traffic {
    type Output = Traffic;
    fn add(self, other: Traffic) -> Traffic {
        Traffic {
            keys: self.keys + other.keys,
            values: self.values + other.values,
            positions: self.positions + other.positions,
            centroids: self.centroids + other.centroids,
            counts: self.counts + other.counts,
            value_means: self.value_means + other.value_means,
            bases: self.bases + other.bases,
            sketches: self.sketches + other.sketches,
            key_codes: self.key_codes + other.key_codes,
            value_codes: self.value_codes + other.value_codes,
            pages: self.pages + other.pages,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        *self = *self + other;
    }
}

/// One step of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operator {
    /// Score every centroid.
    Score,
    /// Choose what is read and what is estimated.
    Plan,
    /// Score the sketches of opened clusters.
    Scan,
    /// Choose the rows that are read, and at which resolution.
    Select,
    /// Read rows of segments, in codes or in full.
    Read,
    /// Let summaries stand for rows that are not read.
    Estimate,
    /// Read the rows that are not sealed: sinks, tail and window.
    Tail,
    /// Merge partial states.
    Merge,
}

impl Operator {
    /// Every operator, in the order in which a call runs them.
    pub const ALL: [Operator; 8] = [
        Operator::Score,
        Operator::Plan,
        Operator::Scan,
        Operator::Select,
        Operator::Read,
        Operator::Estimate,
        Operator::Tail,
        Operator::Merge,
    ];

    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Operator::Score => "score",
            Operator::Plan => "plan",
            Operator::Scan => "scan",
            Operator::Select => "select",
            Operator::Read => "read",
            Operator::Estimate => "estimate",
            Operator::Tail => "tail",
            Operator::Merge => "merge",
        }
    }
}

/// Time per operator, summed over threads. Where threads share a KV head, the time of one that waits for another counts, with
/// whatever it does meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings([Duration; Operator::ALL.len()]);

impl Timings {
    /// Time spent in `operator`.
    pub fn of(&self, operator: Operator) -> Duration {
        self.0[operator as usize]
    }

    pub(crate) fn add(&mut self, operator: Operator, spent: Duration) {
        self.0[operator as usize] += spent;
    }

    pub(crate) fn merge(&mut self, other: &Timings) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}
