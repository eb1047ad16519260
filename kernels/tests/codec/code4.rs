//! Rows in 4 bits.

use longwave_kernels::codec::{
    DISTORTION, LEVELS4, decode4, encode4, factor_code, factor_of_code, record_len,
};
use longwave_kernels::f16;

use super::{Random, dims, rows, squares};

/// Checks one row's record against the definition: every code the nearest level, the factor what was asked for.
fn check(z: &[f32], sigma: &[f32], least_squares: bool) {
    let dim = z.len();
    let mut record = vec![0xee; record_len(dim)];
    encode4(z, sigma, least_squares, &mut record);
    let code = |i: usize| usize::from(record[i / 2] >> (i % 2 * 4) & 15);
    let unit = |i: usize| f64::from(z[i]) / f64::from(sigma[i]);
    let rms = (squares((0..dim).map(unit)) / dim as f64).max(1e-18).sqrt();
    let (mut row, mut product, mut coded) = (0.0, 0.0, 0.0);
    for i in 0..dim {
        let x = unit(i) / rms;
        let off = |level: f32| (x - f64::from(level)).abs();
        let least = LEVELS4.iter().copied().map(off).fold(f64::INFINITY, f64::min);
        // Two levels are as good as each other half way between them, up to the rounding of x.
        assert!(off(LEVELS4[code(i)]) <= least + 1e-6 * (1.0 + x.abs()), "dim {dim}, element {i}: {x}");
        let level = f64::from(sigma[i]) * f64::from(LEVELS4[code(i)]);
        row += f64::from(z[i]).powi(2);
        product += f64::from(z[i]) * level;
        coded += level * level;
    }
    let expected = match (least_squares, product > 0.0) {
        (_, false) => 0.0,
        (true, true) => product / coded,
        (false, true) => (row / product).min(3.0 * rms),
    };
    let stored = f64::from(f16::from_le_bytes([record[dim / 2], record[dim / 2 + 1]]));
    let expected = expected.min(65504.0);
    // Half a unit in the last place, or half the smallest subnormal; and what the sums lose.
    let bound = expected * (2f64.powi(-11) + 1e-6) + 2f64.powi(-25);
    assert!((stored - expected).abs() <= bound, "dim {dim}: factor {stored}, expected {expected}");

    let mut decoded = vec![f32::NAN; dim];
    decode4(&record, sigma, &mut decoded);
    for (i, decoded) in decoded.iter().enumerate() {
        let exact = stored * f64::from(sigma[i]) * f64::from(LEVELS4[code(i)]);
        assert!((f64::from(*decoded) - exact).abs() <= exact.abs() * 2e-7 + 1e-44, "element {i}");
    }
}

#[test]
fn codes_and_factors_are_what_is_defined() {
    let mut random = Random(1);
    for dim in dims() {
        let sigma = random.scales(dim);
        for least_squares in [false, true] {
            check(&rows(&mut random, 1, &sigma), &sigma, least_squares);
            let mut one = vec![0.0; dim];
            one[dim - 3] = -7.5;
            check(&one, &sigma, least_squares);
        }
    }
}

#[test]
fn rows_at_the_limits_have_defined_codes() {
    let mut random = Random(2);
    let sigma = random.scales(40);
    for size in [0.0, -0.0, 1e-44, 1e-30, 3e-9, 1e4, 1e30] {
        let row: Vec<f32> = random.gaussians(40).into_iter().map(|x| x * size).collect();
        check(&row, &sigma, false);
        check(&row, &sigma, true);
    }
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = random.gaussians(40);
        row[17] = wrong;
        for least_squares in [false, true] {
            let mut record = vec![0xee; record_len(40)];
            encode4(&row, &sigma, least_squares, &mut record);
            assert_eq!(record[20..], [0, 0], "{wrong}: a row that is not finite has factor 0");
        }
    }
}

#[test]
fn four_bits_leave_what_lloyd_and_max_say() {
    let mut random = Random(3);
    for dim in [64, 128, 576] {
        let sigma = random.scales(dim);
        let (mut left, mut all) = (0.0, 0.0);
        for _ in 0..300 {
            let row = rows(&mut random, 1, &sigma);
            let mut record = vec![0; record_len(dim)];
            encode4(&row, &sigma, true, &mut record);
            let mut decoded = vec![0.0; dim];
            decode4(&record, &sigma, &mut decoded);
            let unit = |i: usize, x: f32| f64::from(x) / f64::from(sigma[i]);
            left += squares((0..dim).map(|i| unit(i, row[i]) - unit(i, decoded[i])));
            all += squares((0..dim).map(|i| unit(i, row[i])));
        }
        let ratio = left / all / f64::from(DISTORTION[4]);
        assert!((0.9..1.1).contains(&ratio), "dim {dim}: {ratio} of the distortion");
    }
}

#[test]
fn codes_lie_where_the_format_says() {
    let z = [-2.7326, 2.7326, -0.1284, 0.1284, -1.2562, 1.2562, -0.3881, 0.3881];
    let mut record = [0; 6];
    // In units of their root mean square, 1.5176, these are -1.80, 1.80, -0.08, 0.08, -0.83, 0.83, -0.25, 0.25.
    encode4(&z, &[1.0; 8], true, &mut record);
    assert_eq!(record[..4], [0xd2, 0x87, 0xb4, 0x87]);
    let factor = f16::from_le_bytes([record[4], record[5]]);
    assert_eq!(record[4..], factor.to_le_bytes());
    assert!((factor.to_f32() - 1.6024).abs() < 0.001, "{factor}");
}

#[test]
fn factor_codes_are_eighths_of_octaves() {
    assert_eq!(factor_of_code(0), 0.0);
    for code in 1..=255u8 {
        let exact = ((f64::from(code) - 128.0) / 8.0).exp2();
        assert!((f64::from(factor_of_code(code)) / exact - 1.0).abs() < 1.2e-7, "code {code}");
        assert_eq!(factor_code(factor_of_code(code)), code);
        // Within a sixteenth of an octave either way.
        assert_eq!(factor_code((exact * 1.04) as f32), code);
        assert_eq!(factor_code((exact / 1.04) as f32), code);
    }
    let ends = [(1e-30, 1), (f32::MAX, 255), (f32::INFINITY, 255), (0.0, 0), (-1.0, 0), (f32::NAN, 0)];
    for (factor, code) in ends {
        assert_eq!(factor_code(factor), code, "{factor}");
    }
}
