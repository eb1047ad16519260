//! The soft-cap of logits, and what it does to uncertain scores.

/// `score -> cap * tanh(score / cap)`, or nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softcap(pub(super) Option<f32>);

impl Softcap {
    pub(super) fn apply(self, score: f32) -> f32 {
        self.0.map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// How much of a deviation above `score` the cap leaves: the slope of the chord. A score whose deviations are
    /// scaled by it is judged by what it can become, also where the cap has flattened the centre itself.
    pub(super) fn slope(self, score: f32, deviation: f32) -> f32 {
        match self.0 {
            Some(_) if deviation > f32::EPSILON * score.abs() => {
                (self.apply(score + deviation) - self.apply(score)) / deviation
            }
            Some(cap) => 1.0 - (score / cap).tanh().powi(2),
            None => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cap_nothing_changes() {
        assert_eq!((Softcap(None).apply(40.0), Softcap(None).slope(40.0, 3.0)), (40.0, 1.0));
    }

    #[test]
    fn a_cap_flattens_what_is_above_it_and_lets_deviations_rise_from_below() {
        let cap = Softcap(Some(2.0));
        assert!((cap.apply(1.0) - 2.0 * 0.5f32.tanh()).abs() < 1e-6 && cap.apply(50.0) <= 2.0);
        assert!(cap.slope(8.0, 3.0) < 1e-3, "nothing is left above the cap");
        // From -8, flat itself, nine nats up lies where the cap does not bite.
        let chord = (cap.apply(1.0) - cap.apply(-8.0)) / 9.0;
        assert!((cap.slope(-8.0, 9.0) - chord).abs() < 1e-6 && chord > 0.3);
        assert!((cap.slope(1.0, 0.0) - (1.0 - 0.5f32.tanh().powi(2))).abs() < 1e-6);
    }
}
