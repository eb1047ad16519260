//! Reading a model file: hyperparameters, weights dequantised to f32, and what identifies them.
//!
//! Every number from the file is bounded before something is allocated or indexed with it, and every tensor's shape
//! is checked against the hyperparameters before it is read.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use xxhash_rust::xxh3::Xxh3;

use crate::{Error, Result};

const LAYERS_MAX: usize = 512;
const WIDTH_MAX: usize = 1 << 16;
const FEED_FORWARD_MAX: usize = 1 << 19;
const HEADS_MAX: usize = 1024;
const HEAD_DIM_MAX: usize = 576;
const VOCABULARY_MAX: usize = 1 << 21;
const CONTEXT_LENGTH_MAX: usize = 1 << 30;

/// The numbers that shape a Llama-family model.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Number of transformer layers.
    pub layers: usize,
    /// Elements of a token's hidden state.
    pub width: usize,
    /// Elements of the feed-forward layer's inner state.
    pub feed_forward: usize,
    /// Query heads.
    pub query_heads: usize,
    /// Key-value heads; divides `query_heads`.
    pub kv_heads: usize,
    /// Elements of a head's query, key and value.
    pub head_dim: usize,
    /// How many elements of a head RoPE rotates, from the first; even.
    pub rotary_dim: usize,
    /// Base ("theta") of the RoPE frequencies.
    pub rope_base: f64,
    /// Added to the mean square in RMS norm.
    pub norm_epsilon: f32,
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// Length that the model was trained at, in tokens.
    pub context_length: usize,
}

/// What a stored KV cache must agree on before it may be used with a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelIdentity {
    /// XXH3-128 of the whole model file.
    pub weights_digest: u128,
    /// XXH3-128 of vocabulary, merges and pre-tokenizer name.
    pub tokenizer_digest: u128,
    /// The RoPE base in use, which may differ from the file's.
    pub rope_base: f64,
}

/// An open GGUF file.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    content: Content,
    reader: BufReader<File>,
    weights_digest: u128,
    read: HashSet<String>,
}

impl ModelFile {
    /// Opens a GGUF file, reads its header and metadata, and computes the digest of the whole file.
    ///
    /// # Errors
    /// If the file cannot be read or is not a GGUF.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let weights_digest = digest(&mut file).map_err(Error::io(path, "read"))?;
        let mut reader = BufReader::new(file);
        reader.rewind().map_err(Error::io(path, "read"))?;
        let malformed = |reason: String| Error::Malformed { path: path.to_owned(), reason };
        // The reader divides by the file's `general.alignment` unchecked, so that a zero there panics.
        let content = std::panic::catch_unwind(AssertUnwindSafe(|| Content::read(&mut reader)))
            .map_err(|_| malformed("its header cannot be parsed".to_owned()))?
            .map_err(|error| malformed(error.to_string()))?;
        Ok(Self { path: path.to_owned(), content, reader, weights_digest, read: HashSet::new() })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// XXH3-128 of the whole file.
    #[must_use]
    pub fn weights_digest(&self) -> u128 {
        self.weights_digest
    }

    /// Reads the hyperparameters from the metadata.
    ///
    /// # Errors
    /// If an entry is missing, out of bounds or inconsistent with another, or names an architecture other than `llama`.
    pub fn hyperparameters(&self) -> Result<Hyperparameters> {
        let architecture = self.string("general.architecture")?;
        if architecture != "llama" {
            return Err(Error::value("general.architecture", "llama", architecture));
        }
        if let Some(scaling) = self.optional("llama.rope.scaling.type") {
            match scaling {
                Value::String(kind) if kind == "none" => {}
                other => return Err(Error::value("llama.rope.scaling.type", "none", format!("{other:?}"))),
            }
        }
        let width = self.unsigned("llama.embedding_length", WIDTH_MAX)?;
        let query_heads = self.unsigned("llama.attention.head_count", HEADS_MAX)?;
        let kv_heads = self.unsigned_or("llama.attention.head_count_kv", query_heads, HEADS_MAX)?;
        if !query_heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of the {query_heads} query heads");
            return Err(Error::value("llama.attention.head_count_kv", expected, kv_heads));
        }
        let head_dim = self.unsigned_or("llama.attention.key_length", width / query_heads, HEAD_DIM_MAX)?;
        if head_dim == 0 || !head_dim.is_multiple_of(8) || head_dim > HEAD_DIM_MAX {
            let expected = format!("a multiple of 8 up to {HEAD_DIM_MAX}");
            return Err(Error::value("elements of a head", expected, head_dim));
        }
        let value_dim = self.unsigned_or("llama.attention.value_length", head_dim, HEAD_DIM_MAX)?;
        if value_dim != head_dim {
            return Err(Error::value("llama.attention.value_length", head_dim, value_dim));
        }
        let rotary_dim = self.unsigned_or("llama.rope.dimension_count", head_dim, head_dim)?;
        if !rotary_dim.is_multiple_of(2) {
            return Err(Error::value("llama.rope.dimension_count", "an even number", rotary_dim));
        }
        let vocabulary = self.array("tokenizer.ggml.tokens")?.len();
        Ok(Hyperparameters {
            layers: self.unsigned("llama.block_count", LAYERS_MAX)?,
            width,
            feed_forward: self.unsigned("llama.feed_forward_length", FEED_FORWARD_MAX)?,
            query_heads,
            kv_heads,
            head_dim,
            rotary_dim,
            rope_base: f64::from(self.float_or("llama.rope.freq_base", 10_000.0, 1.0..1e12)?),
            norm_epsilon: self.float("llama.attention.layer_norm_rms_epsilon", 0.0..0.1)?,
            vocabulary: self.unsigned_or("llama.vocab_size", vocabulary, VOCABULARY_MAX)?,
            context_length: self.unsigned("llama.context_length", CONTEXT_LENGTH_MAX)?,
        })
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Reads one tensor, dequantised to f32. `shape` is outermost first: `[out, in]` for a matrix.
    ///
    /// # Errors
    /// If there is no such tensor, its shape differs, or it cannot be read.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(Error::MissingTensor { name: name.to_owned() });
        };
        if info.shape.dims() != shape {
            let found = info.shape.dims().to_vec();
            return Err(Error::TensorShape { name: name.to_owned(), expected: shape.to_vec(), found });
        }
        self.read.insert(name.to_owned());
        let quantised = self.content.tensor(&mut self.reader, name, &Device::Cpu).map_err(|error| {
            Error::Malformed { path: self.path.clone(), reason: format!("tensor `{name}`: {error}") }
        })?;
        Ok(quantised.dequantize(&Device::Cpu)?)
    }

    /// Reads a tensor of one dimension as f32.
    ///
    /// # Errors
    /// As [`ModelFile::tensor`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.tensor(name, &[len])?.to_vec1()?)
    }

    /// Checks that every tensor of the file has been read: one that was not would belong to another architecture,
    /// and leaving it out would silently change the model.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] names the first one left, in alphabetical order.
    pub fn check_all_read(&self) -> Result<()> {
        match self.content.tensor_infos.keys().filter(|name| !self.read.contains(*name)).min() {
            Some(name) => Err(Error::UnknownTensor { name: name.clone() }),
            None => Ok(()),
        }
    }

    pub(crate) fn optional(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn required(&self, key: &str) -> Result<&Value> {
        self.optional(key).ok_or_else(|| Error::MissingMetadata { key: key.to_owned() })
    }

    pub(crate) fn string(&self, key: &str) -> Result<&str> {
        match self.required(key)? {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(key, "a string", other)),
        }
    }

    pub(crate) fn array(&self, key: &str) -> Result<&[Value]> {
        match self.required(key)? {
            Value::Array(values) => Ok(values),
            other => Err(wrong_type(key, "an array", other)),
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<&str>> {
        let values = self.array(key)?.iter();
        values
            .map(|value| match value {
                Value::String(text) => Ok(text.as_str()),
                other => Err(wrong_type(key, "an array of strings", other)),
            })
            .collect()
    }

    /// A number from 1 to `limit`.
    fn unsigned(&self, key: &str, limit: usize) -> Result<usize> {
        let value = self.required(key)?;
        let number =
            value.to_u64().ok().or_else(|| value.to_i32().ok().and_then(|number| number.try_into().ok()));
        match number.and_then(|number| usize::try_from(number).ok()) {
            Some(number) if (1..=limit).contains(&number) => Ok(number),
            Some(number) => Err(Error::value(key, format!("1 to {limit}"), number)),
            None => Err(wrong_type(key, "an unsigned number", value)),
        }
    }

    fn unsigned_or(&self, key: &str, default: usize, limit: usize) -> Result<usize> {
        if self.optional(key).is_some() { self.unsigned(key, limit) } else { Ok(default) }
    }

    fn float(&self, key: &str, range: std::ops::Range<f32>) -> Result<f32> {
        let value = self.required(key)?;
        match value.to_f32() {
            Ok(number) if range.contains(&number) => Ok(number),
            Ok(number) => Err(Error::value(key, format!("{} to {}", range.start, range.end), number)),
            Err(_) => Err(wrong_type(key, "a 32-bit float", value)),
        }
    }

    fn float_or(&self, key: &str, default: f32, range: std::ops::Range<f32>) -> Result<f32> {
        if self.optional(key).is_some() { self.float(key, range) } else { Ok(default) }
    }
}

fn wrong_type(key: &str, expected: &str, found: &Value) -> Error {
    Error::value(key, expected, format!("a value of type {:?}", found.value_type()))
}

fn digest(file: &mut File) -> std::io::Result<u128> {
    let (mut hasher, mut buffer) = (Xxh3::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.digest128()),
            len => hasher.update(&buffer[..len]),
        }
    }
}

#[cfg(test)]
#[path = "gguf/tests.rs"]
mod tests;
