//! Where each selected cluster is computed: on the device from its slots, on the device after a transfer, or on the CPU where it
//! lies.

use std::fmt;

/// What a machine moves and starts: measured when it starts (`Machine::measure`), or set by the caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Bytes a second from host to device.
    pub transfer_bytes_per_s: f64,
    /// Bytes a second that the device's attention reads from its memory.
    pub device_bytes_per_s: f64,
    /// Bytes a second that the CPU's part of a call reads from its memory.
    pub host_bytes_per_s: f64,
    /// Seconds from a launch to its result, with nothing to read.
    pub launch_s: f64,
    /// Seconds that a transfer takes beside its bytes.
    pub transfer_s: f64,
}

/// Where a cluster is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the device, from the slots that it has.
    Slots,
    /// On the device, after a transfer.
    Transfer,
    /// On the CPU.
    Host,
}

/// A cluster that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// Whether it is in the device's cache.
    pub is_resident: bool,
}

/// Where everything is computed, and how long that should take.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// One place an item.
    pub places: Vec<Place>,
    /// What the places amount to.
    pub predicted: Predicted,
}

/// Predicted seconds. Transfer, device and host overlap; the device waits for the transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Predicted {
    /// Copying to the device.
    pub transfer_s: f64,
    /// Kernels.
    pub device_s: f64,
    /// The CPU's share.
    pub host_s: f64,
    /// Until both sides are done.
    pub total_s: f64,
}

/// Machines by name, with published bandwidths (docs/gpu.md) and starts that are assumed: nothing of them was measured.
pub const PUBLISHED: [(&str, Machine); 3] = [
    ("h100", published(64e9, 3.35e12, 307e9)),
    ("a100", published(32e9, 2.04e12, 205e9)),
    ("rtx4090", published(32e9, 1.01e12, 90e9)),
];

const fn published(transfer_bytes_per_s: f64, device_bytes_per_s: f64, host_bytes_per_s: f64) -> Machine {
    Machine { transfer_bytes_per_s, device_bytes_per_s, host_bytes_per_s, launch_s: 10e-6, transfer_s: 10e-6 }
}

impl Machine {
    /// Places every item so that the slower side ends soonest. Resident items stay on the device; of the others, the first so many
    /// are transferred and the rest is read by the CPU: a step's items do not differ in anything but their size.
    pub fn place(&self, items: &[Item]) -> Placement {
        let missing: u64 = items.iter().filter(|item| !item.is_resident).map(|item| item.bytes).sum();
        let resident: u64 = items.iter().filter(|item| item.is_resident).map(|item| item.bytes).sum();
        let (mut best, mut count) = (self.predict(resident, 0, missing), 0);
        let mut transferred = 0;
        for (number, item) in items.iter().filter(|item| !item.is_resident).enumerate() {
            transferred += item.bytes;
            let predicted = self.predict(resident, transferred, missing - transferred);
            if predicted.total_s < best.total_s {
                (best, count) = (predicted, number + 1);
            }
        }
        let mut left = count;
        let places = items.iter().map(|item| match item.is_resident {
            true => Place::Slots,
            false if left > 0 => {
                left -= 1;
                Place::Transfer
            }
            false => Place::Host,
        });
        Placement { places: places.collect(), predicted: best }
    }

    /// The constants with their names.
    pub fn constants(&self) -> [(&'static str, f64); 5] {
        [
            ("transfer_bytes_per_s", self.transfer_bytes_per_s),
            ("device_bytes_per_s", self.device_bytes_per_s),
            ("host_bytes_per_s", self.host_bytes_per_s),
            ("launch_s", self.launch_s),
            ("transfer_s", self.transfer_s),
        ]
    }

    /// Seconds for so many bytes in slots, transferred, and read by the CPU.
    pub fn predict(&self, resident: u64, transferred: u64, host: u64) -> Predicted {
        let seconds = |bytes: u64, per_s: f64| if bytes == 0 { 0.0 } else { bytes as f64 / per_s };
        let start = |bytes: u64, fixed: f64| if bytes == 0 { 0.0 } else { fixed };
        let transfer_s =
            start(transferred, self.transfer_s) + seconds(transferred, self.transfer_bytes_per_s);
        // Slots are read while the transfer runs; what was transferred is read behind it.
        let slots_s = start(resident, self.launch_s) + seconds(resident, self.device_bytes_per_s);
        let behind_s = start(transferred, self.launch_s) + seconds(transferred, self.device_bytes_per_s);
        let host_s = seconds(host, self.host_bytes_per_s);
        let device_end = slots_s.max(transfer_s) + behind_s;
        Predicted { transfer_s, device_s: slots_s + behind_s, host_s, total_s: device_end.max(host_s) }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |place| self.places.iter().filter(|&&p| p == place).count();
        let Predicted { transfer_s, device_s, host_s, total_s } = self.predicted;
        write!(
            f,
            "placement slots {} transfer {} cpu {}, predicted transfer {:.1} us device {:.1} us cpu {:.1} us total {:.1} us",
            count(Place::Slots),
            count(Place::Transfer),
            count(Place::Host),
            transfer_s * 1e6,
            device_s * 1e6,
            host_s * 1e6,
            total_s * 1e6
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        transfer_bytes_per_s: 20e9,
        device_bytes_per_s: 2000e9,
        host_bytes_per_s: 60e9,
        launch_s: 10e-6,
        transfer_s: 10e-6,
    };

    fn items(resident: usize, missing: usize) -> Vec<Item> {
        let item = |is_resident| Item { bytes: 1 << 16, is_resident };
        (0..resident).map(|_| item(true)).chain((0..missing).map(|_| item(false))).collect()
    }

    #[test]
    fn few_misses_are_read_where_they_lie_and_many_are_shared() {
        let few = MACHINE.place(&items(100, 4));
        assert_eq!(
            few.places[100..],
            [Place::Host; 4],
            "4 x 64 KiB are read before a transfer has begun to pay"
        );
        let many = MACHINE.place(&items(0, 1000));
        let transferred = many.places.iter().filter(|&&place| place == Place::Transfer).count();
        // The rates are 1 to 3, and a transfer has 20 us to catch up and the kernel behind it.
        assert!((230..250).contains(&transferred), "{transferred} of 1000 are transferred");
        let host_only = MACHINE.predict(0, 0, 1000 << 16).total_s;
        assert!(many.predicted.total_s < 0.78 * host_only, "{}", many.predicted.total_s / host_only);
    }

    #[test]
    fn a_slow_host_transfers_all_and_a_slow_link_nothing() {
        let slow_host = Machine { host_bytes_per_s: 1e6, ..MACHINE };
        assert!(slow_host.place(&items(3, 9)).places[3..].iter().all(|&place| place == Place::Transfer));
        let slow_link = Machine { transfer_bytes_per_s: 1e6, ..MACHINE };
        assert!(slow_link.place(&items(3, 9)).places[3..].iter().all(|&place| place == Place::Host));
        assert_eq!(slow_link.place(&items(3, 9)).places[..3], [Place::Slots; 3]);
    }

    #[test]
    fn nothing_takes_no_time() {
        assert_eq!(MACHINE.place(&[]).predicted, Predicted::default());
    }
}
