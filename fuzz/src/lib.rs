//! One function for each parser of bytes that come from outside. Each takes any bytes and must return: no panic, no
//! allocation that the bytes do not justify, no endless loop.
//!
//! The tests run them on the kept corpus (`corpus/TARGET/`, findings included) and on seeded mutations of it;
//! `cargo xtask fuzz` lets libFuzzer search. Where a format has checksums, the bytes are tried as they are and with
//! the checksums put right, so that what lies behind them is reached.

mod files;
mod mutate;
#[expect(clippy::unwrap_used, reason = "slices of eight bytes are eight bytes")]
#[path = "../../storage/tests/storage/reseal.rs"]
mod reseal;
mod stores;
#[expect(dead_code, reason = "the command uses more of it")]
#[path = "../../src/bin/longwave/trace.rs"]
mod trace;
mod traces;

pub use mutate::Mutator;

use longwave_storage::MemoryBackend;
use std::path::{Path, PathBuf};

/// A parser that is fed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in the corpus.
    pub name: &'static str,
    /// Feeds it once.
    pub run: fn(&[u8]),
    /// What it reads in ordinary life: where the search starts.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input worth trying, in bytes.
    pub size_max: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "store", run: files::store, seeds: files::store_seeds, size_max: 128 },
    Target { name: "manifest", run: files::manifest, seeds: files::manifest_seeds, size_max: 8192 },
    Target { name: "log", run: files::log, seeds: files::log_seeds, size_max: 12_288 },
    Target { name: "profile", run: files::profile, seeds: files::profile_seeds, size_max: 4096 },
    Target { name: "segment", run: files::segment, seeds: files::segment_seeds, size_max: 65_536 },
    Target { name: "index", run: files::index, seeds: files::index_seeds, size_max: 16_384 },
    Target { name: "state", run: stores::state, seeds: stores::state_seeds, size_max: 8192 },
    Target { name: "replay", run: stores::replay, seeds: stores::replay_seeds, size_max: 16_384 },
    Target { name: "context", run: stores::context, seeds: stores::context_seeds, size_max: 65_536 },
    Target { name: "prefixes", run: stores::prefixes, seeds: stores::prefixes_seeds, size_max: 4096 },
    Target { name: "trace", run: traces::trace, seeds: traces::trace_seeds, size_max: 8192 },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The kept inputs of a target.
pub fn corpus_directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The store that is damaged: the fixture of the format version that this build writes, in memory.
///
/// # Panics
/// If the fixture cannot be read.
pub fn golden() -> MemoryBackend {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v3-segment2");
    let memory = MemoryBackend::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).expect("the fixture is there").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if entry.path().is_dir() {
                longwave_storage::Backend::create_dir_all(&memory, &path).expect("a plain name");
                dirs.push(path);
            } else {
                let bytes = std::fs::read(entry.path()).expect("a readable file");
                memory.replace(&path, &bytes).expect("a plain name");
            }
        }
    }
    memory
}

/// Files of the golden store whose path ends so.
fn golden_files(suffix: &str) -> Vec<Vec<u8>> {
    let memory = golden();
    let files = memory.files().into_iter().filter(|path| path.ends_with(suffix));
    files.filter_map(|path| memory.contents(&path).ok()).collect()
}
