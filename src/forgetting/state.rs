//! What was forgotten, as it lies in the manifest. docs/format.md draws the bytes.

use super::{Dropped, Forgetting, Importance, Memory};
use crate::accuracy::{Fault, Reader};
use longwave_storage::StateRecord;
use std::ops::Range;

/// Kind and version of the record in the manifest.
pub(crate) const FORGETTING_KIND: u32 = longwave_storage::FORGETTING_STATE;
pub(crate) const FORGETTING_VERSION: u32 = 1;

/// Encodes the memory of the layers; `None` if all of them remember everything. Steps are kept as ages, as far as they
/// tell clusters apart: one that is demoted is as old as any.
pub(crate) fn encode(layers: &[Option<&Memory>]) -> Option<StateRecord> {
    let known: Vec<(usize, &Memory)> =
        layers.iter().enumerate().filter_map(|(number, memory)| Some((number, (*memory)?))).collect();
    let policy = known.first()?.1.policy;
    if policy == Forgetting::Never && known.iter().all(|(_, memory)| memory.dropped.is_empty()) {
        return None;
    }
    let (kind, steps) = match policy {
        Forgetting::Never => (0_u32, 0),
        Forgetting::Demote { steps } => (1, steps),
        Forgetting::Drop { steps } => (2, steps),
    };
    let mut bytes = Vec::new();
    for field in [kind, steps, known.len() as u32] {
        bytes.extend(field.to_le_bytes());
    }
    for (number, memory) in known {
        bytes.extend((number as u32).to_le_bytes());
        bytes.extend(memory.clock.to_le_bytes());
        bytes.extend((memory.dropped.ranges().len() as u32).to_le_bytes());
        let mut end = 0;
        for range in memory.dropped.ranges() {
            put(&mut bytes, range.start - end);
            put(&mut bytes, range.end - range.start);
            end = range.end;
        }
        bytes.extend((memory.segments.len() as u32).to_le_bytes());
        let age = |steps_at: u64| (memory.clock.saturating_sub(steps_at)).min(u64::from(steps) + 1);
        for importance in &memory.segments {
            put(&mut bytes, age(importance.born));
            let runs: Vec<&[u64]> = importance.last.chunk_by(|a, b| age(*a) == age(*b)).collect();
            bytes.extend((runs.len() as u32).to_le_bytes());
            for run in runs {
                put(&mut bytes, run.len() as u64);
                put(&mut bytes, age(run[0]));
            }
        }
    }
    Some(StateRecord { kind: FORGETTING_KIND, version: FORGETTING_VERSION, bytes })
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The memory of a layer as it was stored: what its segments are is not known yet.
#[derive(Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) number: usize,
    pub(crate) clock: u64,
    pub(crate) dropped: Dropped,
    /// Of each segment the age of what is not in its runs, and the runs: clusters and their age.
    segments: Vec<(u64, Vec<(u64, u64)>)>,
}

impl Stored {
    /// Segments that it knows.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The memory of the layer, whose segments have so many rows over all KV heads: none has more clusters.
    pub(crate) fn memory(&self, policy: Forgetting, rows: &[u64]) -> Result<Memory, String> {
        let at = |age: u64| self.clock.saturating_sub(age);
        let mut segments = Vec::with_capacity(rows.len());
        for ((born, runs), most) in self.segments.iter().zip(rows) {
            let clusters = runs.iter().try_fold(0_u64, |sum, (run, _)| sum.checked_add(*run));
            if clusters.is_none_or(|clusters| clusters > *most) {
                return Err(format!("more than the {most} clusters that a segment can have"));
            }
            let runs = runs.iter().flat_map(|(run, age)| std::iter::repeat_n(at(*age), *run as usize));
            segments.push(Importance { born: at(*born), last: runs.collect() });
        }
        Ok(Memory { policy, clock: self.clock, segments, dropped: self.dropped.clone() })
    }
}

/// Decodes what [`encode`] wrote for a model of `layers` layers. Nothing is allocated for counts that the bytes do not
/// hold.
pub(crate) fn decode(bytes: &[u8], layers: usize) -> Result<(Forgetting, Vec<Stored>), Fault> {
    let mut reader = Reader::new(bytes);
    let (kind, steps) = (reader.u32()?, reader.u32()?);
    let policy = match kind {
        0 if steps == 0 => Forgetting::Never,
        1 if steps > 0 => Forgetting::Demote { steps },
        2 if steps > 0 => Forgetting::Drop { steps },
        _ => return Err(reader.fault(8, "a policy", format!("{kind} after {steps} steps"))),
    };
    let count = reader.at_most("layers", layers)?;
    let mut stored: Vec<Stored> = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.layer(stored.last().map(|last| last.number), layers)?;
        let clock = u64::from_le_bytes(reader.take()?);
        let dropped = dropped(&mut reader)?;
        let segments = reader.u32()?;
        let segments = (0..segments).map(|_| importance(&mut reader)).collect::<Result<_, _>>()?;
        stored.push(Stored { number, clock, dropped, segments });
    }
    reader.end()?;
    Ok((policy, stored))
}

fn dropped(reader: &mut Reader<'_>) -> Result<Dropped, Fault> {
    let (count, mut end, mut ranges) = (reader.u32()?, 0_u64, Vec::<Range<u64>>::new());
    for _ in 0..count {
        let (gap, len) = (number(reader)?, number(reader)?);
        let start = end.checked_add(gap);
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        let range =
            range.ok_or_else(|| reader.fault(0, "positions below 2^64", format!("{gap} and {len}")))?;
        end = range.end;
        ranges.push(range);
    }
    let fault = reader.fault(0, "ranges in rising order that do not touch", "others");
    Dropped::from_ranges(ranges).ok_or(fault)
}

fn importance(reader: &mut Reader<'_>) -> Result<(u64, Vec<(u64, u64)>), Fault> {
    let (born, count) = (number(reader)?, reader.u32()?);
    let runs = (0..count).map(|_| Ok((number(reader)?, number(reader)?))).collect::<Result<_, Fault>>()?;
    Ok((born, runs))
}

fn number(reader: &mut Reader<'_>) -> Result<u64, Fault> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let [byte] = reader.take()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(reader.fault(0, "a number below 2^63", "a longer one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory {
            policy: Forgetting::Drop { steps: 300 },
            clock: 1000,
            segments: vec![
                Importance { born: 990, last: vec![] },
                Importance { born: 10, last: vec![1000, 999, 999, 3, 650, 700] },
            ],
            dropped: Dropped::from_ranges(vec![4..200, 1000..1001]).unwrap(),
        }
    }

    #[test]
    fn memory_comes_back_as_far_as_it_matters() {
        let memory = memory();
        let record = encode(&[None, Some(&memory)]).unwrap();
        let (policy, stored) = decode(&record.bytes, 2).unwrap();
        assert_eq!((policy, stored.len(), stored[0].number), (memory.policy, 1, 1));
        let back = stored[0].memory(policy, &[5, 6]).unwrap();
        assert_eq!((back.clock, &back.dropped), (1000, &memory.dropped));
        // What is demoted is as old as any that is.
        assert_eq!(back.segments[1].last, [1000, 999, 999, 699, 699, 700]);
        for (segment, cluster) in [(0, 0), (1, 0), (1, 3), (1, 4), (1, 5), (1, 6)] {
            let demoted = memory.is_demoted(segment, cluster);
            assert_eq!(back.is_demoted(segment, cluster), demoted, "cluster {cluster} of {segment}");
        }
        assert!(stored[0].memory(policy, &[5, 5]).is_err(), "six clusters of five rows");
        assert_eq!(encode(&[Some(&Memory::default())]), None);
    }

    #[test]
    fn bytes_that_say_too_much_are_refused() {
        let record = encode(&[Some(&memory())]).unwrap();
        for len in 0..record.bytes.len() {
            assert!(decode(&record.bytes[..len], 2).is_err(), "{len} bytes");
        }
        assert!(decode(&[&record.bytes[..], &[0]].concat(), 2).is_err());
        // Four billion segments of no byte, and ranges that touch.
        let start = [&1_u32.to_le_bytes()[..], &9_u32.to_le_bytes(), &1_u32.to_le_bytes(), &[0; 12]].concat();
        let many = [&start[..], &0_u32.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
        assert!(decode(&many, 1).is_err());
        let touching = [&start[..], &2_u32.to_le_bytes(), &[4, 1, 0, 1], &[0; 4]].concat();
        assert!(decode(&touching, 1).is_err());
    }
}
