//! Opening stores that are there already: looking at a store never makes one.

use anyhow::{Context as _, Result, ensure};
use longwave::storage::STORE_FILE;
use longwave::{Store, StoreOptions};
use std::path::Path;

/// Opens the store in `path`.
pub(crate) fn open_store(path: &Path) -> Result<Store> {
    ensure!(
        path.join(STORE_FILE).exists(),
        "{} holds no store: there is no file {STORE_FILE} in it",
        path.display()
    );
    let mut options = StoreOptions::default();
    options.ignore_uses = true;
    Store::open(path, options).with_context(|| format!("opening store {}", path.display()))
}
