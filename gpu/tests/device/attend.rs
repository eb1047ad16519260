//! Attention over slots, estimation from summaries and the merge, against float64.

use crate::data::{Numbers, rows_of, shapes, stored, under_all_schedules};
use longwave_gpu::{Device, EMPTY, Error, Parts, RowList, RowShape};
use longwave_gpu_emulation::install;
use longwave_kernels::Dtype;
use longwave_kernels::oracle::{self, Bounded, SOFTCAP_ERROR, UNIT};

/// A pool of slots, and units that read from it: one of many rows, one of none, one of entries that stand for none.
struct Problem {
    shape: RowShape,
    slot_rows: usize,
    queries: Vec<f32>,
    pool: Vec<u16>,
    rows: Vec<u32>,
    starts: Vec<u32>,
}

const SLOTS: usize = 7;

impl Problem {
    fn new(shape: RowShape, slot_rows: usize, counts: &[usize], seed: u64) -> Problem {
        let mut numbers = Numbers(seed);
        let dim = shape.dim();
        let mut rows = Vec::new();
        let mut starts = vec![0];
        for (unit, &count) in counts.iter().enumerate() {
            for _ in 0..count {
                let is_empty = unit == 2 || numbers.below(6) == 0;
                rows.push(if is_empty { EMPTY } else { numbers.below(SLOTS * slot_rows) as u32 });
            }
            starts.push(rows.len() as u32);
        }
        let queries = numbers.units(counts.len() * shape.group() * dim, 0.6);
        let pool = stored(shape.dtype(), &numbers.units(SLOTS * slot_rows * 2 * dim, 1.5));
        Problem { shape, slot_rows, queries, pool, rows, starts }
    }

    fn units(&self) -> usize {
        self.starts.len() - 1
    }

    fn run(&self, device: &Device, splits: usize, softcap: f32) -> Vec<Vec<f32>> {
        let heads = self.units() * self.shape.group();
        let rows = RowList::new(device, &self.rows, &self.starts).unwrap();
        let (queries, pool) = (device.upload(&self.queries).unwrap(), device.upload(&self.pool).unwrap());
        let mut parts = Parts::new(device, splits, heads, self.shape.dim()).unwrap();
        device
            .attend(&self.shape, &queries, &pool, self.slot_rows, &rows, softcap, (0, splits), &mut parts)
            .unwrap();
        let (out, lse) = device.merge(&parts).unwrap();
        vec![device.download(&out).unwrap(), device.download(&lse).unwrap()]
    }

    /// Keys and values of one unit's rows, in order.
    fn gathered(&self, unit: usize) -> (Vec<u16>, Vec<u16>) {
        let dim = self.shape.dim();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for &row in &self.rows[self.starts[unit] as usize..self.starts[unit + 1] as usize] {
            if row != EMPTY {
                let (slot, within) = (row as usize / self.slot_rows, row as usize % self.slot_rows);
                let at = (slot * 2 * self.slot_rows + within) * dim;
                keys.extend_from_slice(&self.pool[at..at + dim]);
                values.extend_from_slice(&self.pool[at + self.slot_rows * dim..][..dim]);
            }
        }
        (keys, values)
    }

    fn expect(&self, result: &[Vec<f32>], splits: usize, softcap: f32) {
        let (group, dim) = (self.shape.group(), self.shape.dim());
        for unit in 0..self.units() {
            let (keys, values) = self.gathered(unit);
            let queries = &self.queries[unit * group * dim..][..group * dim];
            let mut scores = oracle::scores(queries, group, dim, rows_of(self.shape.dtype(), &keys));
            if softcap > 0.0 {
                scores.values.iter_mut().for_each(|s| *s = oracle::softcap(*s, f64::from(softcap)));
                scores.bounds.iter_mut().for_each(|off| *off += SOFTCAP_ERROR * f64::from(softcap));
            }
            let values = rows_of(self.shape.dtype(), &values);
            let (out, lse) = softmax(&scores, None, &self.shape, values, splits);
            let what = format!("{:?} unit {unit}", self.shape);
            out.check(&result[0][unit * group * dim..][..group * dim])
                .unwrap_or_else(|e| panic!("{what}: output {e}"));
            lse.check(&result[1][unit * group..][..group]).unwrap_or_else(|e| panic!("{what}: lse {e}"));
        }
    }
}

/// The oracle's softmax with the roundings of the kernels: a score is brought to base 2 and back (three roundings of its
/// size), a team adds its rows one after the other, then teams and splits are merged.
fn softmax(
    scores: &Bounded,
    counts: Option<&[f32]>,
    shape: &RowShape,
    values: longwave_kernels::Rows<'_>,
    splits: usize,
) -> (Bounded, Bounded) {
    let mut scores = scores.clone();
    for (off, score) in scores.bounds.iter_mut().zip(&scores.values) {
        *off += 3.0 * UNIT * score.abs();
    }
    let additions = values.len() / shape.dim() + 16 + splits;
    oracle::softmax(&scores, shape.group(), counts, shape.dim(), values, additions)
}

#[test]
fn every_shape_is_within_its_bound_under_every_order_of_threads() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in shapes().enumerate() {
        let counts = [67, 0, 5, 1, 23];
        let problem = Problem::new(shape, [8, 32, 16][number % 3], &counts, 11 + number as u64);
        let splits = 1 + number % 4;
        let softcap = if number % 5 == 0 { 2.5 } else { 0.0 };
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            problem.run(device, splits, softcap)
        });
        problem.expect(&result, splits, softcap);
        let dim = shape.group() * shape.dim();
        for unit in [1, 2] {
            assert!(
                result[0][unit * dim..][..dim].iter().all(|&x| x == 0.0),
                "{shape:?}: unit {unit} reads nothing"
            );
            assert!(
                result[1][unit * shape.group()..][..shape.group()].iter().all(|&x| x == f32::NEG_INFINITY)
            );
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let _emulation = install();
    let device = Device::open(0).unwrap();
    let shape = RowShape::new(Dtype::F16, 64, 64, 2).unwrap();
    let mut problem = Problem::new(shape, 16, &[40], 5);
    problem.queries.iter_mut().for_each(|q| *q *= 40.0);
    let result = problem.run(&device, 3, 0.0);
    problem.expect(&result, 3, 0.0);
    assert!(
        result[1].iter().any(|&lse| lse > 88.0),
        "no score lies beyond what an exponential holds: {:?}",
        result[1]
    );
}

#[test]
fn more_splits_than_rows_change_nothing_but_rounding() {
    let _emulation = install();
    let device = Device::open(0).unwrap();
    let shape = RowShape::new(Dtype::Bf16, 96, 96, 3).unwrap();
    let problem = Problem::new(shape, 16, &[9, 0, 2, 1], 3);
    for splits in [1, 2, 9, 31] {
        problem.expect(&problem.run(&device, splits, 0.0), splits, 0.0);
    }
}

#[test]
fn summaries_stand_for_their_rows_in_every_shape() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in shapes().enumerate() {
        let (group, dim, clusters) = (shape.group(), shape.dim(), 29);
        let mut numbers = Numbers(71 + number as u64);
        let means = stored(shape.dtype(), &numbers.units(clusters * dim, 1.0));
        let counts: Vec<f32> = (0..clusters).map(|_| numbers.below(40) as f32).collect();
        let (mut listed, starts) = (Vec::new(), [0, 45, 45, 51]);
        for at in 0..51 {
            listed.push(if at % 9 == 4 { EMPTY } else { numbers.below(clusters) as u32 });
        }
        let scores = numbers.units(51 * group, 4.0);
        let splits = 1 + number % 3;
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let list = RowList::new(device, &listed, &starts).unwrap();
            let upload = |numbers: &[f32]| device.upload(numbers).unwrap();
            let (scores, counts, means) = (upload(&scores), upload(&counts), device.upload(&means).unwrap());
            let mut parts = Parts::new(device, splits, 3 * group, dim).unwrap();
            device.estimate(&shape, &scores, &counts, &means, &list, (0, splits), &mut parts).unwrap();
            let (out, lse) = device.merge(&parts).unwrap();
            vec![device.download(&out).unwrap(), device.download(&lse).unwrap()]
        });
        for unit in 0..3 {
            let span = starts[unit] as usize..starts[unit + 1] as usize;
            let kept: Vec<usize> = span.filter(|&at| listed[at] != EMPTY).collect();
            let values: Vec<u16> =
                kept.iter().flat_map(|&at| means[listed[at] as usize * dim..][..dim].to_vec()).collect();
            let of_list: Vec<f32> =
                kept.iter().flat_map(|&at| scores[at * group..][..group].to_vec()).collect();
            let of_counts: Vec<f32> = kept.iter().map(|&at| counts[listed[at] as usize]).collect();
            let mut exact = Bounded::exact(&of_list);
            // The logarithm of a count joins the score: both are below 8, in base 2 below 12.
            exact.bounds.iter_mut().for_each(|off| *off += 24.0 * UNIT);
            let values = rows_of(shape.dtype(), &values);
            let (out, lse) = softmax(&exact, Some(&of_counts), &shape, values, splits);
            out.check(&result[0][unit * group * dim..][..group * dim])
                .unwrap_or_else(|e| panic!("{shape:?}: output {e}"));
            lse.check(&result[1][unit * group..][..group]).unwrap_or_else(|e| panic!("{shape:?}: lse {e}"));
        }
    }
}

#[test]
fn parts_of_rows_and_of_summaries_merge_into_one_state() {
    let _emulation = install();
    let device = Device::open(0).unwrap();
    let shape = RowShape::new(Dtype::F16, 128, 128, 4).unwrap();
    let problem = Problem::new(shape, 16, &[31, 12], 8);
    let whole = problem.run(&device, 1, 0.0);
    // The same rows in two launches, into parts that lie apart, with an empty one in between.
    let middle = [problem.starts[0] + 14, problem.starts[1] + 5];
    let cut = |from: [u32; 2], to: [u32; 2]| {
        let mut starts = vec![0];
        let mut rows = Vec::new();
        for unit in 0..2 {
            rows.extend_from_slice(&problem.rows[from[unit] as usize..to[unit] as usize]);
            starts.push(rows.len() as u32);
        }
        RowList::new(&device, &rows, &starts).unwrap()
    };
    let starts = [problem.starts[0], problem.starts[1]];
    let ends = [problem.starts[1], problem.starts[2]];
    let lists = [cut(starts, middle), cut(starts, starts), cut(middle, ends)];
    let (queries, pool) = (device.upload(&problem.queries).unwrap(), device.upload(&problem.pool).unwrap());
    let mut parts = Parts::new(&device, 5, 8, 128).unwrap();
    for (list, part) in lists.iter().zip([(0, 2), (2, 1), (3, 2)]) {
        device.attend(&shape, &queries, &pool, 16, list, 0.0, part, &mut parts).unwrap();
    }
    let (out, lse) = device.merge(&parts).unwrap();
    let merged = [device.download(&out).unwrap(), device.download(&lse).unwrap()];
    problem.expect(&merged, 5, 0.0);
    assert!(merged[0].iter().zip(&whole[0]).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn other_shapes_are_refused_by_name() {
    let refused = |dtype, key, value, group| match RowShape::new(dtype, key, value, group).unwrap_err() {
        Error::Unsupported { what, found, .. } => format!("{what} {found}"),
        other => panic!("{other}"),
    };
    assert_eq!(refused(Dtype::F32, 64, 64, 1), "rows f32");
    assert_eq!(refused(Dtype::F16, 80, 80, 1), "a head dimension 80");
    assert_eq!(refused(Dtype::F16, 192, 128, 1), "values 192 and 128");
    assert_eq!(refused(Dtype::Bf16, 64, 64, 9), "a group 9");
    assert_eq!(refused(Dtype::Bf16, 64, 64, 0), "a group 0");
}
