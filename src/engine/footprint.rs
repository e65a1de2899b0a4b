//! Estimates the memory of a model before its weights are read, so that the manager can decide
//! whether it fits.
//!
//! This module adds up the parts; each structure computes its own size next to its definition. The
//! estimate reads the configuration and the tokenizer, and no other file.
//!
//! The estimate counts the words in `tokenizer.json`, up to the number in the configuration:
//! loading refuses a tokenizer with more words ([`Tokenizer`](super::Tokenizer)) before it
//! allocates memory for them. Without the file, the estimate assumes typical words. It assumes the
//! largest header of the weights that loading accepts.
//!
//! Invariant: [`Footprint::weight_bytes`] equals the value that the loaded
//! [`Embedder`](super::Embedder) reports, to the byte, except for outliers and the tokenizer.

use super::classifier::{self, ClassifierLayout};
use super::config::EncoderConfig;
use super::encoder::Encoder;
use super::layer::disentangled;
use super::pooling::PoolingHead;
use super::spec::{Family, Runtime};
use super::static_embedding::{self, StaticConfig};
use super::tensor_names::{self, EmbeddingNames, RequiredTensor};
use super::token_heads;
use super::tokenize::TokenizerMemory;
use super::{Architecture, EngineError, EngineOptions, ModelSpec, fused, precision, weights};
use crate::base::int4;
use crate::base::quantization::{input_blocks, is_word_table};

/// Size of the largest `tokenizer.json` in which words are counted, in bytes. The estimate for a
/// larger file is the upper bound. The file of Gemma has 33 million bytes.
pub const COUNTED_BYTES: u64 = 40 << 20;

/// Storage format of the matrices in `model.safetensors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsFormat {
    /// Values of 32 bits.
    F32,
    /// Values of 16 bits.
    F16,
    /// Integers of 8 bits, with a scale for each row and block of columns, and with outliers.
    Int8,
    /// Integers of 8 bits, and of 4 bits in the table of words of an encoder.
    Int4Table,
}

impl WeightsFormat {
    const fn value_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 | Self::Int4Table => 1,
        }
    }

    /// Returns whether the matrix `name` is stored in 4 bits.
    fn is_int4(self, name: &str) -> bool {
        self == Self::Int4Table && is_word_table(name)
    }

    /// Returns whether the linear layers are stored as integers.
    fn has_integers(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4Table)
    }
}

/// Facts about a model's files that are known before the files are read; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSizes {
    /// Size of `tokenizer.json`.
    pub tokenizer: u64,
    /// Size of `model.safetensors`, which will be mapped.
    pub weights: u64,
    /// Total size of the files of all dense layers.
    pub dense: u64,
    /// Storage format of the matrices in `model.safetensors`.
    pub stored: WeightsFormat,
}

/// Memory that a model takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Memory of this process for the lifetime of the model: packed weights, tables and tokenizer.
    pub weight_bytes: u64,
    /// Maximum resident size of the word embedding table, which is read in place from the mapped
    /// weights. The system reclaims it when memory is short.
    pub mapped_bytes: u64,
    /// Memory of this process in addition to the weights after the longest passes have run on all
    /// threads. It stays allocated until
    /// [`Embedder::release_scratch`](super::Embedder::release_scratch).
    pub scratch_bytes: u64,
    /// Memory of this process in addition to the weights during loading: files that are read whole,
    /// the tokenizer's JSON in the form of its parser, and the vectors of distances of a DeBERTa.
    pub loading_bytes: u64,
}

impl Footprint {
    /// Returns the maximum memory of this process that the model takes at any time. The process
    /// cannot give any of it back while the model is in use. [`Footprint::mapped_bytes`] come on
    /// top.
    pub fn peak_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.scratch_bytes.max(self.loading_bytes))
    }
}

/// Estimates the memory of the model that `spec` and its `config.json` describe, if it is loaded
/// from files of `sizes` with `options`.
///
/// `tokenizer` is the content of `tokenizer.json` if it is known.
///
/// The estimate omits the outliers of weights that are rounded to integers during packing: about 3
/// in 1,000 outputs have one (62 of 21,248 in all-MiniLM-L6-v2).
///
/// # Errors
/// Returns an error if `config` contradicts `spec`, itself, or the size of the weights.
pub fn footprint(
    spec: &ModelSpec,
    config: &[u8],
    tokenizer: Option<&[u8]>,
    sizes: FileSizes,
    options: EngineOptions,
) -> Result<Footprint, EngineError> {
    let (vocabulary, of_weights) = match spec.architecture.runtime() {
        Runtime::Fused(family) => encoder_footprint(spec, config, family, sizes, options),
        Runtime::Static => {
            classifier::refuse_labels(spec)?;
            token_heads::refuse_token_heads(spec)?;
            table_footprint(spec, config, sizes)
        }
    }?;
    let counted = tokenizer.and_then(|tokenizer| TokenizerMemory::estimate(tokenizer, vocabulary));
    let tokenizer = counted.unwrap_or_else(|| match sizes.tokenizer > COUNTED_BYTES {
        true => TokenizerMemory::upper_bound(vocabulary),
        false => {
            let kind = TokenizerKind::guess(spec.architecture, sizes.tokenizer, vocabulary);
            let words = |bytes| (vocabulary as u64).saturating_mul(bytes);
            let (kept, reading) = kind.word_bytes();
            TokenizerMemory { kept: words(kept), reading: words(reading) }
        }
    });
    let beside_weights = tokenizer.kept.saturating_add(PoolingHead::bytes_of(spec));
    Ok(Footprint {
        weight_bytes: of_weights.weight_bytes.saturating_add(beside_weights),
        loading_bytes: tokenizer
            .reading
            .saturating_add(sizes.tokenizer.saturating_add(sizes.dense))
            .saturating_add(of_weights.loading_bytes),
        ..of_weights
    })
}

/// Returns the number of words and the memory of the weights for a model that the fused encoder
/// runs.
fn encoder_footprint(
    spec: &ModelSpec,
    config: &[u8],
    family: Family,
    sizes: FileSizes,
    options: EngineOptions,
) -> Result<(usize, Footprint), EngineError> {
    let json = config;
    let config = EncoderConfig::read(json, family, spec)?;
    let family = (config.family, config.embeddings.types);
    let classifier = ClassifierLayout::read(json, family, spec)?;
    let classifier = classifier.map_or(0, |layout| layout.bytes());
    let heads = classifier.saturating_add(spec.token_heads.bytes(config.output_size()));
    // The heads are beside the tensors of the encoder.
    let sizes = FileSizes { weights: sizes.weights.saturating_sub(heads), ..sizes };
    let tensors: Vec<_> = tensor_names::encoder_tensors(&config).collect();
    let rest = sizes.rest(config.hidden_size, &tensors)?;
    let choice = precision::choose_arithmetic(options.precision, sizes.stored.has_integers());
    let longest = spec.max_sequence_length;
    let (threads, budget) = (options.threads.max(1), options.batch_tokens);
    let words = EmbeddingNames::of(config.family).words;
    let table = sizes.table(words, config.vocab_size, config.hidden_size, rest);
    let formats = (choice.format, choice.attention);
    let weights = Encoder::bytes_of(&config, longest, formats);
    let footprint = Footprint {
        weight_bytes: table.weight_bytes.saturating_add(weights).saturating_add(heads),
        loading_bytes: weights::header_memory(tensors.len() as u128)
            .saturating_add(disentangled::vector_bytes(&config)),
        scratch_bytes: fused::scratch_bytes(&config, &choice, longest, budget, threads),
        ..table
    };
    Ok((config.vocab_size, footprint))
}

/// Returns the number of words and the memory of the table for static embeddings.
fn table_footprint(
    spec: &ModelSpec,
    config: &[u8],
    sizes: FileSizes,
) -> Result<(usize, Footprint), EngineError> {
    let StaticConfig { vocab_size, hidden_size } = StaticConfig::read(config, spec)?;
    let shape = [vocab_size, hidden_size];
    let rest = sizes.rest(0, &[RequiredTensor::new(static_embedding::TABLE, shape)])?;
    let loading_bytes = weights::header_memory(1);
    let table = sizes.table(static_embedding::TABLE, vocab_size, hidden_size, rest);
    Ok((vocab_size, Footprint { loading_bytes, ..table }))
}

impl FileSizes {
    /// Returns the bytes of the weights file that are neither values nor scales of `tensors`: its
    /// header and outliers. `channels` is the number of hidden channels.
    ///
    /// Returns an error if the configuration has more values than the file has bytes. So later
    /// computations cannot overflow with the sizes in the configuration.
    fn rest(&self, channels: usize, tensors: &[RequiredTensor]) -> Result<u64, EngineError> {
        // Two values may share a byte.
        let least = sum(tensors, |tensor| match self.stored.is_int4(&tensor.name) {
            true => elements(tensor) / 2,
            false => elements(tensor),
        });
        if least > u128::from(self.weights) {
            return Err(EngineError::Mismatch(format!(
                "config.json describes {} weights, model.safetensors has {} bytes",
                sum(tensors, elements),
                self.weights
            )));
        }
        let stored = sum(tensors, |tensor| match tensor.shape[..] {
            _ if self.stored.is_int4(&tensor.name) => int4_bytes(elements(tensor)),
            [rows, columns] => {
                let scales = match self.stored.has_integers() {
                    true => scale_bytes(&tensor.name, rows, columns, channels),
                    false => 0,
                };
                elements(tensor) * u128::from(self.stored.value_bytes()) + scales
            }
            _ => elements(tensor) * 4,
        });
        Ok(self.weights.saturating_sub(saturate(stored)))
    }

    /// Returns the memory of the table `name` of `rows` words that stays in the file. At most
    /// `rest` bytes of the file are outliers.
    fn table(&self, name: &str, rows: usize, columns: usize, rest: u64) -> Footprint {
        let values = (rows as u64).saturating_mul(columns as u64);
        let (mapped, scales) = match self.stored {
            stored if stored.is_int4(name) => (saturate(int4_bytes(u128::from(values))), 0),
            stored if stored.has_integers() => (values, rows as u64 * 4),
            stored => (values.saturating_mul(stored.value_bytes()), 0),
        };
        let outliers = match scales {
            0 => 0,
            _ => rest / weights::OUTLIER_FILE_BYTES,
        };
        Footprint {
            weight_bytes: scales + outliers.saturating_mul(weights::OUTLIER_BYTES),
            mapped_bytes: mapped,
            scratch_bytes: 0,
            loading_bytes: 0,
        }
    }
}

/// Returns the bytes of the scales of an integer matrix, and of the block numbers of its columns.
fn scale_bytes(name: &str, rows: usize, columns: usize, channels: usize) -> u128 {
    let ends = input_blocks(name, columns, channels);
    let blocks = if ends.len() > 1 { columns } else { 0 };
    4 * (rows as u128 * ends.len() as u128 + blocks as u128)
}

/// Returns the bytes of `values` integers of 4 bits and of their scales of 16 bits.
const fn int4_bytes(values: u128) -> u128 {
    values / int4::BLOCK as u128 * (int4::BLOCK_BYTES as u128 + 2)
}

fn elements(tensor: &RequiredTensor) -> u128 {
    tensor.shape.iter().fold(1, |all, &length| all.saturating_mul(length as u128))
}

fn saturate(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Returns the sum of `size` over `tensors`.
fn sum(tensors: &[RequiredTensor], size: impl Fn(&RequiredTensor) -> u128) -> u128 {
    tensors.iter().map(size).fold(0, u128::saturating_add)
}

/// Algorithm of a tokenizer. Its memory is estimated from the number of words instead of the file
/// size, because the file may or may not be indented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenizerKind {
    WordPiece,
    Bpe,
    Unigram,
}

impl TokenizerKind {
    /// Bytes of `tokenizer.json` for each word at which the file cannot be a WordPiece. An entry
    /// with a word, its id and quotes has about 15 bytes (24 if indented); an entry with a word and
    /// its probability has 32 or more.
    const WORD_PIECE_BELOW: u64 = 28;

    /// Guesses the kind of tokenizer from the architecture and the file size. A BERT may have a
    /// multilingual Unigram tokenizer.
    fn guess(architecture: Architecture, bytes: u64, vocabulary: usize) -> Self {
        let word_piece = bytes < Self::WORD_PIECE_BELOW.saturating_mul(vocabulary as u64);
        match architecture {
            _ if word_piece && architecture != Architecture::Roberta => Self::WordPiece,
            Architecture::Roberta | Architecture::ModernBert => Self::Bpe,
            _ => Self::Unigram,
        }
    }

    /// Returns the bytes for each typical word: kept with the tokenizer, and additionally needed
    /// during the read.
    ///
    /// Measured with glibc, as anonymous memory of a process, for each word of `tokenizer.json`:
    ///
    /// | words | kind | file | kept | reading |
    /// | --- | --- | --- | --- | --- |
    /// | 30,522 (all-MiniLM-L6-v2) | WordPiece | 0.47 MB | 210 | 0 |
    /// | 50,000 | BPE, a merge a word | 1.9 MB | 222 | 48 |
    /// | 250,000 | BPE, a merge a word | 9.9 MB | 307 | 48 |
    /// | 120,000 | BPE, two merges a word | 10 MB | 381 | 98 |
    /// | 32,000 (a T5) | Unigram | 1.4 MB | 975 | 0 |
    /// | 250,000 | Unigram | 7.2 MB | 1134 | 0 |
    const fn word_bytes(self) -> (u64, u64) {
        match self {
            Self::WordPiece => (210, 0),
            Self::Bpe => (310, 50),
            Self::Unigram => (1000, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::engine::config::tests::{bert, spec};
    use crate::engine::{Activation, DenseSpec, ModelFiles, Pooling, Precision, load};

    const OPTIONS: EngineOptions =
        EngineOptions { threads: 2, batch_tokens: 64, precision: Precision::F32 };
    const SIZES: FileSizes =
        FileSizes { tokenizer: 100, weights: 1 << 20, dense: 0, stored: WeightsFormat::F32 };

    fn golden(name: &str, file: &str) -> Vec<u8> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        std::fs::read(directory.join(file)).unwrap()
    }

    #[test]
    fn weight_footprint_is_exact_except_outliers() {
        for (name, architecture) in [
            ("tiny-bert-mean", Architecture::Bert),
            ("tiny-bert-odd", Architecture::Bert),
            ("tiny-distilbert", Architecture::DistilBert),
            ("tiny-distiluse", Architecture::DistilBert),
            ("tiny-modernbert", Architecture::ModernBert),
            ("tiny-mpnet", Architecture::Mpnet),
            ("tiny-roberta", Architecture::Roberta),
            ("tiny-static", Architecture::Static),
            ("tiny-xlm-roberta", Architecture::XlmRoberta),
            ("tiny-camembert", Architecture::Camembert),
            ("tiny-embedding-gemma2", Architecture::EmbeddingGemma2),
            ("tiny-eurobert", Architecture::EuroBert),
            ("tiny-gemma3-causal", Architecture::Gemma3Text),
            ("tiny-gte", Architecture::Gte),
            ("tiny-nomic-bert", Architecture::NomicBert),
            ("tiny-qwen3", Architecture::Qwen3),
            ("tiny-bert-cross-encoder", Architecture::Bert),
            ("tiny-deberta-v2-cross-encoder", Architecture::DebertaV2),
        ] {
            let mut spec = spec(architecture);
            if name.ends_with("cross-encoder") {
                (spec.labels, spec.pooling) = (Some(1), Pooling::Cls);
            }
            spec.max_sequence_length = 40;
            spec.dimensions = match name {
                "tiny-bert-odd" => 60,
                "tiny-embedding-gemma2" => 96,
                _ => 64,
            };
            let mut dense = Vec::new();
            if name == "tiny-distiluse" {
                let (bias, activation) = (true, Activation::Tanh);
                spec.dense =
                    vec![DenseSpec { in_features: 64, out_features: 40, bias, activation }];
                spec.dimensions = 40;
                dense.push(golden(name, "2_Dense/model.safetensors"));
            }
            let config = match architecture {
                Architecture::Static => {
                    br#"{"model_type": "static", "vocab_size": 537, "hidden_size": 64}"#.to_vec()
                }
                _ => golden(name, "config.json"),
            };
            let words = match serde_json::from_slice::<Value>(&config).unwrap()["vocab_size"] {
                Value::Number(ref words) => words.as_u64().unwrap(),
                ref other => panic!("{name}: {other}"),
            };
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let options = EngineOptions { precision, ..OPTIONS };
                let weights = golden(name, "model.safetensors");
                let sizes = FileSizes { weights: weights.len() as u64, ..SIZES };
                let told = footprint(&spec, &config, None, sizes, options).unwrap();
                let (kept, _) =
                    TokenizerKind::guess(architecture, sizes.tokenizer, 1 << 20).word_bytes();
                let told = told.weight_bytes - words * kept;
                let files: ModelFiles = ModelFiles {
                    config: config.clone(),
                    tokenizer: golden(name, "tokenizer.json"),
                    weights: Box::new(weights),
                    dense: dense.clone(),
                };
                let embedder = load(&spec, files, options).unwrap().embedder;
                let found = embedder.weight_bytes() - sizes.weights;
                let outliers = found - told;
                let rounded = embedder.report().precision == Precision::Int8;
                assert!(
                    outliers == 0 || rounded && outliers.is_multiple_of(weights::OUTLIER_BYTES),
                    "{name} in {precision}: {found} bytes, {told} told"
                );
            }
        }
    }

    #[test]
    fn scratch_grows_with_threads_and_pass_tokens() {
        let config = bert().to_string().into_bytes();
        let scratch = |threads, batch_tokens| {
            let options = EngineOptions { threads, batch_tokens, ..OPTIONS };
            footprint(&spec(Architecture::Bert), &config, None, SIZES, options)
                .unwrap()
                .scratch_bytes
        };
        // Several threads share the memory of a pass that they compute together.
        let thread = scratch(3, 4096) - scratch(2, 4096);
        assert_eq!(thread, scratch(1, 4096));
        let shared = scratch(2, 4096) - 2 * thread;
        assert!((1..thread).contains(&shared), "{shared} of {thread}");
        assert_eq!(scratch(4, 4096), 4 * thread + shared);
        assert!(scratch(1, 64) < scratch(1, 256));
        // `PASS_TOKENS` limits the size of a pass, so a larger budget needs no more memory.
        assert_eq!(scratch(1, 4096), scratch(1, 1 << 20));
    }

    #[test]
    fn vectors_of_distances_count_during_loading() {
        let file = golden("tiny-deberta-v2-cross-encoder", "config.json");
        let mut config: Value = serde_json::from_slice(&file).unwrap();
        let spec = ModelSpec {
            labels: Some(1),
            pooling: Pooling::Cls,
            dimensions: 64,
            ..spec(Architecture::DebertaV2)
        };
        let mut loading = |buckets: u64| {
            config["position_buckets"] = buckets.into();
            let config = config.to_string().into_bytes();
            footprint(&spec, &config, None, SIZES, OPTIONS).unwrap().loading_bytes
        };
        assert_eq!(loading(16) - loading(8), 2 * 8 * 64 * 4);
    }

    #[test]
    fn weights_beyond_file_size_are_refused() {
        for key in ["intermediate_size", "vocab_size", "max_position_embeddings"] {
            let mut config = bert();
            config[key] = (1 << 24).into();
            let config = config.to_string().into_bytes();
            let spec = spec(Architecture::Bert);
            let error = footprint(&spec, &config, None, SIZES, OPTIONS).unwrap_err().to_string();
            assert!(error.ends_with(" weights, model.safetensors has 1048576 bytes"), "{error}");
        }
    }

    #[test]
    fn integer_footprint_comes_from_file_size() {
        let sizes = FileSizes { weights: 40_000, stored: WeightsFormat::Int8, ..SIZES };
        let config = json!({ "model_type": "static", "vocab_size": 1000, "hidden_size": 8 });
        let config = config.to_string().into_bytes();
        let told = footprint(&spec(Architecture::Static), &config, None, sizes, OPTIONS).unwrap();
        assert_eq!(told.mapped_bytes, 8000);
        // Bytes that are neither values nor scales may be outliers, which take three times as many
        // bytes in memory.
        let (kept, _) = TokenizerKind::WordPiece.word_bytes();
        assert_eq!(told.weight_bytes, 4000 + 3 * (40_000 - 8000 - 4000) + 1000 * kept);
        assert_eq!(told.peak_bytes(), told.weight_bytes + told.loading_bytes);
    }

    #[test]
    fn tokenizer_kind_is_guessed_from_size() {
        use TokenizerKind::{Bpe, Unigram, WordPiece};
        for (architecture, bytes, words, expected) in [
            (Architecture::Bert, 466_247, 30_522, WordPiece),
            (Architecture::Bert, 711_635, 30_522, WordPiece),
            (Architecture::Bert, 9_081_518, 250_037, Unigram),
            (Architecture::Roberta, 1_355_863, 50_265, Bpe),
            (Architecture::ModernBert, 2_132_967, 50_368, Bpe),
            (Architecture::ModernBert, 12_815, 540, WordPiece),
            (Architecture::XlmRoberta, 9_081_518, 250_002, Unigram),
        ] {
            assert_eq!(TokenizerKind::guess(architecture, bytes, words), expected);
        }
    }

    #[test]
    fn known_tokenizer_words_are_counted() {
        // The file has as many words as the configuration allows. They are short, so that the file
        // size looks like that of a WordPiece.
        let words: Vec<_> = (0..10_000).map(|id| json!([format!("{id:04x}zzzzz"), 0])).collect();
        let file = json!({ "model": { "vocab": words } }).to_string();
        let mut config = json!({ "model_type": "static", "vocab_size": 10_000, "hidden_size": 8 });
        let sizes = FileSizes { tokenizer: file.len() as u64, ..SIZES };
        let told = |config: &Value, tokenizer, sizes| {
            let config = config.to_string().into_bytes();
            footprint(&spec(Architecture::Static), &config, tokenizer, sizes, OPTIONS).unwrap()
        };
        let typical = told(&config, None, sizes).weight_bytes;
        assert_eq!(typical, 10_000 * TokenizerKind::WordPiece.word_bytes().0);
        let counted = told(&config, Some(file.as_bytes()), sizes).weight_bytes;
        assert!(counted > 9 * typical, "{counted} {typical}");
        // A file that is too large to be counted gets the upper bound.
        let large = FileSizes { tokenizer: COUNTED_BYTES + 1, ..sizes };
        assert!(told(&config, None, large).weight_bytes > counted);
        // Words beyond the number in the configuration are refused, so they take no memory.
        config["vocab_size"] = 100.into();
        assert!(told(&config, Some(file.as_bytes()), sizes).weight_bytes < counted / 50);
    }
}
