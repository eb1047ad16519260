//! Where the query moment comes from: import, rebuild, and eval with another trace's.

use crate::compare::{eval_keys, number};
use crate::trace::{QUERY_HEADS, Trace};
use crate::{Setting, assert_keys};
use serde_json::{Value, json};

/// Layer 4 of the imported trace.
fn layer(setting: &Setting) -> Value {
    setting.document(&["inspect", "store", "manual", "--layer", "4", "--json"])["contexts"][0]["layers"][0]
        .clone()
}

/// Audits that count for each query head, in the band of the default tau.
fn audits(layer: &Value) -> Vec<u64> {
    let heads = layer["calibration"].as_array().unwrap().iter();
    let band =
        |head: &Value| head["bands"].as_array().unwrap().iter().find(|band| band["tau"] == 0.0016).cloned();
    heads.map(|head| band(head).expect("a band")["audits"].as_u64().unwrap()).collect()
}

#[test]
fn an_import_is_built_with_the_traces_queries_and_calibrated() {
    let setting = Setting::imported();
    let layer = layer(&setting);
    let ladder = &layer["segments"][0]["ladder"];
    // 60 positions, 3 query heads a KV head.
    assert_eq!((&ladder["moment_source"], &ladder["moment_positions"]), (&json!("context"), &json!(180)));
    assert_eq!(audits(&layer), [60; QUERY_HEADS]);
}

#[test]
fn rebuild_replaces_the_segments_of_the_layers_asked_for() {
    let setting = Setting::imported();
    let segments = || crate::files(&setting.path("store/segments"));
    let (before, old) = (segments(), layer(&setting));
    assert_eq!(setting.succeed(&["rebuild", "store", "manual", "--layers", "4"]), "");
    let new = layer(&setting);
    assert_ne!(new["segments"][0]["file"], old["segments"][0]["file"]);
    assert_eq!(new["segments"][0]["ladder"], old["segments"][0]["ladder"], "the same rows and queries");
    assert_eq!(audits(&new), [60; QUERY_HEADS]);
    assert_eq!((segments().len(), before.iter().filter(|file| segments().contains(file)).count()), (2, 1));
    setting.succeed(&["rebuild", "store", "manual"]);
    assert!(before.iter().all(|file| !segments().contains(file)));
    assert!(setting.succeed(&["fsck", "store"]).starts_with("clean"));

    setting.refused(&["rebuild", "store", "manual", "--layers", "9"], "layer 9 is out of range");
    setting.refused(&["rebuild", "store", "manual", "--layers", "0"], "layer 0 is not clustered");
    setting.refused(&["rebuild", "store", "other"], "no context other");
    setting.refused(&["rebuild", "nowhere", "manual"], "nowhere");
}

#[test]
fn eval_takes_the_moment_of_another_trace() {
    let setting = Setting::new(&Trace::default());
    let write = |name: &str, trace: &Trace| std::fs::write(setting.path(name), trace.file()).unwrap();
    write("other.safetensors", &Trace { tokens: 300, queries: 40, ..Trace::default() });
    let eval = |more: &[&str]| {
        let all = ["eval", "trace.safetensors", "--method", "longwave", "--tau", "0.01", "--json"];
        setting.lines(&[&all, more].concat()).remove(0)
    };
    let (own, other) = (eval(&[]), eval(&["--moment", "other.safetensors"]));
    assert_keys(&other, &eval_keys());
    assert!(own["error_mean"] != other["error_mean"], "{own} {other}");
    assert!(number(&other, "error_mean") < 3.0 * number(&own, "error_mean"), "{own} {other}");
    assert!(number(&other, "bound_covered") > 0.8, "calibrated on its own queries: {other}");

    write("fewer.safetensors", &Trace { layers: vec![1], ..Trace::default() });
    setting.refused(&["eval", "trace.safetensors", "--moment", "fewer.safetensors"], "--moment");
    setting.refused(&["eval", "trace.safetensors", "--moment", "nowhere"], "nowhere");
}
