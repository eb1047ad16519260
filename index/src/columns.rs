//! The index's columns of a segment: their kinds, their layout, and the record of how they were made.
//!
//! | kind | column | layout |
//! |---|---|---|
//! | 0x100 | `index.parameters` | one record of 32 bytes |
//! | 0x101 | `index.cluster_heads` | u32 `[kv_heads + 1]`: clusters of all heads before this one |
//! | 0x102 | `index.postings` | u32 `[clusters + kv_heads]`: of each head its offsets, one more than its clusters |
//! | 0x103 | `index.count` | f32 `[clusters]`: rows of each cluster |
//! | 0x104 | `index.centroid` | rows' type `[clusters, key_dim]` |
//! | 0x105 | `index.value_mean` | rows' type `[clusters, value_dim]` |
//! | 0x106 | `index.key_spread` | f32 `[clusters]` |
//! | 0x107 | `index.value_spread` | f32 `[clusters]` |
//!
//! `clusters` is the number over all heads. A segment has all of these columns or none.

use longwave_kernels::Dtype;
use longwave_storage::{Alignment, ColumnKind, NewColumn};

use crate::ClusterOptions;

/// Record of how the index was made: 32 bytes.
pub const PARAMETERS: ColumnKind = ColumnKind(0x100);
/// Clusters before each head: u32 `[kv_heads + 1]`.
pub const CLUSTER_HEADS: ColumnKind = ColumnKind(0x101);
/// First row of each cluster within its head: u32 `[clusters + kv_heads]`.
pub const POSTINGS: ColumnKind = ColumnKind(0x102);
/// Rows of each cluster: f32 `[clusters]`, whole numbers, in the form that the estimate multiplies with.
pub const COUNT: ColumnKind = ColumnKind(0x103);
/// Mean key of each cluster: `[clusters, key_dim]` in the rows' type.
pub const CENTROID: ColumnKind = ColumnKind(0x104);
/// Mean value of each cluster: `[clusters, value_dim]` in the rows' type.
pub const VALUE_MEAN: ColumnKind = ColumnKind(0x105);
/// Mean squared distance of a cluster's keys to its stored centroid: f32 `[clusters]`.
pub const KEY_SPREAD: ColumnKind = ColumnKind(0x106);
/// Mean squared distance of a cluster's values to its stored value mean: f32 `[clusters]`.
pub const VALUE_SPREAD: ColumnKind = ColumnKind(0x107);

/// Every column of the index, in the order they are written.
pub const COLUMN_KINDS: [ColumnKind; 8] =
    [PARAMETERS, CLUSTER_HEADS, POSTINGS, COUNT, CENTROID, VALUE_MEAN, KEY_SPREAD, VALUE_SPREAD];

/// Version of the columns that this build writes, and the only one it reads.
pub(crate) const VERSION: u16 = 1;

/// Name of an index column, as the segment's table has it; `None` where the kind is not one of the index's.
pub fn column_name(kind: ColumnKind) -> Option<&'static str> {
    Some(match kind {
        PARAMETERS => "index.parameters",
        CLUSTER_HEADS => "index.cluster_heads",
        POSTINGS => "index.postings",
        COUNT => "index.count",
        CENTROID => "index.centroid",
        VALUE_MEAN => "index.value_mean",
        KEY_SPREAD => "index.key_spread",
        VALUE_SPREAD => "index.value_spread",
        _ => return crate::ladder::columns::name_of(kind),
    })
}

/// The record of how an index was made, little-endian:
///
/// ```text
///  0  version            u16
///  2  metric             u16   between keys: 0 Euclidean, 1 of the head's queries (`ladder.parameters`)
///  4  tokens_per_cluster u32
///  8  iterations         u32
/// 12  split_factor       f32   0: clusters were not split
/// 16  seed               u64
/// 24  reserved           8 zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) options: ClusterOptions,
    /// Whether keys were clustered in the metric of the head's queries.
    pub(crate) query_metric: bool,
}

/// A parameter record that cannot be used.
#[derive(Debug, PartialEq)]
pub(crate) enum BadParameters {
    /// Of another version.
    Version(u16),
    /// With a field, at this offset, that says what no writer of this version says.
    Field(usize),
}

impl Parameters {
    pub(crate) const SIZE: usize = 32;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let ClusterOptions { tokens_per_cluster, iterations, split_factor, seed } = self.options;
        let mut record = [0; Self::SIZE];
        record[0..2].copy_from_slice(&VERSION.to_le_bytes());
        record[2] = u8::from(self.query_metric);
        record[4..8].copy_from_slice(&tokens_per_cluster.to_le_bytes());
        record[8..12].copy_from_slice(&iterations.to_le_bytes());
        record[12..16].copy_from_slice(&split_factor.unwrap_or(0.0).to_le_bytes());
        record[16..24].copy_from_slice(&seed.to_le_bytes());
        record
    }

    pub(crate) fn decode(record: &[u8; Self::SIZE]) -> Result<Self, BadParameters> {
        let four = |at: usize| [record[at], record[at + 1], record[at + 2], record[at + 3]];
        let [low, high, metric @ ..] = four(0);
        let version = u16::from_le_bytes([low, high]);
        if version != VERSION {
            return Err(BadParameters::Version(version));
        }
        let query_metric = match metric {
            [0, 0] => false,
            [1, 0] => true,
            _ => return Err(BadParameters::Field(2)),
        };
        if record[24..] != [0; 8] {
            return Err(BadParameters::Field(24));
        }
        let split_factor = f32::from_le_bytes(four(12));
        let options = ClusterOptions {
            tokens_per_cluster: u32::from_le_bytes(four(4)),
            iterations: u32::from_le_bytes(four(8)),
            split_factor: (split_factor != 0.0).then_some(split_factor),
            seed: u64::from(u32::from_le_bytes(four(16))) | u64::from(u32::from_le_bytes(four(20))) << 32,
        };
        match options.check() {
            Ok(()) => Ok(Self { options, query_metric }),
            Err(crate::OptionsError::TokensPerCluster) => Err(BadParameters::Field(4)),
            Err(crate::OptionsError::SplitFactor(_)) => Err(BadParameters::Field(12)),
        }
    }
}

/// The index of one segment as it is written; `columns` of the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexColumns {
    pub(crate) parameters: [u8; Parameters::SIZE],
    pub(crate) cluster_heads: Vec<u32>,
    pub(crate) postings: Vec<u32>,
    pub(crate) counts: Vec<f32>,
    pub(crate) centroids: Vec<u8>,
    pub(crate) value_means: Vec<u8>,
    pub(crate) key_spreads: Vec<f32>,
    pub(crate) value_spreads: Vec<f32>,
}

impl IndexColumns {
    /// Clusters of all heads.
    pub fn clusters(&self) -> usize {
        self.counts.len()
    }

    /// The columns, ready to be written; `dtype` is the type of the rows.
    pub fn columns(&self, dtype: Dtype) -> Vec<NewColumn<'_>> {
        let element = dtype.size_of() as u32;
        COLUMN_KINDS.map(|kind| self.column(kind, element)).into_iter().flatten().collect()
    }

    fn column(&self, kind: ColumnKind, element: u32) -> Option<NewColumn<'_>> {
        let (element_size, bytes): (u32, &[u8]) = match kind {
            PARAMETERS => (Parameters::SIZE as u32, &self.parameters),
            CLUSTER_HEADS => (4, bytemuck::cast_slice(&self.cluster_heads)),
            POSTINGS => (4, bytemuck::cast_slice(&self.postings)),
            COUNT => (4, bytemuck::cast_slice(&self.counts)),
            CENTROID => (element, &self.centroids),
            VALUE_MEAN => (element, &self.value_means),
            KEY_SPREAD => (4, bytemuck::cast_slice(&self.key_spreads)),
            VALUE_SPREAD => (4, bytemuck::cast_slice(&self.value_spreads)),
            _ => return None,
        };
        let name = column_name(kind)?;
        Some(NewColumn { kind, name, element_size, alignment: Alignment::CacheLine, parts: vec![bytes] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ClusterOptions = ClusterOptions {
        tokens_per_cluster: 24,
        iterations: 7,
        split_factor: Some(2.5),
        seed: 0x0102_0304_0506_0708,
    };

    #[test]
    fn parameters_round_trip() {
        for options in [OPTIONS, ClusterOptions { split_factor: None, ..OPTIONS }] {
            for query_metric in [false, true] {
                let parameters = Parameters { options, query_metric };
                assert_eq!(Parameters::decode(&parameters.encode()), Ok(parameters));
            }
        }
    }

    #[test]
    fn parameters_lie_where_the_diagram_says() {
        let record = Parameters { options: OPTIONS, query_metric: true }.encode();
        let expected = [
            1, 0, 1, 0, 24, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0x20, 0x40, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0,
            0, 0,
        ];
        assert_eq!(record, expected);
    }

    #[test]
    fn parameters_of_no_known_writer_are_refused() {
        let with = |at: usize, bytes: &[u8]| {
            let mut record = Parameters { options: OPTIONS, query_metric: false }.encode();
            record[at..at + bytes.len()].copy_from_slice(bytes);
            Parameters::decode(&record)
        };
        assert_eq!(with(0, &[2, 0]), Err(BadParameters::Version(2)));
        assert_eq!(with(2, &[0, 1]), Err(BadParameters::Field(2)));
        assert_eq!(with(4, &[0, 0, 0, 0]), Err(BadParameters::Field(4)));
        assert_eq!(with(12, &f32::NAN.to_le_bytes()), Err(BadParameters::Field(12)));
        assert_eq!(with(12, &0.5f32.to_le_bytes()), Err(BadParameters::Field(12)));
        assert_eq!(with(31, &[1]), Err(BadParameters::Field(24)));
    }

    #[test]
    fn every_kind_has_its_own_number_and_name() {
        for (place, kind) in COLUMN_KINDS.into_iter().enumerate() {
            assert_eq!(kind.0, ColumnKind::INDEX_FIRST.0 + place as u32);
            assert!(column_name(kind).is_some());
        }
        assert_eq!(column_name(ColumnKind(0x108)), None);
    }
}
