//! Retrieval end to end: a number hidden in a long text, and a question for it, in the manner of RULER's single-needle
//! task (arXiv 2404.06654).
//!
//! The text is prefilled once with exact attention and stored; the question, and the answer token by token, are
//! then attended to through Longwave, under one budget or another.

use crate::chat::ChatFormat;
use crate::decode::greedy;
use crate::stored::{Index, PrefillCache, StoredCache, cache, model_spec};
use crate::{Error, Model, Result, Tokenizer};
use longwave::{AuditOptions, Budget, Dtype, Durability, Store, StoreOptions};

/// The filler of RULER's first needle task.
pub const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
/// What a number may be hidden under.
const KEYS: [&str; 20] = [
    "lantern", "orchard", "violin", "harbor", "meadow", "compass", "thunder", "pepper", "castle", "marble",
    "falcon", "garden", "silver", "window", "rocket", "anchor", "candle", "forest", "bridge", "teapot",
];
/// Tokens of an answer: the digits, and a few words before them.
const ANSWER_TOKENS: usize = 16;

/// A text with a number in it, and the question for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passkey {
    /// The number, in digits.
    pub number: String,
    /// Ids of all that comes before the question.
    pub text: Vec<u32>,
    /// Ids of the question, up to where the answer starts.
    pub question: Vec<u32>,
    /// The token that ends an answer, if the model has one.
    end: Option<u32>,
}

impl Passkey {
    /// Moves the question, all but its last token, to the text that is prefilled: only the answer is then left to
    /// other attention than exact.
    pub fn prefill_question(&mut self) {
        let last = self.question.pop();
        self.text.append(&mut self.question);
        self.question.extend(last);
    }
}

/// What passkey prompts are made of.
#[derive(Debug)]
pub struct PasskeyMaker<'a> {
    tokenizer: &'a Tokenizer,
    chat: Option<ChatFormat>,
    /// Ids of the filler, line by line.
    lines: Vec<Vec<u32>>,
    digits: u32,
}

impl<'a> PasskeyMaker<'a> {
    /// Hides numbers of so many digits, 1 to 18, between the lines of `filler`, which is repeated where it is too short.
    ///
    /// # Errors
    /// If the filler is empty, the digits are out of range, or the tokenizer library fails.
    pub fn new(
        tokenizer: &'a Tokenizer,
        chat: Option<ChatFormat>,
        filler: &str,
        digits: u32,
    ) -> Result<Self> {
        if !(1..=18).contains(&digits) {
            return Err(Error::value("digits", "1 to 18", digits));
        }
        let lines = filler.split_inclusive('\n').map(|line| tokenizer.encode(line));
        let lines: Vec<Vec<u32>> = lines.collect::<Result<_>>()?;
        if lines.iter().all(Vec::is_empty) {
            return Err(Error::value("filler", "a text", "none"));
        }
        Ok(Self { tokenizer, chat, lines, digits })
    }

    /// A prompt of at most `tokens` tokens, question included, with its number at `depth` of the filler, 0 to 1. Number,
    /// key and piece of the filler follow from `seed`.
    ///
    /// # Errors
    /// If `tokens` are too few for the question alone, or the tokenizer library fails.
    pub fn prompt(&self, tokens: usize, depth: f64, seed: u64) -> Result<Passkey> {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(b"passkey", seed);
        let least = 10u64.pow(self.digits - 1);
        let number = (least + hash % (9 * least)).to_string();
        let key = KEYS[(hash >> 32) as usize % KEYS.len()];
        let encode = |text: &str| self.tokenizer.encode(text);
        let mut text = match &self.chat {
            Some(chat) => chat.before_user(self.tokenizer)?,
            None => Vec::new(),
        };
        text.extend(encode(
            "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you \
             about the number afterwards.\n",
        )?);
        let needle = encode(&format!("One of the special magic numbers for {key} is: {number}.\n"))?;
        let mut question =
            encode(&format!("What is the special magic number for {key} mentioned in the provided text?"))?;
        if let Some(chat) = &self.chat {
            question.extend(chat.before_answer(self.tokenizer)?);
        }
        question.extend(encode(&format!(
            " The special magic number for {key} mentioned in the provided text is:"
        ))?);
        let fixed = text.len() + needle.len() + question.len();
        let Some(room) = tokens.checked_sub(fixed) else {
            return Err(Error::value("tokens", format!("at least {fixed}"), tokens));
        };
        let lines = self.lines(room, hash as usize);
        let filler: usize = lines.iter().map(|line| line.len()).sum();
        let (mut passed, mut hidden) = (0, false);
        for line in lines {
            if !hidden && passed as f64 >= depth * filler as f64 {
                text.extend(&needle);
                hidden = true;
            }
            text.extend(line);
            passed += line.len();
        }
        if !hidden {
            text.extend(&needle);
        }
        Ok(Passkey { number, text, question, end: self.chat.as_ref().map(ChatFormat::end) })
    }

    /// Lines of the filler, from the one numbered `first` on, that fit into `room` tokens.
    fn lines(&self, room: usize, first: usize) -> Vec<&[u32]> {
        let mut left = room;
        let lines = (0..).map(|at| &*self.lines[first.wrapping_add(at) % self.lines.len()]);
        lines
            .filter(|line| !line.is_empty())
            .take_while(|line| {
                let fits = line.len() <= left;
                left -= line.len().min(left);
                fits
            })
            .collect()
    }
}

/// A prompt whose text is prefilled and stored, once with each index.
#[derive(Debug)]
pub struct StoredPasskey<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    passkey: &'a Passkey,
    store: Store,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The answer, as far as it was decoded.
    pub answer: String,
    /// Whether the number is in it.
    pub found: bool,
    /// Mean share of the 16-bit KV bytes that a call read.
    pub bytes_share: f64,
}

impl<'a> StoredPasskey<'a> {
    /// Runs the model over the text of a prompt and commits its KV to a store in memory. `progress` is told the number
    /// of tokens done.
    ///
    /// # Errors
    /// If the model, or the store, fails.
    pub fn prefill(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        passkey: &'a Passkey,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut options = StoreOptions::default();
        // Nobody asks for bounds here.
        options.audits = AuditOptions::none();
        let store = Store::in_memory(options).map_err(cache)?;
        let spec = model_spec(model, tokenizer, Dtype::F16);
        let create = |index: Index| store.create_with(index.name(), &spec, index.options()).map_err(cache);
        let mut contexts = Index::ALL.into_iter().map(create).collect::<Result<Vec<_>>>()?;
        let (shape, layers) = (model.attention_shape(), model.hyperparameters().layers);
        let mut rows = PrefillCache::new(&mut contexts, shape, layers, passkey.text.len());
        model.prefill(&passkey.text, &mut rows, progress)?;
        for context in &mut contexts {
            context.seal().map_err(cache)?;
            context.commit(Durability::None).map_err(cache)?;
        }
        Ok(Self { model, tokenizer, passkey, store })
    }

    /// Asks the question of the stored text: question and answer are attended to under `budget`.
    ///
    /// # Errors
    /// If the model, or the store, fails.
    pub fn ask(&self, index: Index, budget: Budget) -> Result<Found> {
        let spec = model_spec(self.model, self.tokenizer, Dtype::F16);
        let context = self.store.context(index.name(), &spec).map_err(cache)?;
        let mut rows = StoredCache::new(context, self.model.attention_shape(), budget, None);
        let Passkey { number, question, end, .. } = self.passkey;
        let Some((&last, before)) = question.split_last() else {
            return Err(Error::value("question", "at least one token", "none"));
        };
        self.model.prefill(before, &mut rows, &mut |_| {})?;
        let said = greedy(self.model, &mut rows, last, ANSWER_TOKENS, &mut |_| {})?;
        let said = said.split(|id| Some(*id) == *end).next().unwrap_or_default();
        let answer = self.tokenizer.decode(said)?;
        Ok(Found { found: answer.contains(number), answer, bytes_share: rows.spent().summary().bytes_share })
    }
}

#[cfg(test)]
#[path = "passkey/tests.rs"]
mod tests;
