//! SHA-256 of files, against what they are pinned to.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// A writer that hashes what goes through it.
pub struct Hashing<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Hashing<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new() }
    }

    /// The SHA-256 of everything written, in lower-case hexadecimal.
    pub fn finish(self) -> String {
        self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.digest.update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Copies `from` to `to` and returns the SHA-256 of what was copied.
pub fn copy_hashed(from: &mut impl Read, to: impl Write) -> io::Result<String> {
    let mut hashing = Hashing::new(to);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            read => hashing.write_all(&buffer[..read])?,
        }
    }
    hashing.flush()?;
    Ok(hashing.finish())
}

/// Compares a digest with the pinned one.
pub fn expect(what: &str, expected: &str, found: &str) -> Result<()> {
    if found != expected {
        bail!("{what} is not the file that is pinned here: SHA-256 expected {expected}, found {found}");
    }
    Ok(())
}

/// Checks that the file at `path` has the SHA-256 `expected`.
///
/// # Errors
/// If it cannot be read or differs; the error names the file and both digests.
pub fn expect_file(path: &Path, expected: &str) -> Result<()> {
    let shown = path.display().to_string();
    let mut file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let found = copy_hashed(&mut file, io::sink()).with_context(|| format!("cannot read {shown}"))?;
    expect(&shown, expected, &found)
}

#[cfg(test)]
pub fn sha256(bytes: &[u8]) -> String {
    copy_hashed(&mut &bytes[..], io::sink()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn it_is_sha_256() {
        assert_eq!(sha256(b"abc"), ABC);
    }

    #[test]
    fn copying_keeps_the_bytes_of_long_files() {
        let bytes: Vec<u8> = (0..(2 << 20) + 7).map(|index| (index % 251) as u8).collect();
        let mut copy = Vec::new();
        let digest = copy_hashed(&mut &bytes[..], &mut copy).unwrap();
        assert!(copy == bytes);
        assert_eq!(digest, sha256(&copy));
    }

    #[test]
    fn a_wrong_file_fails_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, b"abc").unwrap();
        expect_file(&path, ABC).unwrap();
        std::fs::write(&path, b"abd").unwrap();
        let error = expect_file(&path, ABC).unwrap_err().to_string();
        for part in ["model.gguf", ABC, &sha256(b"abd")] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }
}
