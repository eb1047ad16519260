//! Scores and sums of rows in 4 bits.

use longwave_kernels::codec::{LEVELS4, encode4, record_len};
use longwave_kernels::f16;

use super::{Random, dims, every_isa, rows};

/// Roundings on the longest way from a product to its sum, with a margin, times the unit roundoff.
fn rounding(additions: usize) -> f64 {
    1.01 * (additions + 8) as f64 / (1u64 << 24) as f64
}

fn records(random: &mut Random, count: usize, dim: usize) -> Vec<u8> {
    let sigma = random.scales(dim);
    let mut records = vec![0; count * record_len(dim)];
    let coded = rows(random, count, &sigma);
    for (row, record) in coded.chunks_exact(dim).zip(records.chunks_exact_mut(record_len(dim))) {
        encode4(row, &sigma, row[0] > 0.0, record);
    }
    records
}

fn factor(record: &[u8]) -> f64 {
    f64::from(f16::from_le_bytes([record[record.len() - 2], record[record.len() - 1]]))
}

fn level(record: &[u8], i: usize) -> f64 {
    f64::from(LEVELS4[usize::from(record[i / 2] >> (i % 2 * 4) & 15)])
}

/// A list with rows twice, rows left out, and no order.
fn list(random: &mut Random, rows: usize) -> Vec<u32> {
    (0..rows + 3).map(|_| (random.bits() % rows as u64) as u32).collect()
}

#[test]
fn scores_are_within_rounding_of_the_definition() {
    let mut random = Random(5);
    for (dim, heads) in dims().zip((1..=9).cycle()) {
        let count = 1 + dim % 37;
        let records = records(&mut random, count, dim);
        let queries = random.gaussians(heads * dim);
        for kernels in every_isa() {
            let mut scores = vec![f32::NAN; count * heads];
            kernels.scores4(&queries, heads, dim, &records, &mut scores);
            for (place, score) in scores.iter().enumerate() {
                let record = &records[place / heads * record_len(dim)..][..record_len(dim)];
                let products =
                    (0..dim).map(|i| f64::from(queries[place % heads * dim + i]) * level(record, i));
                let exact = factor(record) * products.clone().sum::<f64>();
                let bound = rounding(dim / 8) * factor(record) * products.map(f64::abs).sum::<f64>();
                assert!((f64::from(*score) - exact).abs() <= bound, "{:?} {dim} {place}", kernels.isa());
            }
            let listed = list(&mut random, count);
            let mut gathered = vec![f32::NAN; listed.len() * heads];
            kernels.scores4_gathered(&queries, heads, dim, &records, &listed, &mut gathered);
            for (row, gathered) in listed.iter().zip(gathered.chunks_exact(heads)) {
                assert_eq!(gathered, &scores[*row as usize * heads..][..heads], "{:?}", kernels.isa());
            }
        }
    }
}

#[test]
fn sums_are_within_rounding_of_the_definition() {
    let mut random = Random(6);
    for (dim, heads) in dims().zip((1..=9).cycle()) {
        let count = 1 + dim % 41;
        let records = records(&mut random, count, dim);
        let listed = list(&mut random, count);
        let before = random.gaussians(heads * dim);
        let weights = random.gaussians((count + 3) * heads);
        let all: Vec<u32> = (0..count as u32).collect();
        for kernels in every_isa() {
            for picked in [&all, &listed] {
                let weights = &weights[..picked.len() * heads];
                let mut out = before.clone();
                if picked == &all {
                    kernels.accumulate4(weights, heads, dim, &records, &mut out);
                } else {
                    kernels.accumulate4_gathered(weights, heads, dim, &records, picked, &mut out);
                }
                for (place, out) in out.iter().enumerate() {
                    let (head, i) = (place / dim, place % dim);
                    let products = picked.iter().enumerate().map(|(row, &picked)| {
                        let record = &records[picked as usize * record_len(dim)..][..record_len(dim)];
                        f64::from(weights[row * heads + head]) * factor(record) * level(record, i)
                    });
                    let start = f64::from(before[place]);
                    let exact = start + products.clone().sum::<f64>();
                    let size = start.abs() + products.map(f64::abs).sum::<f64>();
                    let off = (f64::from(*out) - exact).abs();
                    assert!(off <= rounding(16 + count / 16) * size, "{:?} {dim} {place}", kernels.isa());
                }
            }
        }
    }
}

#[test]
fn no_rows_change_nothing() {
    for kernels in every_isa() {
        kernels.scores4(&[1.0; 16], 2, 8, &[], &mut []);
        let mut out = [4.5; 16];
        kernels.accumulate4(&[], 2, 8, &[], &mut out);
        kernels.accumulate4_gathered(&[], 2, 8, &[0; 12], &[], &mut out);
        assert_eq!(out, [4.5; 16]);
    }
}

#[test]
fn what_does_not_fit_panics_before_it_writes() {
    for kernels in every_isa() {
        let refused = |act: &dyn Fn(&mut [f32])| {
            let mut out = [4.5; 16];
            let call = std::panic::AssertUnwindSafe(|| act(&mut out));
            assert!(std::panic::catch_unwind(call).is_err());
            assert_eq!(out, [4.5; 16]);
        };
        refused(&|out| kernels.accumulate4_gathered(&[1.0; 4], 2, 8, &[0x11; 12], &[0, 2], out));
        refused(&|out| kernels.accumulate4(&[1.0; 4], 2, 8, &[0x11; 13], out));
        refused(&|out| kernels.accumulate4(&[1.0; 3], 2, 8, &[0x11; 12], out));
        refused(&|out| kernels.scores4_gathered(&[1.0; 16], 8, 8, &[0x11; 12], &[0, 2], out));
        refused(&|out| kernels.scores4(&[1.0; 12], 1, 12, &[0x11; 128], out));
        refused(&|out| kernels.squared_norms4(&[1.0; 8], &[0.0; 8], &[0x11; 12], &mut out[..3]));
        refused(&|out| kernels.squared_norms4(&[1.0; 8], &[0.0; 9], &[0x11; 12], &mut out[..2]));
        refused(&|out| kernels.squared_norms4(&[1.0; 12], &[0.0; 12], &[0x11; 16], &mut out[..2]));
        refused(&|out| kernels.squared_norms4(&[1.0; 8], &[0.0; 8], &[0x11; 13], &mut out[..2]));
    }
}

#[test]
fn squared_norms_are_within_rounding_of_the_definition() {
    let mut random = Random(7);
    for dim in dims() {
        let count = 1 + dim % 29;
        let records = records(&mut random, count, dim);
        let (sigma, add) = (random.scales(dim), random.gaussians(dim));
        for kernels in every_isa() {
            let mut norms = vec![f32::NAN; count];
            kernels.squared_norms4(&sigma, &add, &records, &mut norms);
            for (record, norm) in records.chunks_exact(record_len(dim)).zip(norms) {
                let (mut exact, mut bound) = (0.0, 0.0);
                for i in 0..dim {
                    let coded = factor(record) * f64::from(sigma[i]) * level(record, i);
                    exact += (coded + f64::from(add[i])).powi(2);
                    // An element is off by the rounding of its larger part, and its square by twice as much times itself.
                    bound += (coded.abs() + f64::from(add[i]).abs()).powi(2);
                }
                let bound = 4.0 * rounding(dim / 8) * bound;
                assert!(
                    (f64::from(norm) - exact).abs() <= bound,
                    "{:?} {dim}: {norm} {exact}",
                    kernels.isa()
                );
            }
        }
    }
}

#[test]
fn squared_norms_of_what_is_no_usual_number_are_what_arithmetic_says() {
    // Records of one row: all codes 0, with a factor of 0, the smallest subnormal, and infinity.
    let record = |factor: f16| [&[0; 4][..], &factor.to_le_bytes()].concat();
    let (sigma, level) = ([2.0; 8], LEVELS4[0]);
    let small = f16::from_bits(1).to_f32() * 2.0 * level;
    for kernels in every_isa() {
        let norm = |factor: f16, add: [f32; 8]| {
            let mut norms = [f32::NAN];
            kernels.squared_norms4(&sigma, &add, &record(factor), &mut norms);
            norms[0]
        };
        assert_eq!(norm(f16::ZERO, [-0.0; 8]).to_bits(), 0, "{:?}", kernels.isa());
        assert_eq!(norm(f16::ZERO, [0.0, 0.0, 3.0, 0.0, 0.0, 0.0, -4.0, 0.0]), 25.0);
        let tiny = norm(f16::from_bits(1), [0.0; 8]);
        assert!((tiny / (8.0 * small * small) - 1.0).abs() < 1e-6, "{:?}: {tiny}", kernels.isa());
        assert_eq!(norm(f16::INFINITY, [0.0; 8]), f32::INFINITY);
        assert!(norm(f16::INFINITY, [f32::INFINITY; 8]).is_nan() == (level < 0.0));
        assert!(norm(f16::ONE, [0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0]).is_nan());
    }
}
