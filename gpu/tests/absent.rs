//! Without a driver, opening a device is an error that says so. This process never loads the emulated one.

use longwave_gpu::{Device, Error};

#[test]
fn without_a_driver_opening_is_a_typed_error() {
    // Where a driver is installed, that one is asked for a device that no machine has.
    let error = Device::open(4096).unwrap_err();
    let names = ["libcuda.so", "libcuda.so.1"];
    let is_installed = std::process::Command::new("ldconfig").arg("-p").output().is_ok_and(|output| {
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        names.iter().any(|name| list.split_whitespace().any(|word| word == *name))
    });
    if is_installed {
        assert!(
            matches!(error, Error::NoDevice { ordinal: 4096, .. } | Error::DriverTooOld { .. }),
            "{error}"
        );
    } else {
        assert_eq!(error, Error::NoDriver);
        assert!(error.to_string().contains("libcuda"), "{error}");
    }
}
