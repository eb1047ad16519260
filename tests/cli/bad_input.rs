//! What cannot be done is refused with a message: exit 2, nothing changed, no panic.

use crate::Setting;
use crate::trace::Trace;
use std::fs;

#[test]
fn files_that_are_no_traces() {
    let setting = Setting::new(&Trace::default());
    fs::write(setting.path("text"), "not a tensor in sight, at any length of it").unwrap();
    fs::write(setting.path("empty"), "").unwrap();
    let whole = fs::read(setting.path("trace.safetensors")).unwrap();
    fs::write(setting.path("torn"), &whole[..whole.len() - 100]).unwrap();
    for command in [&["import", "FILE", "store", "name"][..], &["eval", "FILE"]] {
        for (file, message) in [
            ("nowhere", "reading trace nowhere"),
            ("text", "not a safetensors file"),
            ("empty", "not a safetensors file"),
            ("torn", "not a safetensors file"),
            (".", "reading trace"),
        ] {
            let arguments: Vec<&str> =
                command.iter().map(|&part| if part == "FILE" { file } else { part }).collect();
            setting.refused(&arguments, message);
        }
    }
    assert!(!setting.path("store").exists(), "a refused import makes no store");
}

#[test]
fn traces_that_do_not_say_what_they_hold() {
    let metadata = |key, value| Trace { metadata: vec![(key, value)], ..Trace::default() };
    let cases = [
        (metadata("tokens", "many"), "expected a number, found \"many\""),
        (metadata("tokens", "701"), "expected shape [701, 2, 16], found [700, 2, 16]"),
        (metadata("kv_heads", "0"), "expected shape"),
        (metadata("first_query_position", "3"), "do not end at token 700"),
        (metadata("first_query_position", "18446744073709551615"), "do not end at token 700"),
        (Trace { without: Some("layers.4.value"), ..Trace::default() }, "tensor layers.4.value is missing"),
        (Trace { layers: vec![], ..Trace::default() }, "no tensor `layers.{i}.key`"),
        (Trace { layers: vec![1, 1_000_000_000_000], ..Trace::default() }, "expected layers below 1024"),
        (Trace { layers: vec![usize::MAX], ..Trace::default() }, "expected layers below 1024"),
        (Trace { key_element: Some((5, f32::NAN)), ..Trace::default() }, "not finite"),
    ];
    for (trace, message) in cases {
        let setting = Setting::new(&trace);
        setting.refused(&["import", "trace.safetensors", "store", "name"], message);
        setting.refused(&["eval", "trace.safetensors"], message);
        assert!(!setting.path("store/contexts/name").exists(), "a refused import leaves no context");
    }
}

#[test]
fn options_out_of_range() {
    let setting = Setting::imported();
    let cases: [(&[&str], &str); 16] = [
        (&["import", "trace.safetensors", "store", "new", "--dtype", "f8"], "f8"),
        (&["import", "trace.safetensors", "store", "../new"], "../new"),
        (&["eval", "trace.safetensors", "--dtype", "int8"], "int8"),
        (&["eval", "trace.safetensors", "--layers", "3"], "layer 3 is not in the trace, which holds [1, 4]"),
        (&["eval", "trace.safetensors", "--retrieve", "1.5"], "between 0 and 1"),
        (&["eval", "trace.safetensors", "--estimate", "nan"], "between 0 and 1"),
        (&["eval", "trace.safetensors", "--queries", "0"], "--queries must be at least 1"),
        (&["eval", "trace.safetensors", "--cluster", "0"], "tokens_per_cluster"),
        (&["eval", "trace.safetensors", "--method", "guess"], "guess"),
        (
            &["explain", "store", "manual", "--layer", "4", "--method", "retroinfer", "--retrieve=-0.1"],
            "between 0 and 1",
        ),
        (&["explain", "store", "manual", "--layer", "9"], "layer 9 is out of range: the model has 5 layers"),
        (&["explain", "store", "manual", "--layer", "2"], "layer 2 "),
        (
            &["explain", "store", "manual", "--layer", "1", "--position", "3"],
            "no query is sampled at position 3",
        ),
        (&["bench", "attend", "--tokens", "0"], "0"),
        (&["bench", "attend", "--tokens", "100", "--head-dim", "12"], "multiple of 8"),
        (&["bench", "attend", "--tokens", "100", "--kv-heads", "0"], "kv_heads"),
    ];
    for (arguments, message) in cases {
        setting.refused(arguments, message);
    }
}

#[test]
fn stores_and_contexts_that_are_not_there() {
    let setting = Setting::imported();
    fs::create_dir(setting.path("other")).unwrap();
    fs::write(setting.path("other/file"), "something else").unwrap();
    for command in ["inspect", "fsck"] {
        setting.refused(&[command, "other"], "holds no store");
        setting.refused(&[command, "trace.safetensors"], "holds no store");
    }
    setting.refused(&["explain", "other", "manual", "--layer", "1"], "holds no store");
    setting.refused(&["inspect", "store", "nobody"], "there is no context nobody in this store");
    setting.refused(&["inspect", "store", "../manual"], "../manual");
    setting.refused(&["inspect", "store", "manual", "--layer", "5"], "no context has a layer 5");
    setting
        .refused(&["explain", "store", "nobody", "--layer", "1"], "there is no context nobody in this store");
    assert_eq!(crate::files(&setting.path("other")), ["file"]);
}

#[test]
fn a_damaged_store_is_named_and_not_shown() {
    let setting = Setting::imported();
    let manifest = setting.path("store/contexts/manual/manifest");
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[100] ^= 1;
    fs::write(&manifest, bytes).unwrap();
    setting.refused(&["inspect", "store"], "contexts/manual/manifest");
    setting.refused(&["explain", "store", "manual", "--layer", "1"], "contexts/manual/manifest");
}

#[test]
fn an_instruction_set_that_does_not_exist() {
    let setting = Setting::imported();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_longwave"));
    let output = command
        .args(["inspect", "store"])
        .current_dir(setting.dir.path())
        .env("LONGWAVE_ISA", "mmx")
        .output()
        .unwrap();
    let error = crate::text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("mmx") && !error.contains("panicked"), "{error}");
}
