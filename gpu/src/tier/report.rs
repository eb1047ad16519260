//! What a call on both sides did, and what all calls did.

use super::Tier;
use crate::cache::{CacheReport, Scored};
use crate::placement::{Machine, Place, Placement};
use std::fmt;

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
    /// Where clusters were read, in the order in which they were chosen; none where the device did not take part.
    pub placement: Option<Placement>,
    /// The constants that the placement follows from.
    pub machine: Machine,
    /// Bytes of rows read from slots, after a transfer, and by the CPU.
    pub bytes: [u64; 3],
    /// The clusters that were to be read: what [`crate::cache::BlockCache::note`] takes.
    pub wanted: Vec<Scored>,
    /// What the cache has done so far, if there is one.
    pub cache: Option<CacheReport>,
}

impl TierReport {
    pub(super) fn new(tier: &Tier, placement: Placement, bytes: [u64; 3], wanted: Vec<Scored>) -> TierReport {
        let (placement, cache) = (Some(placement), tier.cache.as_ref().map(|cache| cache.report()));
        TierReport { placement, machine: tier.machine, bytes, wanted, cache }
    }

    pub(super) fn of_host(machine: Machine, cache: Option<CacheReport>) -> TierReport {
        TierReport { placement: None, machine, bytes: [0; 3], wanted: Vec::new(), cache }
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
    /// The cache, if there is one.
    pub cache: Option<CacheReport>,
    /// The constants in use.
    pub machine: Option<Machine>,
}

impl Metrics {
    pub(super) fn count(&mut self, report: &TierReport) {
        self.calls_device += 1;
        self.bytes.iter_mut().zip(report.bytes).for_each(|(sum, bytes)| *sum += bytes);
    }
}

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
        if let Some(report) = self.cache {
            for (what, count) in [
                ("wanted_total", report.wanted),
                ("hits_total", report.hits),
                ("rows_moved_total", report.rows_moved),
                ("moved_bytes_total", report.bytes_moved),
                ("evictions_total", report.evictions),
            ] {
                writeln!(f, "longwave_cache_{what} {count}")?;
            }
            writeln!(f, "longwave_cache_hit_ratio {:.4}", report.hit_ratio())?;
        }
        let Some(machine) = self.machine else { return Ok(()) };
        for (what, value) in machine.constants() {
            writeln!(f, "longwave_machine_{what} {value:e}")?;
        }
        Ok(())
    }
}
