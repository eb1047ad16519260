//! Segments: what is written is what is read, and nothing else is.

use std::sync::Arc;

use longwave_storage::{
    Alignment, Backend, COLUMNS_MAX, ColumnKind, ElementKind, Error, Expected, Geometry, Identity,
    MemoryBackend, NewColumn, Result, RowForm, Segment, SegmentHeader, SegmentRecord, write_segment,
};
use proptest::prelude::*;

use crate::reseal::reseal;
use crate::sample::{Columns, EMPTY, GEOMETRY, IDENTITY, OPAQUE, pattern, segment_header};

const PATH: &str = "segments/a.segment";

fn written(header: &SegmentHeader, columns: &[NewColumn<'_>]) -> Result<Arc<MemoryBackend>> {
    let backend = MemoryBackend::new();
    backend.create_dir_all("segments")?;
    let len = write_segment(&backend, PATH, header, columns)?;
    assert_eq!(backend.contents(PATH)?.len() as u64, len);
    assert_eq!(backend.files(), [PATH]);
    Ok(Arc::new(backend))
}

fn open(backend: &Arc<MemoryBackend>) -> Result<Segment> {
    Segment::open(Arc::clone(backend) as Arc<dyn Backend>, PATH, &Expected::of_model(IDENTITY))
}

fn sample() -> (SegmentHeader, Columns, Arc<MemoryBackend>) {
    let header = segment_header(5, 1000, 70);
    let columns = Columns::new(&GEOMETRY, 70, 3);
    let backend = written(&header, &columns.list(&GEOMETRY)).unwrap();
    (header, columns, backend)
}

#[test]
fn what_was_written_is_read() {
    let (header, columns, backend) = sample();
    let segment = open(&backend).unwrap();
    assert_eq!(*segment.header(), header);
    assert!(!segment.is_mapped(), "opening maps nothing");
    let info: Vec<_> =
        segment.columns().map(|c| (c.kind, c.offset, c.len, c.element_size, c.blocks)).collect();
    // 192 bytes of header and 5 * 64 of table; then pages; then cache lines.
    assert_eq!(
        info,
        [
            (ColumnKind::KEYS, 4096, 70 * 3 * 16 * 2, 2, 2),
            (ColumnKind::VALUES, 12_288, 70 * 3 * 24 * 2, 2, 3),
            (ColumnKind::POSITIONS, 22_400, 70 * 3 * 4, 4, 1),
            (EMPTY, 23_296, 0, 8, 0),
            (OPAQUE, 23_296, 84, 12, 1),
        ]
    );
    // Then 7 checksums, at the next cache line.
    assert_eq!(segment.file_len(), 23_424 + 7 * 8);
    for kind in [ColumnKind::KEYS, ColumnKind::VALUES, ColumnKind::POSITIONS, EMPTY, OPAQUE] {
        let column = segment.column(kind).unwrap();
        let bytes = column.all().unwrap();
        assert_eq!(bytes, columns.of(kind), "{kind:?}");
        assert_eq!(bytes.as_ptr().align_offset(64), 0, "{kind:?}");
    }
    assert_eq!(segment.column(OPAQUE).unwrap().info().name, "opaque-twelve-byte-items");
    assert!(segment.is_mapped());
    assert_eq!(segment.verify(), []);
}

#[test]
fn a_table_longer_than_a_page_is_read_to_its_end() {
    let columns = Columns::new(&GEOMETRY, 70, 3);
    let mut list = columns.list(&GEOMETRY);
    let names: Vec<String> = (list.len()..COLUMNS_MAX).map(|number| format!("opaque-{number}")).collect();
    let bytes = pattern(24, 9);
    list.extend(names.iter().zip(0x200..).map(|(name, kind)| NewColumn {
        kind: ColumnKind(kind),
        name,
        element_size: 8,
        alignment: Alignment::CacheLine,
        parts: vec![&bytes],
    }));
    let backend = written(&segment_header(5, 1000, 70), &list).unwrap();
    let segment = open(&backend).unwrap();
    let found: Vec<ColumnKind> = segment.columns().map(|column| column.kind).collect();
    assert_eq!(found, list.iter().map(|column| column.kind).collect::<Vec<_>>());
    assert_eq!(segment.column(*found.last().unwrap()).unwrap().all().unwrap(), bytes);
    // The last entry lies behind the first page, and counts.
    let mut damaged = backend.contents(PATH).unwrap();
    damaged[192 + 64 * 63 + 9] ^= 1;
    backend.replace(PATH, &damaged).unwrap();
    assert!(matches!(open(&backend), Err(Error::Corrupt { offset: 168, .. })));
}

#[test]
fn a_bad_block_is_never_served_and_good_ones_are() {
    let (_, columns, backend) = sample();
    let mut bytes = backend.contents(PATH).unwrap();
    bytes[12_288 + 4096 + 17] ^= 4;
    backend.replace(PATH, &bytes).unwrap();
    let segment = open(&backend).unwrap();
    let values = segment.column(ColumnKind::VALUES).unwrap();
    assert_eq!(values.bytes(0..4096).unwrap(), &columns.values[..4096]);
    assert_eq!(values.bytes(8192..9000).unwrap(), &columns.values[8192..9000]);
    // The second time as well, and by every range that touches the block.
    for range in [4096..4097, 4000..4100, 8191..8192, 0..10_080, 4096..4097] {
        match values.bytes(range.clone()).unwrap_err() {
            Error::Corrupt { file, column, offset, .. } => {
                assert_eq!(
                    (file.as_str(), column.as_deref(), offset),
                    (PATH, Some("values"), 12_288 + 4096),
                    "{range:?}"
                );
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(segment.column(ColumnKind::KEYS).unwrap().all().unwrap(), columns.keys);
    let faults = segment.verify();
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].column.as_deref(), faults[0].offset), (Some("values"), Some(12_288 + 4096)));
}

#[test]
fn ranges_outside_a_column_and_unknown_columns_are_errors() {
    let (_, _, backend) = sample();
    let segment = open(&backend).unwrap();
    let opaque = segment.column(OPAQUE).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    for range in [0..85, 85..85, 10..9, usize::MAX - 1..usize::MAX] {
        assert!(matches!(opaque.bytes(range), Err(Error::Range { len: 84, .. })));
    }
    assert_eq!(opaque.bytes(84..84).unwrap(), [0_u8; 0]);
    let missing = segment.column(ColumnKind(0x999)).unwrap_err();
    assert_eq!(missing.to_string(), "segments/a.segment: has no column of kind 0x999");
}

#[test]
fn a_mismatch_with_what_is_expected_is_an_error() {
    let (header, _, backend) = sample();
    let record = SegmentRecord {
        id: header.id,
        file: "a.segment".to_owned(),
        first_position: 1000,
        rows: 70,
        file_len: backend.contents(PATH).unwrap().len() as u64,
    };
    let expected = Expected {
        identity: IDENTITY,
        layer: Some(5),
        geometry: Some(GEOMETRY),
        record: Some(record.clone()),
    };
    let open = |expected: &Expected| Segment::open(Arc::clone(&backend) as Arc<dyn Backend>, PATH, expected);
    assert!(open(&expected).is_ok());
    let other = Identity([0xee; 32]);
    match open(&Expected { identity: other, ..expected.clone() }).unwrap_err() {
        Error::Identity { file, expected, found } => {
            assert_eq!((file.as_str(), expected, found), (PATH, other, IDENTITY))
        }
        error => panic!("{error}"),
    }
    let offset_of = |expected: Expected| match open(&expected).unwrap_err() {
        Error::Corrupt { offset, .. } => offset,
        error => panic!("{error}"),
    };
    let with = |record| Expected { record: Some(record), ..expected.clone() };
    assert_eq!(offset_of(Expected { layer: Some(6), ..expected.clone() }), 116);
    let geometry = Geometry { value_dim: 16, key_dim: 24, ..GEOMETRY };
    assert_eq!(offset_of(Expected { geometry: Some(geometry), ..expected.clone() }), 120);
    assert_eq!(offset_of(with(SegmentRecord { id: [1; 16], ..record.clone() })), 16);
    assert_eq!(offset_of(with(SegmentRecord { first_position: 999, ..record.clone() })), 96);
    assert_eq!(offset_of(with(SegmentRecord { rows: 69, ..record.clone() })), 96);
    assert_eq!(offset_of(with(SegmentRecord { file_len: record.file_len + 1, ..record })), 104);
}

#[test]
fn columns_that_do_not_fit_the_header_are_refused() {
    let header = segment_header(0, 0, 70);
    let columns = Columns::new(&GEOMETRY, 70, 0);
    let refused = |change: &dyn Fn(&mut Vec<NewColumn<'_>>), why: &str| {
        let mut list = columns.list(&GEOMETRY);
        change(&mut list);
        let error = written(&header, &list).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(&|list| list[0].parts = vec![&[0; 32]], "32 bytes, expected 6720 for 70 rows of 3 KV heads");
    refused(&|list| list[0].element_size = 4, "elements of 4 bytes, expected 2");
    refused(&|list| list[1].alignment = Alignment::CacheLine, "must be page-aligned");
    refused(&|list| list[2].kind = ColumnKind(7), "no column of kind 3");
    refused(&|list| list[4].kind = EMPTY, "comes twice");
    refused(&|list| list[4].parts = vec![&[0; 13]], "not whole elements of 12");
    refused(&|list| list[4].name = "a name of over twenty-four", "printable");
    refused(&|list| list[4].name = "", "printable");
    let header = SegmentHeader { rows: 0, ..header };
    assert!(matches!(written(&header, &columns.list(&GEOMETRY)), Err(Error::Limit { .. })));
}

/// Columns of a segment that keeps its rows in `form`; names and records as storage wants them.
fn in_form<'a>(form: RowForm, columns: &'a Columns, reduced: &'a [Vec<u8>; 2]) -> Vec<NewColumn<'a>> {
    let mut list = columns.list(&GEOMETRY);
    match form {
        RowForm::Full => {}
        RowForm::Codes => drop(list.drain(..2)),
        RowForm::EightBits => {
            let kinds =
                [(ColumnKind::KEYS_8BIT, GEOMETRY.key_dim), (ColumnKind::VALUES_8BIT, GEOMETRY.value_dim)];
            for ((column, (kind, dim)), bytes) in list.iter_mut().zip(kinds).zip(reduced) {
                (column.kind, column.element_size) = (kind, RowForm::record_size(dim));
                column.parts = vec![bytes];
            }
        }
    }
    list
}

#[test]
fn the_form_of_the_rows_is_that_of_version_and_columns() {
    let header = segment_header(0, 0, 70);
    let columns = Columns::new(&GEOMETRY, 70, 0);
    let reduced = [GEOMETRY.key_dim, GEOMETRY.value_dim].map(|dim| pattern(3 * 70 * (dim as usize + 4), 5));
    for form in RowForm::ALL {
        let backend = written(&header, &in_form(form, &columns, &reduced)).unwrap();
        let mut bytes = backend.contents(PATH).unwrap();
        let version = if form == RowForm::Full { 1 } else { 2 };
        assert_eq!(bytes[10..12], [version, 0], "{form}");
        let segment = open(&backend).unwrap();
        assert_eq!(segment.row_form(), form);
        assert_eq!(segment.verify(), []);
        if form == RowForm::EightBits {
            assert_eq!(segment.column(ColumnKind::VALUES_8BIT).unwrap().all().unwrap(), reduced[1]);
        }
        // The other version has no segment with these columns.
        bytes[10] = 3 - version;
        reseal(PATH, &mut bytes);
        backend.replace(PATH, &bytes).unwrap();
        let error = open(&backend).unwrap_err().to_string();
        assert!(error.contains(&format!("as version {} has them", 3 - version)), "{form}: {error}");
    }
    for missing in [0, 1] {
        let mut list = in_form(RowForm::EightBits, &columns, &reduced);
        list.remove(missing);
        assert!(written(&header, &list).unwrap_err().to_string().contains("not in one form"));
    }
    let mut list = in_form(RowForm::EightBits, &columns, &reduced);
    list[0].element_size = 10;
    let error = written(&header, &list).unwrap_err().to_string();
    assert!(error.contains("elements of 10 bytes, expected 20"), "{error}");
}

#[test]
fn positions_must_be_a_permutation() {
    let header = segment_header(0, 0, 70);
    for (at, position, why) in [(3, 70_u32, "70 outside the segment"), (80, 5, "5 twice")] {
        let mut columns = Columns::new(&GEOMETRY, 70, 0);
        columns.positions[at * 4..at * 4 + 4].copy_from_slice(&position.to_le_bytes());
        let faults = open(&written(&header, &columns.list(&GEOMETRY)).unwrap()).unwrap().verify();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].column.as_deref(), Some("positions"));
        assert!(faults[0].what.contains(why), "{}", faults[0]);
    }
}

#[test]
fn a_file_replaced_between_opening_and_mapping_is_noticed() {
    let (_, columns, backend) = sample();
    let segment = open(&backend).unwrap();
    let header = segment_header(5, 1001, 70);
    write_segment(backend.as_ref(), PATH, &header, &columns.list(&GEOMETRY)).unwrap();
    assert!(matches!(segment.column(ColumnKind::KEYS), Err(Error::Corrupt { offset: 184, .. })));
}

#[test]
fn threads_may_touch_the_same_blocks() {
    let (_, columns, backend) = sample();
    let segment = open(&backend).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (segment, values) = (&segment, &columns.values);
            scope.spawn(move || {
                let column = segment.column(ColumnKind::VALUES).unwrap();
                for i in 0..2000 {
                    let start = (i * 397 + thread * 31) % values.len();
                    let end = (start + 900).min(values.len());
                    assert_eq!(column.bytes(start..end).unwrap(), &values[start..end]);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_geometry_round_trips(
        (kv_heads, key_dim, value_dim, rows) in (1_u32..6, 1_u32..80, 1_u32..80, 1_u32..90),
        element in prop::sample::select(vec![ElementKind::F16, ElementKind::Bf16, ElementKind::F32]),
        cuts in prop::collection::vec(0.0_f64..1.0, 0..4),
        extra in prop::collection::vec((0_usize..9000, 1_u32..9), 0..5),
        ranges in prop::collection::vec((0.0_f64..1.0, 0.0_f64..1.0), 8),
    ) {
        let geometry = Geometry { kv_heads, key_dim, value_dim, element };
        let header = SegmentHeader { geometry, ..segment_header(9, 12_345, rows) };
        let columns = Columns::new(&geometry, rows, 2);
        let mut list = columns.list(&geometry);
        list.truncate(3);
        let mut points: Vec<usize> = cuts.iter().map(|cut| (cut * columns.keys.len() as f64) as usize).collect();
        points.extend([0, columns.keys.len()]);
        points.sort_unstable();
        list[0].parts = points.windows(2).map(|pair| &columns.keys[pair[0]..pair[1]]).collect();
        let opaque: Vec<Vec<u8>> = extra.iter().map(|(count, size)| pattern(count / *size as usize * *size as usize, *count)).collect();
        for (index, (bytes, (_, size))) in opaque.iter().zip(&extra).enumerate() {
            let alignment = if index % 2 == 0 { Alignment::CacheLine } else { Alignment::Page };
            let kind = ColumnKind(0x100 + index as u32);
            list.insert(index, NewColumn { kind, name: "opaque", element_size: *size, alignment, parts: vec![bytes] });
        }
        let segment = open(&written(&header, &list).unwrap()).unwrap();
        prop_assert_eq!(segment.header(), &header);
        for new in &list {
            let whole = new.parts.concat();
            let column = segment.column(new.kind).unwrap();
            prop_assert_eq!(column.info().offset % u64::from(new.alignment.bytes()), 0);
            for (a, b) in &ranges {
                let (a, b) = ((a * whole.len() as f64) as usize, (b * whole.len() as f64) as usize);
                prop_assert_eq!(column.bytes(a.min(b)..a.max(b)).unwrap(), &whole[a.min(b)..a.max(b)]);
            }
            prop_assert_eq!(column.all().unwrap(), whole);
        }
        prop_assert_eq!(segment.verify(), vec![]);
    }
}
