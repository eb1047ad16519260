//! Probing: scores of centroids, their softmax, and which clusters and rows are chosen.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{RowList, Spans, assert_len, blocks_of, launch, typed};
use crate::shape::{BLOCK_THREADS, RowShape};
use cudarc::driver::PushKernelArg;

/// As many places as an entry of [`Device::select_above`] has room for.
pub const PLACES_MAX: usize = 1 << 30;

/// An entry of [`Device::select_above`]: a place within its unit, and how many of the second and third threshold its gain is above.
pub fn place_and_level(entry: u32) -> (u32, usize) {
    (entry % PLACES_MAX as u32, (entry / PLACES_MAX as u32) as usize)
}

impl Device {
    /// Scores `[list, group]` of listed rows, be they centroids or full keys; minus infinity where an entry stands for none.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length or a row does not fit.
    pub fn score_rows(
        &self,
        shape: &RowShape,
        queries: &Buffer<f32>,
        stored: &Buffer<u16>,
        rows: &RowList,
        softcap: f32,
    ) -> Result<Buffer<f32>, Error> {
        let spans = &rows.spans;
        rows.assert_within(stored.len() / shape.dim());
        assert_len(queries, spans.units * shape.group() * shape.dim(), "queries");
        let mut scores = self.room(spans.len * shape.group())?;
        if spans.units > 0 {
            let (group, dim) = (shape.group() as i32, shape.dim() as i32);
            launch!(
                self,
                typed("score_rows", shape),
                (spans.units, blocks_of(spans)),
                BLOCK_THREADS,
                0,
                [queries, stored, &rows.rows, &spans.starts, &group, &dim, &softcap, &mut scores]
            );
        }
        Ok(scores)
    }

    /// Softmax shares of the clusters, summed over the group, and the log-sum-exp of each head, `[units, group]`.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If there are not `group` scores for each cluster.
    pub fn softmax(
        &self,
        group: usize,
        scores: &Buffer<f32>,
        spans: &Spans,
    ) -> Result<(Buffer<f32>, Buffer<f32>), Error> {
        assert!((1..=8).contains(&group), "a group of {group}");
        assert_len(scores, spans.len * group, "scores");
        let blocks = blocks_of(spans);
        let mut parts = self.room::<f32>(2 * spans.units * blocks * group)?;
        let (mut shares, mut lse) = (self.room(spans.len)?, self.room(spans.units * group)?);
        if spans.units > 0 {
            let heads = group as i32;
            launch!(
                self,
                "softmax_parts",
                (spans.units, blocks),
                BLOCK_THREADS,
                0,
                [scores, &spans.starts, &heads, &mut parts]
            );
            launch!(
                self,
                "softmax_shares",
                (spans.units, blocks),
                BLOCK_THREADS,
                0,
                [scores, &spans.starts, &parts, &heads, &mut shares, &mut lse]
            );
        }
        Ok((shares, lse))
    }

    /// The `reads` clusters with the largest shares of each unit, and the `estimates` next ones, each in rising order, filled up
    /// with [`EMPTY`](crate::EMPTY): `[units, reads]` and `[units, estimates]`.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If there is not one share for each cluster.
    pub fn select_top(
        &self,
        shares: &Buffer<f32>,
        spans: &Spans,
        reads: usize,
        estimates: usize,
    ) -> Result<(Buffer<u32>, Buffer<u32>), Error> {
        assert_len(shares, spans.len, "shares");
        let (mut read, mut estimated) =
            (self.room(spans.units * reads)?, self.room(spans.units * estimates)?);
        if spans.units > 0 {
            let (reads, estimates) = (reads as u32, estimates as u32);
            launch!(
                self,
                "select_top",
                (spans.units, 1),
                BLOCK_THREADS,
                0,
                [shares, &spans.starts, &reads, &estimates, &mut read, &mut estimated]
            );
        }
        Ok((read, estimated))
    }

    /// Places within the unit of the gains above the first of three rising thresholds, each with how many of the others its gain is
    /// above, see [`place_and_level`]; and of each unit how many. The list of unit u begins where its gains begin.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If there is not one gain for each entry, there are more than [`PLACES_MAX`], or thresholds fall.
    pub fn select_above(
        &self,
        gains: &Buffer<f32>,
        spans: &Spans,
        thresholds: [f32; 3],
    ) -> Result<[Buffer<u32>; 2], Error> {
        assert_len(gains, spans.len, "gains");
        assert!(spans.len <= PLACES_MAX, "{} gains", spans.len);
        assert!(thresholds.is_sorted(), "thresholds {thresholds:?}");
        let (mut above, mut counts) = (self.room(spans.len)?, self.room(spans.units)?);
        let [first, second, third] = thresholds;
        if spans.units > 0 {
            launch!(
                self,
                "select_above",
                (spans.units, 1),
                BLOCK_THREADS,
                0,
                [gains, &spans.starts, &first, &second, &third, &mut above, &mut counts]
            );
        }
        Ok([above, counts])
    }
}
