//! What can go wrong between a model file and its next token.

use std::path::{Path, PathBuf};

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the model, its file or its cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: "open", "read", "write".
        operation: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file is not a readable GGUF.
    #[error("{path} is not a readable GGUF file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        reason: String,
    },
    /// The GGUF lacks a metadata entry that the model needs.
    #[error("the GGUF has no metadata entry `{key}`")]
    MissingMetadata {
        /// Name of the entry.
        key: String,
    },
    /// A metadata entry or an argument has a value that the model cannot run with.
    #[error("`{name}`: expected {expected}, found {found}")]
    Value {
        /// Name of the entry or argument.
        name: String,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The GGUF lacks a tensor that the model needs.
    #[error("the GGUF has no tensor `{name}`")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
    },
    /// The GGUF holds a tensor that this model would ignore, so it is another architecture.
    #[error("the GGUF has a tensor `{name}` that this Llama implementation does not know")]
    UnknownTensor {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another shape than the hyperparameters ask for.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// Name of the tensor.
        name: String,
        /// Shape that the hyperparameters give, outermost first.
        expected: Vec<usize>,
        /// Shape in the file, outermost first.
        found: Vec<usize>,
    },
    /// A token id outside the vocabulary.
    #[error("token {id} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The id.
        id: u32,
        /// Number of tokens in the vocabulary.
        vocabulary: usize,
    },
    /// The text has fewer tokens than were asked for.
    #[error("the text has {found} tokens, {needed} are needed")]
    TextTooShort {
        /// Tokens asked for, those to be skipped included.
        needed: usize,
        /// Tokens in the text.
        found: usize,
    },
    /// A slice handed to a cache has the wrong number of elements.
    #[error("{what}: expected {expected} elements, found {found}")]
    Elements {
        /// Which slice.
        what: &'static str,
        /// Number of elements expected, or what it must be a multiple of.
        expected: usize,
        /// Number of elements found.
        found: usize,
    },
    /// A layer number that the model does not have.
    #[error("layer {layer} is outside the model's {layers} layers")]
    Layer {
        /// The layer asked for, from 0.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },
    /// The tokenizer could not be built or failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tensor operation failed.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
    /// A trace file is not what it should be.
    #[error("trace {path}: {reason}")]
    Trace {
        /// The trace file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A cache other than the built-in one failed.
    #[error("cache: {0}")]
    Cache(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(crate) fn io(path: &Path, operation: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, operation, source }
    }

    pub(crate) fn value(name: &str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Value { name: name.to_owned(), expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn trace(path: &Path, reason: impl ToString) -> Self {
        Self::Trace { path: path.to_owned(), reason: reason.to_string() }
    }
}
