//! Numbers of the clusters that a call goes on with, close together: few of all there are.

use super::clusters::{Clusters, LIMITS};
use super::head::{Head, HeadSegment};
use longwave_kernels::Kernels;
use longwave_kernels::ladder::{ClusterWeights, Spread};

/// Numbers of listed clusters, in the order of the list: one a cluster, or a plane of them for each query head, `[group, len]`.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) len: usize,
    pub(super) count: Vec<f32>,
    pub(super) value_spread: Vec<f32>,
    pub(super) mean_error: Vec<f32>,
    /// Squared norms of the value means.
    pub(super) norm: Vec<f32>,
    /// Planes: variance of the scores inside the cluster, after the soft-cap.
    within: Vec<f32>,
    /// Three times as many planes: the masses, the estimates and the shifts of [`ClusterWeights`].
    weights: Vec<f32>,
    /// Room for numbers that are gathered.
    gathered: [Vec<f32>; 2],
}

impl Listed {
    /// Takes the clusters of `list`, which ascends, and weighs them.
    pub(super) fn weigh(&mut self, kernels: &Kernels, head: &Head<'_>, clusters: &Clusters, list: &[u32]) {
        self.make_room(list.len());
        for (number, run) in head.runs(list) {
            let segment = &head.segments[number];
            let (first, numbers) = (segment.first, segment.numbers);
            gather(&numbers.count, run, first, &mut self.count);
            gather(&numbers.value_spread, run, first, &mut self.value_spread);
            gather(&numbers.mean_error, run, first, &mut self.mean_error);
            numbers.norms(&segment.ladder, (run, first), &mut self.norm);
        }
        self.within.resize(head.group * self.len, 0.0);
        self.weights.resize(3 * head.group * self.len, 0.0);
        let mut start = 0;
        for (number, run) in head.runs(list) {
            for g in 0..head.group {
                self.weigh_run(kernels, (head.group, g), clusters, (&head.segments[number], run), start);
            }
            start += run.len();
        }
    }

    /// Weighs clusters of one segment, for one head of the group.
    fn weigh_run(
        &mut self,
        kernels: &Kernels,
        (group, g): (usize, usize),
        clusters: &Clusters,
        (segment, run): (&HeadSegment<'_>, &[u32]),
        start: usize,
    ) {
        let all = clusters.spread(segment, g);
        let [centres, spreads] = &mut self.gathered;
        centres.clear();
        spreads.clear();
        gather(all.centres, run, segment.first, centres);
        gather(all.spreads, run, segment.first, spreads);
        let counts = &self.count[start..start + run.len()];
        let spread = Spread { centres, spreads, counts, ..all };
        let (masses, rest) = self.weights.split_at_mut(group * self.len);
        let (estimates, shifts) = rest.split_at_mut(group * self.len);
        let mine = g * self.len + start..g * self.len + start + run.len();
        let mut weights = ClusterWeights {
            within: &mut self.within[mine.clone()],
            mass: &mut masses[mine.clone()],
            estimate: &mut estimates[mine.clone()],
            shift: &mut shifts[mine],
        };
        kernels.weigh_clusters(&spread, &LIMITS, &mut weights);
    }

    /// Takes those of `all` that lie at `places`.
    pub(super) fn pick(&mut self, all: &Listed, places: &[u32]) {
        self.pick_unweighed(all, places);
        for plane in all.weights.chunks_exact(all.len.max(1)) {
            gather(plane, places, 0, &mut self.weights);
        }
    }

    /// The same without their weights.
    pub(super) fn pick_unweighed(&mut self, all: &Listed, places: &[u32]) {
        self.make_room(places.len());
        gather(&all.count, places, 0, &mut self.count);
        gather(&all.value_spread, places, 0, &mut self.value_spread);
        gather(&all.mean_error, places, 0, &mut self.mean_error);
        gather(&all.norm, places, 0, &mut self.norm);
        for plane in all.within.chunks_exact(all.len.max(1)) {
            gather(plane, places, 0, &mut self.within);
        }
    }

    fn make_room(&mut self, len: usize) {
        self.len = len;
        let each = [&mut self.count, &mut self.value_spread, &mut self.mean_error, &mut self.norm];
        each.into_iter().for_each(Vec::clear);
        self.within.clear();
        self.weights.clear();
    }

    /// Multiplies the weights of head `g` of the group.
    pub(super) fn scale(&mut self, (group, g): (usize, usize), factor: f32) {
        for set in 0..3 {
            let plane = (set * group + g) * self.len;
            self.weights[plane..plane + self.len].iter_mut().for_each(|weight| *weight *= factor);
        }
    }

    pub(super) fn within(&self, g: usize) -> &[f32] {
        &self.within[g * self.len..(g + 1) * self.len]
    }

    /// Planes: weights if every row scored as its centroid.
    pub(super) fn masses(&self) -> &[f32] {
        &self.weights[..self.weights.len() / 3]
    }

    /// Planes: weights with the allowance for the spread of the scores inside (Jensen), for clusters that are not opened;
    /// behind them by how much these may lie too high or too low.
    pub(super) fn estimates_and_shifts(&self) -> &[f32] {
        &self.weights[self.weights.len() / 3..]
    }
}

/// Adds the numbers of the listed clusters, which are counted from `first`.
pub(super) fn gather(numbers: &[f32], list: &[u32], first: usize, gathered: &mut Vec<f32>) {
    gathered.extend(list.iter().map(|&cluster| numbers[cluster as usize - first]));
}
