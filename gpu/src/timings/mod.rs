//! Timings of the kernels beside what the device's memory allows, for a machine that has a GPU.
//!
//! The kernels of a call run one behind the other with lists that were made before, over rows whose numbers do not matter: this
//! times the device's part, not the planning. A floor is the bytes read at the bandwidth of a copy, which is measured.

mod ladder;

use crate::device::Device;
use crate::error::Error;
use crate::launch::{Parts, RowList};
use crate::measure::{DeviceRows, Effort, SLOT_ROWS, copy_bytes_per_s, listed, numbers, quickest, row_bytes};
use crate::placement::Machine;
use crate::shape::RowShape;
use ladder::LadderLayer;
use longwave_kernels::Dtype;
use std::fmt;

/// What is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of each KV head, one set of timings each; rounded up to a multiple of 256.
    pub contexts: Vec<usize>,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of each KV head.
    pub group: usize,
    /// Elements of a key and of a value, f16.
    pub dim: usize,
    /// For the bandwidths, and the runs of each timing.
    pub effort: Effort,
}

impl Default for Sizes {
    /// A layer of a model of 8 billion parameters, at 8K, 32K and 128K.
    fn default() -> Self {
        let contexts = vec![8 << 10, 32 << 10, 128 << 10];
        Sizes { contexts, kv_heads: 8, group: 4, dim: 128, effort: Effort::default() }
    }
}

/// One timing.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// What ran.
    pub what: &'static str,
    /// Rows of each KV head.
    pub context: usize,
    /// Bytes that have to be read.
    pub bytes: u64,
    /// Of the quickest run, from the first launch to the result.
    pub seconds: f64,
    /// The bytes at the bandwidth of a copy.
    pub floor_s: f64,
    /// Full attention's time over this one's.
    pub speedup: f64,
}

/// Everything that was measured. `Display` is the table.
#[derive(Clone, Debug, PartialEq)]
pub struct TimingReport {
    /// What the driver calls the device.
    pub device: String,
    /// The constants of the placement.
    pub machine: Machine,
    /// Of a copy within device memory, both ways counted.
    pub copy_bytes_per_s: f64,
    /// By context, full attention first.
    pub timings: Vec<Timing>,
}

/// Measures the constants of the machine and times the kernels.
///
/// # Errors
/// [`Error::Unsupported`] for a shape without kernels, [`Error::OutOfMemory`] or [`Error::Driver`].
pub fn measure(device: &Device, sizes: &Sizes) -> Result<TimingReport, Error> {
    let shape = RowShape::new(Dtype::F16, sizes.dim, sizes.dim, sizes.group)?;
    let machine = Machine::measure(device, sizes.effort)?;
    let copy_bytes_per_s = copy_bytes_per_s(device, sizes.effort)?;
    let mut timings = Vec::new();
    for &context in &sizes.contexts {
        let layer = Layer::new(device, &shape, sizes.kv_heads, context.max(1).next_multiple_of(256))?;
        let mut full_s = None;
        for (what, bytes, seconds) in layer.time(sizes.effort.rounds)? {
            let full_s = *full_s.get_or_insert(seconds);
            let (floor_s, speedup) = (bytes as f64 / copy_bytes_per_s, full_s / seconds);
            timings.push(Timing { what, context: layer.rows.rows, bytes, seconds, floor_s, speedup });
        }
    }
    Ok(TimingReport { device: device.name()?, machine, copy_bytes_per_s, timings })
}

/// Rows for each cluster.
const CLUSTER_ROWS: usize = 16;
/// RetroInfer's shares of rows read and of clusters estimated, in thousandths.
const RETROINFER: [usize; 2] = [18, 232];
/// The ladder's shares in thousandths, as measured at 32K (docs/gpu.md): of clusters opened, of rows of which a code is read, and
/// of rows read in full.
const LADDER: [usize; 3] = [178, 48, 1];

/// What the timed kernels read.
struct Layer<'d> {
    device: &'d Device,
    rows: DeviceRows,
    /// Clusters of each KV head.
    clusters: usize,
    splits: usize,
}

/// Name, bytes and seconds.
type Timed = (&'static str, u64, f64);

/// Whether entry `number` is one of so many of a thousand that lie evenly, the first among them.
fn is_one_of(number: usize, per_mille: usize) -> bool {
    number == 0 || (number + 1) * per_mille / 1000 > number * per_mille / 1000
}

impl<'d> Layer<'d> {
    fn new(device: &'d Device, shape: &RowShape, units: usize, rows: usize) -> Result<Self, Error> {
        debug_assert!(rows.is_multiple_of(SLOT_ROWS), "whole slots");
        let rows_of = DeviceRows::new(device, shape, units, rows)?;
        Ok(Layer { device, clusters: rows / CLUSTER_ROWS, splits: device.splits(units), rows: rows_of })
    }

    fn time(&self, rounds: usize) -> Result<Vec<Timed>, Error> {
        let all = self.rows.list(self.device, |_| true)?;
        let full = || self.rows.attend(self.device, &all, self.splits);
        let full_s = quickest(self.device, rounds, full)?;
        let (clusters, ladder) = (self.time_clusters(rounds)?, self.time_ladder(rounds)?);
        Ok(vec![("full attention", self.rows.bytes() as u64, full_s), clusters, ladder])
    }

    fn units(&self) -> usize {
        self.rows.units
    }

    /// RetroInfer's call: all centroids, the softmax over them and the choice; then clusters and summaries.
    fn time_clusters(&self, rounds: usize) -> Result<Timed, Error> {
        let (device, shape, units, clusters) = (self.device, &self.rows.shape, self.units(), self.clusters);
        let all = listed(device, units, clusters, |_| true)?;
        let summaries = device.upload(&numbers(units * clusters * shape.dim()))?;
        let counts = device.upload(&vec![CLUSTER_ROWS as f32; units * clusters])?;
        let read = self.rows.list(device, |row| is_one_of(row / CLUSTER_ROWS, RETROINFER[0]))?;
        let estimated = listed(device, units, clusters, |cluster| is_one_of(cluster, RETROINFER[1]))?;
        let chosen = |list: &RowList| list.spans.list_len() / units;
        let (reads, estimates) = (chosen(&read) / CLUSTER_ROWS, chosen(&estimated));
        let heads = units * shape.group();
        let run = || {
            let scores = device.score_rows(shape, &self.rows.queries, &summaries, &all, 0.0)?;
            let (shares, _) = device.softmax(shape.group(), &scores, &all.spans)?;
            device.select_top(&shares, &all.spans, reads, estimates)?;
            let mut parts = Parts::new(device, 2 * self.splits, heads, shape.dim())?;
            self.rows.attend_into(device, &read, (0, self.splits), &mut parts)?;
            let second = (self.splits, self.splits);
            device.estimate(shape, &scores, &counts, &summaries, &estimated, second, &mut parts)?;
            device.merge(&parts).map(|_| ())
        };
        let seconds = quickest(device, rounds, run)?;
        let summary_bytes = row_bytes(shape) / 2;
        let bytes = read.spans.list_len() * row_bytes(shape)
            + (units * clusters + estimated.spans.list_len()) * summary_bytes;
        Ok(("RetroInfer", bytes as u64, seconds))
    }

    /// The ladder's call: coded centroids and means, sketches of opened clusters, codes and rows, and what is decided in between.
    fn time_ladder(&self, rounds: usize) -> Result<Timed, Error> {
        let layer = LadderLayer::new(self)?;
        let seconds = quickest(self.device, rounds, || layer.run())?;
        Ok(("longwave", layer.bytes() as u64, seconds))
    }
}

impl fmt::Display for TimingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { transfer_bytes_per_s, device_bytes_per_s, host_bytes_per_s, launch_s, transfer_s } =
            self.machine;
        writeln!(f, "device {}", self.device)?;
        for (what, bytes_per_s) in [
            ("copy in device memory", self.copy_bytes_per_s),
            ("attention of the device", device_bytes_per_s),
            ("host to device, pinned", transfer_bytes_per_s),
            ("attention of the CPU, one thread", host_bytes_per_s),
        ] {
            writeln!(f, "{what:<34} {:>9.2} GB/s", bytes_per_s / 1e9)?;
        }
        writeln!(f, "{:<34} {:>9.2} us", "launch to result", launch_s * 1e6)?;
        writeln!(f, "{:<34} {:>9.2} us", "shortest transfer", transfer_s * 1e6)?;
        write!(
            f,
            "{:>8}  {:<15} {:>12} {:>12} {:>12} {:>10} {:>9}",
            "context", "kernels of", "bytes", "time us", "floor us", "of floor", "speedup"
        )?;
        for timing in &self.timings {
            let Timing { what, context, bytes, seconds, floor_s, speedup } = timing;
            let share = 100.0 * floor_s / seconds;
            let (time, floor) = (seconds * 1e6, floor_s * 1e6);
            write!(
                f,
                "\n{context:>8}  {what:<15} {bytes:>12} {time:>12.1} {floor:>12.1} {share:>8.1} % {speedup:>8.2}x"
            )?;
        }
        Ok(())
    }
}
