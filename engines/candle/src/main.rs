//! `longwave-candle`: run a GGUF model, with or without Longwave behind it.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use longwave_candle::decode::greedy;
use longwave_candle::perplexity::evaluate;
use longwave_candle::tokenizer::read_text;
use longwave_candle::trace::{Trace, TraceOptions};
use longwave_candle::{Error, MemoryCache, Model, ModelFile, ModelOptions, Result, Tokenizer};

/// Runs a Llama-family model from a GGUF file.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Trace(TraceCommand),
    Generate(GenerateCommand),
    Prefill(commands::prefill::PrefillCommand),
    Decode(commands::decode::DecodeCommand),
    Passkey(commands::passkey::PasskeyCommand),
}

/// The model, and the piece of text that it runs over.
#[derive(Debug, Args)]
struct Input {
    /// The model, a GGUF file of architecture `llama`.
    model: PathBuf,
    /// The text, UTF-8.
    text: PathBuf,
    /// Number of the text's tokens to run.
    #[arg(long, default_value_t = 8192)]
    tokens: usize,
    /// Number of the text's tokens to leave out before them.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// RoPE base in place of the model's, to stretch it beyond its training length.
    #[arg(long, value_name = "BASE")]
    rope_theta: Option<f64>,
}

/// Record the keys, values and last queries of some layers over a text.
#[derive(Debug, Args)]
struct TraceCommand {
    #[command(flatten)]
    input: Input,
    /// The trace to write, a safetensors file.
    out: PathBuf,
    /// Number of last positions whose queries to keep.
    #[arg(long, default_value_t = 256)]
    queries: usize,
    /// The layers to record, from 0.
    #[arg(long, value_delimiter = ',', default_value = "2,9,17,25")]
    layers: Vec<usize>,
}

/// Continue a text greedily with an exact cache in memory, and score the text's own continuation.
#[derive(Debug, Args)]
struct GenerateCommand {
    #[command(flatten)]
    input: Input,
    /// Number of tokens to generate.
    #[arg(long, default_value_t = 64)]
    count: usize,
    /// Number of the text's next tokens to score.
    #[arg(long, default_value_t = 0)]
    score: usize,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Trace(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Prefill(command) => command.run(),
        Command::Decode(command) => command.run(),
        Command::Passkey(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longwave-candle: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Input {
    /// The loaded model, its tokenizer, and the ids of the text from `skip` on, at least `tokens + further`.
    fn load(&self, further: usize) -> Result<(Model, Tokenizer, Vec<u32>)> {
        let mut file = ModelFile::open(&self.model)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let mut ids = tokenizer.encode(&read_text(&self.text)?)?;
        let needed = self.skip.saturating_add(self.tokens).saturating_add(further);
        if ids.len() < needed {
            return Err(Error::TextTooShort { needed, found: ids.len() });
        }
        ids.drain(..self.skip);
        let model = Model::load(&mut file, ModelOptions { rope_base: self.rope_theta })?;
        if self.tokens + further > model.hyperparameters().context_length && self.rope_theta.is_none() {
            let trained = model.hyperparameters().context_length;
            eprintln!("note: the model was trained on {trained} tokens; a larger --rope-theta stretches it");
        }
        Ok((model, tokenizer, ids))
    }
}

impl TraceCommand {
    fn run(&self) -> Result<()> {
        let (model, _, ids) = self.input.load(0)?;
        let options = TraceOptions { layers: self.layers.clone(), queries: self.queries };
        let (start, bar) = (Instant::now(), progress_bar("prefill", self.input.tokens));
        let trace = Trace::record(&model, &ids[..self.input.tokens], &options, &mut |done| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        trace.write(&self.out)?;
        eprintln!(
            "{} tokens in {:.1} s: {}",
            self.input.tokens,
            start.elapsed().as_secs_f64(),
            self.out.display()
        );
        Ok(())
    }
}

impl GenerateCommand {
    fn run(&self) -> Result<()> {
        let (model, tokenizer, ids) = self.input.load(self.score)?;
        let (context, continuation) = ids.split_at(self.input.tokens);
        let Some((&last, prefilled)) = context.split_last() else {
            return Err(Error::TextTooShort { needed: 1, found: 0 });
        };
        let capacity = context.len() + self.count.max(self.score);
        let mut cache = MemoryCache::new(model.attention_shape(), model.hyperparameters().layers, capacity);
        let (start, bar) = (Instant::now(), progress_bar("prefill", prefilled.len()));
        model.prefill(prefilled, &mut cache, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("prefill: {} tokens in {seconds:.1} s", prefilled.len());
        if self.score > 0 {
            let scored: Vec<u32> = [&[last], &continuation[..self.score]].concat();
            let (start, bar) = (Instant::now(), progress_bar("score", self.score));
            let evaluation =
                evaluate(&model, &mut cache.clone(), &scored, &mut |done| bar.set_position(done as u64))?;
            bar.finish_and_clear();
            let rate = self.score as f64 / start.elapsed().as_secs_f64();
            eprintln!("perplexity of the next {} tokens: {:.3}", self.score, evaluation.perplexity());
            eprintln!("scored at {rate:.1} tokens/s");
        }
        let (start, bar) = (Instant::now(), progress_bar("decode", self.count));
        let tokens = greedy(&model, &mut cache, last, self.count, &mut |_| bar.inc(1))?;
        bar.finish_and_clear();
        eprintln!("decode: {:.1} tokens/s", tokens.len() as f64 / start.elapsed().as_secs_f64());
        println!("{}", tokenizer.decode(&tokens)?);
        Ok(())
    }
}

/// A bar on stderr; invisible where stderr is no terminal.
fn progress_bar(what: &'static str, tokens: usize) -> ProgressBar {
    let bar = ProgressBar::new(tokens as u64).with_message(what);
    match ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} tokens, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
