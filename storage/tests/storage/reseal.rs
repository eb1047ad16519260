//! Checksums put right in files that were changed on purpose. The fuzz targets take this file as well.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

/// Puts the checksum of a range behind it, if the file goes that far.
fn seal(bytes: &mut [u8], covered: std::ops::Range<usize>) {
    if bytes.len() < covered.end + 8 {
        return;
    }
    let sum = xxh3_64(&bytes[covered.clone()]).to_le_bytes();
    bytes[covered.end..covered.end + 8].copy_from_slice(&sum);
}

/// Puts right every checksum of a file, as far as the file goes: what lies behind them is then reached.
pub fn reseal(path: &str, bytes: &mut [u8]) {
    if bytes.len() < 64 {
        return;
    }
    let sum = (xxh3_64(&bytes[..12]) as u32).to_le_bytes();
    bytes[12..16].copy_from_slice(&sum);
    if path.ends_with(".segment") {
        reseal_segment(bytes);
    } else if path.ends_with(".log") {
        reseal_log(bytes);
    } else if path.ends_with("manifest") || path.starts_with("profiles/") {
        let sum = xxh3_128(&bytes[48..]).to_le_bytes();
        bytes[24..40].copy_from_slice(&sum);
        seal(bytes, 0..40);
    } else {
        seal(bytes, 0..56);
    }
}

fn reseal_segment(bytes: &mut [u8]) {
    if bytes.len() < 192 {
        return;
    }
    let count = u32::from_le_bytes(bytes[136..140].try_into().unwrap()) as usize;
    let table = bytes.get(192..192_usize.saturating_add(count.saturating_mul(64))).map(<[u8]>::to_vec);
    let (start, len) = (number(bytes, 144), number(bytes, 152));
    if let Some(table) = table {
        bytes[168..176].copy_from_slice(&xxh3_64(&table).to_le_bytes());
        reseal_blocks(bytes, &table, start);
    }
    if let Some(checksums) = bytes.get(start..start.saturating_add(len)) {
        let sum = xxh3_64(checksums).to_le_bytes();
        bytes[160..168].copy_from_slice(&sum);
    }
    seal(bytes, 0..184);
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// The checksum of every block of every column, as far as columns and checksums lie in the file.
fn reseal_blocks(bytes: &mut [u8], table: &[u8], mut at: usize) {
    for entry in table.chunks_exact(64) {
        let (start, len) = (number(entry, 32), number(entry, 40));
        let Some(column) = bytes.get(start..start.saturating_add(len)) else { return };
        let sums: Vec<u8> = column.chunks(4096).flat_map(|block| xxh3_64(block).to_le_bytes()).collect();
        let Some(target) = bytes.get_mut(at..at.saturating_add(sums.len())) else { return };
        target.copy_from_slice(&sums);
        at += sums.len();
    }
}

fn reseal_log(bytes: &mut [u8]) {
    seal(bytes, 0..88);
    let seed = xxh3_64(&bytes[16..32]);
    let mut at = 96;
    while at + 48 <= bytes.len() {
        let len = u32::from_le_bytes(bytes[at + 24..at + 28].try_into().unwrap()) as usize;
        let end = (at + 48).saturating_add(len).min(bytes.len());
        let sum = xxh3_64(&bytes[at + 48..end]).to_le_bytes();
        bytes[at + 32..at + 40].copy_from_slice(&sum);
        let sum = xxh3_64_with_seed(&bytes[at..at + 40], seed ^ at as u64).to_le_bytes();
        bytes[at + 40..at + 48].copy_from_slice(&sum);
        at = end;
    }
}
