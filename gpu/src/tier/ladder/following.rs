//! How values follow keys: the device sums up by how much scores rise, and the CPU adds what slopes lead to expect.

use super::super::rows_error;
use super::{Call, Zone};
use crate::device::Buffer;
use crate::error::Error;
use crate::zone::Weighed;
use longwave_kernels::Kernels;
use longwave_query::{Following, Rising, Slope, Spreads, slope_of};

impl Call<'_, '_> {
    /// Sums of rises, see [`Device::rises`](crate::Device::rises); none where no segment says how its values follow its keys.
    pub(super) fn rises(&self, weighed: &Weighed, zone: &Zone) -> Result<Option<Buffer<f32>>, Error> {
        if self.slopes()?.iter().all(Option::is_none) {
            return Ok(None);
        }
        let (device, summaries) = (&self.tier.device, &self.resident.summaries);
        let Zone { rows, planes, .. } = zone;
        device.rises(&self.strips, summaries, rows, weighed, planes, &self.limits).map(Some)
    }

    /// Numbers of the segments whose slopes the segments follow.
    fn slopes(&self) -> Result<Vec<Option<usize>>, Error> {
        let mut known: Vec<(u64, Option<usize>)> = Vec::with_capacity(self.names.segments.len());
        for (number, segment) in self.names.segments.iter().enumerate() {
            let digest = segment.ladder().map_err(rows_error)?.map_or(0, |ladder| ladder.digest());
            let has_slope = !self.names.ladder(number)?.value_slope.is_empty();
            known.push((digest, slope_of(known.iter().copied(), digest, has_slope)));
        }
        Ok(known.into_iter().map(|(_, slope)| slope).collect())
    }

    fn spreads(&self, strip: usize) -> Result<Spreads<'_>, Error> {
        let spreads = self.names.segment(strip).spreads(self.names.head(strip)).map_err(rows_error)?;
        spreads.ok_or_else(|| Error::Rows("a segment without a ladder".into()))
    }

    /// The sums `rises` by slope, `[units, segments, group]`.
    fn rising(&self, zone: &Zone, slopes: &[Option<usize>], rises: &[f32]) -> Result<Vec<Rising>, Error> {
        let (segments, group) = (slopes.len(), self.shape.group());
        let mut spreads = vec![0.0; self.strips.count()];
        for one in &zone.clusters {
            let Spreads { keys, steepness, .. } = self.spreads(one.strip)?;
            let steepness = steepness[one.cluster];
            spreads[one.strip] += keys[one.cluster] * steepness * steepness * one.rows as f32;
        }
        let mut rising = vec![Rising::default(); rises.len() / 2];
        for (strip, (rises, spread)) in rises.chunks_exact(2 * group).zip(spreads).enumerate() {
            let Some(slope) = slopes[strip % segments] else { continue };
            let first = (strip / segments * segments + slope) * group;
            for (rising, rises) in rising[first..].iter_mut().zip(rises.chunks_exact(2)) {
                rising.weighted += rises[0];
                rising.squares += rises[1];
                rising.spread += spread;
            }
        }
        Ok(rising)
    }

    /// Adds to rotated answers, whose weights sum up to `totals`, what the slopes lead to expect that could matter to them.
    pub(super) fn follow(
        &self,
        zone: &Zone,
        rises: &[f32],
        (totals, tau): (&[f32], f32),
        output: &mut [f32],
    ) -> Result<(), Error> {
        let (kernels, slopes) = (Kernels::get(), self.slopes()?);
        let (segments, group, dim) = (slopes.len(), self.shape.group(), self.shape.dim());
        let (rising, mut following) = (self.rising(zone, &slopes, rises)?, Following::default());
        let squares = |rows: &[f32]| -> Vec<f32> {
            rows.chunks_exact(dim).map(|row| row.iter().map(|x| x * x).sum()).collect()
        };
        for (unit, output) in output.chunks_exact_mut(group * dim).enumerate() {
            let totals = &totals[unit * group..][..group];
            // As long as the answer is before anything is added; one of zero has no relative error.
            let norms: Vec<f32> =
                squares(output).into_iter().map(|square| square.sqrt().max(f32::MIN_POSITIVE)).collect();
            for segment in (0..segments).filter(|&segment| slopes[segment] == Some(segment)) {
                let strip = unit * segments + segment;
                let rising = &rising[strip * group..][..group];
                let along = &self.coordinates.host_sketch[strip * group * dim..][..group * dim];
                let (ladder, along2) = (&self.names.ladder(strip)?, &squares(along));
                let slope = Slope { ladder, along, along2, spread_means: self.spreads(strip)?.means };
                if slope.matters(rising, totals, &norms, tau) {
                    following.add(kernels, &slope, rising, totals, output);
                }
            }
        }
        Ok(())
    }
}
