//! The constants of a machine, measured: what the link, the device and the CPU move in a second, and what a start costs.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{Parts, RowList, Staging};
use crate::placement::Machine;
use crate::shape::RowShape;
use half::f16;
use longwave_kernels::{AttentionState, Dtype, Kernels, Rows};
use std::time::Instant;

/// How much is moved to measure a bandwidth, and how often. The quickest run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Bytes of each run.
    pub bytes: usize,
    /// Runs, after one that is not timed.
    pub rounds: usize,
}

impl Default for Effort {
    /// 64 MiB, more than what caches hold, five times.
    fn default() -> Self {
        Effort { bytes: 64 << 20, rounds: 5 }
    }
}

/// The shape that bandwidths of attention are measured with.
const DIM: usize = 128;
const GROUP: usize = 4;
const UNITS: usize = 8;
pub(crate) const SLOT_ROWS: usize = 16;

impl Machine {
    /// Measures this machine with `device`. Takes pinned and device memory of `effort.bytes`, and gives it back.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn measure(device: &Device, effort: Effort) -> Result<Machine, Error> {
        let (transfer_s, transfer_bytes_per_s) = measure_link(device, effort)?;
        let shape = RowShape::new(Dtype::F16, DIM, DIM, GROUP)?;
        let rows = (effort.bytes / (UNITS * row_bytes(&shape))).next_multiple_of(SLOT_ROWS);
        let heads = DeviceRows::new(device, &shape, UNITS, rows)?;
        let (one, all) = (heads.list(device, |row| row == 0)?, heads.list(device, |_| true)?);
        let splits = device.splits(UNITS);
        let timed = |list: &RowList| quickest(device, effort.rounds, || heads.attend(device, list, splits));
        let launch_s = timed(&one)?;
        let device_bytes_per_s = rate(heads.bytes(), timed(&all)?, launch_s);
        let host_bytes_per_s = measure_host(&shape, effort);
        Ok(Machine { transfer_bytes_per_s, device_bytes_per_s, host_bytes_per_s, launch_s, transfer_s })
    }
}

/// Bytes a second of a copy from device memory to device memory, reading and writing counted.
///
/// # Errors
/// As [`Device::room`].
pub fn copy_bytes_per_s(device: &Device, effort: Effort) -> Result<f64, Error> {
    let (from, mut to) = (device.upload(&numbers(effort.bytes / 2))?, device.room(effort.bytes / 2)?);
    let mut copy = || device.copy_within(&from, &mut to);
    let few = quickest(device, effort.rounds, &mut copy)?;
    // The copies of one run follow each other without a wait, so that only one start is timed.
    let many = quickest(device, effort.rounds, || (0..COPIES).try_for_each(|_| copy()))?;
    Ok(rate(2 * (COPIES - 1) * effort.bytes, many, few.min(many)))
}

const COPIES: usize = 9;

/// Seconds that the shortest transfer takes, and bytes a second of long ones.
fn measure_link(device: &Device, effort: Effort) -> Result<(f64, f64), Error> {
    let len = effort.bytes / 2;
    let (mut staging, mut to) = (Staging::new(device, len)?, device.room(len)?);
    let mut timed = |len| quickest(device, effort.rounds, || staging.copy(device, len, &mut to, 0));
    let start = timed(1)?;
    Ok((start, rate(effort.bytes, timed(len)?, start)))
}

/// Bytes a second of the CPU's part of a call, which one thread reads.
fn measure_host(shape: &RowShape, effort: Effort) -> f64 {
    let rows = numbers(effort.bytes / 4 / DIM * DIM);
    let rows = || Rows::from_bytes(Dtype::F16, bytemuck::cast_slice(&rows)).expect("whole elements");
    let queries = vec![0.125f32; GROUP * DIM];
    let mut scratch = Vec::new();
    let mut read = || {
        let mut state = AttentionState::new(shape.group(), DIM);
        let started = Instant::now();
        Kernels::get().attend_rows(&mut state, &queries, DIM, rows(), rows(), None, &mut scratch);
        std::hint::black_box(&state);
        started.elapsed().as_secs_f64()
    };
    read();
    // Keys and values are the same bytes, read twice.
    let quickest = (0..effort.rounds.max(1)).map(|_| read()).fold(f64::INFINITY, f64::min);
    rate(effort.bytes, quickest, 0.0)
}

/// Bytes a second beside a start. Of so few bytes that the start is nearly all, this is what they reached with part of it.
fn rate(bytes: usize, seconds: f64, start_s: f64) -> f64 {
    bytes as f64 / (seconds - start_s).max(seconds / 4.0).max(1e-9)
}

/// Seconds of the quickest of several runs, each with the wait for its result; one goes before that is not timed.
pub(crate) fn quickest(
    device: &Device,
    rounds: usize,
    mut run: impl FnMut() -> Result<(), Error>,
) -> Result<f64, Error> {
    run()?;
    device.synchronize()?;
    let mut least = f64::INFINITY;
    for _ in 0..rounds.max(1) {
        let started = Instant::now();
        run()?;
        device.synchronize()?;
        least = least.min(started.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// Some numbers below 1 as f16, none of them special.
pub(crate) fn numbers(count: usize) -> Vec<u16> {
    let few: Vec<u16> =
        (0..1021).map(|i| f16::from_f32((i * 389 % 1021) as f32 / 1021.0 - 0.5).to_bits()).collect();
    few.iter().copied().cycle().take(count).collect()
}

/// Bytes of a key and a value.
pub(crate) fn row_bytes(shape: &RowShape) -> usize {
    2 * shape.dim() * size_of::<u16>()
}

/// Rows of several KV heads in device memory, with queries for them.
pub(crate) struct DeviceRows {
    pub(crate) shape: RowShape,
    pub(crate) units: usize,
    /// Of each unit.
    pub(crate) rows: usize,
    pub(crate) queries: Buffer<f32>,
    pool: Buffer<u16>,
}

impl DeviceRows {
    /// `rows` rows for each of `units` KV heads; a multiple of the rows of a slot.
    pub(crate) fn new(device: &Device, shape: &RowShape, units: usize, rows: usize) -> Result<Self, Error> {
        let queries = device.upload(&vec![0.125f32; units * shape.group() * shape.dim()])?;
        let pool = device.upload(&numbers(units * rows * 2 * shape.dim()))?;
        Ok(DeviceRows { shape: *shape, units, rows, queries, pool })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.units * self.rows * row_bytes(&self.shape)
    }

    /// Lists the rows of each unit, numbered from 0, that `is_read` takes.
    pub(crate) fn list(&self, device: &Device, is_read: impl Fn(usize) -> bool) -> Result<RowList, Error> {
        listed(device, self.units, self.rows, is_read)
    }

    /// Launches attention over listed rows, and the merge.
    pub(crate) fn attend(&self, device: &Device, list: &RowList, splits: usize) -> Result<(), Error> {
        let mut parts = Parts::new(device, splits, self.units * self.shape.group(), self.shape.dim())?;
        self.attend_into(device, list, (0, splits), &mut parts)?;
        device.merge(&parts).map(|_| ())
    }

    pub(crate) fn attend_into(
        &self,
        device: &Device,
        list: &RowList,
        part: (usize, usize),
        parts: &mut Parts,
    ) -> Result<(), Error> {
        device.attend(&self.shape, &self.queries, &self.pool, SLOT_ROWS, list, 0.0, part, parts)
    }
}

/// Of each unit's `count` entries, those that `is_read` takes; units lie one behind the other.
pub(crate) fn listed(
    device: &Device,
    units: usize,
    count: usize,
    is_read: impl Fn(usize) -> bool,
) -> Result<RowList, Error> {
    let (mut entries, mut starts) = (Vec::new(), vec![0]);
    for unit in 0..units {
        entries.extend((0..count).filter(|&entry| is_read(entry)).map(|entry| (unit * count + entry) as u32));
        starts.push(entries.len() as u32);
    }
    RowList::new(device, &entries, &starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_leaves_out_the_start_and_never_more_than_three_quarters() {
        assert!((rate(100, 3.0, 1.0) - 50.0).abs() < 1e-9);
        assert!((rate(100, 4.0, 4.0) - 100.0).abs() < 1e-9, "a start that is all of the time");
        assert!((rate(100, 4.0, 9.0) - 100.0).abs() < 1e-9, "a start that took longer");
    }
}
