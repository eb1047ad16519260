//! How values follow keys: what the mean value of a cluster leaves out alike for all of its rows.
//!
//! A row that stands for with its cluster's mean value is off by its deviation. Deviations would cancel, if values knew nothing of
//! keys. But both come from the same hidden state: of the deviations of SmolLM2's values a linear function of its keys explains a
//! fifth, and a row weighs the more the further its key lies along the query. So what is to be expected of deviations is added:
//! the slope of the regression of values on scores, times the sum of weights and rises, by how much rows score above
//! their centroid, each times the steepness of its cluster. A query has its slope from the moments of keys and values in
//! [`HeadLadder::value_slope`](longwave_index::ladder::HeadLadder::value_slope), and the variance of scores from the rows that were
//! scanned. That is the regression estimator of survey sampling (Cochran, Sampling Techniques, chapter 7), with scores as the
//! variable that is known of every row.

use super::answer::Rough;
use super::clusters::Clusters;
use super::constants::{JENSEN_MAX, SLOPE, Z_CLUSTER};
use super::head::{Head, HeadSegment};
use super::product;
use super::zone::{Choice, Opened, Zone};
use longwave_index::ladder::HeadLadder;
use longwave_kernels::Kernels;
use longwave_kernels::codec::{Laid, Summaries, record_len};
use longwave_kernels::ladder::Risen;

/// Rows that the variance of the first segment counts as, beside the rows that were scanned.
const ROWS_BEFORE: f32 = 64.0;

/// Sums for one query head over the segments that follow one slope.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rising {
    /// Weights times rises, of the rows whose value is their cluster's mean. Rises are times the cluster's steepness, everywhere here.
    pub weighted: f32,
    /// Squared rises of the rows scanned, with what is left of their variance.
    pub squares: f32,
    /// Key spreads of the same rows' clusters, times their steepness squared.
    pub spread: f32,
}

/// How values follow keys in a segment, for the query heads of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct Slope<'a> {
    /// The segment's ladder, which says it.
    pub ladder: &'a HeadLadder<'a>,
    /// Coordinates of the queries times the scales of sketches, `[group, key_dim]`.
    pub along: &'a [f32],
    /// Their squared norms, `[group]`.
    pub along2: &'a [f32],
    /// Mean spreads of the segment's keys and of its values.
    pub spread_means: [f32; 2],
}

/// Adds what slopes lead to expect to the answers of a group, one slope after the other.
#[derive(Debug, Default)]
pub struct Following {
    /// Length of what was added to each head's answer, `[group]`.
    pub(super) added: Vec<f32>,
    sums: Laid,
    slope: Vec<f32>,
}

/// Sums of an attempt.
#[derive(Default)]
pub(super) struct Slopes {
    /// `[segments, group]`; zeros of segments that say nothing of slopes.
    rising: Vec<Rising>,
    /// Numbers of the segments whose slopes are read, ascending.
    pub(super) read: Vec<u32>,
    pub(super) following: Following,
}

impl Slopes {
    /// Sums up the rows.
    pub(super) fn rise(&mut self, kernels: &Kernels, head: &Head<'_>, clusters: &Clusters, zone: &Zone) {
        self.rising.clear();
        self.rising.resize(head.segments.len() * head.group, Rising::default());
        let (closed, mut start) = (&clusters.closed_numbers, 0);
        for (number, run) in head.runs(&clusters.closed) {
            let segment = &head.segments[number];
            let numbers = start..start + run.len();
            for (g, rising) in self.of(head, number).iter_mut().enumerate() {
                let within = &closed.within(g)[numbers.clone()];
                let weights = &closed.estimates_and_shifts()[g * closed.len..][numbers.clone()];
                let clusters = run.iter().zip(weights.iter().zip(within));
                rising.weighted += clusters
                    .map(|(&cluster, (weight, &within))| {
                        let steepness = segment.numbers.steepness[cluster as usize - segment.first];
                        weight * closed_rise(within) * steepness
                    })
                    .sum::<f32>();
            }
            start = numbers.end;
        }
        for (number, opened) in zone.opened.iter().enumerate() {
            let segment = &head.segments[opened.segment];
            let (spread, steepness) = of_cluster(segment, opened);
            for (g, rising) in self.of(head, opened.segment).iter_mut().enumerate() {
                let Rise { centre, most } = Rise::of(clusters, (segment, opened, number), g);
                let rows = [&zone.weight, &zone.score, &zone.deviation];
                let [weights, scores, deviations] = rows.map(|numbers| zone.part(numbers, g, opened));
                let variance = 2.0 * JENSEN_MAX;
                let [weighted, squares] =
                    kernels.sum_rises(&Risen { weights, scores, deviations, centre, most, variance });
                rising.weighted += weighted * steepness;
                rising.squares += squares * steepness * steepness;
                rising.spread += spread * steepness * steepness * opened.rows as f32;
            }
        }
        let Choice { half, code, full } = &zone.values;
        for chosen in half.iter().chain(code).chain(full) {
            let opened = &zone.opened[chosen.opened as usize];
            let segment = &head.segments[opened.segment];
            let (_, steepness) = of_cluster(segment, opened);
            let heads = self.of(head, opened.segment).iter_mut().enumerate();
            for ((g, rising), place) in heads.zip(zone.places(chosen)) {
                let rise = Rise::of(clusters, (segment, opened, chosen.opened as usize), g);
                let rise = rise.one(zone.score[place], zone.deviation[place]);
                rising.weighted -= zone.weight[place] * rise * steepness;
            }
        }
    }

    /// The sums of the slope that a segment follows; none where it follows no slope.
    fn of(&mut self, head: &Head<'_>, segment: usize) -> &mut [Rising] {
        let slope = head.segments[segment].slope;
        slope.map_or(&mut [], |slope| &mut self.rising[slope * head.group..][..head.group])
    }

    /// Chooses the slopes whose deviations could matter to the answer, no more than `most` beside those that earlier attempts have
    /// read; whether that had a say.
    pub(super) fn choose(
        &mut self,
        head: &Head<'_>,
        answer: &Rough,
        tau: f32,
        (known, most): (&[u32], usize),
    ) -> bool {
        self.read.clear();
        let (mut left, mut left_out) = (most, false);
        for (number, segment) in head.segments.iter().enumerate().filter(|(_, s)| has_slope(s)) {
            let rising = &self.rising[number * head.group..][..head.group];
            if segment.slope_for(head).matters(rising, &answer.total, &answer.norm, tau) {
                let is_known = known.contains(&(number as u32));
                if is_known || left > 0 {
                    self.read.push(number as u32);
                    left -= usize::from(!is_known);
                } else {
                    left_out = true;
                }
            }
        }
        left_out
    }

    /// Adds what the chosen slopes lead to expect.
    pub(super) fn follow(&mut self, kernels: &Kernels, head: &Head<'_>, answer: &mut Rough) {
        self.following.added.clear();
        self.following.added.resize(head.group, 0.0);
        for &number in &self.read {
            let rising = &self.rising[number as usize * head.group..][..head.group];
            let slope = head.segments[number as usize].slope_for(head);
            self.following.add(kernels, &slope, rising, &answer.total, &mut answer.output);
        }
        answer.measure();
    }
}

impl HeadSegment<'_> {
    /// What the segment itself says.
    fn slope_for<'a>(&'a self, head: &'a Head<'_>) -> Slope<'a> {
        let (basis, numbers) = (&head.bases[self.basis], self.numbers);
        let spread_means = [numbers.key_spread_mean, numbers.value_spread_mean];
        Slope { ladder: &self.ladder, along: &basis.along, along2: &basis.along2, spread_means }
    }
}

impl Slope<'_> {
    /// Variance of the scores of a segment's rows about their centroids, for head `g`.
    fn variance(&self, rising: &Rising, g: usize) -> f32 {
        let spread = self.spread_means[0];
        let before = ROWS_BEFORE * self.along2[g];
        (rising.squares + before) / (rising.spread + ROWS_BEFORE * spread) * spread
    }

    /// Whether what it leads to expect could matter to answers whose weights sum up to `totals` and whose lengths are `norms`, each
    /// `[group]` as the sums are.
    pub fn matters(&self, rising: &[Rising], totals: &[f32], norms: &[f32], tau: f32) -> bool {
        let mut squared = 0.0;
        for (g, ((rising, total), norm)) in rising.iter().zip(totals).zip(norms).enumerate() {
            let share = rising.weighted / (total * norm);
            let gain = share * share / self.variance(rising, g);
            // Nothing follows from a query of 0, which keeps no other head of the group from its slope.
            squared += if gain.is_nan() { 0.0 } else { gain };
        }
        (squared * self.spread_means[1]).sqrt() > SLOPE * tau
    }
}

impl Following {
    /// Adds to rotated answers `[group, value_dim]` what `slope` leads to expect of the rows of `rising`.
    ///
    /// # Panics
    /// If the slope is of other queries or of other dimensions, or its segment says nothing of slopes.
    pub fn add(
        &mut self,
        kernels: &Kernels,
        slope: &Slope<'_>,
        rising: &[Rising],
        totals: &[f32],
        answers: &mut [f32],
    ) {
        let (ladder, group) = (slope.ladder, rising.len());
        let (key_dim, value_dim) = (ladder.bits.len(), ladder.value_sigma.len());
        assert!(slope.along.len() == group * key_dim && answers.len() == group * value_dim);
        assert!(!ladder.value_slope.is_empty(), "a segment without a slope");
        let records = Summaries::all(ladder.value_slope, value_dim);
        self.sums.reset(group, value_dim);
        kernels.sum_summaries(slope.along, key_dim, records, &mut self.sums);
        self.slope.clear();
        self.slope.resize(group * value_dim, 0.0);
        self.sums.add_to(0, ladder.value_sigma, &mut self.slope);
        self.added.resize(group, 0.0);
        for (g, (direction, rising)) in self.slope.chunks_exact(value_dim).zip(rising).enumerate() {
            let (variance, length) = (slope.variance(rising, g), product(direction, direction).sqrt());
            // A slope explains no more than there is.
            let most = (slope.spread_means[1] * variance).sqrt();
            let rows = rising.weighted / (totals[g] * variance) * (most / length).min(1.0);
            // Of a query of 0, and of one whose squares are beyond numbers, nothing follows.
            if (rows * length).is_finite() {
                let answer = &mut answers[g * value_dim..][..value_dim];
                answer.iter_mut().zip(direction).for_each(|(answer, slope)| *answer += rows * slope);
                self.added[g] += rows.abs() * length;
            }
        }
    }
}

/// Number of the segment that says how the values of the next one follow its keys: its own where it does, and else the last of
/// `before` in the same basis that does. `before` has basis and slope of all segments so far.
pub fn slope_of<B: PartialEq>(
    before: impl DoubleEndedIterator<Item = (B, Option<usize>)> + ExactSizeIterator,
    basis: B,
    has_slope: bool,
) -> Option<usize> {
    if has_slope {
        return Some(before.len());
    }
    before.rev().find(|(other, _)| *other == basis).and_then(|(_, slope)| slope)
}

/// Key spread and steepness of an opened cluster.
fn of_cluster(segment: &HeadSegment<'_>, opened: &Opened) -> (f32, f32) {
    let local = opened.cluster - segment.first;
    (segment.numbers.key_spread[local], segment.numbers.steepness[local])
}

/// Bytes of a slope.
pub(super) fn slope_bytes(key_dim: usize, value_dim: usize) -> usize {
    key_dim * record_len(value_dim)
}

fn has_slope(segment: &HeadSegment<'_>) -> bool {
    !segment.ladder.value_slope.is_empty()
}

/// By how much the weight of a closed cluster lies above its centroid's score: twice the allowance in its estimate, as for
/// a logarithm of exponentials that grows with the square of their scale.
fn closed_rise(within: f32) -> f32 {
    (within / 2.0).min(2.0 * JENSEN_MAX)
}

/// By how much the rows of an opened cluster score above its centroid, before the soft-cap. Under one its deviations are those after
/// it, which are smaller: then less is believed, and less added.
#[derive(Clone, Copy)]
struct Rise {
    centre: f32,
    /// The most that is believed either way.
    most: f32,
}

impl Rise {
    /// Of an opened cluster and its number among them, for head `g` of the group.
    fn of(
        clusters: &Clusters,
        (segment, opened, number): (&HeadSegment<'_>, &Opened, usize),
        g: usize,
    ) -> Rise {
        let within = clusters.opened_numbers.within(g)[number];
        Rise { centre: clusters.centre(segment, opened.cluster, g), most: Z_CLUSTER * within.sqrt() }
    }

    /// As a row's weight has it: with what its deviation allows for.
    #[inline(always)]
    fn one(self, score: f32, deviation: f32) -> f32 {
        let above = score - self.centre + (deviation * deviation).min(2.0 * JENSEN_MAX);
        above.min(self.most).max(-self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_without_a_slope_follows_the_last_before_it_of_its_basis() {
        let mut known: Vec<(char, Option<usize>)> = Vec::new();
        for (basis, has_slope, expected) in [
            ('a', false, None),
            ('a', true, Some(1)),
            ('b', false, None),
            ('a', false, Some(1)),
            ('b', true, Some(4)),
            ('a', false, Some(1)),
            ('a', true, Some(6)),
            ('a', false, Some(6)),
            ('b', false, Some(4)),
        ] {
            let slope = slope_of(known.iter().copied(), basis, has_slope);
            assert_eq!(slope, expected, "segment {}", known.len());
            known.push((basis, slope));
        }
    }
}
