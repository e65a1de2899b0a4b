//! Loads the tiny model of `tests/golden/tiny-bert-mean`, with one of its files changed.

#![allow(dead_code, reason = "each target changes one of the files and takes the others from here")]

use caxton::engine::{
    Architecture, EngineOptions, FileSizes, ModelFiles, ModelSpec, Pooling, Precision, TokenHeads,
    WeightsFormat, footprint, load,
};

/// The unchanged files.
pub const CONFIG: &[u8] = include_bytes!("../golden/tiny-bert-mean/config.json");
pub const TOKENIZER: &[u8] = include_bytes!("../golden/tiny-bert-mean/tokenizer.json");
pub const WEIGHTS: &[u8] = include_bytes!("../golden/tiny-bert-mean/model.safetensors");

/// Largest memory of a model that is loaded here. The daemon refuses larger ones before it loads
/// them, too.
const MOST_MEMORY: u64 = 256 << 20;
/// Text with characters that a damaged tokenizer handles wrongly first.
const TEXT: &str = "The quick brown fox paid €19.95 in Zürich; 東京 wasn't  cheaper.\n\t<s>[MASK]ﷺ½e\u{301}🚀";

/// Computes the footprint of the model, loads it and computes a vector, as the self-test of a
/// package does.
pub fn try_model(config: &[u8], tokenizer: &[u8], weights: &[u8]) {
    let spec = ModelSpec {
        architecture: Architecture::Bert,
        dimensions: 64,
        max_sequence_length: 32,
        pooling: Pooling::Mean,
        dense: Vec::new(),
        normalize: true,
        labels: None,
        token_types: false,
        token_heads: TokenHeads::default(),
    };
    let options = EngineOptions { threads: 1, batch_tokens: 64, precision: Precision::F32 };
    let sizes = FileSizes {
        tokenizer: tokenizer.len() as u64,
        weights: weights.len() as u64,
        dense: 0,
        stored: WeightsFormat::F32,
    };
    match footprint(&spec, config, Some(tokenizer), sizes, options) {
        Ok(footprint) if footprint.peak_bytes() < MOST_MEMORY => {}
        _ => return,
    }
    let files: ModelFiles = ModelFiles {
        config: config.to_vec(),
        tokenizer: tokenizer.to_vec(),
        weights: Box::new(weights.to_vec()),
        dense: Vec::new(),
    };
    let model = match load(&spec, files, options) {
        Ok(model) => model,
        Err(error) => {
            let told = format!("{error}");
            assert!(told.len() < 2000 && !told.chars().any(char::is_control), "{told:?}");
            return;
        }
    };
    let Ok(tokens) = model.tokenizer.encode("", TEXT) else { return };
    assert!(tokens.ids.len() <= spec.max_sequence_length);
    assert!(tokens.ids.iter().all(|&id| (id as usize) < model.tokenizer.vocabulary_size()));
    if let Ok(vector) = model.embedder.embed(&[&tokens.ids]) {
        assert_eq!(vector.len(), spec.dimensions);
        assert!(vector.iter().all(|value| value.is_finite()));
    }
    let _text = model.tokenizer.decode(&tokens.ids, false);
}
