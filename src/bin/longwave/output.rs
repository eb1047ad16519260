//! Results on standard output. A reader that goes away (`longwave inspect STORE | head`) is no failure.

use anyhow::Result;
use std::io::{ErrorKind, Write};

/// Writes `text`, which ends with a line break.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes one JSON document, indented.
pub(crate) fn print_document(document: &impl serde::Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(document)? + "\n"))
}

/// Writes one JSON object a line.
pub(crate) fn print_lines(objects: &[impl serde::Serialize]) -> Result<()> {
    let lines: Vec<String> = objects.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    print(&lines.into_iter().map(|line| line + "\n").collect::<String>())
}
