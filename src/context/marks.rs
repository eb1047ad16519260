//! What a layer had learnt when it was shorter, so that a cut can bring it back.

use super::{Context, Layer};
use crate::accuracy::{self, Calibration, Steering};
use crate::error::Error;
use crate::record;
use longwave_storage::{Manifest, StateRecord};
use std::collections::VecDeque;
use std::sync::Arc;

/// Marks of a layer in memory, and how many of them may be those of commits. A mark is made only where the layer has
/// learnt something since the last one.
const MARKS_MAX: usize = 64;
const COMMITTED_MAX: usize = 16;
/// Lengths that a manifest keeps the state of, and their bytes altogether.
const STORED_MAX: usize = 4;
const STORED_BYTES_MAX: usize = 32 << 10;

/// Kind of the record in the manifest. Its version is that of the states in it.
pub(crate) const MARKS_KIND: u32 = 3;

/// What a layer had learnt while it had `length` rows.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(super) length: u64,
    calibration: Arc<Calibration>,
    steering: Steering,
    /// Whether it is the state of a commit: those are kept longer.
    committed: bool,
}

impl Layer {
    /// Remembers what was learnt so far, before the layer grows.
    pub(super) fn mark(&mut self) {
        let (length, rows) = (self.rows.length(), &self.rows);
        let same =
            |mark: &Mark| Arc::ptr_eq(&mark.calibration, &rows.calibration) && mark.steering == rows.steering;
        let nothing = rows.calibration.is_empty() && rows.steering.courses.is_empty();
        if self.marks.back().map_or(nothing, same) {
            return;
        }
        let (calibration, steering) = (Arc::clone(&rows.calibration), rows.steering.clone());
        self.marks.push_back(Mark { length, calibration, steering, committed: false });
        let committed = self.marks.iter().filter(|mark| mark.committed).count();
        if self.marks.len() > MARKS_MAX {
            let goes = self.marks.iter().position(|mark| !mark.committed || committed > COMMITTED_MAX);
            self.marks.remove(goes.unwrap_or(0));
        }
    }

    /// Remembers what was learnt so far as the state of a commit.
    pub(super) fn mark_commit(&mut self) {
        self.mark();
        if let Some(last) = self.marks.back_mut() {
            last.committed = true;
        }
    }

    /// Brings back what was learnt when the layer had `length` rows, or as far as is known before that.
    pub(super) fn restore(&mut self, length: u64) {
        while self.marks.back().is_some_and(|mark| mark.length > length) {
            self.marks.pop_back();
        }
        let (calibration, steering) = match self.marks.back() {
            Some(mark) => (Arc::clone(&mark.calibration), mark.steering.clone()),
            None => (Arc::new(Calibration::new(self.rows.shape.query_heads)), Steering::default()),
        };
        (self.rows.calibration, self.rows.steering) = (calibration, steering);
    }

    fn mark_at(&self, length: u64) -> Option<&Mark> {
        self.marks.iter().rev().find(|mark| mark.length <= length)
    }
}

impl Context {
    /// The newest commits' marks, as far as there is room: what was learnt at their lengths, each as the state of kind 1 is. One
    /// mark can be too large for that; a cut then forgets more.
    pub(super) fn marks_record(&self) -> Option<StateRecord> {
        let layers = || self.layers.iter().flatten();
        let now = layers().map(|layer| layer.rows.length()).max().unwrap_or(0);
        let committed = |layer: &Layer| -> Vec<u64> {
            layer.marks.iter().filter(|mark| mark.committed).map(|mark| mark.length).collect()
        };
        let mut lengths: Vec<u64> = layers().flat_map(committed).collect();
        lengths.retain(|length| *length < now);
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        let (mut count, mut bytes) = (0_u32, Vec::new());
        for length in lengths.into_iter().take(STORED_MAX) {
            let marks: Vec<_> = self
                .layers
                .iter()
                .map(|layer| layer.as_ref()?.mark_at(length).map(|mark| (&*mark.calibration, &mark.steering)))
                .collect();
            let Some(state) = accuracy::encode(&marks, self.model.query_heads) else { continue };
            if bytes.len() + state.bytes.len() > STORED_BYTES_MAX {
                break;
            }
            bytes.extend(length.to_le_bytes());
            bytes.extend((state.bytes.len() as u32).to_le_bytes());
            bytes.extend(&state.bytes);
            count += 1;
        }
        let bytes = [&count.to_le_bytes()[..], &bytes].concat();
        (count > 0).then_some(StateRecord { kind: MARKS_KIND, version: accuracy::VERSION, bytes })
    }
}

/// Brings the marks of a manifest back.
pub(super) fn restore_marks(
    manifest: &Manifest,
    file: &str,
    layers: &mut [Option<Layer>],
) -> Result<(), Error> {
    let heads = manifest.model.query_heads as usize;
    let versions = accuracy::OLDEST..=accuracy::VERSION;
    for state in record::state_of(manifest, file, ("marks", MARKS_KIND, versions)) {
        let (version, bytes) = state?;
        let fault = |offset: usize, expected: &str| {
            let found = format!("{} bytes", bytes.len());
            record::damaged(file, "marks", accuracy::Fault { offset, expected: expected.into(), found })
        };
        let mut at = 4;
        let count = bytes.first_chunk::<4>().map(|count| u32::from_le_bytes(*count));
        let count = count.filter(|count| *count as usize <= STORED_MAX);
        for _ in 0..count.ok_or_else(|| fault(0, "a number of marks"))? {
            let rest = bytes.get(at..).unwrap_or_default();
            let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| fault(at, "a length"))?;
            let (size, rest) = rest.split_first_chunk::<4>().ok_or_else(|| fault(at, "a size"))?;
            let size = u32::from_le_bytes(*size) as usize;
            let state = rest.get(..size).ok_or_else(|| fault(at, "a mark"))?;
            at += 12 + size;
            let decoded = accuracy::decode(state, version, layers.len(), heads);
            let decoded = decoded.map_err(|fault| record::damaged(file, "marks", fault))?;
            for (number, calibration, steering) in decoded {
                let layer = record::kept(layers, file, "marks", number)?;
                let length = u64::from_le_bytes(*length);
                if layer.marks.front().is_some_and(|first| first.length <= length) {
                    return Err(fault(at, "marks of falling length"));
                }
                let calibration = Arc::new(calibration);
                layer.marks.push_front(Mark { length, calibration, steering, committed: true });
            }
        }
        if at != bytes.len() {
            return Err(fault(at, "the end"));
        }
        settle(layers.iter_mut().flatten());
    }
    Ok(())
}

/// Where nothing was learnt since the newest mark, the layer shares its state, as it did before it was stored.
fn settle<'a>(layers: impl Iterator<Item = &'a mut Layer>) {
    for layer in layers {
        let marks: &VecDeque<Mark> = &layer.marks;
        if let Some(last) = marks.back().filter(|last| *last.calibration == *layer.rows.calibration) {
            layer.rows.calibration = Arc::clone(&last.calibration);
        }
    }
}
