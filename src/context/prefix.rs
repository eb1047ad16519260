//! What a context's commits tell the index of prefixes.

use super::Context;
use crate::store::{BLOCK, Chain, Note, chains, seed};

/// Token ids as blocks, and how many of them the index knows.
#[derive(Debug, Default)]
pub(super) struct Prefix {
    /// Hashes of the whole blocks.
    chains: Vec<Chain>,
    /// Ids that the last commit has and this writer still has.
    committed: u64,
    /// Ids that the index knows.
    noted: u64,
    /// Whether it knows more, or others.
    stale: bool,
    /// The context whose ids those are, if the index has none of this one yet.
    base: Option<[u8; 16]>,
}

impl Prefix {
    /// Of a context with so many ids, which the index knows.
    pub(super) fn known(ids: u64) -> Self {
        Prefix { committed: ids, noted: ids, ..Prefix::default() }
    }

    /// Of a fork with so many ids of `base`. Those behind the last block are its own to tell.
    pub(super) fn forked(ids: u64, base: [u8; 16]) -> Self {
        let noted = ids / BLOCK as u64 * BLOCK as u64;
        Prefix { noted, stale: ids > 0, base: (noted > 0).then_some(base), ..Prefix::default() }
    }

    pub(super) fn truncate(&mut self, length: u64) {
        self.chains.truncate((length / BLOCK as u64) as usize);
        self.stale |= self.noted > length;
        self.noted = self.noted.min(length);
        self.committed = self.committed.min(length);
    }
}

impl Context {
    /// Brings the hashes up to the last whole block of ids.
    pub(super) fn hash_tokens(&mut self) {
        let known = self.prefix.chains.len();
        let before = self.prefix.chains.last().copied().unwrap_or_else(|| self.prefix_seed());
        let fresh = chains(before, &self.tokens[known * BLOCK..]);
        self.prefix.chains.extend(fresh);
    }

    /// The hash of all whole blocks, as of the last [`Self::hash_tokens`].
    pub(super) fn prefix_hash(&self) -> [u8; 16] {
        if self.tokens.is_empty() {
            return [0; 16];
        }
        self.prefix.chains.last().copied().unwrap_or_else(|| self.prefix_seed()).to_le_bytes()
    }

    fn prefix_seed(&self) -> Chain {
        seed(&self.model.digest(), &self.options.extra)
    }

    /// Tells the index what a commit has made known, once it is a block or more: the rest when the writer goes.
    pub(super) fn note_commit(&mut self) {
        self.prefix.committed = self.tokens.len() as u64;
        let blocks = |ids: u64| ids / BLOCK as u64;
        if self.prefix.stale || blocks(self.prefix.committed) != blocks(self.prefix.noted) {
            self.note();
        }
    }

    /// Tells the index the committed ids that it does not know.
    pub(super) fn note(&mut self) {
        let committed = self.prefix.committed;
        if committed == self.prefix.noted && !self.prefix.stale {
            return;
        }
        let first = self.prefix.noted.min(committed) / BLOCK as u64 * BLOCK as u64;
        let note = Note {
            context: self.id,
            name: self.name.clone(),
            seed: self.prefix_seed(),
            base: self.prefix.base.unwrap_or_default(),
            first,
            ids: self.tokens[first as usize..committed as usize].to_vec(),
        };
        if self.store.note_prefix(&note) {
            self.prefix.noted = committed;
            self.prefix.stale = false;
            self.prefix.base = None;
        }
    }
}
