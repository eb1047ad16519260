use longwave_kernels::oracle::{self, Bounded};
use longwave_kernels::{Dtype, Rows};

use crate::DIMS;
use crate::isas::every_isa;
use crate::sample::{Sample, Stored, bits, panics_with};

const ROWS: usize = 40;
const HEADS: usize = 9;

/// The oracle's scores of the first `rows` rows and `heads` of [`HEADS`] heads.
fn part(all: &Bounded, rows: usize, heads: usize) -> Bounded {
    let cut = |all: &[f64]| {
        all.chunks_exact(HEADS).take(rows).flat_map(|row| row[..heads].iter().copied()).collect()
    };
    Bounded { values: cut(&all.values), bounds: cut(&all.bounds) }
}

#[test]
fn every_shape_is_within_the_bound_and_bits_do_not_depend_on_it() {
    for dtype in Dtype::ALL {
        for dim in DIMS {
            let mut sample = Sample::new(dim as u64);
            let queries = sample.numbers(HEADS * dim, 0.7);
            let rows = sample.stored(dtype, ROWS * dim, 3.0);
            let expected = oracle::scores(&queries, HEADS, dim, rows.rows());
            for kernels in every_isa() {
                let mut whole = vec![f32::NAN; ROWS * HEADS];
                kernels.scores(&queries, HEADS, dim, rows.rows(), &mut whole);
                for count in 0..=ROWS {
                    for heads in 1..=HEADS {
                        let mut scores = vec![f32::NAN; count * heads];
                        let rows = rows.rows().slice(0..count * dim);
                        kernels.scores(&queries[..heads * dim], heads, dim, rows, &mut scores);
                        let context = format!("{} {dtype} {dim} x {count}, {heads} heads", kernels.isa());
                        assert_eq!(part(&expected, count, heads).check(&scores), Ok(()), "{context}");
                        let same = crate::sample::columns(&whole[..count * HEADS], HEADS, heads);
                        assert_eq!(bits(&scores), bits(&same), "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn adversarial_elements_are_within_the_bound() {
    for dtype in Dtype::ALL {
        for (seed, dim) in DIMS.into_iter().enumerate() {
            let mut sample = Sample::new(seed as u64 + 100);
            let rows = sample.adversarial(dtype, 37 * dim);
            // Small queries, so that sums of huge elements stay finite; some of them subnormal or zero.
            let queries: Vec<f32> =
                (0..5 * dim).map(|i| [1e-3, -0.25, 0.0, 1e-39, -0.0, 0.75][(i * 7 + i / dim) % 6]).collect();
            let expected = oracle::scores(&queries, 5, dim, rows.rows());
            for kernels in every_isa() {
                let mut scores = vec![f32::NAN; 37 * 5];
                kernels.scores(&queries, 5, dim, rows.rows(), &mut scores);
                assert_eq!(expected.check(&scores), Ok(()), "{} {dtype} {dim}", kernels.isa());
            }
        }
    }
}

#[test]
fn infinite_elements_give_infinite_scores_in_their_rows_only() {
    for (dtype, dim) in Dtype::ALL.into_iter().flat_map(|dtype| [24, 64, 72].map(|dim| (dtype, dim))) {
        let mut elements = vec![0.5f32; 19 * dim];
        // The last eight elements of a row, and the first.
        elements[4 * dim - 3] = f32::INFINITY;
        elements[18 * dim] = f32::NEG_INFINITY;
        let rows = Stored::narrow(dtype, &elements);
        for kernels in every_isa() {
            let mut scores = vec![0.0; 19 * 2];
            kernels.scores(&vec![0.25; 2 * dim], 2, dim, rows.rows(), &mut scores);
            for (place, &score) in scores.iter().enumerate() {
                let expected = match place / 2 {
                    3 => f32::INFINITY,
                    18 => f32::NEG_INFINITY,
                    _ => dim as f32 / 8.0,
                };
                assert_eq!(score, expected, "{} {dtype} {dim} {place}", kernels.isa());
            }
        }
    }
}

#[test]
fn gathered_scores_have_the_bits_of_the_listed_rows_and_touch_no_other() {
    for dtype in Dtype::ALL {
        for dim in [8, 64, 72, 128] {
            let mut sample = Sample::new(dim as u64 + 7);
            let rows = sample.stored(dtype, 60 * dim, 2.0);
            for count in [0, 1, 2, 15, 16, 17, 33, 50] {
                for heads in [1, 2, 3, 4, 7] {
                    // Out of order, with repetitions, and never the last rows.
                    let listed: Vec<u32> = (0..count).map(|_| sample.below(55) as u32).collect();
                    let queries = sample.numbers(heads * dim, 1.0);
                    let poisoned = rows.poisoned(dim, &listed);
                    let picked = rows.picked(dim, &listed);
                    for kernels in every_isa() {
                        let mut gathered = vec![f32::NAN; count * heads];
                        let mut contiguous = gathered.clone();
                        kernels.scores_gathered(
                            &queries,
                            heads,
                            dim,
                            poisoned.rows(),
                            &listed,
                            &mut gathered,
                        );
                        kernels.scores(&queries, heads, dim, picked.rows(), &mut contiguous);
                        assert_eq!(bits(&gathered), bits(&contiguous), "{} {dtype} {dim}", kernels.isa());
                        assert!(gathered.iter().all(|score| score.is_finite()));
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_shapes_and_indices_panic_before_anything_is_written() {
    for kernels in every_isa() {
        let rows = vec![1.0f32; 5 * 16];
        let rows = Rows::F32(&rows);
        let queries = [1.0; 32];
        let mut scores = vec![7.0f32; 10];
        assert!(panics_with("row 5 is listed, but there are 5 rows", || {
            kernels.scores_gathered(&queries, 2, 16, rows, &[0, 4, 5, 1, 2], &mut scores);
        }));
        assert!(panics_with("expected 2 heads of 16, found 31", || {
            kernels.scores(&queries[1..], 2, 16, rows, &mut scores);
        }));
        assert!(panics_with("expected 5 rows of 2 heads, found 9", || {
            kernels.scores(&queries, 2, 16, rows, &mut scores[1..]);
        }));
        assert!(panics_with("75 elements are not whole rows of 16", || {
            kernels.scores(&queries, 2, 16, rows.slice(0..75), &mut scores);
        }));
        for dim in [0, 4, 12, 584] {
            assert!(panics_with("dimension", || {
                kernels.scores(&queries, 2, dim, rows, &mut scores);
            }));
        }
        assert_eq!(scores, [7.0; 10]);
    }
}
