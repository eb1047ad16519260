//! Opens a device and prints what it moves and how long the kernels take; `cargo xtask gpu` runs it.
//!
//! `longwave-gpu-check [open|timings|sample]`: only open the device, time the kernels (the default), or time them at sizes that an
//! emulated device can do. Exit codes: 0 done, 1 the device failed, 2 the line makes no sense, 3 there is no device to run on.

use longwave_gpu::{Device, Effort, Error, timings};
use std::process::ExitCode;

/// There is no driver or no device that the kernels run on.
const NO_DEVICE: u8 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let effort = Effort { bytes: 1 << 16, rounds: 1 };
    let sample = timings::Sizes { contexts: vec![256, 512], kv_heads: 2, group: 3, dim: 64, effort };
    let sizes = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["open"] => None,
        [] | ["timings"] => Some(timings::Sizes::default()),
        ["sample"] => Some(sample),
        _ => {
            eprintln!("expected one of open, timings and sample, found {}", arguments.join(" "));
            return ExitCode::from(2);
        }
    };
    match run(sizes) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            let is_absent = matches!(
                error,
                Error::NoDriver
                    | Error::DriverTooOld { .. }
                    | Error::NoDevice { .. }
                    | Error::DeviceTooOld { .. }
            );
            ExitCode::from(if is_absent { NO_DEVICE } else { 1 })
        }
    }
}

fn run(sizes: Option<timings::Sizes>) -> Result<String, Error> {
    let device = Device::open(0)?;
    let Some(sizes) = sizes else {
        let (free, total) = device.memory()?;
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        return Ok(format!("{}: {:.1} of {:.1} GiB free", device.name()?, gib(free), gib(total)));
    };
    Ok(timings::measure(&device, &sizes)?.to_string())
}
