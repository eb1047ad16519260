//! Probing: scores of centroids, their softmax, and which clusters and rows are chosen.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::launch::{Spans, assert_len, blocks_of, launch, typed};
use crate::shape::{BLOCK_THREADS, RowShape};
use cudarc::driver::PushKernelArg;

impl Device {
    /// Scores `[clusters of all units, group]` of centroids stored as rows: unit u's are the rows from `firsts[u]` on.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If a length or a centroid does not fit.
    pub fn score_rows(
        &self,
        shape: &RowShape,
        queries: &Buffer<f32>,
        centroids: &Buffer<u16>,
        firsts: &[u32],
        spans: &Spans,
        softcap: f32,
    ) -> Result<Buffer<f32>, Error> {
        assert!(firsts.len() == spans.units, "a first centroid for each unit");
        let ends = firsts.iter().zip(spans.host.windows(2)).map(|(first, span)| first + (span[1] - span[0]));
        let most = ends.max().unwrap_or(0) as usize;
        assert!(
            most <= centroids.len() / shape.dim(),
            "centroid {most} of {}",
            centroids.len() / shape.dim()
        );
        assert_len(queries, spans.units * shape.group() * shape.dim(), "queries");
        let mut scores = self.room(spans.len * shape.group())?;
        let firsts = self.upload(firsts)?;
        if spans.units > 0 {
            let (group, dim) = (shape.group() as i32, shape.dim() as i32);
            launch!(
                self,
                typed("score_rows", shape),
                (spans.units, blocks_of(spans)),
                BLOCK_THREADS,
                0,
                [queries, centroids, &firsts, &spans.starts, &group, &dim, &softcap, &mut scores]
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

    /// Places of the gains above `most`, those of the others above `least`, and of each unit how many: `[units, 2]`. The
    /// lists of unit u begin where its gains begin.
    ///
    /// # Errors
    /// As [`Device::room`].
    ///
    /// # Panics
    /// If there is not one gain for each entry.
    pub fn select_above(
        &self,
        gains: &Buffer<f32>,
        spans: &Spans,
        least: f32,
        most: f32,
    ) -> Result<[Buffer<u32>; 3], Error> {
        assert_len(gains, spans.len, "gains");
        let (mut above, mut between) = (self.room(spans.len)?, self.room(spans.len)?);
        let mut counts = self.room(2 * spans.units)?;
        if spans.units > 0 {
            launch!(
                self,
                "select_above",
                (spans.units, 1),
                BLOCK_THREADS,
                0,
                [gains, &spans.starts, &least, &most, &mut above, &mut between, &mut counts]
            );
        }
        Ok([above, between, counts])
    }
}
