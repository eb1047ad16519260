//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Makes the file at `path`, or replaces it, with what `write` puts into it. If `write` fails, `path` stays as it was.
///
/// # Errors
/// That of `write`, or of the file system.
pub fn create(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let named = || format!("cannot write {}", path.display());
    let directory = path.parent().with_context(named)?;
    fs::create_dir_all(directory).with_context(named)?;
    // A directory and not a temporary file, which only its owner could read.
    let aside = TempDir::with_prefix_in("writing-", directory).with_context(named)?;
    let unfinished = aside.path().join("file");
    let mut file = File::create(&unfinished).with_context(named)?;
    write(&mut file)?;
    file.sync_all().with_context(named)?;
    fs::rename(&unfinished, path).with_context(named)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use anyhow::bail;

    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nested/text.txt");
        create(&path, |file| Ok(file.write_all(b"first")?)).unwrap();
        let fails = create(&path, |file| {
            file.write_all(b"sec")?;
            bail!("broke off")
        });
        assert_eq!(fails.unwrap_err().to_string(), "broke off");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        create(&path, |file| Ok(file.write_all(b"second")?)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
    }
}
