//! The crate against a real model, SmolLM2-135M-Instruct, and what a numpy implementation made of the same file.
//!
//! `LONGWAVE_MODEL` names the GGUF file. Fixtures: `smollm2-tokens.json` holds ids by the Python package `tokenizers`;
//! `smollm2-trace.safetensors` the numpy model's trace of `text.txt`'s first 24 tokens, 5 queries, layers 0 and 29.

use std::path::PathBuf;

use half::f16;
use longwave::Budget;
use longwave_candle::chat::ChatFormat;
use longwave_candle::decode::{greedy, top_token};
use longwave_candle::passkey::{FILLER, PasskeyMaker, StoredPasskey};
use longwave_candle::perplexity::evaluate;
use longwave_candle::stored::Index;
use longwave_candle::tokenizer::read_text;
use longwave_candle::trace::{Trace, TraceOptions};
use longwave_candle::{MemoryCache, Model, ModelFile, ModelOptions, Tokenizer};
use safetensors::SafeTensors;

fn load() -> (Model, Tokenizer) {
    let path = std::env::var_os("LONGWAVE_MODEL").expect("LONGWAVE_MODEL names the model file");
    let mut file = ModelFile::open(path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    (Model::load(&mut file, ModelOptions::default()).unwrap(), tokenizer)
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn cache(model: &Model, capacity: usize) -> MemoryCache {
    MemoryCache::new(model.attention_shape(), model.hyperparameters().layers, capacity)
}

#[test]
#[ignore = "needs the model file: cargo xtask test fetches it and runs this"]
fn tokens_are_those_of_the_python_tokenizer() {
    let (_, tokenizer) = load();
    let cases: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("smollm2-tokens.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 21);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u64> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.iter().map(|&id| u64::from(id)).collect::<Vec<_>>(), expected, "{text:?}");
        // The Python tokenizer, too, drops what the vocabulary has no token for.
        if !text.contains(['\0', '\u{7}']) {
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}

#[test]
#[ignore = "needs the model file: cargo xtask test fetches it and runs this"]
fn traces_agree_with_the_numpy_model() {
    let (model, tokenizer) = load();
    let ids = tokenizer.encode(&read_text(fixture("text.txt")).unwrap()).unwrap();
    let options = TraceOptions { layers: vec![0, 29], queries: 5 };
    let trace = Trace::record(&model, &ids[..24], &options, &mut |_| {}).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.safetensors");
    trace.write(&path).unwrap();
    let (bytes, reference) =
        (std::fs::read(path).unwrap(), std::fs::read(fixture("smollm2-trace.safetensors")).unwrap());
    let metadata = |bytes| SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone();
    assert_eq!(metadata(&bytes), metadata(&reference));
    let (found, reference) =
        (SafeTensors::deserialize(&bytes).unwrap(), SafeTensors::deserialize(&reference).unwrap());
    assert_eq!((found.len(), reference.len()), (6, 6));
    for (name, expected) in reference.tensors() {
        let tensor = found.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), expected.shape(), "{name}");
        let numbers = |bytes: &[u8]| -> Vec<f64> {
            bytes.as_chunks().0.iter().map(|&bytes| f64::from(f16::from_le_bytes(bytes))).collect()
        };
        let (tensor, expected) = (numbers(tensor.data()), numbers(expected.data()));
        let norm = |numbers: &[f64]| numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
        let difference: Vec<f64> = tensor.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let relative = norm(&difference) / norm(&expected);
        // Half a unit in the last place of f16 is 2.4e-4 to 4.9e-4; only few elements round the other way.
        assert!(relative < 2e-4, "{name}: {relative}");
    }
}

#[test]
#[ignore = "needs the model file: cargo xtask test fetches it and runs this"]
fn the_model_knows_its_capitals_and_scores_what_it_would_say() {
    let (model, tokenizer) = load();
    let ids = tokenizer.encode("The capital of Italy is Rome. The capital of France is").unwrap();
    let (&last, context) = ids.split_last().unwrap();
    let mut decoding = cache(&model, 64);
    model.prefill(context, &mut decoding, &mut |_| {}).unwrap();
    let (mut scoring, mut reversing) = (decoding.clone(), decoding.clone());
    let mut streamed = Vec::new();
    let said = greedy(&model, &mut decoding, last, 12, &mut |token| streamed.push(token)).unwrap();
    assert_eq!(streamed, said);
    assert!(tokenizer.decode(&said).unwrap().starts_with(" Paris."), "{:?}", tokenizer.decode(&said));
    // Teacher-forced over its own words the model finds each most likely.
    let evaluation = evaluate(&model, &mut scoring, &[&[last], &*said].concat(), &mut |_| {}).unwrap();
    assert_eq!(evaluation.top, said);
    assert_eq!(evaluation.nll.len(), 12);
    // The same words backwards it does not expect.
    let backwards: Vec<u32> = [last].into_iter().chain(said.iter().rev().copied()).collect();
    let reversed = evaluate(&model, &mut reversing, &backwards, &mut |_| {}).unwrap();
    assert!(evaluation.perplexity() * 10.0 < reversed.perplexity(), "{evaluation:?} {reversed:?}");
    // And prefill in one piece leads where the steps led.
    let whole = [&*ids, &said[..11]].concat();
    let hidden = model.prefill(&whole, &mut cache(&model, 64), &mut |_| {}).unwrap();
    assert_eq!(top_token(&model.logits(&hidden).unwrap()), Some(said[11]));
}

#[test]
#[ignore = "needs the model file: cargo xtask test fetches it and runs this"]
fn numbers_hidden_in_a_long_text_are_found_by_longwave_where_exact_attention_finds_them() {
    let path = std::env::var_os("LONGWAVE_MODEL").expect("LONGWAVE_MODEL names the model file");
    let (model, tokenizer) = load();
    let chat = ChatFormat::of(&ModelFile::open(path).unwrap(), &tokenizer);
    assert!(chat.is_some(), "an instruct model has a chat format");
    let maker = PasskeyMaker::new(&tokenizer, chat, FILLER, 5).unwrap();
    for (seed, depth) in [(1, 0.1), (2, 0.6)] {
        let passkey = maker.prompt(1500, depth, seed).unwrap();
        let stored = StoredPasskey::prefill(&model, &tokenizer, &passkey, &mut |_| {}).unwrap();
        let exact = stored.ask(Index::Ladder, Budget::Exact).unwrap();
        assert!(exact.found, "{exact:?}");
        assert_eq!(exact.bytes_share, 1.0);
        let found = stored.ask(Index::Ladder, Budget::Bytes(0.037)).unwrap();
        assert!(found.found, "{found:?}");
        assert!((0.01..0.06).contains(&found.bytes_share), "{found:?}");
    }
}
