//! Tests of the whole engine through its public API, against float64 arithmetic and a plain model of what a context
//! holds.

mod accuracy;
mod bad_input;
mod damage;
mod determinism;
mod exact;
mod faults;
mod kill;
mod ladder;
mod lifecycle;
mod readers;
mod retroinfer;
mod sample;
mod state_machine;
mod truth;
