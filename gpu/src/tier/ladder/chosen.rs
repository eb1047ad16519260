//! What the device chose, by the names that the CPU has for it.

use super::super::picks::{OpenedCluster, Pick};
use super::left_to_cpu::check_places;
use super::{Call, Zone};
use crate::device::Buffer;
use crate::error::Error;
use crate::probe::place_and_level;

impl Call<'_, '_> {
    /// The opened clusters, in the order of the zone. `chosen` has numbers within the unit, `counts` how many of each unit.
    pub(super) fn opened(&self, chosen: &[u32], counts: &[u32]) -> Result<Vec<OpenedCluster>, Error> {
        let (segments, mut clusters) = (self.resident.segment_count(), Vec::new());
        let (mut first_place, mut start) = (0usize, 0);
        for unit in 0..self.units {
            let (head, mut strip, mut first_of_strip) = (unit % self.view.shape.kv_heads, unit * segments, 0);
            let of = |strip: usize| self.resident.cluster_count(strip % segments, head);
            for &entry in &chosen[first_place..][..counts[unit] as usize] {
                let (number, _) = place_and_level(entry);
                while number as usize >= first_of_strip + of(strip) {
                    first_of_strip += of(strip);
                    strip += 1;
                }
                let cluster = number as usize - first_of_strip;
                // What is demoted stays closed, as on the CPU.
                let in_segment = self.resident.number(strip % segments, head, cluster);
                if self.demoted[strip % segments].get(in_segment).is_some_and(|&demoted| demoted) {
                    continue;
                }
                let (sketches, first, rows) = self.resident.cluster(strip % segments, head, cluster);
                let place = first_place as u32 + number;
                check_places("rows of opened clusters", start as usize + rows as usize)?;
                clusters.push(OpenedCluster { strip, place, cluster, sketches, first, start, rows });
                start += rows;
            }
            first_place += (unit * segments..(unit + 1) * segments).map(of).sum::<usize>();
        }
        Ok(clusters)
    }

    /// Rows whose squared gain is above the thresholds: as half a code, as a whole one, and in full.
    pub(super) fn choose(
        &self,
        zone: &Zone,
        gains: &Buffer<f32>,
        rungs: [f32; 3],
    ) -> Result<[Vec<Pick>; 3], Error> {
        let device = &self.tier.device;
        let [chosen, counts] =
            device.select_above(gains, zone.rows.spans(), rungs.map(|rung| rung * rung))?;
        let (chosen, counts) = (device.download(&chosen)?, device.download(&counts)?);
        let (mut picks, mut first_row, mut opened) =
            ([const { Vec::new() }; 3], 0usize, zone.clusters.iter());
        for unit in 0..self.units {
            let mine: Vec<_> = {
                let rest = opened.as_slice();
                let count = rest.partition_point(|one| self.names.unit(one.strip) == unit);
                opened = rest[count..].iter();
                rest[..count].to_vec()
            };
            for &entry in &chosen[first_row..][..counts[unit] as usize] {
                let (number, level) = place_and_level(entry);
                let zone_row = first_row as u32 + number;
                let one = &mine[mine.partition_point(|one| one.start <= zone_row) - 1];
                let row = one.first + zone_row - one.start;
                picks[level].push(Pick { strip: one.strip, zone_row, row });
            }
            first_row += mine.iter().map(|one| one.rows as usize).sum::<usize>();
        }
        Ok(picks)
    }
}
