//! The tokenizer that a GGUF file carries: byte-level byte-pair encoding.

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use xxhash_rust::xxh3::Xxh3;

use crate::{Error, ModelFile, Result};

/// Turns text into token ids and back.
///
/// The text is taken as it is: the names of special tokens in it are text, and none is added.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: usize,
    digest: u128,
}

impl Tokenizer {
    /// Builds the tokenizer from a model file.
    ///
    /// # Errors
    /// If the file's tokenizer is of another kind, its pre-tokenizer is not one of [`Tokenizer::new`]'s, or its
    /// vocabulary and merges do not fit together.
    pub fn from_gguf(file: &ModelFile) -> Result<Self> {
        let model = file.string("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(Error::value("tokenizer.ggml.model", "gpt2", model));
        }
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let merges = file.strings("tokenizer.ggml.merges")?;
        Self::new(&tokens, &merges, file.string("tokenizer.ggml.pre")?)
    }

    /// Builds the tokenizer from its parts: the tokens in the byte-level alphabet, in the order of their ids; the
    /// merges, best first, each two tokens with a space between; and the pre-tokenizer's name.
    ///
    /// `gpt-2` and `default` split by the GPT-2 rule; `smollm` makes each digit a word of its own before that.
    ///
    /// # Errors
    /// If the pre-tokenizer is unknown, or a merge is not two tokens that make a third.
    pub fn new(tokens: &[&str], merges: &[&str], pre_tokenizer: &str) -> Result<Self> {
        let byte_level = ByteLevel::new(false, true, true);
        let split: PreTokenizerWrapper = match pre_tokenizer {
            "smollm" => Sequence::new(vec![Digits::new(true).into(), byte_level.into()]).into(),
            "gpt-2" | "default" => byte_level.into(),
            other => return Err(Error::value("tokenizer.ggml.pre", "smollm, gpt-2 or default", other)),
        };
        let vocabulary = (0u32..).zip(tokens).map(|(id, token)| ((*token).to_owned(), id));
        let pair = |merge: &&str| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(Error::Tokenizer(format!("the merge {merge:?} is not two tokens"))),
        };
        let pairs = merges.iter().map(pair).collect::<Result<Vec<_>>>()?;
        let model =
            BPE::builder().vocab_and_merges(vocabulary.collect::<tokenizers::models::bpe::Vocab>(), pairs);
        let mut inner = tokenizers::Tokenizer::new(model.build().map_err(failed)?);
        inner.with_pre_tokenizer(Some(split)).with_decoder(Some(byte_level));
        Ok(Self { inner, vocabulary: tokens.len(), digest: digest(tokens, merges, pre_tokenizer) })
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// If the tokenizer library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.inner.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// The text of some ids. Bytes that are not UTF-8, as at a cut inside a character, become U+FFFD.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            return Err(Error::Token { id, vocabulary: self.vocabulary });
        }
        self.inner.decode(ids, false).map_err(failed)
    }

    /// The id of a token by its name in the vocabulary: the one way to a special token, since its name in a text is
    /// text.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// XXH3-128 of vocabulary, merges and pre-tokenizer name.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }
}

/// Reads a text file with what is not UTF-8 replaced by U+FFFD and every line end made `\n`, as Python's text mode
/// reads it, so that traces and digests agree with those made by Python tools.
///
/// # Errors
/// If the file cannot be read.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.into_owned() })
}

fn digest(tokens: &[&str], merges: &[&str], pre_tokenizer: &str) -> u128 {
    let mut hasher = Xxh3::new();
    for part in [tokens, merges, &[pre_tokenizer]] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        for text in part {
            // With its length, so that moving a letter from one token to the next changes the digest.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.digest128()
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Ġ` is a space in the byte-level alphabet, `Ã©` the two bytes of é.
    const TOKENS: [&str; 16] =
        ["a", "b", "c", "Ġ", "1", "2", "Ã", "©", "ab", "Ġab", "12", "Ã©", "abc", "Ċ", "<x>", "ĠĠ"];
    const MERGES: [&str; 6] = ["a b", "Ġ ab", "1 2", "Ã ©", "ab c", "Ġ Ġ"];

    #[test]
    fn merges_apply_in_their_order_inside_words() {
        let tokenizer = Tokenizer::new(&TOKENS, &MERGES, "smollm").unwrap();
        assert_eq!(tokenizer.encode("abc ab").unwrap(), [12, 9]);
        // "Ġab" wins over "abc" in " abc", since it is the earlier merge.
        assert_eq!(tokenizer.encode(" abc").unwrap(), [9, 2]);
        assert_eq!(tokenizer.encode("é\nab").unwrap(), [11, 13, 8]);
        // The last space of a run belongs to the word behind it.
        assert_eq!(tokenizer.encode("a   ab").unwrap(), [0, 15, 9]);
        assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
        assert_eq!((tokenizer.id("<x>"), tokenizer.id("<y>")), (Some(14), None));
    }

    #[test]
    fn digits_stand_alone_only_where_the_model_says_so() {
        assert_eq!(Tokenizer::new(&TOKENS, &MERGES, "smollm").unwrap().encode("a12").unwrap(), [0, 4, 5]);
        assert_eq!(Tokenizer::new(&TOKENS, &MERGES, "gpt-2").unwrap().encode("a12").unwrap(), [0, 10]);
    }

    #[test]
    fn decoding_gives_the_text_back() {
        let tokenizer = Tokenizer::new(&TOKENS, &MERGES, "smollm").unwrap();
        let text = "abc é 12\nab  a";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        assert_eq!(tokenizer.decode(&[0, 6]).unwrap(), "a\u{fffd}", "a cut inside é");
        assert!(matches!(tokenizer.decode(&[1, 16]), Err(Error::Token { id: 16, vocabulary: 16 })));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(Tokenizer::new(&TOKENS, &["ab"], "smollm"), Err(Error::Tokenizer(_))));
        assert!(matches!(Tokenizer::new(&TOKENS, &["c b"], "smollm"), Err(Error::Tokenizer(_))));
        assert!(matches!(Tokenizer::new(&TOKENS, &MERGES, "qwen2"), Err(Error::Value { .. })));
    }

    #[test]
    fn the_digest_sees_every_part() {
        let digest = |tokens: &[&str], merges: &[&str], pre| digest(tokens, merges, pre);
        let first = digest(&["ab", "c"], &["a b"], "smollm");
        assert_eq!(first, digest(&["ab", "c"], &["a b"], "smollm"));
        assert_ne!(first, digest(&["a", "bc"], &["a b"], "smollm"));
        assert_ne!(first, digest(&["ab", "c"], &[], "smollm"));
        assert_ne!(first, digest(&["ab", "c"], &["a b"], "gpt-2"));
    }

    #[test]
    fn texts_are_read_as_python_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        std::fs::write(&path, b"one\r\ntwo\rthree\n\xff\n").unwrap();
        assert_eq!(read_text(&path).unwrap(), "one\ntwo\nthree\n\u{fffd}\n");
    }
}
