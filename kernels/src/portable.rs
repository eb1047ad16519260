//! The kernels for every processor: the portable body as the compiler makes it.

use half::{bf16, f16};

use crate::block::{Ahead, Block};
use crate::codec::{Laid, NewSketches, Records, Records8, ScanOf, ScanPlanes, SketchQuery, Summaries};
use crate::isa::{Isa, Kernels};
use crate::ladder::{
    ClusterWeights, Estimated, GainOf, Limits, Probed, Rest, RestSums, Risen, RowSums, Spread, Uncertain,
};
use crate::lanes::Portable;
use crate::rows::Rows;
use crate::weigh::PerLane;
use crate::{accumulate, codec, convert, exp, ladder, lanes, score, weigh};

macro_rules! shells {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:path;)*) => {$(
        fn $name($($arg: $type),*) $(-> $out)? {
            $body(Portable, $($arg),*)
        }
    )*};
}

shells! {
    fn prefetch(bytes: &[u8]) = lanes::prefetch;
    fn score(queries: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, scores: &mut [f32])
        = score::score_block;
    fn accumulate(weights: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, out: &mut [f32])
        = accumulate::accumulate_block;
    fn max_per_head(scores: &[f32], heads: usize, max: &mut [f32]) = exp::max_per_head;
    fn exp_weights(scores: &mut [f32], heads: usize, shift: &[f32], sums: &mut [f32]) = exp::exp_weights;
    fn weigh(scores: &mut [f32], heads: usize, max: &PerLane, sum: &mut PerLane) -> bool = weigh::weigh;
    fn softcap(scores: &mut [f32], cap: f32) = exp::softcap;
    fn widen(rows: Rows<'_>, out: &mut [f32]) = convert::widen;
    fn narrow_f16(from: &[f32], to: &mut [f16]) = convert::narrow_f16;
    fn narrow_bf16(from: &[f32], to: &mut [bf16]) = convert::narrow_bf16;
    fn scores4(queries: &[f32], heads: usize, records: Records<'_>, scores: &mut [f32]) = codec::scores4;
    fn squared_norms4(sigma: &[f32], add: &[f32], records: Records<'_>, norms: &mut [f32])
        = codec::squared_norms4;
    fn accumulate4(weights: &[f32], heads: usize, records: Records<'_>, out: &mut [f32]) = codec::accumulate4;
    fn encode_planes(rows: &[f32], sigma: &[f32], records: &mut [u8]) = codec::encode_planes_rows;
    fn encode_sketch(new: NewSketches<'_>, record: &mut [u8], decoded: &mut [f32], factors: &mut [f32])
        = codec::encode_cluster;
    fn decode8(rows: Records8<'_>, out: &mut [f32]) = codec::decode8;
    fn scores_sketch(query: &SketchQuery, record: &[u8], stride: usize, scores: &mut [f32], factors: &mut [f32])
        = codec::scores_sketch;
    fn scores_summaries(query: &Laid, records: Summaries<'_>, add: &[f32], stride: usize, scores: &mut [f32])
        = codec::scores_summaries;
    fn sum_summaries(weights: &[f32], stride: usize, records: Summaries<'_>, sums: &mut Laid)
        = codec::sum_summaries;
    fn scores_i8(queries: &[f32], heads: usize, rows: &[i8], scores: &mut [f32]) = score::scores_i8;
    fn sum_masses(spread: &Spread<'_>, limits: &Limits) -> f32 = ladder::sum_masses;
    fn weigh_clusters(spread: &Spread<'_>, limits: &Limits, weights: &mut ClusterWeights<'_>)
        = ladder::weigh_clusters;
    fn sum_rest(spread: &Spread<'_>, limits: &Limits, rest: &Rest<'_>) -> RestSums = ladder::sum_rest;
    fn raise_most(spread: &Spread<'_>, limits: &Limits, base: f32, most: &mut [f32]) = ladder::raise_most;
    fn probe_gains(probed: &Probed<'_>, limits: &Limits, gains: &mut [f32]) = ladder::probe_gains;
    fn cluster_noise(clusters: &Estimated<'_>) -> f32 = ladder::cluster_noise;
    fn scan_sketch(
        query: &SketchQuery,
        record: &[u8],
        rows: usize,
        of: &ScanOf<'_>,
        planes: &mut ScanPlanes<'_>,
        sums: &mut [RowSums],
    ) = codec::scan_sketch;
    fn weigh_rows(scores: &mut [f32], deviations: &[f32], top: f32, most: f32) -> RowSums = ladder::weigh_rows;
    fn sum_rows(weights: &[f32], deviations: &[f32], len: usize, stride: usize, sums: &mut [RowSums])
        = ladder::sum_rows;
    fn row_gains(rows: Uncertain<'_>, kind: GainOf, gains: &mut [f32]) = ladder::row_gains;
    fn sum_rises(rows: &Risen<'_>) -> [f32; 2] = ladder::sum_rises;
}

pub(crate) fn kernels() -> &'static Kernels {
    static KERNELS: Kernels = Kernels {
        isa: Isa::Portable,
        lead: 0,
        prefetch,
        score,
        accumulate,
        max_per_head,
        exp_weights,
        weigh,
        softcap,
        widen,
        narrow_f16,
        narrow_bf16,
        scores4,
        squared_norms4,
        accumulate4,
        encode_planes,
        encode_sketch,
        decode8,
        scores_sketch,
        scores_summaries,
        sum_summaries,
        scores_i8,
        sum_masses,
        weigh_clusters,
        sum_rest,
        raise_most,
        probe_gains,
        cluster_noise,
        scan_sketch,
        weigh_rows,
        sum_rows,
        row_gains,
        sum_rises,
    };
    &KERNELS
}
