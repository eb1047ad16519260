//! The opened clusters: scores of their rows' sketches, and what follows once rows are read.

use super::clusters::Clusters;
use super::constants::{ABOVE_MAX, RISE_MAX, Z_ROW};
use super::head::Head;
use super::scan::{Scan, ScanPart};
use super::sharing::Sharing;
use super::softcap::Softcap;
use crate::error::Error;
use longwave_kernels::Kernels;
use longwave_kernels::codec::SCAN_STEP;
use longwave_kernels::ladder::RowSums;
use longwave_storage::RowForm;

/// An opened cluster.
#[derive(Clone, Copy)]
pub(super) struct Opened {
    pub(super) cluster: usize,
    pub(super) segment: usize,
    /// First row in the segment, and the number of rows.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Place of the first row's first number among the zone's.
    pub(super) start: usize,
    /// Places from a head to the next: rows, up to a multiple of [`SCAN_STEP`]. Places behind the last row are no row's: their
    /// weights and deviations are 0, so that what goes over the rows may go over them as well.
    pub(super) wide: usize,
    /// Whether its rows are kept as codes and no finer.
    pub(super) codes_alone: bool,
}

/// A row that is read.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    /// Number of its cluster among the opened ones.
    pub(super) opened: u32,
    /// The place of its first head's numbers; see [`Zone::places`].
    pub(super) at: u32,
    /// Its number in its segment.
    pub(super) row: u32,
    /// Its squared gain: what reading it could take off the squared relative error.
    pub(super) gain: f32,
}

/// Rows that are read of a column, by resolution, each in rising order.
#[derive(Clone, Default)]
pub(super) struct Choice {
    pub(super) half: Vec<Chosen>,
    pub(super) code: Vec<Chosen>,
    pub(super) full: Vec<Chosen>,
}

/// The rows of the zone. Numbers of a row lie cluster by cluster, `[group, wide]` of each, so that a call goes through them from
/// one end to the other; see [`Zone::part`].
#[derive(Default)]
pub(super) struct Zone {
    pub(super) sharing: Sharing,
    pub(super) opened: Vec<Opened>,
    /// Places in all.
    len: usize,
    /// Rows, without the places that are no row's.
    pub(super) rows: usize,
    /// Scores of the sketches, before the soft-cap; of rows whose key was read, what it came to.
    pub(super) score: Vec<f32>,
    /// Weights against the clusters' `top`.
    pub(super) weight: Vec<f32>,
    /// Standard deviations of the scores, as far as they are known.
    pub(super) deviation: Vec<f32>,
    /// Sums over the rows of each opened cluster, `[opened, group]`.
    pub(super) sums: Vec<RowSums>,
    /// Keys that are read by what the sketches say, and such of them as are then read once more, finer, by what their codes say: in
    /// `again.code` those that were read as half a code, in `again.full` those of which any code was. And in `missed.code` keys
    /// that are read only then.
    pub(super) keys: Choice,
    pub(super) again: Choice,
    pub(super) missed: Choice,
    pub(super) values: Choice,
}

impl Zone {
    /// Scores the sketches of the opened clusters.
    pub(super) fn scan(
        &mut self,
        kernels: &Kernels,
        softcap: Softcap,
        head: &Head<'_>,
        clusters: &Clusters,
    ) -> Result<(), Error> {
        let group = head.group;
        self.lay_out(head, clusters);
        for numbers in [&mut self.score, &mut self.weight, &mut self.deviation] {
            // Every place is written below. Those behind the last are an earlier call's, and are not read.
            numbers.resize(self.len.max(numbers.len()), 0.0);
        }
        self.sums.clear();
        self.sums.resize(self.opened.len() * group, RowSums::default());
        let part = ScanPart {
            opened: &self.opened,
            score: &mut self.score,
            weight: &mut self.weight,
            deviation: &mut self.deviation,
            sums: &mut self.sums,
        };
        Scan { kernels, softcap, head, clusters, sharing: self.sharing }.all(part)
    }

    /// No cluster is open.
    pub(super) fn clear(&mut self) {
        self.opened.clear();
        let keys = [&mut self.keys, &mut self.again, &mut self.missed];
        keys.into_iter().chain([&mut self.values]).for_each(Choice::clear);
        (self.len, self.rows) = (0, 0);
    }

    /// Gives the rows of the opened clusters their places.
    fn lay_out(&mut self, head: &Head<'_>, clusters: &Clusters) {
        self.clear();
        for (number, run) in head.runs(&clusters.opened) {
            let segment = &head.segments[number];
            let codes_alone = segment.segment.row_form() == RowForm::Codes;
            for &cluster in run {
                let cluster = cluster as usize;
                let offsets = &segment.offsets[cluster - segment.first..][..2];
                let (first, rows) = (offsets[0] as usize, (offsets[1] - offsets[0]) as usize);
                let (start, wide) = (self.len, rows.next_multiple_of(SCAN_STEP));
                self.opened.push(Opened { cluster, segment: number, first, rows, start, wide, codes_alone });
                self.len += head.group * wide;
                self.rows += rows;
            }
        }
    }

    /// What a head has of an opened cluster's rows.
    pub(super) fn part<'a>(&self, numbers: &'a [f32], g: usize, opened: &Opened) -> &'a [f32] {
        &numbers[opened.start + g * opened.wide..][..opened.rows]
    }

    /// Where one head after the other has the numbers of a row.
    pub(super) fn places(&self, chosen: &Chosen) -> impl Iterator<Item = usize> + use<> {
        (chosen.at as usize..).step_by(self.opened[chosen.opened as usize].wide)
    }

    /// Whether a row of an opened cluster may weigh more than `least` for head `g` of the group.
    pub(super) fn holds_above(&self, number: usize, (g, group): (usize, usize), least: f32) -> bool {
        let (opened, sums) = (&self.opened[number], &self.sums[number * group + g]);
        let at_most = |weight: f32, deviation: f32| weight * (Z_ROW * deviation).min(RISE_MAX).exp();
        let (weights, deviations) =
            (self.part(&self.weight, g, opened), self.part(&self.deviation, g, opened));
        // The two need not be of one row, but together they tell for most clusters.
        at_most(sums.weight_max, sums.deviation_max) > least
            && weights.iter().zip(deviations).any(|(weight, deviation)| at_most(*weight, *deviation) > least)
    }

    /// Sums the rows of opened clusters again of which some have been replaced.
    pub(super) fn sum_again(&mut self, kernels: &Kernels, clusters: &Clusters, changed: &[bool]) {
        let group = clusters.top.len();
        let Zone { opened, sums, weight, deviation, .. } = self;
        let changed =
            sums.chunks_exact_mut(group).zip(&*opened).zip(changed).filter(|(_, changed)| **changed);
        changed.for_each(|((sums, opened), _)| {
            let (weights, deviations) = (&weight[opened.start..], &deviation[opened.start..]);
            kernels.sum_rows(weights, deviations, opened.wide, opened.wide, sums);
        });
    }

    /// What the opened clusters weigh, a plane for each head of the group, and all clusters of each segment, `[segments, group]`.
    pub(super) fn weights(&self, clusters: &Clusters, planes: &mut Vec<f32>, segments: &mut Vec<f32>) {
        let group = clusters.top.len();
        planes.resize(group * self.opened.len(), 0.0);
        segments.clone_from(&clusters.estimated);
        let of_clusters = self.opened.iter().zip(self.sums.chunks_exact(group.max(1)));
        for (number, (opened, sums)) in of_clusters.enumerate() {
            let of_segment = &mut segments[opened.segment * group..][..group];
            for (g, (weight, sums)) in of_segment.iter_mut().zip(sums).enumerate() {
                *weight += sums.weight;
                planes[g * self.opened.len() + number] = sums.weight;
            }
        }
    }

    /// What rows that were read in full take from their clusters' mean values: their weights come off `on_mean`, `[segments, group]`,
    /// and are, less than 0, those of the clusters that have such rows, a plane for each head of the group.
    pub(super) fn take_full(
        &self,
        group: usize,
        on_mean: &mut [f32],
        (taking, less): (&mut Vec<u32>, &mut Vec<f32>),
    ) {
        let runs = || self.values.full.chunk_by(|a, b| a.opened == b.opened);
        taking.clear();
        taking.extend(runs().map(|run| self.opened[run[0].opened as usize].cluster as u32));
        less.clear();
        less.resize(group * taking.len(), 0.0);
        for (number, run) in runs().enumerate() {
            let of_segment = self.opened[run[0].opened as usize].segment * group;
            for chosen in run {
                for (g, place) in (0..group).zip(self.places(chosen)) {
                    less[g * taking.len() + number] -= self.weight[place];
                    on_mean[of_segment + g] -= self.weight[place];
                }
            }
        }
    }

    /// Refers all weights of a head to `score` where it lies so far above `top` that its exponential could overflow a
    /// sum: what is known of a row is not to be capped.
    pub(super) fn lower(&mut self, clusters: &mut Clusters, g: usize, score: f32) {
        if score - clusters.top[g] <= ABOVE_MAX {
            return;
        }
        let factor = clusters.raise_top(g, score);
        for opened in &self.opened {
            let mine = &mut self.weight[opened.start + g * opened.wide..][..opened.rows];
            mine.iter_mut().for_each(|weight| *weight *= factor);
        }
        let group = clusters.top.len();
        for sums in self.sums.iter_mut().skip(g).step_by(group) {
            sums.weight *= factor;
            sums.weight_max *= factor;
            sums.squared *= factor * factor;
            sums.noise *= factor * factor;
        }
    }
}

impl Choice {
    /// Adds rows that come after all of these.
    pub(super) fn append(&mut self, mut later: Choice) {
        self.half.append(&mut later.half);
        self.code.append(&mut later.code);
        self.full.append(&mut later.full);
    }

    pub(super) fn clear(&mut self) {
        self.half.clear();
        self.code.clear();
        self.full.clear();
    }

    /// Whether a row whose numbers begin at place `at` is in one of the lists.
    pub(super) fn holds(&self, at: u32) -> bool {
        [&self.half, &self.code, &self.full].into_iter().any(|list| is_listed(list, at))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.half.is_empty() && self.code.is_empty() && self.full.is_empty()
    }
}

/// Whether a row whose numbers begin at place `at` is in a list.
pub(super) fn is_listed(list: &[Chosen], at: u32) -> bool {
    list.binary_search_by_key(&at, |chosen| chosen.at).is_ok()
}

/// The rows of an opened cluster in a list.
pub(super) fn of(list: &[Chosen], number: usize) -> &[Chosen] {
    let start = list.partition_point(|chosen| (chosen.opened as usize) < number);
    let rest = &list[start..];
    &rest[..rest.partition_point(|chosen| chosen.opened as usize == number)]
}
