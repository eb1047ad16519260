//! AVX2, FMA and F16C: eight lanes, and one thin shell per operation.
//!
//! Safety rests on one fact: an [`Avx2`] exists only where the processor has all three extensions. [`Avx2::detect`]
//! makes one after asking the processor, and the shells make one inside functions that the compiler knows to be
//! reached only with the extensions enabled.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_LT_OQ, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_add_ps,
    _mm_loadl_epi64, _mm_loadu_si128, _mm_packus_epi32, _mm_prefetch, _mm_storeu_ps, _mm_storeu_si128,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256, _mm256_andnot_ps,
    _mm256_blendv_ps, _mm256_broadcastsi128_si256, _mm256_castps_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cmpgt_epi32, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_div_ps,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_movemask_ps, _mm256_mul_ps, _mm256_or_ps, _mm256_or_si256, _mm256_permute2f128_ps,
    _mm256_permutevar_ps, _mm256_permutevar8x32_ps, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setr_epi32, _mm256_setr_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16,
    _mm256_slli_epi32, _mm256_sqrt_ps, _mm256_srli_epi16, _mm256_srli_epi32, _mm256_srlv_epi32,
    _mm256_storeu_ps, _mm256_sub_epi16, _mm256_sub_ps, _mm256_unpackhi_epi8, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi16,
};

use half::{bf16, f16};

use crate::block::{Ahead, Block};
use crate::codec::{
    HALF_LEVELS4, LEVEL_BYTES, LEVELS4, Laid, Lookup, NewSketches, Records, Records8, ScanOf, ScanPlanes,
    SketchQuery, Summaries, WideLevels,
};
use crate::isa::{Isa, Kernels};
use crate::ladder::{
    ClusterWeights, Estimated, GainOf, Limits, Probed, Rest, RestSums, Risen, RowSums, Spread, Uncertain,
};
use crate::lanes::{EightLanes, Lanes};
use crate::rows::Rows;
use crate::shells::{lane_ops, shells};
use crate::weigh::PerLane;
use crate::{accumulate, codec, convert, exp, ladder, lanes, score, weigh};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, where the processor gives it.
    pub(crate) fn detect() -> Option<Avx2> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Avx2(()))
    }

    /// The proof, for who has it already.
    ///
    /// # Safety
    /// The processor must have all three extensions.
    pub(crate) unsafe fn assume() -> Avx2 {
        Avx2(())
    }
}

/// All bits of the first `count` lanes, which are fewer than eight.
#[inline]
#[target_feature(enable = "avx2")]
fn first_lanes(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

impl Lanes for Avx2 {
    type V = __m256;

    lane_ops! {
        fn splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        fn load(from: &[f32; 8]) -> __m256 = _mm256_loadu_ps(from.as_ptr());
        fn load_f16(from: &[f16; 8]) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()));
        fn load_bf16(from: &[bf16; 8]) -> __m256 = {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        };
        fn store(x: __m256, to: &mut [f32; 8]) = _mm256_storeu_ps(to.as_mut_ptr(), x);
        fn add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        fn sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        fn mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        fn min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        fn sqrt(x: __m256) -> __m256 = _mm256_sqrt_ps(x);
        fn where_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 = {
            _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
        };
        fn any_less(a: __m256, b: __m256) -> bool = {
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) != 0
        };
        fn power_of_low_bits(x: __m256) -> __m256 = {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
        };
        fn sum_each(x: [__m256; 8]) -> __m256 = {
            // Adjacent pairs, then pairs of pairs, leave each vector's two half sums in the two halves.
            let first = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
            let second = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
            let low = _mm256_permute2f128_ps::<0x20>(first, second);
            let high = _mm256_permute2f128_ps::<0x31>(first, second);
            _mm256_add_ps(low, high)
        };
    }

    #[inline(always)]
    fn load_or(self, from: &[f32], other: f32) -> __m256 {
        match from.first_chunk() {
            Some(all) => self.load(all),
            // SAFETY: `self` proves that the processor has the instructions. Lanes that the mask leaves out are not read, and the
            // others are no more than there are numbers.
            None => unsafe {
                let mask = first_lanes(from.len());
                let first = _mm256_maskload_ps(from.as_ptr(), mask);
                _mm256_blendv_ps(_mm256_set1_ps(other), first, _mm256_castsi256_ps(mask))
            },
        }
    }

    #[inline(always)]
    fn store_first(self, x: __m256, to: &mut [f32]) {
        match to.first_chunk_mut() {
            Some(all) => self.store(x, all),
            // SAFETY: as in `load_or`, of what is written.
            None => unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), first_lanes(to.len()), x) },
        }
    }

    #[inline(always)]
    fn prefetch_address(self, address: *const u8) {
        // SAFETY: a prefetch of any address has no effect but on time, and SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

impl EightLanes for Avx2 {
    lane_ops! {
        fn load_i8(from: &[i8; 8]) -> __m256 = {
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast())))
        };
        fn load_levels4(codes: &[u8; 4]) -> __m256 = {
            // Every lane has its code in its low bits; the fourth of them chooses between the halves of the table.
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from_le_bytes(*codes)), shifts);
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(LEVELS4.as_ptr()), codes);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(LEVELS4.as_ptr().add(8)), codes);
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
        };
        fn load_half(high: &[u8; 2]) -> __m256 = {
            // A look-up among four takes the lowest two bits of each lane and no others.
            let shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from(u16::from_le_bytes(*high))), shifts);
            let [a, b, c, d] = HALF_LEVELS4;
            _mm256_permutevar_ps(_mm256_setr_ps(a, b, c, d, a, b, c, d), codes)
        };
        fn load_whole(high: &[u8; 2], low: &[u8; 2]) -> __m256 = {
            let shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
            let high = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from(u16::from_le_bytes(*high))), shifts);
            let low = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from(u16::from_le_bytes(*low))), shifts);
            let codes = _mm256_or_si256(_mm256_slli_epi32::<2>(high), _mm256_and_si256(low, _mm256_set1_epi32(3)));
            let lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(LEVELS4.as_ptr()), codes);
            let upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(LEVELS4.as_ptr().add(8)), codes);
            _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
        };
        fn store_f16(x: __m256, to: &mut [f16; 8]) = {
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x))
        };
        fn store_bf16(x: __m256, to: &mut [bf16; 8]) = {
            // Adding just under half a unit of the kept part, and the kept part's last bit, rounds ties to even.
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            // What is not a number must not round to infinity: it keeps its payload and becomes quiet.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let not_a_number = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
            let kept = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), not_a_number);
            let kept = _mm256_srli_epi32::<16>(_mm256_castps_si256(kept));
            let packed = _mm_packus_epi32(
                _mm256_castsi256_si128(kept),
                _mm256_extracti128_si256::<1>(kept),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), packed)
        };
        fn abs(x: __m256) -> __m256 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
        fn with_sign(magnitude: __m256, sign: __m256) -> __m256 = {
            _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_set1_ps(-0.0), sign))
        };
        fn sum_four(x: [__m256; 4]) -> [f32; 4] = {
            let halves = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
            let mut sums = [0.0; 4];
            let sum = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
            sums
        };
    }
}

impl Lookup for Avx2 {
    type B = __m256i;

    lane_ops! {
        fn zero_bytes() -> __m256i = _mm256_setzero_si256();
        fn load_bytes(from: &[u8; 32]) -> __m256i = _mm256_loadu_si256(from.as_ptr().cast());
        fn low_nibbles(x: __m256i) -> __m256i = _mm256_and_si256(x, _mm256_set1_epi8(15));
        fn high_nibbles(x: __m256i) -> __m256i = {
            _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15))
        };
        fn look_up(table: &[u8; 16], at: __m256i) -> __m256i = {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, at)
        };
        fn add_words(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(a, b);
        fn upper_bytes(x: __m256i) -> __m256i = _mm256_srli_epi16::<8>(x);
        fn column_sums(all: __m256i, upper: __m256i) -> [__m256; 4] = {
            // What the upper bytes have added to the words is their sum, 8 bits up.
            let even = _mm256_sub_epi16(all, _mm256_slli_epi16::<8>(upper));
            // Interleaving within halves leaves columns 0 to 7 and 16 to 23 in one, the others in the other.
            let (first, second) = (_mm256_unpacklo_epi16(even, upper), _mm256_unpackhi_epi16(even, upper));
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(first))),
                _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(second))),
                _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(first))),
                _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(second))),
            ]
        };
    }
}

impl WideLevels<8, 8> for Avx2 {
    lane_ops! {
        fn wide_levels4(codes: &[u8; 32]) -> [__m256; 8] = {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            let first = _mm256_and_si256(codes, _mm256_set1_epi8(15));
            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(15));
            let lower = _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVEL_BYTES[0].as_ptr().cast()));
            let upper = _mm256_broadcastsi128_si256(_mm_loadu_si128(LEVEL_BYTES[1].as_ptr().cast()));
            let (a, b) = (_mm256_shuffle_epi8(lower, first), _mm256_shuffle_epi8(upper, first));
            let (c, d) = (_mm256_shuffle_epi8(lower, second), _mm256_shuffle_epi8(upper, second));
            // Words with the levels of neighbouring bytes' codes; each is moved to the upper half of 32 bits.
            let words = [
                _mm256_unpacklo_epi8(a, b),
                _mm256_unpackhi_epi8(a, b),
                _mm256_unpacklo_epi8(c, d),
                _mm256_unpackhi_epi8(c, d),
            ];
            let odd = _mm256_set1_epi32(-65_536);
            [
                _mm256_cvtepi32_ps(_mm256_slli_epi32::<16>(words[0])),
                _mm256_cvtepi32_ps(_mm256_and_si256(words[0], odd)),
                _mm256_cvtepi32_ps(_mm256_slli_epi32::<16>(words[1])),
                _mm256_cvtepi32_ps(_mm256_and_si256(words[1], odd)),
                _mm256_cvtepi32_ps(_mm256_slli_epi32::<16>(words[2])),
                _mm256_cvtepi32_ps(_mm256_and_si256(words[2], odd)),
                _mm256_cvtepi32_ps(_mm256_slli_epi32::<16>(words[3])),
                _mm256_cvtepi32_ps(_mm256_and_si256(words[3], odd)),
            ]
        };
    }
}

shells! {
    Avx2 = Avx2(()), "avx2,fma,f16c";
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

/// The kernels, for who can prove that they may run.
pub(crate) fn kernels(_: Avx2) -> &'static Kernels {
    static KERNELS: Kernels = Kernels {
        isa: Isa::Avx2,
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
