//! Splitting of oversized clusters.
//!
//! A cluster much larger than the mean costs a probe more than it tells. It is cut in two by 2-means until every part is
//! within the limit or holds equal rows only. All decisions are taken in f64 and depend on the rows alone.

use std::ops::Range;

/// Rounds of 2-means per cut.
const ROUNDS: usize = 8;
/// Cuts in depth after which a part is halved instead: 2-means may peel off one outlier at a time.
const DEPTH_MAX: u32 = 16;

/// Cuts `order[range]` (rows of one cluster of `points`, `[rows, dim]`) into parts of at most `limit` rows, each in
/// ascending order, and pushes the end of each part to `offsets`.
pub(crate) fn split_cluster(
    points: &[f32],
    dim: usize,
    limit: usize,
    order: &mut [u32],
    range: Range<usize>,
    offsets: &mut Vec<u32>,
) {
    let mut pending = vec![(range, 0)];
    while let Some((range, depth)) = pending.pop() {
        let rows = &mut order[range.clone()];
        let side = if rows.len() > limit { bisect(points, dim, rows, depth >= DEPTH_MAX) } else { None };
        let Some(side) = side else {
            offsets.push(range.end as u32);
            continue;
        };
        let first = partition(rows, &side);
        // The second part waits below the first, so that parts end in order.
        pending.push((range.start + first..range.end, depth + 1));
        pending.push((range.start..range.start + first, depth + 1));
    }
}

/// Moves the rows whose side is false before the others, keeping the order on both sides; returns how many they are.
fn partition(rows: &mut [u32], side: &[bool]) -> usize {
    let pick = |wanted: bool| rows.iter().zip(side).filter(move |&(_, &s)| s == wanted).map(|(&row, _)| row);
    let mut parts: Vec<u32> = pick(false).collect();
    let first = parts.len();
    parts.extend(pick(true));
    rows.copy_from_slice(&parts);
    first
}

/// The side of each row after one cut, both sides taken; `None` when all rows are equal.
fn bisect(points: &[f32], dim: usize, rows: &[u32], halve: bool) -> Option<Vec<bool>> {
    let point = |row: u32| &points[row as usize * dim..][..dim];
    let centre = mean(rows.iter().map(|&row| point(row)), dim);
    let (far, _) = farthest(rows, point, &centre);
    let mut origin = widened(point(far));
    let (other, distance) = farthest(rows, point, &origin);
    // Not-a-number counts as equal too: there is nothing to tell such rows apart by.
    if distance.is_nan() || distance <= 0.0 {
        return None;
    }
    let mut target = widened(point(other));

    let mut side = vec![false; rows.len()];
    let mut along = vec![0.0; rows.len()];
    for round in 0..ROUNDS {
        let direction: Vec<f64> = target.iter().zip(&origin).map(|(t, o)| t - o).collect();
        let middle = 0.5 * direction.iter().map(|x| x * x).sum::<f64>();
        for (along, &row) in along.iter_mut().zip(rows) {
            *along = point(row)
                .iter()
                .zip(&origin)
                .zip(&direction)
                .map(|((&x, o), d)| (f64::from(x) - o) * d)
                .sum();
        }
        if halve {
            return Some(upper_half(&along));
        }
        let next: Vec<bool> = along.iter().map(|&along| along > middle).collect();
        let upper = next.iter().filter(|&&s| s).count();
        // The first round has the farthest pair on two sides, so `side` is a real cut from then on.
        if next == side || upper == 0 || upper == rows.len() {
            debug_assert!(round > 0);
            break;
        }
        side = next;
        let members =
            |wanted| rows.iter().zip(&side).filter(move |&(_, &s)| s == wanted).map(|(&row, _)| point(row));
        origin = mean(members(false), dim);
        target = mean(members(true), dim);
    }
    Some(side)
}

/// Marks the rows in the upper half of `along`; equal ones in the order of their rows.
fn upper_half(along: &[f64]) -> Vec<bool> {
    let mut ranked: Vec<usize> = (0..along.len()).collect();
    ranked.sort_by(|&a, &b| along[a].total_cmp(&along[b]));
    let mut side = vec![false; along.len()];
    ranked[along.len() / 2..].iter().for_each(|&row| side[row] = true);
    side
}

fn widened(point: &[f32]) -> Vec<f64> {
    point.iter().map(|&x| f64::from(x)).collect()
}

/// The mean of points of dimension `dim`.
pub(crate) fn mean<'a>(points: impl Iterator<Item = &'a [f32]>, dim: usize) -> Vec<f64> {
    let (mut sum, mut count) = (vec![0.0; dim], 0.0);
    for point in points {
        sum.iter_mut().zip(point).for_each(|(sum, &x)| *sum += f64::from(x));
        count += 1.0;
    }
    sum.iter_mut().for_each(|sum| *sum /= count);
    sum
}

/// The first of the rows farthest from `from`, and its squared distance.
fn farthest<'a>(rows: &[u32], point: impl Fn(u32) -> &'a [f32], from: &[f64]) -> (u32, f64) {
    let mut best = (rows[0], f64::NEG_INFINITY);
    for &row in rows {
        let distance: f64 = point(row).iter().zip(from).map(|(&x, f)| (f64::from(x) - f).powi(2)).sum();
        if distance > best.1 {
            best = (row, distance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(points: &[f32], dim: usize, limit: usize) -> (Vec<u32>, Vec<u32>) {
        let mut order: Vec<u32> = (0..(points.len() / dim) as u32).collect();
        let (rows, mut offsets) = (order.len(), vec![0]);
        split_cluster(points, dim, limit, &mut order, 0..rows, &mut offsets);
        (order, offsets)
    }

    #[test]
    fn two_groups_come_apart_whole() {
        let points = [0.0, 9.0, 0.1, 9.2, 0.2, 9.1, 0.3];
        let (order, offsets) = split(&points, 1, 4);
        let mut parts: Vec<&[u32]> =
            offsets.windows(2).map(|w| &order[w[0] as usize..w[1] as usize]).collect();
        parts.sort();
        assert_eq!(parts, [&[0, 2, 4, 6][..], &[1, 3, 5]]);
    }

    #[test]
    fn equal_rows_stay_together_and_an_outlier_leaves() {
        let mut points = vec![0.25; 3 * 40];
        let (_, offsets) = split(&points, 3, 5);
        assert_eq!(offsets, [0, 40]);
        points[3 * 17 + 1] = 0.26;
        let (order, offsets) = split(&points, 3, 5);
        let sizes: Vec<u32> = offsets.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(sizes == [1, 39] || sizes == [39, 1], "{sizes:?}");
        assert!(order[0] == 17 || order[39] == 17);
    }

    #[test]
    fn a_chain_of_ever_farther_outliers_ends_in_halves() {
        // Each cut by 2-means peels off one row; halving must take over and keep within the limit.
        let points: Vec<f32> = (0..120).map(|i| (-(i as f32)).exp2()).collect();
        let (order, offsets) = split(&points, 1, 3);
        assert!(offsets.windows(2).all(|w| w[0] < w[1] && w[1] - w[0] <= 3), "{offsets:?}");
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..120).collect::<Vec<u32>>());
        for part in offsets.windows(2) {
            assert!(order[part[0] as usize..part[1] as usize].is_sorted());
        }
    }

    #[test]
    fn rows_that_do_not_compare_are_left_whole() {
        let (_, offsets) = split(&[f32::NAN; 12], 2, 2);
        assert_eq!(offsets, [0, 6]);
    }
}
