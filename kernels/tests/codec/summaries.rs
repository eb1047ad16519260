//! Scores and sums of summaries against their definitions.

use longwave_kernels::codec::{LEVELS4, Laid, Summaries, encode4, record_len};
use longwave_kernels::f16;

use super::{Random, dims, every_isa, rows};

/// Roundings on the longest way from a product to its sum, with a margin, times the unit roundoff.
fn rounding(additions: usize) -> f64 {
    1.01 * (additions + 12) as f64 / (1u64 << 24) as f64
}

/// Records of `count` rows, and the scales that they were coded with.
fn records(random: &mut Random, count: usize, dim: usize) -> (Vec<u8>, Vec<f32>) {
    let sigma = random.scales(dim);
    let mut records = vec![0; count * record_len(dim)];
    let coded = rows(random, count, &sigma);
    for (row, record) in coded.chunks_exact(dim).zip(records.chunks_exact_mut(record_len(dim))) {
        encode4(row, &sigma, row[0] > 0.0, record);
    }
    (records, sigma)
}

/// An element of a record in `f64`, without its scale.
fn element(records: &[u8], dim: usize, row: usize, i: usize) -> f64 {
    let record = &records[row * record_len(dim)..][..record_len(dim)];
    let factor = f64::from(f16::from_le_bytes([record[dim / 2], record[dim / 2 + 1]]));
    factor * f64::from(LEVELS4[usize::from(record[i / 2] >> (i % 2 * 4) & 15)])
}

/// A list with rows twice, rows left out, and no order.
fn list(random: &mut Random, rows: usize) -> Vec<u32> {
    (0..rows + 3).map(|_| (random.bits() % rows as u64) as u32).collect()
}

#[test]
fn scores_are_within_rounding_of_the_definition() {
    let mut random = Random(15);
    for (dim, heads) in dims().zip((1..=9).cycle()) {
        let count = 1 + dim % 43;
        let (records, sigma) = records(&mut random, count, dim);
        let (queries, add) = (random.gaussians(heads * dim), random.gaussians(heads));
        let mut laid = Laid::default();
        laid.set(&queries, heads, &sigma);
        let listed = list(&mut random, count);
        for kernels in every_isa() {
            let stride = listed.len() + 2;
            let mut scores = vec![f32::NAN; heads * stride];
            kernels.scores_summaries(&laid, Summaries::all(&records, dim), &add, stride, &mut scores);
            for (head, scores) in scores.chunks_exact(stride).enumerate() {
                for (row, score) in scores[..count].iter().enumerate() {
                    let products = (0..dim).map(|i| {
                        let query = f64::from(queries[head * dim + i]) * f64::from(sigma[i]);
                        query * element(&records, dim, row, i)
                    });
                    let exact = f64::from(add[head]) + products.clone().sum::<f64>();
                    let size = f64::from(add[head].abs()) + products.map(f64::abs).sum::<f64>();
                    let off = (f64::from(*score) - exact).abs();
                    assert!(off <= rounding(dim / 16) * size, "{:?} {dim} {row}: {off}", kernels.isa());
                }
                assert!(scores[count..].iter().all(|x| x.is_nan()), "beyond the records");
            }
            let mut gathered = vec![f32::NAN; heads * stride];
            let picked = Summaries::listed(&records, dim, &listed);
            kernels.scores_summaries(&laid, picked, &add, stride, &mut gathered);
            for (scores, gathered) in scores.chunks_exact(stride).zip(gathered.chunks_exact(stride)) {
                let expected: Vec<f32> = listed.iter().map(|&row| scores[row as usize]).collect();
                assert_eq!(gathered[..listed.len()], expected, "{:?}", kernels.isa());
            }
        }
    }
}

#[test]
fn sums_are_within_rounding_of_the_definition() {
    let mut random = Random(16);
    for (dim, heads) in dims().zip([1, 3, 4, 8, 12, 16, 17, 5, 21].into_iter().cycle()) {
        let count = 1 + dim % 71;
        let (records, sigma) = records(&mut random, count, dim);
        let listed = list(&mut random, count);
        let stride = listed.len() + 5;
        let weights = random.gaussians(heads * stride);
        let all: Vec<u32> = (0..count as u32).collect();
        for kernels in every_isa() {
            for picked in [&all, &listed] {
                let of = |listed| match listed {
                    None => Summaries::all(&records, dim),
                    Some(list) => Summaries::listed(&records, dim, list),
                };
                let mut sums = Laid::default();
                sums.reset(heads, dim);
                // In two parts, the first of which is all records where that is what is listed.
                let parts = if picked == &all {
                    [None, Some(&listed[..1])]
                } else {
                    [Some(&picked[..2]), Some(&picked[2..])]
                };
                // Weights lie by place in the list, and a part's begin where those of the one before end.
                let mut rows: Vec<(u32, usize)> = Vec::new();
                for part in parts {
                    let start = rows.len();
                    kernels.sum_summaries(&weights[start..], stride, of(part), &mut sums);
                    rows.extend(part.unwrap_or(&all).iter().copied().zip(start..));
                }
                let skip = heads / 3;
                let before = random.gaussians((heads - skip) * dim);
                let mut out = before.clone();
                sums.add_to(skip, &sigma, &mut out);
                for (place, out) in out.iter().enumerate() {
                    let (head, i) = (skip + place / dim, place % dim);
                    let products = rows.iter().map(|&(row, at)| {
                        let weight = f64::from(weights[head * stride + at]);
                        weight * f64::from(sigma[i]) * element(&records, dim, row as usize, i)
                    });
                    let start = f64::from(before[place]);
                    let exact = start + products.clone().sum::<f64>();
                    let size = start.abs() + products.map(f64::abs).sum::<f64>();
                    let off = (f64::from(*out) - exact).abs();
                    assert!(
                        off <= rounding(32 + count / 32) * size,
                        "{:?} {dim} {place}: {off}",
                        kernels.isa()
                    );
                }
            }
        }
    }
}

#[test]
fn a_head_is_scaled_by_itself() {
    let (records, sigma) = records(&mut Random(17), 5, 24);
    let kernels = every_isa()[0];
    let weights: Vec<f32> = (1..=10).map(|x| x as f32).collect();
    let mut sums = Laid::default();
    sums.reset(2, 24);
    kernels.sum_summaries(&weights, 5, Summaries::all(&records, 24), &mut sums);
    let read = |sums: &Laid| {
        let mut out = vec![0.0; 48];
        sums.add_to(0, &sigma, &mut out);
        out
    };
    let before = read(&sums);
    sums.scale(1, 0.5);
    let after = read(&sums);
    assert_eq!(after[..24], before[..24]);
    let half: Vec<f32> = before[24..].iter().map(|x| 0.5 * x).collect();
    assert_eq!(after[24..], half);
    assert!(before.iter().all(|x| *x != 0.0));
}

#[test]
fn no_records_change_nothing() {
    for kernels in every_isa() {
        let (mut query, mut sums) = (Laid::default(), Laid::default());
        query.set(&[1.0; 16], 2, &[1.0; 8]);
        sums.reset(2, 8);
        let none = Summaries::listed(&[0x11; 12], 8, &[]);
        assert!(none.is_empty() && Summaries::all(&[], 8).is_empty());
        kernels.scores_summaries(&query, none, &[0.0; 2], 0, &mut []);
        kernels.sum_summaries(&[1.0; 4], 2, none, &mut sums);
        let mut out = [4.5; 16];
        sums.add_to(0, &[1.0; 8], &mut out);
        assert_eq!(out, [4.5; 16]);
    }
}

#[test]
fn what_does_not_fit_panics() {
    let refused = |act: &dyn Fn()| {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err());
    };
    refused(&|| assert!(!Summaries::all(&[0; 13], 8).is_empty()));
    refused(&|| assert!(!Summaries::all(&[0; 12], 12).is_empty()));
    refused(&|| assert!(!Summaries::listed(&[0; 12], 8, &[1, 2]).is_empty()));
    for kernels in every_isa() {
        let (mut query, mut sums) = (Laid::default(), Laid::default());
        query.set(&[1.0; 16], 2, &[1.0; 8]);
        sums.reset(2, 8);
        let two = Summaries::all(&[0x11; 12], 8);
        refused(&|| kernels.scores_summaries(&query, two, &[0.0; 2], 2, &mut [0.0; 3]));
        refused(&|| kernels.scores_summaries(&query, two, &[0.0; 2], 1, &mut [0.0; 4]));
        refused(&|| kernels.scores_summaries(&query, two, &[0.0; 3], 2, &mut [0.0; 4]));
        refused(&|| kernels.sum_summaries(&[1.0; 3], 2, two, &mut sums.clone()));
        refused(&|| kernels.sum_summaries(&[1.0; 4], 2, Summaries::all(&[], 16), &mut sums.clone()));
        refused(&|| sums.add_to(1, &[1.0; 8], &mut [0.0; 16]));
        refused(&|| sums.add_to(0, &[1.0; 16], &mut [0.0; 16]));
    }
}
