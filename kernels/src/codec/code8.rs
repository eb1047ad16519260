//! Rows in 8 bits an element.

use crate::isa::Kernels;
use crate::lanes::{EightLanes, prefetch};
use crate::rows::{DIM_STEP, is_supported_dim};

/// Bytes of the factor at the end of a record.
const FACTOR_SIZE: usize = size_of::<f32>();
/// Records that lie anywhere are asked for so many ahead.
const AHEAD: usize = 8;

/// Bytes of the record of a row of `dim` elements in 8 bits: `dim` signed bytes, then the factor as a little-endian
/// binary32. Element i is the factor times byte i.
pub const fn record8_len(dim: usize) -> usize {
    dim + FACTOR_SIZE
}

/// Codes a row into `record`: the factor brings the element of largest size to 127 or -127, the others go to the nearest
/// byte. No element is then off by more than half the factor, and a row that was decoded is coded as the same bytes
/// again. A row of zeros has factor 0, and so has a row with an element that is not finite.
///
/// # Panics
/// If the dimension is not supported, or the record not of its length.
pub fn encode8(row: &[f32], record: &mut [u8]) {
    let dim = row.len();
    assert!(is_supported_dim(dim), "dimension {dim} is not supported");
    assert!(record.len() == record8_len(dim), "a record of {} bytes for {dim}", record.len());
    let (codes, stored) = record.split_at_mut(dim);
    let largest = row.iter().fold(0.0f32, |most, x| if x.abs() > most { x.abs() } else { most });
    let finite = row.iter().all(|x| x.is_finite());
    let mut factor = if finite { largest / 127.0 } else { 0.0 };
    if (factor * 127.0).is_infinite() {
        factor = factor.next_down();
    }
    stored.copy_from_slice(&factor.to_le_bytes());
    if factor == 0.0 {
        codes.fill(0);
        return;
    }
    for (code, x) in codes.iter_mut().zip(row) {
        *code = (x / factor).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}

/// The factor of a record of [`encode8`].
///
/// # Panics
/// If the record is shorter than a factor.
pub fn factor8(record: &[u8]) -> f32 {
    let mut factor = [0; FACTOR_SIZE];
    factor.copy_from_slice(&record[record.len() - FACTOR_SIZE..]);
    f32::from_le_bytes(factor)
}

impl Kernels {
    /// `out[row * dim + i] = factor[row] * byte[row][i]` for every record of `records`, or for the listed ones in the
    /// order of the list; others are not read. The same bits on every instruction set.
    ///
    /// # Panics
    /// If `dim` is not supported, `records` not whole records, an index out of range, or `out` not `dim` times as long as
    /// there are rows.
    pub fn decode8(&self, dim: usize, records: &[u8], listed: Option<&[u32]>, out: &mut [f32]) {
        assert!(is_supported_dim(dim), "dimension {dim} is not supported");
        let stored = records.len() / record8_len(dim);
        assert!(
            records.len() == stored * record8_len(dim),
            "{} bytes are not whole records of {dim}",
            records.len()
        );
        let rows = listed.map_or(stored, <[u32]>::len);
        if let Some(&largest) = listed.and_then(|listed| listed.iter().max()) {
            assert!((largest as usize) < stored, "row {largest} is listed, but there are {stored} rows");
        }
        assert!(out.len() == rows * dim, "room for {} elements, not for {rows} rows of {dim}", out.len());
        (self.decode8)(Records8 { dim, bytes: records, listed }, out);
    }
}

/// Checked records of one dimension, and which of them are decoded.
#[derive(Clone, Copy)]
pub(crate) struct Records8<'a> {
    dim: usize,
    bytes: &'a [u8],
    listed: Option<&'a [u32]>,
}

/// The body of [`Kernels::decode8`], whose checks hold.
#[inline(always)]
pub(crate) fn decode8<L: EightLanes>(isa: L, rows: Records8<'_>, out: &mut [f32]) {
    let Records8 { dim, bytes: records, listed } = rows;
    let size = record8_len(dim);
    for (place, row) in out.chunks_exact_mut(dim).enumerate() {
        let at = match listed {
            None => place,
            Some(listed) => {
                if let Some(&next) = listed.get(place + AHEAD) {
                    prefetch(isa, &records[next as usize * size..][..size]);
                }
                listed[place] as usize
            }
        };
        let (codes, _) = records[at * size..][..size].split_at(dim);
        let factor = isa.splat(factor8(&records[at * size..][..size]));
        let (codes, _) = bytemuck::cast_slice::<u8, i8>(codes).as_chunks::<DIM_STEP>();
        let (row, _) = row.as_chunks_mut::<DIM_STEP>();
        for (code, row) in codes.iter().zip(row) {
            isa.store(isa.mul(isa.load_i8(code), factor), row);
        }
    }
}
