//! AVX-512: sixteen lanes, and the shells of what is faster with them. What is not here is AVX2's: scores of centroids and of sketches,
//! which took longer or as long, and what builds and converts, of which little time is spent.
//!
//! Safety rests on the same fact as there: an [`Avx512`] exists only where the processor has the extensions.

use std::arch::x86_64::{
    __m256, __m512, _CMP_LT_OQ, _mm256_castps_pd, _mm256_castsi256_si128, _mm256_extracti128_si256,
    _mm256_loadu_si256, _mm256_permutevar8x32_epi32, _mm256_setr_epi8, _mm256_setr_epi32,
    _mm256_shuffle_epi8, _mm512_add_epi32, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_castps_si512, _mm512_castps256_ps512, _mm512_castps512_ps256, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_div_ps,
    _mm512_fmadd_ps, _mm512_insertf64x4, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_mask_loadu_ps,
    _mm512_mask_set1_epi32, _mm512_mask_storeu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_permutevar_ps, _mm512_permutexvar_ps, _mm512_rorv_epi32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setr4_ps, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_sqrt_ps,
    _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_sub_epi32, _mm512_sub_ps,
    _mm512_ternarylogic_epi32, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps, _mm512_zextps256_ps512,
};
use std::sync::OnceLock;

use half::{bf16, f16};

use crate::accumulate::SumRows;
use crate::avx2::{self, Avx2};
use crate::block::{Ahead, Block, BlockRows};
use crate::codec::{
    self, HALF_LEVELS4, LEVELS4, Laid, Records, ScanOf, ScanPlanes, Scanning, SketchQuery, Summaries,
    WIDE_LEVELS, WideCodes, WideLevels,
};
use crate::isa::{Isa, Kernels};
use crate::ladder::{
    ClusterWeights, Estimated, GainOf, Limits, Probed, Rest, RestSums, Risen, RowSums, Spread, Uncertain,
};
use crate::lanes::Lanes;
use crate::rows::Element;
use crate::score::ScoreRows;
use crate::shells::{lane_ops, shells};
use crate::weigh::PerLane;
use crate::wide::{self, Wide};
use crate::{accumulate, exp, ladder, score, weigh};

/// Proof that the processor has AVX-512 (its foundation), and what AVX2 kernels need.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    /// The proof, where the processor gives it.
    pub(crate) fn detect() -> Option<Avx512> {
        is_x86_feature_detected!("avx512f").then(Avx2::detect).flatten().map(Avx512)
    }
}

/// A bit for each of the first `count` lanes, which are fewer than sixteen.
#[inline(always)]
fn first_lanes(count: usize) -> u16 {
    (1 << count) - 1
}

impl Lanes<16> for Avx512 {
    type V = __m512;

    lane_ops! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn load(from: &[f32; 16]) -> __m512 = _mm512_loadu_ps(from.as_ptr());
        fn load_f16(from: &[f16; 16]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
        fn load_bf16(from: &[bf16; 16]) -> __m512 = {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        };
        fn store(x: __m512, to: &mut [f32; 16]) = _mm512_storeu_ps(to.as_mut_ptr(), x);

        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn sqrt(x: __m512) -> __m512 = _mm512_sqrt_ps(x);
        fn where_less(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 = {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes)
        };
        fn any_less(a: __m512, b: __m512) -> bool = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) != 0;
        fn power_of_low_bits(x: __m512) -> __m512 = {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000)))
        };
        fn sum_each(x: [__m512; 16]) -> __m512 = {
            // Two vectors, then four, share one that has their sums in each of its quarters; the quarters of four are then added up.
            macro_rules! four {
                ($i:literal) => {{
                    let (a, b, c, d) = (x[$i], x[$i + 1], x[$i + 2], x[$i + 3]);
                    let a = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                    let c = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                    let (a, c) = (_mm512_castps_pd(a), _mm512_castps_pd(c));
                    let (low, high) = (_mm512_unpacklo_pd(a, c), _mm512_unpackhi_pd(a, c));
                    _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
                }};
            }
            macro_rules! quarters {
                ($a:expr, $b:expr) => {{
                    let (a, b) = ($a, $b);
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
                }};
            }
            quarters!(quarters!(four!(0), four!(4)), quarters!(four!(8), four!(12)))
        };
    }

    #[inline(always)]
    fn load_or(self, from: &[f32], other: f32) -> __m512 {
        match from.first_chunk() {
            Some(all) => self.load(all),
            // SAFETY: `self` proves that the processor has the instructions. Lanes that the mask leaves out are not read, and the
            // others are no more than there are numbers.
            None => unsafe {
                _mm512_mask_loadu_ps(_mm512_set1_ps(other), first_lanes(from.len()), from.as_ptr())
            },
        }
    }

    #[inline(always)]
    fn store_first(self, x: __m512, to: &mut [f32]) {
        match to.first_chunk_mut() {
            Some(all) => self.store(x, all),
            // SAFETY: as in `load_or`, of what is written.
            None => unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), x) },
        }
    }

    #[inline(always)]
    fn prefetch_address(self, address: *const u8) {
        self.0.prefetch_address(address);
    }
}

impl Scanning<16> for Avx512 {
    type Eight = Avx2;

    #[inline(always)]
    fn eight(self) -> Avx2 {
        self.0
    }

    lane_ops! {
        fn part(of: &[__m256; 4], part: usize) -> __m512 = {
            let low = _mm512_castps_pd(_mm512_castps256_ps512(of[2 * part]));
            _mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(of[2 * part + 1])))
        };
    }

    #[inline(always)]
    fn store_rows(self, x: __m512, rows: usize, to: &mut [f32]) {
        // Up to the next multiple of eight rows, and no further.
        if rows > 8 {
            self.store_first(x, to);
        } else {
            self.0.store_first(self.lower(x), to);
        }
    }
}

impl WideCodes for Avx512 {
    lane_ops! {
        fn load_levels4(codes: &[u8; 8]) -> __m512 = {
            // A look-up among sixteen takes the lowest four bits of each lane and no others.
            let [a, b, c, d, e, f, g, h] = *codes;
            let low = _mm512_set1_epi32(i32::from_le_bytes([a, b, c, d]));
            let codes = _mm512_mask_set1_epi32(low, 0xff00, i32::from_le_bytes([e, f, g, h]));
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, shifts), _mm512_loadu_ps(LEVELS4.as_ptr()))
        };
        fn load_half(high: &[u8; 4]) -> __m512 = {
            // A look-up among four takes the lowest two bits of each lane and no others.
            let shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let codes = _mm512_srlv_epi32(_mm512_set1_epi32(i32::from_le_bytes(*high)), shifts);
            let [a, b, c, d] = HALF_LEVELS4;
            _mm512_permutevar_ps(_mm512_setr4_ps(a, b, c, d), codes)
        };
        fn load_whole(high: &[u8; 4], low: &[u8; 4]) -> __m512 = {
            // The upper bits come to where they belong by turning, and the lower ones into the two places below.
            let shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let low = _mm512_srlv_epi32(_mm512_set1_epi32(i32::from_le_bytes(*low)), shifts);
            let turns = _mm512_sub_epi32(shifts, _mm512_set1_epi32(2));
            let high = _mm512_rorv_epi32(_mm512_set1_epi32(i32::from_le_bytes(*high)), turns);
            let codes = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(3), low, high);
            _mm512_permutexvar_ps(codes, _mm512_loadu_ps(LEVELS4.as_ptr()))
        };
    }
}

impl WideLevels<16, 4> for Avx512 {
    lane_ops! {
        fn wide_levels4(codes: &[u8; 32]) -> [__m512; 4] = {
            // Of each half of the bytes, those of even number and those of odd in fours; then what goes into one vector together.
            let fours = _mm256_setr_epi8(
                0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, //
                0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,
            );
            let codes = _mm256_shuffle_epi8(_mm256_loadu_si256(codes.as_ptr().cast()), fours);
            let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(codes));
            let second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256::<1>(codes));
            let levels = _mm512_loadu_ps(WIDE_LEVELS.as_ptr());
            [
                _mm512_permutexvar_ps(first, levels),
                _mm512_permutexvar_ps(second, levels),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(first), levels),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(second), levels),
            ]
        };
    }
}

impl ScoreRows for Avx512 {
    #[inline(always)]
    fn score_group<'a, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
        self,
        queries: &[f32],
        of: (usize, usize),
        rows: R,
        ahead: Ahead<'_>,
        scores: &mut [f32],
    ) {
        wide::score_group::<_, T, R, H>(self, queries, of, rows, ahead, scores);
    }
}

impl SumRows for Avx512 {
    #[inline(always)]
    fn sum_group<'a, T: Element + 'a, R: BlockRows<'a, T>, const H: usize>(
        self,
        weights: &[[f32; H]],
        rows: R,
        ahead: Ahead<'_>,
        out: &mut [f32],
    ) {
        wide::sum_group(self, weights, rows, ahead, out);
    }
}

impl Wide for Avx512 {
    lane_ops! {
        fn above_zeros(x: <Avx2 as Lanes>::V) -> __m512 = _mm512_zextps256_ps512(x);
        fn lower(x: __m512) -> <Avx2 as Lanes>::V = _mm512_castps512_ps256(x);
    }
}

shells! {
    Avx512 = Avx512(Avx2::assume()), "avx512f,avx2,fma,f16c";
    fn score(queries: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, scores: &mut [f32])
        = score::score_block;
    fn accumulate(weights: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, out: &mut [f32])
        = accumulate::accumulate_block;
    fn max_per_head(scores: &[f32], heads: usize, max: &mut [f32]) = exp::max_per_head;
    fn exp_weights(scores: &mut [f32], heads: usize, shift: &[f32], sums: &mut [f32]) = exp::exp_weights;
    fn weigh(scores: &mut [f32], heads: usize, max: &PerLane, sum: &mut PerLane) -> bool = weigh::weigh;
    fn scores4(queries: &[f32], heads: usize, records: Records<'_>, scores: &mut [f32]) = codec::scores4;
    fn accumulate4(weights: &[f32], heads: usize, records: Records<'_>, out: &mut [f32])
        = codec::accumulate4;
    fn sum_summaries(weights: &[f32], stride: usize, records: Summaries<'_>, sums: &mut Laid)
        = codec::sum_summaries;
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
pub(crate) fn kernels(isa: Avx512) -> &'static Kernels {
    static KERNELS: OnceLock<Kernels> = OnceLock::new();
    KERNELS.get_or_init(|| Kernels {
        isa: Isa::Avx512,
        lead: 1,
        score,
        accumulate,
        max_per_head,
        exp_weights,
        weigh,
        scores4,
        accumulate4,
        sum_summaries,
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
        ..*avx2::kernels(isa.0)
    })
}
