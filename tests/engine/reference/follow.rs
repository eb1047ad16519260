//! What the float64 method adds for values that follow keys.

use super::method::{Attempt, Resolution, Standing};
use super::stored::{add, dot};

const SLOPE: f64 = 8.0;

impl Attempt<'_> {
    /// What segment `of`'s slope is followed by, per head: weights times rises of the rows whose value is their cluster's mean, and
    /// the variance of scores about their centroids.
    fn rising(&self, of: usize) -> Vec<[f64; 2]> {
        let segment = &self.ask.head.segments[of];
        let heads = self.ask.queries.iter().enumerate();
        heads
            .map(|(g, query)| {
                let first = segment.sketch_sigma.iter().zip(&segment.axes);
                let first: f64 = first.map(|(sigma, axis)| (sigma * dot(axis, query)).powi(2)).sum();
                let mean = segment.key_spread_mean;
                let (mut weighted, mut squares, mut spread) = (0.0, 64.0 * first, 64.0 * mean);
                for (c, row) in self.places() {
                    let cluster = self.cluster(c);
                    if self.ask.head.slope_of(cluster.segment) != Some(of) || !self.choice.means[c] {
                        continue;
                    }
                    let (within, left) = (self.within[c][g], self.variance[c][row][g]);
                    let steepness = cluster.steepness;
                    let mut rise = (within / 2.0).min(2.0);
                    if self.choice.opened[c] {
                        let most = 3.0 * within.sqrt();
                        rise = (self.rise[c][row][g] + left.min(2.0)).min(most).max(-most);
                        squares += steepness.powi(2) * (self.rise[c][row][g].powi(2) + left);
                        spread += steepness.powi(2) * cluster.key_spread;
                    }
                    if self.choice.rows[c][row][1] == Resolution::Coarse {
                        weighted += self.weight[c][row][g] * rise * steepness;
                    }
                }
                [weighted, squares / spread * mean]
            })
            .collect()
    }

    /// The answer with what follows from scores for values that are their cluster's mean, where that could matter.
    pub(super) fn follow(&mut self) -> Vec<Standing> {
        let before = self.all_standing();
        let mut after = self.all_standing();
        for of in 0..self.ask.head.segments.len() {
            let segment = &self.ask.head.segments[of];
            if segment.value_slope.is_empty() {
                continue;
            }
            let rising = self.rising(of);
            let gain = self.gain(&before, |g, standing| {
                let [weighted, variance] = rising[g];
                weighted / (standing.total * standing.norm) / variance.sqrt()
            });
            self.choice.slopes[of] =
                self.exceeds(gain * segment.value_spread_mean.sqrt(), SLOPE * self.ask.tau);
            if self.choice.slopes[of] {
                for ((standing, [weighted, variance]), query) in
                    after.iter_mut().zip(rising).zip(self.ask.queries)
                {
                    let slope = segment.slope_along(query);
                    let length = dot(&slope, &slope).sqrt();
                    let most = (segment.value_spread_mean * variance).sqrt();
                    let rows = weighted / standing.total / variance * (most / length).min(1.0);
                    add(&mut standing.output, rows, &slope);
                    standing.added += rows.abs() * length;
                }
            }
        }
        after.iter_mut().for_each(|standing| standing.norm = dot(&standing.output, &standing.output).sqrt());
        after
    }
}
