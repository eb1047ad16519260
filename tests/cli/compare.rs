//! eval, bench.

use crate::trace::Trace;
use crate::{Setting, assert_keys};
use serde_json::{Value, json};

pub(crate) const ANSWER_KEYS: &str = "method budget tau layers queries error_mean error_p50 error_p95 error_p999 error_max \
                         bytes_share page_share means_share zone_share coded_share read_share \
                         bound_covered bound_p50 ratio_p50 ratio_p99";

/// What `eval` says of the rows beside.
pub(crate) fn eval_keys() -> String {
    format!("{ANSWER_KEYS} rows disk_share")
}

pub(crate) fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {row}"))
}

#[test]
fn eval_compares_methods_with_exact_attention() {
    let setting = Setting::new(&Trace::default());
    let rows = setting.lines(&["eval", "trace.safetensors", "--json"]);
    let methods: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    let ladder = ["longwave"; 3].into_iter().chain(["oracle"; 3]);
    assert_eq!(methods, ["exact"].into_iter().chain(ladder).chain(["retroinfer"]).collect::<Vec<_>>());
    for row in &rows {
        assert_keys(row, &eval_keys());
        assert_eq!((&row["layers"], &row["queries"]), (&json!(2), &json!(30)));
        assert!(number(row, "error_p50") <= number(row, "error_p95"), "{row}");
        assert!(number(row, "error_p95") <= number(row, "error_p999"), "{row}");
        assert!(number(row, "error_p999") <= number(row, "error_max"), "{row}");
        assert!(number(row, "page_share") >= number(row, "bytes_share"), "{row}");
    }
    let (exact, retroinfer) = (&rows[0], &rows[7]);
    for (at, tau) in [0.0032, 0.0016, 0.0008].into_iter().enumerate() {
        let (longwave, oracle) = (&rows[1 + at], &rows[4 + at]);
        assert_eq!(number(longwave, "tau"), tau);
        // The oracle reads whole rows, so it stops within one of the bytes of `longwave`.
        let bytes = number(longwave, "bytes_share") - number(oracle, "bytes_share");
        assert!((0.0..0.01).contains(&bytes), "{longwave} {oracle}");
        // A quarter of 60 queries is audited: enough for all heads of a layer together.
        assert!(number(longwave, "bound_covered") > 0.8 && number(longwave, "bound_p50") > 0.0, "{longwave}");
        assert!(number(longwave, "ratio_p50") <= number(longwave, "ratio_p99"), "{longwave}");
    }
    for pair in rows[1..4].windows(2) {
        assert!(number(&pair[1], "error_mean") < number(&pair[0], "error_mean"), "{pair:?}");
        assert!(number(&pair[1], "bytes_share") > number(&pair[0], "bytes_share"), "{pair:?}");
        for share in ["means_share", "zone_share", "coded_share"] {
            let [large, small] = [0, 1].map(|at| number(&pair[at], share));
            assert!(0.0 < large && large < small && small < 1.0, "{share}: {pair:?}");
        }
    }
    assert!(number(exact, "error_max") < 1e-4, "{exact}");
    assert_eq!(number(exact, "bytes_share"), 1.0);
    assert_eq!((number(exact, "read_share"), number(exact, "zone_share")), (1.0, 0.0), "{exact}");
    // 35 clusters a head: centroids of all, value means of a quarter, one cluster in full; it leaves out most rows.
    assert!((0.03..0.3).contains(&number(retroinfer, "bytes_share")), "{retroinfer}");
    assert!((1e-4..1.0).contains(&number(retroinfer, "error_mean")), "{retroinfer}");
    assert!((0.01..0.1).contains(&number(retroinfer, "read_share")), "{retroinfer}");
    assert_eq!((number(retroinfer, "means_share"), number(retroinfer, "zone_share")), (0.0, 0.0));
}

#[test]
fn eval_runs_decode_steps_through_the_policies_of_a_cache() {
    let setting = Setting::new(&Trace::default());
    let run = |share: &str| setting.lines(&["eval", "trace.safetensors", "--cache", share, "--json"]);
    let keys = "method budget block policy cache_share slots layers steps hit_ratio row_hit_ratio bytes_wanted \
                bytes_moved admissions evictions";
    let (small, whole) = (run("0.1"), run("1"));
    let named = |row: &Value| (row["method"].clone(), row["block"].clone(), row["policy"].clone());
    let blocks =
        [("longwave", "codes"), ("longwave", "row_codes"), ("longwave", "rows"), ("retroinfer", "clusters")];
    let expected = blocks.into_iter().flat_map(|(method, block)| {
        ["lru", "frequency", "planner"].map(|policy| (json!(method), json!(block), json!(policy)))
    });
    assert_eq!(small.iter().map(named).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    for (small, whole) in small.iter().zip(&whole) {
        assert_keys(small, keys);
        assert_eq!(
            (&small["steps"], &small["layers"]),
            (&json!(60), &json!(2)),
            "every recorded query is a step"
        );
        assert_eq!(small["bytes_wanted"], whole["bytes_wanted"]);
        assert!(number(small, "slots") < number(whole, "slots"));
        assert!(number(small, "hit_ratio") <= number(whole, "hit_ratio"), "{small} {whole}");
        // Where there is room, the planner brings in more than was wanted.
        let more = number(small, "bytes_moved") >= number(whole, "bytes_moved");
        assert!(more || small["policy"] == "planner", "{small} {whole}");
        assert!(
            (0.0..1.0).contains(&number(whole, "hit_ratio")),
            "what is read first is not there yet: {whole}"
        );
    }
    assert!(number(&small[9], "evictions") > 0.0, "{}", small[9]);
    setting.refused(&["eval", "trace.safetensors", "--cache", "0"], "--cache");
}

#[test]
fn eval_reports_forms_of_rows_side_by_side() {
    let setting = Setting::new(&Trace::default());
    let methods = ["--method", "exact", "--method", "longwave", "--tau", "0.001"];
    let arguments = [&["eval", "trace.safetensors", "--rows", "full,8bit,codes", "--json"][..], &methods];
    let rows = setting.lines(&arguments.concat());
    let named: Vec<_> = rows.iter().map(|row| [row["rows"].clone(), row["method"].clone()]).collect();
    let expected = ["full", "8bit", "codes"].map(|form| [[form, "exact"], [form, "longwave"]]);
    assert_eq!(json!(named), json!(expected.as_flattened()));
    let of = |key: &'static str, method: usize| [0, 2, 4].map(|form| number(&rows[form + method], key));
    // Errors are against the rows as they were: what a form has cost shows even where all of it is read.
    let [full, eight, codes] = of("error_max", 0);
    assert!(full < 1e-4 && eight > 1e-3 && codes > 4.0 * eight && codes < 1.0, "{full} {eight} {codes}");
    for method in [0, 1] {
        for key in ["disk_share", "bytes_share"] {
            let [full, eight, codes] = of(key, method);
            assert!(full > eight && eight > codes && codes > 0.0, "{key}: {full} {eight} {codes}");
        }
    }
    // Rows are full, in 8 bits with a factor, and the ladder's 9 bits and summaries; on top of the last the index.
    let [full, eight, codes] = of("disk_share", 1);
    assert!((full - eight - (1.0 - (24.0 + 8.0) / 48.0)).abs() < 0.05, "{full} {eight}");
    assert!((0.3..0.8).contains(&codes), "{codes}");
    setting.refused(&["eval", "trace.safetensors", "--rows", "codes"], "retroinfer has no codes to read");
    let oracle = ["eval", "trace.safetensors", "--rows", "8bit", "--method", "oracle"];
    setting.refused(&oracle, "the oracle reads rows in full");
}

#[test]
fn eval_reads_every_element_type_exactly() {
    let setting = Setting::new(&Trace::default());
    for (dtype, share) in [("bf16", 1.0), ("f32", 2.0)] {
        let rows =
            setting.lines(&["eval", "trace.safetensors", "--method", "exact", "--dtype", dtype, "--json"]);
        assert_eq!(rows.len(), 1);
        assert!(number(&rows[0], "error_max") < 1e-4, "{}", rows[0]);
        assert_eq!(number(&rows[0], "bytes_share"), share, "of the bytes at 16 bits");
    }
}

#[test]
fn eval_reports_layers_and_takes_shares() {
    let setting = Setting::new(&Trace::default());
    let by_layer = setting.lines(&[
        "eval",
        "trace.safetensors",
        "--method",
        "retroinfer",
        "--layers",
        "4",
        "--by-layer",
        "--queries",
        "9",
        "--json",
    ]);
    assert_eq!(by_layer.len(), 2);
    assert_keys(&by_layer[0], &format!("{} layer", eval_keys()));
    assert_keys(&by_layer[1], &eval_keys());
    assert_eq!(
        (&by_layer[0]["layer"], &by_layer[1]["layers"], &by_layer[1]["queries"]),
        (&json!(4), &json!(1), &json!(9))
    );
    assert_eq!(by_layer[0]["error_mean"], by_layer[1]["error_mean"]);

    // All clusters read in full: every row of KV, and the centroids on top.
    let all = setting.lines(&[
        "eval",
        "trace.safetensors",
        "--method",
        "retroinfer",
        "--retrieve",
        "1",
        "--estimate",
        "0",
        "--json",
    ]);
    assert!(number(&all[0], "error_max") < 1e-4, "{}", all[0]);
    assert!((1.0..1.2).contains(&number(&all[0], "bytes_share")), "{}", all[0]);
    let larger =
        setting.lines(&["eval", "trace.safetensors", "--method", "retroinfer", "--cluster", "64", "--json"]);
    let smaller =
        setting.lines(&["eval", "trace.safetensors", "--method", "retroinfer", "--cluster", "8", "--json"]);
    assert_ne!(larger[0]["error_mean"], smaller[0]["error_mean"]);
}

#[test]
fn eval_gives_the_same_figures_twice() {
    let setting = Setting::new(&Trace::default());
    let run = || setting.succeed(&["eval", "trace.safetensors", "--layers", "1", "--json"]);
    assert_eq!(run(), run());
}

#[test]
fn bench_attend_times_methods_beside_a_plain_read() {
    let setting = Setting::new(&Trace::default());
    let small =
        ["bench", "attend", "--tokens", "3000", "--kv-heads", "2", "--query-heads", "6", "--head-dim", "24"];
    let run = |more: &[&str]| setting.lines(&[&small[..], more, &["--queries", "3", "--json"]].concat());
    let rows = run(&["--threads", "2"]);
    assert_eq!(rows.len(), 3);
    for row in &rows {
        assert_keys(
            row,
            "method tau disk_bytes_max tokens positions ms_p50 ms_p95 bytes gb_per_s read_gb_per_s speedup_vs_exact \
                          means_share zone_share coded_share read_share",
        );
        assert_eq!((&row["tokens"], &row["positions"]), (&json!(3000), &json!(1)));
        assert!(number(row, "ms_p50") > 0.0 && number(row, "ms_p95") >= number(row, "ms_p50"), "{row}");
        let rate = number(row, "bytes") / number(row, "ms_p50") / 1e6;
        assert!((number(row, "gb_per_s") / rate - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["read_gb_per_s"], rows[0]["read_gb_per_s"]);
    }
    let (exact, longwave, retroinfer) = (&rows[0], &rows[1], &rows[2]);
    assert_eq!((&longwave["method"], &longwave["tau"]), (&json!("longwave"), &json!(0.0016)));
    assert_eq!(number(exact, "speedup_vs_exact"), 1.0);
    assert_eq!((number(exact, "read_share"), number(exact, "coded_share")), (1.0, 0.0), "{exact}");
    // Every key and value of every head, tail included.
    assert_eq!(exact["bytes"], 3000 * 2 * (24 + 24) * 2);
    let share = number(retroinfer, "bytes") / number(exact, "bytes");
    assert!((0.03..0.3).contains(&share), "{share}");

    let one = run(&["--method", "retroinfer", "--threads", "1"]);
    assert_eq!((one.len(), &one[0]["method"]), (1, &json!("retroinfer")));
    assert_eq!(one[0]["bytes"], retroinfer["bytes"], "the same rows are read at any number of threads");

    // Positions read the same rows, each by itself.
    let three = run(&["--method", "exact", "--positions", "3", "--threads", "2"]);
    assert_eq!(
        (&three[0]["positions"], number(&three[0], "bytes")),
        (&json!(3), 3.0 * number(exact, "bytes"))
    );

    // All is in memory, or in the page cache: a cap has nothing to say.
    std::fs::create_dir(setting.path("disk")).unwrap();
    let cap = ["--method", "longwave", "--planner", "false", "--disk-bytes", "0"];
    for place in [&[][..], &["--directory", "disk"]] {
        let rows = run(&[&cap[..], place].concat());
        let caps: Vec<_> = rows.iter().map(|row| &row["disk_bytes_max"]).collect();
        assert_eq!(caps, [&Value::Null, &json!(0)]);
        assert_eq!((&rows[0]["tau"], &rows[0]["bytes"]), (&rows[1]["tau"], &rows[1]["bytes"]));
    }
    assert_eq!(std::fs::read_dir(setting.path("disk")).unwrap().count(), 0, "the rows are removed");

    let file = ["--method", "exact", "--export", "rows.safetensors"];
    assert_eq!(run(&file)[0]["bytes"], exact["bytes"]);
    let bytes = std::fs::read(setting.path("rows.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!((shape("keys"), shape("values")), (vec![2, 3000, 24], vec![2, 3000, 24]));
    assert_eq!(shape("queries"), [1 + 3, 6, 24]);
    // Heads differ, and every row was written.
    let keys = tensors.tensor("keys").unwrap().data().to_vec();
    let heads: Vec<&[u8]> = keys.chunks_exact(3000 * 24 * 2).collect();
    assert_ne!(heads[0][..48], heads[1][..48]);
    assert!(keys.chunks_exact(48).all(|row| row.iter().any(|&byte| byte != 0)), "a row was not written");
}
