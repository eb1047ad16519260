//! Keys: chosen by their sketches, and once more by what their codes say.

use super::super::StagedPools;
use super::super::picks::{Part, Pick};
use super::{Call, Zone};
use crate::error::Error;
use crate::placement::Place;
use crate::zone::{Limits, ReadKey, Resolution, Weighed};
use longwave_query::constants::{AGAIN, KEY};
use longwave_storage::ColumnKind;

impl Call<'_, '_> {
    /// Chooses the keys to read, reads them on both sides, and weighs their rows anew; then the same of those that are to be read
    /// finer, and of those that matter more by then.
    pub(super) fn read_keys(
        &mut self,
        weighed: &mut Weighed,
        zone: &mut Zone,
        staged: &mut StagedPools,
        tau: f32,
    ) -> Result<(), Error> {
        let first = self.choose_keys(weighed, zone, KEY.map(|rung| rung * tau))?;
        if first.iter().all(Vec::is_empty) {
            return Ok(());
        }
        self.read_chosen(&first, self.limits, weighed, zone, staged)?;
        let [half, code, _] = &first;
        let [above_whole, above_row, above_row_of_half] =
            self.choose_keys(weighed, zone, AGAIN.map(|rung| rung * tau))?;
        let of = |picks: &[&[Pick]], list: &[Pick]| {
            let is_listed = |pick: &&Pick| list.binary_search_by_key(&pick.zone_row, |p| p.zone_row).is_ok();
            let mut of: Vec<Pick> =
                picks.iter().flat_map(|picks| picks.iter()).filter(is_listed).copied().collect();
            of.sort_by_key(|pick| pick.zone_row);
            of
        };
        let whole = of(&[&above_whole, &above_row], half);
        let mut full = of(&[&above_row, &above_row_of_half], code);
        full.extend(of(&[&above_row_of_half], half));
        full.sort_by_key(|pick| pick.zone_row);
        self.again = [whole.len() as u64, full.len() as u64, 0];
        if whole.len() + full.len() > 0 {
            self.read_chosen(&[Vec::new(), whole, full], self.limits.again(), weighed, zone, staged)?;
        }
        let is_read = |pick: &Pick| {
            first.iter().any(|list| list.binary_search_by_key(&pick.zone_row, |p| p.zone_row).is_ok())
        };
        let mut missed = above_row;
        missed.extend(above_row_of_half);
        missed.retain(|pick| !is_read(pick));
        missed.sort_by_key(|pick| pick.zone_row);
        if !missed.is_empty() {
            self.again[2] = missed.len() as u64;
            self.read_chosen(&[Vec::new(), missed, Vec::new()], self.limits, weighed, zone, staged)?;
        }
        Ok(())
    }

    /// The keys whose squared gain, by the answer as it stands, is above the thresholds.
    fn choose_keys(&self, weighed: &Weighed, zone: &Zone, rungs: [f32; 3]) -> Result<[Vec<Pick>; 3], Error> {
        let device = &self.tier.device;
        let rough = self.rough(weighed, &zone.planes.clusters)?;
        let products = Some(&self.products(&rough, &zone.open)?);
        let (summaries, rows, planes) = (&self.resident.summaries, &zone.rows, &zone.planes);
        let gains =
            device.row_gains(&self.strips, summaries, rows, planes, products, &rough, &self.limits)?;
        self.choose(zone, &gains, rungs)
    }

    /// Reads keys on both sides, and weighs their rows anew.
    fn read_chosen(
        &mut self,
        picks: &[Vec<Pick>; 3],
        limits: Limits,
        weighed: &mut Weighed,
        zone: &mut Zone,
        staged: &mut StagedPools,
    ) -> Result<(), Error> {
        let device = &self.tier.device;
        let (parts, placement) = self.tier.place_picks(&self.names, picks, &self.slots, self.division);
        let count: usize = parts.iter().map(|part| part.picks.len()).sum();
        let queries = device.upload(&self.coordinates.queries)?;
        let mut scores = device.room(count * self.shape.group())?;
        let mut at = 0;
        for part in parts.iter().filter(|part| part.place != Place::Host) {
            let list = self.on_device(part, ColumnKind::KEYS, staged)?;
            let mine = self.with_pool(part, staged, |pool| match part.resolution {
                Resolution::Code(depth) => {
                    let codes = (pool, self.form(part, depth));
                    device.score_codes(&self.shape, &self.coordinates.key, codes, &list)
                }
                Resolution::Full => device.score_rows(&self.shape, &queries, pool, &list, 0.0),
            })?;
            let len = part.picks.len() * self.shape.group();
            device.copy_part(&mine, &mut scores, (at, len))?;
            at += len;
        }
        let mut of_host = Vec::new();
        for part in parts.iter().filter(|part| part.place == Place::Host) {
            let queries = match part.resolution {
                Resolution::Code(_) => &self.coordinates.host_key,
                Resolution::Full => &self.coordinates.queries,
            };
            part.score(&self.names, queries, &mut of_host)?;
        }
        device.upload_part(&of_host, &mut scores, at)?;
        let (reads, starts) = self.reads(&parts);
        let (reads, rows, planes) = ((&reads[..], &starts[..]), &zone.rows, &mut zone.planes);
        device.weigh_keys(&self.strips, rows, reads, &mut scores, weighed, planes, &limits)?;
        self.account(ColumnKind::KEYS, &parts, placement);
        Ok(())
    }

    /// The keys read, by unit; scores lie part by part.
    fn reads(&self, parts: &[Part]) -> (Vec<ReadKey>, Vec<u32>) {
        let mut reads = Vec::new();
        for part in parts {
            for pick in &part.picks {
                let (resolution, score) = (part.resolution, reads.len() as u32);
                let unit = self.names.unit(pick.strip);
                reads.push((unit, ReadKey { row: pick.zone_row, resolution, score }));
            }
        }
        reads.sort_by_key(|(unit, read)| (*unit, read.row));
        let starts = (0..=self.units).map(|unit| reads.partition_point(|(of, _)| *of < unit) as u32);
        let starts = starts.collect();
        (reads.into_iter().map(|(_, read)| read).collect(), starts)
    }
}
