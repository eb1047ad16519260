//! The levels that codes stand for, and the logarithmic code of a factor.

/// Levels of a one-bit code.
pub const LEVELS1: [f32; 2] = [-0.7979, 0.7979];

/// Levels of a two-bit code.
pub const LEVELS2: [f32; 4] = [-1.510, -0.4528, 0.4528, 1.510];

/// Levels of a four-bit code.
pub const LEVELS4: [f32; 16] = [
    -2.7326, -2.0690, -1.6181, -1.2562, -0.9424, -0.6568, -0.3881, -0.1284, 0.1284, 0.3881, 0.6568, 0.9424,
    1.2562, 1.6181, 2.0690, 2.7326,
];

/// What the upper two bits of a four-bit code stand for: the mean of a Gaussian of unit variance over the codes that have
/// them.
pub const HALF_LEVELS4: [f32; 4] = [-1.605_228_7, -0.496_791_86, 0.496_791_86, 1.605_228_7];

/// Mean squared error that so many bits leave of a Gaussian of unit variance; not a number for bits that no code has.
pub const DISTORTION: [f32; 5] = [1.0, 0.3634, 0.1175, f32::NAN, 0.0095];

/// What lies half way between neighbouring levels.
const fn midpoints<const L: usize, const M: usize>(levels: [f32; L]) -> [f32; M] {
    let mut between = [0.0; M];
    let mut i = 0;
    while i < M {
        between[i] = (levels[i] + levels[i + 1]) / 2.0;
        i += 1;
    }
    between
}

const MIDPOINTS1: [f32; 1] = midpoints(LEVELS1);
const MIDPOINTS2: [f32; 3] = midpoints(LEVELS2);
const MIDPOINTS4: [f32; 15] = midpoints(LEVELS4);

/// Codes of the levels nearest to each number; the lower of two that are equally near, and 0 for what is not a number.
#[inline(always)]
pub(super) fn nearest(bits: u8, numbers: &[f32; 8]) -> [u8; 8] {
    match bits {
        1 => count_below(&MIDPOINTS1, numbers),
        2 => count_below(&MIDPOINTS2, numbers),
        _ => count_below(&MIDPOINTS4, numbers),
    }
}

/// How many of the `midpoints` lie below each number. Without a branch, so that the compiler vectorises it.
#[inline(always)]
fn count_below<const M: usize>(midpoints: &[f32; M], numbers: &[f32; 8]) -> [u8; 8] {
    let mut counts = [0i32; 8];
    for midpoint in midpoints {
        for (count, x) in counts.iter_mut().zip(numbers) {
            *count += i32::from(x > midpoint);
        }
    }
    counts.map(|count| count as u8)
}

/// The level of a code of `bits` bits.
#[inline(always)]
pub(super) fn level(bits: u8, code: u8) -> f32 {
    match bits {
        1 => LEVELS1[usize::from(code & 1)],
        2 => LEVELS2[usize::from(code & 3)],
        _ => LEVELS4[usize::from(code & 15)],
    }
}

/// Nearest logarithmic code of a factor, eight steps to the octave: code c above 0 stands for `2^((c - 128) / 8)`, code
/// 0 for a factor of 0. Factors outside 2^-15.875 to 2^15.875 take the code at that end; what is 0, negative or not a
/// number takes 0.
pub fn factor_code(factor: f32) -> u8 {
    if factor > 0.0 { (128.0 + (f64::from(factor).log2() * 8.0).round()).clamp(1.0, 255.0) as u8 } else { 0 }
}

/// The factor that a logarithmic code stands for.
#[inline]
pub fn factor_of_code(code: u8) -> f32 {
    FACTORS[usize::from(code)]
}

const FACTORS: [f32; 256] = factors();

/// An eighth of an octave at a time within one octave, times a power of two, which is exact.
const fn factors() -> [f32; 256] {
    const EIGHTHS: [f32; 8] = [
        1.0,
        1.090_507_7,
        1.189_207_1,
        1.296_839_6,
        std::f32::consts::SQRT_2,
        1.542_210_8,
        1.681_792_8,
        1.834_008_1,
    ];
    let mut factors = [0.0; 256];
    let mut code = 1;
    while code < 256 {
        // Octave -16 is that of codes 0 to 7.
        let octave = f32::from_bits(((127 - 16 + code / 8) << 23) as u32);
        factors[code] = EIGHTHS[code % 8] * octave;
        code += 1;
    }
    factors
}
