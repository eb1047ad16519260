//! `cargo xtask demo`: the main job of the engine, on a real model and a real text, in two processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::CommandLine;
use crate::python::Python;
use crate::workspace::Workspace;
use crate::{model, step, text};

/// Tokens that the second process goes on with, both generated and, for perplexity, of the text.
const CONTINUE_TOKENS: u32 = 512;

#[derive(Args, Debug, PartialEq)]
pub struct DemoOptions {
    /// A Llama-family GGUF model to use instead of fetching the default one
    #[arg(long, value_name = "FILE.gguf")]
    pub model: Option<PathBuf>,
    /// A text to use instead of the Python language reference
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens of the text to prefill
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Delete the demo's store first, so that the prefill is run again
    #[arg(long)]
    pub fresh: bool,
}

/// Builds, fetches what is missing, and runs both processes. The last thing on standard output is the table that the
/// second one prints.
///
/// # Errors
/// If any of this fails; the message names the command, or says what to do.
pub fn run(workspace: &Workspace, options: &DemoOptions) -> Result<()> {
    let start = Instant::now();
    let inputs = Inputs::gather(workspace, options)?;
    let build = ["build", "--release", "--package", "longwave", "--package", "longwave-candle"];
    run_shown(workspace, &CommandLine::cargo(&build))?;
    if options.fresh {
        remove_store(&inputs.store)?;
    }
    let client = workspace.release_binary("longwave-candle");
    run_shown(workspace, &inputs.prefill(&client))?;
    run_shown(workspace, &inputs.decode(&client))?;
    eprintln!("\nThe store is {}; look into it with:", inputs.store.display());
    let inspect = CommandLine::new(workspace.release_binary("longwave")).arg("inspect").arg(&inputs.store);
    eprintln!("    {inspect}\nThe demo took {}, build included.", step::shown(start.elapsed()));
    Ok(())
}

fn run_shown(workspace: &Workspace, line: &CommandLine) -> Result<()> {
    eprintln!("\n$ {line}");
    line.run(&workspace.root)
}

fn remove_store(store: &Path) -> Result<()> {
    if store.exists() {
        fs::remove_dir_all(store).with_context(|| format!("cannot delete {}", store.display()))?;
    }
    Ok(())
}

/// What both processes are given. Paths are absolute: the processes run at the root of the workspace.
#[derive(Debug)]
struct Inputs {
    model: PathBuf,
    text: PathBuf,
    store: PathBuf,
    tokens: u32,
}

impl Inputs {
    fn gather(workspace: &Workspace, options: &DemoOptions) -> Result<Self> {
        let data = workspace.data_directory();
        let python = Python::default();
        // Given files are looked at first, so that a slip of the pen costs no download.
        let given_model = options.model.as_deref().map(given).transpose()?;
        let given_text = options.text.as_deref().map(given).transpose()?;
        Ok(Self {
            model: given_model.map_or_else(|| model::fetch(&data, &python), Ok)?,
            text: given_text.map_or_else(|| text::fetch(&data, &python), Ok)?,
            store: data.join("demo-store"),
            tokens: options.tokens,
        })
    }

    /// The first process. It sees by itself whether the context of this model and text is committed already.
    fn prefill(&self, client: &Path) -> CommandLine {
        self.shared_arguments(CommandLine::new(client).arg("prefill"))
    }

    /// The second process.
    fn decode(&self, client: &Path) -> CommandLine {
        self.shared_arguments(CommandLine::new(client).arg("decode"))
            .arg("--continue")
            .arg(CONTINUE_TOKENS.to_string())
    }

    fn shared_arguments(&self, line: CommandLine) -> CommandLine {
        line.arg("--model")
            .arg(&self.model)
            .arg("--text")
            .arg(&self.text)
            .arg("--store")
            .arg(&self.store)
            .args(&["--name", "demo", "--tokens"])
            .arg(self.tokens.to_string())
    }
}

/// The absolute path of a file from the command line.
fn given(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        Inputs { model: "/m.gguf".into(), text: "/t.txt".into(), store: "/d/demo-store".into(), tokens: 4096 }
    }

    #[test]
    fn both_processes_get_the_same_context() {
        let shared = "--model /m.gguf --text /t.txt --store /d/demo-store --name demo --tokens 4096";
        let client = Path::new("/bin/longwave-candle");
        let prefill = inputs().prefill(client).to_string();
        assert_eq!(prefill, format!("/bin/longwave-candle prefill {shared}"));
        let decode = inputs().decode(client).to_string();
        assert_eq!(decode, format!("/bin/longwave-candle decode {shared} --continue 512"));
    }

    #[test]
    fn a_given_file_that_is_not_there_is_named_before_anything_is_fetched() {
        let workspace = Workspace::locate().unwrap();
        let options =
            DemoOptions { model: None, text: Some("no/such/text.txt".into()), tokens: 1, fresh: false };
        let error = Inputs::gather(&workspace, &options).unwrap_err().to_string();
        assert!(error.contains("no/such/text.txt"), "{error}");
    }

    #[test]
    fn a_fresh_start_deletes_the_store_and_bears_its_absence() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("demo-store");
        fs::create_dir_all(store.join("segments")).unwrap();
        remove_store(&store).unwrap();
        assert!(!store.exists());
        remove_store(&store).unwrap();
    }
}
