//! `cargo xtask test`: everything that must hold before a change goes in. Nothing of it can be left out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::command::CommandLine;
use crate::python::Python;
use crate::step::{self, Step};
use crate::workspace::Workspace;
use crate::{licences, model, ptx, tidy};

/// Runs all steps and prints their table.
///
/// # Errors
/// If the path of the given model cannot be resolved. Steps that fail make a failing exit code.
pub fn run(workspace: &Workspace, given_model: Option<&Path>) -> Result<ExitCode> {
    let given_model = given_model.map(resolve).transpose()?;
    let reports = step::run_all(steps(workspace, given_model));
    eprintln!("\n{}", step::summary(&reports));
    let has_failed = reports.iter().any(|report| report.outcome.is_err());
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Tests run in the directories of their packages: paths from the command line must not depend on where that is.
fn resolve(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

/// The steps in order, the quick ones first.
fn steps(workspace: &Workspace, given_model: Option<PathBuf>) -> Vec<Step<'_>> {
    let root = workspace.root.as_path();
    let data = workspace.data_directory();
    let model = given_model.clone().unwrap_or_else(|| model::path_in(&data));
    let model_rerun = match &given_model {
        Some(path) => CommandLine::cargo(&["xtask", "test", "--model"]).arg(path),
        None => CommandLine::cargo(&["xtask", "model"]),
    };
    let fetch = move || match given_model {
        Some(path) => model::expect_pinned(&path).map(|()| "the given file".to_owned()),
        None => model::fetch(&data, &Python::default()).map(|_| "verified".to_owned()),
    };
    vec![
        command_step("format", root, CommandLine::cargo(&["fmt", "--all", "--check"])),
        Step { name: "tidy", rerun: "cargo xtask tidy".into(), work: Box::new(move || tidy::run(root)) },
        command_step("clippy", root, clippy()),
        Step { name: "model", rerun: model_rerun.to_string(), work: Box::new(fetch) },
        Step {
            name: "ptx",
            rerun: "cargo xtask ptx --check".into(),
            work: Box::new(move || ptx::run(workspace, true).map(|()| "no spills".to_owned())),
        },
        test_step("tests", root, tests(&model)),
        test_step("doc tests", root, CommandLine::cargo(&["test", "--workspace", "--doc", "--no-fail-fast"])),
        command_step("docs", root, docs()),
        Step {
            name: "licences",
            rerun: "cargo xtask licences".into(),
            work: Box::new(move || licences::run(root)),
        },
    ]
}

fn clippy() -> CommandLine {
    CommandLine::cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])
}

/// All tests but those in documentation, those on the real model included.
fn tests(model: &Path) -> CommandLine {
    let targets = ["test", "--workspace", "--lib", "--bins", "--tests", "--examples", "--no-fail-fast"];
    CommandLine::cargo(&targets).args(&["--", "--include-ignored"]).env("LONGWAVE_MODEL", model)
}

fn docs() -> CommandLine {
    CommandLine::cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings")
}

fn command_step<'a>(name: &'static str, root: &'a Path, line: CommandLine) -> Step<'a> {
    Step { name, rerun: line.to_string(), work: Box::new(move || line.run(root).map(|()| String::new())) }
}

/// A step whose output is that of Rust's test harness. It fails if a test was passed over.
fn test_step<'a>(name: &'static str, root: &'a Path, line: CommandLine) -> Step<'a> {
    let rerun = line.to_string();
    let work = move || {
        let mut counts = TestCounts::default();
        let outcome = line.run_watched(root, |text| counts.add_line(text));
        outcome.with_context(|| counts.to_string())?;
        counts.expect_all_run()
    };
    Step { name, rerun, work: Box::new(work) }
}

/// Sums over the closing lines of all test binaries.
#[derive(Debug, Default, PartialEq)]
struct TestCounts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl TestCounts {
    /// Takes a line as `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; any other says nothing.
    fn add_line(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for part in counts.1.split("; ") {
            match part.split_once(' ').map(|(count, what)| (count.parse::<u64>(), what)) {
                Some((Ok(count), "passed")) => self.passed += count,
                Some((Ok(count), "failed")) => self.failed += count,
                Some((Ok(count), "ignored")) => self.ignored += count,
                _ => {}
            }
        }
    }

    /// The counts in words, or an error if a test was passed over.
    fn expect_all_run(&self) -> Result<String> {
        if self.ignored > 0 {
            bail!("{self}: every test must run here");
        }
        Ok(self.to_string())
    }
}

impl std::fmt::Display for TestCounts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let mut counts = TestCounts::default();
        for line in [
            "running 9 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            "test some::test ... ok",
            "test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            counts.add_line(line);
        }
        assert_eq!(counts, TestCounts { passed: 43, failed: 2, ignored: 1 });
    }

    #[test]
    fn real_model_tests_run_with_the_model_at_hand() {
        let line = tests(Path::new("/data/m.gguf")).to_string();
        assert!(line.starts_with("LONGWAVE_MODEL=/data/m.gguf cargo test --workspace"), "{line}");
        assert!(line.ends_with("-- --include-ignored"), "{line}");
    }

    #[test]
    fn warnings_of_lints_and_docs_are_errors() {
        assert!(clippy().to_string().contains("--all-targets -- --deny warnings"));
        assert!(docs().to_string().starts_with("RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps"));
    }

    #[test]
    fn each_step_says_how_to_run_it_alone() {
        let workspace = Workspace::locate().unwrap();
        let steps = steps(&workspace, None);
        let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
        assert_eq!(
            names,
            ["format", "tidy", "clippy", "model", "ptx", "tests", "doc tests", "docs", "licences"]
        );
        assert!(steps.iter().all(|step| step.rerun.contains("cargo ")));
    }

    #[test]
    fn a_test_that_is_passed_over_is_a_failure() {
        let all_run = TestCounts { passed: 3, failed: 0, ignored: 0 };
        assert_eq!(all_run.expect_all_run().unwrap(), "3 passed, 0 failed, 0 ignored");
        assert!(TestCounts { ignored: 1, ..all_run }.expect_all_run().is_err());
    }

    #[test]
    fn a_given_model_that_is_not_there_is_an_error() {
        assert!(
            resolve(Path::new("no/such/model.gguf")).unwrap_err().to_string().contains("no/such/model.gguf")
        );
    }
}
