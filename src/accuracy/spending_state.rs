//! Spending as it lies in the manifest. docs/format.md draws the bytes.

use super::WINDOW;
use super::reader::{Fault, Reader};
use super::spending::{KvHeadSpending, MOST, QueryHeadSpending, Spending};
use longwave_storage::StateRecord;

/// Kind of the record in the manifest.
pub(crate) const SPENDING_KIND: u32 = 2;
/// Version of the encoding.
pub(crate) const SPENDING_VERSION: u32 = 1;

/// Encodes the layers that were called, of a model of so many KV heads and query heads; `None` if none was. `None` in
/// the slice stands for a layer without KV.
pub(crate) fn encode_spending(
    layers: &[Option<&Spending>],
    (kv_heads, query_heads): (usize, usize),
) -> Option<StateRecord> {
    let called = layers.iter().enumerate().filter_map(|(number, layer)| Some((number, (*layer)?)));
    let called: Vec<_> = called.filter(|(_, spending)| spending.calls > 0).collect();
    if called.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    for field in [WINDOW, kv_heads, query_heads, called.len()] {
        bytes.extend((field as u32).to_le_bytes());
    }
    for (number, spending) in called {
        bytes.extend((number as u32).to_le_bytes());
        bytes.extend(spending.calls.to_le_bytes());
        for head in &spending.kv_heads {
            [head.bytes_share, head.tau].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        }
        for head in &spending.query_heads {
            bytes.extend(head.predicted_error.to_le_bytes());
            bytes.extend((head.errors.len() as u16).to_le_bytes());
            head.errors.iter().for_each(|error| bytes.extend(error.to_le_bytes()));
        }
    }
    Some(StateRecord { kind: SPENDING_KIND, version: SPENDING_VERSION, bytes })
}

/// Decodes what [`encode_spending`] wrote for a model of `layers` layers. Nothing is allocated for counts that the
/// bytes do not hold.
pub(crate) fn decode_spending(
    bytes: &[u8],
    layers: usize,
    (kv_heads, query_heads): (usize, usize),
) -> Result<Vec<(usize, Spending)>, Fault> {
    let mut reader = Reader::new(bytes);
    reader.expect("errors a window", WINDOW)?;
    reader.expect("KV heads", kv_heads)?;
    reader.expect("query heads", query_heads)?;
    let count = reader.at_most("layers", layers)?;
    let mut decoded: Vec<(usize, Spending)> = Vec::new();
    for _ in 0..count {
        let number = reader.layer(decoded.last().map(|(last, _)| *last), layers)?;
        let calls = u64::from_le_bytes(reader.take()?);
        if calls == 0 {
            return Err(reader.fault(8, "at least one call", calls));
        }
        let kv_heads = (0..kv_heads).map(|_| reader.kv_head()).collect::<Result<_, _>>()?;
        let query_heads = (0..query_heads).map(|_| reader.query_head()).collect::<Result<_, _>>()?;
        decoded.push((number, Spending { calls, kv_heads, query_heads }));
    }
    reader.end()?;
    Ok(decoded)
}

impl Reader<'_> {
    fn kv_head(&mut self) -> Result<KvHeadSpending, Fault> {
        Ok(KvHeadSpending { bytes_share: self.mean("share of the bytes")?, tau: self.mean("tau")? })
    }

    fn query_head(&mut self) -> Result<QueryHeadSpending, Fault> {
        let predicted_error = self.mean("predicted error")?;
        let errors = (0..self.window("errors")?).map(|_| self.f16("an error of 0 or more"));
        Ok(QueryHeadSpending { predicted_error, errors: errors.collect::<Result<_, _>>()? })
    }

    fn mean(&mut self, what: &str) -> Result<f64, Fault> {
        self.f64(&format!("a mean {what} from 0 to {MOST}"), |x| (0.0..=MOST).contains(&x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use proptest::prelude::*;

    const HEADS: (usize, usize) = (2, 4);

    fn sample(calls: u64) -> Spending {
        let kv_head = |head: usize| KvHeadSpending { bytes_share: 0.03 + head as f64, tau: 0.0016 };
        let query_head = |head: usize| QueryHeadSpending {
            predicted_error: 0.01 * head as f64,
            errors: (0..head * 3).map(|at| f16::from_f64(0.5 / (at + 1) as f64)).collect(),
        };
        Spending {
            calls,
            kv_heads: (0..HEADS.0).map(kv_head).collect(),
            query_heads: (0..HEADS.1).map(query_head).collect(),
        }
    }

    fn encoded() -> Vec<u8> {
        encode_spending(&[Some(&sample(3)), None, Some(&sample(0)), Some(&sample(70))], HEADS).unwrap().bytes
    }

    #[test]
    fn spending_comes_back_as_it_was() {
        assert_eq!(decode_spending(&encoded(), 4, HEADS).unwrap(), [(0, sample(3)), (3, sample(70))]);
        assert!(encode_spending(&[None, Some(&sample(0))], HEADS).is_none());
    }

    #[test]
    fn other_models_cut_bytes_more_bytes_and_no_numbers_are_faults() {
        let bytes = encoded();
        assert_eq!(decode_spending(&bytes, 4, (1, 4)).unwrap_err().offset, 4);
        assert_eq!(decode_spending(&bytes, 4, (2, 8)).unwrap_err().offset, 8);
        assert_eq!(decode_spending(&bytes, 3, HEADS).unwrap_err().expected, "a layer from 1 to below 3");
        assert!((0..bytes.len()).all(|len| decode_spending(&bytes[..len], 4, HEADS).is_err()));
        assert_eq!(decode_spending(&[&bytes[..], &[0]].concat(), 4, HEADS).unwrap_err().offset, bytes.len());
        for (at, found) in
            [(20, 0u64.to_le_bytes()), (28, f64::NAN.to_le_bytes()), (36, 1e9f64.to_le_bytes())]
        {
            let mut bytes = encoded();
            bytes[at..at + 8].copy_from_slice(&found);
            assert_eq!(decode_spending(&bytes, 4, HEADS).unwrap_err().offset, at);
        }
    }

    #[test]
    fn counts_that_the_bytes_do_not_hold_cost_nothing() {
        let mut bytes = encoded();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode_spending(&bytes, 4, HEADS).unwrap_err().offset, 12);
        // As many layers as the model could have, and none there.
        bytes.truncate(16);
        bytes[12..16].copy_from_slice(&4096u32.to_le_bytes());
        assert_eq!(decode_spending(&bytes, 4096, HEADS).unwrap_err().offset, 16);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_a_fault(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            flips in 1u8..,
        ) {
            let _ = decode_spending(&bytes, 4, HEADS);
            let mut near = encoded();
            let at = at.index(near.len());
            near[at] ^= flips;
            // What still decodes is encoded to the same bytes: nothing in them is ignored.
            if let Ok(layers) = decode_spending(&near, 4, HEADS) {
                let mut all = [const { None }; 4];
                layers.iter().for_each(|(number, spending)| all[*number] = Some(spending));
                prop_assert_eq!(encode_spending(&all, HEADS).unwrap().bytes, near);
            }
        }
    }
}
