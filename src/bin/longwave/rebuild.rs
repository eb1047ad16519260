//! `longwave rebuild`: builds a context's segments again, in the metric of the queries that it keeps as a sample; and
//! `longwave compact`: merges small ones.

use crate::import::FIRST_AUDITS;
use crate::opening::open_store;
use crate::progress;
use anyhow::{Result, ensure};
use longwave::{Durability, Forgetting, LayerKind};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the store.
    store: PathBuf,
    /// Name of the context.
    name: String,
    /// Layers to build again, separated by commas; by default all that are clustered.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let store = open_store(&arguments.store)?;
    let model = store.snapshot(&arguments.name)?.model().clone();
    for &layer in &arguments.layers {
        ensure!(layer < model.layers, "layer {layer} is out of range: the model has {} layers", model.layers);
        ensure!(model.layer_kind(layer) == LayerKind::Clustered, "layer {layer} is not clustered");
    }
    let mut layers = arguments.layers.clone();
    if layers.is_empty() {
        layers = (0..model.layers).filter(|&layer| model.layer_kind(layer) == LayerKind::Clustered).collect();
    }
    let mut context = store.context(&arguments.name, &model)?;
    let bar = progress::bar("building again", layers.len());
    let mut segments = 0;
    for &layer in &layers {
        let rebuilt = context.rebuild(Some(layer))?;
        segments += rebuilt;
        if rebuilt > 0 {
            context.calibrate(Some(layer), FIRST_AUDITS)?;
        }
        bar.inc(1);
    }
    context.commit(Durability::Strict)?;
    bar.finish_and_clear();
    eprintln!("built {segments} segments of {} layers of context {} again", layers.len(), arguments.name);
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct Compact {
    /// Directory of the store.
    store: PathBuf,
    /// Name of the context.
    name: String,
}

#[derive(clap::Args)]
pub(crate) struct Forget {
    /// Directory of the store.
    store: PathBuf,
    /// Name of the context.
    name: String,
    #[command(flatten)]
    policy: Policy,
}

/// A policy for the context from now on; without one it keeps its own.
#[derive(clap::Args)]
#[group(multiple = false)]
struct Policy {
    /// Demote clusters that so many queries of a layer in a row did not find important.
    #[arg(long, value_name = "STEPS")]
    demote: Option<u32>,
    /// Drop rows whose clusters are so in every KV head, for good.
    #[arg(long, value_name = "STEPS")]
    drop: Option<u32>,
    /// Forget nothing more.
    #[arg(long)]
    never: bool,
}

pub(crate) fn forget(arguments: &Forget) -> Result<()> {
    let store = open_store(&arguments.store)?;
    let model = store.snapshot(&arguments.name)?.model().clone();
    let mut context = store.context(&arguments.name, &model)?;
    let Policy { demote, drop, never } = arguments.policy;
    let policy = match (demote, drop, never) {
        (Some(steps), ..) => Some(Forgetting::Demote { steps }),
        (_, Some(steps), _) => Some(Forgetting::Drop { steps }),
        (.., never) => never.then_some(Forgetting::Never),
    };
    if let Some(policy) = policy {
        context.set_forgetting(policy)?;
    }
    let bar = progress::bar("forgetting", model.layers);
    let mut dropped = 0;
    for layer in (0..model.layers).filter(|&layer| model.layer_kind(layer) != LayerKind::Absent) {
        dropped += context.forget(Some(layer))?;
        bar.inc(1);
    }
    context.commit(Durability::Strict)?;
    bar.finish_and_clear();
    eprintln!("context {} has dropped {dropped} rows of its layers", arguments.name);
    Ok(())
}

pub(crate) fn compact(arguments: &Compact) -> Result<()> {
    let store = open_store(&arguments.store)?;
    let model = store.snapshot(&arguments.name)?.model().clone();
    let mut context = store.context(&arguments.name, &model)?;
    let bar = progress::bar("merging", model.layers);
    let mut gone = 0;
    for layer in (0..model.layers).filter(|&layer| model.layer_kind(layer) != LayerKind::Absent) {
        gone += context.compact(Some(layer))?;
        bar.inc(1);
    }
    context.commit(Durability::Strict)?;
    bar.finish_and_clear();
    eprintln!("context {} has {gone} segments fewer", arguments.name);
    Ok(())
}
