//! Codes of rows in two planes.

use longwave_kernels::codec::{
    Depth, HALF_LEVELS4, LEVELS4, RowCodes, decode_planes, decode4, encode_planes, encode4, record_len,
};
use longwave_kernels::f16;

use super::{Random, dims, every_isa, rows, squares};

const DEPTHS: [Depth; 2] = [Depth::Half, Depth::Whole];

fn level(record: &[u8], dim: usize, i: usize, depth: Depth) -> f64 {
    let bits = |plane: usize| usize::from(record[2 + plane * dim / 4 + i / 4] >> (i % 4 * 2) & 3);
    f64::from(match depth {
        Depth::Half => HALF_LEVELS4[bits(0)],
        Depth::Whole => LEVELS4[bits(0) * 4 + bits(1)],
    })
}

fn factor(record: &[u8]) -> f64 {
    f64::from(f16::from_le_bytes([record[0], record[1]]))
}

fn records(random: &mut Random, count: usize, dim: usize) -> Vec<u8> {
    let sigma = random.scales(dim);
    let mut records = vec![0; count * record_len(dim)];
    let coded = rows(random, count, &sigma);
    for (row, record) in coded.chunks_exact(dim).zip(records.chunks_exact_mut(record_len(dim))) {
        encode_planes(row, &sigma, record);
    }
    records
}

/// Roundings on the longest way from a product to its sum, with a margin, times the unit roundoff.
fn rounding(additions: usize) -> f64 {
    1.01 * (additions + 8) as f64 / (1u64 << 24) as f64
}

#[test]
fn both_planes_are_the_code_in_four_bits() {
    let mut random = Random(31);
    for dim in dims() {
        let sigma = random.scales(dim);
        let mut row = rows(&mut random, 1, &sigma);
        // Elements farther out may be coded in a wider unit.
        row.iter_mut().zip(&sigma).for_each(|(x, sigma)| *x = x.clamp(-2.7 * sigma, 2.7 * sigma));
        let (mut planes, mut pairs) = (vec![0xee; record_len(dim)], vec![0xee; record_len(dim)]);
        encode_planes(&row, &sigma, &mut planes);
        encode4(&row, &sigma, true, &mut pairs);
        let (mut whole, mut expected) = (vec![f32::NAN; dim], vec![f32::NAN; dim]);
        decode_planes(&planes, &sigma, Depth::Whole, &mut whole);
        decode4(&pairs, &sigma, &mut expected);
        assert_eq!(whole, expected, "dim {dim}");
    }
}

/// The level next to `x`.
fn nearest(x: f64) -> usize {
    let off = |code: &usize| (x - f64::from(LEVELS4[*code])).abs();
    (0..16).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap()
}

/// What the best factor leaves of a row with these codes, squared.
fn left(row: &[f32], sigma: &[f32], code: impl Fn(usize) -> usize) -> f64 {
    let (mut all, mut product, mut coded) = (0.0, 0.0, 0.0);
    for (i, (x, sigma)) in row.iter().zip(sigma).enumerate() {
        let (x, level) = (f64::from(*x), f64::from(*sigma) * f64::from(LEVELS4[code(i)]));
        all += x * x;
        product += x * level;
        coded += level * level;
    }
    all - product * product / coded
}

#[test]
fn an_element_far_beyond_the_levels_is_not_cut_off() {
    let mut random = Random(36);
    for (dim, far) in [(64, 7.0f32), (64, -14.0), (128, 9.0), (192, -6.0)] {
        let sigma: Vec<f32> = (0..dim).map(|i| 0.3 + 0.001 * i as f32).collect();
        let mut row: Vec<f32> =
            random.gaussians(dim).iter().zip(&sigma).map(|(x, sigma)| x.clamp(-2.5, 2.5) * sigma).collect();
        let at = dim / 3;
        row[at] = far * sigma[at];
        let (mut record, mut decoded) = (vec![0; record_len(dim)], vec![0.0; dim]);
        encode_planes(&row, &sigma, &mut record);
        decode_planes(&record, &sigma, Depth::Whole, &mut decoded);
        let share = decoded[at] / row[at];
        assert!((0.8..1.1).contains(&share), "dim {dim}: {far} is coded as {share} of itself");

        // Nearly the least that any of the units leaves, where the root mean square leaves twice as much.
        let unit = |i: usize| f64::from(row[i]) / f64::from(sigma[i]);
        let rms = (squares((0..dim).map(unit)) / dim as f64).sqrt();
        let units = (0..20).map(|step| rms * 1.25f64.powi(step));
        let of_units: Vec<f64> = units
            .take_while(|u| 1.6 * u < f64::from(far.abs()))
            .map(|u| left(&row, &sigma, |i| nearest(unit(i) / u)))
            .collect();
        let least = of_units.iter().copied().fold(f64::INFINITY, f64::min);
        let found = squares((0..dim).map(|i| f64::from(row[i]) - f64::from(decoded[i])));
        assert!(found < 1.15 * least, "dim {dim}: {found} left, {least} in the best unit");
        assert!(found < 0.5 * of_units[0], "dim {dim}: {found} left, {} in the usual unit", of_units[0]);
    }
}

#[test]
fn many_rows_are_coded_as_each_is_and_alike_everywhere() {
    let mut random = Random(35);
    for dim in dims() {
        let sigma = random.scales(dim);
        let mut rows = rows(&mut random, 9, &sigma);
        rows[3 * dim..4 * dim].fill(0.0);
        rows[5 * dim + dim / 2] = f32::NAN;
        rows[7 * dim + dim / 3] = 30.0 * sigma[dim / 3];
        rows[6 * dim..7 * dim].iter_mut().for_each(|x| *x *= 1e-30);
        let mut expected = vec![0xee; 9 * record_len(dim)];
        for (row, record) in rows.chunks_exact(dim).zip(expected.chunks_exact_mut(record_len(dim))) {
            encode_planes(row, &sigma, record);
        }
        for kernels in every_isa() {
            let mut records = vec![0xee; expected.len()];
            kernels.encode_planes(&rows, &sigma, &mut records);
            assert_eq!(records, expected, "{}, dim {dim}", kernels.isa());
        }
    }
}

#[test]
fn planes_lie_where_the_format_says() {
    let z = [-2.7326, 2.7326, -0.1284, 0.1284, -1.2562, 1.2562, -0.3881, 0.3881];
    let mut record = [0; 6];
    // The codes are 2, 13, 7, 8, 4, 11, 7, 8, as in the same row's record of pairs.
    encode_planes(&z, &[1.0; 8], &mut record);
    assert_eq!(record[2..4], [0b10_01_11_00, 0b10_01_10_01]);
    assert_eq!(record[4..6], [0b00_11_01_10, 0b00_11_11_00]);
    let factor = f16::from_le_bytes([record[0], record[1]]);
    assert!((factor.to_f32() - 1.6024).abs() < 0.001, "{factor}");
}

#[test]
fn rows_at_the_limits_have_defined_factors() {
    let mut random = Random(32);
    let sigma = random.scales(40);
    let mut record = vec![0xee; record_len(40)];
    for (wrong, at) in [(f32::NAN, 17), (f32::INFINITY, 0), (f32::NEG_INFINITY, 39)] {
        let mut row = random.gaussians(40);
        row[at] = wrong;
        encode_planes(&row, &sigma, &mut record);
        assert_eq!(record[..2], [0, 0], "{wrong}: a row that is not finite has factor 0");
    }
    encode_planes(&[0.0; 40], &sigma, &mut record);
    assert_eq!(record[..2], [0, 0]);
    encode_planes(&random.gaussians(40).iter().map(|x| 1e30 * x).collect::<Vec<_>>(), &sigma, &mut record);
    assert_eq!(f16::from_le_bytes([record[0], record[1]]), f16::MAX);
}

#[test]
fn each_depth_leaves_its_distortion() {
    let mut random = Random(33);
    for dim in [64, 128, 576] {
        let sigma = random.scales(dim);
        for depth in DEPTHS {
            let (mut left, mut all) = (0.0, 0.0);
            for _ in 0..300 {
                let row = rows(&mut random, 1, &sigma);
                let (mut record, mut decoded) = (vec![0; record_len(dim)], vec![0.0; dim]);
                encode_planes(&row, &sigma, &mut record);
                decode_planes(&record, &sigma, depth, &mut decoded);
                let unit = |i: usize, x: f32| f64::from(x) / f64::from(sigma[i]);
                left += squares((0..dim).map(|i| unit(i, row[i]) - unit(i, decoded[i])));
                all += squares((0..dim).map(|i| unit(i, row[i])));
            }
            let ratio = left / all / f64::from(depth.distortion());
            assert!((0.9..1.1).contains(&ratio), "dim {dim}, {depth:?}: {ratio} of the distortion");
        }
    }
}

#[test]
fn scores_and_sums_are_within_rounding_of_the_definition() {
    let mut random = Random(34);
    for (dim, heads) in dims().zip((1..=9).cycle()) {
        let count = 1 + dim % 37;
        let records = records(&mut random, count, dim);
        let listed: Vec<u32> = (0..count + 3).map(|_| (random.bits() % count as u64) as u32).collect();
        let (queries, weights) = (random.gaussians(heads * dim), random.gaussians(listed.len() * heads));
        let before = random.gaussians(heads * dim);
        let record = |row: &u32| &records[*row as usize * record_len(dim)..][..record_len(dim)];
        for (kernels, depth) in every_isa().into_iter().flat_map(|k| DEPTHS.map(|depth| (k, depth))) {
            let codes = RowCodes { records: &records, dim, depth };
            let mut scores = vec![f32::NAN; listed.len() * heads];
            kernels.scores_codes(&queries, heads, codes, &listed, &mut scores);
            for (place, score) in scores.iter().enumerate() {
                let record = record(&listed[place / heads]);
                let products = (0..dim)
                    .map(|i| f64::from(queries[place % heads * dim + i]) * level(record, dim, i, depth));
                let exact = factor(record) * products.clone().sum::<f64>();
                let bound = rounding(dim / 8) * factor(record) * products.map(f64::abs).sum::<f64>();
                assert!((f64::from(*score) - exact).abs() <= bound, "{:?} {dim} {place}", kernels.isa());
            }
            let mut out = before.clone();
            kernels.accumulate_codes(&weights, heads, codes, &listed, &mut out);
            for (place, out) in out.iter().enumerate() {
                let (head, i) = (place / dim, place % dim);
                let products = listed.iter().enumerate().map(|(at, row)| {
                    let record = record(row);
                    f64::from(weights[at * heads + head]) * factor(record) * level(record, dim, i, depth)
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

#[test]
fn the_second_plane_is_not_read_at_half_depth() {
    let mut random = Random(35);
    let (dim, heads, listed) = (72, 3, [4u32, 0, 2]);
    let clean = records(&mut random, 5, dim);
    let mut poisoned = clean.clone();
    for record in poisoned.chunks_exact_mut(record_len(dim)) {
        record[Depth::Half.len(dim)..].fill(0xa5);
    }
    let queries = random.gaussians(heads * dim);
    for kernels in every_isa() {
        let answers = [&clean, &poisoned].map(|records| {
            let codes = RowCodes { records, dim, depth: Depth::Half };
            let (mut scores, mut out) = (vec![0.0; 9], vec![0.0; heads * dim]);
            kernels.scores_codes(&queries, heads, codes, &listed, &mut scores);
            kernels.accumulate_codes(&scores, heads, codes, &listed, &mut out);
            (scores, out)
        });
        assert_eq!(answers[0], answers[1], "{:?}", kernels.isa());
    }
}
