//! What is read is what the rows say, within the error of the codes.

use longwave_index::ladder::{HeadLadder, LadderView, Moment, columns};
use longwave_index::validate;
use longwave_kernels::codec::{DISTORTION, Depth, decode_planes, decode_sketch, decode4, record_len};
use longwave_kernels::{Kernels, Rows, f16, rotate};
use longwave_storage::{ColumnKind, Error, Segment};

use super::{HEADS, KEY_DIM, Layer, ROWS, Random, VALUE_DIM, open, queries, write_and_open};

/// Rows of one head as they are stored, in `f64`; values are rotated.
struct Stored {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn stored(segment: &Segment, head: usize) -> Stored {
    let widened = |kind: ColumnKind, dim: usize, turn: bool| {
        let bytes = segment.column(kind).unwrap().all().unwrap();
        let bytes = &bytes[head * ROWS * dim * 2..][..ROWS * dim * 2];
        let elements: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        let mut rows = vec![0.0; elements.len()];
        Kernels::get().widen(Rows::F16(&elements), &mut rows);
        if turn {
            rotate(&mut rows, dim, false);
        }
        rows.chunks_exact(dim).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
    };
    Stored {
        keys: widened(ColumnKind::KEYS, KEY_DIM, false),
        values: widened(ColumnKind::VALUES, VALUE_DIM, true),
    }
}

fn decode(records: &[u8], sigma: &[f32]) -> Vec<Vec<f64>> {
    let mut row = vec![0.0; sigma.len()];
    let mut all = Vec::new();
    for record in records.chunks_exact(record_len(sigma.len())) {
        decode4(record, sigma, &mut row);
        all.push(row.iter().map(|&x| f64::from(x)).collect());
    }
    all
}

/// Rows from their codes, as far as `depth` says.
fn codes(records: &[u8], sigma: &[f32], depth: Depth) -> Vec<Vec<f64>> {
    let mut row = vec![0.0; sigma.len()];
    let records = records.chunks_exact(record_len(sigma.len()));
    records
        .map(|record| {
            decode_planes(record, sigma, depth, &mut row);
            wide(&row)
        })
        .collect()
}

/// Coordinates of the sketches of all rows, and their factors.
fn sketches(ladder: &HeadLadder<'_>, offsets: &[u32]) -> (Vec<Vec<f64>>, Vec<f64>) {
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for (cluster, bounds) in offsets.windows(2).enumerate() {
        let count = (bounds[1] - bounds[0]) as usize;
        let (mut z, mut factors) = (vec![0.0; count * KEY_DIM], vec![0.0; count]);
        let record = ladder.sketch(cluster).unwrap();
        decode_sketch(&ladder.layout, record, count, ladder.sketch_sigma, &mut z, &mut factors);
        rows.extend(z.chunks_exact(KEY_DIM).map(wide));
        all.extend(wide(&factors));
    }
    (rows, all)
}

/// Coordinates of all rows less their centroids, by sketch and code together.
fn coordinates(ladder: &HeadLadder<'_>, offsets: &[u32], depth: Depth) -> Vec<Vec<f64>> {
    let coded = codes(ladder.key_code_bytes(0..ROWS).unwrap(), ladder.key_sigma, depth);
    sketches(ladder, offsets).0.iter().zip(&coded).map(|(sketch, code)| plus(sketch, code)).collect()
}

/// A key from its coordinates: `z · inverse`.
fn key_of(ladder: &HeadLadder<'_>, z: &[f64]) -> Vec<f64> {
    let element =
        |i: usize, j: usize| f64::from(ladder.inverse[i * KEY_DIM + j]) * f64::from(ladder.inverse_scale[i]);
    (0..KEY_DIM).map(|j| (0..KEY_DIM).map(|i| z[i] * element(i, j)).sum()).collect()
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let sum = rows.iter().skip(1).fold(rows[0].clone(), |sum, row| plus(&sum, row));
    sum.into_iter().map(|x| x / rows.len() as f64).collect()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

/// Coded centroids as keys.
fn centroids(ladder: &HeadLadder<'_>) -> Vec<Vec<f64>> {
    let coded = decode(ladder.centroids, ladder.centroid_sigma);
    coded.iter().map(|z| plus(&key_of(ladder, z), &wide(ladder.middle))).collect()
}

fn near(what: &str, found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs(), "{what}: {found}, expected {expected}");
}

/// Mean squared product of queries of the moment with `difference`: what an error costs in scores.
fn cost(moment: &Moment, difference: &[f64]) -> f64 {
    let row = |i: usize| wide(&moment.matrix[i * KEY_DIM..][..KEY_DIM]);
    (0..KEY_DIM).map(|i| difference[i] * row(i).iter().zip(difference).map(|(m, x)| m * x).sum::<f64>()).sum()
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[test]
fn keys_come_back_at_every_resolution() {
    let layer = Layer::new(1);
    let built = layer.build();
    let segment = write_and_open(&built.columns(), ROWS);
    validate(&segment).unwrap();
    let view = open(&segment);
    for head in 0..HEADS {
        let (ladder, rows) = (view.head(head).unwrap(), stored(&segment, head).keys);
        let offsets = view.postings().offsets(head).unwrap();
        let [half, coded] = [Depth::Half, Depth::Whole].map(|depth| coordinates(&ladder, offsets, depth));
        let (sketches, factors) = sketches(&ladder, offsets);
        let centroids = centroids(&ladder);
        let moment = &layer.moments[head];
        let [mut alone, mut sketched, mut coded_half, mut coded_fully] = [0.0; 4];
        let [mut left, mut factors_squared, mut off_centre, mut centroid_error] = [0.0; 4];
        for (cluster, bounds) in offsets.windows(2).enumerate() {
            let range = bounds[0] as usize..bounds[1] as usize;
            let exact = mean(&rows[range.clone()]);
            off_centre += cost(moment, &minus(&exact, &wide(ladder.middle)));
            centroid_error += cost(moment, &minus(&exact, &centroids[cluster]));
            for row in range {
                let residual = minus(&rows[row], &centroids[cluster]);
                alone += cost(moment, &residual);
                sketched += cost(moment, &minus(&residual, &key_of(&ladder, &sketches[row])));
                coded_half += cost(moment, &minus(&residual, &key_of(&ladder, &half[row])));
                coded_fully += cost(moment, &minus(&residual, &key_of(&ladder, &coded[row])));
                // The code is so near that it stands in for the row's own coordinates.
                left += distance(&coded[row], &sketches[row]);
                factors_squared += factors[row].powi(2);
            }
        }
        let four = 3.0 * f64::from(DISTORTION[4]);
        assert!(centroid_error < four * off_centre, "centroids: {centroid_error} of {off_centre}");
        assert!(sketched < f64::from(DISTORTION[1]) * alone, "a bit: {sketched} of {alone}");
        assert!(
            coded_half < 1.5 * f64::from(Depth::Half.distortion()) * sketched,
            "{coded_half} of {sketched}"
        );
        let whole = 2.0 * f64::from(Depth::Whole.distortion());
        assert!(coded_fully < whole * sketched, "four bits more: {coded_fully} of {sketched}");
        let noise = (left / factors_squared / KEY_DIM as f64).sqrt();
        near("sketch noise", f64::from(ladder.sketch_noise), noise, 0.1);
    }
}

#[test]
fn spreads_and_shape_are_those_of_the_coordinates() {
    let layer = Layer::new(2);
    let segment = write_and_open(&layer.build().columns(), ROWS);
    let view = open(&segment);
    for head in 0..HEADS {
        let (ladder, rows) = (view.head(head).unwrap(), stored(&segment, head).keys);
        let offsets = view.postings().offsets(head).unwrap();
        let coded = coordinates(&ladder, offsets, Depth::Whole);
        let total: f64 = ladder.shape.iter().map(|&x| f64::from(x)).sum();
        near("the shape's sum", total, 1.0, 0.005);
        let mut variances = vec![0.0; KEY_DIM];
        for (cluster, bounds) in offsets.windows(2).enumerate() {
            let range = bounds[0] as usize..bounds[1] as usize;
            let summary = ladder.cluster(cluster);
            assert_eq!(summary.count, range.len() as f32);
            let zero = vec![0.0; KEY_DIM];
            let spread =
                range.clone().map(|row| distance(&coded[row], &zero)).sum::<f64>() / range.len() as f64;
            // A spread is stored to a sixteenth of an octave.
            near("key spread", f64::from(summary.key_spread), spread, 0.06);
            for row in range {
                for (variance, z) in variances.iter_mut().zip(&coded[row]) {
                    *variance += z * z / f64::from(summary.key_spread) / ROWS as f64;
                }
            }
        }
        for (variance, shape) in variances.iter().zip(ladder.shape) {
            // A quarter of a spread is taken to lie in all dimensions alike.
            near("shape", f64::from(*shape), 0.75 * variance + 0.25 / KEY_DIM as f64, 0.1);
        }
        // A score is the product of coordinates: inverse · q with z is q with z · inverse.
        let query: Vec<f64> = (0..KEY_DIM).map(|i| (i as f64 * 0.7).sin()).collect();
        let turned: Vec<f64> = (0..KEY_DIM)
            .map(|i| {
                let row = ladder.inverse[i * KEY_DIM..][..KEY_DIM].iter();
                f64::from(ladder.inverse_scale[i])
                    * row.zip(&query).map(|(&m, q)| f64::from(m) * q).sum::<f64>()
            })
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let centroids = centroids(&ladder);
        let cluster = offsets.windows(2).position(|bounds| bounds[1] > 100).unwrap();
        let key = minus(&rows[100], &centroids[cluster]);
        let off = dot(&query, &key) - dot(&turned, &coded[100]);
        assert!(off.abs() < 0.5 * distance(&key, &vec![0.0; KEY_DIM]).sqrt(), "{off}");
        near(
            "a score by coordinates",
            dot(&turned, &coded[100]),
            dot(&query, &key_of(&ladder, &coded[100])),
            1e-9,
        );
    }
}

#[test]
fn values_come_back_at_every_resolution() {
    let layer = Layer::new(3);
    let segment = write_and_open(&layer.build().columns(), ROWS);
    let view = open(&segment);
    for head in 0..HEADS {
        let (ladder, rows) = (view.head(head).unwrap(), stored(&segment, head).values);
        let global = mean(&rows);
        for (found, expected) in ladder.global_value.iter().zip(&global) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-4 + expected.abs() / 256.0,
                "{found} {expected}"
            );
        }
        let offsets = view.postings().offsets(head).unwrap();
        let means: Vec<_> = decode(ladder.value_means, ladder.value_mean_sigma)
            .iter()
            .map(|z| plus(z, &wide(ladder.global_value)))
            .collect();
        let records = ladder.value_code_bytes(0..ROWS).unwrap();
        let [half, coded] =
            [Depth::Half, Depth::Whole].map(|depth| codes(records, ladder.value_sigma, depth));
        let [mut deviation, mut half_left, mut left, mut all] = [0.0; 4];
        for (cluster, bounds) in offsets.windows(2).enumerate() {
            let range = bounds[0] as usize..bounds[1] as usize;
            let exact = mean(&rows[range.clone()]);
            deviation += distance(&exact, &global) / means.len() as f64;
            let summary = ladder.cluster(cluster);
            near("mean error", f64::from(summary.mean_error), distance(&exact, &means[cluster]), 0.06);
            let spreads: Vec<f64> = range.clone().map(|row| distance(&rows[row], &means[cluster])).collect();
            let spread = spreads.iter().sum::<f64>() / range.len() as f64;
            near("value spread", f64::from(summary.value_spread), spread, 0.06);
            all += spreads.iter().sum::<f64>();
            let off = |codes: &[Vec<f64>]| -> f64 {
                range.clone().map(|row| distance(&rows[row], &plus(&means[cluster], &codes[row]))).sum()
            };
            half_left += off(&half);
            left += off(&coded);
        }
        near("mean deviation", f64::from(ladder.mean_deviation), deviation, 0.01);
        assert!(left < 1.5 * f64::from(Depth::Whole.distortion()) * all, "{left} of {all}");
        assert!(half_left < 1.5 * f64::from(Depth::Half.distortion()) * all, "{half_left} of {all}");
    }
}

#[test]
fn sizes_are_those_of_the_layout() {
    let built = Layer::new(4).build();
    let segment = write_and_open(&built.columns(), ROWS);
    let view = open(&segment);
    let clusters = view.postings().clusters();
    let mut sketches = 0;
    for head in 0..HEADS {
        let ladder = view.head(head).unwrap();
        assert_eq!(ladder.layout.bytes(), KEY_DIM / 8, "a bit a dimension");
        for (cluster, bounds) in view.postings().offsets(head).unwrap().windows(2).enumerate() {
            let rows = (bounds[1] - bounds[0]) as usize;
            assert_eq!(ladder.sketch(cluster).unwrap().len(), (KEY_DIM / 8 + 1) * rows);
            sketches += ladder.sketch(cluster).unwrap().len();
        }
        assert!(matches!(ladder.key_code_bytes(ROWS - 1..ROWS + 1), Err(Error::Range { .. })));
        assert!(matches!(ladder.value_code_bytes(0..ROWS + 1), Err(Error::Range { .. })));
    }
    assert!(matches!(view.head(HEADS), Err(Error::Limit { .. })));
    let expected = [
        (columns::PARAMETERS, 32),
        (columns::BASIS, HEADS * KEY_DIM * KEY_DIM),
        (columns::BITS, HEADS * KEY_DIM),
        (columns::SCALES, HEADS * (6 * KEY_DIM + 3 * VALUE_DIM + 6) * 2),
        (columns::CENTROID, clusters * (KEY_DIM / 2 + 2)),
        (columns::CLUSTER, clusters * 5),
        (columns::VALUE_MEAN, clusters * (VALUE_DIM / 2 + 2)),
        (columns::SKETCH, sketches),
        (columns::SKETCH_OFFSETS, (HEADS + 1) * 8),
        (columns::KEY_CODE, HEADS * ROWS * (KEY_DIM / 2 + 2)),
        (columns::VALUE_CODE, HEADS * ROWS * (VALUE_DIM / 2 + 2)),
        (columns::VALUE_SLOPE, HEADS * KEY_DIM * (VALUE_DIM / 2 + 2)),
    ];
    for (kind, len) in expected {
        assert_eq!(segment.column(kind).unwrap().len(), len, "{kind:?}");
    }
}

#[test]
fn a_segment_built_without_a_ladder_has_none() {
    let built = Layer::new(5).build();
    let only_index: Vec<_> =
        built.columns().into_iter().filter(|c| c.kind.0 < columns::PARAMETERS.0).collect();
    let segment = write_and_open(&only_index, ROWS);
    validate(&segment).unwrap();
    assert!(LadderView::open(&segment).unwrap().is_none());
}

#[test]
fn slopes_are_the_moments_of_scores_and_values() {
    let mut layer = Layer::new(12);
    layer.values_follow_keys();
    let segment = write_and_open(&layer.build().columns(), ROWS);
    let view = open(&segment);
    for head in 0..HEADS {
        let (ladder, rows) = (view.head(head).unwrap(), stored(&segment, head));
        let (centroids, offsets) = (centroids(&ladder), view.postings().offsets(head).unwrap());
        let means = decode(ladder.value_means, ladder.value_mean_sigma);
        let slope = decode(ladder.value_slope, ladder.value_sigma);
        for query in queries(&mut Random::new(3), 5, KEY_DIM).chunks_exact(KEY_DIM).map(wide) {
            let mut moment = vec![0.0; VALUE_DIM];
            for (cluster, bounds) in offsets.windows(2).enumerate() {
                for row in bounds[0] as usize..bounds[1] as usize {
                    let rise = dot(&query, &rows.keys[row]) - dot(&query, &centroids[cluster]);
                    for (j, moment) in moment.iter_mut().enumerate() {
                        let mean = means[cluster][j] + f64::from(ladder.global_value[j]);
                        *moment += rise * (rows.values[row][j] - mean) / ROWS as f64;
                    }
                }
            }
            let (mut found, mut noise) = (vec![0.0; VALUE_DIM], 0.0);
            for (i, record) in slope.iter().enumerate() {
                let axis: Vec<f64> =
                    ladder.inverse[i * KEY_DIM..][..KEY_DIM].iter().map(|&x| f64::from(x)).collect();
                let along = dot(&axis, &query)
                    * f64::from(ladder.inverse_scale[i])
                    * f64::from(ladder.sketch_sigma[i]);
                found.iter_mut().zip(record).for_each(|(sum, x)| *sum += along * x);
                noise += along * along * dot(record, record) * f64::from(DISTORTION[4]);
            }
            // What codes leave of one record has nothing to do with what they leave of another.
            assert!(distance(&found, &moment) <= 3.0 * noise, "{} of {noise}", distance(&found, &moment));
            assert!(dot(&moment, &moment) > 20.0 * noise, "values do not follow keys");
        }
    }
}

#[test]
fn slopes_of_an_earlier_segment_hold_for_a_short_one() {
    let mut layer = Layer::new(13);
    let first = layer.build();
    layer.bases = first.ladder.map(|ladder| ladder.bases().to_vec());
    let segment = write_and_open(&layer.build().columns(), ROWS);
    validate(&segment).unwrap();
    assert!(!segment.has_column(columns::VALUE_SLOPE));
    assert!(open(&segment).head(1).unwrap().value_slope.is_empty());
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
