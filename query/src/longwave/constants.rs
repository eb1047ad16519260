//! The fixed factors of the ladder. They were set on traces of one model and are checked on others; see
//! docs/accuracy.md.

/// Thresholds in units of tau: probe a cluster, read its value mean; read half a code, the whole of it, or the row itself, of a
/// key and of a value.
pub const PROBE: f32 = 0.5;
/// See [`PROBE`].
pub const MEAN: f32 = 0.5;
/// See [`PROBE`].
pub const KEY: [f32; 3] = [1.3, 8.0, 100.0];
/// The same of a key whose code was read, by what it says: read the whole of half a code, the row where the whole was read, and the
/// row where half was. From the second on the whole code is read of a key of which none was, if the others have made the answer
/// so much smaller that it matters after all.
pub const AGAIN: [f32; 3] = [1.0, 3.0, 10.0];
/// See [`PROBE`].
pub const VALUE: [f32; 3] = [0.35, 1.4, 10.0];
/// The same of reading how values follow keys in a segment, for the square root of what rows' values are off by together.
pub const SLOPE: f32 = 8.0;
/// The share of what a slope has added to an answer that is taken to be wrong, squared.
pub(crate) const SLOPE_DOUBT: f32 = 0.1;
/// How far above its cluster's centre a row is looked for, in standard deviations: as far as the variance of scores, where most of
/// the weight of normally distributed ones lies, but no less than the first of these, since scores have heavier tails, and no more than
/// the second.
pub const Z_PROBE: [f32; 2] = [2.5, 3.3];
/// Or so many standard deviations, if the row would weigh `exp` of the second times what it has to elsewhere: few rows lie so far up,
/// but the largest errors are those of one that is missed there.
pub const Z_FAR: [f32; 2] = [5.2, 5.5];
/// How far above its estimate a score is allowed for elsewhere, in standard deviations. In sharp heads the row that matters
/// lies 2 to 4 deviations above its cluster's centre; with expected instead of upper estimates such heads fail.
pub const Z_CLUSTER: f32 = 3.0;
/// See [`Z_CLUSTER`].
pub const Z_ROW: f32 = 2.5;
/// Share of the variance that half a code and a whole one leave: of values, and of keys after the sketch, which leaves
/// tails that are heavier than those of a Gaussian.
pub const VALUE_NOISE: [f32; 2] = [0.12, 0.0095];
/// See [`VALUE_NOISE`].
pub const KEY_NOISE: [f32; 2] = [0.145, 0.0135];
/// The share of their variance that codes leave of centroids, and the variance of scores that this is counted up to.
pub(crate) const CENTROID_NOISE: f32 = 0.0095;
pub(crate) const SHARED_MAX: f32 = 2.0;
/// Deviation of a score, in nats, above which the prediction counts what the score could be, and a device leaves the call to the
/// CPU. Those of SmolLM2 stayed below 8.
pub const UNSURE: f32 = 16.0;
/// The most that a row's score is raised by for what its resolution leaves open.
pub const JENSEN_MAX: f32 = 1.0;
/// Limits on exponents, so that one wild estimate cannot overflow a sum.
pub const ABOVE_MAX: f32 = 20.0;
/// See [`ABOVE_MAX`].
pub const SKETCH_MAX: f32 = 10.0;
/// How far above its estimate a score is allowed for at most: what its exponential still holds.
pub const RISE_MAX: f32 = 80.0;
