//! Commands that keep contexts in a Longwave store.

pub mod decode;
pub mod passkey;
pub mod prefill;

use clap::Args;
use longwave_candle::stored::Index;
use longwave_candle::tokenizer::read_text;
use longwave_candle::{Error, Model, ModelFile, ModelOptions, Result, Tokenizer};
use std::path::PathBuf;

/// A model, a text, and the stored context of its first tokens.
#[derive(Debug, Args)]
pub struct Stored {
    /// The model, a GGUF file of architecture `llama`.
    #[arg(long)]
    pub model: PathBuf,
    /// The text, UTF-8.
    #[arg(long)]
    pub text: PathBuf,
    /// Directory of the store; made if it is missing.
    #[arg(long)]
    pub store: PathBuf,
    /// Name of the context.
    #[arg(long, default_value = "demo")]
    pub name: String,
    /// Number of the text's tokens in the context.
    #[arg(long, default_value_t = 8192)]
    pub tokens: usize,
}

impl Stored {
    /// Name of the context with this index.
    fn context_name(&self, index: Index) -> String {
        match index {
            Index::Ladder => self.name.clone(),
            Index::RetroInfer => format!("{}-retroinfer", self.name),
        }
    }

    /// The loaded model, its tokenizer, and at least `tokens + further` ids of the text.
    fn load(&self, further: usize) -> Result<(Model, Tokenizer, Vec<u32>)> {
        if self.tokens == 0 {
            return Err(Error::Value {
                name: "tokens".into(),
                expected: "at least 1".into(),
                found: "0".into(),
            });
        }
        let mut file = ModelFile::open(&self.model)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let ids = tokenizer.encode(&read_text(&self.text)?)?;
        let needed = self.tokens.saturating_add(further);
        if ids.len() < needed {
            return Err(Error::TextTooShort { needed, found: ids.len() });
        }
        Ok((Model::load(&mut file, ModelOptions { rope_base: None })?, tokenizer, ids))
    }

    /// Where the prefill leaves its figures, beside the store, for the decoding process to compare with.
    fn figures(&self) -> PathBuf {
        self.store.with_extension("prefill.json")
    }

    /// Whether a context holds the first tokens of this text.
    fn check_text(&self, stored: &[u32], ids: &[u32]) -> Result<()> {
        if stored == &ids[..self.tokens] {
            return Ok(());
        }
        let found = format!("{} tokens of another text or length", stored.len());
        let expected = format!("the first {} tokens of {}", self.tokens, self.text.display());
        Err(Error::Value { name: format!("context {}", self.name), expected, found })
    }
}
