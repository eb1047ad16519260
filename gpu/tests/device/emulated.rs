//! Opening the emulated device, also where something is missing.

use longwave_gpu::{Device, Error, Staging};
use longwave_gpu_emulation::install;

#[test]
fn a_device_opens_and_says_what_it_is() {
    let _emulation = install();
    let device = Device::open(0).unwrap();
    assert_eq!(device.name().unwrap(), "cuemu host emulation");
    assert_eq!(device.memory().unwrap().1, 4 << 30);
    let numbers: Vec<u32> = (0..37).collect();
    assert_eq!(device.download(&device.upload(&numbers).unwrap()).unwrap(), numbers);
}

#[test]
fn a_driver_without_a_device_is_a_typed_error() {
    let emulation = install();
    emulation.set_devices(0);
    assert_eq!(Device::open(0).unwrap_err(), Error::NoDevice { ordinal: 0, found: 0 });
    emulation.set_devices(2);
    assert_eq!(Device::open(2).unwrap_err(), Error::NoDevice { ordinal: 2, found: 2 });
    assert!(Device::open(1).is_ok());
}

#[test]
fn a_driver_that_cannot_read_the_kernels_is_refused_before_anything_is_called() {
    let emulation = install();
    emulation.set_version(12_030);
    let error = Device::open(0).unwrap_err();
    assert_eq!(error, Error::DriverTooOld { expected: "12.4".into(), found: "12.3".into() });
}

#[test]
fn memory_that_runs_out_is_a_typed_error_and_the_device_goes_on() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    emulation.set_memory(1 << 20);
    let error = device.upload(&vec![1u32; 1 << 19]).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { what: "a buffer", bytes: 2 << 20 });
    assert_eq!(device.download(&device.upload(&[5u32, 6]).unwrap()).unwrap(), [5, 6]);
    device.synchronize().unwrap();
    assert_eq!(emulation.leaks(), 0);
}

#[test]
fn staged_elements_arrive_while_the_memory_is_used_again() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    let (mut staging, mut to) = (Staging::new(&device, 8).unwrap(), device.upload(&[9u16; 12]).unwrap());
    for (first, at) in [(100, 0), (200, 3), (300, 9)] {
        staging.fill().unwrap().iter_mut().zip(first..).for_each(|(x, i)| *x = i);
        staging.copy(&device, 3, &mut to, at).unwrap();
    }
    assert_eq!(device.download(&to).unwrap(), [100, 101, 102, 200, 201, 202, 9, 9, 9, 300, 301, 302]);
    emulation.fail_allocation(1);
    assert_eq!(
        Staging::new(&device, 8).unwrap_err(),
        Error::OutOfMemory { what: "pinned memory", bytes: 16 }
    );
}
