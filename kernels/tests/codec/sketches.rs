//! Sketches: their layout, what they leave, and scoring them.

use longwave_kernels::codec::{
    DISTORTION, SCAN_STEP, ScanOf, ScanPlanes, SketchLayout, SketchQuery, decode_sketch, encode_sketch,
    factor_of_code,
};

use longwave_kernels::Kernels;
use longwave_kernels::ladder::RowSums;

use super::{Random, dims, every_isa, rows, squares};

/// Bits with so many dimensions of 4, 2 and 1, the others of 0.
fn bits(dim: usize, fours: usize, twos: usize, ones: usize) -> Vec<u8> {
    let mut bits = [vec![4; fours], vec![2; twos], vec![1; ones]].concat();
    assert!(bits.len() <= dim);
    bits.resize(dim, 0);
    bits
}

/// Layouts of about a bit a dimension, by `step`, and an unusual one now and then.
fn layout_of(dim: usize, step: usize) -> SketchLayout {
    let fours = dim / 8 * step % (dim / 4 + 1);
    let twos = (dim - 4 * fours) / 2 / (1 + step % 3) / 2 * 2;
    SketchLayout::new(&match step % 5 {
        0 => bits(dim, 0, 0, dim),
        1 => bits(dim, 1, 0, dim - 8),
        2 => bits(dim, dim, 0, 0),
        _ => bits(dim, fours, twos, (dim - 4 * fours - 2 * twos) / 4 * 4),
    })
}

#[test]
fn bits_that_no_sketch_has_are_refused() {
    let refused = [
        (vec![4, 3, 2, 2, 0, 0, 0, 0], "3 bits"),
        (vec![8, 0, 0, 0, 0, 0, 0, 0], "8 bits"),
        (vec![4, 2, 4, 2, 0, 0, 0, 0], "ascending"),
        (vec![4, 2, 0, 0, 0, 0, 0, 0], "an odd number of 2s"),
        (vec![4, 1, 1, 0, 0, 0, 0, 0], "two 1s"),
        (vec![1; 12], "a dimension that is not supported"),
        (vec![], "none"),
    ];
    for (bits, why) in refused {
        assert_eq!(SketchLayout::checked(&bits), None, "{why}");
    }
    let layout = SketchLayout::new(&[4, 4, 4, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((layout.nibbles(), layout.bytes(), layout.kept()), (5, 3, 9));
    assert_eq!([0, 1, 9, 32, 33, 64].map(|rows| layout.record_len(rows)), [0, 4, 36, 128, 132, 256]);
    assert_eq!([0, 2, 3, 4, 5, 8, 9, 15].map(|i| layout.bits(i)), [4, 4, 2, 2, 1, 1, 0, 0]);
}

#[test]
fn codes_lie_where_the_format_says() {
    let layout = SketchLayout::new(&[4, 4, 4, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Of unit mean square over the nine dimensions with bits.
    let z = [-2.5, 0.1, 0.4, -0.3, 0.5, 0.5, -0.5, -0.5, 1.061, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0];
    let mut all = vec![0.0; 35 * 16];
    all[33 * 16..34 * 16].copy_from_slice(&z);
    let mut record = vec![0xee; layout.record_len(35)];
    encode_sketch(&layout, &all, &[1.0; 16], &mut record);
    // Row 33 is the second of the second block, of 3 rows: three columns of codes and one of factors.
    let block = &record[32 * 4..];
    assert_eq!(block.len(), 3 * 4);
    let column = |b: usize| block[b * 3 + 1];
    assert_eq!(column(0), 8 << 4, "codes 0 and 8");
    assert_eq!(column(1), 9 | (1 | 2 << 2) << 4, "code 9, then 1 and 2 in two bits each");
    assert_eq!(column(2), 0b1001, "signs + - - +, and nothing");
    assert!((120..=130).contains(&column(3)), "a factor near 1: {}", column(3));
    // Rows of zeros have a factor of 0.
    assert_eq!((&record[32 * 3..32 * 4], [block[9], block[11]]), (&[0; 32][..], [0, 0]));
}

#[test]
fn a_cluster_is_coded_alike_everywhere_and_decoded_with_it() {
    let mut random = Random(12);
    for (step, dim) in dims().enumerate() {
        let (layout, sigma, count) = (layout_of(dim, step), random.scales(dim), 1 + 7 * step % 70);
        let mut z = rows(&mut random, count, &sigma);
        z[..dim].fill(0.0);
        z[(count - 1) * dim + dim / 3] = 1e20;
        let mut expected = vec![0xee; layout.record_len(count)];
        encode_sketch(&layout, &z, &sigma, &mut expected);
        let (mut plain, mut factors) = (vec![f32::NAN; z.len()], vec![f32::NAN; count]);
        decode_sketch(&layout, &expected, count, &sigma, &mut plain, &mut factors);
        for kernels in every_isa() {
            let mut record = vec![0xee; expected.len()];
            let (mut decoded, mut found) = (vec![f32::NAN; z.len()], vec![f32::NAN; count]);
            kernels.encode_sketch(&layout, &z, &sigma, &mut record, (&mut decoded, &mut found));
            assert_eq!((record, decoded, found), (expected.clone(), plain.clone(), factors.clone()), "{dim}");
        }
    }
}

#[test]
fn every_allocation_leaves_what_lloyd_and_max_say() {
    let mut random = Random(7);
    for (dim, fours, twos, ones) in [(128, 0, 0, 128), (128, 0, 128, 0), (128, 128, 0, 0), (64, 6, 8, 24)] {
        let bits = bits(dim, fours, twos, ones);
        let layout = SketchLayout::new(&bits);
        let sigma = random.scales(dim);
        let z = rows(&mut random, 600, &sigma);
        let mut record = vec![0; layout.record_len(600)];
        encode_sketch(&layout, &z, &sigma, &mut record);
        let (mut decoded, mut factors) = (vec![0.0; z.len()], vec![0.0; 600]);
        decode_sketch(&layout, &record, 600, &sigma, &mut decoded, &mut factors);
        let unit = |i: usize, x: f32| f64::from(x) / f64::from(sigma[i % dim]);
        let left = squares((0..z.len()).map(|i| unit(i, z[i]) - unit(i, decoded[i]))) / 600.0;
        let expected: f64 = bits.iter().map(|&bits| f64::from(DISTORTION[usize::from(bits)])).sum();
        // Where bits are mixed, the one factor of a row suits no dimension wholly.
        let most = if twos % dim == 0 { 1.1 } else { 1.2 };
        assert!((0.9..most).contains(&(left / expected)), "{dim} {fours}: {left}, expected {expected}");
    }
}

#[test]
fn rows_at_the_limits_decode_to_finite_numbers() {
    let layout = layout_of(40, 3);
    let mut random = Random(8);
    let sigma = random.scales(40);
    for size in [0.0, 1e-44, 1e-20, 1e20, f32::NAN, f32::INFINITY] {
        let z: Vec<f32> = random.gaussians(80).into_iter().map(|x| x * size).collect();
        let mut record = vec![0; layout.record_len(2)];
        encode_sketch(&layout, &z, &sigma, &mut record);
        let (mut decoded, mut factors) = (vec![f32::NAN; 80], [f32::NAN; 2]);
        decode_sketch(&layout, &record, 2, &sigma, &mut decoded, &mut factors);
        assert!(decoded.iter().chain(&factors).all(|x| x.is_finite()), "{size}");
    }
}

/// Exact scores of decoded rows, and the sums of their products' sizes: `[row][head]`.
fn exact_scores(queries: &[f32], heads: usize, decoded: &[f32], dim: usize) -> Vec<(f64, f64)> {
    let product = |row: &[f32], head: usize| {
        let products = row.iter().zip(&queries[head * dim..]).map(|(x, q)| f64::from(*x) * f64::from(*q));
        (products.clone().sum::<f64>(), products.map(f64::abs).sum::<f64>())
    };
    decoded.chunks_exact(dim).flat_map(|row| (0..heads).map(move |head| product(row, head))).collect()
}

#[test]
fn scores_are_within_their_bound_of_what_is_decoded() {
    let mut random = Random(9);
    for (step, dim) in dims().enumerate() {
        let layout = layout_of(dim, step);
        let (heads, count) = (1 + step % 9, 1 + step * 5 % 75);
        let sigma = random.scales(dim);
        let z = rows(&mut random, count, &sigma);
        let mut record = vec![0; layout.record_len(count)];
        encode_sketch(&layout, &z, &sigma, &mut record);
        let (mut decoded, mut expected) = (vec![0.0; z.len()], vec![0.0; count]);
        // With scales of 1 the scales are the query's.
        decode_sketch(&layout, &record, count, &vec![1.0; dim], &mut decoded, &mut expected);
        let queries = random.gaussians(heads * dim);
        let exact = exact_scores(&queries, heads, &decoded, dim);
        let query = SketchQuery::new(&layout, &queries, heads);
        for kernels in every_isa() {
            let (scores, factors) = scores_by_row(kernels, &query, &record, count);
            assert_eq!(factors, expected);
            for (place, (score, (exact, size))) in scores.iter().zip(&exact).enumerate() {
                let factor = f64::from(factors[place / heads]);
                let bound = factor * f64::from(query.error_bound(place % heads)) + 1e-5 * size;
                let off = (f64::from(*score) - exact).abs();
                assert!(off <= bound, "{:?} {dim} {layout:?} {place}: {off} {bound}", kernels.isa());
            }
        }
    }
}

/// Scores `[row][head]` and factors, through planes that are longer than the rows: nothing else may be written.
fn scores_by_row(
    kernels: &Kernels,
    query: &SketchQuery,
    record: &[u8],
    count: usize,
) -> (Vec<f32>, Vec<f32>) {
    let stride = count + 5;
    let (mut planes, mut factors) = (vec![-7.5; query.heads() * stride], vec![f32::NAN; count]);
    kernels.scores_sketch(query, record, count, stride, &mut planes, &mut factors);
    let (mut scores, mut rest) = (Vec::<f32>::new(), Vec::<f32>::new());
    for row in 0..stride {
        let heads = planes[row..].iter().step_by(stride);
        if row < count { scores.extend(heads) } else { rest.extend(heads) }
    }
    assert_eq!(rest, vec![-7.5; 5 * query.heads()], "{:?}", kernels.isa());
    (scores, factors)
}

#[test]
fn a_scan_is_scores_and_weights_in_one() {
    let mut random = Random(12);
    for (step, dim) in dims().enumerate() {
        let layout = layout_of(dim, step);
        let (heads, count) = (1 + step % 9, 1 + step * 7 % 75);
        let sigma = random.scales(dim);
        let z = rows(&mut random, count, &sigma);
        let mut record = vec![0; layout.record_len(count)];
        encode_sketch(&layout, &z, &sigma, &mut record);
        let query = SketchQuery::new(&layout, &random.gaussians(heads * dim), heads);
        let (centres, tops) = (random.gaussians(heads), random.gaussians(heads));
        let noises: Vec<f32> = random.gaussians(heads).iter().map(|x| x.abs()).collect();
        let of = ScanOf { centres: &centres, noises: &noises, tops: &tops, most: 2.5 };
        for kernels in every_isa() {
            let (scores, factors) = scores_by_row(kernels, &query, &record, count);
            let wide = count.next_multiple_of(SCAN_STEP);
            let stride = wide + 3;
            let [mut scored, mut weights, mut deviations] = [(); 3].map(|()| vec![-7.5; heads * stride]);
            let mut sums = vec![RowSums::default(); heads];
            let mut planes = ScanPlanes {
                stride,
                scores: &mut scored,
                weights: &mut weights,
                deviations: &mut deviations,
            };
            kernels.scan_sketch(&query, &record, count, &of, &mut planes, &mut sums);
            for head in 0..heads {
                let mut expected: Vec<f32> =
                    (0..count).map(|row| scores[row * heads + head] + centres[head]).collect();
                let place = head * stride;
                assert_eq!(scored[place..place + count], expected, "{:?} {dim}", kernels.isa());
                let off: Vec<f32> = factors.iter().map(|factor| noises[head] * factor).collect();
                let summed = kernels.weigh_rows(&mut expected, &off, tops[head], 2.5);
                assert_eq!(weights[place..place + count], expected, "{:?} {dim}", kernels.isa());
                assert_eq!(deviations[place..place + count], off);
                assert_eq!(sums[head], summed);
                for plane in [&weights, &deviations] {
                    assert!(plane[place + count..place + wide].iter().all(|x| *x == 0.0));
                }
                for plane in [&scored, &weights, &deviations] {
                    assert!(plane[place + wide..place + stride].iter().all(|x| *x == -7.5));
                }
            }
        }
    }
}

#[test]
fn the_tables_lose_little_beside_the_sketch() {
    let mut random = Random(10);
    // Variances that fall as those of real residuals do, bits as they would be given out.
    for (dim, fours, twos, ones) in [(64, 4, 8, 32), (128, 8, 16, 64), (128, 0, 0, 128), (192, 16, 24, 80)] {
        let layout = SketchLayout::new(&bits(dim, fours, twos, ones));
        let sigma: Vec<f32> = (0..dim).map(|i| 4.0 / (1.0 + i as f32 / 4.0)).collect();
        let (heads, count) = (5, 640);
        let z = rows(&mut random, count, &sigma);
        let mut record = vec![0; layout.record_len(count)];
        encode_sketch(&layout, &z, &sigma, &mut record);
        let (mut decoded, mut factors) = (vec![0.0; z.len()], vec![0.0; count]);
        decode_sketch(&layout, &record, count, &sigma, &mut decoded, &mut factors);
        let queries = random.gaussians(heads * dim);
        let scaled: Vec<f32> = queries.iter().zip(sigma.iter().cycle()).map(|(q, s)| q * s).collect();
        let query = SketchQuery::new(&layout, &scaled, heads);
        for kernels in every_isa() {
            let (scores, _) = scores_by_row(kernels, &query, &record, count);
            let (coded, truth) =
                (exact_scores(&queries, heads, &decoded, dim), exact_scores(&queries, heads, &z, dim));
            let tables =
                squares(scores.iter().zip(&coded).map(|(score, (coded, _))| f64::from(*score) - coded));
            let sketch = squares(coded.iter().zip(&truth).map(|((coded, _), (truth, _))| coded - truth));
            assert!(tables > 0.0 && tables < 0.02 * sketch, "{dim} {fours}: {tables} beside {sketch}");
        }
    }
}

#[test]
fn instruction_sets_agree_on_any_bytes() {
    let mut random = Random(11);
    for step in 0..40 {
        let dim = 8 + step * 8;
        let layout = layout_of(dim, step);
        let count = 1 + step * 3 % 70;
        let record: Vec<u8> = (0..layout.record_len(count)).map(|_| random.bits() as u8).collect();
        let heads = 1 + step % 5;
        let query = SketchQuery::new(&layout, &random.gaussians(heads * dim), heads);
        let mut factors = vec![f32::NAN; count];
        let all: Vec<Vec<f32>> = every_isa()
            .iter()
            .map(|kernels| {
                let scores;
                (scores, factors) = scores_by_row(kernels, &query, &record, count);
                let columns = (layout.bytes() + 1) * 32;
                let code = |row: usize| {
                    let height = (count - row / 32 * 32).min(32);
                    record[row / 32 * columns + layout.bytes() * height + row % 32]
                };
                (0..count).for_each(|row| assert_eq!(factors[row], factor_of_code(code(row))));
                scores
            })
            .collect();
        for scores in &all[1..] {
            // The sums of bytes are the same; a sum's rounding is far below what a table entry may be off by.
            let bound = |place: usize| 1e-3 * factors[place / heads] * query.error_bound(place % heads);
            for (place, (a, b)) in scores.iter().zip(&all[0]).enumerate() {
                assert!((a - b).abs() <= bound(place), "{dim}: {a} {b}");
            }
        }
    }
}
