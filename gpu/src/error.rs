//! What can go wrong with a device. Each case leaves the CPU path open.

use longwave_kernels::Dtype;
use thiserror::Error;

/// Why something could not be done on a device.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No driver library is installed.
    #[error("no CUDA driver: libcuda is not installed")]
    NoDriver,
    /// The driver cannot load the kernels.
    #[error("the CUDA driver is too old: expected one for CUDA {expected}, found one for {found}")]
    DriverTooOld {
        /// The least version, as `12.4`.
        expected: String,
        /// The driver's.
        found: String,
    },
    /// The driver has no such device.
    #[error("no CUDA device {ordinal}: the driver reports {found}")]
    NoDevice {
        /// The device asked for, from 0.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The device is older than the kernels.
    #[error("the device is too old: expected compute capability 8.0 or more, found {major}.{minor}")]
    DeviceTooOld {
        /// Major number of its compute capability.
        major: i32,
        /// Minor number.
        minor: i32,
    },
    /// There are no kernels for rows of this kind.
    #[error("no kernels for {what}: expected {expected}, found {found}")]
    Unsupported {
        /// What it is about.
        what: &'static str,
        /// What there are kernels for.
        expected: &'static str,
        /// What was asked for.
        found: String,
    },
    /// Device memory or pinned memory ran out.
    #[error("out of device memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A cache is not for these rows.
    #[error("the cache of {what} is for other rows: expected {expected}, found {found}")]
    Cache {
        /// What it is to keep.
        what: &'static str,
        /// Slots as the call reads them.
        expected: String,
        /// Slots as it has them.
        found: String,
    },
    /// The driver refused something, or a kernel failed.
    #[error("{what} failed: {reason}")]
    Driver {
        /// The step or kernel.
        what: String,
        /// What the driver says.
        reason: String,
    },
    /// Rows could not be read from the store.
    #[error("{0}")]
    Rows(String),
}

impl Error {
    pub(crate) fn dtype(found: Dtype) -> Error {
        Error::Unsupported { what: "rows", expected: "f16 or bf16", found: found.to_string() }
    }

    #[cfg(feature = "device")]
    pub(crate) fn driver(what: impl Into<String>, error: cudarc::driver::DriverError) -> Error {
        Error::Driver { what: what.into(), reason: format!("{error:?}") }
    }

    #[cfg(feature = "device")]
    pub(crate) fn allocation(what: &'static str, bytes: usize, error: cudarc::driver::DriverError) -> Error {
        match error.0 {
            cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what, bytes },
            _ => Error::driver(what, error),
        }
    }
}
