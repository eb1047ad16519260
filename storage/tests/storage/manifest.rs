//! Manifests: what is written is read, what breaks a rule is neither written nor read.

use longwave_storage::{
    Backend, Durability, Error, LayerKind, LogRecord, Manifest, MemoryBackend, SegmentRecord, StateRecord,
    read_manifest, write_manifest,
};
use proptest::prelude::*;

use crate::sample::{empty_manifest, pattern};

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
        assert_eq!(backend.files(), ["contexts/manual-v3/manifest"]);
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
    let log = |file: &str| Some(LogRecord { id: [1; 16], file: file.to_owned(), len: 96 });
    refused(&|m| m.name = "../etc".to_owned(), "must not start with a dot");
    refused(&|m| m.row_log = log("a/b"), "only letters");
    refused(&|m| (m.row_log, m.meta_log) = (log("a"), log("a")), "log a is named twice");
    refused(&|m| m.model.layers = 3, "2 layers, the model has 3");
    refused(&|m| m.model.query_heads = 10, "10 query heads over 3 KV heads");
    refused(&|m| m.model.kv_heads = 0, "kv_heads");
    refused(&|m| m.model.scale = f32::NAN, "finite");
    refused(&|m| m.settings.split_factor = Some(f32::INFINITY), "finite");
    refused(&|m| m.layers[1].kind = LayerKind::Sliding { window: 0 }, "layer 1: a sliding window of 0");
    refused(&|m| m.layers[0].sink_logits = vec![0.0; 8], "layer 0: 8 sink logits for 9 query heads");
    let with = |m: &mut Manifest, segments: Vec<SegmentRecord>| {
        m.layers[0].segments = segments;
        m.layers[0].length = 100;
    };
    refused(&|m| with(m, vec![segment(1, 0, 50), segment(2, 49, 50)]), "2.segment overlaps");
    refused(&|m| with(m, vec![segment(1, 50, 50), segment(2, 0, 50)]), "2.segment overlaps");
    refused(&|m| with(m, vec![segment(1, 0, 0)]), "1.segment overlaps the one before or is empty");
    refused(&|m| with(m, vec![segment(1, 0, 101)]), "position 101, but only 100 rows");
    refused(&|m| with(m, vec![segment(1, u64::MAX, 1)]), "overlaps");
    refused(&|m| with(m, vec![segment(1, 0, 9), segment(1, 9, 9)]), "1.segment is named twice");
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
    manifest.meta_log = Some(LogRecord { id: [6; 16], file: "m".to_owned(), len: 96 });
    manifest.token_count = 60;
    write_manifest(&backend, DIR, &manifest, Durability::Strict).unwrap();
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
    expected.extend([&numbers(&[2])[..], &77_u64.to_le_bytes(), &9_u64.to_le_bytes()].concat());
    expected.extend(numbers(&[0.5_f32.to_bits(); 9]));
    expected.extend([&1_u64.to_le_bytes()[..], &[7; 16], &text("7.segment"), &4_u64.to_le_bytes()].concat());
    expected.extend([&numbers(&[50])[..], &1007_u64.to_le_bytes(), &60_u64.to_le_bytes()].concat());
    // No row log; a meta log; token count; one piece of state.
    expected.push(0);
    expected.extend([&[1][..], &[6; 16], &text("m"), &96_u64.to_le_bytes(), &60_u64.to_le_bytes()].concat());
    expected.extend(
        [&1_u64.to_le_bytes()[..], &numbers(&[11, 3]), &21_u64.to_le_bytes(), &pattern(21, 5)].concat(),
    );
    let bytes = backend.contents("contexts/manual-v3/manifest").unwrap();
    assert_eq!(bytes[16..24], (expected.len() as u64).to_le_bytes());
    assert_eq!(bytes[48..], expected);
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
        manifest.meta_log = log_len.map(|len| LogRecord { id: [9; 16], file: "2.meta.log".to_owned(), len });
        manifest.state = states.iter().map(|(kind, version, len)| StateRecord { kind: *kind, version: *version, bytes: pattern(*len, 1) }).collect();
        let mut position = 0;
        for (index, (gap, rows)) in (0..).zip(&gaps) {
            manifest.layers[1].segments.push(segment(index, position + gap, *rows));
            position += gap + u64::from(*rows);
        }
        manifest.layers[1].length = position;
        write_manifest(&backend, DIR, &manifest, Durability::Flushed).unwrap();
        prop_assert_eq!(read_manifest(&backend, DIR).unwrap(), manifest);
    }
}
