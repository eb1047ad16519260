//! Codes of keys and values: rows in 4 or 8 bits an element, and sketches in about one.
//!
//! A row is coded against one scale (sigma) for each dimension, which many rows share, and one factor of its own. Each
//! element is `factor * sigma * level`, where the levels are those of Lloyd and Max for a Gaussian of unit variance.
//! Whoever scores coded rows multiplies the query by sigma once instead of every element by it.
//!
//! **Record of a row in 4 bits** ([`record_len`] bytes): `dim / 2` bytes of codes, element 2i in the low half of byte i
//! and element 2i + 1 in the high half, then the factor as a little-endian binary16.
//!
//! **Record of a row's code** (as many bytes): the factor, then a plane of `dim / 4` bytes with the upper two bits of each
//! element's code, then one with the lower two; element i in bits 2 (i mod 4) and above of byte i / 4. Factor and first plane
//! may be read alone ([`Depth`]).
//!
//! **Record of a row in 8 bits** ([`record8_len`] bytes): [`encode8`] has it; it needs no scales.
//!
//! **Record of a cluster's sketches** ([`SketchLayout::record_len`] bytes): see [`SketchLayout`].

mod code4;
mod code8;
mod forms;
mod levels;
mod lookup;
mod norms4;
mod planes;
mod read4;
#[cfg(target_arch = "x86_64")]
mod read4_wide;
mod rotate;
mod scan;
mod sketch;
mod sketch_query;
mod summaries;

pub use code4::{decode4, encode4, record_len};
pub use code8::{encode8, factor8, record8_len};
pub use forms::RowCodes;
pub use levels::{DISTORTION, HALF_LEVELS4, LEVELS1, LEVELS2, LEVELS4, factor_code, factor_of_code};
pub use planes::{Depth, decode_planes, encode_planes};
pub use rotate::rotate;
pub use scan::{SCAN_STEP, ScanOf, ScanPlanes};
pub use sketch::{BLOCK_ROWS, SketchLayout, decode_sketch, encode_sketch};
pub use sketch_query::SketchQuery;
pub use summaries::{Laid, Summaries};

pub(crate) use code8::{Records8, decode8};
pub(crate) use forms::Records;
#[cfg(target_arch = "x86_64")]
pub(crate) use forms::WideCodes;
pub(crate) use lookup::Lookup;
pub(crate) use norms4::squared_norms4;
pub(crate) use planes::encode_rows as encode_planes_rows;
pub(crate) use read4::{accumulate4, scores4};
#[cfg(target_arch = "x86_64")]
pub(crate) use scan::Scanning;
pub(crate) use scan::scan_sketch;
pub(crate) use sketch::{NewSketches, encode_cluster};
pub(crate) use sketch_query::scores_sketch;
#[cfg(target_arch = "x86_64")]
pub(crate) use summaries::{LEVEL_BYTES, WIDE_LEVELS, WideLevels};
pub(crate) use summaries::{scores_summaries, sum_summaries};
