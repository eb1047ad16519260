//! What is written comes back, and nothing else is taken for it.

use super::super::calibration::{Band, BandErrors};
use super::*;
use proptest::prelude::*;

fn sample() -> (Calibration, Steering) {
    let mut calibration = Calibration::new(3);
    for (at, band) in Band::all().enumerate().skip(4) {
        for audit in 0..at {
            let heads = (0..3).filter(|h| h % 2 == audit % 2).map(|h| (h, 0.01, 0.01 * (audit + h) as f32));
            calibration.record(&BandErrors { band, bytes_share: 0.05, heads: heads.collect() });
        }
    }
    let mut steering = Steering::default();
    steering.learn(0.03, 0.05);
    steering.learn(0.01, 0.002);
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
    let decoded = decode(&encoded(), 3, 3).unwrap();
    let (calibration, steering) = sample();
    assert_eq!(decoded, [(2, calibration, steering)]);
    let fresh = (Calibration::new(3), Steering::default());
    assert!(encode(&[None, Some((&fresh.0, &fresh.1))], 3).is_none());
}

#[test]
fn other_models_cut_bytes_and_more_bytes_are_faults() {
    let bytes = encoded();
    assert_eq!(decode(&bytes, 3, 4).unwrap_err().offset, 8);
    assert_eq!(decode(&bytes, 2, 3).unwrap_err().expected, "a layer from 0 to below 2");
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len], 3, 3).is_err(), "{len}");
    }
    let more = [bytes.as_slice(), &[0]].concat();
    assert_eq!(decode(&more, 3, 3).unwrap_err().offset, bytes.len());
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_a_fault(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        flips in 1u8..,
    ) {
        let _ = decode(&bytes, 3, 3);
        let mut near = encoded();
        let at = at.index(near.len());
        near[at] ^= flips;
        // What still decodes is encoded to the same bytes: nothing in them is ignored.
        if let Ok(layers) = decode(&near, 3, 3) {
            let mut all = [const { None }; 3];
            layers.iter().for_each(|(number, calibration, steering)| all[*number] = Some((calibration, steering)));
            prop_assert_eq!(encode(&all, 3).unwrap().bytes, near);
        }
    }
}
