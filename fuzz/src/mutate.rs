//! Seeded mutations: what the tests try without libFuzzer.

/// Changes inputs, the same way for the same seed.
#[derive(Debug)]
pub struct Mutator(u64);

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 9] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

impl Mutator {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Mutator {
        Mutator(seed)
    }

    /// SplitMix64.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// An input with one to six changes, at most `size_max` bytes long.
    pub fn mutate(&mut self, input: &[u8], size_max: usize) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..1 + self.below(6) {
            self.edit(&mut bytes);
        }
        bytes.truncate(size_max);
        bytes
    }

    fn edit(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let len = 1 + self.below(16);
        let end = (at + len).min(bytes.len());
        match self.below(9) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            2 if at < bytes.len() => bytes[at] = self.bits() as u8,
            3 | 4 => {
                let width = [1, 2, 4, 8][self.below(4)];
                let value = EDGES[self.below(EDGES.len())].wrapping_add(self.below(3) as u64);
                let width = width.min(bytes.len() - at.min(bytes.len()));
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            5 => bytes.truncate(at),
            6 => drop(bytes.drain(at..end)),
            7 => {
                let copy = bytes[at..end].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {
                let new: Vec<u8> = (0..len).map(|_| self.bits() as u8).collect();
                bytes.splice(at..at, new);
            }
        }
    }
}
