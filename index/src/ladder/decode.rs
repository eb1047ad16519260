//! Rows as their codes have them: what a segment without full rows gives back.

use std::ops::Range;

use longwave_kernels::codec::{Depth, SketchLayout, decode_planes, decode_sketch, decode4, record_len};
use longwave_kernels::rotate;
use longwave_storage::Error;

use super::columns::{KEY_CODE, VALUE_CODE};
use super::head::HeadLadder;
use super::linear::transform;
use super::validate::{Factors, check_factors};

/// What turns coordinates of one KV head back into keys, computed once for many rows.
#[derive(Clone, Debug)]
pub struct KeyDecoder {
    /// `[dim, dim]`: coordinates times this are the key.
    matrix: Vec<f32>,
    layout: SketchLayout,
}

/// Room to work in.
#[derive(Debug, Default)]
pub struct DecodeRoom {
    coordinates: Vec<f32>,
    sketched: Vec<f32>,
    factors: Vec<f32>,
}

impl HeadLadder<'_> {
    /// What [`HeadLadder::decode_keys`] needs.
    pub fn key_decoder(&self) -> KeyDecoder {
        let rows = self.inverse.chunks_exact(self.bits.len()).zip(self.inverse_scale);
        let matrix = rows.flat_map(|(row, scale)| row.iter().map(move |&x| f32::from(x) * scale)).collect();
        KeyDecoder { matrix, layout: SketchLayout::new(self.bits) }
    }

    /// The keys of a range of the head's rows as their clusters' centroids, their sketches and their codes have them,
    /// `[rows, d]`.
    ///
    /// # Errors
    /// As [`HeadLadder::key_code_bytes`] and [`HeadLadder::sketch`]; [`Error::Corrupt`] with the place of a factor that is
    /// negative or not finite.
    ///
    /// # Panics
    /// When `out` is not as long as the rows.
    pub fn decode_keys(
        &self,
        decoder: &KeyDecoder,
        rows: Range<usize>,
        room: &mut DecodeRoom,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let dim = self.bits.len();
        let codes = self.key_code_bytes(rows.clone())?;
        let first = self.parts.first_row + rows.start;
        check_factors(self.parts.segment, KEY_CODE, Factors::first(codes, dim), first, 0..rows.len())?;
        let DecodeRoom { coordinates, sketched, factors } = room;
        coordinates.resize(rows.len() * dim, 0.0);
        let mut centroid = vec![0.0; dim];
        for Part { cluster, within, place } in self.clusters_of(rows.clone()) {
            let record = &self.centroids[cluster * record_len(dim)..][..record_len(dim)];
            decode4(record, self.centroid_sigma, &mut centroid);
            let count = self.cluster_rows(cluster).len();
            sketched.resize(count * dim, 0.0);
            factors.resize(count, 0.0);
            let record = self.sketch(cluster)?;
            decode_sketch(&decoder.layout, record, count, self.sketch_sigma, sketched, factors);
            let sketched = &sketched[within.start * dim..within.end * dim];
            let of_rows = coordinates[place * dim..].chunks_exact_mut(dim).zip(sketched.chunks_exact(dim));
            for ((row, sketched), code) in
                of_rows.zip(codes[place * record_len(dim)..].chunks_exact(record_len(dim)))
            {
                decode_planes(code, self.key_sigma, Depth::Whole, row);
                let coarse = sketched.iter().zip(&centroid).map(|(sketched, centroid)| sketched + centroid);
                row.iter_mut().zip(coarse).for_each(|(x, coarse)| *x += coarse);
            }
        }
        transform(coordinates, &decoder.matrix, dim, out);
        for key in out.chunks_exact_mut(dim) {
            key.iter_mut().zip(self.middle).for_each(|(x, middle)| *x += middle);
        }
        Ok(())
    }

    /// The values of a range of the head's rows as their clusters' means and their codes have them, `[rows, v]`.
    ///
    /// # Errors
    /// As [`HeadLadder::value_code_bytes`]; [`Error::Corrupt`] as [`HeadLadder::decode_keys`].
    ///
    /// # Panics
    /// When `out` is not as long as the rows.
    pub fn decode_values(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let dim = self.value_sigma.len();
        let codes = self.value_code_bytes(rows.clone())?;
        let first = self.parts.first_row + rows.start;
        check_factors(self.parts.segment, VALUE_CODE, Factors::first(codes, dim), first, 0..rows.len())?;
        let mut mean = vec![0.0; dim];
        for Part { cluster, within, place } in self.clusters_of(rows) {
            let record = &self.value_means[cluster * record_len(dim)..][..record_len(dim)];
            decode4(record, self.value_mean_sigma, &mut mean);
            let codes = codes[place * record_len(dim)..].chunks_exact(record_len(dim));
            let of_rows = out[place * dim..].chunks_exact_mut(dim).zip(codes).take(within.len());
            for (row, code) in of_rows {
                decode_planes(code, self.value_sigma, Depth::Whole, row);
                row.iter_mut().zip(&mean).for_each(|(x, mean)| *x += mean);
            }
        }
        for value in out.chunks_exact_mut(dim) {
            value.iter_mut().zip(self.global_value).for_each(|(x, global)| *x += global);
        }
        rotate(out, dim, true);
        Ok(())
    }

    /// Bytes of `ladder.sketch` that a row takes.
    pub fn sketch_row_bytes(&self) -> usize {
        SketchLayout::new(self.bits).record_len(1)
    }

    /// Rows of a cluster.
    fn cluster_rows(&self, cluster: usize) -> Range<usize> {
        self.parts.offsets[cluster] as usize..self.parts.offsets[cluster + 1] as usize
    }

    /// Cuts a range of the head's rows where clusters end.
    fn clusters_of(&self, rows: Range<usize>) -> impl Iterator<Item = Part> + '_ {
        // The cluster that holds the first row: offsets begin at 0 and ascend.
        let starts = &self.parts.offsets[..self.cluster_count()];
        let first = starts.partition_point(|&start| start as usize <= rows.start).saturating_sub(1);
        let last = starts.partition_point(|&start| (start as usize) < rows.end);
        (first..last).map(move |cluster| {
            let all = self.cluster_rows(cluster);
            let (start, end) = (all.start.max(rows.start), all.end.min(rows.end));
            Part { cluster, within: start - all.start..end - all.start, place: start - rows.start }
        })
    }
}

/// Rows of one cluster among others.
struct Part {
    cluster: usize,
    /// Which of the cluster's rows.
    within: Range<usize>,
    /// Place of the first of them among all.
    place: usize,
}
