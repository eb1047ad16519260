use longwave_kernels::{Rows, bf16, f16};

use crate::isas::every_isa;
use crate::sample::{bits, panics_with};

#[test]
fn every_binary16_widens_to_the_bits_that_half_gives() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let expected: Vec<u32> = all.iter().map(|x| x.to_f32().to_bits()).collect();
    for kernels in every_isa() {
        let mut out = vec![0.0; all.len()];
        kernels.widen(Rows::F16(&all), &mut out);
        assert_eq!(bits(&out), expected, "{}", kernels.isa());
    }
}

#[test]
fn every_bfloat16_widens_to_the_upper_half_of_its_bits() {
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    for kernels in every_isa() {
        let mut out = vec![0.0; all.len()];
        kernels.widen(Rows::Bf16(&all), &mut out);
        for (from, to) in all.iter().zip(&out) {
            assert_eq!(to.to_bits(), u32::from(from.to_bits()) << 16, "{}", kernels.isa());
            assert!(from.is_nan() || to.to_bits() == from.to_f32().to_bits());
        }
    }
}

/// For two neighbouring narrow numbers, with bits b and b + 1: the wide numbers at, just below and just above the
/// middle, and the narrow bits that each must round to.
fn around_the_tie(b: u16, low: f32, high: f32) -> [(f32, u16); 4] {
    let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
    let even = b + (b & 1);
    let (below, above) = (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
    [(low, b), (below, b), (middle, even), (above, b + 1)]
}

/// Both signs of each case.
fn signed(cases: Vec<(f32, u16)>) -> Vec<(f32, u16)> {
    cases.into_iter().flat_map(|(x, b)| [(x, b), (-x, b | 0x8000)]).collect()
}

#[test]
fn narrowing_to_binary16_rounds_every_tie_to_even() {
    let mut cases = Vec::new();
    for b in 0..0x7bff {
        let (low, high) = (f16::from_bits(b).to_f32(), f16::from_bits(b + 1).to_f32());
        cases.extend(around_the_tie(b, low, high));
    }
    // Beyond the largest, the tie is with what would be the next number, and infinity takes its place.
    cases.extend(around_the_tie(0x7bff, 65504.0, 65536.0));
    cases.extend([(f32::MAX, 0x7c00), (f32::INFINITY, 0x7c00), (1e-40, 0), (f32::MIN_POSITIVE, 0)]);
    let cases = signed(cases);
    let from: Vec<f32> = cases.iter().map(|case| case.0).collect();
    for kernels in every_isa() {
        let mut to = vec![f16::NAN; from.len()];
        kernels.narrow_f16(&from, &mut to);
        for ((x, expected), to) in cases.iter().zip(&to) {
            assert_eq!(to.to_bits(), *expected, "{} {x:e}", kernels.isa());
            assert_eq!(to.to_bits(), f16::from_f32(*x).to_bits(), "{} {x:e}", kernels.isa());
        }
    }
}

#[test]
fn narrowing_to_bfloat16_rounds_every_tie_to_even() {
    let mut cases = Vec::new();
    for b in 0..0x7f7f {
        cases.extend(around_the_tie(b, bf16::from_bits(b).to_f32(), bf16::from_bits(b + 1).to_f32()));
    }
    // The tie beyond the largest finite number, by its bits: what would be the next number is infinity's pattern.
    let largest = 0x7f7f_0000u32;
    cases.extend([
        (f32::from_bits(largest), 0x7f7f),
        (f32::from_bits(largest + 0x7fff), 0x7f7f),
        (f32::from_bits(largest + 0x8000), 0x7f80),
        (f32::MAX, 0x7f80),
        (f32::INFINITY, 0x7f80),
    ]);
    let cases = signed(cases);
    let from: Vec<f32> = cases.iter().map(|case| case.0).collect();
    for kernels in every_isa() {
        let mut to = vec![bf16::NAN; from.len()];
        kernels.narrow_bf16(&from, &mut to);
        for ((x, expected), to) in cases.iter().zip(&to) {
            assert_eq!(to.to_bits(), *expected, "{} {x:e}", kernels.isa());
            assert_eq!(to.to_bits(), bf16::from_f32(*x).to_bits(), "{} {x:e}", kernels.isa());
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so_with_its_sign() {
    // Payloads in the kept bits, in the dropped bits only, quiet and signalling.
    let from: Vec<f32> =
        [0x7fc0_0000u32, 0x7f80_0001, 0x7f80_2000, 0x7faa_aaaa, 0x7fff_ffff, 0xffc0_0000, 0xff80_0001]
            .map(f32::from_bits)
            .to_vec();
    for kernels in every_isa() {
        let mut halves = vec![f16::ZERO; from.len()];
        let mut brains = vec![bf16::ZERO; from.len()];
        kernels.narrow_f16(&from, &mut halves);
        kernels.narrow_bf16(&from, &mut brains);
        for ((from, half), brain) in from.iter().zip(&halves).zip(&brains) {
            assert_eq!(half.to_bits(), f16::from_f32(*from).to_bits(), "{}", kernels.isa());
            assert_eq!(brain.to_bits(), bf16::from_f32(*from).to_bits(), "{}", kernels.isa());
            assert!(half.is_nan() && brain.is_nan());
            assert_eq!(half.is_sign_negative(), from.is_sign_negative());
            assert_eq!(brain.is_sign_negative(), from.is_sign_negative());
        }
    }
}

#[test]
fn every_tail_length_converts_and_lengths_must_agree() {
    for kernels in every_isa() {
        for count in 0..=40 {
            let numbers: Vec<f32> = (0..count).map(|i| i as f32 * 0.5 - 3.0).collect();
            let mut halves = vec![f16::NAN; count];
            let mut brains = vec![bf16::NAN; count];
            kernels.narrow_f16(&numbers, &mut halves);
            kernels.narrow_bf16(&numbers, &mut brains);
            // These numbers are exact in every type.
            for rows in [Rows::F16(&halves), Rows::Bf16(&brains), Rows::F32(&numbers)] {
                let mut back = vec![f32::NAN; count];
                kernels.widen(rows, &mut back);
                assert_eq!(back, numbers, "{} {}", kernels.isa(), rows.dtype());
            }
        }
        assert!(panics_with("cannot convert 3 elements into 2", || {
            kernels.widen(Rows::F32(&[1.0; 3]), &mut [0.0; 2]);
        }));
    }
}
