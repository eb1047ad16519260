//! The fixed factors of the ladder. They were set on traces of one model and are checked on others; see
//! docs/accuracy.md.

/// Thresholds in units of tau: probe a cluster, read its value mean, read a value; and read 16-bit rows, in units of the
/// threshold of their codes. A key is read at tau itself.
pub(super) const PROBE: f32 = 0.2;
pub(super) const MEAN: f32 = 0.2;
pub(super) const VALUE: f32 = 0.7;
pub(super) const FULL: f32 = 14.0;
/// How far above its estimate a score is allowed for, in standard deviations. In sharp heads the row that matters
/// lies 2 to 4 deviations above its cluster's centre; with expected instead of upper estimates such heads fail.
pub(super) const Z_CLUSTER: f32 = 3.0;
pub(super) const Z_ROW: f32 = 1.5;
/// Share of the variance that 4-bit codes leave: of values, and of keys after the sketch.
pub(super) const VALUE_CODE_NOISE: f32 = 0.0095;
pub(super) const KEY_CODE_NOISE: f32 = 0.01;
/// Limits on exponents, so that one wild estimate cannot overflow a sum.
pub(super) const ABOVE_MAX: f32 = 20.0;
pub(super) const SKETCH_MAX: f32 = 10.0;
/// How far above its estimate a score is allowed for at most: what its exponential still holds.
pub(super) const RISE_MAX: f32 = 80.0;
