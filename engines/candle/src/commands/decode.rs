//! `decode`: reopens a committed context and goes on from it, under each method.

use super::{Index, Stored};
use clap::Args;
use longwave::{Budget, Dtype, Store, StoreOptions, TensorView};
use longwave_candle::decode::greedy;
use longwave_candle::perplexity::{Evaluation, evaluate};
use longwave_candle::stored::{Spent, StoredCache, cache, model_spec};
use longwave_candle::{Error, Model, Result, Tokenizer};
use std::time::Instant;

/// Tokens between two audited ones: an audit answers all layers exactly as well.
const AUDIT_EVERY: usize = 8;
/// Tokens of the continuation that are printed.
const PRINTED_TOKENS: usize = 48;

/// Reopen a committed context and decode from it: speed, bytes, error and perplexity of each method.
#[derive(Debug, Args)]
pub struct DecodeCommand {
    #[command(flatten)]
    stored: Stored,
    /// Number of the text's next tokens to score.
    #[arg(long = "continue", default_value_t = 512)]
    score: usize,
    /// Threshold of `longwave`.
    #[arg(long, default_value_t = 0.0008)]
    tau: f64,
}

/// The model and the text that every run shares.
struct Session {
    model: Model,
    tokenizer: Tokenizer,
    ids: Vec<u32>,
}

/// What one method did.
struct Outcome {
    budget: Budget,
    tokens_per_second: f64,
    evaluation: Evaluation,
    spent: Spent,
    text: String,
}

impl DecodeCommand {
    pub fn run(&self) -> Result<()> {
        let first_answer_seconds = self.first_answer()?;
        println!("open to first answer   {:.1} ms", first_answer_seconds * 1e3);
        let (model, tokenizer, ids) = self.stored.load(self.score + 1)?;
        let session = Session { model, tokenizer, ids };
        let runs = [
            (Index::Ladder, Budget::Exact),
            (Index::Ladder, Budget::Tau(self.tau)),
            (Index::RetroInfer, Budget::RETROINFER),
        ];
        let mut outcomes = Vec::new();
        for (index, budget) in runs {
            outcomes.push(self.decode(&session, index, budget)?);
        }
        for outcome in &outcomes {
            println!("\n{} continues:\n{}", outcome.budget.method(), outcome.text.trim_end());
        }
        self.print_table(first_answer_seconds, &outcomes);
        Ok(())
    }

    /// Seconds from opening the store to the first attention answer, on a query that the prefill recorded. Nothing of
    /// the model is needed for it.
    fn first_answer(&self) -> Result<f64> {
        let start = Instant::now();
        let store = Store::open(&self.stored.store, StoreOptions::default()).map_err(cache)?;
        let snapshot = store.snapshot(&self.stored.name).map_err(cache)?;
        let Some((_, query)) = snapshot.sampled_queries(0).map_err(cache)?.last() else {
            let (expected, found) = ("recorded queries".into(), "none".into());
            return Err(Error::Value { name: self.stored.name.clone(), expected, found });
        };
        let spec = snapshot.model();
        let query = TensorView::token_major(&query[..], 1, spec.query_heads, spec.key_dim);
        snapshot.attend(0, &query, &Budget::Tau(self.tau)).map_err(cache)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Each run reopens the commit: what an earlier one appended was never committed.
    fn decode(&self, session: &Session, index: Index, budget: Budget) -> Result<Outcome> {
        let Session { model, tokenizer, ids } = session;
        let next = &ids[self.stored.tokens..];
        let mut rows = self.open(session, index, budget, None)?;
        let bar = crate::progress_bar("decode", PRINTED_TOKENS);
        let start = Instant::now();
        let continued = greedy(model, &mut rows, next[0], PRINTED_TOKENS, &mut |_| bar.inc(1))?;
        let tokens_per_second = continued.len() as f64 / start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        drop(rows);

        let mut rows = self.open(session, index, budget, Some(AUDIT_EVERY))?;
        let bar = crate::progress_bar("score", self.score);
        let scored = &next[..=self.score];
        let evaluation = evaluate(model, &mut rows, scored, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let text = tokenizer.decode(&[&next[..1], &continued].concat())?;
        Ok(Outcome { budget, tokens_per_second, evaluation, spent: rows.spent().clone(), text })
    }

    fn open(
        &self,
        session: &Session,
        index: Index,
        budget: Budget,
        audit_every: Option<usize>,
    ) -> Result<StoredCache> {
        let store = Store::open(&self.stored.store, StoreOptions::default()).map_err(cache)?;
        let spec = model_spec(&session.model, &session.tokenizer, Dtype::F16);
        let context = store.context(&self.stored.context_name(index), &spec).map_err(cache)?;
        self.stored.check_text(context.tokens(), &session.ids)?;
        Ok(StoredCache::new(context, session.model.attention_shape(), budget, audit_every))
    }

    fn print_table(&self, first_answer_seconds: f64, outcomes: &[Outcome]) {
        println!(
            "\ncontext of {} tokens, the next {} scored, error against exact on every {AUDIT_EVERY}th of them",
            self.stored.tokens, self.score
        );
        if let Some(figures) = self.stored.read_figures() {
            println!(
                "prefill {:.1} s, seal {:.1} s, commit {:.1} ms, {:.1} MiB on disk",
                figures.prefill_seconds,
                figures.seal_seconds,
                figures.commit_seconds * 1e3,
                figures.disk_bytes as f64 / f64::from(1 << 20),
            );
            println!(
                "reopened, first answer after {:.1} ms: {:.0} times faster than the prefill",
                first_answer_seconds * 1e3,
                figures.prefill_seconds / first_answer_seconds
            );
        }
        println!(
            "{:<11} {:>9} {:>9} {:>11} {:>10} {:>11} {:>9} {:>9}",
            "method", "tokens/s", "KV read", "error mean", "error p95", "perplexity", "change", "same top"
        );
        let Some(exact) = outcomes.first().map(|outcome| &outcome.evaluation) else { return };
        for Outcome { budget, tokens_per_second, evaluation, spent, .. } in outcomes {
            println!(
                "{:<11} {tokens_per_second:>9.1} {:>8.2}% {:>11.4} {:>10.4} {:>11.3} {:>+8.2}% {:>8.1}%",
                budget.method().name(),
                100.0 * spent.bytes_share(),
                spent.error_mean(),
                spent.error_p95(),
                evaluation.perplexity(),
                100.0 * (evaluation.perplexity() / exact.perplexity() - 1.0),
                100.0 * evaluation.top_agreement(exact)
            );
        }
    }
}
