//! Child processes that can be shown as the line one would type.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// A command line with the environment it needs; `Display` gives it as a shell would take it.
#[derive(Clone, Debug)]
pub struct CommandLine {
    program: OsString,
    shown_as: String,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

impl CommandLine {
    /// A program by path or name.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref().to_owned();
        let shown_as = quoted(&program);
        Self { program, shown_as, arguments: Vec::new(), environment: Vec::new() }
    }

    /// The cargo that runs this task, so that its toolchain is the one of the whole run.
    pub fn cargo(arguments: &[&str]) -> Self {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Self { shown_as: "cargo".into(), ..Self::new(program) }.args(arguments)
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args(self, arguments: &[&str]) -> Self {
        arguments.iter().fold(self, Self::arg)
    }

    pub fn env(mut self, variable: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((variable, value.as_ref().to_owned()));
        self
    }

    /// Runs in `directory`, output straight to ours.
    ///
    /// # Errors
    /// If the program cannot be started or its exit status is not success.
    pub fn run(&self, directory: &Path) -> Result<()> {
        let status = self.command(directory).status().with_context(|| format!("cannot start {self}"))?;
        self.expect_success(status)
    }

    /// Runs in `directory`, and gives the exit status and what went to standard output; errors go straight to ours.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn output(&self, directory: &Path) -> Result<(ExitStatus, String)> {
        let child = self.command(directory).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = child.with_context(|| format!("cannot start {self}"))?;
        Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// As [`run`](Self::run), and hands every line of standard output to `watch` after passing it on.
    pub fn run_watched(&self, directory: &Path, mut watch: impl FnMut(&str)) -> Result<()> {
        let mut child = self
            .command(directory)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {self}"))?;
        if let Some(output) = child.stdout.take() {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line)? > 0 {
                let mut ours = std::io::stdout().lock();
                ours.write_all(&line)?;
                ours.flush()?;
                watch(String::from_utf8_lossy(&line).trim_end());
                line.clear();
            }
        }
        self.expect_success(child.wait()?)
    }

    fn command(&self, directory: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(directory);
        command.envs(self.environment.iter().map(|(variable, value)| (variable, value)));
        command
    }

    fn expect_success(&self, status: ExitStatus) -> Result<()> {
        if !status.success() {
            bail!("{status} from: {self}");
        }
        Ok(())
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (variable, value) in &self.environment {
            write!(formatter, "{variable}={} ", quoted(value))?;
        }
        write!(formatter, "{}", self.shown_as)?;
        self.arguments.iter().try_for_each(|argument| write!(formatter, " {}", quoted(argument)))
    }
}

/// `word` as a POSIX shell reads it back; unchanged if it has nothing that a shell would interpret.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_what_one_would_type() {
        let line = CommandLine::new("prog").env("FLAGS", "-D warnings").args(&["a b", "--", "it's", ""]);
        assert_eq!(line.to_string(), r"FLAGS='-D warnings' prog 'a b' -- 'it'\''s' ''");
    }

    #[test]
    fn a_failing_exit_status_is_an_error_that_names_the_command() {
        let line = CommandLine::cargo(&["no-such-subcommand-of-cargo"]);
        let error = line.run(Path::new(".")).unwrap_err().to_string();
        assert!(error.contains("cargo no-such-subcommand-of-cargo"), "{error}");
    }

    #[test]
    fn a_missing_program_is_an_error_that_names_it() {
        let error = CommandLine::new("./no/such/program").run(Path::new(".")).unwrap_err().to_string();
        assert!(error.contains("cannot start ./no/such/program"), "{error}");
    }

    #[test]
    fn watching_sees_each_line() {
        let mut lines = Vec::new();
        let line = CommandLine::cargo(&["--version", "--verbose"]);
        line.run_watched(Path::new("."), |text| lines.push(text.to_owned())).unwrap();
        assert!(lines[0].starts_with("cargo "), "{lines:?}");
        assert!(lines.iter().any(|text| text.starts_with("release: ")), "{lines:?}");
    }
}
