//! In which order the clusters of a head lie.
//!
//! A query opens clusters that lie in its direction. Where these lie together in the files as well, what is read of them lies on fewer
//! pages, and is asked for in fewer and longer pieces.

use crate::clustering::Clustering;
use crate::outliers::{point, product};
use crate::split::mean;

/// Lines up the clusters of `all` (rows of `points`, `[rows, dim]`), each behind the one whose mean is nearest to its own of those that
/// are left. It begins with the mean that is farthest from the origin: an end. Rows alone in their clusters stay behind all others: they
/// are far from everything, and there may be thousands.
pub(crate) fn line_up(all: &Clustering, points: &[f32], dim: usize) -> Clustering {
    let parts: Vec<&[u32]> = all.parts().collect();
    let (alone, mut left): (Vec<usize>, Vec<usize>) = (0..parts.len()).partition(|&c| parts[c].len() == 1);
    let of_part = |rows: &&[u32]| mean(rows.iter().map(|&row| point(points, row, dim)), dim);
    let means: Vec<f32> = parts.iter().flat_map(of_part).map(|x| x as f32).collect();
    let mean_of = |c: usize| &means[c * dim..][..dim];
    let squared: Vec<f64> = (0..parts.len()).map(|c| product(mean_of(c), mean_of(c))).collect();
    let mut line = Clustering { order: Vec::with_capacity(all.order.len()), offsets: vec![0] };
    let mut at = place_of_least(&left, |c| -squared[c]);
    while let Some(place) = at {
        let last = left.remove(place);
        line.push(parts[last]);
        at = place_of_least(&left, |c| squared[c] - 2.0 * product(mean_of(last), mean_of(c)));
    }
    alone.iter().for_each(|&c| line.push(parts[c]));
    line
}

/// The first place whose cluster has the least of something.
fn place_of_least(clusters: &[usize], of: impl Fn(usize) -> f64) -> Option<usize> {
    let numbers = clusters.iter().map(|&c| of(c)).enumerate();
    numbers.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters of two rows each around these numbers, in one dimension of three, and a row alone.
    fn clusters(centres: &[f32]) -> (Clustering, Vec<f32>) {
        let mut all = Clustering { order: Vec::new(), offsets: vec![0] };
        let mut points = vec![0.0, -7.5, 0.0];
        all.push(&[0]);
        for (number, centre) in (0..).zip(centres) {
            points.extend([0.5, centre - 0.1, 0.0, -0.5, centre + 0.1, 0.0]);
            all.push(&[2 * number + 1, 2 * number + 2]);
        }
        (all, points)
    }

    #[test]
    fn neighbours_follow_each_other_from_one_end_to_the_other() {
        let (all, points) = clusters(&[1.0, -8.0, 9.0, -3.0, 5.0]);
        let line = line_up(&all, &points, 3);
        assert_eq!(line.offsets, [0, 2, 4, 6, 8, 10, 11]);
        assert_eq!(line.order, [5, 6, 9, 10, 1, 2, 7, 8, 3, 4, 0], "9, 5, 1, -3, -8 and the row alone");
    }

    #[test]
    fn equal_means_and_numbers_that_are_none_keep_all_rows() {
        let (all, mut points) = clusters(&[2.0, 2.0, f32::NAN, 2.0]);
        points[0] = f32::INFINITY;
        let line = line_up(&all, &points, 3);
        let mut rows = line.order.clone();
        rows.sort_unstable();
        assert_eq!((rows, line.clusters()), ((0..9).collect(), 5));
        assert_eq!(line_up(&all, &points, 3), line);
        let none = Clustering { order: Vec::new(), offsets: vec![0] };
        assert_eq!(line_up(&none, &[], 3), none);
    }
}
