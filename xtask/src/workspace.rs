//! What cargo knows about the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The part of `cargo metadata` that is used here.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    pub workspace_root: PathBuf,
    pub target_directory: PathBuf,
}

/// One package, ours or a dependency, on whatever platform it is used.
#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// The licence expression of its manifest.
    pub license: Option<String>,
}

impl Metadata {
    /// Asks cargo; `options` as `--no-deps`.
    pub fn read(root: &Path, options: &[&str]) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1"])
            .args(options)
            .current_dir(root)
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cannot start cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed with {}", output.status);
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata printed something unexpected")
    }
}

/// Where things are.
#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    pub fn locate() -> Result<Self> {
        let metadata = Metadata::read(Path::new(env!("CARGO_MANIFEST_DIR")), &["--no-deps"])?;
        Ok(Self { root: metadata.workspace_root, target: metadata.target_directory })
    }

    /// Fetched models, texts and the demo's store: out of version control, and gone with `cargo clean`.
    pub fn data_directory(&self) -> PathBuf {
        self.target.join("longwave")
    }

    /// Where a release build leaves a binary of the workspace.
    pub fn release_binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_root_of_the_workspace() {
        let workspace = Workspace::locate().unwrap();
        assert!(workspace.root.join("xtask/src/workspace.rs").is_file());
    }
}
