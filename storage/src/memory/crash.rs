//! What is left of files and names after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Content, Node, Tree};
use crate::names::parent;

/// How a process ends, and what a file system may make of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process is killed; the system lives and keeps every write.
    Kill,
    /// Power is lost; names and contents are as last synced.
    DropUnsynced,
    /// Power is lost; names are as they were, contents as last synced. Finds a rename before the sync of what it
    /// names.
    KeepNames,
    /// Power is lost; names as last synced, contents as they were.
    KeepContents,
    /// Power is lost while the system was writing: each directory's and each 512-byte sector's unsynced changes are
    /// there or not, as the seed decides.
    Torn {
        /// Decides what survives.
        seed: u64,
    },
}

/// Unit in which a device writes.
const SECTOR_SIZE: usize = 512;

pub(super) fn survivors(tree: &Tree, crash: Crash) -> Tree {
    let mut coin = Coin(if let Crash::Torn { seed } = crash { seed } else { 0 });
    let (mut dirs, mut files) = match crash {
        Crash::Kill | Crash::KeepNames => (tree.dirs.clone(), tree.files.clone()),
        Crash::DropUnsynced | Crash::KeepContents => (tree.durable_dirs.clone(), tree.durable_files.clone()),
        Crash::Torn { .. } => torn_names(tree, &mut coin),
    };
    // A name below a directory that is gone is gone too. Parents sort before what lies in them.
    let mut reachable = BTreeSet::from([String::new()]);
    dirs.retain(|dir| reachable.contains(parent(dir)) && reachable.insert(dir.clone()));
    files.retain(|path, _| reachable.contains(parent(path)));
    for node in files.values_mut() {
        let content = node.0.lock();
        let bytes = match crash {
            Crash::Kill | Crash::KeepContents => Arc::clone(&content.now),
            Crash::DropUnsynced | Crash::KeepNames => Arc::clone(&content.durable),
            Crash::Torn { .. } => Arc::new(torn_bytes(&content.durable, &content.now, &mut coin)),
        };
        drop(content);
        *node = Node(Arc::new(Mutex::new(Content { now: Arc::clone(&bytes), durable: bytes, region: None })));
    }
    Tree { durable_files: files.clone(), files, durable_dirs: dirs.clone(), dirs, ..Tree::default() }
}

/// A directory's unsynced changes reach the disk together or not at all, as with a journal.
fn torn_names(tree: &Tree, coin: &mut Coin) -> (BTreeSet<String>, BTreeMap<String, Node>) {
    let all = tree.files.keys().chain(tree.durable_files.keys()).chain(&tree.dirs).chain(&tree.durable_dirs);
    let kept: BTreeMap<&str, bool> = all
        .map(|path| parent(path))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|dir| (dir, coin.toss()))
        .collect();
    let newer = |path: &str| kept.get(parent(path)).copied().unwrap_or(false);
    let new_files = tree.files.iter().filter(|(path, _)| newer(path));
    let old_files = tree.durable_files.iter().filter(|(path, _)| !newer(path));
    let new_dirs = tree.dirs.iter().filter(|path| newer(path));
    let old_dirs = tree.durable_dirs.iter().filter(|path| !newer(path));
    (
        new_dirs.chain(old_dirs).cloned().collect(),
        new_files.chain(old_files).map(|(path, node)| (path.clone(), node.clone())).collect(),
    )
}

/// Each sector is old or new; past the old end, one that was not written reads as zeros or is not there at all.
fn torn_bytes(old: &[u8], new: &[u8], coin: &mut Coin) -> Vec<u8> {
    if old == new {
        return old.to_vec();
    }
    let mut sectors: Vec<(usize, bool)> =
        (0..new.len()).step_by(SECTOR_SIZE).map(|at| (at, coin.toss())).collect();
    // Half of the time the file's new length is lost from some point on.
    if coin.toss() {
        let kept = coin.below(sectors.len() + 1);
        sectors.truncate(kept);
    }
    let end = sectors.last().map_or(0, |(at, _)| (at + SECTOR_SIZE).min(new.len())).max(old.len());
    let mut torn = old.to_vec();
    torn.resize(end, 0);
    for (at, _) in sectors.iter().filter(|(_, written)| *written) {
        let range = *at..(at + SECTOR_SIZE).min(new.len());
        if let (Some(target), Some(source)) = (torn.get_mut(range.clone()), new.get(range)) {
            target.copy_from_slice(source);
        }
    }
    torn
}

/// SplitMix64: enough to decide which sectors survive, the same ones each time.
struct Coin(u64);

impl Coin {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn toss(&mut self) -> bool {
        self.next() & 1 == 1
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below a usize")]
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
