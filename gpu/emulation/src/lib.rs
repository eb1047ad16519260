//! Stands in for `libcuda` in tests: no GPU, no driver and no CUDA are needed.
//!
//! The library that this crate builds holds the kernels of `kernels/cuda`, compiled for the host, and the part of the
//! driver's interface that the device tier uses. [`install`] loads it under the name `libcuda.so`, so that unmodified
//! host code finds it. One fiber stands for each CUDA thread. Work on a stream runs only when something waits for it,
//! device memory begins as NaN, and threads run in the order that [`Emulation::schedule`] sets: a missing wait shows as poison, a
//! race as a difference between schedules.
//!
//! What it does not model: speed, bank conflicts, weak memory ordering, and the rounding of approximate instructions.

#![expect(unsafe_code, reason = "the emulated driver is a C library; only tests load it")]

use libloading::{Library, Symbol};
use std::ffi::c_int;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Orders in which the threads of a block run.
pub const SCHEDULES: [Schedule; 6] = [
    Schedule { mode: 0, seed: 1 },
    Schedule { mode: 1, seed: 1 },
    Schedule { mode: 2, seed: 1 },
    Schedule { mode: 2, seed: 7 },
    Schedule { mode: 3, seed: 1 },
    Schedule { mode: 3, seed: 2 },
];

/// An order of threads: 0 rising with late asynchronous copies, 1 falling with early ones, 2 random, 3 one warp ahead of
/// the others as far as it can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    mode: c_int,
    seed: u64,
}

/// The emulated device, held by one test at a time: its settings are those of the process.
#[derive(Debug)]
pub struct Emulation {
    is_emulated: bool,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

/// With this variable set, tests run on the driver and the device that are installed, and nothing is emulated. Tests that set what
/// the device does are then to be left out; they are in modules named `emulated`.
pub const INSTALLED_DRIVER: &str = "LONGWAVE_INSTALLED_DRIVER";

/// Takes the place of `libcuda` for the rest of the process, and the device for as long as the result lives; unless
/// [`INSTALLED_DRIVER`] says otherwise.
///
/// # Panics
/// If the library cannot be loaded.
pub fn install() -> Emulation {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_emulated = std::env::var_os(INSTALLED_DRIVER).is_none();
    if is_emulated {
        library();
    }
    let emulation = Emulation { is_emulated, _alone: alone };
    emulation.reset();
    emulation
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // Another build of the same sources, for trying broken kernels.
        let path = std::env::var_os("LONGWAVE_EMULATED_LIBCUDA").unwrap_or(env!("EMULATED_LIBCUDA").into());
        // SAFETY: the library is one of this crate's sources; its initialisers register kernels in a list and nothing else.
        unsafe { Library::new(path) }.expect("the emulated driver loads")
    })
}

/// Where the library lies: a process whose dynamic linker looks there finds it as its driver.
pub fn directory() -> &'static Path {
    Path::new(env!("EMULATED_LIBCUDA")).parent().expect("a file has a directory")
}

/// Calls a function of the library.
macro_rules! call {
    ($self:ident, $name:literal: fn($($type:ty),*) -> $result:ty, $($argument:expr),*) => {{
        assert!($self.is_emulated, "only the emulated device does as it is told");
        type Function = unsafe extern "C" fn($($type),*) -> $result;
        // SAFETY: the signature is that of the definition in device/*.cpp.
        let function: Result<Symbol<'_, Function>, _> = unsafe { library().get($name) };
        let function = function.expect("the emulation has the function");
        // SAFETY: as above; the arguments are plain numbers, and the function takes its own lock.
        unsafe { function($($argument),*) }
    }};
}

impl Emulation {
    /// Whether the device is the emulated one.
    pub fn is_emulated(&self) -> bool {
        self.is_emulated
    }

    /// Sets the order in which threads run from now on. A real device has an order of its own.
    pub fn schedule(&self, schedule: Schedule) {
        if !self.is_emulated {
            return;
        }
        call!(self, b"cuemu_schedule\0": fn(c_int, u64) -> (), schedule.mode, schedule.seed);
    }

    /// Host threads that run blocks.
    pub fn threads(&self, count: usize) {
        call!(self, b"cuemu_threads\0": fn(c_int) -> (), count as c_int);
    }

    /// How many devices the driver reports.
    pub fn set_devices(&self, count: usize) {
        call!(self, b"mockcuda_set_devices\0": fn(c_int) -> c_int, count as c_int);
    }

    /// The version of CUDA that the driver reports: 1000 times the major and 10 times the minor number.
    pub fn set_version(&self, version: u32) {
        call!(self, b"mockcuda_set_version\0": fn(c_int) -> c_int, version as c_int);
    }

    /// Bytes of device memory.
    pub fn set_memory(&self, bytes: usize) {
        call!(self, b"mockcuda_set_memory\0": fn(usize) -> c_int, bytes);
    }

    /// Refuses the `nth` launch from now on, counted from 1; 0 refuses none.
    pub fn fail_launch(&self, nth: usize) {
        call!(self, b"mockcuda_fail_launch\0": fn(c_int) -> c_int, nth as c_int);
    }

    /// Refuses the `nth` allocation from now on, counted from 1, pinned memory included; 0 refuses none.
    pub fn fail_allocation(&self, nth: usize) {
        call!(self, b"mockcuda_fail_alloc\0": fn(c_int) -> c_int, nth as c_int);
    }

    /// Allocations of device and pinned memory that nobody freed.
    pub fn leaks(&self) -> usize {
        call!(self, b"mockcuda_leaks\0": fn() -> c_int,) as usize
    }

    /// Bytes copied from host to device so far.
    pub fn copied(&self) -> u64 {
        call!(self, b"mockcuda_copied\0": fn() -> u64,)
    }

    /// Kernels launched so far.
    pub fn launches(&self) -> u64 {
        call!(self, b"mockcuda_launches\0": fn() -> u64,)
    }

    /// Clears the error of a kernel that failed, after which nothing runs, and returns its code; 0 for none.
    pub fn clear_error(&self) -> i32 {
        call!(self, b"mockcuda_reset_error\0": fn() -> c_int,)
    }

    /// Everything as it is at first.
    pub fn reset(&self) {
        if !self.is_emulated {
            return;
        }
        self.clear_error();
        self.schedule(SCHEDULES[0]);
        self.threads(1);
        self.set_devices(1);
        self.set_version(12_080);
        self.set_memory(4 << 30);
        self.fail_launch(0);
        self.fail_allocation(0);
    }
}

impl Drop for Emulation {
    fn drop(&mut self) {
        self.reset();
    }
}
