//! Rows of opened clusters.

use super::*;

/// A zone in three units: clusters of less than a warp, of a row, and of more than a warp.
const OPENED: [(u32, u32); 7] = [(2, 7), (4, 1), (30, 40), (40, 33), (55, 5), (56, 64), (79, 12)];
const ROWS: usize = 162;

fn opened() -> Vec<Opened> {
    OPENED
        .iter()
        .map(|&(place, rows)| Opened { place, rows, strip: strip_of(place as usize) as u32 })
        .collect()
}

/// The opened cluster of a row of the zone.
fn cluster_of(row: usize) -> usize {
    let ends = OPENED.iter().scan(0, |end, (_, rows)| {
        *end += *rows as usize;
        Some(*end)
    });
    ends.take_while(|&end| end <= row).count()
}

fn place_of(row: usize) -> usize {
    OPENED[cluster_of(row)].0 as usize
}

/// Rows of an opened cluster.
fn rows_of(number: usize) -> std::ops::Range<usize> {
    let first: u32 = OPENED[..number].iter().map(|(_, rows)| rows).sum();
    first as usize..(first + OPENED[number].1) as usize
}

/// Planes of rows and clusters, as kernels behind the scan take them.
struct Planes {
    sketched: Vec<f32>,
    scores: Vec<f32>,
    weights: Vec<f32>,
    deviations: Vec<f32>,
    marks: Vec<u32>,
    clusters: Vec<f32>,
}

impl Planes {
    fn new(scene: &mut Scene) -> Planes {
        let group = scene.group;
        Planes {
            sketched: scene.numbers.units(ROWS * group, 2.5),
            scores: scene.numbers.units(ROWS * group, 2.0),
            weights: Scene::positive(scene.numbers.units(ROWS * group, 1.0), 0.01),
            deviations: Scene::positive(scene.numbers.units(ROWS * group, 1.0), 0.1),
            marks: (0..ROWS).map(|row| [0, 1, 0, 2, 0][row % 5]).collect(),
            clusters: Scene::positive(scene.plane(5.0), 0.5),
        }
    }

    fn upload(&self, device: &Device) -> RowPlanes {
        let up = |numbers: &[f32]| device.upload(numbers).unwrap();
        let marks = device.upload(&self.marks).unwrap();
        let [sketched, scores, weights, deviations, clusters] =
            [&self.sketched, &self.scores, &self.weights, &self.deviations, &self.clusters]
                .map(|plane| up(plane));
        RowPlanes { sketched, scores, weights, deviations, marks, clusters }
    }
}

#[test]
fn sketched_rows_weigh_what_their_scores_and_deviations_say() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (group, softcap) in GROUPS.iter().flat_map(|&group| [(group, 0.0), (group, 2.5)]) {
        let mut scene = Scene::new(group, 64, 90 + group as u64);
        let (scores, factors) =
            (scene.numbers.units(ROWS * group, 2.0), Scene::positive(scene.numbers.units(ROWS, 0.5), 0.3));
        let noise = Scene::positive(scene.numbers.units(8 * group, 1.0), 0.4);
        let (centres, tops, estimate) = (scene.plane(2.0), scene.heads(1.0), scene.plane(1.0));
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, _) = scene.upload(device);
            let up = |numbers: &[f32]| device.upload(numbers).unwrap();
            let zone = ZoneRows::new(device, &strips, &opened()).unwrap();
            let mut weighed = scene.weighed(device, &centres, &centres, &tops);
            (weighed.scores, weighed.estimate) = (up(&centres), up(&estimate));
            let scanned = (up(&scores), &up(&factors));
            let planes =
                device.weigh_rows(&strips, &zone, &weighed, scanned, &up(&noise), &limits(softcap)).unwrap();
            assert!(device.download(&planes.marks).unwrap()[..ROWS].iter().all(|&mark| mark == 0));
            let [scores, sketched] =
                [&planes.scores, &planes.sketched].map(|numbers| device.download(numbers).unwrap());
            assert!(scores == sketched);
            [&planes.weights, &planes.deviations, &planes.clusters, &planes.scores]
                .map(|numbers| device.download(numbers).unwrap())
                .into()
        });
        let mut sums = vec![(0.0, 0.0); PLACES * group];
        for (row, g) in (0..ROWS).flat_map(|row| (0..group).map(move |g| (row, g))) {
            let (place, at) = (place_of(row), row * group + g);
            let raw = f64::from(noise[strip_of(place) * group + g]) * f64::from(factors[row]);
            let score = f64::from(scores[at]) + f64::from(centres[place * group + g]);
            near(result[3][at], score, UNIT * score.abs(), "score");
            let (level, off, slope, slope_off) = capped(score, 1.5 * raw, softcap);
            let (deviation, deviation_off) = (raw * slope, raw * (slope_off + 4.0 * UNIT));
            near(result[1][at], deviation, deviation_off, "deviation");
            let top = f64::from(tops[unit_of(place) * group + g]);
            let over = (level + (deviation * deviation * 0.5).min(1.0) - top).min(2.0);
            let over_off = off + deviation * deviation_off + 8.0 * UNIT * (score.abs() + top.abs() + 2.0);
            let (weight, bound) = (over.exp(), over.exp() * (over_off + EXP));
            near(result[0][at], weight, bound, "weight");
            sums[place * group + g].0 += weight;
            sums[place * group + g].1 += bound + 8.0 * UNIT * weight;
        }
        for (at, (sum, off)) in sums.into_iter().enumerate() {
            if OPENED.iter().any(|(place, _)| *place as usize == at / group) {
                near(result[2][at], sum, off, "sum of an opened cluster");
            } else {
                assert_eq!(result[2][at], estimate[at], "a cluster that is not opened");
            }
        }
    }
}

#[test]
fn rows_gain_what_reading_them_could_change() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (group, is_value) in GROUPS.iter().flat_map(|&group| [(group, false), (group, true)]) {
        let mut scene = Scene::new(group, 64, 110 + group as u64);
        let (planes, distances) = (Planes::new(&mut scene), Distances::new(&mut scene));
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, summaries) = scene.upload(device);
            let zone = ZoneRows::new(device, &strips, &opened()).unwrap();
            let products = device.upload(&distances.products).unwrap();
            let (uploaded, rough) = (planes.upload(device), distances.rough(device));
            let products = (!is_value).then_some(&products);
            let gains =
                device.row_gains(&strips, &summaries, &zone, &uploaded, products, &rough, &limits(0.0));
            vec![device.download(&gains.unwrap()).unwrap()]
        });
        for (row, &found) in result[0].iter().enumerate() {
            let (place, mut gain, mut bound) = (place_of(row), 0.0, 0.0);
            let spread = scene.summary(place)[2];
            for g in 0..group {
                let (at, head) = (row * group + g, unit_of(place) * group + g);
                let (off, off_bound) = if is_value { (0.0, 0.0) } else { distances.off(&scene, place, g) };
                let deviation = f64::from(planes.deviations[at]);
                let up = (1.5 * deviation).min(6.0);
                let (factor, factor_off) = match is_value {
                    false => (up.exp() - 1.0, up.exp() * (EXP + 4.0 * UNIT)),
                    true => ((deviation * deviation).min(up).exp(), 8.0 * EXP),
                };
                let scale = f64::from(distances.norms[head]) * f64::from(distances.totals[head]);
                let reach2 = (off + spread) / (scale * scale);
                let weight = f64::from(planes.weights[at]);
                let change2 = weight * weight * reach2 * factor * factor;
                gain += change2;
                bound += change2 * (2.0 * factor_off / factor + 24.0 * UNIT)
                    + weight * weight * factor * factor * off_bound / (scale * scale);
            }
            near(found, gain, bound, if is_value { "gain of a value" } else { "gain of a key" });
        }
    }
}

/// Keys that are read: two of the first unit's clusters, none of the third unit's, some of the last's, at every resolution.
fn reads() -> (Vec<ReadKey>, Vec<u32>) {
    let [half, whole] = [Depth::Half, Depth::Whole].map(Resolution::Code);
    let full = Resolution::Full;
    let rows = [(3u32, half), (7, full), (20, full), (150, whole), (151, full), (161, half)];
    let read = |(number, &(row, resolution)): (usize, &(u32, Resolution))| {
        // Scores lie in another order than reads.
        ReadKey { row, resolution, score: (5 - number) as u32 }
    };
    (rows.iter().enumerate().map(read).collect(), vec![0, 3, 3, 3, 6])
}

#[test]
fn keys_that_were_read_replace_weights_and_may_become_the_top() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (group, softcap) in [(1, 0.0), (3, 0.0), (8, 2.5)] {
        let mut scene = Scene::new(group, 64, 130 + group as u64);
        let planes = Planes::new(&mut scene);
        let (centres, tops, steady) =
            (scene.plane(2.0), scene.heads(1.0), Scene::positive(scene.heads(1.0), 0.1));
        let (reads, starts) = reads();
        let mut scores = scene.numbers.units(reads.len() * group, 3.0);
        // Read 1 of the first unit is far above what was known, for its last head.
        scores[4 * group + group - 1] = 30.0;
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, _) = scene.upload(device);
            let up = |numbers: &[f32]| device.upload(numbers).unwrap();
            let zone = ZoneRows::new(device, &strips, &opened()).unwrap();
            let mut weighed = scene.weighed(device, &centres, &centres, &tops);
            weighed.steady = up(&steady);
            let (mut uploaded, mut scores) = (planes.upload(device), up(&scores));
            let reads = (&reads[..], &starts[..]);
            device
                .weigh_keys(&strips, &zone, reads, &mut scores, &mut weighed, &mut uploaded, &limits(softcap))
                .unwrap();
            let RowPlanes { weights, deviations, clusters, scores, .. } = &uploaded;
            [weights, deviations, clusters, &weighed.tops, &weighed.steady, scores]
                .map(|numbers| device.download(numbers).unwrap())
                .into()
        });
        let left = |read: &ReadKey| match read.resolution {
            Resolution::Code(Depth::Half) => 0.4,
            Resolution::Code(Depth::Whole) => 0.1,
            Resolution::Full => 0.0,
        };
        let uncapped = |read: &ReadKey, g: usize| {
            let (of_key, at) =
                (f64::from(scores[read.score as usize * group + g]), read.row as usize * group + g);
            let is_full = read.resolution == Resolution::Full;
            of_key + if is_full { 0.0 } else { f64::from(planes.sketched[at]) }
        };
        // The score by which a key is weighed, and a bound.
        let score = |read: &ReadKey, g: usize| {
            let at = read.row as usize * group + g;
            let (score, off, ..) = capped(uncapped(read, g), 1.0, softcap);
            let deviation = f64::from(planes.deviations[at]) * left(read);
            (score + (deviation * deviation / 2.0).min(0.05), off)
        };
        for g in 0..group {
            let (mut weights, mut raised) = (vec![(0.0, 0.0); ROWS], 0);
            for unit in 0..UNITS {
                let head = unit * group + g;
                let of_unit = reads.iter().filter(|read| unit_of(place_of(read.row as usize)) == unit);
                let of_unit: Vec<&ReadKey> = of_unit.collect();
                let most = of_unit.iter().map(|read| score(read, g).0).fold(f64::NEG_INFINITY, f64::max);
                let before = f64::from(tops[head]);
                let top = if most - before > 20.0 { most } else { before };
                raised += usize::from(top != before);
                let factor = (before - top).exp();
                near(result[3][head], top, 1e-5 + 4.0 * UNIT * top.abs(), "top");
                let expected = f64::from(steady[head]) * factor;
                near(result[4][head], expected, expected * (EXP + 90.0 * UNIT), "steady");
                for row in (0..ROWS).filter(|&row| unit_of(place_of(row)) == unit) {
                    let at = row * group + g;
                    let read = of_unit.iter().find(|read| read.row as usize == row);
                    let (weight, off, left) = match read {
                        Some(read) => {
                            let (score, off) = score(read, g);
                            ((score - top).exp(), off + 2e-5, left(read))
                        }
                        None => (f64::from(planes.weights[at]) * factor, 90.0 * UNIT, 1.0),
                    };
                    near(result[0][at], weight, weight * (off + 2.0 * EXP), "weight");
                    let score = read.map_or(f64::from(planes.scores[at]), |read| uncapped(read, g));
                    let off = if read.is_some() { UNIT * score.abs() } else { 0.0 };
                    near(result[5][at], score, off, "score");
                    weights[row] = (weight, weight * (off + 20.0 * UNIT));
                    let deviation = f64::from(planes.deviations[at]) * left;
                    near(result[1][at], deviation, 2.0 * UNIT * deviation, "deviation");
                }
                for place in (0..PLACES).filter(|&place| unit_of(place) == unit) {
                    let at = place * group + g;
                    let number = OPENED.iter().position(|(opened, _)| *opened as usize == place);
                    let (sum, off) = match number {
                        Some(number) => weights[rows_of(number)]
                            .iter()
                            .fold((0.0, 0.0), |sum, weight| (sum.0 + weight.0, sum.1 + weight.1)),
                        None => {
                            let weight = f64::from(planes.clusters[at]) * factor;
                            (weight, weight * 90.0 * UNIT)
                        }
                    };
                    near(result[2][at], sum, off + 4.0 * UNIT * sum, "weight of a cluster");
                }
            }
            assert_eq!(raised, usize::from(g == group - 1 && softcap == 0.0), "tops that were raised");
        }
    }
}

#[test]
fn values_read_in_full_no_longer_rest_on_means() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for group in GROUPS {
        let mut scene = Scene::new(group, 64, 150 + group as u64);
        let mut planes = Planes::new(&mut scene);
        planes.marks.fill(0);
        // The first four in codes, the others in full.
        let taken = [1u32, 9, 60, 161, 0, 8, 61, 62, 100, 140, 149];
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, _) = scene.upload(device);
            let zone = ZoneRows::new(device, &strips, &opened()).unwrap();
            let mut uploaded = planes.upload(device);
            let weights = device.take_rows(&strips, &zone, &taken, 4, &mut uploaded).unwrap();
            let on_mean = device.rest_on_mean(&strips, &zone, &uploaded).unwrap();
            let marks = device.download(&uploaded.marks).unwrap();
            vec![
                device.download(&weights).unwrap(),
                device.download(&on_mean).unwrap(),
                marks.into_iter().map(|mark| mark as f32).collect(),
            ]
        });
        for (i, &row) in taken.iter().enumerate() {
            let expected = &planes.weights[row as usize * group..][..group];
            assert_eq!(&result[0][i * group..][..group], expected, "row {row}");
        }
        for (row, &mark) in result[2].iter().enumerate() {
            let of_row = taken.iter().position(|&taken| taken as usize == row);
            assert_eq!(mark, of_row.map_or(0.0, |i| if i < 4 { 1.0 } else { 2.0 }), "mark of {row}");
        }
        for (place, g) in (0..PLACES).flat_map(|place| (0..group).map(move |g| (place, g))) {
            let at = place * group + g;
            let full = taken[4..].iter().map(|&row| row as usize).filter(|&row| place_of(row) == place);
            let left = full.map(|row| f64::from(planes.weights[row * group + g])).sum::<f64>();
            let whole = f64::from(planes.clusters[at]);
            near(result[1][at], whole - left, 8.0 * UNIT * (whole + left), "what rests on the mean");
        }
    }
}

/// Weights times rises and squared rises of a place or a strip, each with a bound.
#[derive(Clone, Copy, Default)]
struct Risen {
    weighted: f64,
    weighted_off: f64,
    /// Sum of the absolute values of what is added to the first.
    size: f64,
    squares: f64,
    squares_off: f64,
}

impl Risen {
    fn add(&mut self, other: &Risen) {
        self.weighted += other.weighted;
        self.weighted_off += other.weighted_off;
        self.size += other.weighted.abs();
        self.squares += other.squares;
        self.squares_off += other.squares_off;
    }
}

/// What rises at an opened cluster, for head `g`. Rises are counted that are believed as they are, cut below and cut above.
fn risen(
    planes: &Planes,
    number: usize,
    (g, group): (usize, usize),
    [centre, most, most_raised, steep]: [f64; 4],
    cut: &mut [u32; 3],
) -> Risen {
    let mut sum = Risen::default();
    for row in rows_of(number) {
        let [weight, score, deviation] = [&planes.weights, &planes.scores, &planes.deviations]
            .map(|plane| f64::from(plane[row * group + g]));
        let (above, variance) = (score - centre, deviation * deviation);
        // Of the difference and its square, then up to three rows of a lane, the lanes of a warp, and the steepness.
        let square = above * above + variance;
        sum.squares += square * steep * steep;
        sum.squares_off +=
            (2.0 * above.abs() * (score.abs() + centre.abs()) + 16.0 * square) * steep * steep * UNIT;
        if planes.marks[row] > 0 {
            continue;
        }
        let rise = above + variance.min(most_raised);
        cut[usize::from(rise < -most) + 2 * usize::from(rise > most)] += 1;
        // Of the rise, or of what it is cut to.
        let (size, rise) =
            (score.abs() + centre.abs() + variance.min(most_raised) + most, rise.clamp(-most, most));
        sum.weighted += weight * rise * steep;
        sum.weighted_off += weight * (4.0 * size + 10.0 * rise.abs()) * steep * UNIT;
    }
    sum
}

#[test]
fn what_stands_on_a_mean_rises_by_what_it_scores_above_its_centroid() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    // Rises that are believed as they are, and those cut below and above.
    let mut cut = [0; 3];
    for group in GROUPS {
        let mut scene = Scene::new(group, 64, 170 + group as u64);
        let planes = Planes::new(&mut scene);
        let (centres, withins) = (scene.plane(1.8), Scene::positive(scene.plane(2.5), 0.01));
        let limits = Limits { raised: 0.4, ..limits(0.0) };
        let most_raised = f64::from(2.0 * limits.raised);
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, summaries) = scene.upload(device);
            let zone = ZoneRows::new(device, &strips, &opened()).unwrap();
            let mut weighed = scene.weighed(device, &centres, &centres, &[0.0]);
            weighed.scores = device.upload(&centres).unwrap();
            weighed.withins = device.upload(&withins).unwrap();
            let rows = planes.upload(device);
            let sums = device.rises(&strips, &summaries, &zone, &weighed, &rows, &limits).unwrap();
            let means = device.download(weighed.means.rows()).unwrap();
            vec![device.download(&sums).unwrap(), means.into_iter().map(|row| row as f32).collect()]
        });
        let (mut kinds, mut strips) = ([0; 3], vec![Risen::default(); 8 * group]);
        for (place, g) in (0..PLACES).flat_map(|place| (0..group).map(move |g| (place, g))) {
            let at = place * group + g;
            let within = f64::from(withins[at]);
            let steep = f64::from(scene.steepness[scene.clusters[place] as usize]);
            let number = OPENED.iter().position(|(opened, _)| *opened as usize == place);
            let risen = if let Some(number) = number {
                let numbers = [f64::from(centres[at]), 3.0 * within.sqrt(), most_raised, steep];
                risen(&planes, number, (g, group), numbers, &mut cut)
            } else {
                let is_read = result[1][place] != EMPTY as f32;
                kinds[usize::from(is_read) + usize::from(is_read && within / 2.0 > most_raised)] += 1;
                let rise = if is_read { (within / 2.0).min(most_raised) } else { 0.0 };
                let weighted = f64::from(planes.clusters[at]) * rise * steep;
                Risen { weighted, weighted_off: 3.0 * UNIT * weighted, ..Risen::default() }
            };
            strips[strip_of(place) * group + g].add(&risen);
        }
        assert!(kinds.iter().all(|&count| count > 0), "not read, read, cut: {kinds:?}");
        for (sum, found) in strips.iter().zip(result[0].chunks_exact(2)) {
            // A strip is no longer than a block: places are added up by lane and by warp.
            let size = sum.weighted_off + 9.0 * UNIT * sum.size;
            near(found[0], sum.weighted, size, "rises of a strip");
            near(found[1], sum.squares, sum.squares_off + 9.0 * UNIT * sum.squares, "squares of a strip");
        }
    }
    assert!(cut.iter().all(|&count| count > 10), "believed, cut below, cut above: {cut:?}");
}
