//! Which blocks a cache keeps.
//!
//! A policy gives each block a priority whose order does not change while nothing happens to the blocks, so that a cache keeps its
//! blocks sorted and never looks at all of them. What decays with time therefore does so by growing what comes later: a sum that
//! halves every `h` steps is kept as a logarithm to which `step / h` octaves are added.

use std::fmt;

/// What happened to a block in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// The decode step, rising.
    pub step: u64,
    /// The planner's score of the block: the share of the softmax that its centroid has, summed over the group.
    pub score: f32,
    /// Whether it was to be read; otherwise it was only scored.
    pub wanted: bool,
}

/// Orders the blocks of a cache.
pub trait Policy: fmt::Debug + Send {
    /// The name in reports.
    fn name(&self) -> &'static str;

    /// The block's priority after `access`, given the one it had; `None` for a block of no worth. Blocks with the lowest
    /// priority leave first.
    fn priority(&self, before: Option<f64>, access: &Access) -> Option<f64>;

    /// Whether a block may come in that was scored and not wanted.
    fn prefetches(&self) -> bool {
        false
    }
}

/// Keeps what was wanted last.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastRecentlyUsed;

impl Policy for LeastRecentlyUsed {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn priority(&self, before: Option<f64>, access: &Access) -> Option<f64> {
        if access.wanted { Some(access.step as f64) } else { before }
    }
}

/// Keeps what was wanted often, the more so the more recently.
#[derive(Clone, Copy, Debug)]
pub struct Frequency {
    /// Steps in which a count halves.
    pub half_life: f64,
}

impl Policy for Frequency {
    fn name(&self) -> &'static str {
        "frequency"
    }

    fn priority(&self, before: Option<f64>, access: &Access) -> Option<f64> {
        if access.wanted { Some(sum(before, 1.0, access.step, self.half_life)) } else { before }
    }
}

/// Keeps what the planner scores high, whether it was read or not: a cluster that comes close to being read is there when it is.
#[derive(Clone, Copy, Debug)]
pub struct PlannerScore {
    /// Steps in which a score halves.
    pub half_life: f64,
    /// The exponent of scores: below 1, rare high ones weigh less than steady ones.
    pub exponent: f64,
    /// What is added to the score of a block that was wanted.
    pub wanted: f64,
}

impl Policy for PlannerScore {
    fn name(&self) -> &'static str {
        "planner"
    }

    fn priority(&self, before: Option<f64>, access: &Access) -> Option<f64> {
        let score = f64::from(access.score).max(0.0).powf(self.exponent)
            + if access.wanted { self.wanted } else { 0.0 };
        if score > 0.0 { Some(sum(before, score, access.step, self.half_life)) } else { before }
    }

    fn prefetches(&self) -> bool {
        true
    }
}

/// Logarithm to base 2 of a decaying sum, with `amount` added in `step`; relative to a step of 0.
fn sum(before: Option<f64>, amount: f64, step: u64, half_life: f64) -> f64 {
    let added = amount.log2() + step as f64 / half_life;
    let before = before.unwrap_or(f64::NEG_INFINITY);
    let (high, low) = if added > before { (added, before) } else { (before, added) };
    high + (low - high).exp2().ln_1p() * std::f64::consts::LOG2_E
}

/// The policies that are compared, with the constants that did best on traces (docs/gpu.md).
pub fn policies() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(LeastRecentlyUsed),
        Box::new(Frequency { half_life: 4.0 }),
        Box::new(PlannerScore { half_life: 4.0, exponent: 0.5, wanted: 3.0 }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(step: u64) -> Access {
        Access { step, score: 0.1, wanted: true }
    }

    #[test]
    fn a_count_halves_over_its_half_life() {
        let policy = Frequency { half_life: 8.0 };
        let once = policy.priority(None, &wanted(16)).unwrap();
        // Twice, a half-life earlier, is worth as much as once now.
        let twice = policy.priority(policy.priority(None, &wanted(8)), &wanted(8)).unwrap();
        assert!((once - twice).abs() < 1e-12, "{once} and {twice}");
        assert_eq!(policy.priority(Some(3.0), &Access { wanted: false, ..wanted(9) }), Some(3.0));
    }

    #[test]
    fn the_least_recently_used_goes_by_steps_alone() {
        let policy = LeastRecentlyUsed;
        assert!(policy.priority(Some(7.0), &wanted(9)) > policy.priority(Some(8.0), &wanted(8)));
        assert_eq!(policy.priority(None, &Access { wanted: false, ..wanted(9) }), None);
    }

    #[test]
    fn the_planner_knows_blocks_that_were_not_wanted() {
        let policy = PlannerScore { half_life: 4.0, exponent: 1.0, wanted: 0.0 };
        let scored = |score, step| policy.priority(None, &Access { step, score, wanted: false });
        assert!(scored(0.3, 5) > scored(0.2, 5) && scored(0.2, 5) > scored(0.2, 4));
        assert_eq!(scored(0.0, 5), None);
    }
}
