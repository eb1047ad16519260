//! Checksums. XXH3 is fast enough to check every block at memory speed and finds every error of a few bits; it does
//! not defend against a forger, who could recompute it.

use bytemuck::NoUninit;
use xxhash_rust::xxh3;

/// XXH3-64 of `bytes`, seed 0.
pub(crate) fn hash64(bytes: &[u8]) -> u64 {
    xxh3::xxh3_64(bytes)
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
