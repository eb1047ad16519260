//! Maxima and weights of one block in one pass, for the few heads that share a KV head.
//!
//! In the fused path a block's scores wait for their weights and the values wait for them, so latency counts: the
//! running maxima and sums are kept lane by lane, as the scores lie, and only a rise of a maximum leaves the lanes.

use crate::exp::exp;
use crate::isa::Kernels;
use crate::lanes::Lanes;
use crate::state::Parts;

/// The most heads that are kept lane by lane.
pub(crate) const LANE_HEADS: usize = 8;

/// One number for each lane of up to [`LANE_HEADS`] heads: of vectors of N lanes, 8 or 16, `heads / gcd(heads, N)` hold a whole
/// number of rows, so that lane l of vector p, in place `N p + l`, always belongs to head `(N p + l) mod heads`. Places past these
/// vectors are filled like the others, and no kernel looks at them.
pub(crate) type PerLane = [f32; PLACES];
const PLACES: usize = 7 * 16;

/// The running maxima and sums of weights of all lanes.
pub(crate) struct LaneSums {
    max: PerLane,
    sum: PerLane,
}

impl LaneSums {
    pub(crate) fn new() -> LaneSums {
        LaneSums { max: [f32::NEG_INFINITY; PLACES], sum: [0.0; PLACES] }
    }

    /// Turns a block's scores into weights relative to the maxima, which first rise to them, and adds them to the
    /// sums. The maxima are those of `parts`; its sums lack what [`LaneSums::fold`] has not moved there.
    #[inline]
    pub(crate) fn weigh(&mut self, kernels: &Kernels, scores: &mut [f32], parts: &mut Parts<'_>) {
        let heads = parts.max.len();
        if (kernels.weigh)(scores, heads, &self.max, &mut self.sum) {
            return;
        }
        self.fold(parts);
        parts.rise(kernels, scores);
        for row in self.max.chunks_exact_mut(heads) {
            row.copy_from_slice(parts.max);
        }
        (kernels.weigh)(scores, heads, &self.max, &mut self.sum);
    }

    /// Moves the sums to those of `parts`.
    pub(crate) fn fold(&mut self, parts: &mut Parts<'_>) {
        for row in self.sum.chunks_exact(parts.sum.len()) {
            for (sum, &lane) in parts.sum.iter_mut().zip(row) {
                *sum += lane;
            }
        }
        self.sum = [0.0; PLACES];
    }
}

/// Unless a score is larger than its lane's maximum, turns all into weights and adds them to the lanes' sums.
#[inline(always)]
pub(crate) fn weigh<L: Lanes<N>, const N: usize>(
    isa: L,
    scores: &mut [f32],
    heads: usize,
    max: &PerLane,
    sum: &mut PerLane,
) -> bool {
    match heads {
        1 | 2 | 4 | 8 => weigh_lanes::<L, N, 1>(isa, scores, max, sum),
        3 | 6 => weigh_lanes::<L, N, 3>(isa, scores, max, sum),
        5 => weigh_lanes::<L, N, 5>(isa, scores, max, sum),
        _ => weigh_lanes::<L, N, 7>(isa, scores, max, sum),
    }
}

#[inline(always)]
fn weigh_lanes<L: Lanes<N>, const N: usize, const P: usize>(
    isa: L,
    scores: &mut [f32],
    max: &PerLane,
    sum: &mut PerLane,
) -> bool {
    let (max, _) = max.as_chunks::<N>();
    let (sum, _) = sum.as_chunks_mut::<N>();
    let mut largest = [isa.splat(f32::NEG_INFINITY); P];
    let whole = scores.len() / (P * N) * (P * N);
    let (periods, rest) = scores.split_at_mut(whole);
    let (vectors, _) = periods.as_chunks_mut::<N>();
    for period in vectors.chunks_exact(P) {
        for p in 0..P {
            largest[p] = isa.max(isa.load(&period[p]), largest[p]);
        }
    }
    for (p, rest) in rest.chunks(N).enumerate() {
        largest[p] = isa.max(isa.load_or(rest, f32::NEG_INFINITY), largest[p]);
    }
    let mut shifts = [isa.splat(0.0); P];
    for p in 0..P {
        let max = isa.load(&max[p]);
        if isa.any_less(max, largest[p]) {
            return false;
        }
        // A lane that has seen only masked rows has a maximum of minus infinity, and masked minus that is no number.
        shifts[p] = isa.where_less(max, isa.splat(f32::MIN), isa.splat(0.0), max);
    }
    let mut totals = [isa.splat(0.0); P];
    for period in vectors.chunks_exact_mut(P) {
        for p in 0..P {
            let weights = exp(isa, isa.sub(isa.load(&period[p]), shifts[p]));
            isa.store(weights, &mut period[p]);
            totals[p] = isa.add(totals[p], weights);
        }
    }
    for (p, rest) in rest.chunks_mut(N).enumerate() {
        let weights = exp(isa, isa.sub(isa.load_or(rest, f32::NEG_INFINITY), shifts[p]));
        isa.store_first(weights, rest);
        totals[p] = isa.add(totals[p], weights);
    }
    for p in 0..P {
        isa.store(isa.add(isa.load(&sum[p]), totals[p]), &mut sum[p]);
    }
    true
}
