//! The rotation of values.

use longwave_kernels::rotate;

use super::{Random, dims, squares};

#[test]
fn it_keeps_products_and_turns_back() {
    let mut random = Random(4);
    for dim in dims() {
        let before = random.gaussians(3 * dim);
        let mut after = before.clone();
        rotate(&mut after, dim, false);
        let product = |rows: &[f32], a: usize, b: usize| -> f64 {
            (0..dim).map(|i| f64::from(rows[a * dim + i]) * f64::from(rows[b * dim + i])).sum()
        };
        for (a, b) in [(0, 0), (0, 1), (1, 2), (2, 2)] {
            let bound = 1e-5 * dim as f64;
            assert!((product(&before, a, b) - product(&after, a, b)).abs() < bound, "dim {dim}");
        }
        rotate(&mut after, dim, true);
        let off = squares(before.iter().zip(&after).map(|(a, b)| f64::from(a - b))).sqrt();
        assert!(off < 1e-5 * (dim as f64).sqrt(), "dim {dim}: {off}");
    }
}

#[test]
fn one_dimension_spreads_over_its_whole_block() {
    // 200 = 128 + 64 + 8.
    for (dimension, block) in [(5, 0..128), (140, 128..192), (199, 192..200)] {
        let mut row = vec![0.0; 200];
        row[dimension] = 3.0;
        rotate(&mut row, 200, false);
        let each = 3.0 / (block.len() as f32).sqrt();
        for (i, x) in row.iter().enumerate() {
            let expected = if block.contains(&i) { each } else { 0.0 };
            assert!((x.abs() - expected).abs() < 1e-6, "{dimension} {i} {x}");
        }
    }
}

#[test]
fn it_is_the_one_of_the_format() {
    // Stored values are rotated: another rotation would be another format.
    let mut row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    rotate(&mut row, 8, false);
    let expected = GOLDEN.map(|x| x / 8f32.sqrt());
    for (x, expected) in row.iter().zip(expected) {
        assert!((x - expected).abs() < 1e-6, "{row:?}");
    }
}

/// The rotated row times the square root of 8.
const GOLDEN: [f32; 8] = [-20.0, 12.0, 24.0, 8.0, 12.0, -12.0, -4.0, -12.0];
