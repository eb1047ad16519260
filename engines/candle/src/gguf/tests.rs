use super::*;
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use tempfile::TempDir;

use crate::{KvCache, MemoryCache, Model, ModelOptions, Tokenizer};

/// A model of two layers: width 32, four query heads over two KV heads of dimension 8, feed-forward 64, eleven tokens.
struct Synthetic {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, QTensor)>,
}

fn quantised(seed: usize, shape: &[usize], dtype: GgmlDType) -> QTensor {
    let count: usize = shape.iter().product();
    let elements: Vec<f32> =
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect();
    let tensor = Tensor::from_vec(elements, shape, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap()
}

impl Synthetic {
    fn new() -> Self {
        let tokens = ["a", "b", "c", "Ġ", "1", "ab", "Ġab", "d", "e", "f", "Ċ"];
        let strings =
            |texts: &[&str]| Value::Array(texts.iter().map(|&t| Value::String(t.to_owned())).collect());
        let metadata = [
            ("general.architecture", Value::String("llama".to_owned())),
            ("llama.block_count", Value::U32(2)),
            ("llama.context_length", Value::U32(128)),
            ("llama.embedding_length", Value::U32(32)),
            ("llama.feed_forward_length", Value::U32(64)),
            ("llama.attention.head_count", Value::U32(4)),
            ("llama.attention.head_count_kv", Value::U32(2)),
            ("llama.rope.freq_base", Value::F32(5000.0)),
            ("llama.rope.dimension_count", Value::U32(6)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
            ("tokenizer.ggml.pre", Value::String("smollm".to_owned())),
            ("tokenizer.ggml.tokens", strings(&tokens)),
            ("tokenizer.ggml.merges", strings(&["a b", "Ġ ab"])),
        ];
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), quantised(1, &[11, 32], GgmlDType::Q8_0)),
            ("output_norm.weight".to_owned(), quantised(2, &[32], GgmlDType::F32)),
        ];
        for layer in 0..2 {
            for (seed, (part, shape)) in [
                ("attn_norm", &[32][..]),
                ("attn_q", &[32, 32]),
                ("attn_k", &[16, 32]),
                ("attn_v", &[16, 32]),
                ("attn_output", &[32, 32]),
                ("ffn_norm", &[32]),
                ("ffn_gate", &[64, 32]),
                ("ffn_up", &[64, 32]),
                ("ffn_down", &[32, 64]),
            ]
            .into_iter()
            .enumerate()
            {
                let dtype = if shape.len() == 1 { GgmlDType::F32 } else { GgmlDType::Q4_1 };
                tensors.push((
                    format!("blk.{layer}.{part}.weight"),
                    quantised(10 * layer + seed + 3, shape, dtype),
                ));
            }
        }
        Self { metadata: metadata.map(|(name, value)| (name.to_owned(), value)).into(), tensors }
    }

    /// The same with one metadata entry replaced, added, or with `None` left out.
    fn with(mut self, key: &str, value: Option<Value>) -> Self {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    fn write(&self) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let metadata: Vec<_> = self.metadata.iter().map(|(name, value)| (&**name, value)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
        gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        (directory, path)
    }

    fn hyperparameters(&self) -> Result<Hyperparameters> {
        let (_directory, path) = self.write();
        ModelFile::open(path)?.hyperparameters()
    }

    fn load(&self) -> Result<Model> {
        let (_directory, path) = self.write();
        Model::load(&mut ModelFile::open(path)?, ModelOptions::default())
    }
}

#[test]
fn hyperparameters_come_from_the_metadata() {
    let expected = Hyperparameters {
        layers: 2,
        width: 32,
        feed_forward: 64,
        query_heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rotary_dim: 6,
        rope_base: 5000.0,
        norm_epsilon: 1e-5,
        vocabulary: 11,
        context_length: 128,
    };
    assert_eq!(Synthetic::new().hyperparameters().unwrap(), expected);
    let without = Synthetic::new()
        .with("llama.rope.freq_base", None)
        .with("llama.rope.dimension_count", None)
        .with("llama.attention.head_count_kv", None);
    let expected = Hyperparameters { rope_base: 10_000.0, rotary_dim: 8, kv_heads: 4, ..expected };
    assert_eq!(without.hyperparameters().unwrap(), expected);
}

#[test]
fn metadata_that_cannot_be_run_is_named() {
    for (key, value) in [
        ("general.architecture", Value::String("mamba".to_owned())),
        ("llama.block_count", Value::U32(0)),
        ("llama.block_count", Value::U32(u32::MAX)),
        ("llama.embedding_length", Value::F32(32.0)),
        ("llama.embedding_length", Value::U64(1 << 40)),
        ("llama.attention.head_count_kv", Value::U32(3)),
        ("llama.attention.head_count", Value::I32(-4)),
        ("llama.rope.dimension_count", Value::U32(10)),
        ("llama.rope.dimension_count", Value::U32(5)),
        ("llama.rope.freq_base", Value::F32(f32::NAN)),
        ("llama.rope.scaling.type", Value::String("yarn".to_owned())),
        ("llama.attention.value_length", Value::U32(16)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0)),
        ("tokenizer.ggml.tokens", Value::U32(11)),
    ] {
        let found = Synthetic::new().with(key, Some(value.clone())).hyperparameters();
        assert!(
            matches!(&found, Err(Error::Value { name, .. }) if name == key),
            "{key} {value:?}: {found:?}"
        );
    }
    let found = Synthetic::new().with("llama.block_count", None).hyperparameters();
    assert!(matches!(found, Err(Error::MissingMetadata { key }) if key == "llama.block_count"));
    // A head of 12 elements.
    let found = Synthetic::new().with("llama.embedding_length", Some(Value::U32(48))).hyperparameters();
    assert!(matches!(found, Err(Error::Value { name, .. }) if name == "elements of a head"));
}

#[test]
fn tensors_must_be_there_fit_and_be_known() {
    let mut model = Synthetic::new();
    let last = model.tensors.pop().unwrap();
    assert!(matches!(model.load(), Err(Error::MissingTensor { name }) if name == "blk.1.ffn_down.weight"));
    model.tensors.push((last.0.clone(), quantised(1, &[64, 32], GgmlDType::Q4_1)));
    match model.load() {
        Err(Error::TensorShape { name, expected, found }) => {
            assert_eq!((name, expected, found), (last.0.clone(), vec![32, 64], vec![64, 32]));
        }
        other => panic!("{other:?}"),
    }
    model.tensors.pop();
    model.tensors.push(last);
    model.tensors.push(("blk.1.attn_q.bias".to_owned(), quantised(1, &[32], GgmlDType::F32)));
    assert!(matches!(model.load(), Err(Error::UnknownTensor { name }) if name == "blk.1.attn_q.bias"));
}

#[test]
fn damaged_files_are_errors() {
    let (_directory, path) = Synthetic::new().write();
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 3, 20, 300, bytes.len() / 2, bytes.len() - 40] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let loaded =
            ModelFile::open(&path).and_then(|mut file| Model::load(&mut file, ModelOptions::default()));
        assert!(loaded.is_err(), "cut to {len} bytes");
    }
    let aligned = Synthetic::new().with("general.alignment", Some(Value::U32(0)));
    assert!(matches!(aligned.load(), Err(Error::Malformed { .. })));
    let missing = ModelFile::open(path.with_extension("absent"));
    assert!(matches!(missing, Err(Error::Io { operation: "open", .. })));
}

#[test]
fn the_digest_sees_every_byte() {
    let (_directory, path) = Synthetic::new().write();
    let first = ModelFile::open(&path).unwrap().weights_digest();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.last_mut().unwrap();
    *last ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_ne!(ModelFile::open(&path).unwrap().weights_digest(), first);
}

#[test]
fn chunks_and_single_steps_give_the_same_logits() {
    let model = Synthetic::new().load().unwrap();
    let ids: Vec<u32> = (0..23).map(|i| (i * i + 3) % 11).collect();
    let cache = || MemoryCache::new(model.attention_shape(), 2, ids.len());
    let mut whole = cache();
    let hidden = model.prefill(&ids, &mut whole, &mut |done| assert_eq!(done, 23)).unwrap();
    let expected = model.logits(&hidden).unwrap();
    let mut stepped = cache();
    model.prefill(&ids[..9], &mut stepped, &mut |_| {}).unwrap();
    let mut logits = Vec::new();
    for &id in &ids[9..] {
        logits = model.step(id, &mut stepped).unwrap();
    }
    assert_eq!((whole.tokens(), stepped.tokens(), logits.len()), (23, 23, 11));
    let largest = expected.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    for (found, expected) in logits.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5 * largest, "{found} {expected}");
    }
    // Another order of the same tokens is another text: positions reach the logits.
    let mut swapped = ids.clone();
    swapped.swap(0, 1);
    let hidden = model.prefill(&swapped, &mut cache(), &mut |_| {}).unwrap();
    let other = model.logits(&hidden).unwrap();
    assert!(other.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-4 * largest), "{other:?}");
}

#[test]
fn a_separate_output_head_is_used() {
    let mut model = Synthetic::new();
    let tied = model.load().unwrap();
    model.tensors.push(("output.weight".to_owned(), quantised(77, &[11, 32], GgmlDType::Q8_0)));
    let separate = model.load().unwrap();
    let logits = |model: &Model| model.step(4, &mut MemoryCache::new(model.attention_shape(), 2, 1)).unwrap();
    assert_ne!(logits(&tied), logits(&separate));
}

#[test]
fn ids_outside_the_vocabulary_are_refused_before_the_cache_sees_anything() {
    let model = Synthetic::new().load().unwrap();
    let mut cache = MemoryCache::new(model.attention_shape(), 2, 4);
    assert!(matches!(model.step(11, &mut cache), Err(Error::Token { id: 11, vocabulary: 11 })));
    assert_eq!(cache.tokens(), 0);
    assert!(matches!(
        model.prefill_layers(&[1], &mut cache, 3, &mut |_| {}),
        Err(Error::Layer { layer: 2, layers: 2 })
    ));
}

#[test]
fn the_tokenizer_comes_from_the_same_file() {
    let (_directory, path) = Synthetic::new().write();
    let tokenizer = Tokenizer::from_gguf(&ModelFile::open(path).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("ab ab1\n").unwrap(), [5, 6, 4, 10]);
    let (_directory, path) = Synthetic::new().write();
    let mut file = ModelFile::open(path).unwrap();
    let model = Model::load(&mut file, ModelOptions { rope_base: Some(2e6) }).unwrap();
    let expected = ModelIdentity {
        weights_digest: file.weights_digest(),
        tokenizer_digest: tokenizer.digest(),
        rope_base: 2e6,
    };
    assert_eq!(model.identity(&tokenizer), expected);
    let (_directory, path) =
        Synthetic::new().with("tokenizer.ggml.model", Some(Value::String("llama".to_owned()))).write();
    assert!(matches!(Tokenizer::from_gguf(&ModelFile::open(path).unwrap()), Err(Error::Value { .. })));
}
