use longwave_kernels::oracle::{self, Bounded};
use longwave_kernels::{Dtype, Rows};

use crate::DIMS;
use crate::isas::every_isa;
use crate::sample::{Sample, Stored, bits, columns, panics_with};

const ROWS: usize = 40;
const HEADS: usize = 9;

#[test]
fn every_shape_is_within_the_bound() {
    for dtype in Dtype::ALL {
        for dim in DIMS {
            let mut sample = Sample::new(dim as u64 + 1);
            let rows = sample.stored(dtype, ROWS * dim, 2.0);
            // Some weights are zero, as masked rows' are.
            let weights: Vec<f32> =
                (0..ROWS * HEADS).map(|i| if i % 11 == 5 { 0.0 } else { sample.number(1.0).abs() }).collect();
            let before = sample.numbers(HEADS * dim, 1.0);
            for count in 0..=ROWS {
                let rows = rows.rows().slice(0..count * dim);
                let weights = &weights[..count * HEADS];
                let expected = oracle::accumulate(weights, HEADS, dim, rows, &before);
                for heads in 1..=HEADS {
                    let expected = Bounded {
                        values: expected.values[..heads * dim].to_vec(),
                        bounds: expected.bounds[..heads * dim].to_vec(),
                    };
                    let weights = columns(weights, HEADS, heads);
                    for kernels in every_isa() {
                        let mut out = before[..heads * dim].to_vec();
                        kernels.accumulate(&weights, heads, dim, rows, &mut out);
                        let context = format!("{} {dtype} {dim} x {count}, {heads} heads", kernels.isa());
                        assert_eq!(expected.check(&out), Ok(()), "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn adversarial_elements_and_weights_are_within_the_bound() {
    for dtype in Dtype::ALL {
        for (seed, dim) in DIMS.into_iter().enumerate() {
            let mut sample = Sample::new(seed as u64 + 200);
            let rows = sample.adversarial(dtype, 35 * dim);
            let weights: Vec<f32> =
                (0..35 * 3).map(|i| [1.0, 0.0, 1.2e-38, 1e-40, 0.3, -0.0, 1e-7][(i * 5) % 7]).collect();
            let before = vec![-0.0; 3 * dim];
            let expected = oracle::accumulate(&weights, 3, dim, rows.rows(), &before);
            for kernels in every_isa() {
                let mut out = before.clone();
                kernels.accumulate(&weights, 3, dim, rows.rows(), &mut out);
                assert_eq!(expected.check(&out), Ok(()), "{} {dtype} {dim}", kernels.isa());
            }
        }
    }
}

#[test]
fn infinite_elements_give_infinite_sums_in_their_dimension_only() {
    for (dtype, dim) in Dtype::ALL.into_iter().flat_map(|dtype| [24, 64, 72].map(|dim| (dtype, dim))) {
        let mut elements = vec![0.5f32; 19 * dim];
        // The last eight elements of a row, and the first.
        elements[4 * dim - 3] = f32::INFINITY;
        elements[18 * dim] = f32::NEG_INFINITY;
        let rows = Stored::narrow(dtype, &elements);
        for (kernels, heads) in
            every_isa().into_iter().flat_map(|kernels| [1, 3, 4].map(|heads| (kernels, heads)))
        {
            let mut out = vec![0.0; heads * dim];
            kernels.accumulate(&vec![0.25; 19 * heads], heads, dim, rows.rows(), &mut out);
            for (place, &sum) in out.iter().enumerate() {
                let expected = match place % dim {
                    0 => f32::NEG_INFINITY,
                    i if i == dim - 3 => f32::INFINITY,
                    _ => 19.0 / 8.0,
                };
                assert_eq!(sum, expected, "{} {dtype} {dim} {place}", kernels.isa());
            }
        }
    }
}

#[test]
fn splitting_at_blocks_keeps_the_bits_and_elsewhere_the_bound() {
    let (dim, heads, count) = (72, 6, 75);
    let mut sample = Sample::new(3);
    let rows = sample.stored(Dtype::F16, count * dim, 1.0);
    let weights = sample.numbers(count * heads, 1.0);
    let expected = oracle::accumulate(&weights, heads, dim, rows.rows(), &vec![0.0; heads * dim]);
    for kernels in every_isa() {
        let mut whole = vec![0.0; heads * dim];
        kernels.accumulate(&weights, heads, dim, rows.rows(), &mut whole);
        for cut in 0..=count {
            let mut out = vec![0.0; heads * dim];
            for part in [0..cut, cut..count] {
                let weights = &weights[part.start * heads..part.end * heads];
                let rows = rows.rows().slice(part.start * dim..part.end * dim);
                kernels.accumulate(weights, heads, dim, rows, &mut out);
            }
            assert_eq!(expected.check(&out), Ok(()), "{} cut at {cut}", kernels.isa());
            if cut % 16 == 0 {
                assert_eq!(bits(&out), bits(&whole), "{} cut at {cut}", kernels.isa());
            }
        }
    }
}

#[test]
fn gathered_sums_have_the_bits_of_the_listed_rows_and_touch_no_other() {
    for dtype in Dtype::ALL {
        for dim in [8, 64, 72, 128] {
            let mut sample = Sample::new(dim as u64 + 9);
            let rows = sample.stored(dtype, 60 * dim, 2.0);
            for count in [0, 1, 15, 16, 17, 33, 50] {
                for heads in [1, 2, 3, 4, 7] {
                    let listed: Vec<u32> = (0..count).map(|_| sample.below(55) as u32).collect();
                    let weights = sample.numbers(count * heads, 1.0);
                    let poisoned = rows.poisoned(dim, &listed);
                    let picked = rows.picked(dim, &listed);
                    for kernels in every_isa() {
                        let mut gathered = vec![0.25; heads * dim];
                        let mut contiguous = gathered.clone();
                        let rows = poisoned.rows();
                        kernels.accumulate_gathered(&weights, heads, dim, rows, &listed, &mut gathered);
                        kernels.accumulate(&weights, heads, dim, picked.rows(), &mut contiguous);
                        assert_eq!(bits(&gathered), bits(&contiguous), "{} {dtype} {dim}", kernels.isa());
                        assert!(gathered.iter().all(|x| x.is_finite()));
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_shapes_and_indices_panic_before_anything_is_written() {
    for kernels in every_isa() {
        let elements = vec![1.0f32; 5 * 16];
        let rows = Rows::F32(&elements);
        let weights = [1.0; 10];
        let mut out = vec![7.0f32; 32];
        assert!(panics_with("row 9 is listed, but there are 5 rows", || {
            kernels.accumulate_gathered(&weights, 2, 16, rows, &[0, 4, 9, 1, 2], &mut out);
        }));
        assert!(panics_with("expected 2 heads of 16, found 31", || {
            kernels.accumulate(&weights, 2, 16, rows, &mut out[1..]);
        }));
        assert!(panics_with("expected 5 rows of 2 heads, found 9", || {
            kernels.accumulate(&weights[1..], 2, 16, rows, &mut out);
        }));
        assert_eq!(out, [7.0; 32]);
    }
}
