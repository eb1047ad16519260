//! What is written comes back, and nothing else is taken for it.

use super::super::calibration::{Audit, Band, BandErrors};
use super::*;
use half::f16;
use proptest::prelude::*;

fn sample() -> (Calibration, Steering) {
    let mut calibration = Calibration::new(3);
    for (at, band) in Band::all().enumerate().skip(4) {
        for audit in 0..at {
            let heads = (0..3).filter(|h| h % 2 == audit % 2).map(|h| (h, 0.01, 0.01 * (audit + h) as f32));
            let errors = BandErrors { band, bytes_share: 0.05, heads: heads.collect() };
            calibration.record(&errors, if audit < 3 { Audit::Replayed } else { Audit::Asked });
            calibration.follow(&errors);
        }
    }
    let mut steering = Steering::default();
    steering.learn_from(0.03, 0.05, &[0.001, 0.004]);
    steering.learn_from(0.01, 0.002, &[0.03]);
    steering.learn_from(0.01, 0.004, &[0.03]);
    (calibration, steering)
}

fn encoded() -> Vec<u8> {
    let (calibration, steering) = sample();
    let fresh = (Calibration::new(3), Steering::default());
    let layers = [Some((&fresh.0, &fresh.1)), None, Some((&calibration, &steering))];
    encode(&layers, 3).unwrap().bytes
}

#[test]
fn state_comes_back_as_it_was() {
    let decoded = decode(&encoded(), VERSION, 3, 3).unwrap();
    let (calibration, steering) = sample();
    assert_eq!(decoded, [(2, calibration, steering)]);
    let fresh = (Calibration::new(3), Steering::default());
    assert!(encode(&[None, Some((&fresh.0, &fresh.1))], 3).is_none());
}

#[test]
fn other_models_cut_bytes_and_more_bytes_are_faults() {
    let bytes = encoded();
    assert_eq!(decode(&bytes, VERSION, 3, 4).unwrap_err().offset, 8);
    assert_eq!(decode(&bytes, VERSION, 2, 3).unwrap_err().expected, "a layer from 0 to below 2");
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len], VERSION, 3, 3).is_err(), "{len}");
    }
    let more = [bytes.as_slice(), &[0]].concat();
    assert_eq!(decode(&more, VERSION, 3, 3).unwrap_err().offset, bytes.len());
}

/// What version 1 wrote of one head in the second band, and of a share.
fn version_1() -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [BANDS as u32, WINDOW as u32, 1, 1, 2, 1] {
        bytes.extend(field.to_le_bytes());
    }
    [0.05f64, 0.0016, -0.25].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
    bytes.extend([0, 0]);
    bytes.extend(2u16.to_le_bytes());
    bytes.extend((-4.5f32).to_le_bytes());
    [0.5f32, 1.5].iter().for_each(|&ratio| bytes.extend(f16::from_f32(ratio).to_le_bytes()));
    bytes.resize(bytes.len() + (BANDS - 2) * 2, 0);
    bytes
}

#[test]
fn version_1_is_read() {
    let decoded = decode(&version_1(), 1, 3, 1).unwrap();
    let [(2, calibration, steering)] = &decoded[..] else { panic!("{decoded:?}") };
    let second = Band::all().nth(1).unwrap();
    assert_eq!((calibration.audits(second, 0), calibration.audits_of_calls(second)), (2, 2));
    assert_eq!(calibration.correction, 0.0);
    assert!(steering.is_steered(0.05) && steering.tau(0.05) == 0.0016);
    assert!(decode(&version_1(), VERSION, 3, 1).is_err());
}

#[test]
fn corrections_and_counts_out_of_range_are_faults() {
    let bytes = encoded();
    // Behind the head of 16 bytes, layer, courses, and two courses of 28 bytes.
    let correction = 16 + 8 + 2 * 28;
    for found in [CORRECTION_MAX * 1.01, f32::NAN, -0.1] {
        let mut bytes = bytes.clone();
        bytes[correction..correction + 4].copy_from_slice(&found.to_le_bytes());
        assert_eq!(decode(&bytes, VERSION, 3, 3).unwrap_err().offset, correction);
    }
    // Four bands of three heads without a ratio, then one with some.
    let replayed = correction + 4 + 4 * 3 * 2 + 2;
    let mut bytes = bytes;
    bytes[replayed..replayed + 2].copy_from_slice(&200u16.to_le_bytes());
    let fault = decode(&bytes, VERSION, 3, 3).unwrap_err();
    assert_eq!((fault.offset, &*fault.found), (replayed, "200"), "{}", fault.expected);
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_a_fault(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        flips in 1u8..,
    ) {
        for version in [OLDEST, VERSION] {
            let _ = decode(&bytes, version, 3, 3);
        }
        let mut near = encoded();
        let at = at.index(near.len());
        near[at] ^= flips;
        // What still decodes is encoded to the same bytes: nothing in them is ignored.
        if let Ok(layers) = decode(&near, VERSION, 3, 3) {
            let mut all = [const { None }; 3];
            layers.iter().for_each(|(number, calibration, steering)| all[*number] = Some((calibration, steering)));
            prop_assert_eq!(encode(&all, 3).unwrap().bytes, near);
        }
    }
}
