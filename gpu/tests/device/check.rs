//! What `cargo xtask gpu` runs on a machine with a GPU: the measurements and the program, here on the emulated device.

use longwave_gpu::placement::Machine;
use longwave_gpu::timings::{Sizes, measure};
use longwave_gpu::{Device, Effort, Error};
use longwave_gpu_emulation::{directory, install};
use std::process::{Command, Output};

const EFFORT: Effort = Effort { bytes: 1 << 16, rounds: 1 };

#[test]
fn a_machine_is_measured() {
    let _emulation = install();
    let device = Device::open(0).unwrap();
    let machine = Machine::measure(&device, EFFORT).unwrap();
    let Machine { transfer_bytes_per_s, device_bytes_per_s, host_bytes_per_s, launch_s, transfer_s } =
        machine;
    for constant in [transfer_bytes_per_s, device_bytes_per_s, host_bytes_per_s, launch_s, transfer_s] {
        assert!(constant.is_finite() && constant > 0.0, "{machine:?}");
    }
}

#[test]
fn timings_have_the_bytes_that_their_kernels_read() {
    let _emulation = install();
    let device = Device::open(0).unwrap();
    let sizes = Sizes { contexts: vec![200, 1024], kv_heads: 3, group: 2, dim: 96, effort: EFFORT };
    let report = measure(&device, &sizes).unwrap();
    let named = |context: usize, what: &str| {
        report.timings.iter().find(|t| t.context == context && t.what == what).unwrap().clone()
    };
    assert_eq!(report.timings.len(), 6);
    // 3 heads of 256 rows, rounded up from 200, and of 1024; 96 elements of key and value.
    assert_eq!(named(256, "full attention").bytes, 3 * 256 * 384);
    assert_eq!(named(1024, "full attention").bytes, 3 * 1024 * 384);
    // 64 clusters: all centroids, two clusters read (the first and that at 1.8 %), 14 estimated and the first.
    assert_eq!(named(1024, "RetroInfer").bytes, 3 * (64 + 15) * 192 + 3 * 2 * 16 * 384);
    // Centroids and means in 50 bytes, 12 clusters of sketches of 12 bytes and an exponent, half a code of 50 rows, 2 rows in full.
    assert_eq!(named(1024, "longwave").bytes, 3 * (2 * 64 * 50 + 12 * 16 * 13 + 2 * 50 * 26 + 2 * 384));
    for timing in &report.timings {
        let of_copy = timing.bytes as f64 / report.copy_bytes_per_s;
        assert!(timing.seconds > 0.0 && timing.speedup > 0.0 && timing.floor_s == of_copy, "{timing:?}");
    }
    assert_eq!(report.to_string().lines().count(), 14, "{report}");
    let strange = Sizes { dim: 80, ..sizes };
    assert!(matches!(measure(&device, &strange).unwrap_err(), Error::Unsupported { .. }));
}

/// The program, with the emulated driver where the dynamic linker looks.
fn program(argument: &str, devices: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longwave-gpu-check"));
    command.arg(argument).env("CUEMU_DEVICES", devices).env("LD_LIBRARY_PATH", directory());
    command.output().unwrap()
}

mod emulated {
    use super::*;

    #[test]
    fn the_program_prints_its_table() {
        let output = program("sample", "1");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text} {}", String::from_utf8_lossy(&output.stderr));
        assert!(text.starts_with("device cuemu host emulation\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("longwave")).count(), 2, "{text}");
        assert!(program("open", "1").stdout.starts_with(b"cuemu host emulation: "));
    }

    #[test]
    fn without_a_device_it_says_why_and_has_an_exit_code_of_its_own() {
        let output = program("open", "0");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.trim()), (Some(3), "no CUDA device 0: the driver reports 0"));
        assert!(output.stdout.is_empty());
        assert_eq!(program("everything", "1").status.code(), Some(2));
    }
}
