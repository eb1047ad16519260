//! What decoding came to, as text.

use super::Outcome;
use longwave::{Budget, CONFIDENCE};
use longwave_candle::spent::Summary;

/// A line for each method: speed, bytes, errors and perplexity.
pub(super) fn methods(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<16} {:>9} {:>9} {:>11} {:>7} {:>7} {:>7} {:>11} {:>9} {:>9}",
        "method",
        "tokens/s",
        "KV read",
        "error mean",
        "p95",
        "p99.9",
        "worst",
        "perplexity",
        "change",
        "same top"
    );
    let Some(exact) = outcomes.first().map(|outcome| &outcome.evaluation) else { return text };
    for outcome in outcomes {
        let (evaluation, spent) = (&outcome.evaluation, outcome.spent.summary());
        text += &format!(
            "\n{:<16} {:>9.1} {:>8.2}% {:>11.4} {:>7.4} {:>7.4} {:>7.4} {:>11.3} {:>+8.2}% {:>8.1}%",
            label(&outcome.budget),
            outcome.tokens_per_second,
            100.0 * spent.bytes_share,
            spent.error_mean,
            spent.error_p95,
            spent.error_p999,
            spent.error_max,
            evaluation.perplexity(),
            100.0 * (evaluation.perplexity() / exact.perplexity() - 1.0),
            100.0 * evaluation.top_agreement(exact)
        );
    }
    text
}

/// What the audited answers said of themselves beside what was measured; empty where no method predicts its error.
pub(super) fn bounds(outcomes: &[Outcome]) -> String {
    let predicting: Vec<(String, Summary)> = outcomes
        .iter()
        .map(|outcome| (label(&outcome.budget), outcome.spent.summary()))
        .filter(|(_, spent)| !spent.predicted_p50.is_nan())
        .collect();
    if predicting.is_empty() {
        return String::new();
    }
    let bound = format!("bound at {CONFIDENCE}");
    let mut text = format!(
        "{:<16} {:>9} {:>10} {bound:>14} {:>8} {:>9} {:>9}",
        "medians of", "predicted", "measured", "held", "bounded", "answers"
    );
    for (label, spent) in predicting {
        text += &format!(
            "\n{label:<16} {:>9.4} {:>10.4} {:>14.4} {:>7.1}% {:>9} {:>9}",
            spent.predicted_p50,
            spent.error_p50,
            spent.bound_p50,
            100.0 * spent.bound_covered,
            spent.bounded,
            spent.answers
        );
    }
    text
}

/// A line for each layer of one method.
pub(super) fn layers(outcome: &Outcome) -> String {
    let mut text = format!(
        "{:<16}\n{:>5} {:>9} {:>11} {:>7} {:>7} {:>7} {:>9} {:>8} {:>9}",
        label(&outcome.budget),
        "layer",
        "KV read",
        "error mean",
        "p95",
        "p99.9",
        "worst",
        "bound p50",
        "held",
        "answers"
    );
    for layer in 0..outcome.spent.layers() {
        let spent = outcome.spent.of_layer(layer);
        text += &format!(
            "\n{layer:>5} {:>8.2}% {:>11.4} {:>7.4} {:>7.4} {:>7.4} {:>9.4} {:>7.1}% {:>9}",
            100.0 * spent.bytes_share,
            spent.error_mean,
            spent.error_p95,
            spent.error_p999,
            spent.error_max,
            spent.bound_p50,
            100.0 * spent.bound_covered,
            spent.answers
        );
    }
    text
}

fn label(budget: &Budget) -> String {
    match budget {
        Budget::Tau(tau) => format!("{} {tau}", budget.method()),
        other => other.method().to_string(),
    }
}
