//! A device: its context, its two streams, and the kernels.

use crate::error::Error;
use crate::launch;
use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, result};
use cudarc::nvrtc::Ptx;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Numbers in device memory.
pub type Buffer<T> = CudaSlice<T>;

/// The kernels as PTX, by source file. Made by `cargo xtask ptx`.
pub const PTX: [(&str, &str); 4] = [
    ("attend", include_str!("../../kernels/cuda/ptx/attend.ptx")),
    ("ladder", include_str!("../../kernels/cuda/ptx/ladder.ptx")),
    ("probe", include_str!("../../kernels/cuda/ptx/probe.ptx")),
    ("zone", include_str!("../../kernels/cuda/ptx/zone.ptx")),
];

/// Version of CUDA whose drivers read the PTX: 1000 times the major and 10 times the minor number.
const DRIVER_VERSION_MIN: i32 = 12_040;

/// Beyond this, merging parts takes longer than they save.
const SPLITS_MAX: usize = 64;

/// One GPU that is open for work. Copies and kernels run on streams of their own; calls wait only where they say so.
#[derive(Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    /// Kernels run here.
    pub(crate) compute: Arc<CudaStream>,
    /// Rows come in here.
    pub(crate) copy: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    multiprocessors: usize,
    functions: Mutex<HashMap<String, CudaFunction>>,
}

impl Device {
    /// Opens device `ordinal`, from 0, and loads the kernels.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::DeviceTooOld`],
    /// [`Error::OutOfMemory`] or [`Error::Driver`]. Nothing of it panics.
    pub fn open(ordinal: usize) -> Result<Device, Error> {
        if !launch::driver_is_present() {
            return Err(Error::NoDriver);
        }
        let version = launch::driver_version()?;
        if version < DRIVER_VERSION_MIN {
            let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
            return Err(Error::DriverTooOld { expected: shown(DRIVER_VERSION_MIN), found: shown(version) });
        }
        let none = |found| Error::NoDevice { ordinal, found };
        match result::init() {
            Ok(()) => {}
            Err(error) if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_NO_DEVICE => {
                return Err(none(0));
            }
            Err(error) => return Err(Error::driver("initialising the driver", error)),
        }
        let found = result::device::get_count().map_err(|error| Error::driver("counting devices", error))?;
        if ordinal >= found.max(0) as usize {
            return Err(none(found.max(0) as usize));
        }
        Self::on(CudaContext::new(ordinal).map_err(|error| Error::allocation("a context", 0, error))?)
    }

    fn on(context: Arc<CudaContext>) -> Result<Device, Error> {
        let attribute =
            |which| context.attribute(which).map_err(|error| Error::driver("asking the device", error));
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(Error::DeviceTooOld { major, minor });
        }
        let count = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let multiprocessors = count.max(1) as usize;
        let stream = || context.new_stream().map_err(|error| Error::driver("making a stream", error));
        let (compute, copy) = (stream()?, stream()?);
        let load = |(name, ptx): (&str, &str)| {
            let module = context.load_module(Ptx::from_src(ptx));
            module.map_err(|error| Error::driver(format!("loading the kernels of {name}"), error))
        };
        let modules = PTX.into_iter().map(load).collect::<Result<_, _>>()?;
        Ok(Device { context, compute, copy, modules, multiprocessors, functions: Mutex::default() })
    }

    /// What the driver calls the device.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn name(&self) -> Result<String, Error> {
        self.context.name().map_err(|error| Error::driver("asking the device", error))
    }

    /// Free and total bytes of device memory.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.context.mem_get_info().map_err(|error| Error::driver("asking the device", error))
    }

    /// Into how many parts the rows of a unit are cut, so that `units` of them keep the device busy: two blocks for each
    /// multiprocessor.
    pub(crate) fn splits(&self, units: usize) -> usize {
        (2 * self.multiprocessors).div_ceil(units.max(1)).clamp(1, SPLITS_MAX)
    }

    /// Copies numbers from one place of device memory to another, for kernels launched from now on.
    pub(crate) fn copy_within<T: DeviceRepr>(
        &self,
        from: &Buffer<T>,
        to: &mut Buffer<T>,
    ) -> Result<(), Error> {
        let copied = self.compute.memcpy_dtod(from, to);
        copied.map_err(|error| Error::driver("copying in device memory", error))
    }

    /// Copies the first `len` numbers of one buffer into another, from number `at` on, for kernels launched from now on.
    pub(crate) fn copy_part<T: DeviceRepr>(
        &self,
        from: &Buffer<T>,
        to: &mut Buffer<T>,
        (at, len): (usize, usize),
    ) -> Result<(), Error> {
        let copied = self.compute.memcpy_dtod(&from.slice(..len), &mut to.slice_mut(at..at + len));
        copied.map_err(|error| Error::driver("copying in device memory", error))
    }

    /// Copies numbers into a buffer, from number `at` on, for kernels launched from now on.
    pub(crate) fn upload_part<T: DeviceRepr>(
        &self,
        numbers: &[T],
        to: &mut Buffer<T>,
        at: usize,
    ) -> Result<(), Error> {
        if numbers.is_empty() {
            return Ok(());
        }
        let copied = self.compute.memcpy_htod(numbers, &mut to.slice_mut(at..at + numbers.len()));
        copied.map_err(|error| Error::driver("copying to the device", error))
    }

    /// As [`Device::download`], of a part of a buffer.
    pub(crate) fn download_part<T: DeviceRepr + Clone + Default>(
        &self,
        buffer: &Buffer<T>,
        part: std::ops::Range<usize>,
    ) -> Result<Vec<T>, Error> {
        let mut numbers = vec![T::default(); part.len()];
        if !numbers.is_empty() {
            let copied = self.compute.memcpy_dtoh(&buffer.slice(part), &mut numbers);
            copied.map_err(|error| Error::driver("copying from the device", error))?;
        }
        self.synchronize()?;
        Ok(numbers)
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A kernel by name.
    pub(crate) fn function(&self, name: &str) -> Result<CudaFunction, Error> {
        let mut functions = self.functions.lock();
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let mut missing = None;
        for module in &self.modules {
            match module.load_function(name) {
                Ok(function) => {
                    functions.insert(name.to_owned(), function.clone());
                    return Ok(function);
                }
                Err(error) => missing = Some(error),
            }
        }
        let reason = missing.map_or_else(String::new, |error| format!("{error:?}"));
        Err(Error::Driver { what: format!("finding the kernel {name}"), reason })
    }

    /// Copies numbers to the device, for kernels launched from now on.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn upload<T: DeviceRepr>(&self, numbers: &[T]) -> Result<Buffer<T>, Error> {
        let mut buffer = launch::room(&self.compute, numbers.len())?;
        if !numbers.is_empty() {
            let copied = self.compute.memcpy_htod(numbers, &mut buffer);
            copied.map_err(|error| Error::driver("copying to the device", error))?;
        }
        Ok(buffer)
    }

    /// Room for `len` numbers, with nothing in it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Driver`].
    pub fn room<T: DeviceRepr>(&self, len: usize) -> Result<Buffer<T>, Error> {
        launch::room(&self.compute, len)
    }

    /// Waits for the kernels launched so far, and copies their results.
    ///
    /// # Errors
    /// [`Error::Driver`], also for a kernel that failed.
    pub fn download<T: DeviceRepr + Clone + Default>(&self, buffer: &Buffer<T>) -> Result<Vec<T>, Error> {
        let mut numbers = vec![T::default(); buffer.len()];
        if !numbers.is_empty() {
            let copied = self.compute.memcpy_dtoh(buffer, &mut numbers);
            copied.map_err(|error| Error::driver("copying from the device", error))?;
        }
        self.synchronize()?;
        Ok(numbers)
    }

    /// Waits for everything launched so far.
    ///
    /// # Errors
    /// [`Error::Driver`], also for a kernel that failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        let failed = |error| Error::driver("waiting for the device", error);
        self.copy.synchronize().map_err(failed)?;
        self.compute.synchronize().map_err(failed)
    }

    /// Waits for the copies so far.
    pub(crate) fn finish_copies(&self) -> Result<(), Error> {
        self.copy.synchronize().map_err(|error| Error::driver("waiting for copies", error))
    }
}
