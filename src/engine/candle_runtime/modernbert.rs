//! Describes the files of a ModernBERT: its `config.json`, checked against the [`ModelSpec`], and
//! its tensors by name and shape.
//!
//! Invariant: candle-transformers computes exactly what a [`ModernBertConfig`] from
//! [`ModernBertConfig::read`] describes. candle-transformers supports no biases, no activation
//! except GELU, and one order of global and local attention.

use candle_transformers::models::modernbert;
use serde::Deserialize;
use serde_json::Value;

use crate::engine::config::{
    check_heads, check_lengths, check_not_zero, check_positions, mismatch, parse,
};
use crate::engine::quote::quote;
use crate::engine::tensor_names::RequiredTensor;
use crate::engine::{EngineError, ModelSpec};

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// Limit for the memory of one text's attention.
///
/// candle holds the scores of all heads at once, in several copies: for 8,192 tokens and 12 heads
/// these take 20 GB.
const MAX_ATTENTION_BYTES: usize = 512 << 20;
/// Number of copies of a head's scores that candle holds during the softmax. The measured value is
/// 5.5, from the peak memory of a process with 12 heads and 1,448 tokens.
const SCORE_COPIES: usize = 6;
/// Number of masks, each of the size of one head's scores.
const MASKS: usize = 4;
/// Number of copies of the token vectors that candle holds during the attention of a layer: the
/// residual stream, its norm, queries, keys and values, and the contiguous and rotated copies of
/// these.
const VECTOR_COPIES: usize = 12;

/// Fields of `config.json`, as written by transformers before and since version 5. The defaults are
/// those of
/// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/modernbert/configuration_modernbert.py>
#[derive(Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "epsilon")]
    norm_eps: f64,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "local_attention")]
    local_attention: usize,
    /// Written before version 5.
    #[serde(default = "global_attn_every_n_layers")]
    global_attn_every_n_layers: usize,
    /// Written before version 5.
    #[serde(default = "global_rope_theta")]
    global_rope_theta: f64,
    /// Written before version 5.
    #[serde(default = "local_rope_theta")]
    local_rope_theta: f64,
    rope_scaling: Option<Value>,
    /// [`GLOBAL`] or [`LOCAL`] for each layer, written since version 5; overrides
    /// `global_attn_every_n_layers`.
    layer_types: Option<Vec<String>>,
    /// Rotation parameters, written since version 5; override `global_rope_theta` and
    /// `local_rope_theta`.
    #[serde(default)]
    rope_parameters: RopeParameters,
}

#[derive(Default, Deserialize)]
struct RopeParameters {
    #[serde(default)]
    full_attention: Rope,
    #[serde(default)]
    sliding_attention: Rope,
}

#[derive(Default, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

const fn epsilon() -> f64 {
    1e-5
}

const fn local_attention() -> usize {
    128
}

const fn global_attn_every_n_layers() -> usize {
    3
}

const fn global_rope_theta() -> f64 {
    160_000.0
}

const fn local_rope_theta() -> f64 {
    10_000.0
}

impl ConfigFile {
    /// Returns the distance between layers with global attention; the first layer has it.
    fn global_every(&self) -> Result<usize, EngineError> {
        let Some(types) = &self.layer_types else {
            check_not_zero(&[("global_attn_every_n_layers", self.global_attn_every_n_layers)])?;
            return Ok(self.global_attn_every_n_layers);
        };
        let next = types.iter().skip(1).position(|kind| kind == GLOBAL);
        let every = next.map_or(self.num_hidden_layers, |next| next + 1);
        let regular = types
            .iter()
            .enumerate()
            .all(|(layer, kind)| kind == if layer.is_multiple_of(every) { GLOBAL } else { LOCAL });
        if regular && types.len() == self.num_hidden_layers {
            return Ok(every);
        }
        Err(mismatch(format!(
            "layer_types are not {GLOBAL} at regular distances from the first of {} layers on, \
             and {LOCAL} between them",
            self.num_hidden_layers
        )))
    }

    /// Checks that candle-transformers implements the arithmetic of this configuration.
    fn check_arithmetic(&self) -> Result<(), EngineError> {
        if self.hidden_activation != gelu() {
            return Err(mismatch(format!(
                "unknown activation {}; known for ModernBERT: {}",
                quote(&self.hidden_activation),
                gelu()
            )));
        }
        let biases = [
            ("norm_bias", self.norm_bias),
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
        ];
        if let Some((name, _)) = biases.into_iter().find(|bias| bias.1) {
            return Err(mismatch(format!("{name} is true; only false is supported")));
        }
        if self.rope_scaling.is_some() {
            return Err(mismatch("rope_scaling is not supported"));
        }
        let ropes = [&self.rope_parameters.full_attention, &self.rope_parameters.sliding_attention];
        match ropes.into_iter().filter_map(|rope| rope.rope_type.as_ref()).find(|k| *k != "default")
        {
            Some(kind) => Err(mismatch(format!("rope_type {} is not supported", quote(kind)))),
            None => Ok(()),
        }
    }
}

/// Shape of a ModernBERT.
#[derive(Clone, Debug)]
pub(in crate::engine) struct ModernBertConfig(modernbert::Config);

impl ModernBertConfig {
    /// Reads the configuration from `bytes` and checks it against `spec`.
    ///
    /// # Errors
    /// Returns an error if the JSON is malformed, contradicts `spec` or itself, requires arithmetic
    /// that candle-transformers does not implement, or allows texts whose attention takes more than
    /// 512 MiB.
    pub(in crate::engine) fn read(bytes: &[u8], spec: &ModelSpec) -> Result<Self, EngineError> {
        let file: ConfigFile = parse(bytes, spec)?;
        check_not_zero(&[
            ("vocab_size", file.vocab_size),
            ("hidden_size", file.hidden_size),
            ("num_hidden_layers", file.num_hidden_layers),
            ("num_attention_heads", file.num_attention_heads),
            ("intermediate_size", file.intermediate_size),
        ])?;
        check_heads(file.hidden_size, file.num_attention_heads)?;
        let head = file.hidden_size / file.num_attention_heads;
        if !head.is_multiple_of(2) {
            return Err(mismatch(format!("heads of {head} values cannot be rotated in pairs")));
        }
        file.check_arithmetic()?;
        check_positions(spec, file.max_position_embeddings)?;
        check_lengths(spec, file.hidden_size)?;
        check_attention(spec, file.num_attention_heads)?;
        let global_every = file.global_every()?;
        let theta = |rope: &Rope, single| match rope.rope_theta.unwrap_or(single) {
            theta if theta.is_finite() && theta > 0.0 => Ok(theta),
            theta => Err(mismatch(format!("rope_theta is {theta}, expected above 0"))),
        };
        Ok(Self(modernbert::Config {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: file.num_attention_heads,
            intermediate_size: file.intermediate_size,
            max_position_embeddings: file.max_position_embeddings,
            layer_norm_eps: file.norm_eps,
            // The value does not matter, because texts are never padded.
            pad_token_id: 0,
            global_attn_every_n_layers: global_every,
            global_rope_theta: theta(&file.rope_parameters.full_attention, file.global_rope_theta)?,
            local_attention: file.local_attention,
            local_rope_theta: theta(
                &file.rope_parameters.sliding_attention,
                file.local_rope_theta,
            )?,
            classifier_config: None,
        }))
    }

    /// Returns the number of rows of the word embedding table.
    pub(in crate::engine) fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Returns the length of a token vector.
    pub(super) fn hidden_size(&self) -> usize {
        self.0.hidden_size
    }

    /// Returns the configuration for candle, with rotations for only as many positions as `spec`
    /// has.
    pub(super) fn for_candle(&self, spec: &ModelSpec) -> modernbert::Config {
        modernbert::Config { max_position_embeddings: spec.max_sequence_length, ..self.0.clone() }
    }

    /// Returns the number of multiplications and additions in the matrix products for one text of
    /// `tokens` tokens.
    ///
    /// For each token, a layer performs `4h²` multiplications for Q, K, V and the output, `3hf` for
    /// the gated feed-forward layer, and `2h` for each token that it attends to.
    pub(super) fn matrix_operations(&self, tokens: usize) -> u64 {
        let config = &self.0;
        let every = config.global_attn_every_n_layers;
        let global = config.num_hidden_layers.div_ceil(every);
        let seen = tokens.min(config.local_attention / 2 * 2 + 1);
        let attended = global * tokens + (config.num_hidden_layers - global) * seen;
        let [layers, h, f, tokens, attended] = [
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            tokens,
            attended,
        ]
        .map(|n| n as u64);
        2 * tokens * (layers * (4 * h * h + 3 * h * f) + 2 * h * attended)
    }

    /// Returns the number of layers.
    pub(in crate::engine) fn layers(&self) -> usize {
        self.0.num_hidden_layers
    }

    /// Returns the memory that candle needs for one text of `tokens` tokens, in bytes. The
    /// attention of one layer determines it.
    pub(in crate::engine) fn scratch_bytes(&self, tokens: usize) -> u64 {
        let scores = score_values(self.0.num_attention_heads).saturating_mul(tokens);
        let vectors = VECTOR_COPIES.saturating_mul(self.0.hidden_size);
        let values = scores.saturating_add(vectors).saturating_mul(tokens);
        (values as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// Returns the memory of the rotation tables for texts of at most `tokens` tokens, in bytes.
    /// There is a sine and a cosine for global and for local attention, for each pair of a head's
    /// values.
    pub(in crate::engine) fn rotation_bytes(&self, tokens: usize) -> u64 {
        let pairs = self.0.hidden_size / self.0.num_attention_heads / 2;
        (4 * pairs * tokens * size_of::<f32>()) as u64
    }

    /// Returns the tensors of the encoder.
    pub(super) fn tensors(&self) -> impl Iterator<Item = RequiredTensor> {
        self.tensors_of(self.0.num_hidden_layers)
    }

    /// Returns the tensors of an encoder with `layers` layers, by their names in transformers. The
    /// iterator is lazy, because a configuration may have an absurd number of layers.
    pub(in crate::engine) fn tensors_of(
        &self,
        layers: usize,
    ) -> impl Iterator<Item = RequiredTensor> {
        let (hidden, intermediate) = (self.0.hidden_size, self.0.intermediate_size);
        let norm = move |name: String| RequiredTensor::new(format!("{name}.weight"), [hidden]);
        let linear =
            |name: String, out, input| RequiredTensor::new(format!("{name}.weight"), [out, input]);
        let words = linear("embeddings.tok_embeddings".to_owned(), self.0.vocab_size, hidden);
        let layers = (0..layers).flat_map(move |index| {
            let full = |part| format!("layers.{index}.{part}");
            // The first layer has no norm, because the embeddings already have one.
            let first = (index > 0).then(|| norm(full("attn_norm")));
            first.into_iter().chain([
                linear(full("attn.Wqkv"), hidden.saturating_mul(3), hidden),
                linear(full("attn.Wo"), hidden, hidden),
                norm(full("mlp_norm")),
                linear(full("mlp.Wi"), intermediate.saturating_mul(2), hidden),
                linear(full("mlp.Wo"), hidden, intermediate),
            ])
        });
        [words, norm("embeddings.norm".to_owned())]
            .into_iter()
            .chain(layers)
            .chain([norm("final_norm".to_owned())])
    }
}

/// Returns the number of values that candle holds for each pair of tokens during attention.
fn score_values(heads: usize) -> usize {
    heads.saturating_mul(SCORE_COPIES).saturating_add(MASKS)
}

/// Checks that candle's attention over the longest text of `spec` stays below
/// [`MAX_ATTENTION_BYTES`].
fn check_attention(spec: &ModelSpec, heads: usize) -> Result<(), EngineError> {
    let fit = (MAX_ATTENTION_BYTES / size_of::<f32>() / score_values(heads)).isqrt();
    if spec.max_sequence_length <= fit {
        return Ok(());
    }
    Err(EngineError::Mismatch(format!(
        "attention over max_sequence_length {} takes more than {} MiB for one text; at most {fit} \
         tokens are run: pack the model with a smaller max_seq_length in sentence_bert_config.json",
        spec.max_sequence_length,
        MAX_ATTENTION_BYTES >> 20
    )))
}

/// Returns the canonical name of a tensor, without the prefix of the model, or `None` for the heads
/// that predict masked tokens.
pub(super) fn canonical(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let unused = name.starts_with("head.") || name.starts_with("decoder.");
    (!unused).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::spec;

    fn version_4() -> Value {
        json!({
            "model_type": "modernbert", "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 5,
            "num_attention_heads": 2, "intermediate_size": 6, "max_position_embeddings": 10,
            "hidden_activation": "gelu", "norm_eps": 1e-6, "layer_norm_eps": 1e-3,
            "local_attention": 4, "global_attn_every_n_layers": 2, "global_rope_theta": 2e5,
            "local_rope_theta": 2e4, "reference_compile": null,
        })
    }

    fn version_5() -> Value {
        let mut file = version_4();
        let map = file.as_object_mut().unwrap();
        for key in ["global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"] {
            map.remove(key);
        }
        map.insert("layer_types".to_owned(), json!([GLOBAL, LOCAL, GLOBAL, LOCAL, GLOBAL]));
        let rope = |theta: f64| json!({ "rope_theta": theta, "rope_type": "default" });
        map.insert("rope_parameters".to_owned(), json!({ GLOBAL: rope(2e5), LOCAL: rope(2e4) }));
        file
    }

    fn read(file: &Value, spec: &ModelSpec) -> Result<ModernBertConfig, String> {
        let bytes = file.to_string();
        ModernBertConfig::read(bytes.as_bytes(), spec).map_err(|error| error.to_string())
    }

    #[test]
    fn old_and_new_transformers_configurations_are_equivalent() {
        for file in [version_4(), version_5()] {
            let ModernBertConfig(config) = read(&file, &spec(Architecture::ModernBert)).unwrap();
            assert_eq!(config.global_attn_every_n_layers, 2);
            assert_eq!((config.global_rope_theta, config.local_rope_theta), (2e5, 2e4));
            assert_eq!((config.layer_norm_eps, config.local_attention), (1e-6, 4));
        }
        let mut plain = version_4();
        plain.as_object_mut().unwrap().retain(|key, _| {
            !key.contains("rope") && !key.contains("attn") && key != "local_attention"
        });
        let ModernBertConfig(config) = read(&plain, &spec(Architecture::ModernBert)).unwrap();
        assert_eq!((config.global_attn_every_n_layers, config.local_attention), (3, 128));
        assert_eq!((config.global_rope_theta, config.local_rope_theta), (160_000.0, 10_000.0));
    }

    #[test]
    fn unsupported_candle_settings_are_refused() {
        let irregular = "layer_types are not full_attention at regular distances from the first of \
                         5 layers on, and sliding_attention between them";
        let cases = [
            (
                json!({ "hidden_activation": "silu" }),
                "unknown activation \"silu\"; known for ModernBERT: gelu",
            ),
            (json!({ "norm_bias": true }), "norm_bias is true; only false is supported"),
            (json!({ "attention_bias": true }), "attention_bias is true; only false is supported"),
            (json!({ "mlp_bias": true }), "mlp_bias is true; only false is supported"),
            (json!({ "rope_scaling": { "factor": 2 } }), "rope_scaling is not supported"),
            (
                json!({ "rope_parameters": { LOCAL: { "rope_type": "yarn" } } }),
                "rope_type \"yarn\" is not supported",
            ),
            (
                json!({ "rope_parameters": { GLOBAL: { "rope_theta": 0.0 } } }),
                "rope_theta is 0, expected above 0",
            ),
            (json!({ "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL] }), irregular),
            (json!({ "layer_types": [GLOBAL, LOCAL, GLOBAL, GLOBAL, LOCAL] }), irregular),
            (json!({ "layer_types": [GLOBAL, LOCAL, GLOBAL] }), irregular),
            (json!({ "layer_types": [] }), irregular),
            (json!({ "global_attn_every_n_layers": 0 }), "global_attn_every_n_layers is 0"),
            (json!({ "num_hidden_layers": 0 }), "num_hidden_layers is 0"),
            (
                json!({ "num_attention_heads": 3 }),
                "hidden_size 8 is not a multiple of num_attention_heads 3",
            ),
            (json!({ "num_attention_heads": 8 }), "heads of 1 values cannot be rotated in pairs"),
            (
                json!({ "max_position_embeddings": 9 }),
                "9 positions, fewer than max_sequence_length 10",
            ),
        ];
        for (change, message) in cases {
            let mut file = version_4();
            file.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let error = read(&file, &spec(Architecture::ModernBert)).unwrap_err();
            assert_eq!(error, format!("config.json: {message}"));
        }
    }

    #[test]
    fn attention_over_memory_limit_reports_maximum_length() {
        let mut file = version_4();
        file["max_position_embeddings"] = 8192.into();
        file["num_attention_heads"] = 4.into();
        let mut spec = spec(Architecture::ModernBert);
        spec.max_sequence_length = 2189;
        assert!(read(&file, &spec).is_ok());
        spec.max_sequence_length = 2190;
        let error = read(&file, &spec).unwrap_err();
        assert!(error.starts_with("attention over max_sequence_length 2190"), "{error}");
        assert!(error.contains("at most 2189 tokens"), "{error}");
    }

    #[test]
    fn local_attention_cost_is_linear_in_length() {
        let config = read(&version_4(), &spec(Architecture::ModernBert)).unwrap();
        // Each token and layer needs 4·8² + 3·8·6 = 400 multiplications, and 2·8 for each token
        // attended to: all tokens in 3 layers, at most 5 in 2 layers.
        assert_eq!(config.matrix_operations(0), 0);
        assert_eq!(config.matrix_operations(1), 2 * (5 * 400 + 16 * 5));
        assert_eq!(config.matrix_operations(10), 2 * 10 * (5 * 400 + 16 * (3 * 10 + 2 * 5)));
    }

    #[test]
    fn masked_token_heads_are_ignored() {
        let cases = [
            ("model.layers.0.attn.Wqkv.weight", Some("layers.0.attn.Wqkv.weight")),
            ("layers.0.attn.Wo.weight.scale", Some("layers.0.attn.Wo.weight.scale")),
            ("head.dense.weight", None),
            ("decoder.bias", None),
        ];
        for (name, expected) in cases {
            assert_eq!(canonical(name).as_deref(), expected, "{name}");
        }
    }
}
