//! Reading the keys and values that were chosen.

use super::answer::RowValues;
use super::clusters::Clusters;
use super::constants::KEY_CODE_NOISE;
use super::head::Head;
use super::softcap::Softcap;
use super::zone::{Chosen, Zone};
use crate::error::Error;
use crate::view::LayerView;
use crate::work::HeadQueries;
use longwave_kernels::{Kernels, rotate};

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
    Code,
    Full,
}

/// Room for lists of rows and their numbers.
#[derive(Default)]
pub(super) struct Buffers {
    rows: Vec<u32>,
    /// `[rows, group]`.
    numbers: Vec<f32>,
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
        for (resolution, list) in [(Resolution::Code, &keys.code), (Resolution::Full, &keys.full)] {
            for run in self.runs(zone, list) {
                self.score(zone, clusters, resolution, run, buffers)?;
                self.weigh(zone, clusters, resolution, run, buffers);
            }
        }
        zone.keys = keys;
        for number in 0..zone.opened.len() {
            if zone.keys.of(number).next().is_some() {
                zone.sum_again(self.kernels, clusters, number, self.head.group);
            }
        }
        Ok(())
    }

    /// Cuts a list where a segment ends.
    fn runs<'l>(&self, zone: &Zone, list: &'l [Chosen]) -> Vec<&'l [Chosen]> {
        let segment = |chosen: &Chosen| zone.opened[chosen.opened as usize].segment;
        list.chunk_by(|a, b| segment(a) == segment(b)).collect()
    }

    /// Scores of a run of rows of one segment, `[rows, group]`, before the soft-cap.
    fn score(
        &self,
        zone: &Zone,
        clusters: &Clusters,
        resolution: Resolution,
        run: &[Chosen],
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let (group, dim) = (self.head.group, self.view.shape.key_dim);
        let segment = &self.head.segments[zone.opened[run[0].opened as usize].segment];
        let Buffers { rows, numbers: scores } = buffers;
        rows.clear();
        scores.clear();
        rows.extend(run.iter().map(|chosen| chosen.row));
        scores.resize(rows.len() * group, 0.0);
        match resolution {
            Resolution::Full => {
                let keys = segment.segment.listed_keys(&self.view.shape, self.kv_head, rows)?;
                self.kernels.scores_gathered(&self.queries.data, group, dim, keys, rows, scores);
            }
            Resolution::Code => {
                let codes = segment.ladder.listed_key_codes(rows)?;
                let queries = &self.head.bases[segment.basis].key;
                self.kernels.scores4_gathered(queries, group, dim, codes, rows, scores);
                segment.ladder.check_key_codes(codes, rows)?;
                for (chosen, scores) in run.iter().zip(scores.chunks_exact_mut(group)) {
                    let cluster = zone.opened[chosen.opened as usize].cluster;
                    for (g, score) in scores.iter_mut().enumerate() {
                        *score += clusters.uncapped[g * clusters.len + cluster];
                    }
                }
            }
        }
        Ok(())
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
        if softcap.0.is_some() {
            scores.iter_mut().for_each(|score| *score = softcap.apply(*score));
        }
        let mut most = vec![f32::NEG_INFINITY; group];
        self.kernels.max_per_head(scores, group, &mut most);
        most.iter().enumerate().for_each(|(g, &most)| zone.lower(clusters, g, most));
        self.kernels.exp_weights(scores, group, &clusters.top, &mut most);
        let left = if resolution == Resolution::Code { KEY_CODE_NOISE.sqrt() } else { 0.0 };
        for (chosen, weights) in run.iter().zip(scores.chunks_exact(group)) {
            for (g, &weight) in weights.iter().enumerate() {
                let place = g * zone.len + chosen.at as usize;
                zone.weight[place] = weight;
                zone.deviation[place] *= left;
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
        for run in self.runs(zone, &zone.values.code) {
            let segment = self.weights(zone, run, buffers);
            let codes = segment.ladder.listed_value_codes(&buffers.rows)?;
            let (weights, sum) = (&buffers.numbers, &mut values.coded.sums[segment.basis]);
            self.kernels.accumulate4_gathered(weights, group, dim, codes, &buffers.rows, sum);
            segment.ladder.check_value_codes(codes, &buffers.rows)?;
        }
        for run in self.runs(zone, &zone.values.full) {
            let segment = self.weights(zone, run, buffers);
            let rows = segment.segment.listed_values(&self.view.shape, self.kv_head, &buffers.rows)?;
            let (weights, full) = (&buffers.numbers, &mut values.full);
            self.kernels.accumulate_gathered(weights, group, dim, rows, &buffers.rows, full);
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
            let places = (0..self.head.group).map(|g| g * zone.len + chosen.at as usize);
            buffers.numbers.extend(places.map(|place| zone.weight[place]));
        }
        &self.head.segments[zone.opened[run[0].opened as usize].segment]
    }
}
