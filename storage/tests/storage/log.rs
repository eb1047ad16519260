//! Logs: records come back as they were appended, and a torn tail is written over.

use longwave_storage::{
    Backend, Error, Identity, LogHeader, LogReader, LogWriter, MemoryBackend, Record, RecordHeader,
    RecordKind, Result,
};
use proptest::prelude::*;

use crate::sample::{IDENTITY, log_header, pattern, rows_record};

const PATH: &str = "contexts/a/3.rows.log";

fn backend() -> MemoryBackend {
    let backend = MemoryBackend::new();
    backend.create_dir_all("contexts/a").unwrap();
    backend
}

fn read(backend: &MemoryBackend, header: LogHeader, committed_len: u64) -> Result<Vec<Record>> {
    let mut reader = LogReader::open(backend, PATH, header, committed_len)?;
    let mut records = vec![];
    while let Some(record) = reader.next()? {
        records.push(record);
    }
    assert_eq!(reader.offset(), committed_len);
    Ok(records)
}

#[test]
fn records_come_back_in_order() {
    let backend = backend();
    let mut log = LogWriter::create(&backend, PATH, log_header(7)).unwrap();
    assert_eq!(log.len(), 96);
    let tokens = RecordHeader { kind: RecordKind::Tokens, layer: 0, first_position: 1 << 40, count: 3 };
    let queries = RecordHeader { kind: RecordKind::Queries, layer: 29, first_position: 2, count: u32::MAX };
    assert_eq!(log.append(&rows_record(4, 9, 2), &[b"one, ", b"two"]).unwrap(), 96 + 48 + 8);
    log.append_batch([(tokens, &[&b"abc"[..]][..]), (queries, &[][..])]).unwrap();
    assert_eq!(log.len(), 152 + 48 + 3 + 48);
    let records = read(&backend, log_header(7), log.len()).unwrap();
    let expected = [(rows_record(4, 9, 2), &b"one, two"[..], 96), (tokens, b"abc", 152), (queries, b"", 203)];
    assert_eq!(records.len(), 3);
    for (record, (header, payload, offset)) in records.iter().zip(expected) {
        assert_eq!((record.header, record.payload.as_slice(), record.offset), (header, payload, offset));
    }
    // What is not committed is not read.
    assert_eq!(read(&backend, log_header(7), 152).unwrap(), records[..1]);
    assert_eq!(read(&backend, log_header(7), 96).unwrap(), []);
}

#[test]
fn a_length_that_ends_inside_a_record_is_corrupt() {
    let backend = backend();
    let mut log = LogWriter::create(&backend, PATH, log_header(7)).unwrap();
    log.append(&rows_record(0, 0, 1), &[b"first"]).unwrap();
    let boundary = log.len();
    log.append(&rows_record(0, 1, 1), &[b"second"]).unwrap();
    for committed_len in 0..=log.len() + 1 {
        let result = read(&backend, log_header(7), committed_len);
        if [96, boundary, log.len()].contains(&committed_len) {
            assert!(result.is_ok(), "{committed_len}");
        } else {
            assert!(matches!(result, Err(Error::Corrupt { .. })), "{committed_len}");
        }
    }
}

#[test]
fn a_torn_tail_is_written_over_and_the_file_never_shortened() {
    let backend = backend();
    let mut log = LogWriter::create(&backend, PATH, log_header(7)).unwrap();
    let committed = log.append(&rows_record(1, 0, 5), &[&pattern(500, 1)]).unwrap();
    log.append(&rows_record(1, 5, 5), &[&pattern(3000, 2)]).unwrap();
    let whole = backend.contents(PATH).unwrap();
    for torn in committed as usize..whole.len() {
        backend.replace(PATH, &whole[..torn]).unwrap();
        let mut log = LogWriter::resume(&backend, PATH, log_header(7), committed).unwrap();
        let len = log.append(&rows_record(2, 77, 1), &[b"after"]).unwrap();
        let records = read(&backend, log_header(7), len).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].payload, pattern(500, 1));
        assert_eq!(
            (records[1].header, records[1].payload.as_slice()),
            (rows_record(2, 77, 1), &b"after"[..])
        );
        assert_eq!(backend.contents(PATH).unwrap().len(), torn.max(len as usize));
    }
    assert!(matches!(LogWriter::resume(&backend, PATH, log_header(7), 95), Err(Error::Corrupt { .. })));
    let beyond = whole.len() as u64 + 1;
    assert!(matches!(LogWriter::resume(&backend, PATH, log_header(7), beyond), Err(Error::Corrupt { .. })));
}

#[test]
fn another_models_log_and_another_log_are_refused() {
    let backend = backend();
    let len = LogWriter::create(&backend, PATH, log_header(7)).unwrap().len();
    let other = LogHeader { identity: Identity([3; 32]), ..log_header(7) };
    match read(&backend, other, len).unwrap_err() {
        Error::Identity { expected, found, .. } => {
            assert_eq!((expected, found), (Identity([3; 32]), IDENTITY))
        }
        error => panic!("{error}"),
    }
    assert!(matches!(LogWriter::resume(&backend, PATH, other, len), Err(Error::Identity { .. })));
    assert!(matches!(read(&backend, log_header(8), len), Err(Error::Corrupt { offset: 16, .. })));
    assert!(matches!(LogWriter::create(&backend, PATH, log_header(9)), Err(Error::AlreadyExists { .. })));
}

#[test]
fn a_record_that_moved_is_refused() {
    let backend = backend();
    let mut log = LogWriter::create(&backend, PATH, log_header(7)).unwrap();
    let first = log.append(&rows_record(0, 0, 1), &[b"11111"]).unwrap() as usize;
    let second = log.append(&rows_record(0, 1, 1), &[b"22222"]).unwrap();
    let mut bytes = backend.contents(PATH).unwrap();
    let (head, tail) = bytes.split_at_mut(first);
    tail.swap_with_slice(&mut head[96..]);
    backend.replace(PATH, &bytes).unwrap();
    assert!(matches!(read(&backend, log_header(7), second), Err(Error::Corrupt { offset: 136, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_records_round_trip(
        records in prop::collection::vec((1_u16..4, any::<u32>(), any::<u64>(), any::<u32>(), 0_usize..3000), 0..12),
        resume_at in 0_usize..12,
    ) {
        let backend = backend();
        let mut log = LogWriter::create(&backend, PATH, log_header(1)).unwrap();
        for (index, (kind, layer, first_position, count, len)) in records.iter().enumerate() {
            if index == resume_at {
                log = LogWriter::resume(&backend, PATH, log_header(1), log.len()).unwrap();
            }
            let kind = RecordKind::from_code(*kind).unwrap();
            let header = RecordHeader { kind, layer: *layer, first_position: *first_position, count: *count };
            let payload = pattern(*len, index);
            log.append(&header, &[&payload[..len / 3], &payload[len / 3..]]).unwrap();
        }
        let found = read(&backend, log_header(1), log.len()).unwrap();
        prop_assert_eq!(found.len(), records.len());
        for (index, (record, (kind, layer, first_position, count, len))) in found.iter().zip(&records).enumerate() {
            prop_assert_eq!(record.header.kind.code(), *kind);
            prop_assert_eq!(record.header.layer, *layer);
            prop_assert_eq!(record.header.first_position, *first_position);
            prop_assert_eq!(record.header.count, *count);
            prop_assert_eq!(&record.payload, &pattern(*len, index));
        }
    }
}

#[test]
fn a_damaged_payload_can_be_passed_over_and_a_damaged_header_cannot() {
    let backend = backend();
    let mut log = LogWriter::create(&backend, PATH, log_header(7)).unwrap();
    for (position, payload) in [(0, &b"first"[..]), (2, b"second"), (9, b"third")] {
        log.append(&rows_record(1, position, 2), &[payload]).unwrap();
    }
    let len = log.len();
    let second = 96 + 48 + 5;
    let damaged = |at: usize| {
        let backend = backend.after(longwave_storage::Crash::Kill);
        let mut bytes = backend.contents(PATH).unwrap();
        bytes[at] ^= 1;
        backend.replace(PATH, &bytes).unwrap();
        LogReader::open(&backend, PATH, log_header(7), len).unwrap()
    };
    let mut reader = damaged(second + 48 + 2);
    assert_eq!(reader.next().unwrap().unwrap().payload, b"first");
    assert!(matches!(reader.next(), Err(Error::Corrupt { .. })));
    assert_eq!(reader.offset(), second as u64);
    assert_eq!(reader.skip().unwrap(), Some(rows_record(1, 2, 2)));
    assert_eq!(reader.next().unwrap().unwrap().payload, b"third");
    assert_eq!((reader.next().unwrap(), reader.skip().unwrap()), (None, None));
    let mut reader = damaged(second + 24);
    reader.next().unwrap();
    assert!(reader.next().is_err() && reader.skip().is_err());
}
