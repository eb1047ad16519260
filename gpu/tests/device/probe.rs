//! Scores of centroids, their softmax and the selections, against float64 and against sorting.

use crate::data::{Numbers, rows_of, shapes, stored, under_all_schedules};
use longwave_gpu::{Device, EMPTY, RowList, Spans, place_and_level};
use longwave_gpu_emulation::install;
use longwave_kernels::oracle::{self, EXP_ERROR, SOFTCAP_ERROR, UNIT};

#[test]
fn scores_and_shares_of_every_shape_are_within_their_bounds() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in shapes().enumerate() {
        let (group, dim) = (shape.group(), shape.dim());
        let mut numbers = Numbers(900 + number as u64);
        let centroids = stored(shape.dtype(), &numbers.units(60 * dim, 1.0));
        // Two positions of one KV head, a head without clusters, and another head.
        let (firsts, starts) = ([3u32, 3, 0, 40], [0u32, 37, 74, 74, 94]);
        let listed: Vec<u32> = (0..4)
            .flat_map(|unit| (0..starts[unit + 1] - starts[unit]).map(move |i| firsts[unit] + i))
            .collect();
        let queries = numbers.units(4 * group * dim, 0.7);
        let softcap = if number % 2 == 0 { 0.0 } else { 3.0 };
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let spans = Spans::new(device, &starts).unwrap();
            let list = RowList::new(device, &listed, &starts).unwrap();
            let (queries, centroids) = (device.upload(&queries).unwrap(), device.upload(&centroids).unwrap());
            let scores = device.score_rows(&shape, &queries, &centroids, &list, softcap).unwrap();
            let (shares, lse) = device.softmax(group, &scores, &spans).unwrap();
            vec![
                device.download(&scores).unwrap(),
                device.download(&shares).unwrap(),
                device.download(&lse).unwrap(),
            ]
        });
        for unit in 0..4 {
            let count = (starts[unit + 1] - starts[unit]) as usize;
            let rows = &centroids[firsts[unit] as usize * dim..][..count * dim];
            let mine = &queries[unit * group * dim..][..group * dim];
            let mut scores = oracle::scores(mine, group, dim, rows_of(shape.dtype(), rows));
            if softcap > 0.0 {
                scores.values.iter_mut().for_each(|s| *s = oracle::softcap(*s, f64::from(softcap)));
                scores.bounds.iter_mut().for_each(|off| *off += SOFTCAP_ERROR * f64::from(softcap));
            }
            let found = &result[0][starts[unit] as usize * group..][..count * group];
            scores.check(found).unwrap_or_else(|e| panic!("{shape:?} unit {unit}: {e}"));
            check_shares(
                group,
                &result[1][starts[unit] as usize..][..count],
                &result[2][unit * group..][..group],
                found,
            );
        }
    }
}

#[test]
fn rows_are_scored_in_the_order_of_their_list_and_entries_of_no_row_are_minus_infinity() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    for (number, shape) in shapes().enumerate().step_by(5) {
        let (group, dim) = (shape.group(), shape.dim());
        let mut numbers = Numbers(31 + number as u64);
        let rows = stored(shape.dtype(), &numbers.units(40 * dim, 1.0));
        let listed: Vec<u32> =
            (0..29).map(|at| if at % 7 == 2 { EMPTY } else { numbers.below(40) as u32 }).collect();
        let starts = [0u32, 20, 20, 29];
        let queries = numbers.units(3 * group * dim, 0.7);
        let result = under_all_schedules(&emulation, &device, &format!("{shape:?}"), |device| {
            let list = RowList::new(device, &listed, &starts).unwrap();
            let (queries, rows) = (device.upload(&queries).unwrap(), device.upload(&rows).unwrap());
            vec![device.download(&device.score_rows(&shape, &queries, &rows, &list, 0.0).unwrap()).unwrap()]
        });
        for (at, &row) in listed.iter().enumerate() {
            let (unit, found) = (if at < 20 { 0 } else { 2 }, &result[0][at * group..][..group]);
            if row == EMPTY {
                assert!(found.iter().all(|&score| score == f32::NEG_INFINITY), "{shape:?} {at}");
                continue;
            }
            let mine = &queries[unit * group * dim..][..group * dim];
            let row = rows_of(shape.dtype(), &rows[row as usize * dim..][..dim]);
            oracle::scores(mine, group, dim, row)
                .check(found)
                .unwrap_or_else(|e| panic!("{shape:?} {at}: {e}"));
        }
    }
}

/// Shares and log-sum-exps of the scores as the kernel had them.
fn check_shares(group: usize, shares: &[f32], lse: &[f32], found: &[f32]) {
    let count = found.len() / group;
    let mut expected = vec![0.0f64; count];
    for (g, &lse) in lse.iter().enumerate() {
        let of_head = || found.iter().skip(g).step_by(group).map(|&s| f64::from(s));
        let top = of_head().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = of_head().map(|s| (s - top).exp()).sum();
        expected.iter_mut().zip(of_head()).for_each(|(share, s)| *share += (s - top).exp() / total);
        if count == 0 {
            assert_eq!(lse, f32::NEG_INFINITY);
        } else {
            assert!(
                (f64::from(lse) - (top + total.ln())).abs() < 1e-5 * (1.0 + top.abs()),
                "{} for {}",
                lse,
                top + total.ln()
            );
        }
    }
    // An exponential of a difference below 20 in base 2, twice, and no more than 200 additions.
    let relative = 2.0 * EXP_ERROR + (2.0 * 30.0 + 200.0) * UNIT;
    for (share, expected) in shares.iter().zip(&expected) {
        assert!((f64::from(*share) - expected).abs() <= relative * expected, "{share} for {expected}");
    }
}

/// What `select_top` is to choose: by falling share, then by rising number, listed in rising order.
fn ranked(shares: &[f32], reads: usize, estimates: usize) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..shares.len() as u32).collect();
    order.sort_by(|&a, &b| shares[b as usize].total_cmp(&shares[a as usize]).then(a.cmp(&b)));
    let cut = |from: usize, to: usize, room: usize| {
        let mut list = order[from.min(order.len())..to.min(order.len())].to_vec();
        list.sort_unstable();
        list.resize(room, EMPTY);
        list
    };
    (cut(0, reads, reads), cut(reads, reads + estimates, estimates))
}

#[test]
fn the_largest_shares_are_chosen_ties_by_number() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    let mut numbers = Numbers(17);
    for (reads, estimates) in [(1, 3), (7, 40), (0, 5), (12, 0), (150, 200), (400, 10)] {
        let starts = [0u32, 300, 300, 305, 462];
        // Few distinct shares, so that most are tied, zeros among them.
        let shares: Vec<f32> = (0..462)
            .map(|i| if i < 150 { numbers.unit().abs() } else { numbers.below(4) as f32 / 8.0 })
            .collect();
        let chosen = under_all_schedules(&emulation, &device, "select_top", |device| {
            let spans = Spans::new(device, &starts).unwrap();
            let (read, estimated) =
                device.select_top(&device.upload(&shares).unwrap(), &spans, reads, estimates).unwrap();
            [(read, reads), (estimated, estimates)]
                .map(|(list, room)| {
                    device.download(&list).unwrap()[..4 * room].iter().map(|&c| c as f32).collect()
                })
                .to_vec()
        });
        for unit in 0..4 {
            let (read, estimated) =
                ranked(&shares[starts[unit] as usize..starts[unit + 1] as usize], reads, estimates);
            let as_found = |list: Vec<u32>| list.into_iter().map(|c| c as f32).collect::<Vec<_>>();
            assert_eq!(chosen[0][unit * reads..][..reads], as_found(read), "unit {unit}, {reads} read");
            assert_eq!(
                chosen[1][unit * estimates..][..estimates],
                as_found(estimated),
                "unit {unit}, {estimates} estimated"
            );
        }
    }
}

#[test]
fn thresholds_divide_what_is_listed() {
    let emulation = install();
    let device = Device::open(0).unwrap();
    let mut numbers = Numbers(23);
    let starts = [0u32, 1, 400, 400, 671];
    let mut gains: Vec<f32> = (0..671).map(|_| numbers.below(64) as f32 / 64.0).collect();
    (gains[500], gains[501]) = (f32::INFINITY, f32::NAN);
    for thresholds in [[0.25, 0.5, 0.75], [0.5, 0.5, f32::INFINITY]] {
        let result = under_all_schedules(&emulation, &device, "select_above", |device| {
            let spans = Spans::new(device, &starts).unwrap();
            let [above, counts] =
                device.select_above(&device.upload(&gains).unwrap(), &spans, thresholds).unwrap();
            let (above, counts) = (device.download(&above).unwrap(), device.download(&counts).unwrap());
            let of_unit = |unit: usize| {
                let list = &above[starts[unit] as usize..][..counts[unit] as usize];
                let entries = list.iter().map(|&entry| place_and_level(entry));
                entries.flat_map(|(place, level)| [place as f32, level as f32]).collect()
            };
            (0..4).map(of_unit).collect()
        });
        for unit in 0..4 {
            let mine = &gains[starts[unit] as usize..starts[unit + 1] as usize];
            let above = |gain: f32| thresholds.iter().filter(|&&least| gain > least).count();
            let listed = mine.iter().enumerate().filter(|(_, gain)| above(**gain) > 0);
            let expected = listed.flat_map(|(i, gain)| [i as f32, above(*gain) as f32 - 1.0]);
            assert_eq!(result[unit], expected.collect::<Vec<_>>(), "unit {unit}, {thresholds:?}");
        }
    }
}
