//! Which keys the float64 method reads, and what rows weigh by them.

use super::method::{Attempt, Resolution, Standing, cap};
use super::stored::{distance2, dot};

const KEY: [f64; 3] = [1.3, 8.0, 100.0];
/// Of keys that were read as half a code: the whole of it, and the key; and of those that were read as a whole one.
const HALF_AGAIN: [f64; 2] = [1.0, 10.0];
const CODE_AGAIN: f64 = 3.0;
/// By resolution.
const KEY_NOISE: [f64; 4] = [1.0, 0.145, 0.0135, 0.0];

impl Attempt<'_> {
    /// Share of the variance of a sketched score that reading the key leaves. Of codes alone that is what the tables of
    /// sketches are off by, up to half a step alike in each half byte.
    fn key_noise(&self, (c, row, g): (usize, usize, usize), resolution: Resolution) -> f64 {
        if !(self.codes_alone(c) && resolution == Resolution::Code) {
            return KEY_NOISE[resolution as usize];
        }
        let segment = self.ask.head.segment(self.cluster(c));
        let norm2: f64 = segment.axes.iter().map(|axis| dot(axis, &self.ask.queries[g]).powi(2)).sum();
        let (halves, step) = self.halves(c, row, g);
        (step * step * halves.len() as f64 / 12.0 / (norm2 * segment.sketch_noise.powi(2))).min(1.0)
    }

    fn key_gain(&self, (c, row): (usize, usize), standing: &[Standing]) -> f64 {
        self.gain(standing, |g, standing| {
            let reach = (distance2(self.mean(c), &standing.output) + self.cluster(c).value_spread).sqrt();
            let above = (2.5 * self.variance[c][row][g].sqrt()).min(80.0).exp_m1();
            self.weight[c][row][g] / standing.total * above * reach / standing.norm
        })
    }

    /// Reads keys by what the sketches say.
    pub(super) fn read_keys(&mut self) {
        let standing = self.all_standing();
        for (c, row) in self.places().filter(|&(c, _)| self.choice.opened[c]).collect::<Vec<_>>() {
            let gain = self.key_gain((c, row), &standing);
            self.choice.rows[c][row][0] = self.resolution(c, gain, KEY);
        }
        self.places().for_each(|place| self.read_key(place));
    }

    /// Reads keys once more by what their codes say.
    pub(super) fn read_keys_again(&mut self) {
        let (standing, tau) = (self.all_standing(), self.ask.tau);
        let mut again = Vec::new();
        for (c, row) in self.places() {
            let before = self.choice.rows[c][row][0];
            let gain = self.key_gain((c, row), &standing);
            let has_rows = self.has_full(c);
            let after = match before {
                Resolution::Half => match HALF_AGAIN.map(|rung| self.exceeds(gain, rung * tau)) {
                    [_, true] if has_rows => Resolution::Full,
                    [true, _] => Resolution::Code,
                    _ => continue,
                },
                Resolution::Code if has_rows && self.exceeds(gain, CODE_AGAIN * tau) => Resolution::Full,
                // What matters after all, since the others have made the answer so much smaller.
                Resolution::Coarse if self.choice.opened[c] && self.exceeds(gain, CODE_AGAIN * tau) => {
                    self.choice.missed += 1;
                    Resolution::Code
                }
                _ => continue,
            };
            again.push((c, row, before, after));
        }
        for (c, row, before, after) in again {
            (self.choice.before[c][row], self.choice.rows[c][row][0]) = (before, after);
            self.read_key((c, row));
        }
    }

    fn read_key(&mut self, (c, row): (usize, usize)) {
        let (resolution, before) = (self.choice.rows[c][row][0], self.choice.before[c][row]);
        let stored = &self.cluster(c).rows[row];
        for g in 0..self.top.len() {
            let query = &self.ask.queries[g];
            let coded = |code: &[f64], sketch: f64| self.uncapped[c][g] + sketch + dot(query, code);
            let score = match resolution {
                Resolution::Coarse => continue,
                Resolution::Half => coded(&stored.key_codes[0], self.sketched[c][row][g]),
                Resolution::Code => coded(&stored.key_codes[1], self.sketched[c][row][g]),
                Resolution::Full => dot(query, &stored.key),
            };
            self.rise[c][row][g] = score - self.uncapped[c][g];
            let left = self.key_noise((c, row, g), resolution) / self.key_noise((c, row, g), before);
            self.variance[c][row][g] *= left;
            let jensen = (self.variance[c][row][g] / 2.0).min(1.0);
            self.jensen[c][row][g] = jensen;
            self.weight[c][row][g] = (cap(score, self.ask.softcap) + jensen - self.top[g]).exp();
        }
    }
}
