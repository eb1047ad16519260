//! What a call on both sides did, and what all calls did.

use super::{Caches, Tier};
use crate::cache::{CacheReport, RowSource, Scored};
use crate::placement::{Machine, Place, Placement};
use std::fmt;
use std::sync::Arc;

/// An answer of both sides.
#[derive(Clone, Debug)]
pub struct TierAnswer {
    /// `[positions, query_heads, value_dim]`.
    pub output: Vec<f32>,
    /// Log-sum-exps `[positions, query_heads]`, natural.
    pub lse: Vec<f32>,
    /// How it came about.
    pub report: TierReport,
}

/// What one call read, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TierReport {
    /// Where clusters or rows were read, in the order in which they were chosen; none where the device did not take part.
    pub placement: Option<Placement>,
    /// The constants that the placement follows from.
    pub machine: Machine,
    /// Bytes of rows read from slots, after a transfer, and by the CPU.
    pub bytes: [u64; 3],
    /// Clusters that the call opened or read.
    pub opened: u64,
    /// Keys read as half a code, as a whole one and in full, and values likewise. A key that was read once more counts twice.
    pub rows: [u64; 6],
    /// Keys read as a whole code after half of it, in full after a code, and as a whole code when the others were known.
    pub again: [u64; 3],
    /// What was to be read, for the caches; see [`Tier::note`].
    pub wanted: Wanted,
    /// The caches of clusters, codes and full rows, as far as there are any.
    pub caches: [Option<CacheReport>; 3],
}

/// Blocks that a call was to read.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Clusters.
    pub clusters: Vec<Scored>,
    /// Codes of rows.
    pub codes: Vec<Scored>,
    /// Full rows.
    pub rows: Vec<Scored>,
}

impl TierReport {
    pub(super) fn new(tier: &Tier, placement: Placement, bytes: [u64; 3], wanted: Wanted) -> TierReport {
        let (placement, caches) = (Some(placement), cache_reports(&tier.caches));
        let (rows, again) = ([0; 6], [0; 3]);
        TierReport { placement, machine: tier.machine, bytes, opened: 0, rows, again, wanted, caches }
    }

    pub(super) fn of_host(machine: Machine, caches: [Option<CacheReport>; 3]) -> TierReport {
        let wanted = Wanted::default();
        let (bytes, rows, again) = ([0; 3], [0; 6], [0; 3]);
        TierReport { placement: None, machine, bytes, opened: 0, rows, again, wanted, caches }
    }
}

impl Tier {
    /// Tells the caches what the call in decode step `step` was to read, so that they bring it in. Returns at once.
    pub fn note(&self, step: u64, wanted: &Wanted, sources: &Sources) {
        let Caches { clusters, codes, rows } = &self.caches;
        for (cache, wanted, source) in [
            (clusters, &wanted.clusters, &sources.clusters),
            (codes, &wanted.codes, &sources.codes),
            (rows, &wanted.rows, &sources.rows),
        ] {
            if let Some(cache) = cache {
                cache.note(step, wanted.clone(), source);
            }
        }
    }
}

/// Where each cache reads its blocks.
#[derive(Clone)]
pub struct Sources {
    /// Clusters.
    pub clusters: Arc<dyn RowSource>,
    /// Codes of rows.
    pub codes: Arc<dyn RowSource>,
    /// Full rows.
    pub rows: Arc<dyn RowSource>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// Counters of a tier. `Display` writes them in the text format of Prometheus.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Calls in which the device took part.
    pub calls_device: u64,
    /// Calls that the device has no kernels for.
    pub calls_host: u64,
    /// Calls that the CPU answered because the device failed.
    pub fallbacks: u64,
    /// Bytes of rows read from slots, after a transfer, and by the CPU.
    pub bytes: [u64; 3],
    /// The caches of clusters, codes and full rows, as far as there are any.
    pub caches: [Option<CacheReport>; 3],
    /// The constants in use.
    pub machine: Option<Machine>,
}

impl Metrics {
    pub(super) fn count(&mut self, report: &TierReport) {
        self.calls_device += 1;
        self.bytes.iter_mut().zip(report.bytes).for_each(|(sum, bytes)| *sum += bytes);
    }
}

/// Names of the caches, in the order of [`Metrics::caches`].
const CACHES: [&str; 3] = ["clusters", "codes", "rows"];
/// Names of the places, in the order of [`Metrics::bytes`].
const PLACES: [(Place, &str); 3] =
    [(Place::Slots, "slots"), (Place::Transfer, "transfer"), (Place::Host, "cpu")];

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "longwave_device_calls_total{{side=\"device\"}} {}", self.calls_device)?;
        writeln!(f, "longwave_device_calls_total{{side=\"cpu\"}} {}", self.calls_host)?;
        writeln!(f, "longwave_device_fallbacks_total {}", self.fallbacks)?;
        for (place, name) in PLACES {
            let bytes = self.bytes[place as usize];
            writeln!(f, "longwave_device_read_bytes_total{{place=\"{name}\"}} {bytes}")?;
        }
        for (name, report) in CACHES.iter().zip(&self.caches) {
            let Some(report) = report else { continue };
            for (what, count) in [
                ("wanted_total", report.wanted),
                ("hits_total", report.hits),
                ("rows_moved_total", report.rows_moved),
                ("moved_bytes_total", report.bytes_moved),
                ("evictions_total", report.evictions),
            ] {
                writeln!(f, "longwave_cache_{what}{{cache=\"{name}\"}} {count}")?;
            }
            writeln!(f, "longwave_cache_hit_ratio{{cache=\"{name}\"}} {:.4}", report.hit_ratio())?;
        }
        let Some(machine) = self.machine else { return Ok(()) };
        for (what, value) in machine.constants() {
            writeln!(f, "longwave_machine_{what} {value:e}")?;
        }
        Ok(())
    }
}

/// What the caches have done, as far as there are any.
pub(super) fn cache_reports(caches: &Caches) -> [Option<CacheReport>; 3] {
    [&caches.clusters, &caches.codes, &caches.rows].map(|cache| cache.as_ref().map(|cache| cache.report()))
}
