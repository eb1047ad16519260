//! AVX-512: sixteen lanes for what reads rows, and the shells of it. All other kernels are those of AVX2.
//!
//! Safety rests on the same fact as there: an [`Avx512`] exists only where the processor has the extensions.

use std::arch::x86_64::{
    __m512, _mm256_loadu_si256, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps256,
    _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_set1_ps, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps, _mm512_zextps256_ps512,
};
use std::sync::OnceLock;

use half::{bf16, f16};

use crate::avx2::{self, Avx2};
use crate::block::{Ahead, Block};
use crate::isa::{Isa, Kernels};
use crate::lanes::Lanes;
use crate::shells::{lane_ops, shells};
use crate::wide::{self, Wide};

/// Proof that the processor has AVX-512 (its foundation), and what AVX2 kernels need.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    /// The proof, where the processor gives it.
    pub(crate) fn detect() -> Option<Avx512> {
        is_x86_feature_detected!("avx512f").then(Avx2::detect).flatten().map(Avx512)
    }
}

impl Wide for Avx512 {
    type W = __m512;
    type Eight = Avx2;

    fn eight(self) -> Avx2 {
        self.0
    }

    lane_ops! {
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn load(from: &[[f32; 8]; 2]) -> __m512 = _mm512_loadu_ps(from.as_ptr().cast());
        fn load_f16(from: &[[f16; 8]; 2]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
        fn load_bf16(from: &[[bf16; 8]; 2]) -> __m512 = {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        };
        fn store(x: __m512, to: &mut [[f32; 8]; 2]) = _mm512_storeu_ps(to.as_mut_ptr().cast(), x);
        fn above_zeros(x: <Avx2 as Lanes>::V) -> __m512 = _mm512_zextps256_ps512(x);
        fn lower(x: __m512) -> <Avx2 as Lanes>::V = _mm512_castps512_ps256(x);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
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
}

shells! {
    Avx512 = Avx512(Avx2::assume()), "avx512f,avx2,fma,f16c";
    fn score(queries: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, scores: &mut [f32])
        = wide::score_block;
    fn accumulate(weights: &[f32], heads: usize, block: &Block<'_>, ahead: Ahead<'_>, out: &mut [f32])
        = wide::accumulate_block;
}

/// The kernels, for who can prove that they may run.
pub(crate) fn kernels(isa: Avx512) -> &'static Kernels {
    static KERNELS: OnceLock<Kernels> = OnceLock::new();
    KERNELS.get_or_init(|| Kernels { isa: Isa::Avx512, lead: 1, score, accumulate, ..*avx2::kernels(isa.0) })
}
