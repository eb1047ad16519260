//! What the ladder decides on the device, against float64.

use crate::data::{Numbers, under_all_schedules};
use longwave_gpu::zone::{
    Limits, Opened, ReadKey, ReadValues, Resolution, Rough, RowPlanes, Strips, Summaries, Weighed, ZoneRows,
};
use longwave_gpu::{Buffer, Device, EMPTY};
use longwave_gpu_emulation::install;
use longwave_kernels::codec::Depth;
use longwave_kernels::oracle::{self, SOFTCAP_ERROR, UNIT};

/// Records that clusters are among, KV heads, and strips of a unit.
const RECORDS: usize = 50;
const KV_HEADS: usize = 2;
const STRIPS: usize = 2;
/// Two positions of two KV heads: strips of some clusters, of none and of one; one unit has no clusters at all.
const STARTS: [u32; 9] = [0, 5, 40, 40, 40, 41, 77, 77, 80];
const UNITS: usize = 4;
const GROUPS: [usize; 3] = [1, 3, 8];
const PLACES: usize = 80;
/// Roundings of an exponential of the device beside those of its argument.
const EXP: f64 = 4.0 * UNIT;

fn limits(softcap: f32) -> Limits {
    let (cluster_deviations, row_deviations, rise, sketch) = (3.0, 1.5, 6.0, 2.0);
    let (probe_deviations, far, codes_leave, raised) = ([2.5, 3.25], [5.5, 6.5], [0.4, 0.1], 0.05);
    Limits {
        cluster_deviations,
        probe_deviations,
        far,
        row_deviations,
        rise,
        sketch,
        over: 20.0,
        codes_leave,
        raised,
        softcap,
    }
}

fn unit_of(place: usize) -> usize {
    (0..UNITS).find(|&unit| place < STARTS[(unit + 1) * STRIPS] as usize).unwrap()
}

fn strip_of(place: usize) -> usize {
    (0..8).find(|&strip| place < STARTS[strip + 1] as usize).unwrap()
}

/// Numbers of a call; the kernels' inputs.
struct Scene {
    group: usize,
    dim: usize,
    clusters: Vec<u32>,
    /// Rows, key spread, value spread, squared error of the mean.
    summaries: Vec<f32>,
    mean_norms2: Vec<f32>,
    steepness: Vec<f32>,
    /// Sigma, value sigma and the mean of all values, `[strips, kv_heads, dim]`.
    scales: [Vec<f32>; 3],
    numbers: Numbers,
}

impl Scene {
    fn new(group: usize, dim: usize, seed: u64) -> Scene {
        let mut numbers = Numbers(seed);
        let clusters = (0..PLACES).map(|_| numbers.below(RECORDS) as u32).collect();
        let mut summaries = Vec::new();
        for _ in 0..RECORDS {
            let rows = 1.0 + numbers.below(40) as f32;
            summaries.extend([rows, numbers.unit().abs(), numbers.unit().abs(), numbers.unit().abs() * 0.1]);
        }
        let mean_norms2 = (0..RECORDS).map(|_| 1.0 + numbers.unit().abs()).collect();
        let scales = [0.5, 0.3, 1.0].map(|scale| numbers.units(STRIPS * KV_HEADS * dim, scale));
        let steepness = Scene::positive(numbers.units(RECORDS, 1.0), 0.5);
        Scene { group, dim, clusters, summaries, mean_norms2, steepness, scales, numbers }
    }

    fn upload(&self, device: &Device) -> (Strips, Summaries) {
        let strips = Strips::new(device, &self.clusters, &STARTS, (STRIPS, KV_HEADS, self.group)).unwrap();
        let up = |numbers: &[f32]| device.upload(numbers).unwrap();
        let [sigma, value_sigma, global] = [0, 1, 2].map(|i| up(&self.scales[i]));
        let [summaries, mean_norms2, steepness] =
            [&self.summaries, &self.mean_norms2, &self.steepness].map(|numbers| up(numbers));
        (strips, Summaries { summaries, mean_norms2, steepness, sigma, value_sigma, global })
    }

    fn summary(&self, place: usize) -> [f64; 4] {
        let record = self.clusters[place] as usize;
        [0, 1, 2, 3].map(|i| f64::from(self.summaries[4 * record + i]))
    }

    fn plane(&mut self, scale: f32) -> Vec<f32> {
        let count = PLACES * self.group;
        self.numbers.units(count, scale)
    }

    fn heads(&mut self, scale: f32) -> Vec<f32> {
        let count = UNITS * self.group;
        self.numbers.units(count, scale)
    }

    fn positive(mut numbers: Vec<f32>, least: f32) -> Vec<f32> {
        numbers.iter_mut().for_each(|x| *x = x.abs() + least);
        numbers
    }

    /// A [`Weighed`] with these planes, and every mean read but each fifth.
    fn weighed(&self, device: &Device, mass: &[f32], above: &[f32], tops: &[f32]) -> Weighed {
        let up = |numbers: &[f32]| device.upload(numbers).unwrap();
        let (strips, summaries) = self.upload(device);
        let zero = up(&vec![0.0; PLACES * self.group]);
        let few = up(&vec![0.0; 8 * self.group]);
        let lse = up(&vec![0.0; UNITS * self.group]);
        // Shares are made by the kernel: of all clusters, some lie below the mean share.
        let mut weighed = device
            .weigh_clusters(&strips, &summaries, &zero, (&few, &few), &lse, &limits(0.0), 0.012)
            .unwrap();
        (weighed.mass, weighed.above, weighed.tops) = (up(mass), up(above), up(tops));
        weighed
    }
}

fn near(found: f32, expected: f64, bound: f64, what: &str) {
    assert!((f64::from(found) - expected).abs() <= bound, "{what}: {found} for {expected}, bound {bound:e}");
}

/// Score after the cap, and what the cap leaves of a deviation above it, with bounds.
fn capped(score: f64, deviation: f64, softcap: f32) -> (f64, f64, f64, f64) {
    if softcap == 0.0 {
        return (score, 0.0, 1.0, 0.0);
    }
    let cap = f64::from(softcap);
    let off = SOFTCAP_ERROR * cap;
    let rise = oracle::softcap(score + deviation, cap) - oracle::softcap(score, cap);
    (oracle::softcap(score, cap), off, rise / deviation, 2.0 * off / deviation)
}

#[test]
fn clusters_weigh_what_their_centroids_say() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (case, softcap) in GROUPS.iter().flat_map(|&group| [(group, 0.0), (group, 2.5)]) {
        let mut scene = Scene::new(case, 64, 5 + case as u64);
        let group = scene.group;
        let (coded, lse) = (scene.plane(3.0), scene.heads(4.0));
        let (middle, variance) =
            (scene.numbers.units(8 * group, 1.0), Scene::positive(scene.numbers.units(8 * group, 1.5), 0.5));
        let mut lse = lse;
        lse[2 * group] = f32::NEG_INFINITY;
        let least = 0.05;
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, summaries) = scene.upload(device);
            let up = |numbers: &[f32]| device.upload(numbers).unwrap();
            let numbers = (&up(&middle), &up(&variance));
            let weighed = device
                .weigh_clusters(&strips, &summaries, &up(&coded), numbers, &up(&lse), &limits(softcap), least)
                .unwrap();
            let mut all: Vec<Vec<f32>> = [
                &weighed.scores,
                &weighed.above,
                &weighed.mass,
                &weighed.estimate,
                &weighed.shares,
                &weighed.tops,
                &weighed.steady,
                &weighed.withins,
            ]
            .map(|numbers| device.download(numbers).unwrap())
            .into();
            let means = device.download(weighed.means.rows()).unwrap();
            all.push(means.into_iter().map(|row| if row == EMPTY { -1.0 } else { row as f32 }).collect());
            all
        });
        for unit in 0..UNITS {
            let places = STARTS[unit * STRIPS] as usize..STARTS[(unit + 1) * STRIPS] as usize;
            let mut most_share = vec![(0.0f64, 0.0f64); places.len()];
            for g in 0..group {
                let head = unit * group + g;
                let known: Vec<_> = places
                    .clone()
                    .map(|place| {
                        let (strip, [count, spread, ..]) = (strip_of(place), scene.summary(place));
                        let score =
                            f64::from(coded[place * group + g]) + f64::from(middle[strip * group + g]);
                        let within = f64::from(variance[strip * group + g]) * spread;
                        let (centre, off, slope, slope_off) = capped(score, 3.0 * within.sqrt(), softcap);
                        let off = off + 3.0 * UNIT * (score.abs() + 4.0);
                        let within_off =
                            within * (2.0 * slope * slope_off + slope_off * slope_off + 8.0 * UNIT);
                        (count, score, centre, off, within * slope * slope, within_off)
                    })
                    .collect();
                let lse = f64::from(lse[head]);
                let top = known.iter().map(|known| known.2).fold(lse, f64::max);
                let worst = known.iter().map(|known| known.3).fold(UNIT * lse.abs().min(1e3), f64::max);
                near(result[5][head], top, worst, "top");
                let steady = (lse - top).exp();
                near(result[6][head], steady, steady * (2.0 * worst + EXP), "steady");
                let masses: Vec<f64> = known.iter().map(|known| known.0 * (known.2 - top).exp()).collect();
                let total: f64 = masses.iter().sum::<f64>() + steady;
                for (i, (&(count, score, centre, off, within, within_off), mass)) in
                    known.iter().zip(&masses).enumerate()
                {
                    let at = (places.start + i) * group + g;
                    near(result[0][at], score, 3.0 * UNIT * (score.abs() + 4.0), "score");
                    near(result[7][at], within, within_off, "variance of scores inside");
                    let usual = within.clamp(2.5 * within.sqrt(), 3.25 * within.sqrt());
                    let rise = usual.max(5.5 * within.sqrt() - 6.5).min(6.0);
                    // A root's relative error is half of its argument's.
                    let rise_off = within_off * (1.0f64).max(1.625 / within.sqrt()) + 8.0 * UNIT * rise;
                    near(result[1][at], rise.exp() - 1.0, rise.exp() * (rise_off + 2.0 * EXP), "above");
                    let relative = off + worst + 2.0 * EXP;
                    near(result[2][at], *mass, mass * relative, "mass");
                    let estimate = count * (centre - top + (within * 0.25).min(1.0)).exp();
                    near(result[3][at], estimate, estimate * (relative + within_off + EXP), "estimate");
                    let share = mass / total * rise.exp();
                    // Up to 40 masses are added.
                    let share_off = share * (2.0 * relative + worst + rise_off + 60.0 * UNIT);
                    if share > most_share[i].0 {
                        most_share[i] = (share, share_off);
                    }
                }
            }
            for (place, (share, off)) in places.zip(most_share) {
                near(result[4][place], share, off, "share");
                let expected = if result[4][place] > least { scene.clusters[place] as f32 } else { -1.0 };
                assert_eq!(result[8][place], expected, "the mean of {place}");
            }
        }
    }
}

/// The sums, weights and answers that `rough_answer` takes.
struct Answered {
    sums: Vec<f32>,
    coded: Vec<f32>,
    weights: Vec<f32>,
    on_mean: Vec<f32>,
    steady: Vec<f32>,
    steady_out: Vec<f32>,
}

impl Answered {
    fn new(scene: &mut Scene) -> Answered {
        let (group, dim) = (scene.group, scene.dim);
        Answered {
            sums: scene.numbers.units(8 * group * dim, 2.0),
            coded: scene.numbers.units(8 * group * dim, 1.0),
            weights: Scene::positive(scene.plane(1.0), 0.0),
            on_mean: Scene::positive(scene.plane(0.6), 0.0),
            steady: Scene::positive(scene.heads(1.0), 0.2),
            steady_out: scene.numbers.units(UNITS * group * dim, 1.0),
        }
    }

    fn run(&self, device: &Device, scene: &Scene, has_rows: bool) -> Rough {
        let (strips, summaries) = scene.upload(device);
        let up = |numbers: &[f32]| device.upload(numbers).unwrap();
        let (weights, sums, coded, on_mean) =
            (up(&self.weights), up(&self.sums), up(&self.coded), up(&self.on_mean));
        let values = has_rows.then_some(ReadValues { coded: &coded, on_mean: &on_mean });
        let steady = (&up(&self.steady), &up(&self.steady_out));
        device.rough_answer(&strips, &summaries, scene.dim, &weights, &sums, values, steady).unwrap()
    }
}

#[test]
fn an_answer_is_the_weighted_mean_of_what_stands_for_rows() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (group, dim, has_rows) in [(1, 64, true), (3, 96, false), (8, 128, true), (2, 256, true)] {
        let mut scene = Scene::new(group, dim, 40 + dim as u64);
        let numbers = Answered::new(&mut scene);
        let result = under_all_schedules(&emulation, &device, &format!("{group} of {dim}"), |device| {
            let rough = numbers.run(device, &scene, has_rows);
            [&rough.output, &rough.norms, &rough.totals, &rough.scaled, &rough.to_global]
                .map(|numbers| device.download(numbers).unwrap())
                .into()
        });
        let [sigma, value_sigma, global] = &scene.scales;
        for head in 0..UNITS * group {
            let (unit, g) = (head / group, head % group);
            let weight = |plane: &[f32], strip: usize| -> f64 {
                let places = STARTS[strip] as usize..STARTS[strip + 1] as usize;
                places.map(|place| f64::from(plane[place * group + g])).sum()
            };
            let of_unit = unit * STRIPS..(unit + 1) * STRIPS;
            let steady = f64::from(numbers.steady[head]);
            let total = of_unit.clone().map(|strip| weight(&numbers.weights, strip)).sum::<f64>() + steady;
            near(result[2][head], total, 50.0 * UNIT * total, "total");
            let (mut squares, mut square_off) = (0.0, 0.0);
            for d in 0..dim {
                let mut terms = vec![steady * f64::from(numbers.steady_out[head * dim + d])];
                for strip in of_unit.clone() {
                    let row = ((strip % STRIPS) * KV_HEADS + unit % KV_HEADS) * dim + d;
                    let at = (strip * group + g) * dim + d;
                    terms.push(f64::from(numbers.sums[at]) * f64::from(sigma[row]));
                    if has_rows {
                        terms.push(f64::from(numbers.coded[at]) * f64::from(value_sigma[row]));
                    }
                    let mean = if has_rows { &numbers.on_mean } else { &numbers.weights };
                    terms.push(weight(mean, strip) * f64::from(global[row]));
                }
                let out = terms.iter().sum::<f64>() / total;
                let size = terms.iter().map(|term| term.abs()).sum::<f64>() / total;
                // Sums of weights, then up to seven terms, and the division.
                let off = 110.0 * UNIT * size;
                near(result[0][head * dim + d], out, off, "output");
                squares += out * out;
                square_off += 2.0 * out.abs() * off + off * off;
                for strip in of_unit.clone() {
                    let row = ((strip % STRIPS) * KV_HEADS + unit % KV_HEADS) * dim + d;
                    let found = result[3][(strip * group + g) * dim + d];
                    let expected = f64::from(result[0][head * dim + d]) * f64::from(sigma[row]);
                    near(found, expected, 2.0 * UNIT * expected.abs(), "scaled");
                }
            }
            near(
                result[1][head],
                squares.sqrt(),
                square_off / squares.sqrt() + 40.0 * UNIT * squares.sqrt(),
                "norm",
            );
            for strip in of_unit {
                let row = ((strip % STRIPS) * KV_HEADS + unit % KV_HEADS) * dim;
                let products =
                    (0..dim).map(|d| f64::from(result[0][head * dim + d]) * f64::from(global[row + d]));
                let size: f64 = products.clone().map(f64::abs).sum();
                near(
                    result[4][strip * group + g],
                    products.sum(),
                    20.0 * UNIT * size,
                    "product with the mean",
                );
            }
        }
    }
}

/// A rough answer's numbers, as kernels behind it take them.
struct Distances {
    products: Vec<f32>,
    to_global: Vec<f32>,
    norms: Vec<f32>,
    totals: Vec<f32>,
}

impl Distances {
    fn new(scene: &mut Scene) -> Distances {
        let group = scene.group;
        Distances {
            products: scene.plane(0.5),
            to_global: scene.numbers.units(8 * group, 0.3),
            norms: Scene::positive(scene.heads(0.5), 0.6),
            totals: Scene::positive(scene.heads(4.0), 2.0),
        }
    }

    fn rough(&self, device: &Device) -> Rough {
        let up = |numbers: &[f32]| device.upload(numbers).unwrap();
        let empty = || -> Buffer<f32> { device.room(1).unwrap() };
        let (norms, totals, to_global) = (up(&self.norms), up(&self.totals), up(&self.to_global));
        Rough { output: empty(), norms, totals, scaled: empty(), to_global }
    }

    /// Squared distance of the mean of the cluster at `place` to the answer, and a bound.
    fn off(&self, scene: &Scene, place: usize, g: usize) -> (f64, f64) {
        let (unit, strip, group) = (unit_of(place), strip_of(place), scene.group);
        let norm = f64::from(self.norms[unit * group + g]);
        let mean = f64::from(scene.mean_norms2[scene.clusters[place] as usize]);
        let product =
            f64::from(self.products[place * group + g]) + f64::from(self.to_global[strip * group + g]);
        let size = mean + 2.0 * product.abs() + norm * norm;
        ((mean - 2.0 * product + norm * norm).max(0.0), 6.0 * UNIT * size)
    }
}

#[test]
fn clusters_are_opened_where_that_could_change_the_answer() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for group in GROUPS {
        let mut scene = Scene::new(group, 64, 70 + group as u64);
        let distances = Distances::new(&mut scene);
        let (mass, above) = (Scene::positive(scene.plane(2.0), 0.1), Scene::positive(scene.plane(3.0), 0.1));
        let least = 0.1;
        let result = under_all_schedules(&emulation, &device, &format!("group {group}"), |device| {
            let (strips, summaries) = scene.upload(device);
            let weighed = scene.weighed(device, &mass, &above, &[0.0]);
            let (products, rough) = (device.upload(&distances.products).unwrap(), distances.rough(device));
            let (gains, opened) =
                device.probe_gains(&strips, &summaries, &weighed, &products, &rough, least).unwrap();
            let list = |rows: Vec<u32>| rows.into_iter().map(|row| row as f32).collect();
            let (opened, means) = (opened.rows(), weighed.means.rows());
            vec![
                device.download(&gains).unwrap(),
                list(device.download(opened).unwrap()),
                list(device.download(means).unwrap()),
            ]
        });
        let (mut read, mut open) = (0, 0);
        for (place, &gain) in result[0].iter().enumerate() {
            let [count, _, spread, error] = scene.summary(place);
            if result[2][place] == EMPTY as f32 {
                assert_eq!((gain, result[1][place]), (0.0, EMPTY as f32), "a mean that is not read");
                continue;
            }
            let (mut squared, mut squared_off) = (0.0, 0.0);
            for g in 0..group {
                let (at, head) = (place * group + g, unit_of(place) * group + g);
                let (off, off_bound) = distances.off(&scene, place, g);
                let scale = f64::from(distances.totals[head]) * f64::from(distances.norms[head]);
                let row = f64::from(mass[at]) / scale / count * f64::from(above[at]);
                squared += row * row * (off + spread + count * error);
                squared_off += row * row * (off_bound + 16.0 * UNIT * (off + spread + count * error));
            }
            let expected = squared.sqrt();
            near(gain, expected, squared_off / expected + 2.0 * UNIT * expected, "gain");
            let record = if gain > least { scene.clusters[place] } else { EMPTY };
            assert_eq!(result[1][place], record as f32, "place {place} of gain {gain}");
            (read, open) = (read + 1, open + usize::from(gain > least));
        }
        assert!(read > 20 && read < PLACES && open > 5 && open < read, "{read} read, {open} opened");
    }
}

mod rows;
