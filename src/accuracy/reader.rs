//! Reading state out of the manifest's bytes.

use super::calibration::WINDOW;
use half::f16;

/// What is wrong with a record: expected, found, and the offset in its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) offset: usize,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// Bytes that are read from front to back, nothing of them believed before it is compared.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, offset: 0 }
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let rest = &self.bytes[self.offset..];
        let Some((taken, _)) = rest.split_first_chunk::<N>() else {
            return Err(self.fault(0, format!("{N} bytes"), rest.len()));
        };
        self.offset += N;
        Ok(*taken)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.take().map(u32::from_le_bytes)
    }

    /// A fault in what was read last, `back` bytes ago.
    pub(crate) fn fault(&self, back: usize, expected: impl Into<String>, found: impl ToString) -> Fault {
        Fault { offset: self.offset - back, expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn expect(&mut self, what: &str, expected: usize) -> Result<(), Fault> {
        let found = self.u32()?;
        if found as usize == expected {
            Ok(())
        } else {
            Err(self.fault(4, format!("{expected} {what}"), found))
        }
    }

    pub(crate) fn at_most(&mut self, what: &str, most: usize) -> Result<usize, Fault> {
        let found = self.u32()?;
        let fits = found as usize <= most;
        if fits { Ok(found as usize) } else { Err(self.fault(4, format!("at most {most} {what}"), found)) }
    }

    pub(crate) fn f64(&mut self, what: &str, fits: impl Fn(f64) -> bool) -> Result<f64, Fault> {
        let found = f64::from_le_bytes(self.take()?);
        if found.is_finite() && fits(found) { Ok(found) } else { Err(self.fault(8, what, found)) }
    }

    /// A number of 0 or more.
    pub(crate) fn f16(&mut self, what: &str) -> Result<f16, Fault> {
        let found = f16::from_le_bytes(self.take()?);
        if found >= f16::ZERO && found.is_finite() { Ok(found) } else { Err(self.fault(2, what, found)) }
    }

    /// How many of a window of [`WINDOW`] there are.
    pub(crate) fn window(&mut self, what: &str) -> Result<usize, Fault> {
        let count = usize::from(u16::from_le_bytes(self.take()?));
        if count <= WINDOW {
            Ok(count)
        } else {
            Err(self.fault(2, format!("at most {WINDOW} {what}"), count))
        }
    }

    /// The number of a layer, above the last one's and below `layers`.
    pub(crate) fn layer(&mut self, last: Option<usize>, layers: usize) -> Result<usize, Fault> {
        let (number, least) = (self.u32()? as usize, last.map_or(0, |last| last + 1));
        if (least..layers).contains(&number) {
            Ok(number)
        } else {
            Err(self.fault(4, format!("a layer from {least} to below {layers}"), number))
        }
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<(), Fault> {
        match self.bytes.len() - self.offset {
            0 => Ok(()),
            more => Err(self.fault(0, "the end", format!("{more} bytes more"))),
        }
    }
}
