//! The `longwave` command, run as a user runs it: on a small synthetic trace that the tests write.

mod bad_input;
mod bench;
mod check;
mod compare;
mod contexts;
mod ladder;
mod moment;
mod spending;
mod store;
mod trace;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use trace::Trace;

/// A directory with a trace in it.
struct Setting {
    dir: TempDir,
}

impl Setting {
    fn new(trace: &Trace) -> Setting {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("trace.safetensors"), trace.file()).unwrap();
        Setting { dir }
    }

    /// A setting with the trace imported as context `manual` of the store `store`.
    fn imported() -> Setting {
        let setting = Setting::new(&Trace::default());
        setting.succeed(&["import", "trace.safetensors", "store", "manual"]);
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longwave"));
        command
            .current_dir(self.dir.path())
            .args(arguments)
            .env_remove("LONGWAVE_LOG")
            .env_remove("LONGWAVE_ISA");
        command.output().unwrap()
    }

    /// Runs a command that must succeed, and gives its standard output.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must succeed and print one JSON document.
    fn document(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }

    /// Runs a command that must succeed and print JSON objects, one a line.
    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        self.succeed(arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs a command that must be refused: exit 2, a message of one or more lines with `message` in it, nothing on
    /// standard output, and no panic.
    fn refused(&self, arguments: &[&str], message: &str) {
        let output = self.run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error:?} does not say {message:?}");
        assert!(!error.contains("panicked"), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", text(&output.stdout));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The keys of a JSON object must be exactly these.
fn assert_keys(object: &Value, expected: &str) {
    let found: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, expected.split_whitespace().collect(), "{object}");
}

/// Names of the files in a directory, sorted.
fn files(dir: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.collect::<BTreeSet<_>>().into_iter().collect()
}
