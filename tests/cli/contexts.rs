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

#[test]
fn a_policy_of_forgetting_is_set_and_shown() {
    let setting = Setting::imported();
    let layers = |setting: &Setting| {
        let document = setting.document(&["inspect", "store", "manual", "--json"]);
        document["contexts"][0]["layers"].as_array().unwrap().clone()
    };
    assert!(layers(&setting).iter().all(|layer| layer["forgotten"].is_null()));
    setting.refused(&["forget", "store", "manual", "--drop", "0"], "forgetting.steps");
    assert_eq!(setting.run(&["forget", "store", "manual", "--drop", "9", "--never"]).status.code(), Some(2));
    setting.succeed(&["forget", "store", "manual", "--drop", "300"]);
    let kept: Vec<_> = layers(&setting).into_iter().filter(|layer| layer["kind"] != "absent").collect();
    assert!(!kept.is_empty());
    for layer in kept {
        let forgotten = &layer["forgotten"];
        assert_keys(forgotten, "policy after_steps steps clusters clusters_demoted rows_dropped");
        assert_eq!((&forgotten["policy"], &forgotten["after_steps"]), (&"drop".into(), &300.into()));
        assert_eq!((&forgotten["steps"], &forgotten["rows_dropped"]), (&0.into(), &0.into()));
        assert!(forgotten["clusters"].as_u64().unwrap() > 10 && forgotten["clusters_demoted"] == 0);
    }
    let shown = setting.succeed(&["inspect", "store", "manual"]);
    assert!(shown.contains("forgets") && shown.contains("drop"), "{shown}");
    setting.succeed(&["forget", "store", "manual", "--never"]);
    assert!(layers(&setting).iter().all(|layer| layer["forgotten"].is_null()));
    setting.succeed(&["fsck", "store"]);
}
