//! Verifying all of a segment, as `fsck` does.

use rayon::prelude::*;

use super::layout::{BLOCK_SIZE, COLUMN_SIZE, HEADER_SIZE};
use super::{ColumnKind, ColumnState, Segment};
use crate::check::Fault;
use crate::error::{Error, Result};

/// Blocks that one thread verifies before it looks for other work: 256 KiB.
const BLOCKS_PER_TASK: usize = 64;

impl Segment {
    /// Verifies every block, whether or not it was before, that paddings are zero, and that the positions of each
    /// head are a permutation. Returns what is wrong; nothing, if nothing is.
    pub fn verify(&self) -> Vec<Fault> {
        self.verify_with(&|_| ())
    }

    /// As [`Segment::verify`], and calls `progress` with the bytes of each block that has been verified. Blocks are
    /// verified on the threads of the rayon pool that this is called on; what is returned is in the order of the file.
    pub fn verify_with(&self, progress: &(dyn Fn(u64) + Sync)) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Err(error) = self.region() {
            return vec![error.into()];
        }
        for state in &self.columns {
            let before = faults.len();
            self.verify_column(state, &mut faults, progress);
            if state.info.kind == ColumnKind::POSITIONS && faults.len() == before {
                faults.extend(self.check_positions(state).err().map(Fault::from));
            }
        }
        self.check_paddings(&mut faults);
        faults
    }

    /// Blocks of all columns.
    pub fn block_count(&self) -> u64 {
        self.columns.iter().map(|state| state.info.blocks).sum()
    }

    fn verify_column(&self, state: &ColumnState, faults: &mut Vec<Fault>, progress: &(dyn Fn(u64) + Sync)) {
        let column = match self.column_at(state) {
            Ok(column) => column,
            Err(error) => return faults.push(error.into()),
        };
        let len = column.len();
        let found =
            (0..len.div_ceil(BLOCK_SIZE)).into_par_iter().with_min_len(BLOCKS_PER_TASK).filter_map(|block| {
                let fault = column.verify_block(block).err().map(Fault::from);
                progress((len - block * BLOCK_SIZE).min(BLOCK_SIZE) as u64);
                fault
            });
        faults.extend(found.collect::<Vec<_>>());
    }

    fn check_positions(&self, state: &ColumnState) -> Result<()> {
        let bytes = self.column_at(state)?.all()?;
        let rows = self.header.rows as usize;
        let mut seen = vec![false; rows];
        for (head, positions) in bytes.chunks_exact(rows * 4).enumerate() {
            seen.fill(false);
            for (row, position) in positions.as_chunks::<4>().0.iter().enumerate() {
                let position = u32::from_le_bytes(*position);
                match seen.get_mut(position as usize) {
                    Some(slot) if !*slot => *slot = true,
                    slot => {
                        let found = if slot.is_some() { "twice" } else { "outside the segment" };
                        return Err(Error::corrupt_column(
                            &self.path,
                            &state.info.name,
                            state.info.offset + ((head * rows + row) * 4) as u64,
                            format_args!("each position below {rows} once in head {head}"),
                            format_args!("{position} {found}"),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Paddings lie between the table and the first column, between columns, and before the checksums.
    fn check_paddings(&self, faults: &mut Vec<Fault>) {
        let Ok(region) = self.region() else { return };
        let mut end = HEADER_SIZE + self.columns.len() * COLUMN_SIZE;
        let checksums_start = usize::try_from(self.checksums.offset).unwrap_or(usize::MAX);
        let spans = self.columns.iter().map(|state| (state.start, state.end));
        for (start, next_end) in spans.chain([(checksums_start, checksums_start)]) {
            let padding = region.get(end..start).unwrap_or_default();
            if let Some(at) = padding.iter().position(|byte| *byte != 0) {
                let found = padding.get(at).copied().unwrap_or_default();
                faults.push(Error::corrupt(&self.path, (end + at) as u64, "padding of zero", found).into());
            }
            end = next_end;
        }
    }
}
