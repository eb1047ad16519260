//! What a call is going to read, as plain data that prints.

use crate::budget::Method;
use crate::report::{DiskReport, Traffic};
use longwave_storage::RowForm;
use std::fmt;

/// A cluster of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId {
    /// Index of the segment in its layer, oldest first.
    pub segment: u32,
    /// Index of the cluster in the segment, for this KV head.
    pub cluster: u32,
}

/// A row of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// As in [`ClusterId`].
    pub segment: u32,
    /// Index of the row in the segment, for this KV head.
    pub row: u32,
}

/// Rows that are read one by one, in stored order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedRows {
    /// Keys of which half a code is read.
    pub key_halves: Vec<RowId>,
    /// Keys read in 4 bits.
    pub key_codes: Vec<RowId>,
    /// Keys read in full.
    pub keys: Vec<RowId>,
    /// Values of which half a code is read.
    pub value_halves: Vec<RowId>,
    /// Values read in 4 bits.
    pub value_codes: Vec<RowId>,
    /// Values read in full.
    pub values: Vec<RowId>,
}

/// What one KV head reads for one query position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadPlan {
    /// Position of the query.
    pub position: u64,
    /// The KV head.
    pub kv_head: usize,
    /// Clusters whose centroid is scored.
    pub clusters: usize,
    /// Clusters opened, in stored order: read whole, or scanned for rows to read.
    pub read: Vec<ClusterId>,
    /// Clusters estimated from their summaries, in stored order.
    pub estimated: Vec<ClusterId>,
    /// The ladder's rows that are read in codes and in full. Named only by [`crate::explain`]: an answer counts them and no more.
    pub rows: PlannedRows,
    /// Rows whose sketches are scanned.
    pub rows_scanned: u64,
    /// Rows read in 4 bits.
    pub rows_coded: u64,
    /// Rows read in full.
    pub rows_read: u64,
    /// Rows that summaries stand for.
    pub rows_estimated: u64,
    /// Sealed rows read in full because no summary may stand for them at this position.
    pub rows_plain: u64,
    /// Bytes of sealed columns that will be touched.
    pub traffic: Traffic,
}

/// The plan of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The method that will run.
    pub method: Method,
    /// One entry per position and KV head, positions outermost.
    pub heads: Vec<HeadPlan>,
    /// Rows of the tail per KV head, sinks and window included: read exactly where a query sees them.
    pub tail_rows: u64,
    /// Sealed rows per KV head.
    pub sealed_rows: u64,
    /// Bytes that the keys and values of the sealed rows of all KV heads take at 16 bits an element.
    pub sealed_bytes_16bit: u64,
    /// The form in which sealed rows are kept, the smallest of any segment.
    pub row_form: RowForm,
    /// Where what comes from disk is capped: bytes of pages of codes and rows that are not in memory now and will be fetched,
    /// and the cap.
    pub disk: Option<DiskReport>,
}

impl Plan {
    /// Bytes of sealed columns that will be touched.
    pub fn traffic(&self) -> Traffic {
        self.heads.iter().fold(Traffic::default(), |sum, head| sum + head.traffic)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "method {}  placement cpu  sealed rows {}  tail rows {}",
            self.method, self.sealed_rows, self.tail_rows
        )?;
        writeln!(f, "operators: {}", operators(self.method))?;
        writeln!(
            f,
            "{:>9} {:>4} {:>9} {:>8} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
            "position",
            "head",
            "clusters",
            "opened",
            "estimated",
            "scanned",
            "rows coded",
            "rows full",
            "rows est.",
            "bytes",
            "pages"
        )?;
        for head in &self.heads {
            writeln!(
                f,
                "{:>9} {:>4} {:>9} {:>8} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
                head.position,
                head.kv_head,
                head.clusters,
                head.read.len(),
                head.estimated.len(),
                head.rows_scanned,
                head.rows_coded,
                head.rows_read + head.rows_plain,
                head.rows_estimated,
                head.traffic.bytes(),
                head.traffic.pages
            )?;
        }
        let positions =
            self.heads.iter().map(|head| head.position).collect::<std::collections::BTreeSet<_>>().len();
        let full = self.sealed_bytes_16bit * positions as u64;
        let traffic = self.traffic();
        let share = if full == 0 { 0.0 } else { 100.0 * traffic.bytes() as f64 / full as f64 };
        write!(
            f,
            "total bytes {} ({share:.2} % of the 16-bit KV), expected error {}",
            traffic.bytes(),
            expected(self.method)
        )?;
        if let Some(DiskReport { bytes, bytes_max }) = self.disk {
            write!(f, ", bytes from disk {bytes} of {bytes_max}")?;
        }
        match self.row_form {
            RowForm::Full => Ok(()),
            RowForm::EightBits => write!(f, ", over rows as they are kept: in 8 bits"),
            RowForm::Codes => write!(f, ", over rows as they are kept: as codes alone"),
        }
    }
}

fn operators(method: Method) -> &'static str {
    match method {
        Method::Exact => "read all rows -> tail -> merge",
        Method::Longwave => {
            "tail -> score centroids -> plan -> scan sketches -> select -> read codes and rows -> estimate"
        }
        Method::RetroInfer => {
            "score centroids -> plan -> read clusters -> estimate from summaries -> tail -> merge"
        }
    }
}

fn expected(method: Method) -> &'static str {
    match method {
        Method::Exact => "rounding only",
        Method::Longwave => "known once the rows are read",
        Method::RetroInfer => "not predicted by this method",
    }
}
