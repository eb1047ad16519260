//! Which keys and values of the zone are read, and at which resolution.

use super::answer::Rough;
use super::clusters::Clusters;
use super::constants::{AGAIN, KEY, RISE_MAX, VALUE, Z_ROW};
use super::head::Head;
use super::sharing::{PART, Sharing};
use super::zone::{Choice, Chosen, Opened, Zone};
use longwave_kernels::Kernels;
use longwave_kernels::ladder::{GainOf, Uncertain};

const KEYS: GainOf = GainOf::Key { deviations: Z_ROW, rise: RISE_MAX };
const VALUES: GainOf = GainOf::Value { deviations: Z_ROW, rise: RISE_MAX };
/// What rounding may do to a bound over a cluster, which is compared with the gains of its rows.
const BOUND_MARGIN: f32 = 1.0001;

/// A head that can add no more than this share of the least gain that counts is left out.
const NEGLIGIBLE: f32 = 1e-6;

/// Squared gains of the rows of the zone, and bounds on those of each opened cluster.
#[derive(Default)]
pub(super) struct Gains {
    /// Error of the output per unit of a row's weight, `[opened, group]`.
    reach: Vec<f32>,
    /// Planes of opened clusters, `[group, opened]`.
    bound: Vec<f32>,
    /// One number an opened cluster, or planes of listed rows.
    plane: [Vec<f32>; 2],
    /// Squared gains of listed rows.
    listed: Vec<f32>,
}

impl Gains {
    /// Chooses the keys to read, where a key's own error could matter to the group. `off` has the squared distances of the
    /// opened clusters' means to the answer, `[opened, group]`.
    pub(super) fn select_keys(
        &mut self,
        kernels: &Kernels,
        zone: &mut Zone,
        clusters: &Clusters,
        answer: (&Rough, &[f32]),
        tau: f32,
    ) {
        self.reach_of_keys(clusters, answer);
        let mut choice = std::mem::take(&mut zone.keys);
        self.choose(kernels, zone, KEYS, KEY.map(|rung| rung * tau), &mut choice);
        zone.keys = choice;
    }

    /// Chooses which of the keys that were read as codes are read once more, and finer, by what their codes have left open; and keys
    /// that were not read and matter more by now.
    pub(super) fn select_again(
        &mut self,
        kernels: &Kernels,
        zone: &mut Zone,
        clusters: &Clusters,
        answer: (&Rough, &[f32]),
        tau: f32,
    ) {
        self.reach_of_keys(clusters, answer);
        let mut choice = std::mem::take(&mut zone.again);
        choice.clear();
        let [whole, row, row_of_half] = AGAIN.map(|rung| (rung * tau).powi(2));
        for (list, whole, row) in
            [(&zone.keys.half, whole, row_of_half), (&zone.keys.code, f32::INFINITY, row)]
        {
            self.gains_of(kernels, zone, list);
            for (&chosen, &gain) in list.iter().zip(&self.listed) {
                let codes_alone = zone.opened[chosen.opened as usize].codes_alone;
                if gain > row && !codes_alone {
                    choice.full.push(Chosen { gain, ..chosen });
                } else if gain > whole {
                    choice.code.push(Chosen { gain, ..chosen });
                }
            }
        }
        choice.full.sort_by_key(|chosen| chosen.at);
        zone.again = choice;
        let mut choice = std::mem::take(&mut zone.missed);
        self.choose(kernels, zone, KEYS, [AGAIN[1] * tau, f32::INFINITY, f32::INFINITY], &mut choice);
        std::mem::swap(&mut choice.half, &mut choice.code);
        choice.code.retain(|chosen| !zone.keys.holds(chosen.at));
        zone.missed = choice;
    }

    fn reach_of_keys(&mut self, clusters: &Clusters, (rough, off): (&Rough, &[f32])) {
        let group = rough.norm.len();
        self.reach.clear();
        for (spread, off) in clusters.opened_numbers.value_spread.iter().zip(off.chunks_exact(group)) {
            let heads = off.iter().zip(&rough.norm).zip(&rough.total);
            self.reach.extend(heads.map(|((off, norm), total)| (off + spread).sqrt() / (norm * total)));
        }
    }

    /// Finds the gains of reading the keys of listed rows.
    fn gains_of(&mut self, kernels: &Kernels, zone: &Zone, list: &[Chosen]) {
        let group = self.reach.len() / zone.opened.len().max(1);
        let [weights, deviations] = &mut self.plane;
        weights.clear();
        deviations.clear();
        for g in 0..group {
            for chosen in list {
                let opened = chosen.opened as usize;
                let place = chosen.at as usize + g * zone.opened[opened].wide;
                weights.push(zone.weight[place] * self.reach[opened * group + g]);
                deviations.push(zone.deviation[place]);
            }
        }
        self.listed.clear();
        self.listed.resize(list.len(), 0.0);
        // Each row's reach is in its weights.
        let rows = Uncertain { weights, deviations, stride: list.len(), reach: &vec![1.0; group] };
        kernels.row_gains(rows, KEYS, &mut self.listed);
    }

    /// Chooses the values to read, with the keys read so far.
    pub(super) fn select_values(
        &mut self,
        kernels: &Kernels,
        zone: &mut Zone,
        clusters: &Clusters,
        rough: &Rough,
        tau: f32,
    ) {
        self.reach.clear();
        for spread in &clusters.opened_numbers.value_spread {
            let deviation = spread.sqrt();
            let heads = rough.norm.iter().zip(&rough.total);
            self.reach.extend(heads.map(|(norm, total)| deviation / (norm * total)));
        }
        let mut choice = std::mem::take(&mut zone.values);
        self.choose(kernels, zone, VALUES, VALUE.map(|rung| rung * tau), &mut choice);
        zone.values = choice;
    }

    /// Chooses rows by the thresholds of the three resolutions, which ascend.
    fn choose(&mut self, kernels: &Kernels, zone: &Zone, kind: GainOf, rungs: [f32; 3], choice: &mut Choice) {
        self.bounds(kernels, zone, kind);
        choice.clear();
        if zone.sharing == Sharing::Alone {
            return self.choose_part(kernels, zone, kind, rungs, (0, &zone.opened), choice);
        }
        let parts: Vec<(usize, &[Opened])> = (0..).step_by(PART).zip(zone.opened.chunks(PART)).collect();
        let chosen = zone.sharing.map(&parts, |&part| {
            let mut choice = Choice::default();
            self.choose_part(kernels, zone, kind, rungs, part, &mut choice);
            choice
        });
        chosen.into_iter().for_each(|part| choice.append(part));
    }

    /// Chooses rows of the opened clusters from number `first` on.
    fn choose_part(
        &self,
        kernels: &Kernels,
        zone: &Zone,
        kind: GainOf,
        rungs: [f32; 3],
        (first, opened): (usize, &[Opened]),
        choice: &mut Choice,
    ) {
        let (count, least) = (zone.opened.len(), rungs[0] * rungs[0]);
        let group = self.reach.len() / count.max(1);
        let mut gains = vec![0.0; opened.iter().map(|opened| opened.wide).max().unwrap_or(0)];
        let mut reach = vec![0.0; group];
        for (number, opened) in (first..).zip(opened) {
            let bounds = self.bound[number..].iter().step_by(count);
            // Most clusters hold no row that is worth reading: their sums tell.
            if bounds.clone().sum::<f32>() * BOUND_MARGIN <= least {
                continue;
            }
            let heads = self.reach[number * group..].iter().zip(bounds);
            for (reach, (all, bound)) in reach.iter_mut().zip(heads) {
                *reach = if *bound > NEGLIGIBLE * least { *all } else { 0.0 };
            }
            let gains = &mut gains[..opened.wide];
            let (weights, deviations) = (&zone.weight[opened.start..], &zone.deviation[opened.start..]);
            let rows = Uncertain { weights, deviations, stride: opened.wide, reach: &reach };
            kernels.row_gains(rows, kind, gains);
            push(opened, number, &gains[..opened.rows], rungs, choice);
        }
    }

    /// Bounds on the rows' gains for each head in each opened cluster, from its largest weight and deviation.
    fn bounds(&mut self, kernels: &Kernels, zone: &Zone, kind: GainOf) {
        let count = zone.opened.len();
        self.bound.resize(self.reach.len(), 0.0);
        let group = self.reach.len() / count.max(1);
        let [weights, deviations] = &mut self.plane;
        for (g, bounds) in self.bound.chunks_exact_mut(count.max(1)).enumerate() {
            weights.clear();
            deviations.clear();
            let sums = zone.sums[g..].iter().step_by(group);
            deviations.extend(sums.clone().map(|sums| sums.deviation_max));
            let reach = self.reach[g..].iter().step_by(group);
            weights.extend(sums.zip(reach).map(|(sums, reach)| sums.weight_max * reach));
            kernels.row_gains(Uncertain { weights, deviations, stride: count, reach: &[1.0] }, kind, bounds);
        }
    }
}

fn push(opened: &Opened, number: usize, gains: &[f32], rungs: [f32; 3], choice: &mut Choice) {
    let [half, code, full] = rungs.map(|rung| rung * rung);
    for (part, gains) in gains.chunks(8).enumerate() {
        // Few rows are chosen, and which cannot be foreseen: eight at a time are compared without a branch.
        let mut above =
            gains.iter().enumerate().fold(0u32, |above, (i, &gain)| above | u32::from(gain > half) << i);
        while above != 0 {
            let gain = gains[above.trailing_zeros() as usize];
            let row = part * 8 + above.trailing_zeros() as usize;
            above &= above - 1;
            let chosen = Chosen {
                opened: number as u32,
                at: (opened.start + row) as u32,
                row: (opened.first + row) as u32,
                gain,
            };
            let list = if gain > full && !opened.codes_alone {
                &mut choice.full
            } else if gain > code {
                &mut choice.code
            } else {
                &mut choice.half
            };
            list.push(chosen);
        }
    }
}

/// Brings the rows of the choice to numbers among all rows of the head.
pub(super) fn through_head(head: &Head<'_>, zone: &Zone, list: &[Chosen], rows: &mut Vec<u32>) {
    rows.clear();
    let first = |chosen: &Chosen| head.segments[zone.opened[chosen.opened as usize].segment].first_row as u32;
    rows.extend(list.iter().map(|chosen| first(chosen) + chosen.row));
}
