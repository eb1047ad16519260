//! What decoding came to, as text.

use super::{Outcome, Run};
use longwave::{Budget, CONFIDENCE, Forgetting};
use longwave_candle::spent::Summary;
use longwave_candle::stored::Forgot;

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
            label(&outcome.run),
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
        .map(|outcome| (label(&outcome.run), outcome.spent.summary()))
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
        label(&outcome.run),
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

/// What the runs that forget have forgotten in the end, over all layers; empty where none did.
pub(super) fn forgotten(outcomes: &[Outcome]) -> String {
    let line = |outcome: &Outcome| {
        let Forgot { clusters, demoted, rows, dropped } = outcome.forgot;
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        format!(
            "{:<16} {:>7.1}% of {clusters} clusters demoted, {:>5.1}% of {rows} rows dropped",
            label(&outcome.run),
            share(demoted, clusters),
            share(dropped, rows)
        )
    };
    let forgetting = outcomes.iter().filter(|outcome| outcome.run.forgetting != Forgetting::Never);
    forgetting.map(line).collect::<Vec<_>>().join("\n")
}

/// A run that forgets goes by that: it reads at the first of the taus.
fn label(run: &Run) -> String {
    match (run.forgetting, run.budget) {
        (Forgetting::Demote { steps }, _) => format!("demote {steps}"),
        (Forgetting::Drop { steps }, _) => format!("drop {steps}"),
        (_, Budget::Tau(tau)) => format!("{} {tau}", run.budget.method()),
        (_, other) => other.method().to_string(),
    }
}
