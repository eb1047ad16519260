//! What inspect says of the calls of a context: what they spent, and how wrong they were.

use crate::trace::{KV_HEADS, QUERY_HEADS};
use crate::{Setting, assert_keys};
use longwave::{AuditOptions, Budget, Durability, Store, StoreOptions, TensorView};
use serde_json::Value;

/// Asks the sampled queries of layer 4 again, audits the calls, and commits what that shows.
fn ask(setting: &Setting, calls: usize) {
    let mut options = StoreOptions::default();
    options.audits = AuditOptions::inline(1.0);
    let store = Store::open(setting.path("store"), options).unwrap();
    let snapshot = store.snapshot("manual").unwrap();
    let model = snapshot.model();
    let mut context = store.context("manual", model).unwrap();
    for (_, query) in snapshot.sampled_queries(4).unwrap().iter().cycle().take(calls) {
        let query = TensorView::token_major(&query[..], 1, model.query_heads, model.key_dim);
        context.attend(4, &query, &Budget::Tau(0.0016)).unwrap();
    }
    context.commit(Durability::Strict).unwrap();
}

fn spending(setting: &Setting, layer: &str) -> Value {
    let document = setting.document(&["inspect", "store", "manual", "--layer", layer, "--json"]);
    document["contexts"][0]["layers"][0]["spending"].clone()
}

#[test]
fn spending_is_shown_head_by_head_and_layer_by_layer() {
    let setting = Setting::imported();
    assert_eq!(spending(&setting, "4"), Value::Null);
    let text = setting.succeed(&["inspect", "store", "manual", "--layer", "4"]);
    assert!(text.contains("nothing was asked"), "{text}");
    assert!(!setting.succeed(&["inspect", "store", "manual"]).contains("what calls spent"));

    ask(&setting, 9);
    let found = spending(&setting, "4");
    assert_keys(&found, "calls heads");
    assert_eq!(found["calls"], 9);
    let heads = found["heads"].as_array().unwrap();
    assert_eq!(heads.len(), KV_HEADS);
    let mut numbers = Vec::new();
    for (kv_head, head) in heads.iter().enumerate() {
        assert_keys(head, "kv_head bytes_share tau query_heads");
        assert_eq!(head["kv_head"], kv_head);
        assert!((0.001..1.0).contains(&head["bytes_share"].as_f64().unwrap()), "{head}");
        assert!((head["tau"].as_f64().unwrap() - 0.0016).abs() < 1e-9, "{head}");
        for head in head["query_heads"].as_array().unwrap() {
            assert_keys(head, "query_head predicted_error audits error_mean error_p95 multiplier");
            numbers.push(head["query_head"].as_u64().unwrap());
            let number = |key: &str| head[key].as_f64().unwrap();
            assert!(number("predicted_error") > 0.0 && number("error_mean") > 0.0, "{head}");
            assert_eq!(number("audits"), 9.0);
            assert!(number("error_p95") >= number("error_mean"), "{head}");
        }
    }
    assert_eq!(numbers, (0..QUERY_HEADS as u64).collect::<Vec<_>>());
    assert_eq!(spending(&setting, "1"), Value::Null, "a layer that was not asked");

    let text = setting.succeed(&["inspect", "store", "manual", "--layer", "4"]);
    assert!(text.contains("layer 4: what 9 calls spent"), "{text}");
    let text = setting.succeed(&["inspect", "store", "manual"]);
    let table = text.split("what calls spent").nth(1).unwrap();
    assert!(table.lines().any(|line| line.trim_start().starts_with("4         9")), "{text}");
}
