//! Rows in 8 bits.

use longwave_kernels::codec::{encode8, factor8, record8_len};

use super::{Random, dims, every_isa, rows};

fn coded(row: &[f32]) -> Vec<u8> {
    let mut record = vec![0xee; record8_len(row.len())];
    encode8(row, &mut record);
    record
}

#[test]
fn every_element_is_within_half_a_step_on_every_instruction_set() {
    let mut random = Random(8);
    for dim in dims() {
        let sigma = random.scales(dim);
        let row = rows(&mut random, 1, &sigma);
        let record = coded(&row);
        let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert_eq!(factor8(&record), largest / 127.0, "dim {dim}");
        for kernels in every_isa() {
            let mut decoded = vec![f32::NAN; dim];
            kernels.decode8(dim, &record, None, &mut decoded);
            for (x, y) in row.iter().zip(&decoded) {
                // Half a step, and what the division, the factor and the product round.
                let bound = f64::from(largest) * (0.5 / 127.0 + 4.0 * f64::from(f32::EPSILON));
                assert!((f64::from(*x) - f64::from(*y)).abs() <= bound, "dim {dim}: {x} became {y}");
            }
            assert_eq!(coded(&decoded)[..dim], record[..dim], "dim {dim}: coded again");
        }
    }
}

#[test]
fn listed_records_are_decoded_in_the_order_of_the_list_and_alike_everywhere() {
    let mut random = Random(9);
    for dim in [8, 24, 64, 128, 576] {
        let sigma = random.scales(dim);
        let rows = rows(&mut random, 37, &sigma);
        let records: Vec<u8> = rows.chunks_exact(dim).flat_map(coded).collect();
        let mut all = vec![f32::NAN; rows.len()];
        every_isa()[0].decode8(dim, &records, None, &mut all);
        for list in [&[][..], &[36], &[3, 0, 36, 36, 17, 1, 2, 30, 29, 5, 11, 12]] {
            let expected: Vec<f32> =
                list.iter().flat_map(|&row| &all[row as usize * dim..][..dim]).copied().collect();
            for kernels in every_isa() {
                let mut out = vec![f32::NAN; list.len() * dim];
                kernels.decode8(dim, &records, Some(list), &mut out);
                assert_eq!(out, expected, "{}, dim {dim}", kernels.isa());
            }
        }
    }
}

#[test]
fn extremes_keep_their_sign_and_never_become_what_is_not_a_number() {
    let kernels = every_isa();
    let decode = |row: &[f32; 8]| {
        let record = coded(row);
        let mut out = [f32::NAN; 8];
        kernels.iter().for_each(|kernels| kernels.decode8(8, &record, None, &mut out));
        out
    };
    assert_eq!(decode(&[0.0; 8]), [0.0; 8]);
    assert_eq!(decode(&[-0.0, 0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), [0.0; 8]);
    let large = decode(&[f32::MAX, -f32::MAX, 0.0, 1.0, -1.0, f32::MAX / 2.0, 0.0, 0.0]);
    assert!(large.iter().all(|x| x.is_finite()) && large[0] > 3.4e38 && large[1] == -large[0], "{large:?}");
    // A step of the smallest subnormal, and less than one.
    let tiny = f32::from_bits(127);
    assert_eq!(decode(&[tiny, -tiny, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])[..2], [tiny, -tiny]);
    assert_eq!(decode(&[f32::from_bits(1), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), [0.0; 8]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(decode(&[1.0, bad, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), [0.0; 8]);
    }
}
