//! Columns that cannot be are refused by name and place.

use longwave_index::ladder::{LadderView, columns};
use longwave_index::validate;
use longwave_kernels::{bf16, f16};
use longwave_storage::{ColumnKind, Error, Segment};
use proptest::prelude::*;
use std::sync::LazyLock;

use super::{HEADS, KEY_DIM, Layer, ROWS, VALUE_DIM, open, write_and_open};
use longwave_index::BuiltSegment;

/// One build for all of this module's tests.
static BUILT: LazyLock<BuiltSegment> = LazyLock::new(|| Layer::new(21).build());

/// The segment with one column's bytes changed before it is written, so that all checksums are right.
fn with_changed(kind: ColumnKind, change: impl FnOnce(&mut Vec<u8>)) -> Segment {
    let mut written = BUILT.columns();
    let column = written.iter_mut().find(|column| column.kind == kind).unwrap();
    let mut bytes = column.parts.concat();
    change(&mut bytes);
    // The table demands whole elements; a column of another length is told by its length alone.
    column.element_size = 1;
    column.parts = vec![&bytes];
    write_and_open(&written, ROWS)
}

fn refuse(kind: ColumnKind, what: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let segment = with_changed(kind, change);
    let info = segment.columns().find(|info| info.kind == kind).unwrap();
    match validate(&segment) {
        Err(Error::Corrupt { column: Some(column), offset, .. }) => {
            assert_eq!(column, info.name, "{what}");
            let range = info.offset..info.offset + info.len.max(1);
            assert!(range.contains(&offset), "{what}: offset {offset} outside {range:?}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

#[test]
fn a_missing_or_cut_column_is_named() {
    for kind in columns::COLUMN_KINDS {
        let rest: Vec<_> = BUILT.columns().into_iter().filter(|column| column.kind != kind).collect();
        let segment = write_and_open(&rest, ROWS);
        assert!(matches!(validate(&segment), Err(Error::MissingColumn { .. })), "{kind:?}");
        refuse(kind, "a byte too few", |b| b.truncate(b.len() - 1));
        refuse(kind, "a byte too many", |b| b.push(0));
    }
    refuse(columns::VALUE_SLOPE, "a byte too few", |b| b.truncate(b.len() - 1));
    let rest = BUILT.columns().into_iter().filter(|column| column.kind != columns::VALUE_SLOPE);
    validate(&write_and_open(&rest.collect::<Vec<_>>(), ROWS)).unwrap();
}

#[test]
fn a_ladder_without_an_index_is_refused() {
    let kept = |kind: ColumnKind| kind.0 < 0x100 || kind.0 >= 0x110;
    let rest: Vec<_> = BUILT.columns().into_iter().filter(|column| kept(column.kind)).collect();
    assert!(matches!(validate(&write_and_open(&rest, ROWS)), Err(Error::Corrupt { .. })));
}

#[test]
fn parameters_of_no_known_writer_are_refused() {
    let kind = columns::PARAMETERS;
    let segment = with_changed(kind, |b| b[0] = 3);
    assert!(matches!(validate(&segment), Err(Error::Version { found: 3, oldest: 1, newest: 2, .. })));
    let old = with_changed(kind, |b| b[0] = 1);
    validate(&old).unwrap();
    assert!(LadderView::open(&old).unwrap().is_none(), "codes of version 1 are not read");
    refuse(kind, "an unknown moment source", |b| b[2] = 3);
    refuse(kind, "bits that are not a number", |b| put(b, 8, &f32::NAN.to_le_bytes()));
    refuse(kind, "a negative regularisation", |b| put(b, 16, &(-1f32).to_le_bytes()));
    refuse(kind, "something where nothing is", |b| b[21] = 1);
    refuse(kind, "the digest of another basis", |b| b[31] ^= 0x80);
}

#[test]
fn bases_that_no_query_can_use_are_refused() {
    refuse(columns::BITS, "bits that ascend", |b| b[KEY_DIM..2 * KEY_DIM].reverse());
    refuse(columns::BITS, "three bits", |b| b[0] = 3);
    refuse(columns::BASIS, "a matrix without an inverse", |b| b[..KEY_DIM].fill(0));
    let scales = columns::SCALES;
    let head = (6 * KEY_DIM + 3 * VALUE_DIM + 6) * 2;
    let number = |x: f32| bf16::from_f32(x).to_le_bytes();
    refuse(scales, "a scale of 0", |b| put(b, 2 * KEY_DIM, &[0; 2]));
    refuse(scales, "a negative scale in the second head", |b| put(b, head + 2, &number(-1.0)));
    refuse(scales, "a negative shape", |b| put(b, 8 * KEY_DIM, &number(-1.0)));
    refuse(scales, "an infinite middle", |b| put(b, 10 * KEY_DIM, &number(f32::INFINITY)));
    refuse(scales, "no value scale", |b| put(b, 12 * KEY_DIM, &number(f32::NAN)));
    refuse(scales, "negative noise", |b| put(b, head - 12, &number(-1.0)));
    refuse(scales, "an infinite unit", |b| put(b, head - 4, &number(f32::INFINITY)));
    refuse(scales, "something where nothing is", |b| put(b, head - 2, &number(1.0)));
}

#[test]
fn records_that_cannot_be_are_refused() {
    // Where in a record of rows of `dim` elements the factor is.
    let not_finite = |kind, dim: usize, factor: usize| {
        let record = dim / 2 + 2;
        refuse(kind, "a factor that is not finite", |b| {
            let at = b.len() / 3 / record * record + factor;
            put(b, at, &f16::NAN.to_le_bytes());
        });
        refuse(kind, "a negative factor", |b| {
            let at = b.len() - record + factor;
            put(b, at, &f16::from_f32(-0.5).to_le_bytes());
        });
    };
    not_finite(columns::CENTROID, KEY_DIM, KEY_DIM / 2);
    not_finite(columns::KEY_CODE, KEY_DIM, 0);
    not_finite(columns::VALUE_MEAN, VALUE_DIM, VALUE_DIM / 2);
    not_finite(columns::VALUE_CODE, VALUE_DIM, 0);
    not_finite(columns::VALUE_SLOPE, VALUE_DIM, VALUE_DIM / 2);
    refuse(columns::CLUSTER, "a count of other rows", |b| b[0] ^= 1);
    refuse(columns::SKETCH_OFFSETS, "a first sketch after the start", |b| b[0] = 8);
    refuse(columns::SKETCH_OFFSETS, "a head's sketches elsewhere", |b| b[8] ^= 8);
    refuse(columns::SKETCH_OFFSETS, "sketches past the end", |b| put(b, HEADS * 8, &u64::MAX.to_le_bytes()));
}

/// The factor of row `row` of head `head` made `factor`.
fn with_factor(kind: ColumnKind, dim: usize, (head, row): (usize, usize), factor: f16) -> Segment {
    let start = (head * ROWS + row) * (dim / 2 + 2);
    with_changed(kind, |b| put(b, start, &factor.to_le_bytes()))
}

#[test]
fn factors_of_rows_are_checked_where_they_are_read() {
    for (kind, dim, factor) in
        [(columns::KEY_CODE, KEY_DIM, f16::INFINITY), (columns::VALUE_CODE, VALUE_DIM, f16::from_f32(-0.5))]
    {
        let segment = with_factor(kind, dim, (1, 77), factor);
        let view = LadderView::validated(&segment).unwrap().expect("only a row is unsound");
        let check = |head: usize, rows: &[u32]| {
            let ladder = view.head(head).unwrap();
            if kind == columns::KEY_CODE {
                ladder.check_key_codes(ladder.listed_key_codes(rows)?, rows)
            } else {
                ladder.check_value_codes(ladder.listed_value_codes(rows)?, rows)
            }
        };
        check(0, &[77]).unwrap();
        check(1, &[0, 76, 78]).unwrap();
        let info = segment.columns().find(|info| info.kind == kind).unwrap();
        let place = info.offset + ((ROWS + 77) * (dim / 2 + 2)) as u64;
        match check(1, &[5, 77, 90]) {
            Err(Error::Corrupt { file, column, offset, .. }) => {
                assert_eq!((file.as_str(), column.as_ref()), (segment.path(), Some(&info.name)));
                assert_eq!(offset, place);
            }
            other => panic!("{other:?}"),
        }
    }
    // A zero has two signs.
    let segment = with_factor(columns::KEY_CODE, KEY_DIM, (0, 3), f16::NEG_ZERO);
    let view = open(&segment);
    let ladder = view.head(0).unwrap();
    ladder.check_key_codes(ladder.listed_key_codes(&[3]).unwrap(), &[3]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_byte_of_a_ladder_column_makes_a_reader_panic(
        column in 0..=columns::COLUMN_KINDS.len(),
        place: prop::sample::Index,
        byte: u8,
    ) {
        let kind = columns::COLUMN_KINDS.get(column).copied().unwrap_or(columns::VALUE_SLOPE);
        let segment = with_changed(kind, |bytes| {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        });
        let sound = validate(&segment).is_ok();
        assert!(!sound || LadderView::validated(&segment).is_ok());
        if let Ok(Some(view)) = LadderView::open(&segment) {
            for head in 0..HEADS {
                let ladder = view.head(head).unwrap();
                for cluster in 0..ladder.cluster_count() {
                    let _ = ladder.cluster(cluster);
                    ladder.sketch(cluster).unwrap();
                }
                ladder.key_code_bytes(0..ROWS).unwrap();
                ladder.value_code_bytes(3..ROWS).unwrap();
                let _ = view.basis(head);
            }
        } else {
            // Of the first version, whose ladders are left alone.
            let old = kind == columns::PARAMETERS && byte == 1;
            prop_assert!(!sound || old);
        }
    }
}
