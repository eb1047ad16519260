//! Where the driver is called in ways that the compiler cannot check: uninitialised memory and launches.
//!
//! A launch is sound if the kernel's parameters are of the types given and every address that it forms lies in a buffer. The
//! types are those of `kernels/cuda/*.cu`; a test compares their number with the PTX. The addresses follow from lengths and
//! from lists: lengths are checked here, lists when they are made ([`RowList`], [`Spans`]), and both keep what was checked.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::shape::{BLOCK_THREADS, EMPTY, RowShape};
use cudarc::driver::{CudaEvent, CudaStream, DeviceRepr, PinnedHostSlice, PushKernelArg, sys};
use longwave_kernels::Dtype;
use std::sync::Arc;

/// Whether there is a driver library.
pub(crate) fn driver_is_present() -> bool {
    // SAFETY: loading the driver runs its initialisers, as any program that uses CUDA does.
    unsafe { sys::is_culib_present() }
}

/// The version of CUDA that the driver is for. There must be a driver.
pub(crate) fn driver_version() -> Result<i32, Error> {
    let mut version = 0;
    // SAFETY: the function exists since CUDA 2.2 and writes one number.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    code.result().map_err(|error| Error::driver("asking the driver for its version", error))?;
    Ok(version)
}

/// Uninitialised device memory.
pub(crate) fn room<T: DeviceRepr>(stream: &Arc<CudaStream>, len: usize) -> Result<Buffer<T>, Error> {
    // SAFETY: the numbers are plain; reading them before they are written gives some number. An empty allocation is refused
    // by drivers, so it has one element.
    let buffer = unsafe { stream.alloc::<T>(len.max(1)) };
    buffer.map_err(|error| Error::allocation("a buffer", len * size_of::<T>(), error))
}

/// Pinned host memory from which 16-bit elements are copied to the device while both go on.
#[derive(Debug)]
pub struct Staging {
    memory: PinnedHostSlice<u16>,
    /// When the copies from it so far are done.
    copied: Option<CudaEvent>,
}

impl Staging {
    /// Memory for `len` elements.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn new(device: &Device, len: usize) -> Result<Staging, Error> {
        let failed = |error| Error::allocation("pinned memory", len * 2, error);
        // SAFETY: the memory is filled before it is handed out. Without flags it is cached, so that the CPU may read it.
        let memory = unsafe { device.context().alloc_pinned_with_flags::<u16>(len.max(1), 0) };
        let mut memory = memory.map_err(failed)?;
        memory.as_mut_slice().map_err(failed)?.fill(0);
        Ok(Staging { memory, copied: None })
    }

    /// The elements, once no copy reads them any more.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn fill(&mut self) -> Result<&mut [u16], Error> {
        let failed = |error| Error::driver("waiting for a copy", error);
        if let Some(copied) = self.copied.take() {
            copied.synchronize().map_err(failed)?;
        }
        self.memory.as_mut_slice().map_err(failed)
    }

    /// All elements, without a wait: those that copies may still read are not to be written.
    pub(crate) fn unread(&mut self) -> Result<&mut [u16], Error> {
        self.memory.as_mut_slice().map_err(|error| Error::driver("reaching pinned memory", error))
    }

    /// Copies the first `len` elements to `to`, from element `at` on, on the copying stream. Kernels that are launched later wait
    /// for it; nothing else does.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Panics
    /// If there are not so many elements, or no room for them.
    pub fn copy(
        &mut self,
        device: &Device,
        len: usize,
        to: &mut Buffer<u16>,
        at: usize,
    ) -> Result<(), Error> {
        self.copy_part(device, 0..len, to, at)
    }

    /// As [`Staging::copy`], of some elements.
    pub(crate) fn copy_part(
        &mut self,
        device: &Device,
        part: std::ops::Range<usize>,
        to: &mut Buffer<u16>,
        at: usize,
    ) -> Result<(), Error> {
        let failed = |error| Error::driver("copying rows", error);
        let len = part.len();
        if len == 0 {
            return Ok(());
        }
        let from = &self.memory.as_slice().map_err(failed)?[part];
        device.copy.memcpy_htod(from, &mut to.slice_mut(at..at + len)).map_err(failed)?;
        // The memory is pinned: the copy goes on, and `fill` and `drop` wait for this event.
        self.copied = Some(device.copy.record_event(None).map_err(failed)?);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Whatever the driver says, the copy is over then.
        let _ = self.copied.take().map(|copied| copied.synchronize());
    }
}

/// Ranges of a list, one for each unit: `starts[u]..starts[u + 1]`.
#[derive(Debug)]
pub struct Spans {
    pub(crate) starts: Buffer<u32>,
    pub(crate) units: usize,
    pub(crate) len: usize,
}

impl Spans {
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// If `starts` is empty, does not begin with 0 or falls.
    pub fn new(device: &Device, starts: &[u32]) -> Result<Spans, Error> {
        assert!(starts.first() == Some(&0) && starts.is_sorted(), "starts rise from 0");
        let len = starts[starts.len() - 1] as usize;
        Ok(Spans { starts: device.upload(starts)?, units: starts.len() - 1, len })
    }

    /// Units: query positions times KV heads.
    pub fn units(&self) -> usize {
        self.units
    }

    /// Length of the list.
    pub fn list_len(&self) -> usize {
        self.len
    }
}

/// Rows for each unit; [`EMPTY`] stands for none.
#[derive(Debug)]
pub struct RowList {
    pub(crate) rows: Buffer<u32>,
    pub(crate) spans: Arc<Spans>,
    /// One more than the largest row.
    bound: usize,
}

impl RowList {
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// As [`Spans::new`], and if the last start is not the number of rows.
    pub fn new(device: &Device, rows: &[u32], starts: &[u32]) -> Result<RowList, Error> {
        let spans = Spans::new(device, starts)?;
        assert!(spans.len == rows.len(), "{} rows, and starts for {}", rows.len(), spans.len);
        let bound = rows.iter().filter(|&&row| row != EMPTY).max().map_or(0, |&row| row as usize + 1);
        Ok(RowList { rows: device.upload(rows)?, spans: Arc::new(spans), bound })
    }

    /// The list with some of its rows replaced by [`EMPTY`], as a kernel has made it.
    pub(crate) fn masked(&self, rows: Buffer<u32>) -> RowList {
        assert!(rows.len() >= self.spans.len, "a mask of {} rows for {}", rows.len(), self.spans.len);
        RowList { rows, spans: self.spans.clone(), bound: self.bound }
    }

    /// The rows as they lie on the device.
    pub fn rows(&self) -> &Buffer<u32> {
        &self.rows
    }

    pub(crate) fn assert_within(&self, rows: usize) {
        assert!(self.bound <= rows, "row {} of {rows}", self.bound.saturating_sub(1));
    }
}

/// Partial attention states: outputs `[parts, heads, dim]` and natural log-sum-exps `[parts, heads]`.
#[derive(Debug)]
pub struct Parts {
    out: Buffer<f32>,
    lse: Buffer<f32>,
    parts: usize,
    heads: usize,
    dim: usize,
}

impl Parts {
    /// Room for `parts` states of `heads` heads. Each is to be written before they are merged.
    ///
    /// # Errors
    /// As [`Device::room`].
    pub fn new(device: &Device, parts: usize, heads: usize, dim: usize) -> Result<Parts, Error> {
        let (out, lse) = (device.room(parts * heads * dim)?, device.room(parts * heads)?);
        Ok(Parts { out, lse, parts, heads, dim })
    }

    fn assert_room(&self, shape: &RowShape, spans: &Spans, first: usize, splits: usize) {
        let heads = spans.units * shape.group();
        assert!(self.heads == heads && self.dim == shape.dim(), "parts of other heads or dimension");
        assert!(
            splits > 0 && first + splits <= self.parts,
            "parts {first} to {} of {}",
            first + splits,
            self.parts
        );
    }
}

/// Launches a kernel on the compute stream.
macro_rules! launch {
    ($device:expr, $name:expr, ($x:expr, $y:expr), $threads:expr, $shared:expr, [$($argument:expr),* $(,)?]) => {{
        let name: String = $name.into();
        let function = $device.function(&name)?;
        let config = cudarc::driver::LaunchConfig {
            grid_dim: ($x as u32, $y as u32, 1),
            block_dim: ($threads as u32, 1, 1),
            shared_mem_bytes: $shared as u32,
        };
        let mut builder = $device.compute.launch_builder(&function);
        $(builder.arg($argument);)*
        // SAFETY: the callers check what the module's text names; parameters stand as in the kernel's declaration.
        unsafe { builder.launch(config) }.map_err(|error| $crate::error::Error::driver(name, error))?;
    }};
}

pub(crate) use launch;

pub(crate) fn typed(family: &str, shape: &RowShape) -> String {
    let dtype = if shape.dtype() == Dtype::Bf16 { "bf16" } else { "f16" };
    format!("{family}_{dtype}_l{}_g{}", shape.lanes(), shape.compiled_group())
}

pub(crate) fn untyped(family: &str, shape: &RowShape) -> String {
    format!("{family}_l{}_g{}", shape.lanes(), shape.compiled_group())
}

/// Shared bytes in which the teams of a block merge `per_head` floats more than their outputs.
pub(crate) fn merge_bytes(shape: &RowShape, per_head: usize) -> usize {
    shape.teams() * shape.compiled_group() * (per_head + 8 * shape.lanes()) * size_of::<f32>()
}

pub(crate) fn assert_len<T>(buffer: &Buffer<T>, least: usize, what: &str) {
    assert!(buffer.len() >= least, "{what}: {} numbers, at least {least} are needed", buffer.len());
}

impl Device {
    /// Exact attention over listed rows of a pool of slots: parts `first..first + splits`.
    ///
    /// `queries` is `[units, group, dim]`, scaled. A slot has `slot_rows` keys, then as many values; row r lies in slot
    /// `r / slot_rows`. A `softcap` of 0 is none.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Panics
    /// If a length or a row does not fit, or `slot_rows` is no power of two.
    #[expect(clippy::too_many_arguments, reason = "the parameters of the kernel")]
    pub fn attend(
        &self,
        shape: &RowShape,
        queries: &Buffer<f32>,
        pool: &Buffer<u16>,
        slot_rows: usize,
        rows: &RowList,
        softcap: f32,
        (first, splits): (usize, usize),
        parts: &mut Parts,
    ) -> Result<(), Error> {
        parts.assert_room(shape, &rows.spans, first, splits);
        assert!(slot_rows.is_power_of_two(), "slots of {slot_rows} rows");
        assert_len(queries, rows.spans.units * shape.group() * shape.dim(), "queries");
        rows.assert_within(pool.len() / (2 * shape.dim() * slot_rows) * slot_rows);
        if rows.spans.units == 0 {
            return Ok(());
        }
        let (group, dim) = (shape.group() as i32, shape.dim() as i32);
        let (shift, first) = (slot_rows.ilog2() as i32, first as i32);
        launch!(
            self,
            typed("attend", shape),
            (rows.spans.units, splits),
            BLOCK_THREADS,
            merge_bytes(shape, 2),
            [
                queries,
                pool,
                &rows.rows,
                &rows.spans.starts,
                &group,
                &dim,
                &shift,
                &softcap,
                &first,
                &mut parts.out,
                &mut parts.lse
            ]
        );
        Ok(())
    }

    /// Lets listed summaries stand for their rows. `scores` is `[list, group]`; `counts` and `means` (`[clusters, dim]`) are those
    /// of all clusters.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Panics
    /// If a length or a cluster does not fit.
    #[expect(clippy::too_many_arguments, reason = "the parameters of the kernel")]
    pub fn estimate(
        &self,
        shape: &RowShape,
        scores: &Buffer<f32>,
        counts: &Buffer<f32>,
        means: &Buffer<u16>,
        clusters: &RowList,
        (first, splits): (usize, usize),
        parts: &mut Parts,
    ) -> Result<(), Error> {
        parts.assert_room(shape, &clusters.spans, first, splits);
        assert_len(scores, clusters.spans.len * shape.group(), "scores");
        clusters.assert_within(counts.len().min(means.len() / shape.dim()));
        if clusters.spans.units == 0 {
            return Ok(());
        }
        let (group, dim, first) = (shape.group() as i32, shape.dim() as i32, first as i32);
        launch!(
            self,
            typed("estimate", shape),
            (clusters.spans.units, splits),
            BLOCK_THREADS,
            merge_bytes(shape, 2),
            [
                scores,
                counts,
                means,
                &clusters.rows,
                &clusters.spans.starts,
                &group,
                &dim,
                &first,
                &mut parts.out,
                &mut parts.lse
            ]
        );
        Ok(())
    }

    /// Merges all parts: outputs `[heads, dim]` and log-sum-exps `[heads]`.
    ///
    /// # Errors
    /// As [`Device::room`].
    pub fn merge(&self, parts: &Parts) -> Result<(Buffer<f32>, Buffer<f32>), Error> {
        let (mut out, mut lse) = (self.room(parts.heads * parts.dim)?, self.room(parts.heads)?);
        let count = parts.parts as i32;
        if parts.heads > 0 {
            launch!(
                self,
                "merge_states",
                (parts.heads, 1),
                parts.dim,
                0,
                [&parts.out, &parts.lse, &count, &mut out, &mut lse]
            );
        }
        Ok((out, lse))
    }
}

/// Blocks that share a unit's clusters; fixed by the lists, so that sums are too.
pub(crate) fn blocks_of(spans: &Spans) -> usize {
    (spans.len / spans.units.max(1)).div_ceil(1024).clamp(1, 64)
}
