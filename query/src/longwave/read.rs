//! Reading the keys and values that were chosen.

use super::answer::RowValues;
use super::clusters::Clusters;
use super::constants::{JENSEN_MAX, KEY_NOISE};
use super::head::Head;
use super::softcap::Softcap;
use super::zone::{Choice, Chosen, Opened, Zone};
use crate::error::Error;
use crate::view::LayerView;
use crate::work::HeadQueries;
use longwave_kernels::codec::{Depth, RowCodes};
use longwave_kernels::{Kernels, Rows, rotate};

/// What one position and KV head reads from, and for which queries.
pub(super) struct Reader<'a, 'v> {
    pub(super) kernels: &'a Kernels,
    pub(super) view: &'a LayerView<'v>,
    pub(super) head: Head<'a>,
    pub(super) queries: HeadQueries,
    pub(super) kv_head: usize,
}

/// How finely a list of rows is read.
#[derive(Clone, Copy, PartialEq)]
enum Resolution {
    Code(Depth),
    Full,
}

impl Resolution {
    /// Share of the variance of a score that is left, after the sketch.
    fn left(self) -> f32 {
        match self {
            Resolution::Code(Depth::Half) => KEY_NOISE[0],
            Resolution::Code(Depth::Whole) => KEY_NOISE[1],
            Resolution::Full => 0.0,
        }
    }
}

/// The lists of codes among a choice.
fn coded(choice: &Choice) -> [(Depth, &[Chosen]); 2] {
    [(Depth::Half, &choice.half), (Depth::Whole, &choice.code)]
}

/// Room for lists of rows and their numbers.
#[derive(Default)]
pub(super) struct Buffers {
    rows: Vec<u32>,
    /// `[rows, group]`.
    numbers: Vec<f32>,
    /// Whether a row of an opened cluster was read.
    changed: Vec<bool>,
}

impl Reader<'_, '_> {
    /// Replaces the weights of the rows chosen by those of the keys as read.
    pub(super) fn read_keys(
        &self,
        zone: &mut Zone,
        clusters: &mut Clusters,
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let keys = std::mem::take(&mut zone.keys);
        let codes = coded(&keys).map(|(depth, list)| (Resolution::Code(depth), list));
        for (resolution, list) in codes.into_iter().chain([(Resolution::Full, keys.full.as_slice())]) {
            for run in self.runs(zone, list) {
                self.score(zone, resolution, run, buffers)?;
                self.weigh(zone, clusters, resolution, run, buffers);
            }
        }
        zone.keys = keys;
        let Buffers { changed, .. } = buffers;
        changed.clear();
        changed.resize(zone.opened.len(), false);
        let Choice { half, code, full } = &zone.keys;
        for chosen in half.iter().chain(code).chain(full) {
            changed[chosen.opened as usize] = true;
        }
        for number in (0..zone.opened.len()).filter(|&number| changed[number]) {
            zone.sum_again(self.kernels, clusters, number, self.head.group);
        }
        Ok(())
    }

    /// Cuts a list where a segment ends.
    fn runs<'l>(&self, zone: &Zone, list: &'l [Chosen]) -> Vec<&'l [Chosen]> {
        let segment = |chosen: &Chosen| zone.opened[chosen.opened as usize].segment;
        list.chunk_by(|a, b| segment(a) == segment(b)).collect()
    }

    /// Scores of a run of rows of one segment, `[rows, group]`, before the soft-cap; of codes, what they add to those of the
    /// sketches.
    fn score(
        &self,
        zone: &Zone,
        resolution: Resolution,
        run: &[Chosen],
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let (group, dim) = (self.head.group, self.view.shape.key_dim);
        let segment = &self.head.segments[zone.opened[run[0].opened as usize].segment];
        let Buffers { rows, numbers: scores, .. } = buffers;
        rows.clear();
        scores.clear();
        rows.extend(run.iter().map(|chosen| chosen.row));
        scores.resize(rows.len() * group, 0.0);
        match resolution {
            Resolution::Full => {
                let queries = &self.queries.data;
                let take = |keys: Rows<'_>, list: Option<&[u32]>| match list {
                    Some(list) => self.kernels.scores_gathered(queries, group, dim, keys, list, scores),
                    None => self.kernels.scores(queries, group, dim, keys, scores),
                };
                segment.segment.read_listed_keys(&self.view.shape, self.kv_head, rows, take)?;
            }
            Resolution::Code(depth) => {
                let records = segment.ladder.listed_key_codes(rows)?;
                let queries = &self.head.bases[segment.basis].key;
                self.kernels.scores_codes(queries, group, RowCodes { records, dim, depth }, rows, scores);
                segment.ladder.check_key_codes(records, rows)?;
            }
        }
        Ok(())
    }

    /// Share of the standard deviation of each query head's score that is left of a row of a segment. Where nothing finer than
    /// codes is kept, a whole code is the row, and what is left is what the tables of sketches are off by.
    fn left(&self, opened: &Opened, resolution: Resolution) -> Vec<f32> {
        let segment = &self.head.segments[opened.segment];
        let basis = &self.head.bases[segment.basis];
        let of_tables = |g: usize| {
            let sketched = basis.norm2[g].sqrt() * segment.ladder.sketch_noise;
            if sketched > 0.0 { (basis.sketch.error_deviation(g) / sketched).min(1.0) } else { 0.0 }
        };
        let is_row = opened.codes_alone && resolution == Resolution::Code(Depth::Whole);
        (0..self.head.group).map(|g| if is_row { of_tables(g) } else { resolution.left().sqrt() }).collect()
    }

    fn weigh(
        &self,
        zone: &mut Zone,
        clusters: &mut Clusters,
        resolution: Resolution,
        run: &[Chosen],
        buffers: &mut Buffers,
    ) {
        let (group, softcap, scores) =
            (self.head.group, Softcap(self.view.scoring.softcap), &mut buffers.numbers);
        let left = self.left(&zone.opened[run[0].opened as usize], resolution);
        let full = resolution == Resolution::Full;
        for (chosen, scores) in run.iter().zip(scores.chunks_exact_mut(group)) {
            let places = zone.places(chosen);
            for ((score, place), left) in scores.iter_mut().zip(places).zip(&left) {
                let sketched = if full { 0.0 } else { zone.score[place] };
                let deviation = &mut zone.deviation[place];
                *deviation *= left;
                *score = softcap.apply(*score + sketched) + (*deviation * *deviation / 2.0).min(JENSEN_MAX);
            }
        }
        let mut most = vec![f32::NEG_INFINITY; group];
        self.kernels.max_per_head(scores, group, &mut most);
        most.iter().enumerate().for_each(|(g, &most)| zone.lower(clusters, g, most));
        self.kernels.exp_weights(scores, group, &clusters.top, &mut most);
        for (chosen, weights) in run.iter().zip(scores.chunks_exact(group)) {
            for (place, &weight) in zone.places(chosen).zip(weights) {
                zone.weight[place] = weight;
            }
        }
    }

    /// Sums of the values that were chosen, and the weights of clusters that rest on their mean value: rows whose value is
    /// read in full do not, and coded values are differences to it.
    pub(super) fn read_values(
        &self,
        zone: &Zone,
        clusters: &Clusters,
        (values, on_mean): (&mut RowValues, &mut Vec<f32>),
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let (group, dim) = (self.head.group, self.view.shape.value_dim);
        on_mean.clone_from(&zone.cluster_weight);
        values.coded.reset(&self.head, dim);
        values.full.clear();
        values.full.resize(group * dim, 0.0);
        for (depth, list) in coded(&zone.values) {
            for run in self.runs(zone, list) {
                let segment = self.weights(zone, run, buffers);
                let records = segment.ladder.listed_value_codes(&buffers.rows)?;
                let (weights, sum) = (&buffers.numbers, &mut values.coded.sums[segment.basis]);
                let codes = RowCodes { records, dim, depth };
                self.kernels.accumulate_codes(weights, group, codes, &buffers.rows, sum);
                segment.ladder.check_value_codes(records, &buffers.rows)?;
            }
        }
        for run in self.runs(zone, &zone.values.full) {
            let segment = self.weights(zone, run, buffers);
            let (weights, full) = (&buffers.numbers, &mut values.full);
            let take = |rows: Rows<'_>, list: Option<&[u32]>| match list {
                Some(list) => self.kernels.accumulate_gathered(weights, group, dim, rows, list, full),
                None => self.kernels.accumulate(weights, group, dim, rows, full),
            };
            segment.segment.read_listed_values(&self.view.shape, self.kv_head, &buffers.rows, take)?;
            for (chosen, weights) in run.iter().zip(weights.chunks_exact(group)) {
                let cluster = zone.opened[chosen.opened as usize].cluster;
                for (g, weight) in weights.iter().enumerate() {
                    on_mean[g * clusters.len + cluster] -= weight;
                }
            }
        }
        rotate(&mut values.full, dim, false);
        Ok(())
    }

    /// Lists a run's rows and their weights, and returns their segment.
    fn weights(&self, zone: &Zone, run: &[Chosen], buffers: &mut Buffers) -> &super::head::HeadSegment<'_> {
        buffers.rows.clear();
        buffers.numbers.clear();
        for chosen in run {
            buffers.rows.push(chosen.row);
            buffers.numbers.extend(zone.places(chosen).take(self.head.group).map(|place| zone.weight[place]));
        }
        &self.head.segments[zone.opened[run[0].opened as usize].segment]
    }
}
