//! Reading the keys and values that were chosen.

use super::answer::RowValues;
use super::clusters::Clusters;
use super::constants::{JENSEN_MAX, KEY_NOISE};
use super::head::Head;
use super::softcap::Softcap;
use super::zone::{Choice, Chosen, Opened, Zone};
use crate::error::Error;
use crate::stored::{RowColumn, Side};
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
    /// Whether the system is asked for rows before they are read: who counts what comes from disk has asked already.
    pub(super) ahead: bool,
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

/// What was known of the rows that are read.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Known {
    /// Their sketches.
    Sketch,
    /// Half a code as well; or, of those that are read in full, any code.
    Code,
}

/// Rows of a segment that are read in one piece, at most.
const PIECE: usize = 256;

impl Reader<'_, '_> {
    /// Replaces the weights of the rows chosen by those of the keys as read.
    pub(super) fn read_keys(
        &self,
        zone: &mut Zone,
        clusters: &mut Clusters,
        changed: &mut Vec<bool>,
        keys: &Choice,
        known: Known,
    ) -> Result<(), Error> {
        let runs = runs(zone, keys);
        let read = zone.sharing.map(&runs, |&(resolution, run)| {
            let mut scores = self.score(zone, resolution, run)?;
            if known == Known::Code && resolution != Resolution::Full {
                // What half the code adds is in their scores.
                let half = self.score(zone, Resolution::Code(Depth::Half), run)?;
                scores.iter_mut().zip(half).for_each(|(score, half)| *score -= half);
            }
            Ok::<_, Error>(scores)
        });
        for (&(resolution, run), scores) in runs.iter().zip(read) {
            self.weigh(zone, clusters, (resolution, known), run, scores?);
        }
        changed.clear();
        changed.resize(zone.opened.len(), false);
        for chosen in runs.iter().flat_map(|(_, run)| *run) {
            changed[chosen.opened as usize] = true;
        }
        zone.sum_again(self.kernels, clusters, changed);
        Ok(())
    }

    /// Asks for the rows of these choices before the first is waited for, unless somebody has; says whether some of them have to come from
    /// disk. Codes of a segment are asked for together, however much of them is read: where they lie next to each other they are one
    /// request.
    pub(super) fn expect(&self, zone: &Zone, choices: &[&Choice], side: Side) -> Result<bool, Error> {
        let mut comes = false;
        if !self.ahead || choices.iter().all(|choice| choice.is_empty()) {
            return Ok(comes);
        }
        let runs: Vec<_> = choices.iter().flat_map(|choice| runs(zone, choice)).collect();
        for segment in &self.head.segments {
            for (of, full) in [(RowColumn::Code(side), false), (RowColumn::Row(side), true)] {
                let mine = runs.iter().filter(|(resolution, run)| {
                    zone.opened[run[0].opened as usize].segment == segment.number
                        && (*resolution == Resolution::Full) == full
                });
                let mut rows = mine.flat_map(|(_, run)| *run).map(|chosen| chosen.row as usize).peekable();
                if rows.peek().is_none() {
                    continue;
                }
                let (column, size) = segment.segment.row_column(&self.view.shape, of)?;
                let first = self.kv_head * segment.segment.rows();
                comes |= column.expect(rows.map(|row| (first + row) * size..(first + row + 1) * size));
            }
        }
        Ok(comes)
    }

    /// Scores of a run of rows of one segment, `[rows, group]`, before the soft-cap; of codes, what they add to those of the
    /// sketches.
    fn score(&self, zone: &Zone, resolution: Resolution, run: &[Chosen]) -> Result<Vec<f32>, Error> {
        let (group, dim) = (self.head.group, self.view.shape.key_dim);
        let segment = self.segment_of(zone, run);
        let rows: Vec<u32> = run.iter().map(|chosen| chosen.row).collect();
        let mut scores = vec![0.0; rows.len() * group];
        match resolution {
            Resolution::Full => {
                let queries = &self.queries.data;
                let take = |keys: Rows<'_>, list: Option<&[u32]>| match list {
                    Some(list) => self.kernels.scores_gathered(queries, group, dim, keys, list, &mut scores),
                    None => self.kernels.scores(queries, group, dim, keys, &mut scores),
                };
                segment.segment.read_listed_keys(&self.view.shape, self.kv_head, &rows, take)?;
            }
            Resolution::Code(depth) => {
                let records = segment.ladder.listed_key_codes(&rows)?;
                let queries = &self.head.bases[segment.basis].key;
                self.kernels.scores_codes(
                    queries,
                    group,
                    RowCodes { records, dim, depth },
                    &rows,
                    &mut scores,
                );
                segment.ladder.check_key_codes(records, &rows)?;
            }
        }
        Ok(scores)
    }

    /// Share of the standard deviation of each query head's score that is left, of what was, of a row of a segment. Where nothing finer than
    /// codes is kept, a whole code is the row, and what is left is what the tables of sketches are off by.
    fn left(&self, opened: &Opened, (resolution, known): (Resolution, Known)) -> Vec<f32> {
        let segment = &self.head.segments[opened.segment];
        let basis = &self.head.bases[segment.basis];
        let of_tables = |g: usize| {
            let sketched = basis.norm2[g].sqrt() * segment.ladder.sketch_noise;
            if sketched > 0.0 { (basis.sketch.error_deviation(g) / sketched).min(1.0) } else { 0.0 }
        };
        let is_row = opened.codes_alone && resolution == Resolution::Code(Depth::Whole);
        let before = if known == Known::Code { KEY_NOISE[0].sqrt() } else { 1.0 };
        let left = |g: usize| if is_row { of_tables(g) } else { resolution.left().sqrt() };
        (0..self.head.group).map(|g| left(g) / before).collect()
    }

    fn weigh(
        &self,
        zone: &mut Zone,
        clusters: &mut Clusters,
        (resolution, known): (Resolution, Known),
        run: &[Chosen],
        mut scores: Vec<f32>,
    ) {
        let (group, softcap) = (self.head.group, Softcap(self.view.scoring.softcap));
        let left = self.left(&zone.opened[run[0].opened as usize], (resolution, known));
        let full = resolution == Resolution::Full;
        for (chosen, scores) in run.iter().zip(scores.chunks_exact_mut(group)) {
            let places = zone.places(chosen);
            for ((score, place), left) in scores.iter_mut().zip(places).zip(&left) {
                let before = if full { 0.0 } else { zone.score[place] };
                zone.score[place] = *score + before;
                let deviation = &mut zone.deviation[place];
                *deviation *= left;
                *score = softcap.apply(zone.score[place]) + (*deviation * *deviation / 2.0).min(JENSEN_MAX);
            }
        }
        let mut most = vec![f32::NEG_INFINITY; group];
        self.kernels.max_per_head(&scores, group, &mut most);
        most.iter().enumerate().for_each(|(g, &most)| zone.lower(clusters, g, most));
        self.kernels.exp_weights(&mut scores, group, &clusters.top, &mut most);
        for (chosen, weights) in run.iter().zip(scores.chunks_exact(group)) {
            for (place, &weight) in zone.places(chosen).zip(weights) {
                zone.weight[place] = weight;
            }
        }
    }

    /// Sums of the values that were chosen.
    pub(super) fn read_values(&self, zone: &Zone, values: &mut RowValues) -> Result<(), Error> {
        let (group, dim) = (self.head.group, self.view.shape.value_dim);
        values.coded.reset(&self.head, dim);
        values.full.clear();
        values.full.resize(group * dim, 0.0);
        let runs = runs(zone, &zone.values);
        let sums = zone.sharing.map(&runs, |&(resolution, run)| self.sum(zone, resolution, run));
        // Added in the order of the runs, whoever has summed them.
        for (&(resolution, run), sum) in runs.iter().zip(sums) {
            let sum = sum?;
            let basis = self.segment_of(zone, run).basis;
            let all =
                if resolution == Resolution::Full { &mut values.full } else { &mut values.coded.sums[basis] };
            all.iter_mut().zip(sum).for_each(|(all, sum)| *all += sum);
        }
        rotate(&mut values.full, dim, false);
        Ok(())
    }

    /// The weighted sum of the values of a run of rows, `[group, value_dim]`; of codes, in units of their scales.
    fn sum(&self, zone: &Zone, resolution: Resolution, run: &[Chosen]) -> Result<Vec<f32>, Error> {
        let (group, dim) = (self.head.group, self.view.shape.value_dim);
        let segment = self.segment_of(zone, run);
        let (mut rows, mut weights) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len() * group));
        for chosen in run {
            rows.push(chosen.row);
            weights.extend(zone.places(chosen).take(group).map(|place| zone.weight[place]));
        }
        let mut sum = vec![0.0; group * dim];
        match resolution {
            Resolution::Full => {
                let take = |rows: Rows<'_>, list: Option<&[u32]>| match list {
                    Some(list) => {
                        self.kernels.accumulate_gathered(&weights, group, dim, rows, list, &mut sum)
                    }
                    None => self.kernels.accumulate(&weights, group, dim, rows, &mut sum),
                };
                segment.segment.read_listed_values(&self.view.shape, self.kv_head, &rows, take)?;
            }
            Resolution::Code(depth) => {
                let records = segment.ladder.listed_value_codes(&rows)?;
                let codes = RowCodes { records, dim, depth };
                self.kernels.accumulate_codes(&weights, group, codes, &rows, &mut sum);
                segment.ladder.check_value_codes(records, &rows)?;
            }
        }
        Ok(sum)
    }

    fn segment_of(&self, zone: &Zone, run: &[Chosen]) -> &super::head::HeadSegment<'_> {
        &self.head.segments[zone.opened[run[0].opened as usize].segment]
    }
}

/// The lists of a choice, cut where a segment ends and where a run is long.
fn runs<'l>(zone: &Zone, choice: &'l Choice) -> Vec<(Resolution, &'l [Chosen])> {
    let half = (Resolution::Code(Depth::Half), &choice.half);
    let lists = [half, (Resolution::Code(Depth::Whole), &choice.code), (Resolution::Full, &choice.full)];
    let segment = |chosen: &Chosen| zone.opened[chosen.opened as usize].segment;
    let mut runs = Vec::new();
    for (resolution, list) in lists {
        let of_segments = list.chunk_by(|a, b| segment(a) == segment(b));
        runs.extend(of_segments.flat_map(|run| run.chunks(PIECE)).map(|run| (resolution, run)));
    }
    runs
}
