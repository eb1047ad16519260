//! `prefill`: computes a context once and commits it.

use super::Stored;
use clap::Args;
use longwave::{Dtype, Durability, Store, StoreOptions};
use longwave_candle::stored::{Index, PrefillCache, cache, model_spec};
use longwave_candle::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Recorded queries of each layer that are audited before the commit.
const AUDITED_QUERIES: usize = 48;

/// Prefill a text into a Longwave context, and commit it. Does nothing where the context is there already.
#[derive(Debug, Args)]
pub struct PrefillCommand {
    #[command(flatten)]
    stored: Stored,
}

/// What a prefill cost.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Running the model over the text, rows handed to Longwave.
    pub prefill_seconds: f64,
    /// Clustering and writing what was not sealed while the model ran.
    pub seal_seconds: f64,
    /// Auditing recorded queries, so that answers are bounded from the first on.
    #[serde(default)]
    pub audit_seconds: f64,
    /// The commit itself.
    pub commit_seconds: f64,
    /// Bytes of the store on disk.
    pub disk_bytes: u64,
}

impl PrefillCommand {
    pub fn run(&self) -> Result<()> {
        let stored = &self.stored;
        let store = Store::open(&stored.store, StoreOptions::default()).map_err(cache)?;
        let (model, tokenizer, ids) = stored.load(0)?;
        let spec = model_spec(&model, &tokenizer, Dtype::F16);
        let mut contexts = Vec::new();
        for index in Index::ALL {
            let name = stored.context_name(index);
            let context = if store.contains(&name).map_err(cache)? {
                store.context(&name, &spec)
            } else {
                store.create_with(&name, &spec, index.options())
            };
            contexts.push(context.map_err(cache)?);
        }
        if contexts.iter().all(|context| !context.tokens().is_empty()) {
            for context in &contexts {
                stored.check_text(context.tokens(), &ids)?;
            }
            println!("context {} is committed already: prefill skipped", stored.name);
            return Ok(());
        }
        if let Some(context) = contexts.iter().find(|context| !context.tokens().is_empty()) {
            let (name, expected) =
                (context.name().to_owned(), "all contexts of the demonstration, or none".into());
            return Err(Error::Value { name, expected, found: "this one alone: remove the store".into() });
        }

        let (start, bar) = (Instant::now(), crate::progress_bar("prefill", stored.tokens));
        let layers = model.hyperparameters().layers;
        let mut rows = PrefillCache::new(&mut contexts, model.attention_shape(), layers, stored.tokens);
        model.prefill(&ids[..stored.tokens], &mut rows, &mut |done| bar.set_position(done as u64))?;
        drop(rows);
        bar.finish_and_clear();
        let prefill_seconds = start.elapsed().as_secs_f64();
        let mut figures = Figures { prefill_seconds, ..Figures::default() };
        for (context, index) in contexts.iter_mut().zip(Index::ALL) {
            context.extend_tokens(&ids[..stored.tokens]).map_err(cache)?;
            let start = Instant::now();
            context.seal().map_err(cache)?;
            let seal_seconds = start.elapsed().as_secs_f64();
            let start = Instant::now();
            if index == Index::Ladder {
                context.calibrate(None, AUDITED_QUERIES).map_err(cache)?;
            }
            let audit_seconds = start.elapsed().as_secs_f64();
            let start = Instant::now();
            context.commit(Durability::Strict).map_err(cache)?;
            let commit_seconds = start.elapsed().as_secs_f64();
            if index == Index::Ladder {
                let disk_bytes = store.bytes_on_disk().map_err(cache)?;
                figures = Figures { seal_seconds, audit_seconds, commit_seconds, disk_bytes, ..figures };
            }
        }
        stored.write_figures(&figures)?;
        println!("prefill   {} tokens in {prefill_seconds:.1} s", stored.tokens);
        println!("seal      {:.1} s (clustering and writing)", figures.seal_seconds);
        println!("audit     {:.1} s ({AUDITED_QUERIES} recorded queries a layer)", figures.audit_seconds);
        println!("commit    {:.1} ms", figures.commit_seconds * 1e3);
        println!("on disk   {:.1} MiB", figures.disk_bytes as f64 / f64::from(1 << 20));
        Ok(())
    }
}

impl Stored {
    fn write_figures(&self, figures: &Figures) -> Result<()> {
        let path = self.figures();
        let json = serde_json::to_vec_pretty(figures).map_err(|error| Error::Cache(Box::new(error)))?;
        std::fs::write(&path, json).map_err(|source| Error::Io { path, operation: "write", source })
    }

    /// The figures of the prefill, where it left any.
    pub fn read_figures(&self) -> Option<Figures> {
        serde_json::from_slice(&std::fs::read(self.figures()).ok()?).ok()
    }
}
