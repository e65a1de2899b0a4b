//! Computes static embeddings: the vector of a text is the mean of the table rows of its tokens.
//!
//! The layout is that of sentence-transformers' `StaticEmbedding` and of model2vec:
//! <https://github.com/huggingface/sentence-transformers/blob/v5.1.0/sentence_transformers/models/StaticEmbedding.py>
//!
//! The table stays in its stored format. This module starts no threads, because a text takes less
//! time than it takes to wake one.
//!
//! Invariant: the vector of a text without tokens is zero before the dense layers, as in
//! sentence-transformers.

use std::io;

use serde::Deserialize;

use super::config::{check_lengths, check_not_zero, parse};
use super::input_limits::{InputLimits, check_finite};
use super::peak_rate;
use super::pooling::PoolingHead;
use super::precision::{Precision, PrecisionReport};
use super::tensor_names::RequiredTensor;
use super::weights::{self, MappedTable};
use super::{Embedder, EngineError, ModelSpec, Output, Pooling, WeightsFile};

/// Canonical name of the table.
pub(super) const TABLE: &str = "embedding.weight";
/// Name of the table in model2vec's own files.
const MODEL2VEC_TABLE: &str = "embeddings";

/// Shape of the table, `[vocab_size, hidden_size]`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct StaticConfig {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
}

impl StaticConfig {
    /// Reads the configuration of the table from `bytes` and checks it against `spec`.
    ///
    /// # Errors
    /// Returns an error if the JSON is malformed or contradicts `spec`. The message has both
    /// values.
    pub(super) fn read(bytes: &[u8], spec: &ModelSpec) -> Result<Self, EngineError> {
        let config: Self = parse(bytes, spec)?;
        check_not_zero(&[("vocab_size", config.vocab_size), ("hidden_size", config.hidden_size)])?;
        check_lengths(spec, config.hidden_size)?;
        if spec.pooling != Pooling::Mean {
            return Err(EngineError::Mismatch(format!(
                "static embeddings have mean pooling, but the manifest has {}",
                spec.pooling
            )));
        }
        Ok(config)
    }
}

/// A loaded model.
pub(super) struct StaticEmbedder {
    table: MappedTable,
    hidden_size: usize,
    head: PoolingHead,
    limits: InputLimits,
    dimensions: usize,
    report: PrecisionReport,
}

impl StaticEmbedder {
    /// Builds the model from the table of `config` in the safetensors `file`, followed by `head`.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if the file does not contain exactly this table.
    pub(super) fn new(
        spec: &ModelSpec,
        config: StaticConfig,
        file: Box<dyn WeightsFile>,
        head: PoolingHead,
    ) -> Result<Self, EngineError> {
        let StaticConfig { vocab_size, hidden_size } = config;
        let expected = [RequiredTensor::new(TABLE, [vocab_size, hidden_size])].into_iter();
        let mut tensors = weights::read("model.safetensors", &*file, canonical, expected)?;
        let table = tensors
            .remove(TABLE)
            .ok_or_else(|| EngineError::Mismatch(format!("tensor \"{TABLE}\" is missing")))?;
        let place = table.location();
        drop(tensors);
        Ok(Self {
            table: MappedTable::new(file, place),
            hidden_size,
            head,
            limits: InputLimits {
                vocabulary: vocab_size,
                has_types: false,
                min: 0,
                max: spec.max_sequence_length,
            },
            dimensions: spec.dimensions,
            report: PrecisionReport {
                precision: Precision::F32,
                isa: "none",
                reason: "static embeddings need no products".to_owned(),
            },
        })
    }

    /// Computes `output` of `text`. `row` and `mean` are scratch memory for one row each.
    fn vector(&self, text: &[u32], output: Output, row: &mut [f32], mean: &mut [f32]) -> Vec<f32> {
        mean.fill(0.0);
        for &id in text {
            self.table.read_row(id as usize, row);
            mean.iter_mut().zip(&*row).for_each(|(sum, value)| *sum += value);
        }
        #[expect(clippy::cast_precision_loss, reason = "a text has far fewer than 2^24 tokens")]
        let length = text.len().max(1) as f32;
        mean.iter_mut().for_each(|sum| *sum /= length);
        // Pass the mean as the only token vector: every pooling of one row returns that row.
        self.head.apply(mean, self.hidden_size, output)
    }
}

/// Returns the canonical name of a tensor, which is its name in sentence-transformers. Also renames
/// the tensors that belong to an int8 table, such as its scales.
fn canonical(name: &str) -> Option<String> {
    let part = name.strip_prefix(MODEL2VEC_TABLE);
    let part = part.filter(|part| part.is_empty() || part.starts_with('.'));
    Some(part.map_or_else(|| name.to_owned(), |part| format!("{TABLE}{part}")))
}

impl Embedder for StaticEmbedder {
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
        if output == Output::TokenStates {
            return Err(EngineError::NoTokenStates);
        }
        self.head.check(output)?;
        self.limits.check(texts)?;
        let (mut row, mut mean) = (vec![0.0; self.hidden_size], vec![0.0; self.hidden_size]);
        let vectors = texts.iter().flat_map(|text| self.vector(text, output, &mut row, &mut mean));
        check_finite(vectors.collect(), self.report.precision.name())
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn weight_bytes(&self) -> u64 {
        self.table.bytes() + self.head.weight_bytes()
    }

    fn mapped_bytes(&self) -> u64 {
        self.table.mapped_bytes()
    }

    /// Does nothing: a pass allocates its two rows and frees them.
    fn release_scratch(&self) {}

    /// Returns 0, because static embeddings have no matrix products.
    fn matrix_operations(&self, _tokens: usize) -> u64 {
        0
    }

    fn matrix_peak(&self) -> io::Result<f64> {
        peak_rate::f32(1)
    }

    fn report(&self) -> &PrecisionReport {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::config::tests::spec;
    use crate::engine::weights::tests::{f32s, file};
    use crate::engine::{Activation, Architecture, DenseSpec};

    fn config() -> Value {
        json!({ "model_type": "static", "vocab_size": 3, "hidden_size": 2 })
    }

    fn static_spec() -> ModelSpec {
        ModelSpec { dimensions: 2, ..spec(Architecture::Static) }
    }

    fn read(config: &Value, spec: &ModelSpec) -> Result<StaticConfig, String> {
        StaticConfig::read(config.to_string().as_bytes(), spec).map_err(|error| error.to_string())
    }

    fn new(spec: &ModelSpec, file: Vec<u8>, dense: &[Vec<u8>]) -> Result<StaticEmbedder, String> {
        let head = PoolingHead::read(spec, dense).unwrap();
        StaticEmbedder::new(spec, read(&config(), spec)?, Box::new(file), head)
            .map_err(|error| error.to_string())
    }

    const ROWS: [f32; 6] = [1.0, -1.0, 3.0, 5.0, 0.0, 0.5];

    fn table() -> Vec<u8> {
        file(&[(TABLE, Dtype::F32, &[3, 2], f32s(&ROWS))])
    }

    #[test]
    fn vector_is_mean_of_table_rows() {
        let int8 = |name: &str| {
            let scale = format!("{name}.scale");
            let index = format!("{name}.outlier.index");
            let value = format!("{name}.outlier.value");
            let rows: Vec<u8> = [2_i8, -2, 0, 5, 0, 1].map(|q| q.to_le_bytes()[0]).to_vec();
            let two = 2_u32.to_le_bytes().to_vec();
            file(&[
                (name, Dtype::I8, &[3, 2], rows),
                (&scale, Dtype::F32, &[3], f32s(&[0.5, 1.0, 0.5])),
                (&index, Dtype::U32, &[1], two),
                (&value, Dtype::F32, &[1], f32s(&[3.0])),
            ])
        };
        let model2vec = file(&[(MODEL2VEC_TABLE, Dtype::F32, &[3, 2], f32s(&ROWS))]);
        for stored in [table(), model2vec, int8(TABLE), int8(MODEL2VEC_TABLE)] {
            let embedder = new(&static_spec(), stored, &[]).unwrap();
            let texts: [&[u32]; 4] = [&[0], &[0, 1], &[], &[2, 2, 0, 1]];
            let expected = [1.0, -1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.25];
            assert_eq!(embedder.embed(&texts).unwrap(), expected);
            assert!(embedder.embed(&[]).unwrap().is_empty());
        }
    }

    #[test]
    fn empty_text_gets_dense_and_normalization() {
        let dense = DenseSpec {
            in_features: 2,
            out_features: 1,
            bias: true,
            activation: Activation::Identity,
        };
        let spec =
            ModelSpec { dimensions: 1, dense: vec![dense], normalize: true, ..static_spec() };
        let layer = file(&[
            ("linear.weight", Dtype::F32, &[1, 2], f32s(&[1.0, 1.0])),
            ("linear.bias", Dtype::F32, &[1], f32s(&[-4.0])),
        ]);
        let embedder = new(&spec, table(), &[layer]).unwrap();
        assert_eq!(embedder.embed(&[&[], &[1]]).unwrap(), [-1.0, 1.0]);
        let unnormalized = embedder.compute(&[&[], &[1]], Output::Unnormalized).unwrap();
        assert_eq!(unnormalized, [-4.0, 4.0]);
        assert_eq!(embedder.dimensions(), 1);
        assert!(embedder.weight_bytes() >= 4 * (6 + 2 + 1));
    }

    #[test]
    fn token_states_are_unavailable() {
        let embedder = new(&static_spec(), table(), &[]).unwrap();
        let error = embedder.compute(&[&[0]], Output::TokenStates).unwrap_err();
        assert!(matches!(error, EngineError::NoTokenStates), "{error}");
    }

    #[test]
    fn excessive_token_id_or_length_is_refused() {
        let embedder = new(&static_spec(), table(), &[]).unwrap();
        let refusal = |embedder: &StaticEmbedder, text: &[u32]| {
            embedder.embed(&[&[0], text]).unwrap_err().to_string()
        };
        assert_eq!(
            refusal(&embedder, &[3]),
            "token id 3 is outside the model's vocabulary of 3 tokens"
        );
        let message = "the text has 11 tokens, and the model accepts 0 to 10";
        assert_eq!(refusal(&embedder, &[0; 11]), message);
    }

    #[test]
    fn table_that_contradicts_configuration_is_refused() {
        let with = |tensors: &[(&str, Dtype, &[usize], Vec<u8>)]| {
            new(&static_spec(), file(tensors), &[]).err().unwrap()
        };
        let good = || (TABLE, Dtype::F32, [3, 2].as_slice(), f32s(&ROWS));
        let mut damaged = ROWS;
        damaged[4] = f32::NAN;
        let cases = [
            (with(&[]), "\"embedding.weight\" [3, 2] is missing"),
            (
                with(&[(TABLE, Dtype::F32, &[2, 3], f32s(&ROWS))]),
                "\"embedding.weight\" has shape [2, 3], expected [3, 2]",
            ),
            (
                with(&[good(), ("mapping", Dtype::I64, &[1], vec![0; 8])]),
                "\"mapping\" [1] is not part of this model",
            ),
            (
                with(&[good(), (MODEL2VEC_TABLE, Dtype::F32, &[3, 2], f32s(&ROWS))]),
                "\"embedding.weight\" is present twice, under two names",
            ),
            (
                with(&[(TABLE, Dtype::F32, &[3, 2], f32s(&damaged))]),
                "\"embedding.weight\" has NaN at index 4",
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(found, format!("model.safetensors: tensor {expected}"));
        }
    }

    #[test]
    fn configuration_that_contradicts_model_is_refused() {
        let changed = |key: &str, value: Value| {
            let mut config = config();
            config[key] = value;
            read(&config, &static_spec()).unwrap_err()
        };
        assert_eq!(changed("vocab_size", json!(0)), "config.json: vocab_size is 0");
        assert_eq!(
            changed("hidden_size", json!(4)),
            "the vectors have 4 dimensions, but the manifest has 2"
        );
        assert_eq!(
            changed("model_type", json!("bert")),
            "config.json: model_type is \"bert\", but the manifest has the architecture \"static\""
        );
        let spec = ModelSpec { pooling: Pooling::Cls, ..static_spec() };
        let message = "static embeddings have mean pooling, but the manifest has cls";
        assert_eq!(read(&config(), &spec).unwrap_err(), message);
    }
}
