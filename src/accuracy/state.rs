//! Calibration and steering as they lie in the manifest. docs/format.md draws the bytes.

use super::calibration::{Audited, BANDS, CORRECTION_MAX, Calibration, WINDOW};
use super::reader::{Fault, Reader};
use super::steering::{CALLS_MAX, Course, SHARES_MAX, Steering, TAU_MAX, TAU_MIN};
use longwave_storage::StateRecord;

/// Kind of the record in the manifest.
pub(crate) const KIND: u32 = 1;
/// Version of the encoding. Version 1 had no corrections, no calls of a course, and no word of what was replayed.
pub(crate) const VERSION: u32 = 2;
/// The oldest that is read.
pub(crate) const OLDEST: u32 = 1;

/// One layer's state; `None` in a slice of layers stands for one without KV.
type Layer<'a> = Option<(&'a Calibration, &'a Steering)>;

/// Encodes the layers that have learnt something; `None` if none has.
pub(crate) fn encode(layers: &[Layer<'_>], query_heads: usize) -> Option<StateRecord> {
    let layers = layers.iter().enumerate().filter_map(|(number, layer)| Some((number, (*layer)?)));
    let layers: Vec<_> = layers.filter(|(_, (c, s))| !c.is_empty() || !s.courses.is_empty()).collect();
    if layers.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    for field in [BANDS, WINDOW, query_heads, layers.len()] {
        bytes.extend((field as u32).to_le_bytes());
    }
    for (number, (calibration, steering)) in layers {
        bytes.extend((number as u32).to_le_bytes());
        bytes.extend((steering.courses.len() as u32).to_le_bytes());
        for course in &steering.courses {
            [course.share, course.tau, course.excess].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
            bytes.extend(course.calls.to_le_bytes());
        }
        bytes.extend(calibration.correction.to_le_bytes());
        for audited in &calibration.audited {
            bytes.extend((audited.ratios.len() as u16).to_le_bytes());
            if !audited.ratios.is_empty() {
                bytes.extend((audited.replayed as u16).to_le_bytes());
                bytes.extend(audited.log_predicted.to_le_bytes());
                audited.ratios.iter().for_each(|ratio| bytes.extend(ratio.to_le_bytes()));
            }
        }
    }
    Some(StateRecord { kind: KIND, version: VERSION, bytes })
}

/// A layer's number and what it had learnt.
pub(crate) type Decoded = (usize, Calibration, Steering);

/// Decodes what [`encode`] of a `version` from [`OLDEST`] on wrote for a model of `layers` layers and `query_heads` query
/// heads. Nothing is allocated for counts that the bytes do not hold.
pub(crate) fn decode(
    bytes: &[u8],
    version: u32,
    layers: usize,
    query_heads: usize,
) -> Result<Vec<Decoded>, Fault> {
    let mut reader = Reader::new(bytes);
    reader.expect("bands", BANDS)?;
    reader.expect("ratios a window", WINDOW)?;
    reader.expect("query heads", query_heads)?;
    let count = reader.at_most("layers", layers)?;
    let mut decoded: Vec<Decoded> = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.layer(decoded.last().map(|(last, ..)| *last), layers)?;
        let steering = reader.steering(version)?;
        decoded.push((number, reader.calibration(version, query_heads)?, steering));
    }
    reader.end()?;
    Ok(decoded)
}

impl Reader<'_> {
    fn steering(&mut self, version: u32) -> Result<Steering, Fault> {
        let count = self.at_most("shares", SHARES_MAX)?;
        let mut courses: Vec<Course> = Vec::with_capacity(count);
        for _ in 0..count {
            let share = self.f64("a share above 0, to 1", |x| x > 0.0 && x <= 1.0)?;
            let tau = self.f64("a tau in its range", |x| (TAU_MIN..=TAU_MAX).contains(&x))?;
            let excess = self.f64("an excess in its range", |x| x.abs() <= 1e6)?;
            let calls =
                if version > 1 { self.at_most("calls", CALLS_MAX as usize)? as u32 } else { CALLS_OF_1 };
            courses.push(Course { share, tau, excess, calls });
        }
        Ok(Steering { courses })
    }

    fn calibration(&mut self, version: u32, query_heads: usize) -> Result<Calibration, Fault> {
        let mut calibration = Calibration::new(query_heads);
        if version > 1 {
            let correction = f32::from_le_bytes(self.take()?);
            // No number is in the range either.
            if !(0.0..=CORRECTION_MAX).contains(&correction) {
                return Err(self.fault(4, "a correction in its range", correction));
            }
            calibration.correction = correction;
        }
        for audited in &mut calibration.audited {
            let count = self.window("ratios")?;
            if count > 0 {
                let replayed = if version > 1 { self.replayed(count)? } else { 0 };
                let log_predicted = f32::from_le_bytes(self.take()?);
                if !log_predicted.is_finite() {
                    return Err(self.fault(4, "a finite prediction", log_predicted));
                }
                *audited = Audited { ratios: Vec::with_capacity(count), replayed, log_predicted };
            }
            for _ in 0..count {
                audited.ratios.push(self.f16("a ratio of 0 or more")?);
            }
        }
        Ok(calibration)
    }

    fn replayed(&mut self, ratios: usize) -> Result<usize, Fault> {
        let found = usize::from(u16::from_le_bytes(self.take()?));
        let fault = || self.fault(2, format!("at most {ratios} that were replayed"), found);
        if found <= ratios { Ok(found) } else { Err(fault()) }
    }
}

/// Courses of version 1 do not say how many calls they were learnt from: enough for what they know to be kept to.
const CALLS_OF_1: u32 = 4;

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
