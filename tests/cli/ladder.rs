//! eval's budgets of the ladder and its plot, audit, and what inspect and explain say of the ladder.

use crate::compare::{ANSWER_KEYS, eval_keys, number};
use crate::trace::{KV_HEADS, QUERY_HEADS, Trace};
use crate::{Setting, assert_keys};
use longwave::{Context, Durability, Store, StoreOptions};
use serde_json::{Value, json};

/// Eval of `longwave` on the small trace.
fn eval(setting: &Setting, more: &[&str]) -> Vec<Value> {
    setting.lines(&[&["eval", "trace.safetensors", "--method", "longwave"], more, &["--json"]].concat())
}

#[test]
fn eval_finds_the_tau_of_a_share() {
    let setting = Setting::new(&Trace::default());
    let rows = eval(&setting, &["--bytes", "0.22,0.3"]);
    assert_eq!(rows.len(), 2, "no other tau is compared");
    for (row, share) in rows.iter().zip([0.22, 0.3]) {
        assert_keys(row, &eval_keys());
        assert_eq!(row["budget"], format!("bytes={share}"));
        assert!((number(row, "bytes_share") / share - 1.0).abs() < 0.05, "{row}");
    }
    assert!(number(&rows[1], "tau") < number(&rows[0], "tau"), "{rows:?}");
    assert!(number(&rows[1], "error_mean") < number(&rows[0], "error_mean"), "{rows:?}");
    // The tau that was found is the one that reads so much.
    let tau = rows[0]["tau"].to_string();
    let again = eval(&setting, &["--tau", &tau]);
    assert_eq!(again[0]["bytes_share"], rows[0]["bytes_share"]);
    assert_eq!(again[0]["error_p95"], rows[0]["error_p95"]);
}

#[test]
fn eval_keeps_a_budget_of_error() {
    let setting = Setting::new(&Trace::default());
    let rows = eval(&setting, &["--error", "0.2,0.05", "--confidence", "0.9"]);
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert_keys(row, &eval_keys());
        assert_eq!(row["tau"], Value::Null, "each head has its own");
        assert!(number(row, "bound_covered") > 0.8, "{row}");
    }
    assert_eq!(rows[1]["budget"], "error=0.05,confidence=0.9");
    assert!(number(&rows[0], "bound_p50") <= 0.2 && number(&rows[1], "bound_p50") <= 0.05, "{rows:?}");
    assert!(number(&rows[1], "error_p95") <= number(&rows[0], "error_p95"), "{rows:?}");
    assert!(number(&rows[1], "bytes_share") > number(&rows[0], "bytes_share"), "{rows:?}");
}

#[test]
fn bounds_grow_and_cover_more_with_the_confidence() {
    let setting = Setting::new(&Trace::default());
    let at = |confidence| eval(&setting, &["--tau", "0.0064", "--confidence", confidence]).remove(0);
    let (half, most) = (at("0.5"), at("0.95"));
    assert!(number(&most, "bound_p50") > number(&half, "bound_p50"), "{half} {most}");
    assert!(number(&most, "bound_covered") > number(&half, "bound_covered"), "{half} {most}");
    assert!((0.25..0.75).contains(&number(&half, "bound_covered")), "{half}");
    // The answers are the same; only what is said of them differs.
    assert_eq!((&half["error_mean"], &half["ratio_p50"]), (&most["error_mean"], &most["ratio_p50"]));
}

#[test]
fn eval_takes_the_oracle_to_the_bytes_of_every_budget() {
    let setting = Setting::new(&Trace::default());
    let rows =
        setting.lines(&["eval", "trace.safetensors", "--method", "oracle", "--tau", "0.05,0.0008", "--json"]);
    assert_eq!((&rows[0]["method"], &rows[0]["budget"]), (&json!("oracle"), &json!("bytes of tau=0.05")));
    assert!(number(&rows[1], "bytes_share") > number(&rows[0], "bytes_share"), "{rows:?}");
    assert!(number(&rows[1], "error_mean") < number(&rows[0], "error_mean"), "{rows:?}");
    // With bytes for every row, it reads them all.
    let all = setting.lines(&["eval", "trace.safetensors", "--method", "oracle", "--tau", "1e-9", "--json"]);
    assert!(number(&all[0], "error_max") < 1e-5 && number(&all[0], "bytes_share") == 1.0, "{all:?}");
}

#[test]
fn eval_draws_what_it_compared() {
    let setting = Setting::new(&Trace::default());
    let rows = setting.lines(&["eval", "trace.safetensors", "--plot", "plot.svg", "--json"]);
    assert_eq!(rows.len(), 8);
    let drawn = std::fs::read_to_string(setting.path("plot.svg")).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
    for text in [
        "trace.safetensors: 640 tokens, 2 layers, 30 queries",
        ">longwave<",
        ">oracle<",
        ">retroinfer<",
        ">mean relative error<",
        ">bytes read, share of the 16-bit KV<",
        ">stated confidence<",
        ">tau 0.0016<",
    ] {
        assert!(drawn.contains(text), "no {text} in {drawn}");
    }
    assert!(!drawn.contains("NaN") && !drawn.contains("no bounds"), "{drawn}");
    // Those of three taus of `longwave`, that of its name, and those of one curve of the calibration.
    assert!(drawn.matches("<circle").count() > 4, "{drawn}");
    setting.refused(&["eval", "trace.safetensors", "--plot", "nowhere/plot.svg"], "nowhere/plot.svg");
}

#[test]
fn audit_compares_methods_on_the_sampled_queries() {
    let setting = Setting::imported();
    let before = crate::files(&setting.path("store/contexts/manual"));
    let rows = setting.lines(&["audit", "store", "manual", "--json"]);
    let methods: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["exact", "longwave", "longwave", "longwave", "retroinfer"]);
    for row in &rows {
        assert_keys(row, ANSWER_KEYS);
        assert_eq!((&row["layers"], &row["queries"]), (&json!(2), &json!(60)), "all that are sampled");
        // The import has audited 60 queries of each layer: bounds of the ladder are calibrated.
        assert_eq!(row["bound_covered"].is_null(), row["method"] != "longwave", "{row}");
    }
    assert_eq!((number(&rows[0], "error_max"), number(&rows[0], "bytes_share")), (0.0, 1.0));
    assert!(number(&rows[0], "page_share") >= 1.0, "{}", rows[0]);
    for pair in rows[1..4].windows(2) {
        assert!(number(&pair[1], "error_mean") < number(&pair[0], "error_mean"), "{pair:?}");
        assert!(number(&pair[1], "bytes_share") > number(&pair[0], "bytes_share"), "{pair:?}");
    }
    assert!((1e-6..0.2).contains(&number(&rows[3], "error_mean")), "{}", rows[3]);
    assert!(number(&rows[3], "ratio_p50") > 0.0, "{}", rows[3]);
    assert_eq!(crate::files(&setting.path("store/contexts/manual")), before, "nothing is written");

    let one = ["audit", "store", "manual", "--method", "longwave", "--tau", "0.01", "--layers", "4"];
    let by_layer = setting.lines(&[&one[..], &["--by-layer", "--queries", "7", "--json"]].concat());
    assert_eq!((by_layer.len(), &by_layer[0]["layer"]), (2, &json!(4)));
    assert_eq!((&by_layer[1]["queries"], &by_layer[1]["tau"]), (&json!(7), &json!(0.01)));
    assert_eq!(by_layer[0]["error_mean"], by_layer[1]["error_mean"]);
    let table = setting.succeed(&one);
    assert!(table.contains("ratio p50") && table.contains("tau=0.01"), "{table}");
}

/// Changes the context and commits it.
fn change(setting: &Setting, change: impl Fn(&mut Context)) {
    let store = Store::open(setting.path("store"), StoreOptions::default()).unwrap();
    let model = store.snapshot("manual").unwrap().model().clone();
    let mut context = store.context("manual", &model).unwrap();
    change(&mut context);
    context.commit(Durability::Strict).unwrap();
}

#[test]
fn a_stored_calibration_bounds_errors_and_is_shown() {
    let setting = Setting::imported();
    let layer = |document: &Value| document["contexts"][0]["layers"][0].clone();
    let inspect = ["inspect", "store", "manual", "--layer", "4", "--json"];
    // A layer that was built again knows nothing of its new index.
    change(&setting, |context| assert_eq!(context.rebuild(None).unwrap(), 2));
    assert_eq!(layer(&setting.document(&inspect))["calibration"], Value::Null);
    let text = setting.succeed(&["inspect", "store", "manual", "--layer", "4"]);
    assert!(text.contains("layer 4: not calibrated"), "{text}");

    change(&setting, |context| assert!(context.calibrate(None, 30).unwrap() > 0));
    let heads = layer(&setting.document(&inspect))["calibration"].clone();
    let heads = heads.as_array().unwrap();
    assert_eq!(heads.len(), QUERY_HEADS);
    for (number, head) in heads.iter().enumerate() {
        assert_keys(head, "query_head bands");
        assert_eq!(head["query_head"], number);
        let bands = head["bands"].as_array().unwrap();
        assert_keys(&bands[0], "tau audits multiplier");
        assert!(bands.windows(2).all(|pair| pair[0]["tau"].as_f64() > pair[1]["tau"].as_f64()), "{head}");
        let band = bands.iter().find(|band| band["tau"] == 0.0016).expect("the band of the default tau");
        assert_eq!(band["audits"], 30);
        assert!((0.5..10.0).contains(&band["multiplier"].as_f64().unwrap()), "{head}");
    }
    let text = setting.succeed(&["inspect", "store", "manual", "--layer", "4"]);
    assert!(text.contains("bound at confidence 0.95"), "{text}");

    let audit =
        ["audit", "store", "manual", "--method", "longwave", "--tau", "0.0016", "--error", "0.1", "--json"];
    let rows = setting.lines(&audit);
    assert_eq!((rows.len(), &rows[1]["budget"]), (2, &json!("error=0.1,confidence=0.95")));
    for row in &rows {
        assert!(number(row, "bound_covered") > 0.85 && number(row, "bound_p50") > 0.0, "{row}");
    }
    assert!(number(&rows[1], "bytes_share") < 1.0 && number(&rows[1], "bound_p50") <= 0.1, "{}", rows[1]);
}

#[test]
fn inspect_shows_the_ladder_of_a_segment() {
    let setting = Setting::imported();
    let document = setting.document(&["inspect", "store", "manual", "--layer", "4", "--json"]);
    let segment = &document["contexts"][0]["layers"][0]["segments"][0];
    let ladder = &segment["ladder"];
    assert_keys(ladder, "moment_source moment_positions basis_digest heads");
    assert_eq!(ladder["basis_digest"].as_str().unwrap().len(), 16);
    let heads = ladder["heads"].as_array().unwrap();
    assert_eq!(heads.len(), KV_HEADS);
    for (number, head) in heads.iter().enumerate() {
        assert_keys(head, "kv_head sketch_dims key_spread_mean value_spread_mean");
        assert_eq!(head["kv_head"], number);
        let dims: Vec<u64> =
            head["sketch_dims"].as_array().unwrap().iter().map(|dims| dims.as_u64().unwrap()).collect();
        assert_eq!(dims.iter().sum::<u64>(), crate::trace::KEY_DIM as u64);
        // About one bit a dimension.
        assert!((8..=24).contains(&(4 * dims[0] + 2 * dims[1] + dims[2])), "{head}");
        assert!(head["key_spread_mean"].as_f64().unwrap() > 0.0, "{head}");
    }
    for name in ["ladder.basis", "ladder.sketch", "ladder.key_code", "ladder.value_code", "index.centroid"] {
        assert!(crate::store::column(segment, name)["bytes"].as_u64().unwrap() > 0, "{name}");
    }
}

#[test]
fn explain_plans_the_ladder_at_a_tau() {
    let setting = Setting::imported();
    let plan =
        |tau: &str| setting.document(&["explain", "store", "manual", "--layer", "4", "--tau", tau, "--json"]);
    let (coarse, fine) = (plan("0.05"), plan("0.0008"));
    assert_eq!((&coarse["method"], &coarse["budget"]), (&json!("longwave"), &json!("tau=0.05")));
    assert!(fine["bytes"].as_u64() > coarse["bytes"].as_u64(), "{fine}");
    assert!(
        fine["pages"].as_u64() >= coarse["pages"].as_u64() && coarse["pages"].as_u64() > Some(0),
        "{fine}"
    );
    let heads = fine["heads"].as_array().unwrap();
    let rows = |key: &str| heads.iter().map(|head| head[key].as_u64().unwrap()).sum::<u64>();
    assert!(rows("rows_scanned") > 0 && rows("rows_coded") > 0, "{fine}");
    assert_eq!(
        rows("rows_scanned") + rows("rows_estimated"),
        KV_HEADS as u64 * fine["sealed_rows"].as_u64().unwrap()
    );
    let bytes: u64 = heads
        .iter()
        .flat_map(|head| head["bytes"].as_object().unwrap().values())
        .map(|part| part.as_u64().unwrap())
        .sum();
    assert_eq!(fine["bytes"], bytes);
    assert_eq!((&fine["disk_bytes"], &fine["disk_bytes_max"]), (&Value::Null, &Value::Null));
    let more = ["--tau", "0.0008", "--disk-bytes", "1048576", "--json"];
    let capped = setting.document(&[&["explain", "store", "manual", "--layer", "4"], &more[..]].concat());
    assert_eq!(
        (&capped["budget"], &capped["disk_bytes_max"]),
        (&json!("from-disk=1048576,tau=0.0008"), &json!(1 << 20))
    );
    // The store is smaller than the cap.
    let bytes = capped["disk_bytes"].as_u64().unwrap();
    assert!(bytes <= 1 << 20 && capped["heads"] == fine["heads"], "{capped}");
    let none = ["--tau", "0.0008", "--disk-bytes", "0", "--json"];
    let none = setting.document(&[&["explain", "store", "manual", "--layer", "4"], &none[..]].concat());
    assert_eq!((none["disk_bytes"].as_u64(), none["disk_bytes_max"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn budgets_out_of_range_are_refused() {
    let setting = Setting::imported();
    let cases: [(&[&str], &str); 16] = [
        (&["explain", "store", "manual", "--layer", "4", "--tau", "0", "--disk-bytes", "1"], "a tau above 0"),
        (
            &["explain", "store", "manual", "--layer", "4", "--method", "exact", "--disk-bytes", "1"],
            "--disk-bytes is for the method longwave",
        ),
        (
            &["explain", "store", "manual", "--layer", "4", "--machine", "h100", "--disk-bytes", "1"],
            "cannot be used with",
        ),
        (&["bench", "reload", "--tau", "0", "--disk-bytes", "1"], "a tau above 0"),
        (&["eval", "trace.safetensors", "--tau=-1"], "a tau of 0 or more"),
        (&["eval", "trace.safetensors", "--bytes", "0"], "a share above 0"),
        (&["eval", "trace.safetensors", "--bytes", "0.001"], "no tau reads 0.001 of the bytes"),
        (&["eval", "trace.safetensors", "--error=-0.1"], "a target above 0"),
        (&["eval", "trace.safetensors", "--confidence", "1"], "a confidence between 0 and 1"),
        (&["explain", "store", "manual", "--layer", "4", "--tau", "nan"], "a tau of 0 or more"),
        (&["bench", "attend", "--tokens", "100", "--tau=-1"], "a tau of 0 or more"),
        (&["audit", "store", "nobody"], "there is no context nobody in this store"),
        (&["audit", "nowhere", "manual"], "holds no store"),
        (
            &["audit", "store", "manual", "--layers", "2"],
            "layer 2 of context manual holds no sampled queries",
        ),
        (&["audit", "store", "manual", "--queries", "0"], "0"),
        (&["audit", "store", "manual", "--method", "oracle"], "oracle"),
    ];
    for (arguments, message) in cases {
        setting.refused(arguments, message);
    }
}

#[test]
fn explain_says_where_a_machine_with_a_gpu_would_read_it() {
    let setting = Setting::imported();
    let explain = |machine: &str| {
        let base =
            ["explain", "store", "manual", "--layer", "4", "--tau", "0.0008", "--json", "--machine", machine];
        setting.document(&base)
    };
    // A CPU that reads next to nothing, and a link that moves next to nothing.
    let (device, host) = (explain("20,2000,0.000001,10,10"), explain("0.000001,2000,50,10,10"));
    let steps = |plan: &Value| plan["placement"]["steps"].as_array().unwrap().clone();
    for (plan, side, other) in [(&device, "transfer", "cpu"), (&host, "cpu", "transfer")] {
        let steps = steps(plan);
        assert_eq!(steps.iter().map(|step| step["what"].clone()).collect::<Vec<_>>(), ["keys", "values"]);
        for step in &steps {
            assert!(step[side].as_u64() > Some(0), "{step}");
            assert_eq!((&step[other], &step["slots"]), (&json!(0), &json!(0)), "{step}");
        }
        let totals: f64 = steps.iter().map(|step| number(step, "total_s")).sum();
        assert!((number(&plan["placement"], "total_s") - totals).abs() < 1e-12);
        let bytes = |key: &str| steps.iter().map(|step| step[key].as_u64().unwrap()).sum::<u64>();
        let read = |plan: &Value, key: &str| {
            plan["heads"]
                .as_array()
                .unwrap()
                .iter()
                .map(|head| head["bytes"][key].as_u64().unwrap())
                .sum::<u64>()
        };
        let rows =
            ["keys", "values", "key_codes", "value_codes"].map(|key| read(plan, key)).iter().sum::<u64>();
        assert_eq!(bytes(&format!("{side}_bytes")), rows, "all rows that the plan counts");
    }
    assert_eq!(device["placement"]["machine"]["transfer_bytes_per_s"], json!(20e9));
    let text = setting.succeed(&["explain", "store", "manual", "--layer", "4", "--machine", "h100"]);
    assert!(
        text.contains("machine: link 64.0 GB/s, device 3350.0 GB/s") && text.contains("predicted in all"),
        "{text}"
    );
    let plain = setting.document(&["explain", "store", "manual", "--layer", "4", "--json"]);
    assert!(plain.get("placement").is_none());
    setting
        .refused(&["explain", "store", "manual", "--layer", "4", "--machine", "v100"], "h100, a100, rtx4090");
}
