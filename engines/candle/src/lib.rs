//! A real client of Longwave: a Llama-family model from a GGUF file, computed on candle, whose KV cache is a
//! [`KvCache`].
//!
//! The way of a token through the crate:
//!
//! 1. [`gguf`] reads the hyperparameters and the weights, dequantised to f32; [`tokenizer`] reads the vocabulary;
//! 2. [`model`] runs the layers over a chunk of tokens and hands keys, values and queries to the cache;
//! 3. [`cache`] keeps the rows and answers attention queries. [`MemoryCache`] does so exactly, in memory, with the
//!    tiles of [`attention`]; [`stored`] puts Longwave in its place, and [`spent`] counts what that read and missed;
//! 4. [`decode`] and [`perplexity`] run the model token by token on any cache; [`trace`] records what passes;
//!    [`passkey`] asks for a number hidden in a long text.
//!
//! Keys and queries are after RoPE, with the rotary pairs interleaved as the GGUF has them. Everywhere, `rows` are
//! token-major: `[tokens, heads, dim]`, f32.

#![deny(clippy::unwrap_used)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test ends at the first surprise"))]

pub mod attention;
pub mod cache;
pub mod chat;
pub mod decode;
mod error;
pub mod gguf;
pub mod model;
pub mod passkey;
pub mod perplexity;
pub mod rotary;
pub mod spent;
pub mod stored;
pub mod tokenizer;
pub mod trace;

pub use cache::{KvCache, MemoryCache};
pub use error::{Error, Result};
pub use gguf::{Hyperparameters, ModelFile, ModelIdentity};
pub use model::{Model, ModelOptions};
pub use tokenizer::Tokenizer;
