//! The default text of the demo: the Python language reference, which every CPython carries.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::python::Python;
use crate::whole_file;

const PROGRAM: &str = "\
import sys
from pydoc_data.topics import topics
sys.stdout.buffer.write('\\n'.join(topics[key] for key in sorted(topics)).encode('utf-8'))
";

/// Makes sure that `directory` holds the text (some 465 KB), and returns its path. What is there already is kept, so
/// that a newer Python does not change the text under a committed context.
///
/// # Errors
/// If there is no Python or it lacks `pydoc_data`; the message says what to do.
pub fn fetch(directory: &Path, python: &Python) -> Result<PathBuf> {
    let path = directory.join("text.txt");
    if path.exists() {
        return Ok(path);
    }
    let text = python.evaluate(PROGRAM).context(
        "cannot read the default text, pydoc_data.topics of Python's standard library; pass --text FILE instead",
    )?;
    if text.is_empty() {
        bail!("pydoc_data.topics of this Python is empty; pass --text FILE instead");
    }
    whole_file::create(&path, |file| Ok(file.write_all(&text)?))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::python::stand_in;

    #[test]
    fn the_text_is_long_and_stays_as_it_was_first_written() {
        let directory = tempfile::tempdir().unwrap();
        let nested = directory.path().join("longwave");
        let path = fetch(&nested, &Python::default()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() > 300_000, "{} bytes", text.len());
        assert!(text.contains("The \"assert\" statement"));
        fs::write(&path, "kept").unwrap();
        fetch(&nested, &Python::default()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn a_python_without_the_text_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["without-pip", "wrong-wheel"] {
            let error = format!("{:#}", fetch(directory.path(), &stand_in(name)).unwrap_err());
            assert!(error.contains("pydoc_data.topics") && error.contains("--text"), "{name}: {error}");
        }
    }
}
