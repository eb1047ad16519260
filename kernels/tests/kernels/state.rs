use longwave_kernels::oracle::{Bounded, softmax};
use longwave_kernels::{AttentionState, Dtype, Kernels};
use proptest::prelude::*;

use crate::isas::every_isa;
use crate::sample::{Sample, Stored, bits, panics_with};

const HEADS: usize = 3;
const VALUE_DIM: usize = 24;

/// Rows with given scores, some of them masked.
struct Scored {
    scores: Vec<f32>,
    values: Stored,
}

impl Scored {
    fn new(seed: u64, count: usize, scale: f32) -> Scored {
        let mut sample = Sample::new(seed);
        let scores: Vec<f32> = (0..count * HEADS)
            .map(|_| if sample.below(9) == 0 { f32::NEG_INFINITY } else { sample.number(scale) })
            .collect();
        let values = sample.stored(Dtype::F16, count * VALUE_DIM, 3.0);
        Scored { scores, values }
    }

    fn count(&self) -> usize {
        self.scores.len() / HEADS
    }

    fn absorb(&self, kernels: &Kernels, state: &mut AttentionState, part: std::ops::Range<usize>) {
        let mut scores = self.scores[part.start * HEADS..part.end * HEADS].to_vec();
        let values = self.values.rows().slice(part.start * VALUE_DIM..part.end * VALUE_DIM);
        state.absorb(kernels, &mut scores, values);
    }

    fn state(&self, kernels: &Kernels, part: std::ops::Range<usize>) -> AttentionState {
        let mut state = AttentionState::new(HEADS, VALUE_DIM);
        self.absorb(kernels, &mut state, part);
        state
    }

    /// Whether `state` is the one over all rows, up to rounding of `merges` merges.
    fn check(&self, state: &AttentionState, counts: Option<&[f32]>, merges: usize) -> Result<(), String> {
        let additions = 16 + self.count().min(256) + self.count().div_ceil(16) + merges;
        let (output, lse) = finish(state);
        let scores = Bounded::exact(&self.scores);
        let (expected_output, expected_lse) =
            softmax(&scores, HEADS, counts, VALUE_DIM, self.values.rows(), additions);
        expected_output.check(&output).map_err(|error| format!("output: {error}"))?;
        expected_lse.check(&lse).map_err(|error| format!("lse: {error}"))
    }
}

fn finish(state: &AttentionState) -> (Vec<f32>, Vec<f32>) {
    let mut output = vec![f32::NAN; state.heads() * state.value_dim()];
    let mut lse = vec![f32::NAN; state.heads()];
    state.finish(&mut output, &mut lse);
    (output, lse)
}

fn state_bits(state: &AttentionState) -> (Vec<u32>, Vec<u32>) {
    let (output, lse) = finish(state);
    (bits(&output), bits(&lse))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn rows_split_anywhere_and_merged_in_any_grouping_and_order_are_the_whole(
        seed in any::<u64>(), count in 3usize..80, scale in 0.1f32..60.0, a in 0.0f64..1.0, b in 0.0f64..1.0,
    ) {
        let rows = Scored::new(seed, count, scale);
        let (a, b) = ((a * count as f64) as usize, (b * count as f64) as usize);
        let (a, b) = (a.min(b), a.max(b));
        for kernels in every_isa() {
            let parts = [rows.state(kernels, 0..a), rows.state(kernels, a..b), rows.state(kernels, b..count)];
            let mut left = parts[0].clone();
            left.merge(&parts[1]);
            left.merge(&parts[2]);
            let mut tail = parts[1].clone();
            tail.merge(&parts[2]);
            let mut right = parts[0].clone();
            right.merge(&tail);
            let mut backward = parts[2].clone();
            backward.merge(&parts[0]);
            backward.merge(&parts[1]);
            let mut onward = rows.state(kernels, 0..a);
            rows.absorb(kernels, &mut onward, a..b);
            rows.absorb(kernels, &mut onward, b..count);
            for state in [left, right, backward, onward, rows.state(kernels, 0..count)] {
                prop_assert_eq!(rows.check(&state, None, 3), Ok(()));
            }
        }
    }

    #[test]
    fn merging_two_states_commutes_to_the_bit(seed in any::<u64>(), count in 2usize..40, cut in 0.0f64..1.0) {
        let rows = Scored::new(seed, count, 10.0);
        let cut = (cut * count as f64) as usize;
        for kernels in every_isa() {
            let (a, b) = (rows.state(kernels, 0..cut), rows.state(kernels, cut..count));
            let (mut ab, mut ba) = (a.clone(), b.clone());
            ab.merge(&b);
            ba.merge(&a);
            prop_assert_eq!(state_bits(&ab), state_bits(&ba));
        }
    }
}

#[test]
fn an_empty_state_is_zeros_and_changes_nothing() {
    for kernels in every_isa() {
        let empty = AttentionState::new(HEADS, VALUE_DIM);
        let (output, lse) = finish(&empty);
        assert_eq!(bits(&output), vec![0; HEADS * VALUE_DIM]);
        assert_eq!(lse, [f32::NEG_INFINITY; HEADS]);

        let rows = Scored::new(5, 50, 4.0);
        let state = rows.state(kernels, 0..50);
        let (mut right, mut left) = (state.clone(), empty.clone());
        right.merge(&empty);
        left.merge(&state);
        assert_eq!(state_bits(&right), state_bits(&state));
        assert_eq!(state_bits(&left), state_bits(&state));

        let mut reset = state.clone();
        reset.reset();
        assert_eq!(state_bits(&reset), state_bits(&empty));
        rows.absorb(kernels, &mut reset, 0..50);
        assert_eq!(state_bits(&reset), state_bits(&state));
    }
}

#[test]
fn a_head_that_is_masked_throughout_stays_empty_until_a_row_comes() {
    for kernels in every_isa() {
        let values = Sample::new(8).stored(Dtype::F32, 4 * VALUE_DIM, 1.0);
        let mut scores = vec![f32::NEG_INFINITY; 4 * HEADS];
        scores[2 * HEADS + 1] = -5.0;
        let rows = Scored { scores, values };
        let mut state = rows.state(kernels, 0..2);
        assert_eq!(state_bits(&state), state_bits(&AttentionState::new(HEADS, VALUE_DIM)));
        rows.absorb(kernels, &mut state, 2..4);
        let (output, lse) = finish(&state);
        assert_eq!(lse, [f32::NEG_INFINITY, -5.0, f32::NEG_INFINITY]);
        for (i, &x) in output.iter().enumerate() {
            let expected =
                if i / VALUE_DIM == 1 { rows.values.rows().get(2 * VALUE_DIM + i % VALUE_DIM) } else { 0.0 };
            assert_eq!(x, expected);
        }
    }
}

#[test]
fn estimates_weigh_as_many_rows_as_they_count() {
    for kernels in every_isa() {
        let rows = Scored::new(9, 45, 6.0);
        let counts: Vec<f32> = (0..45).map(|c| [17.0, 1.0, 0.0, 4000.0, 33.0][c % 5]).collect();
        let mut state = AttentionState::new(HEADS, VALUE_DIM);
        for part in [0..20, 20..45] {
            let mut scores = rows.scores[part.start * HEADS..part.end * HEADS].to_vec();
            let values = rows.values.rows().slice(part.start * VALUE_DIM..part.end * VALUE_DIM);
            state.absorb_estimates(kernels, &mut scores, &counts[part], values);
        }
        assert_eq!(rows.check(&state, Some(&counts), 2), Ok(()), "{}", kernels.isa());

        // Counting one each is absorbing rows, to the bit of the output's weights.
        let (mut estimated, mut scores) = (AttentionState::new(HEADS, VALUE_DIM), rows.scores.clone());
        estimated.absorb_estimates(kernels, &mut scores, &[1.0; 45], rows.values.rows());
        assert_eq!(rows.check(&estimated, None, 1), Ok(()), "{}", kernels.isa());
    }
}

#[test]
fn gathered_rows_and_estimates_touch_nothing_else() {
    let rows = Scored::new(10, 40, 5.0);
    let listed: Vec<u32> = vec![31, 2, 2, 17, 0, 38, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20];
    let poisoned = rows.values.poisoned(VALUE_DIM, &listed);
    let picked = rows.values.picked(VALUE_DIM, &listed);
    let scores = &rows.scores[..listed.len() * HEADS];
    let counts: Vec<f32> = (0..listed.len()).map(|i| i as f32 + 1.0).collect();
    for kernels in every_isa() {
        let (mut gathered, mut contiguous) =
            (AttentionState::new(HEADS, VALUE_DIM), AttentionState::new(HEADS, VALUE_DIM));
        gathered.absorb_gathered(kernels, &mut scores.to_vec(), poisoned.rows(), &listed);
        contiguous.absorb(kernels, &mut scores.to_vec(), picked.rows());
        assert_eq!(state_bits(&gathered), state_bits(&contiguous), "{}", kernels.isa());
        let mut scores_again = scores.to_vec();
        gathered.absorb_estimates_gathered(kernels, &mut scores_again, &counts, poisoned.rows(), &listed);
        contiguous.absorb_estimates(kernels, &mut scores.to_vec(), &counts, picked.rows());
        assert_eq!(state_bits(&gathered), state_bits(&contiguous), "{}", kernels.isa());
        assert!(finish(&gathered).0.iter().all(|x| x.is_finite()));

        let before = state_bits(&gathered);
        assert!(panics_with("row 40 is listed, but there are 40 rows", || {
            gathered.absorb_gathered(kernels, &mut [0.0; HEADS], rows.values.rows(), &[40]);
        }));
        assert!(panics_with("1 counts for 2 clusters", || {
            let values = rows.values.rows().slice(0..2 * VALUE_DIM);
            gathered.absorb_estimates(kernels, &mut [0.0; 2 * HEADS], &[1.0], values);
        }));
        assert_eq!(state_bits(&gathered), before);
    }
}

#[test]
fn a_sink_logit_joins_the_denominator_only() {
    for kernels in every_isa() {
        let rows = Scored::new(11, 20, 2.0);
        for logit in [-30.0f32, 0.5, 9.0, f32::NEG_INFINITY] {
            let plain = rows.state(kernels, 0..20);
            let mut sunk = AttentionState::new(HEADS, VALUE_DIM);
            sunk.absorb_logit(1, logit);
            rows.absorb(kernels, &mut sunk, 0..20);
            let mut late = plain.clone();
            late.absorb_logit(1, logit);
            let (before, before_lse) = finish(&plain);
            for (output, lse) in [finish(&sunk), finish(&late)] {
                for head in 0..HEADS {
                    let added = if head == 1 { f64::from(logit).exp() } else { 0.0 };
                    let total = f64::from(before_lse[head]).exp();
                    let expected_lse = (total + added).ln();
                    assert!((f64::from(lse[head]) - expected_lse).abs() < 2e-6 * (1.0 + expected_lse.abs()));
                    for i in head * VALUE_DIM..(head + 1) * VALUE_DIM {
                        let expected = f64::from(before[i]) * total / (total + added);
                        assert!((f64::from(output[i]) - expected).abs() < 1e-5, "{} {logit}", kernels.isa());
                    }
                }
            }
        }
        let mut only = AttentionState::new(HEADS, VALUE_DIM);
        only.absorb_logit(2, -3.0);
        let (output, lse) = finish(&only);
        assert_eq!(bits(&output), vec![0; HEADS * VALUE_DIM]);
        assert_eq!(lse, [f32::NEG_INFINITY, f32::NEG_INFINITY, -3.0]);
        assert!(panics_with("head 3 of 3", || only.absorb_logit(3, 0.0)));
    }
}

#[test]
fn states_of_other_shapes_do_not_merge() {
    let mut state = AttentionState::new(2, 16);
    assert!(panics_with("2 heads of 16 and 2 heads of 8", || state.merge(&AttentionState::new(2, 8))));
    assert!(panics_with("2 heads of 16 and 3 heads of 16", || state.merge(&AttentionState::new(3, 16))));
}
