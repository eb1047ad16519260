//! The device tier on the emulated device: its host code is the one that talks to a real driver. `cargo xtask gpu` runs all but the
//! modules named `emulated` on the installed driver.

mod attend;
mod check;
mod data;
mod emulated;
mod ladder;
mod layers;
mod longwave;
mod probe;
mod ptx;
mod split;
mod zone;
