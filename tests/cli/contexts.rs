//! Forking, renaming, removing and collecting.

use crate::{Setting, assert_keys};
use std::fs;

fn files(setting: &Setting, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(setting.path("store").join(dir)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn contexts_are_forked_renamed_removed_and_collected() {
    let setting = Setting::imported();
    let before = (files(&setting, "segments"), files(&setting, "logs"));
    setting.succeed(&["fork", "store", "manual", "branch"]);
    setting.succeed(&["fork", "store", "manual", "stump", "--at", "100"]);
    assert_eq!((files(&setting, "segments"), files(&setting, "logs")), before, "a fork writes no rows");
    let stump = setting.document(&["inspect", "store", "stump", "--json"]);
    assert!(stump.to_string().contains("100"), "{stump}");
    assert_eq!(setting.run(&["fork", "store", "manual", "branch"]).status.code(), Some(2));
    assert_eq!(setting.run(&["fork", "store", "manual", "x", "--at", "100000"]).status.code(), Some(2));

    setting.succeed(&["mv", "store", "branch", "kept"]);
    assert_eq!(setting.run(&["mv", "store", "branch", "other"]).status.code(), Some(2));
    setting.succeed(&["rm", "store", "manual", "stump"]);
    assert_eq!(files(&setting, "contexts"), ["kept"]);
    // The fork names all of it.
    let collected = setting.document(&["gc", "store", "--json"]);
    assert_keys(&collected, "dry_run files bytes in_use");
    assert_eq!(collected["bytes"], 0);
    assert_eq!(files(&setting, "segments"), before.0);
    setting.succeed(&["fsck", "store"]);

    setting.succeed(&["rm", "store", "kept"]);
    let dry = setting.document(&["gc", "store", "--dry-run", "--json"]);
    assert_eq!((dry["dry_run"].as_bool(), dry["in_use"].as_u64()), (Some(true), Some(0)));
    assert_eq!(dry["files"].as_array().unwrap().len(), before.0.len() + before.1.len());
    assert!(dry["bytes"].as_u64().unwrap() > 10_000);
    assert_eq!(files(&setting, "segments"), before.0, "a dry run removes nothing");
    let listed = setting.succeed(&["gc", "store"]);
    assert_eq!(listed.lines().count(), before.0.len() + before.1.len());
    assert!(files(&setting, "segments").is_empty() && files(&setting, "logs").is_empty());
    setting.succeed(&["fsck", "store"]);
}
