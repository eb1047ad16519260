//! Calibration and steering as they lie in the manifest. docs/format.md draws the bytes.

use super::calibration::{Audited, BANDS, Calibration, WINDOW};
use super::steering::{Course, SHARES_MAX, Steering, TAU_MAX, TAU_MIN};
use half::f16;
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

/// What is wrong with a record: expected, found, and the offset in its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) offset: usize,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// A layer's number and what it had learnt.
pub(crate) type Decoded = (usize, Calibration, Steering);

/// Decodes what [`encode`] wrote for a model of `layers` layers and `query_heads` query heads. Nothing is allocated
/// for counts that the bytes do not hold.
pub(crate) fn decode(bytes: &[u8], layers: usize, query_heads: usize) -> Result<Vec<Decoded>, Fault> {
    let mut reader = Reader { bytes, offset: 0 };
    reader.expect("bands", BANDS)?;
    reader.expect("ratios a window", WINDOW)?;
    reader.expect("query heads", query_heads)?;
    let count = reader.at_most("layers", layers)?;
    let mut decoded: Vec<Decoded> = Vec::with_capacity(count);
    for _ in 0..count {
        let start = reader.offset;
        let number = reader.u32()? as usize;
        let least = decoded.last().map_or(0, |(last, ..)| last + 1);
        if !(least..layers).contains(&number) {
            return Err(Fault {
                offset: start,
                expected: format!("a layer from {least} to below {layers}"),
                found: number.to_string(),
            });
        }
        let steering = reader.steering()?;
        decoded.push((number, reader.calibration(query_heads)?, steering));
    }
    match bytes.len() - reader.offset {
        0 => Ok(decoded),
        more => Err(Fault {
            offset: reader.offset,
            expected: "the end".into(),
            found: format!("{more} bytes more"),
        }),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let rest = &self.bytes[self.offset..];
        let Some((taken, _)) = rest.split_first_chunk::<N>() else {
            return Err(self.fault(0, format!("{N} bytes"), rest.len()));
        };
        self.offset += N;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.take().map(u32::from_le_bytes)
    }

    /// A fault in what was read last, `back` bytes ago.
    fn fault(&self, back: usize, expected: impl Into<String>, found: impl ToString) -> Fault {
        Fault { offset: self.offset - back, expected: expected.into(), found: found.to_string() }
    }

    fn expect(&mut self, what: &str, expected: usize) -> Result<(), Fault> {
        let found = self.u32()?;
        if found as usize == expected {
            Ok(())
        } else {
            Err(self.fault(4, format!("{expected} {what}"), found))
        }
    }

    fn at_most(&mut self, what: &str, most: usize) -> Result<usize, Fault> {
        let found = self.u32()?;
        let fits = found as usize <= most;
        if fits { Ok(found as usize) } else { Err(self.fault(4, format!("at most {most} {what}"), found)) }
    }

    fn f64(&mut self, what: &str, fits: impl Fn(f64) -> bool) -> Result<f64, Fault> {
        let found = f64::from_le_bytes(self.take()?);
        if found.is_finite() && fits(found) { Ok(found) } else { Err(self.fault(8, what, found)) }
    }

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
            let count = usize::from(u16::from_le_bytes(self.take()?));
            if count > WINDOW {
                return Err(self.fault(2, format!("at most {WINDOW} ratios"), count));
            }
            if count > 0 {
                let log_predicted = f32::from_le_bytes(self.take()?);
                if !log_predicted.is_finite() {
                    return Err(self.fault(4, "a finite prediction", log_predicted));
                }
                *audited = Audited { ratios: Vec::with_capacity(count), log_predicted };
            }
            for _ in 0..count {
                let ratio = f16::from_le_bytes(self.take()?);
                if !(ratio >= f16::ZERO && ratio.is_finite()) {
                    return Err(self.fault(2, "a ratio of 0 or more", ratio));
                }
                audited.ratios.push(ratio);
            }
        }
        Ok(calibration)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
