//! The index of prefixes in memory: which context begins with which token ids.
//!
//! A context's ids are cut into blocks of [`BLOCK`]; the hash of a block chains that of the block before it, from one of
//! the model and the engine's extra bytes. A context owns the blocks that its records hold; a fork owns those behind the
//! place where it left the other, and takes those before it over. Ids themselves stay in the file.

use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_128;

/// Token ids of a block.
pub(crate) const BLOCK: usize = 64;
/// Contexts that are compared id by id where a prefix ends, the newest first.
const CANDIDATES_MAX: usize = 64;

/// A hash of everything up to the end of a block.
pub(crate) type Chain = u128;

/// Where chains of a model begin.
pub(crate) fn seed(identity: &longwave_storage::Identity, extra: &[u8]) -> Chain {
    xxh3_128(&[b"longwave prefix 1".as_slice(), &identity.0, extra].concat())
}

/// The hashes of the whole blocks of `ids` behind `chain`.
pub(crate) fn chains(mut chain: Chain, ids: &[u32]) -> Vec<Chain> {
    let mut bytes = [0; 16 + 4 * BLOCK];
    let blocks = ids.chunks_exact(BLOCK);
    blocks
        .map(|block| {
            bytes[..16].copy_from_slice(&chain.to_le_bytes());
            for (bytes, id) in bytes[16..].chunks_exact_mut(4).zip(block) {
                bytes.copy_from_slice(&id.to_le_bytes());
            }
            chain = xxh3_128(&bytes);
            chain
        })
        .collect()
}

/// One record of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) context: [u8; 16],
    /// Empty when the context is gone.
    pub(crate) name: String,
    pub(crate) seed: Chain,
    /// The context whose blocks before `first` this one has, if they are not its own.
    pub(crate) base: [u8; 16],
    /// Position of the first id, a multiple of [`BLOCK`].
    pub(crate) first: u64,
    pub(crate) ids: Vec<u32>,
}

/// Ids that lie one behind the other in the file.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u64,
    count: u64,
    /// Offset of the first id in the file.
    offset: u64,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) context: [u8; 16],
    pub(crate) name: String,
    seed: Chain,
    /// Whose blocks those before `own` are.
    base: Option<u32>,
    /// The first block that is its own.
    own: u64,
    chains: Vec<Chain>,
    spans: Vec<Span>,
    pub(crate) length: u64,
    alive: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) entries: Vec<Entry>,
    by_context: HashMap<[u8; 16], u32>,
    /// By the hash at its end: who owns the block.
    owners: HashMap<Chain, Vec<u32>>,
    /// By the hash at the end of the block before: whose own blocks begin there.
    starts: HashMap<Chain, Vec<u32>>,
}

impl Index {
    /// Takes a record; its ids lie at `offset` in the file. `false` if it goes with none before it.
    pub(crate) fn take(&mut self, note: &Note, offset: u64) -> bool {
        let known = self.by_context.get(&note.context).copied();
        if note.name.is_empty() {
            if let Some(slot) = known {
                self.forget(slot);
            }
            return true;
        }
        let block = note.first / BLOCK as u64;
        let slot = match known {
            Some(slot) => slot,
            None => {
                let base = self.by_context.get(&note.base).copied();
                if block > 0 && base.is_none_or(|base| self.chain_at(base, block).is_none()) {
                    return false;
                }
                let slot = self.entries.len() as u32;
                self.entries.push(Entry {
                    context: note.context,
                    name: String::new(),
                    seed: note.seed,
                    base: base.filter(|_| block > 0),
                    own: block,
                    chains: Vec::new(),
                    spans: Vec::new(),
                    length: note.first,
                    alive: true,
                });
                self.by_context.insert(note.context, slot);
                slot
            }
        };
        let entry = &mut self.entries[slot as usize];
        if note.first > entry.length || note.seed != entry.seed {
            return false;
        }
        // Cut into blocks of the base: fewer of them are taken over.
        entry.own = entry.own.min(block);
        entry.chains.truncate((block - entry.own) as usize);
        entry.spans.retain(|span| span.first < note.first);
        if let Some(last) = entry.spans.last_mut() {
            last.count = last.count.min(note.first - last.first);
        }
        entry.name.clone_from(&note.name);
        entry.length = note.first + note.ids.len() as u64;
        entry.spans.push(Span { first: note.first, count: note.ids.len() as u64, offset });
        let before = self.chain_at(slot, block).unwrap_or(note.seed);
        let fresh = chains(before, &note.ids);
        if block == self.entries[slot as usize].own {
            let list = self.starts.entry(before).or_default();
            if list.last() != Some(&slot) {
                list.push(slot);
            }
        }
        for chain in &fresh {
            let list = self.owners.entry(*chain).or_default();
            if list.last() != Some(&slot) {
                list.push(slot);
            }
        }
        self.entries[slot as usize].chains.extend(fresh);
        true
    }

    /// Its blocks stay for those that have taken them over.
    pub(crate) fn forget(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        entry.alive = false;
        self.by_context.remove(&entry.context);
    }

    /// The hash of the first `blocks` blocks of a context; `None` if it has fewer.
    pub(crate) fn chain_at(&self, slot: u32, blocks: u64) -> Option<Chain> {
        let mut slot = slot;
        loop {
            let entry = &self.entries[slot as usize];
            if blocks == 0 {
                return Some(entry.seed);
            }
            if blocks > entry.own {
                return entry.chains.get((blocks - entry.own - 1) as usize).copied();
            }
            slot = entry.base?;
        }
    }

    /// Where the id at `position` lies in the file, and how many lie there one behind the other.
    pub(crate) fn place(&self, slot: u32, position: u64) -> Option<(u64, u64)> {
        let mut slot = slot;
        loop {
            let entry = &self.entries[slot as usize];
            if position >= entry.own * BLOCK as u64 {
                let span = entry.spans.iter().rev().find(|span| span.first <= position)?;
                let left = (span.first + span.count).checked_sub(position).filter(|left| *left > 0)?;
                return Some((span.offset + 4 * (position - span.first), left));
            }
            slot = entry.base?;
        }
    }

    /// Contexts that begin with as many whole blocks of `ids` as any does, the newest first, and how many blocks.
    pub(crate) fn candidates(&self, seed: Chain, ids: &[u32]) -> Option<(u64, Vec<u32>)> {
        let wanted = chains(seed, ids);
        for blocks in (0..=wanted.len()).rev() {
            let chain = if blocks == 0 { seed } else { wanted[blocks - 1] };
            let lists = [self.owners.get(&chain), self.starts.get(&chain)];
            let mut slots: Vec<u32> = lists.into_iter().flatten().flatten().copied().collect();
            slots.retain(|&slot| {
                self.entries[slot as usize].alive && self.chain_at(slot, blocks as u64) == Some(chain)
            });
            slots.sort_unstable_by(|a, b| b.cmp(a));
            slots.dedup();
            slots.truncate(CANDIDATES_MAX);
            if !slots.is_empty() {
                return Some((blocks as u64, slots));
            }
            // A fork may be all that is left of a context that is gone.
            if let Some(heir) = self.heir(chain, blocks as u64) {
                return Some((blocks as u64, vec![heir]));
            }
        }
        None
    }

    /// A context that has taken over a block whose owners are gone.
    fn heir(&self, chain: Chain, blocks: u64) -> Option<u32> {
        if blocks == 0 || !self.owners.contains_key(&chain) {
            return None;
        }
        let alive = (0..self.entries.len() as u32).rev().filter(|&slot| self.entries[slot as usize].alive);
        alive.into_iter().find(|&slot| self.chain_at(slot, blocks) == Some(chain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(context: u8, base: u8, first: u64, ids: Vec<u32>) -> Note {
        let (context, base) = ([context; 16], [base; 16]);
        Note { context, name: format!("c{}", context[0]), seed: 7, base, first, ids }
    }

    fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
        range.map(|id| id * 3 + 1).collect()
    }

    #[test]
    fn the_context_with_most_blocks_in_common_is_found() {
        let mut index = Index::default();
        assert!(index.take(&note(1, 0, 0, ids(0..200)), 1000));
        assert!(index.take(&note(2, 0, 0, [ids(0..128), ids(500..600)].concat()), 3000));
        let found = |index: &Index, wanted: &[u32]| index.candidates(7, wanted);
        assert_eq!(found(&index, &ids(0..200)), Some((3, vec![0])));
        assert_eq!(found(&index, &[ids(0..128), ids(500..700)].concat()), Some((3, vec![1])));
        assert_eq!(found(&index, &ids(0..150)), Some((2, vec![1, 0])));
        assert_eq!(found(&index, &ids(0..5)), Some((0, vec![1, 0])));
        assert_eq!(index.candidates(8, &ids(0..200)), None);
        assert_eq!(index.place(0, 130), Some((1000 + 520, 70)));
        assert_eq!((index.place(0, 200), index.place(1, 227)), (None, Some((3000 + 908, 1))));
    }

    #[test]
    fn forks_take_blocks_over_and_outlive_what_they_left() {
        let mut index = Index::default();
        index.take(&note(1, 0, 0, ids(0..300)), 1000);
        // Left at 150: its own ids begin with the block in which it did.
        assert!(index.take(&note(2, 1, 128, [ids(128..150), ids(900..1000)].concat()), 9000));
        let own = [ids(0..150), ids(900..1000)].concat();
        assert_eq!(index.candidates(7, &own), Some((3, vec![1])));
        assert_eq!(index.candidates(7, &ids(0..140)), Some((2, vec![1, 0])));
        assert_eq!((index.place(1, 10), index.place(1, 129)), (Some((1040, 290)), Some((9004, 121))));
        index.take(&Note { name: String::new(), ..note(1, 0, 0, vec![]) }, 0);
        assert_eq!(index.candidates(7, &ids(0..300)), Some((2, vec![1])));
        assert_eq!(index.candidates(7, &ids(0..70)), Some((1, vec![1])), "the heir of a block");
        assert!(!index.take(&note(3, 1, 64, vec![]), 0), "of a base that is gone");
    }

    #[test]
    fn a_context_that_was_cut_is_not_found_by_what_it_had() {
        let mut index = Index::default();
        index.take(&note(1, 0, 0, ids(0..256)), 1000);
        index.take(&note(1, 0, 64, [ids(64..100), ids(700..800)].concat()), 8000);
        assert_eq!(index.candidates(7, &ids(0..256)), Some((1, vec![0])));
        assert_eq!(index.candidates(7, &[ids(0..100), ids(700..800)].concat()), Some((3, vec![0])));
        assert_eq!((index.place(0, 63), index.place(0, 64)), (Some((1252, 1)), Some((8000, 136))));
        assert!(!index.take(&note(1, 0, 320, vec![]), 0), "a gap");
    }
}
