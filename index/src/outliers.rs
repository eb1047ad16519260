//! Rows far from the rest of their cluster.
//!
//! A cluster's spread is a mean, so it says next to nothing of one row that lies far from all others: the queries that
//! are after that row would pass the cluster by. Such rows become clusters of their own. Rows of a model hardly ever lie
//! that far out; constructed ones do.

use crate::clustering::Clustering;

/// A row is far out when its squared distance to the cluster's mean is more than this many times the mean of all.
const FAR: f64 = 8.0;

/// Makes clusters of their own of the rows of `whole` (rows of `points`, `[rows, dim]`) that lie far out.
pub(crate) fn set_apart(whole: Clustering, points: &[f32], dim: usize) -> Clustering {
    let mut apart = Clustering { order: Vec::with_capacity(whole.order.len()), offsets: vec![0] };
    let mut distances = Vec::new();
    for bounds in whole.offsets.windows(2) {
        let mut rows = whole.order[bounds[0] as usize..bounds[1] as usize].to_vec();
        let mut alone = Vec::new();
        while let Some(place) = farthest_out(&rows, points, dim, &mut distances) {
            alone.push(rows.remove(place));
        }
        alone.sort_unstable();
        apart.order.extend(&rows);
        apart.offsets.push(apart.order.len() as u32);
        for row in alone {
            apart.order.push(row);
            apart.offsets.push(apart.order.len() as u32);
        }
    }
    apart
}

/// The place in `rows` of the farthest row, where it is far out. `distances` is a buffer.
fn farthest_out(rows: &[u32], points: &[f32], dim: usize, distances: &mut Vec<f64>) -> Option<usize> {
    let count = rows.len() as f64;
    // No row can be further out than this, whatever the others are.
    if count - 1.0 <= FAR {
        return None;
    }
    let point = |row: u32| &points[row as usize * dim..][..dim];
    let mut mean = vec![0.0f64; dim];
    for &row in rows {
        mean.iter_mut().zip(point(row)).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    mean.iter_mut().for_each(|sum| *sum /= count);
    distances.clear();
    distances.extend(rows.iter().map(|&row| {
        point(row).iter().zip(&mean).map(|(&x, mean)| (f64::from(x) - mean).powi(2)).sum::<f64>()
    }));
    let mut place = 0;
    for (row, distance) in distances.iter().enumerate() {
        if *distance > distances[place] {
            place = row;
        }
    }
    (distances[place] > FAR * distances.iter().sum::<f64>() / count).then_some(place)
}
