//! The rows that a call chose to read, where each is read, and the CPU's part of them.

use super::{Division, Staged, Tier, rows_error};
use crate::cache::{BlockCache, BlockId, Scored, Slots, segment_key};
use crate::error::Error;
use crate::launch::RowList;
use crate::placement::{Item, Place, Placement};
use crate::rows::listed_rows;
use crate::zone::Resolution;
use longwave_index::ladder::HeadLadder;
use longwave_kernels::codec::{Depth, RowCodes};
use longwave_kernels::{Kernels, Rows};
use longwave_query::{LayerSegment, Shape};
use longwave_storage::ColumnKind;

/// An opened cluster of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenedCluster {
    pub(super) strip: usize,
    pub(super) place: u32,
    /// Its number in its segment, for its KV head.
    pub(super) cluster: usize,
    /// Where its sketches begin on the device.
    pub(super) sketches: usize,
    /// Its first row in the segment, for its KV head, and in the zone; and how many.
    pub(super) first: u32,
    pub(super) start: u32,
    pub(super) rows: u32,
}

/// A row that is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    pub(super) strip: usize,
    /// Its number in the zone, and in its segment for its KV head.
    pub(super) zone_row: u32,
    pub(super) row: u32,
}

/// Resolutions that rows are read in, in the order of their thresholds.
pub(super) const RESOLUTIONS: [Resolution; 3] =
    [Resolution::Code(Depth::Half), Resolution::Code(Depth::Whole), Resolution::Full];

/// Bytes that are read of a row of `dim` elements of 16 bits.
pub(super) fn row_bytes(resolution: Resolution, dim: usize) -> usize {
    match resolution {
        Resolution::Code(depth) => depth.len(dim),
        Resolution::Full => 2 * dim,
    }
}

/// Picks of one resolution that are read at one place, in the order of the zone.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) resolution: Resolution,
    pub(super) place: Place,
    pub(super) picks: Vec<Pick>,
}

/// The segments, strips and KV heads that picks refer to.
pub(super) struct Names<'a, 'v> {
    pub(super) layer: u32,
    pub(super) shape: &'a Shape,
    pub(super) segments: &'a [&'v LayerSegment],
}

impl<'v> Names<'_, 'v> {
    pub(super) fn segment(&self, strip: usize) -> &'v LayerSegment {
        self.segments[strip % self.segments.len()]
    }

    pub(super) fn unit(&self, strip: usize) -> usize {
        strip / self.segments.len()
    }

    pub(super) fn head(&self, strip: usize) -> usize {
        self.unit(strip) % self.shape.kv_heads
    }

    fn block(&self, pick: &Pick) -> BlockId {
        let segment = segment_key(self.segment(pick.strip));
        BlockId { layer: self.layer, kv_head: self.head(pick.strip) as u32, segment, number: pick.row }
    }

    pub(super) fn ladder(&self, strip: usize) -> Result<HeadLadder<'v>, Error> {
        let ladder = self.segment(strip).ladder().map_err(rows_error)?;
        let ladder = ladder.ok_or_else(|| Error::Rows("a segment without a ladder".into()))?;
        ladder.head(self.head(strip)).map_err(rows_error)
    }

    /// Codes of listed keys or values, checked.
    fn codes(&self, strip: usize, kind: ColumnKind, rows: &[u32]) -> Result<&'v [u8], Error> {
        let ladder = self.ladder(strip)?;
        let is_key = kind == ColumnKind::KEYS;
        let codes = if is_key { ladder.listed_key_codes(rows) } else { ladder.listed_value_codes(rows) };
        let codes = codes.map_err(rows_error)?;
        let checked =
            if is_key { ladder.check_key_codes(codes, rows) } else { ladder.check_value_codes(codes, rows) };
        checked.map_err(rows_error)?;
        Ok(codes)
    }
}

impl Tier {
    /// Places the picks of one column, by resolution. Empty parts are left out; the CPU's come last.
    pub(super) fn place_picks(
        &self,
        names: &Names<'_, '_>,
        picks: &[Vec<Pick>; 3],
        slots: &[Slots; 2],
        division: Division,
    ) -> (Vec<Part>, Placement) {
        let (mut items, mut all) = (Vec::new(), Vec::new());
        for (picks, resolution) in picks.iter().zip(RESOLUTIONS) {
            let bytes = row_bytes(resolution, names.shape.key_dim) as u64;
            let slots = &slots[usize::from(resolution == Resolution::Full)];
            for pick in picks {
                items.push(Item { bytes, is_resident: slots.contains_key(&names.block(pick)) });
                all.push((resolution, *pick));
            }
        }
        let placement = self.divide(&items, division);
        let mut parts = Vec::new();
        for place in [Place::Slots, Place::Transfer, Place::Host] {
            for resolution in RESOLUTIONS {
                let mine = all.iter().zip(&placement.places);
                let mine = mine.filter(|((of, _), at)| (*of, **at) == (resolution, place));
                let part = Part { resolution, place, picks: mine.map(|((_, pick), _)| *pick).collect() };
                if !part.picks.is_empty() {
                    parts.push(part);
                }
            }
        }
        (parts, placement)
    }
}

impl Part {
    /// The rows as a kernel reads them: where they lie in slots, or one behind the other after a transfer. Codes are listed by strip,
    /// full rows by unit.
    pub(super) fn list(
        &self,
        tier: &Tier,
        names: &Names<'_, '_>,
        kind: ColumnKind,
        (units, slots): (usize, &Slots),
    ) -> Result<RowList, Error> {
        let (mut rows, mut starts) = (Vec::with_capacity(self.picks.len()), vec![0u32]);
        let of = |pick: &Pick| match self.resolution {
            Resolution::Code(_) => pick.strip,
            Resolution::Full => names.unit(pick.strip),
        };
        for (number, pick) in self.picks.iter().enumerate() {
            while starts.len() <= of(pick) {
                starts.push(number as u32);
            }
            rows.push(match self.place {
                Place::Slots => {
                    let block = names.block(pick);
                    let slot = slots.get(&block).and_then(|slots| slots.first());
                    // A slot of one row holds its key, then its value.
                    let slot = slot.ok_or_else(|| Error::Rows(format!("{block:?} is not in its slot")))?;
                    2 * slot + u32::from(kind == ColumnKind::VALUES)
                }
                _ => number as u32,
            });
        }
        starts.resize(units + 1, rows.len() as u32);
        RowList::new(&tier.device, &rows, &starts)
    }

    /// Copies the rows one behind the other and starts their transfer.
    pub(super) fn stage(
        &self,
        tier: &Tier,
        names: &Names<'_, '_>,
        kind: ColumnKind,
        staged: &mut Staged,
    ) -> Result<(), Error> {
        let len = row_bytes(self.resolution, names.shape.key_dim) / 2;
        staged.check_room(self.picks.len() * len)?;
        let room = staged.staging.fill()?;
        let mut at = 0;
        for run in self.picks.chunk_by(|a, b| a.strip == b.strip) {
            let rows: Vec<u32> = run.iter().map(|pick| pick.row).collect();
            let stored = match self.resolution {
                Resolution::Code(_) => names.codes(run[0].strip, kind, &rows)?,
                Resolution::Full => full_rows(names, run[0].strip, kind, &rows)?.as_bytes(),
            };
            // Of a code as much as is read.
            let from = row_bytes(self.resolution.whole(), names.shape.key_dim);
            for row in rows {
                let (bytes, _) = stored[row as usize * from..][..2 * len].as_chunks::<2>();
                let to = &mut room[at..at + len];
                to.iter_mut().zip(bytes).for_each(|(to, bytes)| *to = u16::from_le_bytes(*bytes));
                at += len;
            }
        }
        staged.staging.copy(&tier.device, at, &mut staged.pool, 0)
    }

    /// Scores `[picks, group]` of keys, by the CPU. `queries` are those of strips for codes, of units for full rows.
    pub(super) fn score(
        &self,
        names: &Names<'_, '_>,
        queries: &[f32],
        scores: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let (kernels, group, dim) = (Kernels::get(), names.shape.group(), names.shape.key_dim);
        for run in self.picks.chunk_by(|a, b| a.strip == b.strip) {
            let rows: Vec<u32> = run.iter().map(|pick| pick.row).collect();
            let start = scores.len();
            scores.resize(start + rows.len() * group, 0.0);
            let (strip, scores) = (run[0].strip, &mut scores[start..]);
            match self.resolution {
                Resolution::Code(depth) => {
                    let records = names.codes(strip, ColumnKind::KEYS, &rows)?;
                    let mine = &queries[strip * group * dim..][..group * dim];
                    kernels.scores_codes(mine, group, RowCodes { records, dim, depth }, &rows, scores);
                }
                Resolution::Full => {
                    let keys = full_rows(names, strip, ColumnKind::KEYS, &rows)?;
                    let mine = &queries[names.unit(strip) * group * dim..][..group * dim];
                    kernels.scores_gathered(mine, group, dim, keys, &rows, scores);
                }
            }
        }
        Ok(())
    }

    /// Adds the values times their `weights` (`[picks, group]`), by the CPU: codes, brought to their scales, to `coded`, and full
    /// rows to `full`, both `[units, group, dim]`.
    pub(super) fn sum(
        &self,
        names: &Names<'_, '_>,
        weights: &[f32],
        (coded, full): (&mut [f32], &mut [f32]),
    ) -> Result<(), Error> {
        let (kernels, group, dim) = (Kernels::get(), names.shape.group(), names.shape.value_dim);
        let mut rest = weights;
        for run in self.picks.chunk_by(|a, b| a.strip == b.strip) {
            let rows: Vec<u32> = run.iter().map(|pick| pick.row).collect();
            let (weights, later) = rest.split_at(rows.len() * group);
            rest = later;
            let (strip, unit) = (run[0].strip, names.unit(run[0].strip) * group * dim);
            match self.resolution {
                Resolution::Code(depth) => {
                    let records = names.codes(strip, ColumnKind::VALUES, &rows)?;
                    let mut sum = vec![0.0; group * dim];
                    let codes = RowCodes { records, dim, depth };
                    kernels.accumulate_codes(weights, group, codes, &rows, &mut sum);
                    let sigma = names.ladder(strip)?.value_sigma;
                    for (to, sum) in
                        coded[unit..][..group * dim].chunks_exact_mut(dim).zip(sum.chunks_exact(dim))
                    {
                        let terms = sum.iter().zip(sigma);
                        to.iter_mut().zip(terms).for_each(|(to, (sum, sigma))| *to += sum * sigma);
                    }
                }
                Resolution::Full => {
                    let values = full_rows(names, strip, ColumnKind::VALUES, &rows)?;
                    let to = &mut full[unit..][..group * dim];
                    kernels.accumulate_gathered(weights, group, dim, values, &rows, to);
                }
            }
        }
        Ok(())
    }

    /// The blocks that the part's rows are in.
    pub(super) fn wanted(&self, names: &Names<'_, '_>) -> impl Iterator<Item = Scored> {
        self.picks.iter().map(|pick| Scored { block: names.block(pick), rows: 1, score: 0.0, wanted: true })
    }
}

fn full_rows<'v>(
    names: &Names<'_, 'v>,
    strip: usize,
    kind: ColumnKind,
    rows: &[u32],
) -> Result<Rows<'v>, Error> {
    listed_rows(names.shape, names.segment(strip), (kind, names.head(strip)), rows)
}

/// The cache that rows of a resolution are in.
pub(super) fn cache_of(tier: &Tier, resolution: Resolution) -> Option<&std::sync::Arc<BlockCache>> {
    match resolution {
        Resolution::Code(_) => tier.caches.codes.as_ref(),
        Resolution::Full => tier.caches.rows.as_ref(),
    }
}
