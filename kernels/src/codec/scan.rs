//! Scanning: scores of a cluster's sketches, and in the same pass what its rows weigh.

use super::levels::factor_of_code;
use super::lookup::Lookup;
use super::sketch::BLOCK_ROWS;
use super::sketch_query::{SketchQuery, block_totals};
use crate::exp::exp;
use crate::isa::Kernels;
use crate::ladder::{Lanewise, RowSums};
use crate::lanes::Lanes;

/// Numbers of a cluster's rows are written up to the next multiple of this.
pub const SCAN_STEP: usize = 8;

/// The cluster that is scanned, one number for each query head.
#[derive(Clone, Copy, Debug)]
pub struct ScanOf<'a> {
    /// Scores of the centroid.
    pub centres: &'a [f32],
    /// What a sketch leaves of a score, as a standard deviation in units of the row's factor.
    pub noises: &'a [f32],
    /// References of the exponentials.
    pub tops: &'a [f32],
    /// The most that a score counts above its reference.
    pub most: f32,
}

/// Where rows' numbers go, each `[head * stride + row]`.
#[derive(Debug)]
pub struct ScanPlanes<'a> {
    /// Places from a head to the next.
    pub stride: usize,
    /// Scores: those of the sketches with the centroid's on top.
    pub scores: &'a mut [f32],
    /// Weights.
    pub weights: &'a mut [f32],
    /// Standard deviations of the scores.
    pub deviations: &'a mut [f32],
}

impl Kernels {
    /// Scores, weights and deviations of the rows of one cluster by their sketches, and the sums of each head. Scores are those
    /// of [`Kernels::scores_sketch`] with the centroid's on top, deviations the factors times the noise of the head, weights and
    /// sums those of [`Kernels::weigh_rows`]. In places up to the next multiple of [`SCAN_STEP`] rows, weights and deviations
    /// become 0 and scores whatever they may be.
    ///
    /// # Panics
    /// If `record` is not that of `rows` rows, `of` or `sums` has not one number a head, or there is no room.
    pub fn scan_sketch(
        &self,
        query: &SketchQuery,
        record: &[u8],
        rows: usize,
        of: &ScanOf<'_>,
        planes: &mut ScanPlanes<'_>,
        sums: &mut [RowSums],
    ) {
        let (layout, heads) = (query.layout(), query.heads());
        assert!(
            record.len() == layout.record_len(rows),
            "a record of {} bytes for {rows} rows",
            record.len()
        );
        let each = [of.centres.len(), of.noises.len(), of.tops.len(), sums.len()];
        assert!(each.iter().all(|&len| len == heads), "numbers for {heads} heads");
        let wide = rows.next_multiple_of(SCAN_STEP);
        let room = planes.scores.len().min(planes.weights.len()).min(planes.deviations.len());
        assert!(planes.stride >= wide && room >= (heads - 1) * planes.stride + wide, "room for {rows} rows");
        (self.scan_sketch)(query, record, rows, of, planes, sums);
    }
}

/// Lanes beside the eight that bytes are looked up with.
pub(crate) trait Scanning<const N: usize>: Lanes<N> {
    /// What looks up.
    type Eight: Lookup;

    fn eight(self) -> Self::Eight;
    /// Vector `part` of the numbers of 32 rows.
    fn part(self, of: &[<Self::Eight as Lanes>::V; 4], part: usize) -> Self::V;
    /// Stores the numbers of the `rows` rows that are left, or of as many as there are lanes, up to the next multiple of
    /// [`SCAN_STEP`].
    fn store_rows(self, x: Self::V, rows: usize, to: &mut [f32]);
}

/// As many lanes as are looked up.
impl<L: Lookup> Scanning<8> for L {
    type Eight = L;

    #[inline(always)]
    fn eight(self) -> L {
        self
    }

    #[inline(always)]
    fn part(self, of: &[L::V; 4], part: usize) -> L::V {
        of[part]
    }

    #[inline(always)]
    fn store_rows(self, x: L::V, _: usize, to: &mut [f32]) {
        if let Some(eight) = to.first_chunk_mut() {
            self.store(x, eight);
        }
    }
}

/// See [`Kernels::scan_sketch`].
#[inline(always)]
pub(crate) fn scan_sketch<L: Scanning<N>, const N: usize>(
    isa: L,
    query: &SketchQuery,
    record: &[u8],
    rows: usize,
    of: &ScanOf<'_>,
    planes: &mut ScanPlanes<'_>,
    sums: &mut [RowSums],
) {
    let records = (record, rows);
    let mut head = 0;
    while head < query.heads() {
        let group = (query.heads() - head).min(4);
        let sums = &mut sums[head..head + group];
        match group {
            4 => scan_group::<L, N, 4>(isa, query, head, records, of, planes, sums),
            3 => scan_group::<L, N, 3>(isa, query, head, records, of, planes, sums),
            2 => scan_group::<L, N, 2>(isa, query, head, records, of, planes, sums),
            _ => scan_group::<L, N, 1>(isa, query, head, records, of, planes, sums),
        }
        head += group;
    }
}

/// Heads `head..head + H`.
#[inline(always)]
fn scan_group<L: Scanning<N>, const N: usize, const H: usize>(
    isa: L,
    query: &SketchQuery,
    head: usize,
    (record, rows): (&[u8], usize),
    of: &ScanOf<'_>,
    planes: &mut ScanPlanes<'_>,
    sums: &mut [RowSums],
) {
    let bytes = query.layout().bytes();
    let mut under_way = [Lanewise::new(isa); H];
    let mut rest = record;
    for first in (0..rows).step_by(BLOCK_ROWS) {
        let count = (rows - first).min(BLOCK_ROWS);
        let totals = block_totals::<L::Eight, H>(isa.eight(), query, head, rest, count);
        let codes = &rest[bytes * count..];
        let (mut factors, mut masks) = ([0.0; BLOCK_ROWS], [f32::NEG_INFINITY; BLOCK_ROWS]);
        for row in 0..count {
            factors[row] = factor_of_code(codes[row]);
            masks[row] = 0.0;
        }
        for (part, (factor, mask)) in factors.as_chunks().0.iter().zip(masks.as_chunks().0).enumerate() {
            if part * N >= count {
                break;
            }
            let (factor, mask) = (isa.load(factor), isa.load(mask));
            for h in 0..H {
                let deviation = isa.mul(isa.splat(of.noises[head + h]), factor);
                let variance = isa.mul(deviation, deviation);
                let allowance = isa.min(isa.mul(variance, isa.splat(0.5)), isa.splat(1.0));
                let total = isa.part(&totals[h], part);
                let score = isa.add(isa.mul(total, factor), isa.splat(of.centres[head + h]));
                let over = isa.sub(isa.add(isa.add(score, allowance), mask), isa.splat(of.tops[head + h]));
                let weight = exp(isa, isa.min(over, isa.splat(of.most)));
                under_way[h].add(isa, weight, deviation, variance);
                let (place, left) = ((head + h) * planes.stride + first + part * N, count - part * N);
                isa.store_rows(score, left, &mut planes.scores[place..]);
                isa.store_rows(weight, left, &mut planes.weights[place..]);
                isa.store_rows(deviation, left, &mut planes.deviations[place..]);
            }
        }
        rest = &rest[(bytes + 1) * count..];
    }
    for h in 0..H {
        sums[h] = under_way[h].finish(isa);
    }
}
