//! fsck.

use crate::store::column;
use crate::{Setting, assert_keys, files, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Runs `fsck --json`, and gives its exit code and document.
fn fsck(setting: &Setting) -> (Option<i32>, Value) {
    let output = setting.run(&["fsck", "store", "--json"]);
    (output.status.code(), serde_json::from_str(&text(&output.stdout)).unwrap())
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_whole_store_is_clean() {
    let setting = Setting::imported();
    let (code, report) = fsck(&setting);
    assert_eq!(code, Some(0));
    assert_keys(&report, "store clean files blocks bytes faults notes");
    assert_eq!(
        (&report["clean"], &report["faults"], &report["notes"]),
        (&json!(true), &json!([]), &json!([]))
    );
    // The header, a manifest, two logs, two segments and a profile.
    assert_eq!(report["files"], 7);
    assert!(setting.succeed(&["fsck", "store"]).starts_with("clean: 7 files"));
}

#[test]
fn a_flipped_byte_is_named_by_file_column_and_offset() {
    let setting = Setting::imported();
    let document = setting.document(&["inspect", "store", "manual", "--layer", "4", "--json"]);
    let segment = &document["contexts"][0]["layers"][0]["segments"][0];
    let file = segment["file"].as_str().unwrap();
    // A byte of the second block of each of two columns; faults are reported by block.
    let mut expected = Vec::new();
    for name in ["keys", "values"] {
        let offset = column(segment, name)["offset"].as_u64().unwrap();
        flip(&setting.path("store").join(file), offset + 4096 + 77);
        expected.push((name, offset + 4096));
    }
    let (code, report) = fsck(&setting);
    assert_eq!((code, &report["clean"]), (Some(1), &json!(false)));
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{report}");
    for (fault, (name, offset)) in faults.iter().zip(&expected) {
        assert_keys(fault, "file column offset what");
        assert_eq!(
            (&fault["file"], &fault["column"], &fault["offset"]),
            (&json!(file), &json!(name), &json!(offset))
        );
    }
    let output = setting.run(&["fsck", "store"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stdout);
    assert!(text.contains(&format!("fault: {file}, column keys, offset {}: ", expected[0].1)), "{text}");
    assert!(text.ends_with("read\n") && text.contains("2 faults"), "{text}");
}

#[test]
fn logs_manifest_and_header_are_checked() {
    for (file, offset) in [("longwave.store", 20), ("contexts/manual/manifest", 90)] {
        let setting = Setting::imported();
        flip(&setting.path("store").join(file), offset);
        let (code, report) = fsck(&setting);
        assert_eq!(code, Some(1), "{file}");
        assert_eq!(report["faults"][0]["file"], file, "{report}");
    }
    let setting = Setting::imported();
    let logs: Vec<String> = files(&setting.path("store/logs"));
    assert_eq!(logs.len(), 2, "{logs:?}");
    for log in &logs {
        flip(&setting.path("store/logs").join(log), 300);
    }
    let (code, report) = fsck(&setting);
    let named: Vec<&str> =
        report["faults"].as_array().unwrap().iter().map(|f| f["file"].as_str().unwrap()).collect();
    assert_eq!(code, Some(1));
    assert!(logs.iter().all(|log| named.contains(&format!("logs/{log}").as_str())), "{named:?}");
    assert!(report["faults"].as_array().unwrap().iter().all(|fault| fault["offset"].is_u64()), "{report}");
}

#[test]
fn a_missing_segment_is_a_fault_and_one_that_nothing_names_is_a_note() {
    let setting = Setting::imported();
    let segments = setting.path("store/segments");
    let file = files(&segments).remove(0);
    fs::rename(segments.join(&file), segments.join("stray.segment")).unwrap();
    let (code, report) = fsck(&setting);
    assert_eq!(code, Some(1));
    assert_eq!(report["faults"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(
        (&report["faults"][0]["file"], &report["faults"][0]["what"]),
        (&json!(format!("segments/{file}")), &json!("missing"))
    );
    assert!(report["notes"][0].as_str().unwrap().contains("segments/stray.segment"), "{report}");

    fs::copy(segments.join("stray.segment"), segments.join(&file)).unwrap();
    let (code, report) = fsck(&setting);
    assert_eq!((code, report["notes"].as_array().unwrap().len()), (Some(0), 1));
}

#[test]
fn a_check_changes_nothing_and_does_not_make_a_store() {
    let setting = Setting::imported();
    let before = files(&setting.path("store/contexts/manual"));
    fsck(&setting);
    assert_eq!(files(&setting.path("store/contexts/manual")), before);
    setting.refused(&["fsck", "nowhere"], "holds no store");
    setting.refused(&["inspect", "nowhere"], "holds no store");
    assert!(!setting.path("nowhere").exists());
}

#[test]
fn salvage_makes_a_store_of_what_is_intact() {
    let setting = Setting::imported();
    let whole = setting.document(&["fsck", "store", "--salvage", "copy", "--json"]);
    assert_keys(&whole, "store clean files blocks bytes faults notes salvage");
    let tokens = whole["salvage"][0]["rows_committed"].as_u64().unwrap();
    assert_keys(&whole["salvage"][0], "context rows_committed rows_kept whole token_ids faults");
    assert_eq!(
        (&whole["salvage"][0]["whole"], &whole["salvage"][0]["rows_kept"]),
        (&json!(true), &json!(tokens))
    );
    assert_eq!(fsck(&setting).0, Some(0));
    assert!(setting.succeed(&["fsck", "copy"]).starts_with("clean: "));
    setting.refused(&["fsck", "store", "--salvage", "copy"], "not an empty directory");

    let document = setting.document(&["inspect", "store", "manual", "--layer", "4", "--json"]);
    let segment = &document["contexts"][0]["layers"][0]["segments"][0];
    let file = setting.path("store").join(segment["file"].as_str().unwrap());
    flip(&file, column(segment, "index.centroid")["offset"].as_u64().unwrap());
    let output = setting.run(&["fsck", "store", "--salvage", "saved"]);
    assert_eq!(output.status.code(), Some(1), "the store that was looked at is damaged");
    let said = text(&output.stdout);
    assert!(
        said.contains(&format!("saved: manual: {tokens} of {tokens} rows, its index built again")),
        "{said}"
    );
    assert!(setting.succeed(&["fsck", "saved"]).starts_with("clean: "));
}
