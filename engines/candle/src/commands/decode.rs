//! `decode`: reopens a committed context and goes on from it, under each method.

mod table;

use super::Stored;
use clap::Args;
use longwave::{Budget, Dtype, Forgetting, Store, StoreOptions, TensorView};
use longwave_candle::decode::greedy;
use longwave_candle::perplexity::{Evaluation, evaluate};
use longwave_candle::spent::Spent;
use longwave_candle::stored::{Forgot, Index, StoredCache, cache, model_spec};
use longwave_candle::{Error, Model, Result, Tokenizer};
use std::time::Instant;

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
    /// Thresholds of `longwave`, each a run of its own.
    #[arg(long, value_delimiter = ',', default_value = "0.0008", value_name = "T,T")]
    tau: Vec<f64>,
    /// Tokens from one whose answers are compared with exact attention to the next, in all layers.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    audit_every: u32,
    /// Also runs at the first tau in which what so many queries of a layer in a row did not find important is demoted.
    #[arg(long, value_delimiter = ',', value_name = "STEPS,STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    demote: Vec<u32>,
    /// The same, and rows are dropped that are demoted in every KV head.
    #[arg(long, value_delimiter = ',', value_name = "STEPS,STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    drop: Vec<u32>,
    /// Also a table of each approximate method, layer by layer.
    #[arg(long)]
    by_layer: bool,
}

/// The model and the text that every run shares.
struct Session {
    model: Model,
    tokenizer: Tokenizer,
    ids: Vec<u32>,
}

/// How one run reads, and what it forgets.
#[derive(Clone, Copy)]
struct Run {
    index: Index,
    budget: Budget,
    forgetting: Forgetting,
}

impl Run {
    fn of(index: Index, budget: Budget) -> Run {
        Run { index, budget, forgetting: Forgetting::Never }
    }
}

/// What one run did.
struct Outcome {
    run: Run,
    tokens_per_second: f64,
    evaluation: Evaluation,
    spent: Spent,
    forgot: Forgot,
    text: String,
}

impl DecodeCommand {
    pub fn run(&self) -> Result<()> {
        let first_answer_seconds = self.first_answer()?;
        println!("open to first answer   {:.1} ms", first_answer_seconds * 1e3);
        let (model, tokenizer, ids) = self.stored.load(self.score + 1)?;
        let session = Session { model, tokenizer, ids };
        let mut outcomes = Vec::new();
        for run in self.runs() {
            outcomes.push(self.decode(&session, run)?);
        }
        for outcome in &outcomes {
            println!("\n{} continues:\n{}", outcome.run.budget.method(), outcome.text.trim_end());
        }
        if self.by_layer {
            outcomes.iter().skip(1).for_each(|outcome| println!("\n{}", table::layers(outcome)));
        }
        self.print_table(first_answer_seconds, &outcomes);
        Ok(())
    }

    fn runs(&self) -> Vec<Run> {
        let budgets = std::iter::once(Budget::Exact).chain(self.tau.iter().map(|&tau| Budget::Tau(tau)));
        let mut runs: Vec<Run> = budgets.map(|budget| Run::of(Index::Ladder, budget)).collect();
        let demote = self.demote.iter().map(|&steps| Forgetting::Demote { steps });
        let drop = self.drop.iter().map(|&steps| Forgetting::Drop { steps });
        for forgetting in demote.chain(drop) {
            let taus = self.tau.iter().take(1);
            runs.extend(taus.map(|&tau| Run { forgetting, ..Run::of(Index::Ladder, Budget::Tau(tau)) }));
        }
        runs.push(Run::of(Index::RetroInfer, Budget::RETROINFER));
        runs
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
        snapshot.attend(0, &query, &Budget::default()).map_err(cache)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Each run reopens the commit: what an earlier one appended was never committed.
    fn decode(&self, session: &Session, run: Run) -> Result<Outcome> {
        let Session { model, tokenizer, ids } = session;
        let next = &ids[self.stored.tokens..];
        let mut rows = self.open(session, run, None)?;
        let bar = crate::progress_bar("decode", PRINTED_TOKENS);
        let start = Instant::now();
        let continued = greedy(model, &mut rows, next[0], PRINTED_TOKENS, &mut |_| bar.inc(1))?;
        let tokens_per_second = continued.len() as f64 / start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        drop(rows);

        let mut rows = self.open(session, run, Some(self.audit_every as usize))?;
        let bar = crate::progress_bar("score", self.score);
        let scored = &next[..=self.score];
        let evaluation = evaluate(model, &mut rows, scored, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let text = tokenizer.decode(&[&next[..1], &continued].concat())?;
        let (spent, forgot) = (rows.spent().clone(), rows.forgot()?);
        Ok(Outcome { run, tokens_per_second, evaluation, spent, forgot, text })
    }

    fn open(&self, session: &Session, run: Run, audit_every: Option<usize>) -> Result<StoredCache> {
        let store = Store::open(&self.stored.store, StoreOptions::default()).map_err(cache)?;
        let spec = model_spec(&session.model, &session.tokenizer, Dtype::F16);
        let mut context = store.context(&self.stored.context_name(run.index), &spec).map_err(cache)?;
        self.stored.check_text(context.tokens(), &session.ids)?;
        if run.forgetting != Forgetting::Never {
            context.set_forgetting(run.forgetting).map_err(cache)?;
        }
        Ok(StoredCache::new(context, session.model.attention_shape(), run.budget, audit_every))
    }

    fn print_table(&self, first_answer_seconds: f64, outcomes: &[Outcome]) {
        println!(
            "\ncontext of {} tokens, the next {} scored, error against exact on one in {} of them",
            self.stored.tokens, self.score, self.audit_every
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
        println!("{}", table::methods(outcomes));
        let bounds = table::bounds(outcomes);
        if !bounds.is_empty() {
            println!("\nwhat the answers said of themselves, where they were compared\n{bounds}");
        }
        let forgotten = table::forgotten(outcomes);
        if !forgotten.is_empty() {
            println!(
                "\nwhat was forgotten in the end; errors are against the rows that are left\n{forgotten}"
            );
        }
    }
}
