//! Calibration and steering as they lie in the manifest. docs/format.md draws the bytes.

use super::calibration::{Audited, BANDS, Calibration, WINDOW};
use super::reader::{Fault, Reader};
use super::steering::{Course, SHARES_MAX, Steering, TAU_MAX, TAU_MIN};
use longwave_storage::StateRecord;

/// Kind of the record in the manifest.
pub(crate) const KIND: u32 = 1;
/// Version of the encoding.
pub(crate) const VERSION: u32 = 1;

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
        }
        for audited in &calibration.audited {
            bytes.extend((audited.ratios.len() as u16).to_le_bytes());
            if !audited.ratios.is_empty() {
                bytes.extend(audited.log_predicted.to_le_bytes());
                audited.ratios.iter().for_each(|ratio| bytes.extend(ratio.to_le_bytes()));
            }
        }
    }
    Some(StateRecord { kind: KIND, version: VERSION, bytes })
}

/// A layer's number and what it had learnt.
pub(crate) type Decoded = (usize, Calibration, Steering);

/// Decodes what [`encode`] wrote for a model of `layers` layers and `query_heads` query heads. Nothing is allocated
/// for counts that the bytes do not hold.
pub(crate) fn decode(bytes: &[u8], layers: usize, query_heads: usize) -> Result<Vec<Decoded>, Fault> {
    let mut reader = Reader::new(bytes);
    reader.expect("bands", BANDS)?;
    reader.expect("ratios a window", WINDOW)?;
    reader.expect("query heads", query_heads)?;
    let count = reader.at_most("layers", layers)?;
    let mut decoded: Vec<Decoded> = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.layer(decoded.last().map(|(last, ..)| *last), layers)?;
        let steering = reader.steering()?;
        decoded.push((number, reader.calibration(query_heads)?, steering));
    }
    reader.end()?;
    Ok(decoded)
}

impl Reader<'_> {
    fn steering(&mut self) -> Result<Steering, Fault> {
        let count = self.at_most("shares", SHARES_MAX)?;
        let mut courses: Vec<Course> = Vec::with_capacity(count);
        for _ in 0..count {
            let share = self.f64("a share above 0, to 1", |x| x > 0.0 && x <= 1.0)?;
            let tau = self.f64("a tau in its range", |x| (TAU_MIN..=TAU_MAX).contains(&x))?;
            let excess = self.f64("an excess in its range", |x| x.abs() <= 1e6)?;
            courses.push(Course { share, tau, excess });
        }
        Ok(Steering { courses })
    }

    fn calibration(&mut self, query_heads: usize) -> Result<Calibration, Fault> {
        let mut calibration = Calibration::new(query_heads);
        for audited in &mut calibration.audited {
            let count = self.window("ratios")?;
            if count > 0 {
                let log_predicted = f32::from_le_bytes(self.take()?);
                if !log_predicted.is_finite() {
                    return Err(self.fault(4, "a finite prediction", log_predicted));
                }
                *audited = Audited { ratios: Vec::with_capacity(count), log_predicted };
            }
            for _ in 0..count {
                audited.ratios.push(self.f16("a ratio of 0 or more")?);
            }
        }
        Ok(calibration)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
