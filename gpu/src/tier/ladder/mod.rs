//! The resolution ladder on both sides.
//!
//! Centroids, means and sketches lie on the device, which scores them, weighs clusters and rows, and says by thresholds which
//! clusters are opened and which keys and values are read, and how finely. Those lists come to the CPU, which places each row: in
//! a slot of a cache, staged and transferred, or read by itself meanwhile. Scores of keys that it has read go back before values
//! are chosen; of values both sides give sums, which are added at the end. The thresholds, and the order of steps, are those of
//! `longwave_query`.

mod chosen;
mod following;
mod keys;
mod left_to_cpu;

use super::picks::{Names, OpenedCluster, Part, RESOLUTIONS, cache_of, row_bytes};
use super::{
    Division, StagedPools, Tier, TierAnswer, TierReport, Wanted, fitting_slots, query_error, rotated_steady,
    steady_states,
};
use crate::cache::Slots;
use crate::coordinates::Coordinates;
use crate::device::Buffer;
use crate::error::Error;
use crate::ladder::{CodeForm, SketchBlocks, Weighted};
use crate::launch::RowList;
use crate::placement::{Place, Placement};
use crate::resident::Resident;
use crate::shape::RowShape;
use crate::zone::{Limits, Opened, ReadValues, Resolution, Rough, RowPlanes, Strips, Weighed, ZoneRows};
use left_to_cpu::{check_deviations, check_places, check_totals};
use longwave_kernels::codec::{Depth, record_len};
use longwave_kernels::rotate;
use longwave_query::constants::{MEAN, PROBE, VALUE};
use longwave_query::{LayerSegment, LayerView, QueryBatch, Summaries};
use longwave_storage::ColumnKind;
use std::sync::Arc;

/// A call under way.
struct Call<'c, 'v> {
    tier: &'c Tier,
    view: &'c LayerView<'v>,
    names: Names<'c, 'v>,
    shape: RowShape,
    resident: Arc<Resident>,
    coordinates: Coordinates,
    strips: Strips,
    limits: Limits,
    splits: usize,
    units: usize,
    /// Weight and output of the steady rows follow the tops; the outputs, rotated, do not change.
    steady_out: Buffer<f32>,
    division: Division,
    /// Which clusters of each segment stay closed, as far as the view knows.
    demoted: Vec<&'c [bool]>,
    /// What the caches of codes and of full rows hold.
    slots: [Slots; 2],
    placement: Placement,
    bytes: [u64; 3],
    rows: [u64; 6],
    again: [u64; 3],
    wanted: Wanted,
}

/// The opened clusters and their rows.
struct Zone {
    clusters: Vec<OpenedCluster>,
    /// The same as a list of records by place.
    open: RowList,
    rows: ZoneRows,
    planes: RowPlanes,
}

impl Tier {
    pub(super) fn attend_ladder(
        &self,
        layer: u32,
        view: &LayerView<'_>,
        queries: &QueryBatch<'_>,
        tau: f32,
        division: Division,
    ) -> Result<TierAnswer, Error> {
        let s = view.shape;
        let shape = RowShape::new(s.dtype, s.key_dim, s.value_dim, s.group())?;
        let segments = view.divided(queries.first_position, Summaries::Ladder).map_err(query_error)?;
        if segments.summarised.is_empty() {
            let found = "none".to_string();
            return Err(Error::Unsupported { what: "a layer", expected: "segments with a ladder", found });
        }
        let (codes, rows) = (self.caches.codes.as_ref(), self.caches.rows.as_ref());
        let slots = [
            fitting_slots(codes, "codes", (Some(1), record_len(s.key_dim) / 2))?,
            fitting_slots(rows, "rows", (Some(1), s.key_dim))?,
        ];
        let names = Names { layer, shape: &view.shape, segments: &segments.summarised };
        let resident = self.resident(layer, view, &segments.summarised)?;
        check_places("clusters", queries.positions.saturating_mul(resident.clusters()))?;
        let coordinates = Coordinates::new(&self.device, view, queries, (&segments.summarised, &resident))?;
        check_deviations(&coordinates.deviations)?;
        let strips = resident.strips(&self.device, queries.positions, s.group())?;
        // The device scores centroids while the CPU reads the tail.
        let centroids = (&resident.centroids, CodeForm::summaries(s.key_dim));
        let coded = self.device.score_codes(&shape, &coordinates.centroid, centroids, &strips.clusters)?;
        let (steady_lse, steady_out) = rotated_steady(view, steady_states(view, queries, &segments.plain)?);
        let steady_out = self.device.upload(&steady_out)?;
        let units = queries.positions * s.kv_heads;
        let mut call = Call {
            tier: self,
            view,
            names,
            shape,
            resident,
            coordinates,
            splits: self.device.splits(strips.count()),
            strips,
            limits: Limits::new(view.scoring.softcap),
            units,
            steady_out,
            division,
            demoted: segments.summarised.iter().map(|segment| demoted(view, segment)).collect(),
            slots,
            placement: Placement { places: Vec::new(), predicted: Default::default() },
            bytes: [0; 3],
            rows: [0; 6],
            again: [0; 3],
            wanted: Wanted::default(),
        };
        let mut weighed = call.weigh(&coded, &self.device.upload(&steady_lse)?, tau)?;
        let mut zone = call.open(&weighed, tau)?;
        let mut staged = self.staged.lock();
        call.read_keys(&mut weighed, &mut zone, &mut staged, tau)?;
        let (output, lse) = call.read_values(&weighed, &mut zone, &mut staged, tau)?;
        let Call { placement, bytes, rows, again, wanted, .. } = call;
        let mut report = TierReport::new(self, placement, bytes, wanted);
        (report.opened, report.rows, report.again) = (zone.clusters.len() as u64, rows, again);
        Ok(TierAnswer { output, lse, report })
    }
}

/// Which clusters of a segment are demoted.
fn demoted<'a>(view: &'a LayerView<'_>, segment: &LayerSegment) -> &'a [bool] {
    let number = view.segments.iter().position(|&other| std::ptr::eq(other, segment));
    number.and_then(|number| view.demoted.get(number)).map_or(&[], Vec::as_slice)
}

impl Call<'_, '_> {
    fn weigh(&self, coded: &Buffer<f32>, steady_lse: &Buffer<f32>, tau: f32) -> Result<Weighed, Error> {
        let Coordinates { middle, variance, .. } = &self.coordinates;
        let (strips, summaries) = (&self.strips, &self.resident.summaries);
        let least = MEAN * tau;
        self.tier.device.weigh_clusters(
            strips,
            summaries,
            coded,
            (middle, variance),
            steady_lse,
            &self.limits,
            least,
        )
    }

    /// The answer where every cluster's rows have its mean value.
    fn rough(&self, weighed: &Weighed, weights: &Buffer<f32>) -> Result<Rough, Error> {
        let sums = self.mean_sums(weighed, weights)?;
        let steady = (&weighed.steady, &self.steady_out);
        let (device, dim) = (&self.tier.device, self.shape.dim());
        device.rough_answer(&self.strips, &self.resident.summaries, dim, weights, &sums, None, steady)
    }

    fn mean_sums(&self, weighed: &Weighed, weights: &Buffer<f32>) -> Result<Buffer<f32>, Error> {
        let (stored, rows) = (&self.resident.means, &weighed.means);
        let source = Weighted { weights: weights.as_view(), stored, rows };
        let form = CodeForm::summaries(self.shape.dim());
        self.tier.device.sum_codes(&self.shape, self.strips.count(), form, &[source], self.splits)
    }

    /// Products `[place, group]` of an answer with the listed means.
    fn products(&self, rough: &Rough, means: &RowList) -> Result<Buffer<f32>, Error> {
        let stored = (&self.resident.means, CodeForm::summaries(self.shape.dim()));
        self.tier.device.score_codes(&self.shape, &rough.scaled, stored, means)
    }

    /// Opens clusters and scans their sketches.
    fn open(&mut self, weighed: &Weighed, tau: f32) -> Result<Zone, Error> {
        let (device, resident) = (&self.tier.device, &self.resident);
        let rough = self.rough(weighed, &weighed.mass)?;
        let products = self.products(&rough, &weighed.means)?;
        let least = PROBE * tau;
        let (gains, open) =
            device.probe_gains(&self.strips, &resident.summaries, weighed, &products, &rough, least)?;
        let [chosen, counts] =
            device.select_above(&gains, self.strips.by_unit(), [least, f32::INFINITY, f32::INFINITY])?;
        let (chosen, counts) = (device.download(&chosen)?, device.download(&counts)?);
        let clusters = self.opened(&chosen, &counts)?;

        let opened: Vec<Opened> = clusters
            .iter()
            .map(|one| Opened { place: one.place, rows: one.rows, strip: one.strip as u32 })
            .collect();
        let rows = ZoneRows::new(device, &self.strips, &opened)?;
        let layouts: Vec<_> = (0..self.strips.count())
            .map(|strip| resident.layout(strip % resident.segment_count(), self.names.head(strip)))
            .collect();
        let mut blocks: Vec<_> = layouts.iter().map(|layout| (*layout, Vec::new())).collect();
        for one in &clusters {
            blocks[one.strip].1.push((one.sketches, one.rows as usize));
        }
        let blocks = SketchBlocks::new(device, &blocks)?;
        let tables = device.sketch_tables(&self.shape, &layouts, &self.coordinates.sketch)?;
        let (scores, factors) = device.scan_sketches(&self.shape, &resident.sketches, &blocks, &tables)?;
        let scanned = (scores, &factors);
        let planes = device.weigh_rows(
            &self.strips,
            &rows,
            weighed,
            scanned,
            &self.coordinates.noise,
            &self.limits,
        )?;
        Ok(Zone { clusters, open, rows, planes })
    }

    /// Notes where rows are read.
    fn account(&mut self, kind: ColumnKind, parts: &[Part], placement: Placement) {
        let first = if kind == ColumnKind::KEYS { 0 } else { RESOLUTIONS.len() };
        for part in parts {
            let wanted = match part.resolution {
                Resolution::Code(_) => &mut self.wanted.codes,
                Resolution::Full => &mut self.wanted.rows,
            };
            wanted.extend(part.wanted(&self.names));
            let bytes = part.picks.len() * row_bytes(part.resolution, self.shape.dim());
            self.bytes[part.place as usize] += bytes as u64;
            let which = RESOLUTIONS.iter().position(|&resolution| resolution == part.resolution);
            self.rows[first + which.unwrap_or(0)] += part.picks.len() as u64;
        }
        self.placement.places.extend(placement.places);
        let (sum, more) = (&mut self.placement.predicted, placement.predicted);
        sum.transfer_s += more.transfer_s;
        sum.device_s += more.device_s;
        sum.host_s += more.host_s;
        sum.total_s += more.total_s;
    }

    /// Where the rows of a part are read on the device, once what has to come has been started on its way.
    fn on_device(&self, part: &Part, kind: ColumnKind, staged: &mut StagedPools) -> Result<RowList, Error> {
        if part.place == Place::Transfer {
            part.stage(self.tier, &self.names, kind, staged.of(part.resolution))?;
        }
        let (units, slots) = match part.resolution {
            Resolution::Code(_) => (self.strips.count(), &self.slots[0]),
            Resolution::Full => (self.units, &self.slots[1]),
        };
        part.list(self.tier, &self.names, kind, (units, slots))
    }

    /// How a part's codes lie where the device reads them: slots hold whole records, a transfer as much as is read.
    fn form(&self, part: &Part, depth: Depth) -> CodeForm {
        let dim = self.shape.dim();
        if part.place == Place::Slots { CodeForm::rows(dim, depth) } else { CodeForm::packed(dim, depth) }
    }

    /// Runs `launch` with the pool that a part's rows are in.
    fn with_pool<R>(
        &self,
        part: &Part,
        staged: &mut StagedPools,
        launch: impl FnOnce(&Buffer<u16>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        match cache_of(self.tier, part.resolution) {
            Some(cache) if part.place == Place::Slots => cache.with_pool(launch),
            _ => launch(&staged.of(part.resolution).pool),
        }
    }

    /// Chooses the values to read, reads them on both sides, and adds everything up.
    fn read_values(
        &mut self,
        weighed: &Weighed,
        zone: &mut Zone,
        staged: &mut StagedPools,
        tau: f32,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let (device, resident) = (&self.tier.device, self.resident.clone());
        let rough = self.rough(weighed, &zone.planes.clusters)?;
        let summaries = &resident.summaries;
        let gains = device.row_gains(
            &self.strips,
            summaries,
            &zone.rows,
            &zone.planes,
            None,
            &rough,
            &self.limits,
        )?;
        let picks = self.choose(zone, &gains, VALUE.map(|rung| rung * tau))?;
        let (mut parts, placement) = self.tier.place_picks(&self.names, &picks, &self.slots, self.division);
        // Weights are taken codes first, so that full rows are known by their place; the CPU's are last of each.
        parts.sort_by_key(|part| part.resolution == Resolution::Full);
        let taken: Vec<u32> =
            parts.iter().flat_map(|part| part.picks.iter().map(|pick| pick.zone_row)).collect();
        let is_code = |part: &&Part| part.resolution != Resolution::Full;
        let first_full = parts.iter().filter(is_code).map(|part| part.picks.len()).sum();
        let weights = device.take_rows(&self.strips, &zone.rows, &taken, first_full, &mut zone.planes)?;
        let lists = parts.iter().filter(|part| part.place != Place::Host);
        let lists = lists.map(|part| self.on_device(part, ColumnKind::VALUES, staged));
        let mut lists = lists.collect::<Result<Vec<_>, Error>>()?.into_iter();

        let group = self.shape.group();
        let (mut at, mut sums, mut of_host) = (0, [Vec::new(), Vec::new()], Vec::new());
        for part in &parts {
            let span = at * group..(at + part.picks.len()) * group;
            at += part.picks.len();
            if part.place == Place::Host {
                of_host.push((part, span));
                continue;
            }
            let Some(list) = lists.next() else { break };
            let sum = self.with_pool(part, staged, |stored| {
                let source = Weighted { weights: weights.slice(span.clone()), stored, rows: &list };
                match part.resolution {
                    Resolution::Code(depth) => {
                        let (strips, form) = (self.strips.count(), self.form(part, depth));
                        device.sum_codes(&self.shape, strips, form, &[source], self.splits)
                    }
                    Resolution::Full => device.sum_rows(&self.shape, self.units, &[source], self.splits),
                }
            })?;
            sums[usize::from(part.resolution == Resolution::Full)].push(sum);
        }
        let len = self.units * group * self.shape.dim();
        let (mut coded, mut full) = (vec![0.0; len], vec![0.0; len]);
        for (part, span) in of_host {
            let weights = device.download_part(&weights, span)?;
            part.sum(&self.names, &weights, (&mut coded, &mut full))?;
        }
        let (answer, rises) = self.answer(weighed, zone, &sums[0])?;
        for sum in &sums[1] {
            let sum = device.download(sum)?;
            full.iter_mut().zip(sum).for_each(|(to, sum)| *to += sum);
        }
        self.account(ColumnKind::VALUES, &parts, placement);
        self.finish((weighed, zone), (&answer, rises), (&coded, full), tau)
    }

    /// The device's part of the answer: everything but full values, and those that the CPU reads. With sums of rises.
    fn answer(
        &self,
        weighed: &Weighed,
        zone: &Zone,
        coded: &[Buffer<f32>],
    ) -> Result<(Rough, Option<Buffer<f32>>), Error> {
        let device = &self.tier.device;
        let on_mean = device.rest_on_mean(&self.strips, &zone.rows, &zone.planes)?;
        let sums = self.mean_sums(weighed, &on_mean)?;
        let len = self.strips.count() * self.shape.group() * self.shape.dim();
        let coded = device.sum_of(coded, len)?;
        let values = Some(ReadValues { coded: &coded, on_mean: &on_mean });
        let (summaries, dim) = (&self.resident.summaries, self.shape.dim());
        let steady = (&weighed.steady, &self.steady_out);
        let weights = &zone.planes.clusters;
        let answer = device.rough_answer(&self.strips, summaries, dim, weights, &sums, values, steady)?;
        Ok((answer, self.rises(weighed, zone)?))
    }

    /// Merges both sides, adds what slopes lead to expect, turns outputs back, and takes log-sum-exps.
    fn finish(
        &self,
        (weighed, zone): (&Weighed, &Zone),
        (answer, rises): (&Rough, Option<Buffer<f32>>),
        of_host: (&[f32], Vec<f32>),
        tau: f32,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let (device, dim) = (&self.tier.device, self.shape.dim());
        let (mut output, totals) = (device.download(&answer.output)?, device.download(&answer.totals)?);
        check_totals(&totals)?;
        add_rows(&mut output, of_host, &totals, dim);
        if let Some(rises) = rises {
            self.follow(zone, &device.download(&rises)?, (&totals, tau), &mut output)?;
        }
        rotate(&mut output, dim, true);
        let tops = device.download(&weighed.tops)?;
        let lse = totals.iter().zip(&tops).map(|(total, top)| top + total.ln()).collect();
        Ok((output, lse))
    }
}

/// Adds to rotated answers the sums of values that the CPU read as codes, which are rotated, and of full values, which are not.
fn add_rows(output: &mut [f32], (coded, mut full): (&[f32], Vec<f32>), totals: &[f32], dim: usize) {
    rotate(&mut full, dim, false);
    let rows = coded.chunks_exact(dim).zip(full.chunks_exact(dim));
    for ((output, (coded, full)), total) in output.chunks_exact_mut(dim).zip(rows).zip(totals) {
        let rows = coded.iter().zip(full);
        output.iter_mut().zip(rows).for_each(|(output, (coded, full))| *output += (coded + full) / total);
    }
}
