//! Look-ups of half bytes: what scoring sketches needs beyond [`Lanes`](crate::lanes::Lanes), and the portable form of it.

use crate::lanes::{EightLanes, Portable};

/// 32 bytes, also seen as sixteen 16-bit words of which an even byte is the lower half.
pub(crate) trait Lookup: EightLanes {
    /// The 32 bytes.
    type B: Copy;

    fn zero_bytes(self) -> Self::B;
    fn load_bytes(self, from: &[u8; 32]) -> Self::B;
    /// The lower half of every byte.
    fn low_nibbles(self, x: Self::B) -> Self::B;
    /// The upper half of every byte.
    fn high_nibbles(self, x: Self::B) -> Self::B;
    /// The entries of a table that bytes below 16 stand for.
    fn look_up(self, table: &[u8; 16], at: Self::B) -> Self::B;
    /// Sums of the words, without a carry beyond them.
    fn add_words(self, a: Self::B, b: Self::B) -> Self::B;
    /// The upper byte of every word, as a word.
    fn upper_bytes(self, x: Self::B) -> Self::B;
    /// The sums of 32 columns of bytes, each below 2^16, as floats: from the sums of the columns' words (`all`) and from
    /// those of their upper bytes (`upper`).
    fn column_sums(self, all: Self::B, upper: Self::B) -> [Self::V; 4];
}

impl Lookup for Portable {
    type B = [u8; 32];

    #[inline(always)]
    fn zero_bytes(self) -> [u8; 32] {
        [0; 32]
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 32]) -> [u8; 32] {
        *from
    }

    #[inline(always)]
    fn low_nibbles(self, x: [u8; 32]) -> [u8; 32] {
        x.map(|x| x & 15)
    }

    #[inline(always)]
    fn high_nibbles(self, x: [u8; 32]) -> [u8; 32] {
        x.map(|x| x >> 4)
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], at: [u8; 32]) -> [u8; 32] {
        at.map(|at| table[usize::from(at & 15)])
    }

    #[inline(always)]
    fn add_words(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        let mut sums = [0; 32];
        for i in 0..16 {
            let sum = word(&a, i).wrapping_add(word(&b, i));
            sums[2 * i..2 * i + 2].copy_from_slice(&sum.to_le_bytes());
        }
        sums
    }

    #[inline(always)]
    fn upper_bytes(self, x: [u8; 32]) -> [u8; 32] {
        let mut upper = [0; 32];
        for i in 0..16 {
            upper[2 * i] = x[2 * i + 1];
        }
        upper
    }

    #[inline(always)]
    fn column_sums(self, all: [u8; 32], upper: [u8; 32]) -> [[f32; 8]; 4] {
        let mut sums = [[0.0; 8]; 4];
        for i in 0..16 {
            let odd = word(&upper, i);
            // What the upper bytes have added to the words is their sum, 8 bits up.
            let even = word(&all, i).wrapping_sub(odd << 8);
            sums[i / 4][i % 4 * 2] = f32::from(even);
            sums[i / 4][i % 4 * 2 + 1] = f32::from(odd);
        }
        sums
    }
}

#[inline(always)]
fn word(bytes: &[u8; 32], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}
