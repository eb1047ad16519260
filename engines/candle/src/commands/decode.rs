//! `decode`: reopens a committed context and goes on from it, under each method.

use super::Stored;
use clap::Args;
use longwave::{Budget, Dtype, Store, StoreOptions, TensorView};
use longwave_candle::decode::greedy;
use longwave_candle::perplexity::evaluate;
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
}

/// What one method did.
struct Outcome {
    budget: Budget,
    tokens_per_second: f64,
    perplexity: f64,
    spent: Spent,
    text: String,
}

impl DecodeCommand {
    pub fn run(&self) -> Result<()> {
        let first_answer_seconds = self.first_answer()?;
        println!("open to first answer   {:.1} ms", first_answer_seconds * 1e3);
        let (model, tokenizer, ids) = self.stored.load(self.score + 1)?;
        let budgets = [Budget::Exact, Budget::RETROINFER];
        let outcomes: Vec<Outcome> = budgets
            .into_iter()
            .map(|budget| self.decode(&model, &tokenizer, &ids, budget))
            .collect::<Result<_>>()?;
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
            return Err(Error::Value {
                name: "context".into(),
                expected: "recorded queries".into(),
                found: "none".into(),
            });
        };
        let spec = snapshot.model();
        let query = TensorView::token_major(&query[..], 1, spec.query_heads, spec.key_dim);
        snapshot.attend(0, &query, &Budget::RETROINFER).map_err(cache)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Each run reopens the commit: what an earlier one appended was never committed.
    fn decode(&self, model: &Model, tokenizer: &Tokenizer, ids: &[u32], budget: Budget) -> Result<Outcome> {
        let next = &ids[self.stored.tokens..];
        let mut rows = self.open(model, tokenizer, ids, budget, None)?;
        let bar = crate::progress_bar("decode", PRINTED_TOKENS);
        let start = Instant::now();
        let continued = greedy(model, &mut rows, next[0], PRINTED_TOKENS, &mut |_| bar.inc(1))?;
        let tokens_per_second = continued.len() as f64 / start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        drop(rows);

        let mut rows = self.open(model, tokenizer, ids, budget, Some(AUDIT_EVERY))?;
        let bar = crate::progress_bar("score", self.score);
        let evaluation =
            evaluate(model, &mut rows, &next[..=self.score], &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let text = tokenizer.decode(&[&next[..1], &continued].concat())?;
        Ok(Outcome {
            budget,
            tokens_per_second,
            perplexity: evaluation.perplexity(),
            spent: rows.spent().clone(),
            text,
        })
    }

    fn open(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        ids: &[u32],
        budget: Budget,
        audit_every: Option<usize>,
    ) -> Result<StoredCache> {
        let store = Store::open(&self.stored.store, StoreOptions::default()).map_err(cache)?;
        let spec = model_spec(model, tokenizer, Dtype::F16);
        let context = store.context(&self.stored.name, &spec).map_err(cache)?;
        self.stored.check_text(context.tokens(), ids)?;
        Ok(StoredCache::new(context, model.attention_shape(), budget, audit_every))
    }

    fn print_table(&self, first_answer_seconds: f64, outcomes: &[Outcome]) {
        println!(
            "\ncontext of {} tokens, {} more scored, error on every {AUDIT_EVERY}th of them",
            self.stored.tokens, self.score
        );
        if let Some(figures) = self.stored.read_figures() {
            let ratio = figures.prefill_seconds / first_answer_seconds;
            println!(
                "prefill {:.1} s, seal {:.1} s, commit {:.1} ms, {:.1} MiB on disk; reopened in {:.1} ms: {ratio:.0} times faster than the prefill",
                figures.prefill_seconds,
                figures.seal_seconds,
                figures.commit_seconds * 1e3,
                figures.disk_bytes as f64 / f64::from(1 << 20),
                first_answer_seconds * 1e3
            );
        }
        println!(
            "{:<12} {:>9} {:>9} {:>11} {:>10} {:>11}",
            "method", "tokens/s", "KV read", "error mean", "error p95", "perplexity"
        );
        for outcome in outcomes {
            let spent = &outcome.spent;
            println!(
                "{:<12} {:>9.1} {:>8.2}% {:>11.4} {:>10.4} {:>11.3}",
                outcome.budget.method().name(),
                outcome.tokens_per_second,
                100.0 * spent.bytes_share(),
                spent.error_mean(),
                spent.error_p95(),
                outcome.perplexity
            );
        }
    }
}
