//! Files in and out of the page cache, and what comes from the disk in between.

use anyhow::{Context as _, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// All files below `directory`.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut directories) = (Vec::new(), vec![directory.to_path_buf()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() { &mut directories } else { &mut found };
            list.push(entry.path());
        }
    }
    Ok(found)
}

/// Reads the files through, so that they are in the page cache as far as memory holds them.
pub(super) fn warm(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let read = File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()));
        read.with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(())
}

/// Asks the system to drop the files' pages. It keeps those that are mapped or not yet written, and a file system
/// in memory keeps all: whether pages are gone shows in [`bytes_read`] of who reads them next.
#[cfg(target_os = "linux")]
pub(super) fn drop_pages(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .with_context(|| format!("dropping the pages of {}", path.display()))?;
    }
    Ok(())
}

/// Elsewhere pages cannot be dropped file by file.
#[cfg(not(target_os = "linux"))]
pub(super) fn drop_pages(_: &[PathBuf]) -> Result<()> {
    Ok(())
}

/// Bytes that this process has fetched from disks so far, read-ahead and page faults included; `None` where the
/// system does not tell.
pub(super) fn bytes_read() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/self/io").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_at_every_depth() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        for name in ["x", "a/y", "a/b/z"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let mut found = files(directory.path()).unwrap();
        found.sort();
        assert_eq!(found, ["a/b/z", "a/y", "x"].map(|name| directory.path().join(name)));
        warm(&found).unwrap();
        drop_pages(&found).unwrap();
        assert_eq!(std::fs::read(directory.path().join("a/b/z")).unwrap(), b"a/b/z");
    }
}
