//! bench build, ingest and reload: what they print of a small layer. `compare.rs` has bench attend.

use crate::compare::number;
use crate::trace::Trace;
use crate::{Setting, assert_keys};
use serde_json::{Value, json};

const LAYER: [&str; 8] = ["--tokens", "9000", "--kv-heads", "2", "--query-heads", "6", "--head-dim", "24"];
/// Keys and values of two heads, 16 bits an element.
const KV_BYTES: u64 = 9000 * 2 * (24 + 24) * 2;

fn bench(setting: &Setting, what: &str, more: &[&str]) -> Vec<Value> {
    setting.lines(&[&["bench", what][..], &LAYER, more, &["--json"]].concat())
}

/// `a` is `b` up to the rounding of a few operations.
fn assert_near(a: f64, b: f64, row: &Value) {
    assert!((a / b - 1.0).abs() < 1e-9, "{a} is not {b} in {row}");
}

#[test]
fn bench_build_counts_the_products_of_all_segments() {
    let setting = Setting::new(&Trace::default());
    let rows = bench(&setting, "build", &["--threads", "2"]);
    let [row] = &rows[..] else { panic!("expected one object: {rows:?}") };
    assert_keys(
        row,
        "tokens kv_heads head_dim threads segments build_s tokens_per_s clustering_s clustering_gflop \
         peak_gflop_per_s efficiency build_efficiency",
    );
    assert_eq!((&row["tokens"], &row["kv_heads"], &row["head_dim"]), (&json!(9000), &json!(2), &json!(24)));
    // 8192 rows and the other 808.
    assert_eq!((&row["threads"], &row["segments"]), (&json!(2), &json!(2)));
    // Two heads, seven assignments, two operations a product, 32 rows a cluster.
    let products = 2.0 * 7.0 * 2.0 * (8192.0 * 256.0 + 808.0 * 25.0) * 24.0;
    assert_near(number(row, "clustering_gflop"), products / 1e9, row);
    assert_near(number(row, "tokens_per_s"), 9000.0 / number(row, "build_s"), row);
    let least_s = number(row, "clustering_gflop") / number(row, "peak_gflop_per_s");
    assert_near(number(row, "efficiency"), least_s / number(row, "clustering_s"), row);
    assert_near(number(row, "build_efficiency"), least_s / number(row, "build_s"), row);
    assert!(number(row, "peak_gflop_per_s") > 0.0 && number(row, "efficiency") > 0.0, "{row}");
}

#[test]
fn bench_ingest_compares_stores_with_what_they_are_made_of() {
    let setting = Setting::new(&Trace::default());
    std::fs::create_dir(setting.path("disk")).unwrap();
    let rows = bench(&setting, "ingest", &["--directory", "disk", "--rounds", "2", "--commit-every", "4000"]);
    let parts: Vec<&str> = rows.iter().map(|row| row["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["build", "indexed", "write", "plain"]);
    for (row, other) in rows.iter().zip([None, Some(0), None, Some(2)]) {
        assert_keys(
            row,
            "part tokens kv_bytes file_bytes seconds_p50 seconds_min seconds_max kv_mb_per_s compared_with \
             share_of_rate",
        );
        assert_eq!((&row["tokens"], &row["kv_bytes"]), (&json!(9000), &json!(KV_BYTES)));
        assert!(number(row, "seconds_min") <= number(row, "seconds_p50"), "{row}");
        assert!(number(row, "seconds_p50") <= number(row, "seconds_max"), "{row}");
        assert_near(number(row, "kv_mb_per_s"), KV_BYTES as f64 / number(row, "seconds_p50") / 1e6, row);
        assert_eq!(row["compared_with"], other.map_or(Value::Null, |at: usize| rows[at]["part"].clone()));
        if let Some(at) = other {
            let share = number(row, "kv_mb_per_s") / number(&rows[at], "kv_mb_per_s");
            assert_near(number(row, "share_of_rate"), share, row);
        } else {
            assert_eq!(row["share_of_rate"], Value::Null);
        }
    }
    let files = |at: usize| number(&rows[at], "file_bytes") / KV_BYTES as f64;
    assert_eq!((files(0), files(2)), (0.0, 1.0));
    // Positions and checksums; with an index also centroids, sketches and codes.
    assert!((1.0..1.2).contains(&files(3)), "{}", rows[3]);
    assert!((1.2..2.0).contains(&files(1)), "{}", rows[1]);
    assert!(crate::files(&setting.path("disk")).is_empty(), "what was written must be gone");
}

#[test]
fn bench_reload_reads_a_store_on_disk() {
    let setting = Setting::new(&Trace::default());
    std::fs::create_dir(setting.path("disk")).unwrap();
    let more = ["--directory", "disk", "--rounds", "3", "--tau", "0.0032,0.0008", "--disk-bytes", "65536"];
    let rows = bench(&setting, "reload", &more);
    let expected = [("warm", "exact")].into_iter().chain([("warm", "longwave"); 4]);
    let expected: Vec<(&str, &str)> = expected.collect();
    let expected: Vec<(&str, &str)> =
        expected.iter().copied().chain(expected.iter().map(|(_, method)| ("cold", *method))).collect();
    let found: Vec<(&str, &str)> =
        rows.iter().map(|row| (row["cache"].as_str().unwrap(), row["method"].as_str().unwrap())).collect();
    assert_eq!(found, expected);
    for (at, row) in rows.iter().enumerate() {
        assert_keys(
            row,
            "method tau disk_bytes_max cache tokens open_ms_p50 ms_p50 ms_max read_bytes file_bytes read_share \
             speedup_vs_exact disk_bytes error_mean error_max",
        );
        let taus = [Value::Null, json!(0.0032), json!(0.0032), json!(0.0008), json!(0.0008)];
        assert_eq!(row["tau"], taus[at % 5]);
        let is_capped = [2, 4].contains(&(at % 5));
        assert_eq!(row["disk_bytes_max"], if is_capped { json!(65536) } else { Value::Null });
        let error = number(row, "error_mean");
        assert!((at % 5 == 0) == (error == 0.0) && error < 0.5 && error <= number(row, "error_max"), "{row}");
        assert!((1.2..2.0).contains(&(number(row, "file_bytes") / KV_BYTES as f64)), "{row}");
        if row["ms_p50"].is_null() {
            // A file system that keeps its pages, or a system that does not count what it reads.
            assert_eq!(row["cache"], "cold");
            let unknown =
                ["open_ms_p50", "ms_max", "read_bytes", "read_share", "speedup_vs_exact", "disk_bytes"];
            assert!(unknown.iter().all(|key| row[key].is_null()), "{row}");
            continue;
        }
        assert!(number(row, "open_ms_p50") > 0.0 && number(row, "ms_p50") <= number(row, "ms_max"), "{row}");
        assert_eq!(row["disk_bytes"].is_number(), is_capped, "{row}");
        assert!(
            !is_capped || number(row, "disk_bytes") <= if row["cache"] == "warm" { 0.0 } else { 65536.0 }
        );
        let exact = &rows[at / 5 * 5];
        assert_near(number(row, "speedup_vs_exact"), number(exact, "ms_p50") / number(row, "ms_p50"), row);
        if row["cache"] == "cold" {
            // Rows of every head, but no column that `exact` has no use for.
            let read = number(row, "read_bytes");
            assert!(at % 5 > 0 || read >= KV_BYTES as f64 / 2.0, "{row}");
            assert_near(number(row, "read_share"), read / number(row, "file_bytes"), row);
        }
    }
    assert!(crate::files(&setting.path("disk")).is_empty(), "what was written must be gone");
}

#[test]
fn bench_decode_seals_behind_the_steps() {
    let setting = Setting::new(&Trace::default());
    std::fs::create_dir(setting.path("disk")).unwrap();
    let rows = bench(&setting, "decode", &["--directory", "disk", "--steps", "2200", "--audit-every", "0"]);
    let which: Vec<&str> = rows.iter().map(|row| row["steps"].as_str().unwrap()).collect();
    assert_eq!(which, ["all", "sealing", "still"]);
    for row in &rows {
        assert_keys(
            row,
            "steps count tokens seals attend_ms_p50 attend_ms_p99 attend_ms_max attend_p99_to_p50 append_ms_p50 \
             append_ms_p99 append_ms_max",
        );
        assert_eq!(row["tokens"], json!(9000));
        assert!(number(row, "attend_ms_p50") <= number(row, "attend_ms_p99"), "{row}");
        assert!(number(row, "attend_ms_p99") <= number(row, "attend_ms_max"), "{row}");
        let ratio = number(row, "attend_ms_p99") / number(row, "attend_ms_p50");
        assert_near(number(row, "attend_p99_to_p50"), ratio, row);
    }
    let count = |at: usize| number(&rows[at], "count");
    assert_eq!((count(0), count(1) + count(2)), (2200.0, 2200.0));
    // 2200 tokens leave the window one by one, and a segment has 1024 of them: one at least is done by the end.
    let seals = number(&rows[0], "seals");
    assert!((1.0..=2.0).contains(&seals) && count(1) >= seals, "{rows:?}");
    assert_eq!(std::fs::read_dir(setting.path("disk")).unwrap().count(), 0, "the store is removed");
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    let setting = Setting::new(&Trace::default());
    for what in ["ingest", "reload"] {
        setting.refused(&["bench", what, "--directory", "nowhere"], "nowhere");
        setting.refused(&["bench", what, "--head-dim", "7"], "multiple of 8");
    }
    setting.refused(&["bench", "build", "--kv-heads", "5", "--query-heads", "12"], "12");
}
