//! The launches.

use super::{
    Limits, ReadKey, ReadValues, Resolution, Rough, RowPlanes, Strips, Summaries, Weighed, ZoneRows,
};
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{RowList, Spans, assert_len, blocks_of, launch};
use crate::shape::BLOCK_THREADS;
use cudarc::driver::PushKernelArg;
use longwave_kernels::codec::Depth;

/// Warps of a block, each with an opened cluster.
const WARPS: usize = BLOCK_THREADS as usize / 32;

impl Device {
    /// Weighs clusters by the scores `[place, group]` of their coded centroids, to which `middle` (`[strips, group]`) is added;
    /// `variance` is that of scores in a cluster of key spread 1. Means are read where a cluster could hold more than `least` of the
    /// mass.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the parameters of the kernel")]
    pub fn weigh_clusters(
        &self,
        strips: &Strips,
        summaries: &Summaries,
        coded: &Buffer<f32>,
        (middle, variance): (&Buffer<f32>, &Buffer<f32>),
        steady_lse: &Buffer<f32>,
        limits: &Limits,
        least: f32,
    ) -> Result<Weighed, Error> {
        strips.assert_summaries(summaries, 0);
        assert_len(coded, strips.planes(), "scores");
        assert_len(middle, strips.count() * strips.group, "middles");
        assert_len(variance, strips.count() * strips.group, "variances");
        assert_len(steady_lse, strips.heads(), "log-sum-exps");
        let [mut scores, mut above, mut mass, mut estimate, mut withins] = [
            self.room(strips.planes())?,
            self.room(strips.planes())?,
            self.room(strips.planes())?,
            self.room(strips.planes())?,
            self.room(strips.planes())?,
        ];
        let (mut shares, mut means) =
            (self.room(strips.by_unit.list_len())?, self.room::<u32>(strips.by_unit.list_len())?);
        let (mut tops, mut steady) = (self.room(strips.heads())?, self.room(strips.heads())?);
        let (count, group) = (strips.strips as i32, strips.group as i32);
        let Limits {
            cluster_deviations,
            probe_deviations: [least_deviations, most_deviations],
            far: [far_deviations, far_less],
            rise,
            softcap,
            ..
        } = *limits;
        if strips.units() > 0 {
            launch!(
                self,
                "weigh_clusters",
                (strips.units(), 1),
                BLOCK_THREADS,
                0,
                [
                    coded,
                    &strips.clusters.rows,
                    strips.starts(),
                    &count,
                    &summaries.summaries,
                    middle,
                    variance,
                    steady_lse,
                    &group,
                    &softcap,
                    &cluster_deviations,
                    &least_deviations,
                    &most_deviations,
                    &far_deviations,
                    &far_less,
                    &rise,
                    &least,
                    &mut scores,
                    &mut above,
                    &mut mass,
                    &mut estimate,
                    &mut withins,
                    &mut shares,
                    &mut means,
                    &mut tops,
                    &mut steady
                ]
            );
        }
        let means = strips.clusters.masked(means);
        Ok(Weighed { scores, above, mass, estimate, withins, shares, means, tops, steady })
    }

    /// The answer where clusters have the weights of the plane `weights`, with the sums `[strips, group, dim]` of their means and
    /// of values that were read. `steady` and `steady_out` (`[units, group, dim]`) are weight and output of the rows that are read
    /// anyway.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the parameters of the kernel")]
    pub fn rough_answer(
        &self,
        strips: &Strips,
        summaries: &Summaries,
        dim: usize,
        weights: &Buffer<f32>,
        sums: &Buffer<f32>,
        values: Option<ReadValues<'_>>,
        (steady, steady_out): (&Buffer<f32>, &Buffer<f32>),
    ) -> Result<Rough, Error> {
        strips.assert_summaries(summaries, dim);
        let len = strips.count() * strips.group * dim;
        let ReadValues { coded, on_mean } = values.unwrap_or(ReadValues { coded: sums, on_mean: weights });
        assert!(dim.is_multiple_of(32) && dim <= 256, "{dim} elements");
        assert_len(sums, len, "sums");
        assert_len(coded, len, "sums");
        assert_len(weights, strips.planes(), "weights");
        assert_len(on_mean, strips.planes(), "weights");
        assert_len(steady, strips.heads(), "weights");
        assert_len(steady_out, strips.heads() * dim, "outputs");
        let heads = strips.heads();
        let (mut output, mut norms, mut totals) =
            (self.room(heads * dim)?, self.room(heads)?, self.room(heads)?);
        let (mut scaled, mut to_global) = (self.room(len)?, self.room(strips.count() * strips.group)?);
        let [count, kv_heads, group] =
            [strips.strips, strips.kv_heads, strips.group].map(|count| count as i32);
        let has_rows = i32::from(values.is_some());
        if heads > 0 {
            launch!(
                self,
                "rough_answer",
                (heads, 1),
                dim,
                0,
                [
                    sums,
                    &summaries.sigma,
                    &summaries.global,
                    coded,
                    &summaries.value_sigma,
                    &has_rows,
                    weights,
                    on_mean,
                    strips.starts(),
                    &count,
                    &kv_heads,
                    &group,
                    steady,
                    steady_out,
                    &mut output,
                    &mut norms,
                    &mut totals,
                    &mut scaled,
                    &mut to_global
                ]
            );
        }
        Ok(Rough { output, norms, totals, scaled, to_global })
    }

    /// What opening each cluster could change, by place, and the clusters in which that is more than `least`. `products` are those
    /// of `rough` with the means that were read.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn probe_gains(
        &self,
        strips: &Strips,
        summaries: &Summaries,
        weighed: &Weighed,
        products: &Buffer<f32>,
        rough: &Rough,
        least: f32,
    ) -> Result<(Buffer<f32>, RowList), Error> {
        strips.assert_summaries(summaries, 0);
        assert_len(products, strips.planes(), "products");
        let places = strips.by_unit.list_len();
        let (mut gains, mut opened) = (self.room(places)?, self.room::<u32>(places)?);
        let (count, group) = (strips.strips as i32, strips.group as i32);
        if strips.units() > 0 {
            launch!(
                self,
                "probe_gains",
                (strips.units(), blocks_of(&strips.by_unit)),
                BLOCK_THREADS,
                0,
                [
                    &weighed.means.rows,
                    strips.starts(),
                    &count,
                    &summaries.summaries,
                    &summaries.mean_norms2,
                    &weighed.mass,
                    &weighed.above,
                    products,
                    &rough.to_global,
                    &rough.norms,
                    &rough.totals,
                    &group,
                    &least,
                    &mut gains,
                    &mut opened
                ]
            );
        }
        Ok((gains, strips.clusters.masked(opened)))
    }

    /// Weighs the rows of the zone by the scores `[rows, group]` and factors of their sketches. `noise` is `[strips, group]`: the
    /// deviation of the score of a row of factor 1.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn weigh_rows(
        &self,
        strips: &Strips,
        zone: &ZoneRows,
        weighed: &Weighed,
        (scores, factors): (Buffer<f32>, &Buffer<f32>),
        noise: &Buffer<f32>,
        limits: &Limits,
    ) -> Result<RowPlanes, Error> {
        let rows = zone.rows.list_len();
        assert!(zone.places == strips.by_unit.list_len(), "a zone of other clusters");
        assert_len(&scores, rows * strips.group, "scores");
        assert_len(factors, rows, "factors");
        assert_len(noise, strips.count() * strips.group, "deviations");
        let [weights, deviations] = [self.room(rows * strips.group)?, self.room(rows * strips.group)?];
        let marks = self.upload(&vec![0u32; rows])?;
        let mut clusters = self.room(strips.planes())?;
        self.copy_within(&weighed.estimate, &mut clusters)?;
        let sketched = self.room(rows * strips.group)?;
        let mut planes = RowPlanes { sketched, scores, weights, deviations, marks, clusters };
        let [opened, count, group] = [zone.count, strips.strips, strips.group].map(|count| count as i32);
        let Limits { softcap, row_deviations, sketch, .. } = *limits;
        if zone.count > 0 {
            launch!(
                self,
                "weigh_rows",
                (zone.count.div_ceil(WARPS), 1),
                BLOCK_THREADS,
                0,
                [
                    &zone.opened,
                    &opened,
                    factors,
                    &weighed.scores,
                    noise,
                    &weighed.tops,
                    &count,
                    &group,
                    &softcap,
                    &row_deviations,
                    &sketch,
                    &mut planes.scores,
                    &mut planes.weights,
                    &mut planes.deviations,
                    &mut planes.clusters
                ]
            );
            self.copy_within(&planes.scores, &mut planes.sketched)?;
        }
        Ok(planes)
    }

    /// Squares of what reading each row of the zone could change: its key, with the `products` of `rough` and the means of opened
    /// clusters, or its value.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the parameters of the kernel")]
    pub fn row_gains(
        &self,
        strips: &Strips,
        summaries: &Summaries,
        zone: &ZoneRows,
        planes: &RowPlanes,
        products: Option<&Buffer<f32>>,
        rough: &Rough,
        limits: &Limits,
    ) -> Result<Buffer<f32>, Error> {
        strips.assert_summaries(summaries, 0);
        let is_value = i32::from(products.is_none());
        let products = products.unwrap_or(&planes.clusters);
        assert_len(products, strips.planes(), "products");
        let mut gains = self.room(zone.rows.list_len())?;
        let [opened, count, group] = [zone.count, strips.strips, strips.group].map(|count| count as i32);
        let Limits { row_deviations, rise, .. } = *limits;
        if zone.count > 0 {
            launch!(
                self,
                "row_gains",
                (zone.count.div_ceil(WARPS), 1),
                BLOCK_THREADS,
                0,
                [
                    &zone.opened,
                    &opened,
                    &strips.clusters.rows,
                    &summaries.summaries,
                    &summaries.mean_norms2,
                    products,
                    &rough.to_global,
                    &rough.norms,
                    &rough.totals,
                    &planes.weights,
                    &planes.deviations,
                    &count,
                    &group,
                    &is_value,
                    &row_deviations,
                    &rise,
                    &mut gains
                ]
            );
        }
        Ok(gains)
    }

    /// Replaces scores and weights of rows whose keys were read by what `scores` (`[reads, group]`) make them; of keys that are read
    /// once more, with the limits of [`Limits::again`]. Reads come in order of their units, `starts[unit]` to `starts[unit + 1]`.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a row or a score does not exist, or starts do not fit.
    #[expect(clippy::too_many_arguments, reason = "the parameters of the kernel")]
    pub fn weigh_keys(
        &self,
        strips: &Strips,
        zone: &ZoneRows,
        (reads, starts): (&[ReadKey], &[u32]),
        scores: &mut Buffer<f32>,
        weighed: &mut Weighed,
        planes: &mut RowPlanes,
        limits: &Limits,
    ) -> Result<(), Error> {
        let spans = Spans::new(self, starts)?;
        assert!(spans.units() == strips.units() && spans.list_len() == reads.len(), "starts of other reads");
        let mut list = Vec::with_capacity(4 * reads.len());
        for read in reads {
            assert!((read.row as usize) < zone.rows.list_len(), "row {} of the zone", read.row);
            assert!((read.score as usize + 1) * strips.group <= scores.len(), "score {}", read.score);
            let level = match read.resolution {
                Resolution::Code(Depth::Half) => 0,
                Resolution::Code(Depth::Whole) => 1,
                Resolution::Full => 2,
            };
            list.extend([read.row, level, read.score, 0]);
        }
        let reads = self.upload(&list)?;
        let (count, group) = (strips.strips as i32, strips.group as i32);
        let Limits { softcap, over, codes_leave: [half, whole], raised, .. } = *limits;
        if strips.units() > 0 {
            launch!(
                self,
                "weigh_keys",
                (strips.units(), 1),
                BLOCK_THREADS,
                0,
                [
                    &reads,
                    &spans.starts,
                    &zone.opened,
                    &zone.opened_starts,
                    &zone.rows.starts,
                    strips.starts(),
                    &count,
                    &group,
                    &softcap,
                    &over,
                    &half,
                    &whole,
                    &raised,
                    &planes.sketched,
                    &mut planes.scores,
                    scores,
                    &mut planes.weights,
                    &mut planes.deviations,
                    &mut planes.clusters,
                    &mut weighed.tops,
                    &mut weighed.steady
                ]
            );
        }
        Ok(())
    }
}
