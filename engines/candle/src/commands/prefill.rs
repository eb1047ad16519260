//! `prefill`: computes a context once and commits it.

use super::Stored;
use clap::Args;
use longwave::{Dtype, Durability, Store, StoreOptions};
use longwave_candle::stored::{PrefillCache, cache, model_spec};
use longwave_candle::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Prefill a text into a Longwave context, and commit it. Does nothing where the context is there already.
#[derive(Debug, Args)]
pub struct PrefillCommand {
    #[command(flatten)]
    stored: Stored,
}

/// What a prefill cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Running the model over the text, rows handed to Longwave.
    pub prefill_seconds: f64,
    /// Clustering and writing what was not sealed while the model ran.
    pub seal_seconds: f64,
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
        if store.contains(&stored.name).map_err(cache)? {
            let context = store.context(&stored.name, &spec).map_err(cache)?;
            if context.length(0).map_err(cache)? > 0 {
                stored.check_text(context.tokens(), &ids)?;
                println!("context {} is committed already: prefill skipped", stored.name);
                return Ok(());
            }
        }
        let mut context = if store.contains(&stored.name).map_err(cache)? {
            store.context(&stored.name, &spec)
        } else {
            store.create(&stored.name, &spec)
        }
        .map_err(cache)?;

        let (start, bar) = (Instant::now(), crate::progress_bar("prefill", stored.tokens));
        let layers = model.hyperparameters().layers;
        let mut rows = PrefillCache::new(&mut context, model.attention_shape(), layers, stored.tokens);
        model.prefill(&ids[..stored.tokens], &mut rows, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        context.extend_tokens(&ids[..stored.tokens]).map_err(cache)?;
        let prefill_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        context.seal().map_err(cache)?;
        let seal_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        context.commit(Durability::Strict).map_err(cache)?;
        let commit_seconds = start.elapsed().as_secs_f64();
        let disk_bytes = store.bytes_on_disk().map_err(cache)?;
        let figures = Figures { prefill_seconds, seal_seconds, commit_seconds, disk_bytes };
        stored.write_figures(&figures)?;
        println!("prefill   {} tokens in {prefill_seconds:.1} s", stored.tokens);
        println!("seal      {seal_seconds:.1} s (clustering and writing)");
        println!("commit    {:.1} ms", commit_seconds * 1e3);
        println!("on disk   {:.1} MiB", disk_bytes as f64 / f64::from(1 << 20));
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
