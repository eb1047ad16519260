//! Manifests: what is written is read, what breaks a rule is neither written nor read.

use longwave_storage::{
    Backend, Crash, CutRecord, Durability, Error, LayerKind, LogPlace, LogRecord, Manifest, MemoryBackend,
    OriginRecord, SegmentRecord, StateRecord, read_durable_manifest, read_manifest, write_manifest,
};
use proptest::prelude::*;

use crate::sample::{empty_manifest, log_record, pattern};

const DIR: &str = "contexts/manual-v3";

fn backend() -> MemoryBackend {
    let backend = MemoryBackend::new();
    backend.create_dir_all(DIR).unwrap();
    backend.create_dir_all("segments").unwrap();
    backend
}

fn segment(index: u8, first_position: u64, rows: u32) -> SegmentRecord {
    SegmentRecord {
        id: [index; 16],
        file: format!("{index}.segment"),
        first_position,
        rows,
        file_len: 1000 + u64::from(index),
    }
}

#[test]
fn the_newest_manifest_counts_and_none_is_left_beside_it() {
    let backend = backend();
    assert!(matches!(read_manifest(&backend, DIR), Err(Error::Missing { .. })));
    for (generation, durability) in [(1, Durability::Strict), (2, Durability::None), (3, Durability::Flushed)]
    {
        let manifest = Manifest { generation, ..empty_manifest() };
        write_manifest(&backend, DIR, &manifest, durability).unwrap();
        assert_eq!(read_manifest(&backend, DIR).unwrap(), manifest);
        // One that is not durable leaves the one before in its place.
        let durable = read_durable_manifest(&backend, DIR).unwrap().generation;
        match durability {
            Durability::None => {
                assert_eq!(durable, 1);
                assert_eq!(backend.files(), [format!("{DIR}/manifest"), format!("{DIR}/manifest.recent")]);
                let damaged = backend.after(Crash::Kill);
                damaged.replace(&format!("{DIR}/manifest.recent"), b"torn").unwrap();
                assert_eq!(read_manifest(&damaged, DIR).unwrap().generation, 1);
            }
            _ => {
                assert_eq!(durable, generation);
                assert_eq!(backend.files(), ["contexts/manual-v3/manifest"]);
            }
        }
    }
}

#[test]
fn a_manifest_that_breaks_a_rule_is_not_written() {
    let backend = backend();
    let intact = empty_manifest();
    write_manifest(&backend, DIR, &intact, Durability::Strict).unwrap();
    let refused = |change: &dyn Fn(&mut Manifest), why: &str| {
        let mut manifest = empty_manifest();
        change(&mut manifest);
        match write_manifest(&backend, DIR, &manifest, Durability::Strict).unwrap_err() {
            Error::Input { what, .. } => assert!(what.contains(why), "{what}"),
            error => panic!("{error}"),
        }
        assert_eq!(read_manifest(&backend, DIR).unwrap(), intact);
    };
    let log = |file: &str| vec![log_record(1, file, 96)];
    refused(&|m| m.name = "../etc".to_owned(), "must not start with a dot");
    refused(&|m| m.row_logs = log("a/b"), "only letters");
    refused(&|m| (m.row_logs, m.meta_logs) = (log("a"), log("a")), "log a is named twice");
    refused(
        &|m| m.row_logs = vec![log_record(1, "a", 96), LogRecord { end: 7, ..log_record(2, "b", 96) }],
        "ends behind where the next one goes on",
    );
    refused(
        &|m| m.meta_logs = (0..65).map(|i| log_record(i, &format!("{i}"), 96)).collect(),
        "65 logs of a kind, over the limit of 64",
    );
    refused(&|m| m.extra = vec![0; 4097], "4097 extra bytes, over the limit of 4096");
    refused(&|m| m.model.layers = 3, "2 layers, the model has 3");
    refused(&|m| m.model.query_heads = 10, "10 query heads over 3 KV heads");
    refused(&|m| m.model.kv_heads = 0, "kv_heads");
    refused(&|m| m.model.scale = f32::NAN, "finite");
    refused(&|m| m.settings.split_factor = Some(f32::INFINITY), "finite");
    refused(&|m| m.layers[1].kind = LayerKind::Sliding { window: 0 }, "layer 1: a sliding window of 0");
    refused(&|m| m.layers[0].sink_logits = vec![0.0; 8], "layer 0: 8 sink logits for 9 query heads");
    let with = |m: &mut Manifest, segments: Vec<SegmentRecord>| {
        m.layers[0].sealed_at = vec![u64::MAX; segments.len()];
        m.layers[0].segments = segments;
        m.layers[0].length = 100;
    };
    refused(&|m| with(m, vec![segment(1, 0, 50), segment(2, 49, 50)]), "2.segment overlaps");
    refused(&|m| with(m, vec![segment(1, 50, 50), segment(2, 0, 50)]), "2.segment overlaps");
    let sealed_at = |m: &mut Manifest, lengths: &[u64]| {
        with(m, vec![segment(1, 4, 50)]);
        m.layers[0].sealed_at = lengths.to_vec();
    };
    refused(&|m| sealed_at(m, &[53]), "1.segment sealed at 53 rows");
    refused(&|m| sealed_at(m, &[54, 60]), "1 segments, sealed at 2 lengths");
    refused(&|m| with(m, vec![segment(1, 0, 0)]), "1.segment overlaps the one before or is empty");
    refused(&|m| with(m, vec![segment(1, 0, 101)]), "position 101, but only 100 rows");
    refused(&|m| with(m, vec![segment(1, u64::MAX, 1)]), "overlaps");
    refused(&|m| with(m, vec![segment(1, 0, 9), segment(1, 9, 9)]), "1.segment is named twice");
    let cut = |m: &mut Manifest, segment: SegmentRecord, end: u64| {
        m.layers[0].segments = vec![self::segment(1, 4, 50)];
        m.layers[0].sealed_at = vec![54];
        m.layers[0].length = 70;
        m.layers[0].cuts = vec![CutRecord { segment, end }];
    };
    refused(&|m| cut(m, segment(2, 54, 16), 71), "2.segment is cut at 71");
    refused(&|m| cut(m, segment(2, 54, 16), 54), "2.segment is cut at 54");
    refused(&|m| cut(m, segment(2, 30, 24), 54), "2.segment is cut at 54");
    refused(&|m| cut(m, segment(1, 54, 16), 60), "1.segment is named twice");
    refused(
        &|m| {
            cut(m, segment(2, 54, 6), 60);
            m.layers[0].cuts.push(CutRecord { segment: segment(3, 61, 5), end: 65 });
        },
        "3.segment is cut at 65",
    );
    let mut allowed = empty_manifest();
    cut(&mut allowed, segment(2, 30, 40), 60);
    write_manifest(&backend, DIR, &allowed, Durability::Strict).unwrap();
}

#[test]
fn a_manifest_over_the_limit_is_not_written() {
    let state =
        vec![StateRecord { kind: 1, version: 1, bytes: vec![0; longwave_storage::MANIFEST_SIZE_MAX] }];
    let manifest = Manifest { state, ..empty_manifest() };
    let written = write_manifest(&backend(), DIR, &manifest, Durability::Strict);
    assert!(matches!(written, Err(Error::Limit { .. })), "{written:?}");
}

/// The payload as `docs/format.md` describes it, written down field by field.
#[test]
fn the_payload_is_laid_out_as_documented() {
    let backend = backend();
    let mut manifest = empty_manifest();
    manifest.layers[1].segments = vec![segment(7, 4, 50)];
    manifest.layers[1].length = 60;
    manifest.layers[1].sealed_at = vec![59];
    manifest.layers[1].cuts = vec![CutRecord { segment: segment(8, 50, 30), end: 57 }];
    manifest.meta_logs = vec![LogRecord { end: 44, ..log_record(6, "m", 96) }, log_record(5, "n", 128)];
    manifest.token_count = 60;
    manifest.origin = Some(OriginRecord { context_id: [3; 16], generation: 12, length: 40 });
    write_manifest(&backend, DIR, &manifest, Durability::Strict).unwrap();
    let bytes = backend.contents("contexts/manual-v3/manifest").unwrap();
    let expected = payload(2);
    assert_eq!((bytes[10], bytes[11]), (2, 0));
    assert_eq!(bytes[16..24], (expected.len() as u64).to_le_bytes());
    assert_eq!(bytes[48..], expected);
}

/// A manifest of version 1 says the same with what it has.
#[test]
fn version_1_is_read_for_ever() {
    let backend = backend();
    let payload = payload(1);
    let mut file = b"LWMANIF\0\x2b\x1a\x01\x00".to_vec();
    file.extend(&xxhash_rust::xxh3::xxh3_64(&file).to_le_bytes()[..4]);
    file.extend((payload.len() as u64).to_le_bytes());
    file.extend(xxhash_rust::xxh3::xxh3_128(&payload).to_le_bytes());
    file.extend(xxhash_rust::xxh3::xxh3_64(&file).to_le_bytes());
    file.extend(payload);
    backend.replace("contexts/manual-v3/manifest", &file).unwrap();
    let mut expected = empty_manifest();
    expected.layers[1].segments = vec![segment(7, 4, 50)];
    expected.layers[1].length = 60;
    expected.layers[1].sealed_at = vec![54 + 64];
    expected.meta_logs = vec![LogRecord { place: LogPlace::Context, ..log_record(6, "m", 96) }];
    (expected.token_count, expected.extra, expected.prefix) = (60, vec![], [0; 16]);
    expected.first_unnamed = 0;
    let found = read_manifest(&backend, DIR).unwrap();
    assert_eq!(found, expected);
    assert_eq!(found.meta_logs[0].path("manual-v3"), "contexts/manual-v3/m");
    assert_eq!(log_record(6, "m", 96).path("manual-v3"), "logs/m");
    let newer = [&file[..10], &[4, 0]].concat();
    let sum = xxhash_rust::xxh3::xxh3_64(&newer).to_le_bytes();
    file.splice(10..16, [4, 0, sum[0], sum[1], sum[2], sum[3]]);
    let header = xxhash_rust::xxh3::xxh3_64(&file[..40]).to_le_bytes();
    file.splice(40..48, header);
    backend.replace("contexts/manual-v3/manifest", &file).unwrap();
    let error = read_manifest(&backend, DIR).unwrap_err();
    assert!(matches!(error, Error::Version { found: 4, oldest: 1, newest: 3, .. }), "{error}");
}

fn payload(version: u16) -> Vec<u8> {
    let mut expected: Vec<u8> = vec![];
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    expected.extend(b"context-id-16byt");
    expected.extend(1_u64.to_le_bytes());
    expected.extend(text("manual-v3"));
    expected.extend(crate::sample::IDENTITY.0);
    expected.extend([[0x51; 32], [0x52; 32]].concat());
    expected.extend(text("theta 100000, interleaved"));
    // Layers, heads, dims, f16; scale; a soft-cap.
    expected.extend(numbers(&[2, 9, 3, 16, 24, 1, 0.25_f32.to_bits()]));
    expected.push(1);
    expected.extend(30.0_f32.to_le_bytes());
    expected.extend(numbers(&[4, 64, 8192, 1024, 32, 128, 32, 12]));
    expected.push(1);
    expected.extend(4.0_f32.to_le_bytes());
    expected.extend(0x1234_5678_9abc_u64.to_le_bytes());
    expected.extend([1, 1]);
    expected.extend(77_u32.to_le_bytes());
    // Two layers: clustered, without sink logits, segments or rows; sliding, with all three.
    expected.extend(2_u64.to_le_bytes());
    expected.extend([&numbers(&[0])[..], &[0; 24]].concat());
    // Without lengths or cuts.
    expected.extend(&[0; 16][..16 * usize::from(version - 1)]);
    expected.extend([&numbers(&[2])[..], &77_u64.to_le_bytes(), &9_u64.to_le_bytes()].concat());
    expected.extend(numbers(&[0.5_f32.to_bits(); 9]));
    expected.extend([&1_u64.to_le_bytes()[..], &[7; 16], &text("7.segment"), &4_u64.to_le_bytes()].concat());
    expected.extend([&numbers(&[50])[..], &1007_u64.to_le_bytes()].concat());
    if version == 2 {
        expected.extend([1_u64.to_le_bytes(), 59_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat());
        expected.extend([&[8; 16][..], &text("8.segment"), &50_u64.to_le_bytes()].concat());
        expected.extend([&numbers(&[30])[..], &1008_u64.to_le_bytes(), &57_u64.to_le_bytes()].concat());
    }
    expected.extend(60_u64.to_le_bytes());
    // No row log; meta logs; token count; what version 2 adds; one piece of state.
    if version == 1 {
        expected.push(0);
        expected
            .extend([&[1][..], &[6; 16], &text("m"), &96_u64.to_le_bytes(), &60_u64.to_le_bytes()].concat());
    } else {
        expected.extend([0_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat());
        for (id, file, len, end) in [(6, "m", 96_u64, 44), (5, "n", 128, u64::MAX)] {
            expected.extend([&[id; 16][..], &text(file), &len.to_le_bytes(), &end.to_le_bytes()].concat());
            expected.extend(numbers(&[0]));
        }
        expected.extend(
            [&60_u64.to_le_bytes()[..], &text("tenant 5"), &[0x5f; 16], &9_u64.to_le_bytes()].concat(),
        );
        expected.extend([&[1][..], &[3; 16], &12_u64.to_le_bytes(), &40_u64.to_le_bytes()].concat());
    }
    expected.extend(
        [&1_u64.to_le_bytes()[..], &numbers(&[11, 3]), &21_u64.to_le_bytes(), &pattern(21, 5)].concat(),
    );
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_manifest_round_trips(
        (generation, token_count, seed) in any::<(u64, u64, u64)>(),
        name in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}",
        gaps in prop::collection::vec((0_u64..1 << 40, 1_u32..1 << 20), 0..20),
        states in prop::collection::vec((any::<u32>(), any::<u32>(), 0_usize..300), 0..4),
        (softcap, split_factor) in prop::option::of(0.1_f32..99.0).prop_flat_map(|a| (Just(a), prop::option::of(1.0_f32..9.0))),
        log_len in prop::option::of(any::<u64>()),
    ) {
        let backend = backend();
        let mut manifest = Manifest { generation, token_count, name, ..empty_manifest() };
        manifest.settings.seed = seed;
        manifest.settings.split_factor = split_factor;
        manifest.model.softcap = softcap;
        manifest.meta_logs = log_len.map(|len| log_record(9, "2.meta.log", len)).into_iter().collect();
        manifest.state = states.iter().map(|(kind, version, len)| StateRecord { kind: *kind, version: *version, bytes: pattern(*len, 1) }).collect();
        let mut position = 0;
        for (index, (gap, rows)) in (0..).zip(&gaps) {
            manifest.layers[1].segments.push(segment(index, position + gap, *rows));
            position += gap + u64::from(*rows);
        }
        manifest.layers[1].length = position;
        manifest.layers[1].sealed_at = vec![position; gaps.len()];
        write_manifest(&backend, DIR, &manifest, Durability::Flushed).unwrap();
        prop_assert_eq!(read_manifest(&backend, DIR).unwrap(), manifest);
    }
}
