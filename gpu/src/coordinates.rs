//! The queries of a call in the bases of the segments that it reads.

use crate::device::{Buffer, Device};
use crate::error::Error;
use crate::resident::Resident;
use longwave_index::ladder::HeadLadder;
use longwave_kernels::{Kernels, Rows};
use longwave_query::constants::Z_CLUSTER;
use longwave_query::{LayerSegment, LayerView, QueryBatch};

/// What the kernels multiply with, one entry a strip; see [`crate::Strips`].
pub(crate) struct Coordinates {
    /// `[strips, group, dim]`, times the scales of centroids, sketches and key codes.
    pub(crate) centroid: Buffer<f32>,
    pub(crate) sketch: Buffer<f32>,
    pub(crate) key: Buffer<f32>,
    /// `[strips, group]`: scores of the mean of all centroids, variances in clusters of spread 1, deviations that sketches leave.
    pub(crate) middle: Buffer<f32>,
    pub(crate) variance: Buffer<f32>,
    pub(crate) noise: Buffer<f32>,
    /// The largest standard deviation of scores inside a cluster, `[strips, group]`.
    pub(crate) deviations: Vec<f32>,
    /// Scaled queries `[units, group, dim]`, and coordinates of keys and of sketches as above, for the CPU's share.
    pub(crate) queries: Vec<f32>,
    pub(crate) host_key: Vec<f32>,
    pub(crate) host_sketch: Vec<f32>,
}

#[derive(Default)]
struct Numbers {
    centroid: Vec<f32>,
    sketch: Vec<f32>,
    key: Vec<f32>,
    middle: Vec<f32>,
    variance: Vec<f32>,
    noise: Vec<f32>,
    deviations: Vec<f32>,
}

impl Coordinates {
    pub(crate) fn new(
        device: &Device,
        view: &LayerView<'_>,
        batch: &QueryBatch<'_>,
        (segments, resident): (&[&LayerSegment], &Resident),
    ) -> Result<Self, Error> {
        let (group, dim) = (view.shape.group(), view.shape.key_dim);
        let queries: Vec<f32> = batch.data.iter().map(|q| q * view.scoring.scale).collect();
        let rows = |error: longwave_storage::Error| Error::Rows(error.to_string());
        let mut numbers = Numbers::default();
        for (unit, mine) in queries.chunks_exact(group * dim).enumerate() {
            let kv_head = unit % view.shape.kv_heads;
            for (number, segment) in segments.iter().enumerate() {
                let ladder = segment.ladder().map_err(rows)?;
                let ladder = ladder.ok_or_else(|| Error::Rows("a segment without a ladder".into()))?;
                let head = ladder.head(kv_head).map_err(rows)?;
                numbers.add(&head, mine, group, resident.key_spread_max(number, kv_head));
            }
        }
        // A soft-cap leaves no deviation that reaches from one end to the other.
        let most = view.scoring.softcap.map_or(f32::INFINITY, |cap| 2.0 * cap / Z_CLUSTER);
        numbers.deviations.iter_mut().for_each(|deviation| *deviation = deviation.min(most));
        Ok(Coordinates {
            centroid: device.upload(&numbers.centroid)?,
            sketch: device.upload(&numbers.sketch)?,
            key: device.upload(&numbers.key)?,
            middle: device.upload(&numbers.middle)?,
            variance: device.upload(&numbers.variance)?,
            noise: device.upload(&numbers.noise)?,
            deviations: numbers.deviations,
            queries,
            host_key: numbers.key,
            host_sketch: numbers.sketch,
        })
    }
}

impl Numbers {
    fn add(&mut self, ladder: &HeadLadder<'_>, queries: &[f32], group: usize, key_spread_max: f32) {
        let (kernels, dim) = (Kernels::get(), queries.len() / group);
        let mut products = vec![0.0; dim * group];
        kernels.scores_i8(queries, group, dim, ladder.inverse, &mut products);
        let mut middle = vec![0.0; group];
        kernels.scores(queries, group, dim, Rows::F32(ladder.middle), &mut middle);
        self.middle.extend(middle);
        for head in 0..group {
            let mine = products[head..].iter().step_by(group).zip(ladder.inverse_scale);
            let coordinates: Vec<f32> = mine.map(|(product, scale)| product * scale).collect();
            let times = |to: &mut Vec<f32>, sigma: &[f32]| {
                to.extend(coordinates.iter().zip(sigma).map(|(x, sigma)| x * sigma));
            };
            times(&mut self.centroid, ladder.centroid_sigma);
            times(&mut self.sketch, ladder.sketch_sigma);
            times(&mut self.key, ladder.key_sigma);
            let variance: f32 = coordinates.iter().zip(ladder.shape).map(|(x, shape)| x * x * shape).sum();
            self.variance.push(variance);
            self.deviations.push((variance * key_spread_max).sqrt());
            let norm2: f32 = coordinates.iter().map(|x| x * x).sum();
            self.noise.push(norm2.sqrt() * ladder.sketch_noise);
        }
    }
}
