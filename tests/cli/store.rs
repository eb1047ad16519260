//! import, inspect, explain.

use crate::trace::{KEY_DIM, KV_HEADS, QUERY_HEADS, Trace, VALUE_DIM};
use crate::{Setting, assert_keys, files};
use longwave::{Budget, Snapshot, Store, StoreOptions, TensorView};
use serde_json::{Value, json};

/// Rows that are sealed: all but 4 sinks and 64 of the window.
const SEALED: u64 = 700 - 4 - 64;

#[test]
fn inspect_shows_what_was_imported() {
    let setting = Setting::imported();
    let document = setting.document(&["inspect", "store", "--json"]);
    assert_keys(&document, "store bytes contexts");
    let context = &document["contexts"][0];
    assert_keys(context, "name generation tokens token_ids identity model settings bytes layers");
    assert_eq!(
        (&context["name"], &context["tokens"], &context["token_ids"]),
        (&json!("manual"), &json!(700), &json!(0))
    );
    assert_eq!(context["identity"].as_str().unwrap().len(), 64);
    let model = &context["model"];
    assert_keys(
        model,
        "layers query_heads kv_heads key_dim value_dim dtype scale softcap rope weights tokenizer",
    );
    assert_eq!((&model["kv_heads"], &model["query_heads"]), (&json!(KV_HEADS), &json!(QUERY_HEADS)));
    assert_eq!((&model["key_dim"], &model["value_dim"]), (&json!(KEY_DIM), &json!(VALUE_DIM)));
    assert_eq!(
        (&model["layers"], &model["dtype"], &model["scale"]),
        (&json!(5), &json!("f16"), &json!(0.25))
    );
    assert_keys(
        &context["settings"],
        "sinks window bulk_segment_rows decode_segment_rows bulk_append_rows sample_positions tokens_per_cluster \
         iterations split_factor seed ladder rebuild_positions",
    );
    assert_eq!(context["settings"]["rebuild_positions"], 64);
    let kinds: Vec<&str> =
        context["layers"].as_array().unwrap().iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["absent", "clustered", "absent", "absent", "clustered"]);
    assert_layer(&context["layers"][4], context["settings"]["tokens_per_cluster"].as_u64().unwrap());

    let sizes = &context["bytes"];
    assert_keys(sizes, "total segments row_log meta_log manifest");
    let parts: u64 = ["segments", "row_log", "meta_log", "manifest"]
        .iter()
        .map(|part| sizes[part].as_u64().unwrap())
        .sum();
    assert_eq!(sizes["total"], parts);
    assert_eq!(document["bytes"], bytes_of_store(&setting));
}

fn assert_layer(layer: &Value, tokens_per_cluster: u64) {
    assert_keys(
        layer,
        "layer kind sliding_window rows sealed_rows tail_rows sampled_positions calibration spending \
         forgotten segments",
    );
    assert_eq!((&layer["layer"], &layer["rows"]), (&json!(4), &json!(700)));
    assert_eq!((&layer["sealed_rows"], &layer["tail_rows"]), (&json!(SEALED), &json!(68)));
    let sampled = layer["sampled_positions"].as_array().unwrap();
    assert_eq!((sampled.len(), &sampled[0], &sampled[59]), (60, &json!(640), &json!(699)));
    let segment = &layer["segments"][0];
    assert_keys(segment, "file first_position rows file_bytes row_form columns clusters ladder");
    assert_eq!((&segment["first_position"], &segment["rows"]), (&json!(4), &json!(SEALED)));
    let keys = column(segment, "keys");
    assert_keys(keys, "name offset bytes element_size blocks");
    let bytes = |dim: usize| json!(KV_HEADS as u64 * SEALED * dim as u64 * 2);
    assert_eq!((&keys["bytes"], &column(segment, "values")["bytes"]), (&bytes(KEY_DIM), &bytes(VALUE_DIM)));
    assert_eq!((&keys["element_size"], &keys["blocks"]), (&json!(2), &json!(10)));
    let heads = segment["clusters"].as_array().unwrap();
    assert_eq!(heads.len(), KV_HEADS);
    for (number, head) in heads.iter().enumerate() {
        assert_keys(
            head,
            "kv_head clusters size_mean size_p50 size_p95 size_max key_spread_mean value_spread_mean",
        );
        assert_eq!(head["kv_head"], number);
        // Large clusters may be split, so that there are more than asked for.
        let asked = SEALED / tokens_per_cluster;
        assert!((asked..2 * asked).contains(&head["clusters"].as_u64().unwrap()), "{head}");
        let rows = head["size_mean"].as_f64().unwrap() * head["clusters"].as_f64().unwrap();
        assert!((rows - SEALED as f64).abs() < 1e-6, "{head}");
        assert!(
            head["size_p50"].as_u64() <= head["size_p95"].as_u64()
                && head["size_p95"].as_u64() <= head["size_max"].as_u64()
        );
        // Around the mean of all keys it would be 16 elements of variance 4/3 (centres) + 1/12 (noise), about 23.
        assert!((0.2..11.0).contains(&head["key_spread_mean"].as_f64().unwrap()), "{head}");
    }
}

pub(crate) fn column<'a>(segment: &'a Value, name: &str) -> &'a Value {
    let mut columns = segment["columns"].as_array().unwrap().iter();
    columns.find(|column| column["name"] == name).unwrap_or_else(|| panic!("no column {name} in {segment}"))
}

/// Bytes of all files but the lock, which holds none.
fn bytes_of_store(setting: &Setting) -> u64 {
    let dirs = ["store", "store/segments", "store/logs", "store/contexts/manual", "store/profiles"]
        .map(|dir| setting.path(dir));
    let paths = dirs.iter().flat_map(|dir| files(dir).into_iter().map(|file| dir.join(file)));
    paths.filter(|path| path.is_file()).map(|path| std::fs::metadata(path).unwrap().len()).sum()
}

#[test]
fn inspect_prints_tables_at_three_depths() {
    let setting = Setting::imported();
    let overview = setting.succeed(&["inspect", "store"]);
    assert!(
        overview.contains("manual") && overview.contains("16/8") && !overview.contains("layer "),
        "{overview}"
    );
    let context = setting.succeed(&["inspect", "store", "manual"]);
    assert!(
        context.contains("6 query heads, 2 KV heads, key dim 16, value dim 8, f16, scale 0.25"),
        "{context}"
    );
    assert_eq!(context.matches(".segment").count(), 2, "{context}");
    assert!(context.contains("once 64 positions are observed"), "{context}");
    assert!(!context.contains("centroid"), "{context}");
    let layer = setting.succeed(&["inspect", "store", "manual", "--layer", "1"]);
    assert_eq!(layer.matches(".segment").count(), 1, "{layer}");
    assert!(layer.contains("centroid") && layer.contains("key spread"), "{layer}");
}

#[test]
fn inspect_takes_one_layer_of_one_context() {
    let setting = Setting::imported();
    setting.succeed(&["import", "trace.safetensors", "store", "second", "--dtype", "f32"]);
    let all = setting.document(&["inspect", "store", "--json"]);
    let names: Vec<&Value> =
        all["contexts"].as_array().unwrap().iter().map(|context| &context["name"]).collect();
    assert_eq!(names, ["manual", "second"]);
    let one = setting.document(&["inspect", "store", "second", "--layer", "1", "--json"]);
    let contexts = one["contexts"].as_array().unwrap();
    assert_eq!((contexts.len(), contexts[0]["layers"].as_array().unwrap().len()), (1, 1));
    assert_eq!(
        (&contexts[0]["layers"][0]["layer"], &contexts[0]["model"]["dtype"]),
        (&json!(1), &json!("f32"))
    );
    assert_eq!(column(&contexts[0]["layers"][0]["segments"][0], "keys")["element_size"], 4);
}

#[test]
fn explain_plans_a_sampled_query() {
    let setting = Setting::imported();
    let plan = setting.document(&[
        "explain",
        "store",
        "manual",
        "--layer",
        "4",
        "--method",
        "retroinfer",
        "--retrieve",
        "0.1",
        "--json",
    ]);
    assert_keys(
        &plan,
        "context layer sampled_position position method budget sealed_rows tail_rows bytes pages bytes_share row_form \
         disk_bytes disk_bytes_max heads",
    );
    assert_eq!(
        (&plan["sampled_position"], &plan["position"], &plan["method"]),
        (&json!(699), &json!(699), &json!("retroinfer"))
    );
    assert_eq!((&plan["sealed_rows"], &plan["tail_rows"]), (&json!(SEALED), &json!(68)));
    let heads = plan["heads"].as_array().unwrap();
    assert_eq!(heads.len(), KV_HEADS);
    let mut bytes = 0;
    for head in heads {
        assert_keys(
            head,
            "kv_head clusters rows_scanned rows_coded rows_read rows_estimated rows_plain bytes pages read estimated",
        );
        assert_keys(
            &head["bytes"],
            "keys values positions centroids counts value_means bases sketches key_codes value_codes",
        );
        let clusters = head["clusters"].as_u64().unwrap();
        assert!((10..100).contains(&clusters), "{head}");
        let count = |part: &str| head[part].as_array().unwrap().len() as f64;
        assert!((count("read") - 0.1 * clusters as f64).abs() <= 1.0, "{head}");
        assert!((count("estimated") - 0.232 * clusters as f64).abs() <= 1.0, "{head}");
        let rows = head["rows_read"].as_u64().unwrap();
        assert_eq!(head["bytes"]["keys"], rows * KEY_DIM as u64 * 2);
        assert_eq!(head["bytes"]["values"], rows * VALUE_DIM as u64 * 2);
        assert_eq!(head["bytes"]["centroids"], clusters * KEY_DIM as u64 * 2);
        bytes += head["bytes"].as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum::<u64>();
    }
    assert_eq!(plan["bytes"], bytes);

    let exact =
        setting.document(&["explain", "store", "manual", "--layer", "4", "--method", "exact", "--json"]);
    assert_eq!((&exact["method"], &exact["bytes_share"]), (&json!("exact"), &json!(1.0)));
    let text = setting.succeed(&["explain", "store", "manual", "--layer", "1", "--position", "655"]);
    assert!(text.contains("sampled at position 655, asked at the context's end, position 699"), "{text}");
    assert!(text.contains("score centroids"), "{text}");
}

#[test]
fn the_same_trace_imported_twice_gives_the_same_columns() {
    let setting = Setting::imported();
    setting.succeed(&["import", "trace.safetensors", "again", "other-name"]);
    let open = |path: &str, name: &str| {
        Store::open(setting.path(path), StoreOptions::default()).unwrap().snapshot(name).unwrap()
    };
    let (first, second) = (open("store", "manual"), open("again", "other-name"));
    for layer in [1, 4] {
        let (one, two) = (first.segments(layer).unwrap(), second.segments(layer).unwrap());
        assert_eq!((one.len(), two.len()), (1, 1));
        for (one, two) in one.iter().zip(&two) {
            let (one, two) = (one.segment(), two.segment());
            assert_ne!(one.path(), two.path(), "segments are named by their context");
            assert_eq!(one.columns().collect::<Vec<_>>(), two.columns().collect::<Vec<_>>());
            assert!(one.columns().count() >= 8, "rows and index");
            for info in one.columns() {
                let bytes = |segment: &longwave::storage::Segment| {
                    segment.column(info.kind).unwrap().all().unwrap().to_vec()
                };
                assert!(bytes(one) == bytes(two), "column {} of layer {layer} differs", info.name);
            }
        }
        let samples = first.sampled_queries(layer).unwrap();
        assert_eq!(samples, second.sampled_queries(layer).unwrap());
        // Sinks and window lie in the logs; what they hold shows in an answer.
        let queries = TensorView::token_major(&samples[0].1[..], 1, QUERY_HEADS, KEY_DIM);
        let answer = |snapshot: &Snapshot, budget| snapshot.attend(layer, &queries, &budget).unwrap();
        for budget in [Budget::Exact, Budget::RETROINFER] {
            let (one, two) = (answer(&first, budget), answer(&second, budget));
            assert_eq!((one.output, one.lse), (two.output, two.lse), "{budget}");
        }
    }
}

#[test]
fn rows_are_kept_in_the_form_that_is_asked_for() {
    let setting = Setting::new(&Trace::default());
    for (name, arguments) in [
        ("full", &[][..]),
        ("small", &["--rows", "8bit"]),
        ("mixed", &["--rows", "codes", "--layer-rows", "4=full"]),
    ] {
        setting.succeed(&[&["import", "trace.safetensors", "store", name], arguments].concat());
    }
    let document = setting.document(&["inspect", "store", "--json"]);
    let contexts = document["contexts"].as_array().unwrap();
    let segment = |context: &str, layer: usize| -> &Value {
        let context = contexts.iter().find(|found| found["name"] == context).unwrap();
        let layer =
            context["layers"].as_array().unwrap().iter().find(|found| found["layer"] == layer).unwrap();
        &layer["segments"][0]
    };
    let found = ["full", "small", "mixed"].map(|name| [1, 4].map(|layer| &segment(name, layer)["row_form"]));
    assert_eq!(found, [[&json!("full"); 2], [&json!("8bit"); 2], [&json!("codes"), &json!("full")]]);
    let bytes = |name| segment(name, 1)["file_bytes"].as_u64().unwrap();
    assert!(bytes("full") > bytes("small") && bytes("small") > bytes("mixed"), "{document}");
    let plan = |layer| {
        let arguments = ["explain", "store", "mixed", "--layer", layer, "--method", "exact", "--json"];
        setting.document(&arguments)["row_form"].clone()
    };
    assert_eq!([plan("1"), plan("4")], ["codes", "full"]);
    let text = setting.succeed(&["explain", "store", "small", "--layer", "1", "--method", "exact"]);
    assert!(text.contains("as they are kept: in 8 bits"), "{text}");
    for (form, said) in [("4=half", "unknown form of rows `half`"), ("9=8bit", "expected a layer below")] {
        let arguments = ["import", "trace.safetensors", "store", "bad", "--layer-rows", form];
        setting.refused(&arguments, said);
    }
    let kept = document["contexts"].as_array().unwrap().len();
    assert_eq!(setting.document(&["inspect", "store", "--json"])["contexts"].as_array().unwrap().len(), kept);
}

#[test]
fn a_name_is_imported_once() {
    let setting = Setting::imported();
    setting.refused(&["import", "trace.safetensors", "store", "manual"], "context manual exists already");
    assert_eq!(setting.document(&["inspect", "store", "--json"])["contexts"].as_array().unwrap().len(), 1);
}

#[test]
fn rows_that_the_element_type_cannot_hold_leave_the_store_as_it_was() {
    let setting = Setting::imported();
    let large = Trace { key_element: Some((37, 1e6)), ..Trace::default() };
    std::fs::write(setting.path("large.safetensors"), large.file()).unwrap();
    setting.refused(&["import", "large.safetensors", "store", "large"], "not finite as f16");
    assert_eq!(files(&setting.path("store/contexts")), ["manual"]);
    // Wider types hold it.
    setting.succeed(&["import", "large.safetensors", "store", "large", "--dtype", "bf16"]);
}
