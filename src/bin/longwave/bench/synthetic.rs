//! Synthetic KV with the structure that makes attention sparse: keys come in topics, the same few tokens at the start
//! draw attention from everywhere, and the keys drift with the position. It stands in for a model where speed is
//! measured and nothing else.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

/// So many that clusters of 32 to 128 rows of a segment of 8192 are parts of one topic, as clusters of a model's keys are of one kind of token.
const TOPICS: usize = 64;
/// Consecutive tokens of one topic.
const TOPIC_RUN: usize = 24;
const SINKS: usize = 4;
/// Positions in which the drift goes half around.
const DRIFT_PERIOD: f32 = 32768.0;
/// How far a query points to the sinks, which then draw a good part of the attention.
const SINK_PULL: f32 = 0.5;
/// How far keys of a topic lie apart, on average over the topics, and how much that differs from topic to topic: some are nearly
/// the same token over and over, some are many.
const NOISE: f32 = 0.53;
const NOISE_RANGE: f32 = 0.8;
/// How sharply the query heads of a group tell rows apart, one after the other: the deviation of an element of a query. Some
/// heads of a model look at few rows and some at many. With [`NOISE`], these were set so that at the same tau about the same
/// shares of sketches and codes are read, of 131,072 rows, as of a model's 32K trace; docs/benchmarks.md has both.
const SHARPNESS: [f32; 4] = [2.9, 1.9, 1.45, 1.0];

/// A seeded source of rows and queries. The same arguments give the same numbers.
pub(super) struct Synthetic {
    seed: u64,
    dim: usize,
    heads: Vec<Head>,
}

/// Directions of one KV head, unit variance an element.
struct Head {
    /// `[TOPICS, dim]`.
    topics: Vec<f32>,
    /// `[TOPICS, dim]`.
    topic_values: Vec<f32>,
    sink: Vec<f32>,
    /// Two directions that the drift turns between.
    drift: [Vec<f32>; 2],
}

impl Synthetic {
    pub(super) fn new(seed: u64, kv_heads: usize, dim: usize) -> Self {
        let head = |head: usize| {
            let mut rng = stream(seed, head, 0);
            let mut draw = |count: usize| noise(&mut rng, count);
            Head {
                topics: draw(TOPICS * dim),
                topic_values: draw(TOPICS * dim),
                sink: draw(dim),
                drift: [draw(dim), draw(dim)],
            }
        };
        Synthetic { seed, dim, heads: (0..kv_heads).map(head).collect() }
    }

    /// Keys and values `[kv_heads, count, dim]` of the rows from `first` on.
    pub(super) fn rows(&self, first: usize, count: usize) -> (Vec<f16>, Vec<f16>) {
        let part = count * self.dim;
        let (mut keys, mut values) =
            (vec![f16::ZERO; self.heads.len() * part], vec![f16::ZERO; self.heads.len() * part]);
        let parts = keys.par_chunks_mut(part).zip(values.par_chunks_mut(part)).zip(&self.heads).enumerate();
        parts.for_each(|(number, ((keys, values), head))| {
            let mut rng = stream(self.seed, number, 1 + first as u64);
            let rows = keys.chunks_exact_mut(self.dim).zip(values.chunks_exact_mut(self.dim));
            for ((key, value), position) in rows.zip(first..) {
                key.convert_from_f32_slice(&self.key(head, position, &mut rng));
                value.convert_from_f32_slice(&self.value(head, position, &mut rng));
            }
        });
        (keys, values)
    }

    /// The query `[query_heads, dim]` of number `number`. Each head looks its own way.
    pub(super) fn query(&self, number: usize, query_heads: usize) -> Vec<f32> {
        let mut rng = stream(self.seed, self.heads.len(), 1 + number as u64);
        let group = query_heads / self.heads.len();
        let mut query = Vec::with_capacity(query_heads * self.dim);
        for at in 0..query_heads {
            let (head, sharp) = (&self.heads[at / group], SHARPNESS[at % group % SHARPNESS.len()]);
            let aims = head.sink.iter().zip(noise(&mut rng, self.dim));
            query.extend(aims.map(|(sink, noise)| SINK_PULL * sink + sharp * noise));
        }
        query
    }

    fn key(&self, head: &Head, position: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        if position < SINKS {
            return head.sink.iter().map(|x| 2.0 * x).collect();
        }
        let number = topic_at(position);
        let topic = self.row(&head.topics, number);
        let apart = NOISE * (1.0 + NOISE_RANGE * ((2 * number + 1) as f32 / TOPICS as f32 - 1.0));
        let (sin, cos) = (position as f32 / DRIFT_PERIOD * std::f32::consts::PI).sin_cos();
        let [from, to] = &head.drift;
        let parts = topic.iter().zip(from).zip(to).zip(noise(rng, self.dim));
        parts.map(|(((topic, from), to), noise)| topic + cos * from + sin * to + apart * noise).collect()
    }

    fn value(&self, head: &Head, position: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let topic = self.row(&head.topic_values, topic_at(position));
        // A sink says next to nothing.
        let size = if position < SINKS { 0.05 } else { 1.0 };
        topic.iter().zip(noise(rng, self.dim)).map(|(topic, noise)| size * (topic + noise)).collect()
    }

    fn row<'a>(&self, rows: &'a [f32], at: usize) -> &'a [f32] {
        &rows[at * self.dim..(at + 1) * self.dim]
    }
}

/// Topics come back in an order that looks arbitrary.
fn topic_at(position: usize) -> usize {
    let run = (position / TOPIC_RUN) as u64;
    (xxhash_rust::xxh3::xxh3_64(&run.to_le_bytes()) % TOPICS as u64) as usize
}

fn stream(seed: u64, head: usize, part: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((head as u64) << 48) ^ part);
    rng
}

/// Numbers of mean 0 and variance 1, bell-shaped: each the sum of the four bytes of a random word.
fn noise(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let mut words = vec![0; count * 4];
    rng.fill_bytes(&mut words);
    // A byte has mean 127.5 and variance (256^2 - 1) / 12.
    let scale = (4.0 * (65536.0 - 1.0) / 12.0_f32).sqrt().recip();
    let sum = |word: &[u8; 4]| word.iter().map(|&byte| i32::from(byte)).sum::<i32>();
    words.as_chunks().0.iter().map(|word| (sum(word) as f32 - 510.0) * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_mean_zero_and_variance_one() {
        let draws = noise(&mut stream(3, 1, 2), 40_000);
        let mean = draws.iter().sum::<f32>() / 40_000.0;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 40_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn the_same_seed_gives_the_same_rows_and_another_seed_others() {
        let rows = |seed, first| Synthetic::new(seed, 2, 16).rows(first, 40);
        assert_eq!(rows(1, 80), rows(1, 80));
        assert_ne!(rows(1, 80), rows(2, 80));
        assert_ne!(rows(1, 80), rows(1, 120));
    }

    #[test]
    fn keys_of_some_topics_lie_closer_together_than_those_of_others() {
        let dim = 64;
        let (keys, _) = Synthetic::new(7, 1, dim).rows(0, 40 * TOPIC_RUN);
        // Neighbours of one topic, by its number: the drift between them is next to nothing.
        let mut apart: Vec<(usize, f32)> = (1..40 * TOPIC_RUN - 1)
            .filter(|&row| row >= SINKS && topic_at(row) == topic_at(row + 1))
            .map(|row| {
                let (key, next) = (&keys[row * dim..][..dim], &keys[(row + 1) * dim..][..dim]);
                let off = key.iter().zip(next).map(|(a, b)| (a.to_f32() - b.to_f32()).powi(2)).sum::<f32>();
                (topic_at(row), (off / 2.0 / dim as f32).sqrt())
            })
            .collect();
        apart.sort_by_key(|(topic, _)| *topic);
        let mean = |part: &[(usize, f32)]| part.iter().map(|(_, off)| off).sum::<f32>() / part.len() as f32;
        let quarter = apart.len() / 4;
        let (close, far) = (mean(&apart[..quarter]), mean(&apart[apart.len() - quarter..]));
        assert!(far > 2.0 * close && (mean(&apart) / NOISE - 1.0).abs() < 0.2, "{close}, {far}");
    }

    #[test]
    fn sinks_score_high_and_some_heads_look_at_fewer_rows_than_others() {
        let dim = 64;
        let synthetic = Synthetic::new(5, 1, dim);
        let (keys, _) = synthetic.rows(0, 4096);
        // Of the rows behind the sinks, how many hold half of the softmax.
        let mut half = Vec::new();
        for query in synthetic.query(0, SHARPNESS.len()).chunks_exact(dim) {
            let dot = |key: &[f16]| {
                key.iter().zip(query).map(|(k, q)| k.to_f32() * q).sum::<f32>() / (dim as f32).sqrt()
            };
            let scores: Vec<f32> = keys.chunks_exact(dim).map(dot).collect();
            let mut rest = scores[SINKS..].to_vec();
            rest.sort_by(|a, b| b.total_cmp(a));
            let median = rest[rest.len() / 2];
            assert!(scores[..SINKS].iter().all(|score| *score > median + 2.0), "{:?}", &scores[..SINKS]);
            let weights: Vec<f32> = rest.iter().map(|score| (score - rest[0]).exp()).collect();
            let (total, mut sum) = (weights.iter().sum::<f32>(), 0.0);
            half.push(
                weights
                    .iter()
                    .take_while(|weight| {
                        sum += **weight;
                        sum < total / 2.0
                    })
                    .count(),
            );
        }
        assert!(half[0] < 100 && half.is_sorted() && half[3] > 4 * half[0] && half[3] < 2000, "{half:?}");
    }
}
