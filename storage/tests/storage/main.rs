//! Tests of what is written, damaged, cut off and read back.

mod arbitrary;
mod crash;
mod damage;
mod files;
mod grouped;
mod log;
mod manifest;
mod profile;
mod reseal;
mod sample;
mod segment;
