//! The method `longwave` in float64, row by row: every row of every cluster has a weight and a value, whatever they
//! rest on.

use super::stored::{StoredCluster, StoredHead, add, distance2, dot};
use longwave::RowForm;

const PROBE: f64 = 0.5;
const MEAN: f64 = 0.5;
const VALUE: [f64; 3] = [0.35, 1.4, 10.0];
/// By resolution.
const VALUE_NOISE: [f64; 4] = [1.0, 0.12, 0.0095, 0.0];
const CENTROID_CODE_NOISE: f64 = 0.0095;
/// The largest level of a code of so many bits.
const LARGEST: [f64; 5] = [0.0, 0.7979, 1.510, f64::NAN, 2.7326];

/// How finely a key or a value is read: by its sketch or its cluster's mean, in 2 bits, in 4, or itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Coarse,
    Half,
    Code,
    Full,
}

/// The rows that are read in any case, as one row, per query head.
#[derive(Clone)]
pub struct Steady {
    pub lse: f64,
    pub output: Vec<f64>,
}

/// One position and KV head: the scaled queries of its group and what they ask.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub head: &'a StoredHead,
    pub queries: &'a [Vec<f64>],
    pub steady: &'a [Steady],
    pub softcap: Option<f64>,
    pub tau: f64,
    /// Whether rows can be had in full; otherwise their codes are all there is.
    pub has_full: bool,
}

/// What is read: of each cluster whether its value mean and its sketches, of each row the key's and the value's
/// resolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub means: Vec<bool>,
    pub opened: Vec<bool>,
    /// Of each segment whether it is read how its values follow its keys.
    pub slopes: Vec<bool>,
    pub rows: Vec<Vec<[Resolution; 2]>>,
    /// How finely the code of a key was read before it was read once more.
    pub before: Vec<Vec<Resolution>>,
    /// Keys that were read only when others were read once more.
    pub missed: usize,
}

pub struct Reference {
    /// Per query head of the group.
    pub output: Vec<Vec<f64>>,
    pub lse: Vec<f64>,
    pub predicted: Vec<f64>,
    /// The squared terms of the prediction, in the order of docs/accuracy.md, each as a share of their sum.
    pub terms: Vec<[f64; 6]>,
    /// How far the log-sum-exp lies above all centroids and what is read in any case.
    pub rise: Vec<f64>,
    /// What the correction of uncertain sketched scores adds to them, averaged over the softmax.
    pub jensen: Vec<f64>,
    pub choice: Choice,
    /// How far the closest decision was from going the other way, as a share of its threshold.
    pub margin: f64,
}

pub(super) struct Standing {
    /// Length of what slopes have added.
    pub(super) added: f64,
    pub(super) output: Vec<f64>,
    pub(super) norm: f64,
    pub(super) total: f64,
}

pub(super) struct Attempt<'a> {
    pub(super) ask: Question<'a>,
    /// `[cluster][head]`: score before the soft-cap, score, variance of scores in the cluster.
    pub(super) uncapped: Vec<Vec<f64>>,
    pub(super) centre: Vec<Vec<f64>>,
    pub(super) within: Vec<Vec<f64>>,
    /// Reference of the exponentials.
    pub(super) top: Vec<f64>,
    /// `[cluster][row][head]`.
    pub(super) weight: Vec<Vec<Vec<f64>>>,
    /// What is left of the variance of a score.
    pub(super) variance: Vec<Vec<Vec<f64>>>,
    /// What the sketch adds to the centroid's score.
    pub(super) sketched: Vec<Vec<Vec<f64>>>,
    pub(super) jensen: Vec<Vec<Vec<f64>>>,
    /// By how much a row's score, before the soft-cap, lies above its centroid's.
    pub(super) rise: Vec<Vec<Vec<f64>>>,
    pub(super) choice: Choice,
    pub(super) margin: f64,
}

/// Answers `ask`.
pub fn answer(ask: Question<'_>) -> Reference {
    let mut attempt = Attempt::new(ask);
    attempt.choose_clusters();
    attempt.scan();
    attempt.read_keys();
    attempt.read_keys_again();
    attempt.choose_values();
    let heads = 0..ask.queries.len();
    let standing = attempt.follow();
    let squared: Vec<[f64; 6]> = heads.clone().map(|g| attempt.error_terms(g, &standing[g])).collect();
    let sum = |terms: &[f64; 6]| terms.iter().sum::<f64>();
    Reference {
        rise: standing.iter().map(|standing| standing.total.ln()).collect(),
        lse: standing.iter().zip(&attempt.top).map(|(standing, top)| top + standing.total.ln()).collect(),
        predicted: squared.iter().zip(&standing).map(|(terms, s)| sum(terms).sqrt() / s.norm).collect(),
        terms: squared
            .iter()
            .map(|terms| terms.map(|term| term / sum(terms).max(f64::MIN_POSITIVE)))
            .collect(),
        jensen: heads.map(|g| attempt.mean_jensen(g, standing[g].total)).collect(),
        output: standing.into_iter().map(|standing| standing.output).collect(),
        choice: attempt.choice,
        margin: attempt.margin,
    }
}

impl<'a> Attempt<'a> {
    fn new(ask: Question<'a>) -> Attempt<'a> {
        let clusters = &ask.head.clusters;
        let per_head = |of: &dyn Fn(usize, &StoredCluster, &[f64]) -> f64| -> Vec<Vec<f64>> {
            let heads =
                |c: &StoredCluster| ask.queries.iter().enumerate().map(|(g, q)| of(g, c, q)).collect();
            clusters.iter().map(heads).collect()
        };
        let uncapped = per_head(&|_, cluster, query| dot(query, &cluster.centroid));
        let centre: Vec<Vec<f64>> = uncapped
            .iter()
            .map(|scores| scores.iter().map(|&score| cap(score, ask.softcap)).collect())
            .collect();
        let within = per_head(&|_, cluster, query| {
            let segment = ask.head.segment(cluster);
            let along =
                segment.axes.iter().zip(&segment.shape).map(|(axis, shape)| dot(axis, query).powi(2) * shape);
            let variance = along.sum::<f64>() * cluster.key_spread;
            let slope = slope(dot(query, &cluster.centroid), 3.0 * variance.sqrt(), ask.softcap);
            variance * slope * slope
        });
        let top: Vec<f64> = (0..ask.queries.len())
            .map(|g| centre.iter().map(|scores| scores[g]).fold(ask.steady[g].lse, f64::max))
            .collect();
        let rows = |with: &dyn Fn(usize) -> Vec<f64>| -> Vec<Vec<Vec<f64>>> {
            clusters.iter().enumerate().map(|(c, cluster)| vec![with(c); cluster.rows.len()]).collect()
        };
        let weight =
            rows(&|c| centre[c].iter().zip(&top).map(|(x, top)| (x - top).min(20.0).exp()).collect());
        let zeros = rows(&|_| vec![0.0; top.len()]);
        let choice = Choice {
            means: vec![false; clusters.len()],
            opened: vec![false; clusters.len()],
            slopes: vec![false; ask.head.segments.len()],
            rows: clusters.iter().map(|c| vec![[Resolution::Coarse; 2]; c.rows.len()]).collect(),
            before: clusters.iter().map(|c| vec![Resolution::Coarse; c.rows.len()]).collect(),
            missed: 0,
        };
        let margin = f64::INFINITY;
        Attempt {
            ask,
            uncapped,
            centre,
            within,
            top,
            weight,
            variance: zeros.clone(),
            sketched: zeros.clone(),
            jensen: zeros.clone(),
            rise: zeros,
            choice,
            margin,
        }
    }

    pub(super) fn cluster(&self, c: usize) -> &'a StoredCluster {
        &self.ask.head.clusters[c]
    }

    /// The value that stands for a cluster.
    pub(super) fn mean(&self, c: usize) -> &'a [f64] {
        let cluster = self.cluster(c);
        if self.choice.means[c] { &cluster.mean } else { &self.ask.head.segment(cluster).global_value }
    }

    fn value(&self, c: usize, row: usize) -> &'a [f64] {
        match self.choice.rows[c][row][1] {
            Resolution::Coarse => self.mean(c),
            Resolution::Half => &self.cluster(c).rows[row].value_codes[0],
            Resolution::Code => &self.cluster(c).rows[row].value_codes[1],
            Resolution::Full => &self.cluster(c).rows[row].value,
        }
    }

    pub(super) fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows: Vec<usize> = self.weight.iter().map(Vec::len).collect();
        rows.into_iter().enumerate().flat_map(|(c, rows)| (0..rows).map(move |row| (c, row)))
    }

    /// The answer with the weights and values as they are now.
    fn standing(&self, g: usize) -> Standing {
        let steady = &self.ask.steady[g];
        let mut total = (steady.lse - self.top[g]).exp();
        let mut output = vec![0.0; steady.output.len()];
        add(&mut output, total, &steady.output);
        for (c, row) in self.places() {
            let weight = self.weight[c][row][g];
            total += weight;
            add(&mut output, weight, self.value(c, row));
        }
        output.iter_mut().for_each(|x| *x /= total);
        Standing { added: 0.0, norm: dot(&output, &output).sqrt(), output, total }
    }

    /// Root sum of squares over the heads of the group, each with the answer as it stands.
    pub(super) fn gain(&self, standing: &[Standing], of: impl Fn(usize, &Standing) -> f64) -> f64 {
        standing.iter().enumerate().map(|(g, standing)| of(g, standing).powi(2)).sum::<f64>().sqrt()
    }

    pub(super) fn exceeds(&mut self, gain: f64, threshold: f64) -> bool {
        self.margin = self.margin.min((gain / threshold - 1.0).abs());
        gain > threshold
    }

    /// Where nothing finer than codes is kept of the rows of cluster `c`, a whole code is the row.
    pub(super) fn codes_alone(&self, c: usize) -> bool {
        self.ask.head.segment(self.cluster(c)).form == RowForm::Codes
    }

    /// Whether rows of cluster `c` can be read in full.
    pub(super) fn has_full(&self, c: usize) -> bool {
        self.ask.has_full && !self.codes_alone(c)
    }

    pub(super) fn resolution(&mut self, c: usize, gain: f64, rungs: [f64; 3]) -> Resolution {
        match rungs.map(|rung| self.exceeds(gain, rung * self.ask.tau)) {
            [_, _, true] if self.has_full(c) => Resolution::Full,
            [_, true, _] => Resolution::Code,
            [true, ..] => Resolution::Half,
            _ => Resolution::Coarse,
        }
    }

    pub(super) fn all_standing(&self) -> Vec<Standing> {
        (0..self.top.len()).map(|g| self.standing(g)).collect()
    }

    fn choose_clusters(&mut self) {
        let near = |within: f64| within.clamp(2.5 * within.sqrt(), 3.3 * within.sqrt());
        let above = |within: f64| near(within).max(5.2 * within.sqrt() - 5.5).min(80.0);
        let clusters = 0..self.ask.head.clusters.len();
        let standing = self.all_standing();
        for c in clusters.clone() {
            let most = standing.iter().enumerate().map(|(g, standing)| {
                let mass: f64 = self.weight[c].iter().map(|row| row[g]).sum();
                mass / standing.total * above(self.within[c][g]).exp()
            });
            let most = most.fold(0.0, f64::max);
            self.choice.means[c] = self.exceeds(most, MEAN * self.ask.tau);
        }
        let standing = self.all_standing();
        for c in clusters.filter(|&c| self.choice.means[c]).collect::<Vec<_>>() {
            let cluster = self.cluster(c);
            let gain = self.gain(&standing, |g, standing| {
                let coding = cluster.rows.len() as f64 * cluster.mean_error;
                let off = distance2(&cluster.mean, &standing.output) + cluster.value_spread + coding;
                let share = self.weight[c][0][g] / standing.total;
                share * above(self.within[c][g]).exp_m1() * off.sqrt() / standing.norm
            });
            self.choice.opened[c] = self.exceeds(gain, PROBE * self.ask.tau);
        }
    }

    /// Weights of all rows: sketched in the zone, estimated outside.
    fn scan(&mut self) {
        for (c, row) in self.places() {
            for g in 0..self.top.len() {
                if !self.choice.opened[c] {
                    let score = self.centre[c][g] + (self.within[c][g] / 4.0).min(1.0) - self.top[g];
                    self.weight[c][row][g] = score.min(10.0).exp();
                    continue;
                }
                let segment = self.ask.head.segment(self.cluster(c));
                let query = &self.ask.queries[g];
                let norm = segment.axes.iter().map(|axis| dot(axis, query).powi(2)).sum::<f64>().sqrt();
                let deviation = norm * self.cluster(c).rows[row].factor * segment.sketch_noise;
                let sketched = self.sketch_score(c, row, g);
                self.sketched[c][row][g] = sketched;
                self.rise[c][row][g] = sketched;
                let score = self.uncapped[c][g] + sketched;
                let variance = (deviation * slope(score, 2.5 * deviation, self.ask.softcap)).powi(2);
                let jensen = (variance / 2.0).min(1.0);
                self.variance[c][row][g] = variance;
                self.jensen[c][row][g] = jensen;
                let score = cap(score, self.ask.softcap) + jensen;
                self.weight[c][row][g] = (score - self.top[g]).min(10.0).exp();
            }
        }
    }

    /// A row's sketch times a query, by tables of 8 bits: what a half byte adds is a whole number of steps above the least
    /// that it can add, and the widest half byte of the query has 255.
    fn sketch_score(&mut self, c: usize, row: usize, g: usize) -> f64 {
        let (halves, step) = self.halves(c, row, g);
        let mut sum = 0.0;
        for [found, least] in halves {
            let steps = (found - least) / step;
            // Float32 may round a step the other way as well.
            self.margin = self.margin.min((steps.fract() - 0.5).abs());
            sum += least + step * steps.round();
        }
        sum * self.cluster(c).rows[row].factor
    }

    /// Of each half byte of a row's sketch what it adds and the least that it could add; and the step.
    pub(super) fn halves(&self, c: usize, row: usize, g: usize) -> (Vec<[f64; 2]>, f64) {
        let segment = self.ask.head.segment(self.cluster(c));
        let sketch = &self.cluster(c).rows[row];
        let mut halves: Vec<[f64; 2]> = Vec::new();
        let mut room = 0;
        for (i, axis) in segment.axes.iter().enumerate().filter(|&(i, _)| segment.bits[i] > 0) {
            let bits = segment.bits[i];
            if room < bits || (i > 0 && segment.bits[i - 1] != bits) {
                halves.push([0.0; 2]);
                room = 4;
            }
            room -= bits;
            let along = dot(axis, &self.ask.queries[g]);
            let reach = LARGEST[usize::from(bits)] * segment.sketch_sigma[i] * along.abs();
            let [found, least] = halves.last_mut().unwrap();
            (*found, *least) = (*found + along * sketch.sketch[i], *least - reach);
        }
        let step = halves.iter().map(|[_, least]| -2.0 * least).fold(0.0, f64::max) / 255.0;
        (halves, step)
    }

    fn choose_values(&mut self) {
        let standing = self.all_standing();
        for (c, row) in self.places().filter(|&(c, _)| self.choice.opened[c]).collect::<Vec<_>>() {
            let gain = self.gain(&standing, |g, standing| {
                let variance = self.variance[c][row][g];
                let above = variance.min(2.5 * variance.sqrt()).min(80.0).exp();
                self.weight[c][row][g] / standing.total * above / standing.norm
            });
            let spread = self.cluster(c).value_spread;
            self.choice.rows[c][row][1] = self.resolution(c, gain * spread.sqrt(), VALUE);
        }
    }

    /// The squared terms of the predicted error of a head, in the order of docs/accuracy.md.
    fn error_terms(&self, g: usize, answer: &Standing) -> [f64; 6] {
        let mut terms = [0.0; 6];
        terms[5] = 0.1 * answer.added.powi(2);
        let (mut bias, mut unsure) = (vec![0.0; answer.output.len()], 0.0f64);
        for (c, cluster) in self.ask.head.clusters.iter().enumerate() {
            let (mean, spread) = (self.mean(c), cluster.value_spread);
            let shared_off = distance2(mean, &answer.output);
            let off = shared_off + spread;
            let share = |row: usize| self.weight[c][row][g] / answer.total;
            let shared = self.shared_variance(c, g);
            let (mut on_mean, mut coded, mut sums) = (0.0, 0.0, [0.0; 3]);
            for (row, [_, value]) in self.choice.rows[c].iter().enumerate() {
                match value {
                    Resolution::Coarse => on_mean += share(row),
                    coding => coded += share(row) * self.value_noise(c, *coding).sqrt(),
                }
                if self.choice.opened[c] {
                    let variance = self.variance[c][row][g];
                    let left = variance.min(4.0).exp_m1();
                    terms[0] += share(row).powi(2) * spread * self.value_noise(c, *value);
                    terms[1] += share(row).powi(2) * left * off;
                    let of_row = [share(row), share(row).powi(2), share(row).powi(2) * left];
                    sums.iter_mut().zip(of_row).for_each(|(sum, x)| *sum += x);
                    unsure = unsure.max(could_hold(share(row), variance, answer.total).powi(2) * off);
                }
            }
            if self.choice.opened[c] {
                let common = (shared / self.within[c][g]).min(1.0) * sums[2] / sums[1];
                terms[1] += sums[0].powi(2) * common * shared_off;
                terms[4] += coded.powi(2) * cluster.mean_error;
            } else {
                let (within, rows) = (self.within[c][g].min(2.0), cluster.rows.len() as f64);
                let held = rows * share(0);
                terms[2] += held.powi(2) / rows * (within.exp_m1() * off + spread);
                let common = shared.min(2.0).exp_m1().min(2.0 * self.within[c][g]);
                terms[2] += held.powi(2) * common * shared_off;
                unsure = unsure.max(could_hold(held, self.within[c][g], answer.total).powi(2) * off);
                let shift = held * (within / 4.0).exp_m1();
                add(&mut bias, shift, mean);
                add(&mut bias, -shift, &answer.output);
            }
            let unread = self.ask.head.segment(cluster).mean_deviation;
            terms[4] += on_mean.powi(2) * if self.choice.means[c] { cluster.mean_error } else { unread };
        }
        terms[1] += unsure;
        terms[3] = dot(&bias, &bias);
        terms
    }

    /// The part of a value's spread that its resolution leaves.
    fn value_noise(&self, c: usize, value: Resolution) -> f64 {
        let is_row = self.codes_alone(c) && value == Resolution::Code;
        if is_row { 0.0 } else { VALUE_NOISE[value as usize] }
    }

    /// What the coding error of a cluster's centroid makes of the variance of a score.
    fn shared_variance(&self, c: usize, g: usize) -> f64 {
        let segment = self.ask.head.segment(&self.ask.head.clusters[c]);
        let query = &self.ask.queries[g];
        let along = segment.axes.iter().zip(&segment.centroid_sigma);
        CENTROID_CODE_NOISE * along.map(|(axis, sigma)| (dot(axis, query) * sigma).powi(2)).sum::<f64>()
    }

    fn mean_jensen(&self, g: usize, total: f64) -> f64 {
        self.places().map(|(c, row)| self.jensen[c][row][g] * self.weight[c][row][g]).sum::<f64>() / total
    }
}

/// The share that one whose score is less sure than 16 nats could hold; 0 of all others.
fn could_hold(share: f64, variance: f64, total: f64) -> f64 {
    if variance <= 256.0 {
        return 0.0;
    }
    let weight = (share * total).max(f64::from(f32::MIN_POSITIVE));
    (weight.ln() + 3.0 * variance.sqrt() - total.ln()).min(0.0).exp()
}

pub fn cap(score: f64, softcap: Option<f64>) -> f64 {
    softcap.map_or(score, |cap| cap * (score / cap).tanh())
}

/// What the cap leaves of a deviation above a score.
fn slope(score: f64, deviation: f64, softcap: Option<f64>) -> f64 {
    match softcap {
        Some(_) if deviation > 1e-9 => (cap(score + deviation, softcap) - cap(score, softcap)) / deviation,
        Some(cap) => 1.0 - (score / cap).tanh().powi(2),
        None => 1.0,
    }
}
