//! Reading columns: each block is verified before its bytes are handed out for the first time.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ahead::{FAR, Look};
use super::layout::{BLOCK_SIZE, CHECKSUM_AT};
use super::{ColumnInfo, ColumnKind, ColumnState, Segment};
use crate::backend::Region;
use crate::checksum::hash64;
use crate::error::{Error, Result};
use crate::mapping::prefetch;
use crate::prologue::check_sum;

/// One column of an open segment. Cheap to copy; keep it rather than ask for it again.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    segment: &'a Segment,
    region: &'a Region,
    state: &'a ColumnState,
    /// All of the column, verified or not.
    bytes: &'a [u8],
    /// The segment's checksums, verified when the file was mapped.
    checksums: &'a [u8],
    /// Whether listed records are asked for before they are read.
    pub(super) reads_ahead: bool,
}

impl Segment {
    /// The column of this kind. The first call maps the file and verifies its checksum column.
    ///
    /// # Errors
    /// [`Error::MissingColumn`]; those of [`Backend::map`](crate::Backend::map); [`Error::Corrupt`].
    pub fn column(&self, kind: ColumnKind) -> Result<Column<'_>> {
        let state = self.columns.iter().find(|state| state.info.kind == kind).ok_or_else(|| {
            Error::MissingColumn {
                file: self.path.clone(),
                column: kind.name().map_or_else(|| format!("of kind {:#x}", kind.0), str::to_owned),
            }
        })?;
        self.column_at(state)
    }

    pub(super) fn column_at<'a>(&'a self, state: &'a ColumnState) -> Result<Column<'a>> {
        let region = self.region()?;
        let bytes = region.get(state.start..state.end).unwrap_or_default();
        Ok(Column {
            segment: self,
            region,
            state,
            bytes,
            checksums: self.checksum_bytes(region),
            reads_ahead: true,
        })
    }

    fn checksum_bytes<'a>(&self, region: &'a Region) -> &'a [u8] {
        let start = usize::try_from(self.checksums.offset).unwrap_or(usize::MAX);
        region.get(start..).unwrap_or_default()
    }

    /// Maps the file now, so that it can be read even when it is unlinked.
    ///
    /// # Errors
    /// Those of [`Backend::map`](crate::Backend::map).
    pub fn hold(&self) -> Result<()> {
        let _one_at_a_time = self.mapping.lock();
        if self.region.get().is_none() && self.held.get().is_none() {
            // Nothing of it is read before it is asked for.
            let _ = self.held.set(self.backend.map(&self.path)?);
        }
        Ok(())
    }

    /// The mapped file, mapped now if it was not.
    pub(super) fn region(&self) -> Result<&Region> {
        if let Some(region) = self.region.get() {
            return Ok(region);
        }
        let _one_at_a_time = self.mapping.lock();
        if let Some(region) = self.region.get() {
            return Ok(region);
        }
        let region = self.held.get().cloned().map_or_else(|| self.backend.map(&self.path), Ok)?;
        if let Region::Mapped(mapping) = &region
            && region.len() as u64 == self.file_len
        {
            // Pages would come one by one.
            let start = usize::try_from(self.checksums.offset).unwrap_or(usize::MAX);
            if !mapping.is_resident(start) {
                mapping.will_need(start..region.len());
            }
        }
        self.check_region(&region)?;
        Ok(self.region.get_or_init(|| region))
    }

    /// Makes sure that what was mapped is what was opened, and that its checksums can be relied on.
    fn check_region(&self, region: &Region) -> Result<()> {
        if region.len() as u64 != self.file_len {
            return Err(Error::corrupt(
                &self.path,
                104,
                format_args!("{} bytes", self.file_len),
                region.len(),
            ));
        }
        let stored = region.get(CHECKSUM_AT..CHECKSUM_AT + 8).unwrap_or_default();
        if stored != self.header_checksum.to_le_bytes() {
            return Err(Error::corrupt(
                &self.path,
                CHECKSUM_AT as u64,
                "the header that was opened",
                "another",
            ));
        }
        let checksums = self.checksum_bytes(region);
        let computed = if checksums.len() as u64 == self.checksums.len { hash64(checksums) } else { 0 };
        check_sum(&self.path, self.checksums.offset, "checksum column", self.checksums.checksum, computed)
    }
}

impl<'a> Column<'a> {
    /// Kind, name and place.
    pub fn info(&self) -> &'a ColumnInfo {
        &self.state.info
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the column has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The whole column, every block verified.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first block whose bytes are not what was written.
    pub fn all(&self) -> Result<&'a [u8]> {
        self.bytes(0..self.bytes.len())
    }

    /// Bytes of the column, counted from its start. Verifies the 4 KiB blocks that the range touches and that nobody
    /// has touched before.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first block whose bytes are not what was written; [`Error::Range`].
    pub fn bytes(&self, range: Range<usize>) -> Result<&'a [u8]> {
        let Some(bytes) = self.bytes.get(range.clone()) else { return Err(self.out_of_range(range)) };
        // Acquire pairs with the release below: who sees zero sees blocks that others have verified.
        if self.state.unverified.load(Ordering::Acquire) != 0 && !bytes.is_empty() {
            if range.len() > BLOCK_SIZE {
                let look = self.look();
                let blocks = self.needed(std::iter::once(range), look);
                self.ask(&blocks, (look, FAR));
                self.verify_all(&blocks)?;
            } else {
                for block in range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE) {
                    // Short ranges come one after the other.
                    self.verify_before(block, block + 1)?;
                }
            }
        }
        Ok(bytes)
    }

    /// Bytes of the records `records`, of `size` bytes each, of which the listed ones, counted from the first, may be
    /// read: their blocks are verified as [`Column::bytes`] does it, the others are not.
    ///
    /// # Errors
    /// As [`Column::bytes`]; [`Error::Range`] also where a listed record is not one of `records`.
    pub fn listed(&self, size: usize, records: Range<usize>, list: &[u32]) -> Result<&'a [u8]> {
        let range = records.start.saturating_mul(size)..records.end.saturating_mul(size);
        let Some(bytes) = self.bytes.get(range.clone()) else { return Err(self.out_of_range(range)) };
        if let Some(&most) = list.iter().max()
            && most as usize >= records.len()
        {
            let start = (records.start + most as usize).saturating_mul(size);
            return Err(self.out_of_range(start..start.saturating_add(size)));
        }
        let look = if self.reads_ahead { self.look() } else { Look::Not };
        if self.is_verified_whole() && !look.at_all() {
            return Ok(bytes);
        }
        let start_of = |record: usize| range.start + record * size;
        let of = |&record: &u32| start_of(record as usize)..start_of(record as usize + 1);
        let blocks = self.needed(list.iter().map(of), look);
        self.ask(&blocks, (look, 0));
        self.verify_all(&blocks)?;
        Ok(bytes)
    }

    /// All of the file.
    pub(super) fn region(&self) -> &'a Region {
        self.region
    }

    pub(super) fn ahead(&self) -> &'a super::ahead::Ahead {
        &self.segment.ahead
    }

    /// Where the column begins in the file.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.state.start
    }

    /// Whether a block was verified before.
    pub(super) fn is_verified(&self, block: usize) -> bool {
        let word = self.state.verified.get(block / 64);
        word.is_none_or(|word| word.load(Ordering::Acquire) & 1 << (block % 64) != 0)
    }

    /// Whether every block was.
    pub(super) fn is_verified_whole(&self) -> bool {
        self.state.unverified.load(Ordering::Acquire) == 0
    }

    /// Lists of the column that were found in memory since one was not.
    pub(super) fn in_memory(&self) -> &'a AtomicU32 {
        &self.state.in_memory
    }

    /// The bytes of a block; none behind the column's end.
    fn block(&self, block: usize) -> &'a [u8] {
        let start = block.saturating_mul(BLOCK_SIZE);
        self.bytes.get(start..start.saturating_add(BLOCK_SIZE).min(self.bytes.len())).unwrap_or_default()
    }

    /// Verifies those of the blocks that nobody has. While one is, the beginning of the next one comes.
    fn verify_all(&self, blocks: &[usize]) -> Result<()> {
        let next = blocks.iter().skip(1).copied().chain(std::iter::once(usize::MAX));
        blocks.iter().zip(next).try_for_each(|(&block, next)| self.verify_before(block, next))
    }

    #[cold]
    fn out_of_range(&self, range: Range<usize>) -> Error {
        Error::Range {
            file: self.segment.path.clone(),
            column: self.state.info.name.clone(),
            start: range.start,
            end: range.end,
            len: self.bytes.len(),
        }
    }

    /// Verifies a block, unless somebody has; `next` is likely to be the next one.
    fn verify_before(&self, block: usize, next: usize) -> Result<()> {
        let Some(word) = self.state.verified.get(block / 64) else { return Ok(()) };
        let bit = 1_u64 << (block % 64);
        if word.load(Ordering::Acquire) & bit != 0 {
            return Ok(());
        }
        prefetch(self.block(next));
        self.verify_block(block)?;
        // Two threads may verify the same block; only the one that sets the bit counts it.
        if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.state.unverified.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Compares one block with its checksum, whether or not that was done before.
    pub(super) fn verify_block(&self, block: usize) -> Result<()> {
        let (start, bytes) = (block * BLOCK_SIZE, self.block(block));
        let slot = (self.state.first_block + block) * 8;
        let stored =
            self.checksums.get(slot..).and_then(|rest| rest.first_chunk::<8>()).copied().unwrap_or_default();
        let (stored, computed) = (u64::from_le_bytes(stored), hash64(bytes));
        if stored == computed {
            return Ok(());
        }
        Err(Error::corrupt_column(
            &self.segment.path,
            &self.state.info.name,
            self.state.info.offset + start as u64,
            format_args!("a block of {} bytes with checksum {stored:#018x}", bytes.len()),
            format_args!("checksum {computed:#018x}"),
        ))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::{ElementKind, Geometry, Identity};
    use crate::segment::{Alignment, Expected, NewColumn, SegmentHeader, write_segment};
    use crate::{Backend, MemoryBackend};

    /// 70 blocks of keys, more than one word of the bitmap holds, and the last of them short.
    fn segment() -> Segment {
        segment_on(Arc::new(MemoryBackend::new()))
    }

    pub(in crate::segment) fn segment_on(backend: Arc<dyn Backend>) -> Segment {
        let geometry = Geometry { kv_heads: 5, key_dim: 8, value_dim: 16, element: ElementKind::F32 };
        let (identity, rows) = (Identity([8; 32]), 1770);
        let header = SegmentHeader {
            id: [1; 16],
            identity,
            layer: 2,
            geometry,
            first_position: 0,
            rows,
            prefix_hash: [0; 32],
        };
        let keys = vec![3; geometry.key_bytes(rows) as usize];
        let values = vec![4; geometry.value_bytes(rows) as usize];
        let positions: Vec<u8> = (0..5).flat_map(|_| 0..rows).flat_map(u32::to_le_bytes).collect();
        let column = |kind: ColumnKind, bytes| NewColumn {
            kind,
            name: kind.name().unwrap(),
            element_size: 4,
            // What begins where the values end, which is not at a page.
            alignment: if kind == ColumnKind::POSITIONS { Alignment::CacheLine } else { Alignment::Page },
            parts: vec![bytes],
        };
        let columns = [
            column(ColumnKind::KEYS, &keys[..]),
            column(ColumnKind::VALUES, &values),
            column(ColumnKind::POSITIONS, &positions),
        ];
        write_segment(backend.as_ref(), "a", &header, &columns).unwrap();
        Segment::open(backend, "a", &Expected::of_model(identity)).unwrap()
    }

    #[test]
    fn a_block_is_verified_once_and_only_when_touched() {
        let segment = segment();
        let keys = segment.column(ColumnKind::KEYS).unwrap();
        let unverified = || keys.state.unverified.load(Ordering::Relaxed);
        assert_eq!(unverified(), 70);
        // A range, the blocks it adds to those that were touched before, and where its first and last lie.
        for (range, added) in [
            (0..0, 0),
            (4095..4096, 1),
            (4095..4097, 1),
            (0..4096, 0),
            (63 * 4096 + 1..64 * 4096 + 1, 2),
            (69 * 4096..keys.len(), 1),
            (69 * 4096 + 7..69 * 4096 + 8, 0),
        ] {
            let before = unverified();
            keys.bytes(range.clone()).unwrap();
            assert_eq!(before - unverified(), added, "{range:?}");
        }
        let words: Vec<u64> = keys.state.verified.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!(words, [0b11 | 1 << 63, 1 | 1 << 5]);
        keys.all().unwrap();
        assert_eq!(unverified(), 0);
        let values = segment.column(ColumnKind::VALUES).unwrap();
        assert_eq!(values.state.unverified.load(Ordering::Relaxed), 139, "other columns are untouched");
    }

    #[test]
    fn listed_records_are_verified_and_no_others() {
        let segment = segment();
        let column = segment.column(ColumnKind::KEYS).unwrap();
        // Records of one key, 32 bytes; those of the second head.
        let bytes = column.listed(32, 1770..3540, &[0, 200, 1769]).unwrap();
        assert_eq!((bytes.len(), bytes.as_ptr()), (1770 * 32, column.bytes[1770 * 32..].as_ptr()));
        let verified: u32 =
            column.state.verified.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum();
        assert_eq!(verified, 3);
        let error = column.listed(32, 1770..3540, &[4, 1770]).unwrap_err();
        assert!(matches!(error, Error::Range { start, .. } if start == 3540 * 32), "{error}");
        assert!(matches!(column.listed(32, 0..8851, &[0]).unwrap_err(), Error::Range { .. }));
    }
}
