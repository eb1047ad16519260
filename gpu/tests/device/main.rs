//! The device tier on the emulated device: its host code is the one that talks to a real driver.

mod attend;
mod data;
mod ladder;
mod opening;
mod probe;
mod ptx;
mod split;
