//! Tests of the whole engine through its public API, against float64 arithmetic and a plain model of what a context
//! holds.

mod accuracy;
mod bad_input;
mod damage;
mod determinism;
mod exact;
mod faults;
mod fork;
mod kill;
mod ladder;
mod ladder_adversary;
mod ladder_properties;
mod lifecycle;
mod longwave_reference;
mod prefix;
mod profile;
mod readers;
mod rebuild;
mod reference;
mod retention;
mod retroinfer;
mod sample;
mod spending;
mod state_machine;
mod touched;
mod truth;
