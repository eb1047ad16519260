//! Lanes of `f32`, eight or sixteen: what the kernels are written in, and the portable form of eight.

use half::{bf16, f16};

use crate::codec::{HALF_LEVELS4, LEVELS4};

/// `N` lanes of `f32` on one instruction set.
///
/// A value of the implementing type is the proof that the processor has that instruction set, so every method is
/// safe to call. All methods are inlined into the shell that enables the instruction set; for that to work, no kernel
/// may pass them through a closure, which would be compiled without it.
pub(crate) trait Lanes<const N: usize = 8>: Copy {
    /// The lanes.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; N]) -> Self::V;
    fn load_f16(self, from: &[f16; N]) -> Self::V;
    fn load_bf16(self, from: &[bf16; N]) -> Self::V;
    fn store(self, x: Self::V, to: &mut [f32; N]);
    /// As many numbers as there are lanes, or fewer, and `other` in the lanes behind them.
    fn load_or(self, from: &[f32], other: f32) -> Self::V;
    /// The first lanes, as many as there is room for.
    fn store_first(self, x: Self::V, to: &mut [f32]);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once or twice as the instruction set has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where they are equal or either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where they are equal or either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The square root; no number where `x` is negative.
    fn sqrt(self, x: Self::V) -> Self::V;
    /// `yes` where `a < b`, else `no`: also where either is not a number.
    fn where_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Whether `a < b` in any lane.
    fn any_less(self, a: Self::V, b: Self::V) -> bool;
    /// 2 to the power n, where the lowest nine bits of `x` are n, from -126 to 127.
    fn power_of_low_bits(self, x: Self::V) -> Self::V;
    /// The sum over the lanes of each of as many vectors, every one in the same order of additions.
    fn sum_each(self, x: [Self::V; N]) -> Self::V;

    /// Asks for the cache line at `address`, which may be any: it is a hint, and reads nothing.
    fn prefetch_address(self, address: *const u8);
}

/// What eight lanes have besides. Of codes, sixteen have the same in a trait of their own; the rest is done too seldom.
pub(crate) trait EightLanes: Lanes {
    fn load_i8(self, from: &[i8; 8]) -> Self::V;
    /// The levels of eight 4-bit codes, the first in the low half of the first byte.
    fn load_levels4(self, codes: &[u8; 4]) -> Self::V;
    /// The levels that eight codes of 2 bits stand for where they are the upper ones of four, the first in the lowest bits.
    fn load_half(self, high: &[u8; 2]) -> Self::V;
    /// The levels of eight 4-bit codes whose upper and lower two bits lie apart.
    fn load_whole(self, high: &[u8; 2], low: &[u8; 2]) -> Self::V;
    /// Rounds to nearest, ties to even.
    fn store_f16(self, x: Self::V, to: &mut [f16; 8]);
    /// Rounds to nearest, ties to even.
    fn store_bf16(self, x: Self::V, to: &mut [bf16; 8]);
    fn abs(self, x: Self::V) -> Self::V;
    /// `magnitude`, which is not negative, with the sign of `sign`.
    fn with_sign(self, magnitude: Self::V, sign: Self::V) -> Self::V;
    /// As [`Lanes::sum_each`], of four vectors.
    fn sum_four(self, x: [Self::V; 4]) -> [f32; 4];
}

/// Asks for the cache lines that `bytes` lie in.
#[inline(always)]
pub(crate) fn prefetch<L: Lanes<N>, const N: usize>(isa: L, bytes: &[u8]) {
    for byte in bytes.iter().step_by(64) {
        isa.prefetch_address(byte);
    }
    if let Some(last) = bytes.last() {
        isa.prefetch_address(last);
    }
}

/// The instruction set that every processor has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

macro_rules! by_lane {
    ($i:ident => $value:expr) => {{
        let mut lanes = [0.0f32; 8];
        for ($i, lane) in lanes.iter_mut().enumerate() {
            *lane = $value;
        }
        lanes
    }};
}

impl Lanes for Portable {
    type V = [f32; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> [f32; 8] {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; 8]) -> [f32; 8] {
        by_lane!(i => widen_f16(from[i].to_bits()))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; 8]) -> [f32; 8] {
        by_lane!(i => widen_bf16(from[i].to_bits()))
    }

    #[inline(always)]
    fn store(self, x: [f32; 8], to: &mut [f32; 8]) {
        *to = x;
    }

    #[inline(always)]
    fn load_or(self, from: &[f32], other: f32) -> [f32; 8] {
        by_lane!(i => from.get(i).copied().unwrap_or(other))
    }

    #[inline(always)]
    fn store_first(self, x: [f32; 8], to: &mut [f32]) {
        to.iter_mut().zip(x).for_each(|(to, x)| *to = x);
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        by_lane!(i => a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        by_lane!(i => a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        by_lane!(i => a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        by_lane!(i => a[i] / b[i])
    }

    /// Rounded twice: without the instruction, `f32::mul_add` would be a library call.
    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        by_lane!(i => a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        by_lane!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        by_lane!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sqrt(self, x: [f32; 8]) -> [f32; 8] {
        by_lane!(i => x[i].sqrt())
    }

    #[inline(always)]
    fn where_less(self, a: [f32; 8], b: [f32; 8], yes: [f32; 8], no: [f32; 8]) -> [f32; 8] {
        by_lane!(i => if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn any_less(self, a: [f32; 8], b: [f32; 8]) -> bool {
        let mut any = false;
        for i in 0..8 {
            any |= a[i] < b[i];
        }
        any
    }

    #[inline(always)]
    fn power_of_low_bits(self, x: [f32; 8]) -> [f32; 8] {
        by_lane!(i => f32::from_bits((x[i].to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    fn sum_each(self, x: [[f32; 8]; 8]) -> [f32; 8] {
        by_lane!(i => {
            let v = &x[i];
            ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
        })
    }

    #[inline(always)]
    fn prefetch_address(self, _: *const u8) {}
}

impl EightLanes for Portable {
    #[inline(always)]
    fn load_i8(self, from: &[i8; 8]) -> [f32; 8] {
        by_lane!(i => f32::from(from[i]))
    }

    #[inline(always)]
    fn load_levels4(self, codes: &[u8; 4]) -> [f32; 8] {
        by_lane!(i => LEVELS4[usize::from(codes[i / 2] >> (i % 2 * 4) & 15)])
    }

    #[inline(always)]
    fn load_half(self, high: &[u8; 2]) -> [f32; 8] {
        by_lane!(i => HALF_LEVELS4[usize::from(high[i / 4] >> (i % 4 * 2) & 3)])
    }

    #[inline(always)]
    fn load_whole(self, high: &[u8; 2], low: &[u8; 2]) -> [f32; 8] {
        by_lane!(i => {
            let shift = i % 4 * 2;
            LEVELS4[usize::from((high[i / 4] >> shift & 3) << 2 | low[i / 4] >> shift & 3)]
        })
    }

    #[inline(always)]
    fn store_f16(self, x: [f32; 8], to: &mut [f16; 8]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = f16::from_f32_const(x);
        }
    }

    #[inline(always)]
    fn store_bf16(self, x: [f32; 8], to: &mut [bf16; 8]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = bf16::from_f32_const(x);
        }
    }

    #[inline(always)]
    fn abs(self, x: [f32; 8]) -> [f32; 8] {
        by_lane!(i => x[i].abs())
    }

    #[inline(always)]
    fn with_sign(self, magnitude: [f32; 8], sign: [f32; 8]) -> [f32; 8] {
        by_lane!(i => magnitude[i].copysign(sign[i]))
    }

    #[inline(always)]
    fn sum_four(self, [a, b, c, d]: [[f32; 8]; 4]) -> [f32; 4] {
        let [a, b, c, d, ..] = self.sum_each([a, b, c, d, a, b, c, d]);
        [a, b, c, d]
    }
}

/// Widens a binary16: its exponent and fraction moved into place as a binary32 are too small by a factor of 2^112,
/// subnormals included, and multiplying is exact.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    // Infinity keeps its fraction of zero; a number that is not one keeps its payload and becomes quiet.
    let quiet = if magnitude > 0x0f80_0000 { 0x0040_0000 } else { 0 };
    let special = magnitude | 0x7f80_0000 | quiet;
    f32::from_bits(sign | if magnitude >= 0x0f80_0000 { special } else { finite })
}

/// Widens a bfloat16, which is the upper half of a binary32. Nothing becomes quiet.
#[inline(always)]
fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads and stores of every length, between numbers that must not be touched.
    fn check<L: Lanes<N>, const N: usize>(isa: L) {
        for len in 0..=N {
            let numbers: Vec<f32> = (0..len).map(|i| i as f32 + 0.5).collect();
            let mut lanes = [f32::NAN; N];
            isa.store(isa.load_or(&numbers, -3.0), &mut lanes);
            assert_eq!(lanes[..len], numbers);
            assert!(lanes[len..].iter().all(|&x| x == -3.0), "{len}: {lanes:?}");

            let mut room = vec![7.0; len + 2 * N];
            let mut all = [0.0; N];
            (0..N).for_each(|i| all[i] = -(i as f32));
            isa.store_first(isa.load(&all), &mut room[N..N + len]);
            assert_eq!(room[N..N + len], all[..len]);
            assert!(room[..N].iter().chain(&room[N + len..]).all(|&x| x == 7.0), "{len}: {room:?}");
        }
    }

    #[test]
    fn numbers_behind_the_last_are_neither_read_nor_written() {
        check(Portable);
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(isa) = crate::avx2::Avx2::detect() {
                check(isa);
            }
            if let Some(isa) = crate::avx512::Avx512::detect() {
                check(isa);
            }
        }
    }
}
