//! The ladder's decisions on the device: what clusters and rows weigh, and what reading them better could change.
//!
//! Layouts are those of `kernels/cuda/zone.cu`: a unit (query position and KV head) has one strip for each segment, and clusters
//! have their place in planes `[place, group]`.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{RowList, Spans, assert_len};
use longwave_kernels::codec::Depth;
use longwave_query::constants::{
    ABOVE_MAX, JENSEN_MAX, KEY_NOISE, RISE_MAX, SKETCH_MAX, Z_CLUSTER, Z_FAR, Z_PROBE, Z_ROW,
};

mod kernels;
mod values;

/// How far estimates may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Standard deviations that a score inside a cluster is allowed above its centre, ...
    pub cluster_deviations: f32,
    /// The least and the most of them up to which a row is looked for, ...
    pub probe_deviations: [f32; 2],
    /// ... or so many as the first of these less so much as the second, ...
    pub far: [f32; 2],
    /// ... and a row's above its sketch.
    pub row_deviations: f32,
    /// The most that either amounts to.
    pub rise: f32,
    /// The most that a sketch's score counts above the top.
    pub sketch: f32,
    /// How far above the top a score that is known may lie before it becomes the top.
    pub over: f32,
    /// Share of a deviation that half a code of a key leaves, and a whole one.
    pub codes_leave: [f32; 2],
    /// The most that a key's score is raised by for what its code leaves.
    pub raised: f32,
    /// The soft-cap of scores; 0 is none.
    pub softcap: f32,
}

impl Limits {
    /// The CPU's constants, for scores with or without a soft-cap.
    pub fn new(softcap: Option<f32>) -> Limits {
        Limits {
            cluster_deviations: Z_CLUSTER,
            probe_deviations: Z_PROBE,
            far: Z_FAR,
            row_deviations: Z_ROW,
            rise: RISE_MAX,
            sketch: SKETCH_MAX,
            over: ABOVE_MAX,
            codes_leave: KEY_NOISE.map(f32::sqrt),
            raised: JENSEN_MAX,
            softcap: softcap.unwrap_or(0.0),
        }
    }

    /// Those of keys that are read once more, as whole codes or in full, of which half a code, or any, was read before.
    pub fn again(self) -> Limits {
        let [half, whole] = self.codes_leave;
        Limits { codes_leave: [1.0, whole / half], ..self }
    }
}

/// The clusters that the units of a call have, segment by segment.
#[derive(Debug)]
pub struct Strips {
    /// Records of the clusters, by strip.
    pub clusters: RowList,
    by_unit: Spans,
    strips: usize,
    kv_heads: usize,
    group: usize,
}

/// What is known of clusters beside their records, by record.
#[derive(Debug)]
pub struct Summaries {
    /// `[clusters, 4]`: rows, key spread, value spread, squared error of the mean.
    pub summaries: Buffer<f32>,
    /// Squared norms of the means.
    pub mean_norms2: Buffer<f32>,
    /// By how much steeper than on average values follow keys.
    pub steepness: Buffer<f32>,
    /// `[segments, kv_heads, dim]`: scales of coded means, scales of coded values, and the mean of all values.
    pub sigma: Buffer<f32>,
    /// See [`Summaries::sigma`].
    pub value_sigma: Buffer<f32>,
    /// See [`Summaries::sigma`].
    pub global: Buffer<f32>,
}

/// Clusters by their centroids' scores; planes are `[place, group]`.
#[derive(Debug)]
pub struct Weighed {
    /// Scores before the soft-cap.
    pub scores: Buffer<f32>,
    /// How much more than the centre's a row's weight may be, relative to it.
    pub above: Buffer<f32>,
    /// Weights by the scores of centroids alone.
    pub mass: Buffer<f32>,
    /// Weights with an allowance for the spread of scores inside.
    pub estimate: Buffer<f32>,
    /// Variances of the scores inside, after the soft-cap.
    pub withins: Buffer<f32>,
    /// The largest share of the mass that a cluster could hold, by place.
    pub shares: Buffer<f32>,
    /// Clusters whose mean is read.
    pub means: RowList,
    /// Reference of the exponentials `[units, group]`.
    pub tops: Buffer<f32>,
    /// Weight of the rows that are read anyway `[units, group]`.
    pub steady: Buffer<f32>,
}

/// An answer, rotated, and what distances to it need.
#[derive(Debug)]
pub struct Rough {
    /// `[units, group, dim]`.
    pub output: Buffer<f32>,
    /// Norms of the outputs `[units, group]`.
    pub norms: Buffer<f32>,
    /// Sums of all weights `[units, group]`.
    pub totals: Buffer<f32>,
    /// `[strips, group, dim]`, in units of the means' scales.
    pub scaled: Buffer<f32>,
    /// Products with the mean of all values `[strips, group]`.
    pub to_global: Buffer<f32>,
}

/// Coded sums of values that a [`Rough`] takes in, and the part of the weights that rests on means.
#[derive(Clone, Copy, Debug)]
pub struct ReadValues<'a> {
    /// `[strips, group, dim]`.
    pub coded: &'a Buffer<f32>,
    /// A plane of clusters.
    pub on_mean: &'a Buffer<f32>,
}

/// An opened cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Place in the planes of clusters.
    pub place: u32,
    /// Rows.
    pub rows: u32,
    /// Its strip.
    pub strip: u32,
}

/// The rows of opened clusters, numbered through.
#[derive(Debug)]
pub struct ZoneRows {
    opened: Buffer<u32>,
    count: usize,
    /// Opened clusters by unit, and rows by unit.
    opened_starts: Buffer<u32>,
    rows: Spans,
    places: usize,
}

/// Scores, weights and deviations `[rows, group]`, and which values were read.
#[derive(Debug)]
pub struct RowPlanes {
    /// Scores of the sketches, before the soft-cap.
    pub sketched: Buffer<f32>,
    /// The same, and of rows whose key was read, what it came to.
    pub scores: Buffer<f32>,
    /// Weights against the unit's top.
    pub weights: Buffer<f32>,
    /// Standard deviations of the scores.
    pub deviations: Buffer<f32>,
    /// 1 where the value was read as a code, 2 where in full.
    pub marks: Buffer<u32>,
    /// A plane of clusters: sums over the rows of those opened, estimates of the others.
    pub clusters: Buffer<f32>,
}

/// How finely a row is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// As a code, or half of one.
    Code(Depth),
    /// In full.
    Full,
}

impl Resolution {
    /// That of the record of which this is a part.
    pub(crate) fn whole(self) -> Resolution {
        match self {
            Resolution::Code(_) => Resolution::Code(Depth::Whole),
            Resolution::Full => Resolution::Full,
        }
    }
}

/// A key that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadKey {
    /// The row.
    pub row: u32,
    /// How finely it was read.
    pub resolution: Resolution,
    /// Where its score is.
    pub score: u32,
}

impl Strips {
    /// `clusters` are the records of the strips' clusters, `starts` where each strip begins; a unit has `strips` strips, and units
    /// are KV heads within query positions.
    ///
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// As [`RowList::new`]; if there are not `strips` strips for each unit; if `group` is not 1 to 8.
    pub fn new(
        device: &Device,
        clusters: &[u32],
        starts: &[u32],
        (strips, kv_heads, group): (usize, usize, usize),
    ) -> Result<Strips, Error> {
        assert!((1..=8).contains(&group), "a group of {group}");
        assert!(strips > 0 && (starts.len() - 1).is_multiple_of(strips * kv_heads), "{strips} strips a unit");
        let by_unit: Vec<u32> = starts.iter().copied().step_by(strips).collect();
        let (clusters, by_unit) = (RowList::new(device, clusters, starts)?, Spans::new(device, &by_unit)?);
        Ok(Strips { clusters, by_unit, strips, kv_heads, group })
    }

    /// Clusters by unit.
    pub fn by_unit(&self) -> &Spans {
        &self.by_unit
    }

    /// Strips of all units.
    pub fn count(&self) -> usize {
        self.clusters.spans.units()
    }

    pub(super) fn units(&self) -> usize {
        self.by_unit.units()
    }

    pub(super) fn planes(&self) -> usize {
        self.by_unit.list_len() * self.group
    }

    pub(super) fn heads(&self) -> usize {
        self.units() * self.group
    }

    pub(super) fn starts(&self) -> &Buffer<u32> {
        &self.clusters.spans.starts
    }

    pub(super) fn assert_summaries(&self, summaries: &Summaries, dim: usize) {
        let (norms, steepness) = (summaries.mean_norms2.len(), summaries.steepness.len());
        self.clusters.assert_within(norms.min(steepness).min(summaries.summaries.len() / 4));
        for scales in [&summaries.sigma, &summaries.value_sigma, &summaries.global] {
            assert_len(scales, self.strips * self.kv_heads * dim, "scales");
        }
    }
}

impl ZoneRows {
    /// The rows of `opened` clusters, which come in order of their units.
    ///
    /// # Errors
    /// As [`Device::upload`].
    ///
    /// # Panics
    /// If a strip or a place does not exist, or units do not rise.
    pub fn new(device: &Device, strips: &Strips, opened: &[Opened]) -> Result<ZoneRows, Error> {
        let places = strips.by_unit.list_len();
        let (mut list, mut row, mut number) = (Vec::with_capacity(4 * opened.len()), 0u32, 0);
        let (mut opened_starts, mut row_starts) = (vec![0u32], vec![0u32]);
        for unit in 0..strips.units() {
            while let Some(one) = opened.get(number).filter(|one| one.strip as usize / strips.strips == unit)
            {
                assert!((one.place as usize) < places, "place {} of {places}", one.place);
                list.extend([one.place, row, one.rows, one.strip]);
                row += one.rows;
                number += 1;
            }
            opened_starts.push(number as u32);
            row_starts.push(row);
        }
        assert!(number == opened.len(), "opened clusters of units that do not rise");
        let (list, opened_starts) = (device.upload(&list)?, device.upload(&opened_starts)?);
        let rows = Spans::new(device, &row_starts)?;
        Ok(ZoneRows { opened: list, count: opened.len(), opened_starts, rows, places })
    }

    /// Rows by unit.
    pub fn spans(&self) -> &Spans {
        &self.rows
    }
}
