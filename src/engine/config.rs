//! Reads the `config.json` of transformers: the shape of an encoder, checked against the
//! [`ModelSpec`].
//!
//! This module knows the field names and defaults of that file for every [`Family`]. It does not
//! read weights.
//!
//! Invariant: an [`EncoderConfig`] that [`EncoderConfig::read`] returned is safe to divide by, to
//! multiply and to index with: no size is zero, the number of heads divides the hidden size, and
//! every position that a text can reach exists.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::quote::{escape, quote};
use super::spec::Family;
use super::{EngineError, ModelSpec};

/// Name of the file in messages.
const FILE: &str = "config.json";
/// Padding id of MPNet's positions. MPNet fixes it and ignores its `config.json`:
/// <https://github.com/huggingface/transformers/blob/00099b9f15ad8bea330364709453fc49cbba90e5/src/transformers/models/mpnet/modeling_mpnet.py>
const MPNET_PADDING_ID: u32 = 1;
/// Number of buckets of MPNet's position bias. MPNet fixes it and ignores its `config.json`.
pub(super) const MPNET_BUCKETS: u32 = 32;

/// Activation between the two products of an encoder's feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HiddenActivation {
    /// `x·Φ(x)`, where `Φ` is computed with the error function.
    Gelu,
    /// Approximation of [`HiddenActivation::Gelu`] with the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl HiddenActivation {
    /// Names in `config.json`. The second and third name mean the same formula.
    const NAMES: [(&'static str, Self); 4] = [
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
    ];

    fn from_name(name: &str) -> Result<Self, EngineError> {
        Self::NAMES.into_iter().find(|known| known.0 == name).map(|known| known.1).ok_or_else(
            || {
                let known = Self::NAMES.map(|known| known.0).join(", ");
                mismatch(format!("unknown activation {}; known: {known}", quote(name)))
            },
        )
    }
}

/// Fields of `config.json`. DistilBERT has its own names for the same sizes.
#[derive(Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    relative_attention_num_buckets: Option<u32>,
    #[serde(default)]
    is_decoder: bool,
}

/// Shape of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EncoderConfig {
    /// Family of the encoder.
    pub(super) family: Family,
    /// Number of rows of the word embedding table.
    pub(super) vocab_size: usize,
    /// Length of a token vector.
    pub(super) hidden_size: usize,
    /// Number of layers.
    pub(super) layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub(super) heads: usize,
    /// Length of a token vector between the two products of a feed-forward layer.
    pub(super) intermediate_size: usize,
    /// Activation between those products.
    pub(super) activation: HiddenActivation,
    /// Number of rows of the position embedding table.
    pub(super) max_position_embeddings: usize,
    /// Number of rows of the token type embedding table; 0 for families without token types.
    pub(super) type_vocab_size: usize,
    /// Epsilon that a LayerNorm adds to the variance.
    pub(super) layer_norm_eps: f64,
    /// Token id that pads the shorter texts of a batch. RoBERTa and MPNet count positions from it.
    pub(super) padding_id: u32,
}

pub(super) fn mismatch(what: impl std::fmt::Display) -> EngineError {
    EngineError::Mismatch(format!("{FILE}: {what}"))
}

/// Parses the JSON in `bytes` and checks that its `model_type` is the architecture of `spec`.
///
/// # Errors
/// Returns an error if the JSON is malformed or describes another architecture.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], spec: &ModelSpec) -> Result<T, EngineError> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    let unreadable = |source: serde_json::Error| EngineError::File {
        file: FILE.to_owned(),
        source: escape(source).into(),
    };
    let kind: Kind = serde_json::from_slice(bytes).map_err(unreadable)?;
    if kind.model_type != spec.architecture.name() {
        return Err(mismatch(format!(
            "model_type is {}, but the manifest has the architecture \"{}\"",
            quote(&kind.model_type),
            spec.architecture
        )));
    }
    serde_json::from_slice(bytes).map_err(unreadable)
}

/// Checks that each of `sizes`, given with its name, is greater than zero.
pub(super) fn check_not_zero(sizes: &[(&str, usize)]) -> Result<(), EngineError> {
    match sizes.iter().find(|size| size.1 == 0) {
        Some((name, _)) => Err(mismatch(format!("{name} is 0"))),
        None => Ok(()),
    }
}

/// Checks that the number of attention heads divides the length of the token vectors.
pub(super) fn check_heads(hidden_size: usize, heads: usize) -> Result<(), EngineError> {
    if hidden_size.is_multiple_of(heads) {
        return Ok(());
    }
    Err(mismatch(format!(
        "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
    )))
}

/// Checks that `positions` suffice for the longest text of `spec`.
pub(super) fn check_positions(spec: &ModelSpec, positions: usize) -> Result<(), EngineError> {
    if spec.max_sequence_length <= positions {
        return Ok(());
    }
    Err(mismatch(format!(
        "{positions} positions, fewer than max_sequence_length {}",
        spec.max_sequence_length
    )))
}

/// Checks that the steps of `spec` after the encoder fit together, given token vectors of length
/// `hidden_size`.
pub(super) fn check_lengths(spec: &ModelSpec, hidden_size: usize) -> Result<(), EngineError> {
    let mut length = hidden_size;
    for (index, dense) in spec.dense.iter().enumerate() {
        if dense.in_features != length {
            return Err(EngineError::Mismatch(format!(
                "dense layer {index} takes vectors of length {}, and gets {length}",
                dense.in_features
            )));
        }
        length = dense.out_features;
    }
    if spec.dimensions != length {
        return Err(EngineError::Mismatch(format!(
            "the vectors have {length} dimensions, but the manifest has {}",
            spec.dimensions
        )));
    }
    Ok(())
}

impl EncoderConfig {
    /// Reads the configuration of an encoder of `family` from `bytes` and checks it against `spec`.
    ///
    /// # Errors
    /// Returns an error if the JSON is malformed, or contradicts `spec` or itself. The message has
    /// both values.
    pub(super) fn read(
        bytes: &[u8],
        family: Family,
        spec: &ModelSpec,
    ) -> Result<Self, EngineError> {
        let file: ConfigFile = parse(bytes, spec)?;
        let config = Self {
            family,
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            intermediate_size: file.intermediate_size,
            activation: HiddenActivation::from_name(&file.hidden_act)?,
            max_position_embeddings: file.max_position_embeddings,
            type_vocab_size: match family {
                Family::DistilBert | Family::Mpnet => 0,
                Family::Bert => file.type_vocab_size.unwrap_or(2),
                Family::Roberta | Family::XlmRoberta => file.type_vocab_size.unwrap_or(1),
            },
            // 1e-12 is the default of every architecture here. DistilBERT fixes this value and
            // ignores its file.
            layer_norm_eps: match family {
                Family::DistilBert => 1e-12,
                _ => file.layer_norm_eps.unwrap_or(1e-12),
            },
            padding_id: match family {
                Family::Bert | Family::DistilBert => file.pad_token_id.unwrap_or(0),
                Family::Mpnet => MPNET_PADDING_ID,
                Family::Roberta | Family::XlmRoberta => file.pad_token_id.unwrap_or(1),
            },
        };
        // Each of these settings selects arithmetic that the encoders here do not implement.
        if let Some(other) = file.position_embedding_type.filter(|name| name != "absolute") {
            return Err(mismatch(format!(
                "position_embedding_type {} is not supported",
                quote(&other)
            )));
        }
        if file.is_decoder {
            return Err(mismatch("is_decoder is true; only encoders are supported"));
        }
        if let Some(buckets) = file.relative_attention_num_buckets.filter(|&n| n != MPNET_BUCKETS) {
            return Err(mismatch(format!(
                "relative_attention_num_buckets is {buckets}; MPNet has {MPNET_BUCKETS}"
            )));
        }
        config.check_sizes()?;
        check_positions(spec, config.positions())?;
        check_lengths(spec, config.hidden_size)?;
        Ok(config)
    }

    /// Returns the number of multiplications and additions in the matrix products for one text of
    /// `tokens` tokens.
    ///
    /// For each token, a layer performs `4h²` multiplications for Q, K, V and the output, `2hf` for
    /// the feed-forward layer, and `2h` for each token that it attends to.
    pub(super) fn matrix_operations(&self, tokens: usize) -> u64 {
        let [layers, h, f, tokens] =
            [self.layers, self.hidden_size, self.intermediate_size, tokens].map(|n| n as u64);
        2 * layers * tokens * (4 * h * h + 2 * h * f + 2 * h * tokens)
    }

    /// Returns the number of positions that a text can occupy.
    fn positions(&self) -> usize {
        match self.family {
            Family::Bert | Family::DistilBert => self.max_position_embeddings,
            // Position ids begin after the padding id:
            // https://github.com/huggingface/transformers/blob/87b236ba2be8b3e48a7d0c8ca6513302736d2886/src/transformers/models/roberta/modeling_roberta.py
            Family::Mpnet | Family::Roberta | Family::XlmRoberta => {
                self.max_position_embeddings.saturating_sub(self.padding_id as usize + 1)
            }
        }
    }

    fn check_sizes(&self) -> Result<(), EngineError> {
        check_not_zero(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.intermediate_size),
        ])?;
        let typed = !matches!(self.family, Family::DistilBert | Family::Mpnet);
        if typed && self.type_vocab_size == 0 {
            return Err(mismatch("type_vocab_size is 0"));
        }
        check_heads(self.hidden_size, self.heads)?;
        if self.padding_id as usize >= self.vocab_size {
            return Err(mismatch(format!(
                "pad_token_id {} is outside vocab_size {}",
                self.padding_id, self.vocab_size
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::spec::Runtime;
    use crate::engine::{Activation, Architecture, DenseSpec, Pooling};

    pub(in crate::engine) fn spec(architecture: Architecture) -> ModelSpec {
        ModelSpec {
            architecture,
            dimensions: 8,
            max_sequence_length: 10,
            pooling: Pooling::Mean,
            dense: Vec::new(),
            normalize: false,
        }
    }

    pub(in crate::engine) fn bert() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 4, "hidden_act": "gelu",
            "max_position_embeddings": 10, "type_vocab_size": 2,
        })
    }

    /// Reads the configuration of a model that the fused encoder runs.
    pub(in crate::engine) fn fused(
        bytes: &[u8],
        spec: &ModelSpec,
    ) -> Result<EncoderConfig, EngineError> {
        let Runtime::Fused(family) = spec.architecture.runtime() else {
            panic!("{} is not run by the fused encoder", spec.architecture);
        };
        EncoderConfig::read(bytes, family, spec)
    }

    fn read(file: &Value, spec: &ModelSpec) -> Result<EncoderConfig, String> {
        fused(file.to_string().as_bytes(), spec).map_err(|error| error.to_string())
    }

    #[test]
    fn distilbert_configuration_keys_are_read() {
        let file = json!({
            "model_type": "distilbert", "vocab_size": 5, "dim": 8, "n_layers": 1, "n_heads": 2,
            "hidden_dim": 4, "activation": "relu", "max_position_embeddings": 10,
            "layer_norm_eps": 0.5,
        });
        let config = read(&file, &spec(Architecture::DistilBert)).unwrap();
        assert_eq!((config.hidden_size, config.layers, config.heads), (8, 1, 2));
        assert_eq!((config.intermediate_size, config.type_vocab_size), (4, 0));
        assert_eq!(config.activation, HiddenActivation::Relu);
        // transformers computes with this value and ignores the file.
        assert!((config.layer_norm_eps - 1e-12).abs() < f64::EPSILON * 1e-12);
    }

    #[test]
    fn attention_cost_is_quadratic_in_length() {
        let config = read(&bert(), &spec(Architecture::Bert)).unwrap();
        // Each token needs 4·8² + 2·8·4 = 320 multiplications, and 2·8 for each token that it
        // attends to.
        assert_eq!(config.matrix_operations(0), 0);
        assert_eq!(config.matrix_operations(1), 2 * (320 + 16));
        assert_eq!(config.matrix_operations(3), 2 * 3 * (320 + 48));
    }

    #[test]
    fn contradictory_configuration_is_refused() {
        let cases = [
            (
                json!({"hidden_act": "silu"}),
                "unknown activation \"silu\"; known: gelu, gelu_new, gelu_pytorch_tanh, relu",
            ),
            (
                json!({"model_type": "t5"}),
                "model_type is \"t5\", but the manifest has the architecture \"bert\"",
            ),
            (
                json!({"max_position_embeddings": 9}),
                "9 positions, fewer than max_sequence_length 10",
            ),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (
                json!({"num_attention_heads": 3}),
                "hidden_size 8 is not a multiple of num_attention_heads 3",
            ),
            (json!({"type_vocab_size": 0}), "type_vocab_size is 0"),
            (json!({"pad_token_id": 5}), "pad_token_id 5 is outside vocab_size 5"),
            (
                json!({"position_embedding_type": "relative_key"}),
                "position_embedding_type \"relative_key\" is not supported",
            ),
            (json!({"is_decoder": true}), "is_decoder is true; only encoders are supported"),
        ];
        for (change, message) in cases {
            let mut file = bert();
            file.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let error = read(&file, &spec(Architecture::Bert)).unwrap_err();
            assert_eq!(error, format!("config.json: {message}"));
        }
    }

    #[test]
    fn padding_id_reduces_roberta_and_mpnet_positions() {
        for (architecture, padding_id, positions) in [
            (Architecture::Roberta, 1, 10),
            (Architecture::XlmRoberta, 3, 8),
            (Architecture::Mpnet, 3, 10),
        ] {
            let mut file = bert();
            file["model_type"] = architecture.name().into();
            file["pad_token_id"] = padding_id.into();
            file["max_position_embeddings"] = 12.into();
            let mut spec = spec(architecture);
            spec.max_sequence_length = positions;
            assert!(read(&file, &spec).is_ok(), "{architecture}");
            spec.max_sequence_length += 1;
            let error = read(&file, &spec).unwrap_err();
            let max = positions + 1;
            let message = format!("{positions} positions, fewer than max_sequence_length {max}");
            assert_eq!(error, format!("config.json: {message}"), "{architecture}");
        }
    }

    #[test]
    fn mpnet_with_other_buckets_is_refused() {
        let mut file = bert();
        file["model_type"] = "mpnet".into();
        file["max_position_embeddings"] = 12.into();
        file["relative_attention_num_buckets"] = 64.into();
        let error = read(&file, &spec(Architecture::Mpnet)).unwrap_err();
        assert_eq!(error, "config.json: relative_attention_num_buckets is 64; MPNet has 32");
    }

    #[test]
    fn dense_layer_dimensions_must_match() {
        let dense = |in_features, out_features| DenseSpec {
            in_features,
            out_features,
            bias: true,
            activation: Activation::Tanh,
        };
        let mut spec = spec(Architecture::Bert);
        spec.dense = vec![dense(8, 4), dense(4, 6)];
        let error = read(&bert(), &spec).unwrap_err();
        assert_eq!(error, "the vectors have 6 dimensions, but the manifest has 8");
        spec.dimensions = 6;
        assert!(read(&bert(), &spec).is_ok());
        spec.dense[1].in_features = 5;
        let error = read(&bert(), &spec).unwrap_err();
        assert_eq!(error, "dense layer 1 takes vectors of length 5, and gets 4");
    }

    #[test]
    fn invalid_configuration_error_names_the_file() {
        let error = fused(b"{}", &spec(Architecture::Bert)).unwrap_err();
        assert_eq!(error.to_string(), "config.json cannot be read");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("model_type"), "{source}");
    }
}
