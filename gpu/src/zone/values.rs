//! The launches that say which rows stand on their cluster's mean value.

use super::{Limits, RowPlanes, Strips, Summaries, Weighed, ZoneRows};
use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::launch;
use crate::shape::BLOCK_THREADS;
use cudarc::driver::PushKernelArg;

/// Warps of a block, each with an opened cluster.
const WARPS: usize = BLOCK_THREADS as usize / 32;

impl Device {
    /// Weights `[rows, group]` of listed rows of the zone. They are marked as those whose value is read,
    /// from `first_full` on in full.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn take_rows(
        &self,
        strips: &Strips,
        zone: &ZoneRows,
        rows: &[u32],
        first_full: usize,
        planes: &mut RowPlanes,
    ) -> Result<Buffer<f32>, Error> {
        let most = rows.iter().max().map_or(0, |&row| row as usize + 1);
        assert!(most <= zone.rows.list_len(), "row {} of the zone", most - 1);
        let mut taken = self.room(rows.len() * strips.group)?;
        let [count, first_full] = [rows.len(), first_full].map(|count| count as u32);
        let group = strips.group as i32;
        let rows = self.upload(rows)?;
        if count > 0 {
            launch!(
                self,
                "take_rows",
                (count.div_ceil(BLOCK_THREADS), 1),
                BLOCK_THREADS,
                0,
                [&rows, &count, &first_full, &planes.weights, &group, &mut taken, &mut planes.marks]
            );
        }
        Ok(taken)
    }

    /// The weights of clusters that rest on their means: all but those of rows whose value was read in full.
    ///
    /// # Errors
    /// As [`Device::room`].
    pub fn rest_on_mean(
        &self,
        strips: &Strips,
        zone: &ZoneRows,
        planes: &RowPlanes,
    ) -> Result<Buffer<f32>, Error> {
        let mut on_mean = self.room(strips.planes())?;
        self.copy_within(&planes.clusters, &mut on_mean)?;
        let (count, group) = (zone.count as i32, strips.group as i32);
        if zone.count > 0 {
            launch!(
                self,
                "rest_on_mean",
                (zone.count.div_ceil(WARPS), 1),
                BLOCK_THREADS,
                0,
                [&zone.opened, &count, &planes.weights, &planes.marks, &group, &mut on_mean]
            );
        }
        Ok(on_mean)
    }

    /// Sums `[strips, group, 2]` over everything whose value is its cluster's mean of weights times rises, by how much a score lies
    /// above its centroid's; and of squared rises over all rows of the zone. Rises are times their cluster's steepness. Clusters whose mean
    /// was not read stay closed without one.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If the zone is of other clusters, or a cluster has no summary.
    pub fn rises(
        &self,
        strips: &Strips,
        summaries: &Summaries,
        zone: &ZoneRows,
        weighed: &Weighed,
        planes: &RowPlanes,
        limits: &Limits,
    ) -> Result<Buffer<f32>, Error> {
        strips.assert_summaries(summaries, 0);
        let places = strips.by_unit.list_len();
        assert!(zone.places == places, "a zone of other clusters");
        let mut rises = self.room::<f32>(2 * strips.planes())?;
        let mut sums = self.room(2 * strips.count() * strips.group)?;
        let ([count, opened], group) = ([places, zone.count].map(|count| count as u32), strips.group as i32);
        let Limits { cluster_deviations, raised, .. } = *limits;
        if places > 0 {
            launch!(
                self,
                "cluster_rises",
                (places.div_ceil(BLOCK_THREADS as usize), 1),
                BLOCK_THREADS,
                0,
                [
                    &weighed.means.rows,
                    &count,
                    &summaries.steepness,
                    &planes.clusters,
                    &weighed.withins,
                    &group,
                    &raised,
                    &mut rises
                ]
            );
        }
        if zone.count > 0 {
            launch!(
                self,
                "row_rises",
                (zone.count.div_ceil(WARPS), 1),
                BLOCK_THREADS,
                0,
                [
                    &zone.opened,
                    &opened,
                    &strips.clusters.rows,
                    &summaries.steepness,
                    &weighed.scores,
                    &weighed.withins,
                    &planes.scores,
                    &planes.weights,
                    &planes.deviations,
                    &planes.marks,
                    &group,
                    &cluster_deviations,
                    &raised,
                    &mut rises
                ]
            );
        }
        if strips.count() > 0 {
            launch!(
                self,
                "strip_rises",
                (strips.count(), 1),
                BLOCK_THREADS,
                0,
                [&rises, strips.starts(), &group, &mut sums]
            );
        }
        Ok(sums)
    }
}
