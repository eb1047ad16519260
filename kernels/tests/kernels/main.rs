//! Every instruction set's kernels against the float64 oracle.

mod accumulate;
mod attention;
mod convert;
mod exp;
mod isas;
mod ladder;
mod sample;
mod scores;
mod state;

/// Dimensions with every kind of remainder the sweeps have, up to the largest.
const DIMS: [usize; 10] = [8, 16, 24, 64, 72, 96, 128, 192, 256, 576];
