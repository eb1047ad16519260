//! `passkey`: numbers hidden in long texts, asked for under each method.

use clap::Args;
use longwave::Budget;
use longwave_candle::chat::ChatFormat;
use longwave_candle::passkey::{FILLER, Found, PasskeyMaker, StoredPasskey};
use longwave_candle::stored::Index;
use longwave_candle::tokenizer::read_text;
use longwave_candle::{Error, Model, ModelFile, ModelOptions, Result, Tokenizer};
use serde::Serialize;
use std::path::PathBuf;

/// Share of the bytes that `longwave` is compared at.
const BYTES_SHARE: f64 = 0.037;

/// Hide a number at depths from 0 to 100 % of a long text and ask for it: which methods find it, and what they read.
#[derive(Debug, Args)]
pub struct PasskeyCommand {
    /// The model, a GGUF file of architecture `llama`.
    model: PathBuf,
    /// A text, UTF-8, to hide the numbers in, in place of RULER's five sentences over and over.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Number of prompts; their depths are evenly apart.
    #[arg(long, default_value_t = 20)]
    prompts: usize,
    /// Most tokens of a prompt.
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Mean shares of the bytes that `longwave` may read, 0 to 1, each a run; 0.037 if no --tau is given.
    #[arg(long, value_delimiter = ',', value_name = "SHARE,SHARE")]
    bytes: Vec<f64>,
    /// Thresholds of `longwave`, each a run.
    #[arg(long, value_delimiter = ',', value_name = "T,T")]
    tau: Vec<f64>,
    /// Digits of a number.
    #[arg(long, default_value_t = 7, value_name = "N")]
    digits: u32,
    /// Prefill the question with the text, so that the methods answer nothing but the tokens of the answer.
    #[arg(long)]
    prefill_question: bool,
    /// Chooses the numbers and where the text starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a line, a prompt and method.
    #[arg(long)]
    json: bool,
}

/// One prompt under one method. Keys are a contract: see docs/cli.md.
#[derive(Debug, Serialize)]
struct Row {
    prompt: usize,
    depth: f64,
    tokens: usize,
    number: String,
    method: &'static str,
    budget: String,
    found: bool,
    answer: String,
    bytes_share: f64,
}

impl PasskeyCommand {
    pub fn run(&self) -> Result<()> {
        let mut file = ModelFile::open(&self.model)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let chat = ChatFormat::of(&file, &tokenizer);
        let filler = self.text.as_ref().map(read_text).transpose()?;
        let maker = PasskeyMaker::new(&tokenizer, chat, filler.as_deref().unwrap_or(FILLER), self.digits)?;
        let model = Model::load(&mut file, ModelOptions::default())?;
        let runs = self.runs();
        if !self.json {
            println!("{}", heading(&runs));
        }
        let mut rows = Vec::new();
        for prompt in 0..self.prompts {
            let depth = prompt as f64 / self.prompts.saturating_sub(1).max(1) as f64;
            let mut passkey = maker.prompt(self.tokens, depth, self.seed.wrapping_add(prompt as u64))?;
            if self.prefill_question {
                passkey.prefill_question();
            }
            let tokens = passkey.text.len() + passkey.question.len();
            let bar = crate::progress_bar("prefill", passkey.text.len());
            let mut progress = |done| bar.set_position(done as u64);
            let stored = StoredPasskey::prefill(&model, &tokenizer, &passkey, &mut progress)?;
            bar.finish_and_clear();
            let first = rows.len();
            for &(index, budget) in &runs {
                let Found { answer, found, bytes_share } = stored.ask(index, budget)?;
                let (number, method) = (passkey.number.clone(), budget.method().name());
                let budget = budget.to_string();
                rows.push(Row { prompt, depth, tokens, number, method, budget, found, answer, bytes_share });
            }
            self.print(&rows[first..])?;
        }
        if !self.json {
            println!("{}", summary(&rows, &runs));
        }
        Ok(())
    }

    fn runs(&self) -> Vec<(Index, Budget)> {
        let shares =
            if self.bytes.is_empty() && self.tau.is_empty() { &[BYTES_SHARE][..] } else { &self.bytes };
        let longwave = shares.iter().map(|&share| Budget::Bytes(share));
        let longwave = longwave.chain(self.tau.iter().map(|&tau| Budget::Tau(tau)));
        let mut runs = vec![(Index::Ladder, Budget::Exact)];
        runs.extend(longwave.map(|budget| (Index::Ladder, budget)));
        runs.push((Index::RetroInfer, Budget::RETROINFER));
        runs
    }

    fn print(&self, rows: &[Row]) -> Result<()> {
        if self.json {
            for row in rows {
                println!("{}", serde_json::to_string(row).map_err(|error| Error::Cache(Box::new(error)))?);
            }
            return Ok(());
        }
        let Some(Row { depth, tokens, .. }) = rows.first() else { return Ok(()) };
        let cells = rows.iter().map(|row| {
            let found = if row.found { "found" } else { "-" };
            format!(" {found:>14} {:>7.2}%", 100.0 * row.bytes_share)
        });
        println!("{:>5.0}% {tokens:>7}{}", 100.0 * depth, cells.collect::<String>());
        Ok(())
    }
}

fn heading(runs: &[(Index, Budget)]) -> String {
    let cells = runs.iter().map(|(_, budget)| format!(" {:>14} {:>8}", label(budget), "bytes"));
    format!("{:>6} {:>7}{}", "depth", "tokens", cells.collect::<String>())
}

fn summary(rows: &[Row], runs: &[(Index, Budget)]) -> String {
    let prompts = rows.len() / runs.len();
    let exact = |prompt: usize| rows[prompt * runs.len()].found;
    let cells = (0..runs.len()).map(|run| {
        let of_run = || rows.iter().skip(run).step_by(runs.len());
        let found = of_run().filter(|row| row.found).count();
        let share = of_run().map(|row| row.bytes_share).sum::<f64>() / prompts as f64;
        format!(" {:>14} {:>7.2}%", format!("{found}/{prompts}"), 100.0 * share)
    });
    let mut text = format!("{:>14}{}", "found", cells.collect::<String>());
    for (run, (_, budget)) in runs.iter().enumerate().skip(1) {
        let both = rows.iter().skip(run).step_by(runs.len()).enumerate();
        let both = both.filter(|(prompt, row)| row.found && exact(*prompt)).count();
        let known = (0..prompts).filter(|&prompt| exact(prompt)).count();
        text += &format!("\n{} finds {both} of the {known} that exact finds", label(budget));
    }
    text
}

/// Budgets of one method are told apart by their number.
fn label(budget: &Budget) -> String {
    match budget {
        Budget::Exact | Budget::RetroInfer { .. } => budget.method().to_string(),
        other => other.to_string(),
    }
}
