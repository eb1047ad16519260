//! Scanning the sketches of the opened clusters, in parts that idle threads take over.

use super::clusters::Clusters;
use super::constants::{SKETCH_MAX, Z_ROW};
use super::head::Head;
use super::sharing::{PART, Sharing};
use super::softcap::Softcap;
use super::zone::Opened;
use crate::error::Error;
use longwave_kernels::Kernels;
use longwave_kernels::codec::{ScanOf, ScanPlanes, SketchQuery};
use longwave_kernels::ladder::RowSums;

/// Records of sketches that are asked for ahead of the one that is scanned: they lie anywhere.
const AHEAD: usize = 3;
/// What is scanned, and for which queries.
#[derive(Clone, Copy)]
pub(super) struct Scan<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) softcap: Softcap,
    pub(super) head: &'a Head<'a>,
    pub(super) clusters: &'a Clusters,
    pub(super) sharing: Sharing,
}

/// Opened clusters that follow each other, and where the numbers of their rows go.
pub(super) struct ScanPart<'a> {
    pub(super) opened: &'a [Opened],
    pub(super) score: &'a mut [f32],
    pub(super) weight: &'a mut [f32],
    pub(super) deviation: &'a mut [f32],
    /// `[opened, group]`.
    pub(super) sums: &'a mut [RowSums],
}

impl<'a> ScanPart<'a> {
    /// The first `count` clusters, and the others.
    fn cut(self, count: usize, group: usize) -> [ScanPart<'a>; 2] {
        let (opened, later) = self.opened.split_at(count);
        let places = later[0].start - opened[0].start;
        let (score, later_score) = self.score.split_at_mut(places);
        let (weight, later_weight) = self.weight.split_at_mut(places);
        let (deviation, later_deviation) = self.deviation.split_at_mut(places);
        let (sums, later_sums) = self.sums.split_at_mut(count * group);
        [
            ScanPart { opened, score, weight, deviation, sums },
            ScanPart {
                opened: later,
                score: later_score,
                weight: later_weight,
                deviation: later_deviation,
                sums: later_sums,
            },
        ]
    }
}

impl Scan<'_> {
    /// Scans all clusters of a part.
    pub(super) fn all(self, part: ScanPart<'_>) -> Result<(), Error> {
        if self.sharing == Sharing::Alone || part.opened.len() < 2 * PART {
            return self.each(part);
        }
        let middle = part.opened.len() / 2;
        let [first, second] = part.cut(middle, self.head.group);
        let (first, second) = rayon::join(|| self.all(first), || self.all(second));
        first.and(second)
    }

    fn each(&self, part: ScanPart<'_>) -> Result<(), Error> {
        let Some(first) = part.opened.first() else { return Ok(()) };
        let (group, clusters) = (self.head.group, self.clusters);
        let (mut noises, mut centres) = (vec![0.0; group], vec![0.0; group]);
        let mut factors = Vec::new();
        for (number, opened) in part.opened.iter().enumerate() {
            if let Some(ahead) = part.opened.get(number + AHEAD) {
                self.kernels.prefetch(self.record(ahead)?);
            }
            let segment = &self.head.segments[opened.segment];
            let basis = &self.head.bases[segment.basis];
            for g in 0..group {
                noises[g] = basis.norm2[g].sqrt() * segment.ladder.sketch_noise;
                centres[g] = clusters.centre(segment, opened.cluster, g);
            }
            let of = ScanOf { centres: &centres, noises: &noises, tops: &clusters.top, most: SKETCH_MAX };
            let start = opened.start - first.start;
            let mut planes = ScanPlanes {
                stride: opened.wide,
                scores: &mut part.score[start..],
                weights: &mut part.weight[start..],
                deviations: &mut part.deviation[start..],
            };
            let sums = &mut part.sums[number * group..][..group];
            let (query, record) = (&basis.sketch, self.record(opened)?);
            if self.softcap.0.is_some() {
                self.capped((query, record), opened.rows, &of, &mut planes, sums, &mut factors);
            } else {
                self.kernels.scan_sketch(query, record, opened.rows, &of, &mut planes, sums);
            }
        }
        Ok(())
    }

    fn record(&self, opened: &Opened) -> Result<&[u8], Error> {
        let segment = &self.head.segments[opened.segment];
        Ok(segment.ladder.sketch(opened.cluster - segment.first)?)
    }

    /// Scans a cluster whose scores are capped: the cap bends each row's deviation by itself.
    fn capped(
        &self,
        (query, record): (&SketchQuery, &[u8]),
        rows: usize,
        of: &ScanOf<'_>,
        planes: &mut ScanPlanes<'_>,
        sums: &mut [RowSums],
        factors: &mut Vec<f32>,
    ) {
        factors.clear();
        factors.resize(rows, 0.0);
        self.kernels.scores_sketch(query, record, rows, planes.stride, planes.scores, factors);
        for (g, sums) in sums.iter_mut().enumerate() {
            let (places, end) = (g * planes.stride..g * planes.stride + rows, (g + 1) * planes.stride);
            planes.weights[places.end..end].fill(0.0);
            planes.deviations[places.end..end].fill(0.0);
            let (scores, weights) = (&mut planes.scores[places.clone()], &mut planes.weights[places.clone()]);
            let deviations = &mut planes.deviations[places];
            let rows = scores.iter_mut().zip(&mut *weights).zip(&mut *deviations).zip(&*factors);
            for (((score, weight), deviation), factor) in rows {
                *score += of.centres[g];
                *deviation = of.noises[g] * factor;
                *deviation *= self.softcap.slope(*score, Z_ROW * *deviation);
                *weight = self.softcap.apply(*score);
            }
            *sums = self.kernels.weigh_rows(weights, deviations, of.tops[g], of.most);
        }
    }
}
