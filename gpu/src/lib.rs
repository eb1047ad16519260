//! The device tier: CUDA kernels, a block cache, and attention calls that CPU and GPU share.
//!
//! The driver is loaded when a device is opened ([`Device::open`]); without a driver, a device or memory that call returns an
//! [`Error`], and everything is answered by the CPU. Kernels are those of `kernels/cuda`, as PTX that the driver compiles for its
//! device. Tests run them, and this host code, on an emulated device (`gpu/emulation`).
//!
//! See docs/gpu.md for layouts, what was computed and what was measured.

pub mod cache;
#[cfg(feature = "device")]
mod coordinates;
mod error;
mod explained;
pub mod placement;
#[cfg(feature = "device")]
mod resident;
#[cfg(feature = "device")]
mod rows;
mod shape;
#[cfg(feature = "device")]
mod tier;

#[cfg(feature = "device")]
mod device;
#[cfg(feature = "device")]
#[expect(unsafe_code, reason = "launches go through the macro of `launch`")]
mod ladder;
#[cfg(feature = "device")]
#[expect(
    unsafe_code,
    reason = "uninitialised device memory and launches; the module says what safety rests on"
)]
mod launch;
#[cfg(feature = "device")]
mod measure;
#[cfg(feature = "device")]
#[expect(unsafe_code, reason = "launches go through the macro of `launch`")]
mod probe;
#[cfg(feature = "device")]
pub mod timings;
#[cfg(feature = "device")]
#[expect(unsafe_code, reason = "launches go through the macro of `launch`")]
pub mod zone;

pub use error::Error;
pub use explained::{Explained, PlacedStep};
pub use shape::{DIMS, EMPTY, GROUP_MAX, RowShape};

#[cfg(feature = "device")]
pub use device::{Buffer, Device, PTX};
#[cfg(feature = "device")]
pub use ladder::{CodeForm, SketchBlocks, SketchTables, Weighted};
#[cfg(feature = "device")]
pub use launch::{Parts, RowList, Spans, Staging};
#[cfg(feature = "device")]
pub use measure::{Effort, copy_bytes_per_s};
#[cfg(feature = "device")]
pub use probe::{PLACES_MAX, place_and_level};
#[cfg(feature = "device")]
pub use tier::{Caches, Division, Metrics, Sources, Tier, TierAnswer, TierReport, Wanted};
