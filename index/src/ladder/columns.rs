//! The ladder's columns of a segment: their kinds and their layout.
//!
//! d is the dimension of keys, v that of values, `clusters` their number over all heads; records of codes are those of
//! [`longwave_kernels::codec`]. Small columns:
//!
//! | kind | column | layout |
//! |---|---|---|
//! | 0x110 | `ladder.parameters` | one record of 32 bytes, below |
//! | 0x111 | `ladder.basis` | i8 `[kv_heads, d, d]`: [`Basis::inverse`](super::Basis::inverse) |
//! | 0x112 | `ladder.bits` | u8 `[kv_heads, d]`: [`Basis::bits`](super::Basis::bits) |
//! | 0x113 | `ladder.scales` | bfloat16 `[kv_heads, 6 d + 3 v + 6]`, below |
//! | 0x114 | `ladder.centroid` | records of 4-bit codes `[clusters, d / 2 + 2]` |
//! | 0x115 | `ladder.cluster` | `[clusters, 5]`: count (u16, saturating), then key spread, value spread and mean error, each a logarithmic code of a byte times the head's unit |
//! | 0x116 | `ladder.value_mean` | records of 4-bit codes `[clusters, v / 2 + 2]` |
//! | 0x118 | `ladder.sketch_offsets` | u64 `[kv_heads + 1]`: bytes of all heads' sketches before this one |
//! | 0x11b | `ladder.value_slope` | records of 4-bit codes `[kv_heads, d, v / 2 + 2]`: [`HeadLadder::value_slope`](super::HeadLadder::value_slope) |
//!
//! Columns of rows, in the order of the segment's rows:
//!
//! | kind | column | layout |
//! |---|---|---|
//! | 0x117 | `ladder.sketch` | one record of sketches for each cluster, head by head |
//! | 0x119 | `ladder.key_code` | records of codes in two planes `[kv_heads, rows, d / 2 + 2]`, of what the sketch leaves of a key |
//! | 0x11a | `ladder.value_code` | records of codes in two planes `[kv_heads, rows, v / 2 + 2]` |
//!
//! The scales of a head, one after the other: inverse scale, sketch sigma, key sigma, centroid sigma, shape and middle
//! (d each), value sigma, value mean sigma and the mean of all values, rotated (v each), then sketch noise, mean
//! deviation, the units of key spread, value spread and mean error, 0. A segment has all of these columns or none, but for
//! `ladder.value_slope`: short segments follow the one before that has it, and earlier builds did not write it.
//!
//! Version 1 had other codes: a ladder of it is left alone, and its segment read row by row until it is built again.
//!
//! The record of parameters, little-endian:
//!
//! ```text
//!  0  version                u16
//!  2  moment source          u16   0 none, 1 profile, 2 context
//!  4  moment positions       u32   the most of any head
//!  8  sketch bits            f32   mean bits of a dimension
//! 12  cluster regularisation f32   of the moment, in the metric that keys are clustered in
//! 16  sketch regularisation  f32   of the moment, in the metric that they are coded in
//! 20  reserved               4 zeros
//! 24  basis digest           u64   of all heads
//! ```

use longwave_kernels::bf16;
use longwave_storage::{Alignment, ColumnKind, NewColumn};

use super::basis::Basis;
use super::input::MomentSource;

/// Record of how the columns were made: 32 bytes.
pub const PARAMETERS: ColumnKind = ColumnKind(0x110);
/// Matrices that queries are multiplied by.
pub const BASIS: ColumnKind = ColumnKind(0x111);
/// Bits of each coordinate in a sketch.
pub const BITS: ColumnKind = ColumnKind(0x112);
/// Scales and other numbers of each head.
pub const SCALES: ColumnKind = ColumnKind(0x113);
/// Coded centroids.
pub const CENTROID: ColumnKind = ColumnKind(0x114);
/// Count and spreads of each cluster.
pub const CLUSTER: ColumnKind = ColumnKind(0x115);
/// Coded value means.
pub const VALUE_MEAN: ColumnKind = ColumnKind(0x116);
/// Sketches of the rows.
pub const SKETCH: ColumnKind = ColumnKind(0x117);
/// Where each head's sketches begin.
pub const SKETCH_OFFSETS: ColumnKind = ColumnKind(0x118);
/// Coded keys.
pub const KEY_CODE: ColumnKind = ColumnKind(0x119);
/// Coded values.
pub const VALUE_CODE: ColumnKind = ColumnKind(0x11a);
/// How values follow keys. Not every segment has it.
pub const VALUE_SLOPE: ColumnKind = ColumnKind(0x11b);

/// Every column that each ladder has, in the order they are written; [`VALUE_SLOPE`] comes behind them.
pub const COLUMN_KINDS: [ColumnKind; 11] = [
    PARAMETERS,
    BASIS,
    BITS,
    SCALES,
    CENTROID,
    CLUSTER,
    VALUE_MEAN,
    SKETCH,
    SKETCH_OFFSETS,
    KEY_CODE,
    VALUE_CODE,
];

/// Version of these columns.
pub(super) const VERSION: u16 = 2;
/// The oldest version that is known; what is older than [`VERSION`] is not used.
pub(super) const OLDEST: u16 = 1;

/// Mean bits of a dimension in a sketch.
pub(super) const SKETCH_BITS: f32 = 1.0;
/// What is added to a moment of trace `dim`, times the identity, for the metric that keys are clustered in.
pub(super) const CLUSTER_METRIC: f32 = 1.0;
/// The same for the metric that keys are coded in.
pub(super) const SKETCH_METRIC: f32 = 0.6;

/// Bytes of a cluster's record in `ladder.cluster`.
pub const CLUSTER_SIZE: usize = 5;

/// Numbers of one head in `ladder.scales`.
pub(super) const fn scales_len(key_dim: usize, value_dim: usize) -> usize {
    6 * key_dim + 3 * value_dim + 6
}

/// Name of a column of the ladder; `None` where the kind is not one.
pub(crate) fn name_of(kind: ColumnKind) -> Option<&'static str> {
    Some(match kind {
        PARAMETERS => "ladder.parameters",
        BASIS => "ladder.basis",
        BITS => "ladder.bits",
        SCALES => "ladder.scales",
        CENTROID => "ladder.centroid",
        CLUSTER => "ladder.cluster",
        VALUE_MEAN => "ladder.value_mean",
        SKETCH => "ladder.sketch",
        SKETCH_OFFSETS => "ladder.sketch_offsets",
        KEY_CODE => "ladder.key_code",
        VALUE_CODE => "ladder.value_code",
        VALUE_SLOPE => "ladder.value_slope",
        _ => return None,
    })
}

/// The record of how the columns were made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Parameters {
    pub(super) source: MomentSource,
    pub(super) positions: u32,
    pub(super) sketch_bits: f32,
    pub(super) cluster_regularisation: f32,
    pub(super) sketch_regularisation: f32,
    pub(super) digest: u64,
}

/// A record of parameters that cannot be used.
#[derive(Debug, PartialEq)]
pub(super) enum BadParameters {
    /// Of another version.
    Version(u16),
    /// With a field, at this offset, that says what no writer of this version says.
    Field(usize),
}

impl Parameters {
    pub(super) const SIZE: usize = 32;

    pub(super) fn encode(&self) -> [u8; Self::SIZE] {
        let mut record = [0; Self::SIZE];
        record[0..2].copy_from_slice(&VERSION.to_le_bytes());
        record[2..4].copy_from_slice(&self.source.code().to_le_bytes());
        record[4..8].copy_from_slice(&self.positions.to_le_bytes());
        record[8..12].copy_from_slice(&self.sketch_bits.to_le_bytes());
        record[12..16].copy_from_slice(&self.cluster_regularisation.to_le_bytes());
        record[16..20].copy_from_slice(&self.sketch_regularisation.to_le_bytes());
        record[24..32].copy_from_slice(&self.digest.to_le_bytes());
        record
    }

    pub(super) fn decode(record: &[u8; Self::SIZE]) -> Result<Self, BadParameters> {
        let four = |at: usize| [record[at], record[at + 1], record[at + 2], record[at + 3]];
        let number = |at: usize| {
            let number = f32::from_le_bytes(four(at));
            if number.is_finite() && number > 0.0 { Ok(number) } else { Err(BadParameters::Field(at)) }
        };
        let version = u16::from_le_bytes([record[0], record[1]]);
        if version != VERSION {
            return Err(BadParameters::Version(version));
        }
        if four(20) != [0; 4] {
            return Err(BadParameters::Field(20));
        }
        let source = MomentSource::from_code(u16::from_le_bytes([record[2], record[3]]));
        Ok(Self {
            source: source.ok_or(BadParameters::Field(2))?,
            positions: u32::from_le_bytes(four(4)),
            sketch_bits: number(8)?,
            cluster_regularisation: number(12)?,
            sketch_regularisation: number(16)?,
            digest: u64::from(u32::from_le_bytes(four(24))) | u64::from(u32::from_le_bytes(four(28))) << 32,
        })
    }
}

/// The ladder of one segment as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderColumns {
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    /// Of each head, as the columns have it.
    pub(super) bases: Vec<Basis>,
    pub(super) parameters: [u8; Parameters::SIZE],
    pub(super) basis: Vec<i8>,
    pub(super) bits: Vec<u8>,
    pub(super) scales: Vec<bf16>,
    pub(super) centroid: Vec<u8>,
    pub(super) cluster: Vec<u8>,
    pub(super) value_mean: Vec<u8>,
    /// One part for each head.
    pub(super) sketch: Vec<Vec<u8>>,
    pub(super) sketch_offsets: Vec<u64>,
    /// One part for each head.
    pub(super) key_code: Vec<Vec<u8>>,
    /// One part for each head.
    pub(super) value_code: Vec<Vec<u8>>,
    /// Empty where the segment has none.
    pub(super) value_slope: Vec<u8>,
}

impl LadderColumns {
    /// The basis of each head, as a reader of the columns finds it.
    pub fn bases(&self) -> &[Basis] {
        &self.bases
    }

    /// The columns, ready to be written.
    pub fn columns(&self) -> Vec<NewColumn<'_>> {
        let slope = (!self.value_slope.is_empty()).then_some(VALUE_SLOPE);
        COLUMN_KINDS.into_iter().chain(slope).filter_map(|kind| self.column(kind)).collect()
    }

    fn column(&self, kind: ColumnKind) -> Option<NewColumn<'_>> {
        let (key_record, value_record) = (self.key_dim / 2 + 2, self.value_dim / 2 + 2);
        let (element_size, parts): (usize, Vec<&[u8]>) = match kind {
            PARAMETERS => (Parameters::SIZE, vec![&self.parameters]),
            BASIS => (1, vec![bytemuck::cast_slice(&self.basis)]),
            BITS => (1, vec![&self.bits]),
            SCALES => (2, vec![bytemuck::cast_slice(&self.scales)]),
            CENTROID => (key_record, vec![&self.centroid]),
            CLUSTER => (CLUSTER_SIZE, vec![&self.cluster]),
            VALUE_MEAN => (value_record, vec![&self.value_mean]),
            SKETCH => (1, self.sketch.iter().map(Vec::as_slice).collect()),
            SKETCH_OFFSETS => (8, vec![bytemuck::cast_slice(&self.sketch_offsets)]),
            KEY_CODE => (key_record, self.key_code.iter().map(Vec::as_slice).collect()),
            VALUE_CODE => (value_record, self.value_code.iter().map(Vec::as_slice).collect()),
            VALUE_SLOPE => (value_record, vec![&self.value_slope]),
            _ => return None,
        };
        let name = name_of(kind)?;
        let element_size = element_size as u32;
        // Codes are read row by row: a block of them lies in one page. Earlier builds began them anywhere.
        let alignment =
            if matches!(kind, KEY_CODE | VALUE_CODE) { Alignment::Page } else { Alignment::CacheLine };
        Some(NewColumn { kind, name, element_size, alignment, parts })
    }
}
