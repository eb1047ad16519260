//! Which calls of the ladder are left to the CPU because of their numbers.

use crate::error::Error;
use crate::probe::PLACES_MAX;
use longwave_query::constants::UNSURE;

/// A call in which so many clusters, or rows of opened clusters, are numbered through.
pub(super) fn check_places(what: &'static str, count: usize) -> Result<(), Error> {
    if count <= PLACES_MAX {
        return Ok(());
    }
    Err(Error::Unsupported { what, expected: "2^30 in a call at most", found: count.to_string() })
}

/// Standard deviations of scores, in nats, as far as clusters' summaries tell. Above those of any model exponentials run over, and
/// only the prediction of an answer's error, which is the CPU's, says that it is not one.
pub(super) fn check_deviations(deviations: &[f32]) -> Result<(), Error> {
    let is_unsure = |deviation: f32| deviation.is_nan() || deviation > UNSURE;
    let Some(deviation) = deviations.iter().find(|&&deviation| is_unsure(deviation)) else { return Ok(()) };
    let (what, expected) = ("scores", "deviations that a model's could have");
    Err(Error::Unsupported { what, expected, found: deviation.to_string() })
}

/// Sums of weights. Where they hold no answer, or one so small that its error is not a number, the CPU reads every row.
pub(super) fn check_totals(totals: &[f32]) -> Result<(), Error> {
    let holds_answer = |total: f32| total > 0.0 && (total * total).is_normal();
    let Some(total) = totals.iter().find(|&&total| !holds_answer(total)) else { return Ok(()) };
    let (what, expected) = ("a sum of weights", "one whose square is a number above 0");
    Err(Error::Unsupported { what, expected, found: total.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(refused: Result<(), Error>) -> Option<String> {
        match refused {
            Ok(()) => None,
            Err(Error::Unsupported { found, .. }) => Some(found),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn entries_have_room_for_places_below_their_levels() {
        assert_eq!(found(check_places("clusters", 1 << 30)), None);
        assert_eq!(found(check_places("clusters", (1 << 30) + 1)).as_deref(), Some("1073741825"));
    }

    #[test]
    fn deviations_above_those_of_models_and_such_as_are_no_numbers_are_the_cpus() {
        assert_eq!(found(check_deviations(&[0.0, 6.0, UNSURE])), None);
        assert_eq!(found(check_deviations(&[3.0, 16.5, 20.0])).as_deref(), Some("16.5"));
        assert_eq!(found(check_deviations(&[3.0, f32::NAN, 2.0])).as_deref(), Some("NaN"));
    }

    #[test]
    fn weights_hold_an_answer_while_the_square_of_their_sum_is_a_number_above_0() {
        assert_eq!(found(check_totals(&[1.0, 3e-19, 1e19])), None);
        for (total, shown) in [(0.0, "0"), (-2.0, "-2"), (2e19, "20000000000000000000"), (f32::NAN, "NaN")] {
            assert_eq!(found(check_totals(&[1.0, total, 1.0])).as_deref(), Some(shown));
        }
        assert!(found(check_totals(&[1e-20])).is_some(), "a square below the normal numbers");
        assert!(found(check_totals(&[f32::INFINITY])).is_some());
    }
}
