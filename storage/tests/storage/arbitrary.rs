//! Anything may lie on disk: no parser panics, and headers of other versions and byte orders are named as such. The
//! checksums of what is changed here are put right, so that what lies behind them is reached.

use std::sync::Arc;

use longwave_storage::check::{CheckOptions, check_store};
use longwave_storage::{Backend, Crash, Error, MemoryBackend};
use proptest::prelude::*;

use crate::reseal::reseal;
use crate::sample::{build_store, read_all};

/// Reads everything from a store of which one file was replaced, and checks it. Must return.
fn survive(store: &MemoryBackend, path: &str, bytes: &[u8]) -> Result<(), Error> {
    store.replace(path, bytes).unwrap();
    let shared: Arc<dyn Backend> = Arc::new(store.clone());
    check_store(&shared, &CheckOptions::default());
    read_all(&shared).map(|_| ())
}

#[test]
fn resealing_an_intact_file_changes_nothing() {
    let store = build_store();
    for path in store.files() {
        let bytes = store.contents(&path).unwrap();
        let mut resealed = bytes.clone();
        reseal(&path, &mut resealed);
        assert!(bytes == resealed, "{path}");
    }
}

#[test]
fn other_versions_and_byte_orders_are_named() {
    let store = build_store();
    for path in store.files() {
        let bytes = store.contents(&path).unwrap();
        let newest = match path.as_str() {
            path if path.ends_with("/manifest") => 3,
            path if path.ends_with(".segment") => 2,
            _ => 1,
        };
        for (version, word) in [(0_u16, "older"), (newest + 1, "newer"), (0x1234, "newer")] {
            let mut other = bytes.clone();
            other[10..12].copy_from_slice(&version.to_le_bytes());
            reseal(&path, &mut other);
            let error = survive(&store, &path, &other).unwrap_err();
            let expected = format!(
                "{path}: format version {version} is {word} than the supported versions 1 to {newest}"
            );
            assert_eq!(error.to_string(), expected);
        }
        let mut other = bytes.clone();
        other[8..12].reverse();
        let error = survive(&store, &path, &other).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { offset: 8, .. }),
            "half of a reversed prologue is damage: {error}"
        );
        other[8..12].reverse();
        other[8..10].reverse();
        let error = survive(&store, &path, &other).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("{path}: written in big-endian byte order")),
            "{error}"
        );
        let mut other = bytes.clone();
        other[..8].copy_from_slice(b"SQLite f");
        assert!(matches!(survive(&store, &path, &other), Err(Error::Corrupt { offset: 0, .. })));
        store.replace(&path, &bytes).unwrap();
    }
}

#[test]
fn reserved_bytes_must_be_zero() {
    let store = build_store();
    for path in store.files() {
        let reserved: Vec<usize> = match path.rsplit('.').next() {
            Some("store") => (32..56).collect(),
            Some("log") => (64..88).chain([96 + 6, 96 + 7]).chain(96 + 28..96 + 32).collect(),
            // Of the header, and of the first and the fifth entry of the table.
            Some("segment") => (176..184).chain(192 + 52..256).chain(448 + 52..512).collect(),
            _ => vec![],
        };
        let bytes = store.contents(&path).unwrap();
        for at in reserved {
            let mut other = bytes.clone();
            other[at] = 1;
            reseal(&path, &mut other);
            assert!(matches!(survive(&store, &path, &other), Err(Error::Corrupt { .. })), "{path}: {at}");
        }
        store.replace(&path, &bytes).unwrap();
    }
}

/// Every field of the headers and tables takes values at its edges, its checksums put right.
#[test]
fn extreme_fields_are_survived() {
    let intact = build_store();
    for path in intact.files() {
        let bytes = intact.contents(&path).unwrap();
        let store = intact.after(Crash::Kill);
        for at in 16..bytes.len().min(600) {
            for value in [0_u64, 1, u64::from(u32::MAX), u64::MAX, 1 << 63, bytes.len() as u64, 1 << 40] {
                for width in [2, 4, 8] {
                    let mut other = bytes.clone();
                    let end = (at + width).min(other.len());
                    other[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                    reseal(&path, &mut other);
                    let _either = survive(&store, &path, &other);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_are_refused(file in 0_usize..6, bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let store = build_store();
        let path = store.files()[file].clone();
        prop_assert!(survive(&store, &path, &bytes).is_err());
    }

    #[test]
    fn random_bytes_behind_a_good_prologue_are_survived(
        file in 0_usize..6,
        mut bytes in prop::collection::vec(any::<u8>(), 200..6000),
    ) {
        let store = build_store();
        let path = store.files()[file].clone();
        bytes[..12].copy_from_slice(&store.contents(&path).unwrap()[..12]);
        reseal(&path, &mut bytes);
        let _either = survive(&store, &path, &bytes);
    }

    #[test]
    fn mutated_files_are_survived(
        file in 0_usize..6,
        edits in prop::collection::vec((0_usize..700, any::<u8>()), 1..12),
        cut in prop::option::of(0.0_f64..1.0),
    ) {
        let store = build_store();
        let path = store.files()[file].clone();
        let mut bytes = store.contents(&path).unwrap();
        for (at, value) in edits {
            let at = 12 + at % (bytes.len() - 12);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        reseal(&path, &mut bytes);
        let _either = survive(&store, &path, &bytes);
    }
}
