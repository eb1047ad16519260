//! `longwave inspect`: contexts, segments, columns and clusters of a store, and what calls spent.

mod calibration;
mod document;
mod ladder;
mod spending;
mod table;

use crate::opening::open_store;
use crate::output;
use anyhow::{Result, ensure};
use document::Document;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the store.
    store: PathBuf,
    /// Name of a context; all by default. With a name, its layers and segments are listed.
    name: Option<String>,
    /// Only this layer, with the columns of its segments and their clusters.
    #[arg(long)]
    layer: Option<usize>,
    /// One JSON document, with everything.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let store = open_store(&arguments.store)?;
    let names = match &arguments.name {
        Some(name) => vec![name.clone()],
        None => store.contexts()?,
    };
    let document = Document::gather(arguments.store.display().to_string(), &store, &names, arguments.layer)?;
    if let Some(layer) = arguments.layer {
        let some = document.contexts.iter().any(|context| !context.layers.is_empty());
        ensure!(some || document.contexts.is_empty(), "no context has a layer {layer}");
    }
    if arguments.json {
        return output::print_document(&document);
    }
    output::print(&match (&arguments.name, arguments.layer) {
        (None, None) => table::overview(&document),
        (_, layer) => {
            document.contexts.iter().map(|context| table::context(context, layer.is_some())).collect()
        }
    })
}
