//! Tasks of the workspace, run as `cargo xtask <task>`. Each does its own set-up, so that a fresh clone needs nothing
//! but Rust and Python: [`suite`] tests everything, [`demo`] shows the engine on a real model, [`peers`] times it beside others.

mod bars;
mod command;
mod demo;
mod digest;
mod gpu;
mod licences;
mod model;
mod peers;
mod ptx;
mod python;
mod step;
mod suite;
mod text;
mod tidy;
mod trials;
mod whole_file;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::demo::DemoOptions;
use crate::peers::PeersOptions;
use crate::python::Python;
use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Set-up, tests and demo of Longwave")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, PartialEq, Subcommand)]
enum Task {
    /// Run every check and every test, those on the real model included
    Test {
        /// A copy of the model file to use instead of fetching it (it must be the very same file)
        #[arg(long, value_name = "FILE.gguf")]
        model: Option<PathBuf>,
    },
    /// Prefill a long text on a real model, then go on decoding from the store in a second process
    Demo(DemoOptions),
    /// Measure beside others
    #[command(subcommand)]
    Bench(Bench),
    /// Fetch the model of the tests and the demo, and print where it is
    Model,
    /// Compile the CUDA kernels to the PTX that is in version control, and report registers and spills
    Ptx {
        /// Compare the PTX with the sources instead of writing it
        #[arg(long)]
        check: bool,
    },
    /// On a machine with a GPU: test the kernels and whole calls on it, and time them (exit code 3 where there is none)
    Gpu,
    /// Check the rules of the code base that the compiler does not know
    Tidy,
    /// Check the licences of all dependencies
    Licences,
    /// Crash the store at every operation in every way, kill its processes, flip every bit and cut every length
    Crash,
    /// Feed every parser of untrusted bytes with libFuzzer (needs a nightly compiler and a C++ compiler)
    Fuzz {
        /// Time in all, shared evenly by the targets
        #[arg(long, default_value_t = 20.0, value_parser = minutes)]
        minutes: f64,
        /// One target only; the targets are the directories of fuzz/corpus
        #[arg(long)]
        target: Option<String>,
    },
    /// Let writers, readers and removals work on one store from several threads and processes, every answer checked
    Soak {
        /// How long
        #[arg(long, default_value_t = 10.0, value_parser = minutes)]
        minutes: f64,
    },
    /// Try every interleaving of a writer and a reader of the published snapshot
    Loom,
    /// Run the tests of what has `unsafe` under the address sanitizer (needs a nightly compiler)
    Sanitize,
    /// Run the tests of what has `unsafe` under valgrind (which must be installed)
    Valgrind,
}

#[derive(Debug, PartialEq, Subcommand)]
enum Bench {
    /// Time attention of PyTorch, and faiss retrieval with attention over what it finds, in turn with ours
    Peers(PeersOptions),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Test { model } => return suite::run(&workspace, model.as_deref()),
        Task::Gpu => return gpu::run(&workspace),
        Task::Demo(options) => demo::run(&workspace, &options)?,
        Task::Bench(Bench::Peers(options)) => peers::run(&workspace, &options)?,
        Task::Model => {
            println!("{}", model::fetch(&workspace.data_directory(), &Python::default())?.display())
        }
        Task::Ptx { check } => ptx::run(&workspace, check)?,
        Task::Tidy => println!("{}", tidy::run(&workspace.root)?),
        Task::Licences => println!("{}", licences::run(&workspace.root)?),
        Task::Crash => println!("{}", trials::crash(&workspace.root)?),
        Task::Fuzz { minutes, target } => {
            println!("{}", trials::fuzz(&workspace, minutes, target.as_deref())?)
        }
        Task::Soak { minutes } => println!("{}", trials::soak(&workspace.root, minutes)?),
        Task::Loom => println!("{}", trials::loom(&workspace)?),
        Task::Sanitize => println!("{}", trials::sanitize(&workspace)?),
        Task::Valgrind => println!("{}", trials::valgrind(&workspace.root)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// A time above zero, and at most a week.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if minutes > 0.0 && minutes <= 10_080.0 { Ok(minutes) } else { Err("above 0, at most 10080".into()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Task, clap::Error> {
        let arguments = ["xtask"].iter().chain(arguments);
        Cli::try_parse_from(arguments).map(|cli| cli.task)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn demo_has_defaults() {
        let expected = DemoOptions { model: None, text: None, tokens: 8192, fresh: false };
        assert_eq!(parse(&["demo"]).unwrap(), Task::Demo(expected));
    }

    #[test]
    fn demo_takes_its_options() {
        let line = ["demo", "--fresh", "--model", "m.gguf", "--tokens", "4096", "--text", "t.txt"];
        let expected = DemoOptions {
            model: Some("m.gguf".into()),
            text: Some("t.txt".into()),
            tokens: 4096,
            fresh: true,
        };
        assert_eq!(parse(&line).unwrap(), Task::Demo(expected));
    }

    #[test]
    fn senseless_lines_are_refused() {
        for line in [
            &["demo", "--tokens", "0"][..],
            &["demo", "--tokens", "many"],
            &["test", "--fresh"],
            &["bench"],
            &["soak", "--minutes", "0"],
            &[],
        ] {
            assert!(parse(line).is_err(), "{line:?} was accepted");
        }
    }
}
