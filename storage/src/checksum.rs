//! Checksums. XXH3 is fast enough to check every block at memory speed and finds every error of a few bits; it does
//! not defend against a forger, who could recompute it.

use bytemuck::NoUninit;
use twox_hash::XxHash3_64;
use xxhash_rust::xxh3;

/// XXH3-64 of `bytes`, seed 0. Every block that is read comes by here, so this is the implementation that takes what the
/// processor has; the other one takes what the compiler was told of it.
pub(crate) fn hash64(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// XXH3-128 of `bytes`, little-endian.
pub(crate) fn hash128(bytes: &[u8]) -> [u8; 16] {
    xxh3::xxh3_128(bytes).to_le_bytes()
}

/// XXH3-64 of a header but for its last eight bytes, which hold it.
pub(crate) fn header_checksum<T: NoUninit>(header: &T) -> u64 {
    header_checksum_seeded(header, 0)
}

/// As [`header_checksum`], with a seed that says where the header lies.
pub(crate) fn header_checksum_seeded<T: NoUninit>(header: &T, seed: u64) -> u64 {
    let covered = bytemuck::bytes_of(header).split_last_chunk::<8>();
    xxh3::xxh3_64_with_seed(covered.map_or(&[], |(covered, _)| covered), seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_implementations_have_one_hash() {
        let bytes: Vec<u8> = (0..9000_u32).map(|i| (i * i % 251) as u8).collect();
        let lengths = (0..600).chain([1023, 1024, 1025, 4095, 4096, 4097, 8192, bytes.len()]);
        for len in lengths {
            assert_eq!(hash64(&bytes[..len]), xxh3::xxh3_64(&bytes[..len]), "{len} bytes");
        }
        // What files of earlier builds hold.
        assert_eq!(hash64(b""), 0x2d06_8005_38d3_94c2);
    }
}
