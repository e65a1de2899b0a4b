//! Lists the tensors of a checkpoint of each [`Family`], by name and shape.
//!
//! The names are those of transformers without the prefix of the model type; [`canonical`] converts
//! the names in older checkpoints. This module is pure and knows no file format.

use super::config::{EncoderConfig, MPNET_BUCKETS};
use super::spec::Family;

/// Names of the linear layers and LayerNorms of one encoder layer.
///
/// Every family here has the encoder layer of BERT under other names: self-attention, its output
/// product, LayerNorm, two products, LayerNorm.
pub(super) struct LayerNames {
    /// Prefix before the number of the layer.
    pub(super) layers: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) output: &'static str,
    pub(super) output_norm: &'static str,
}

impl LayerNames {
    /// Names in BERT, RoBERTa and XLM-RoBERTa.
    pub(super) const BERT: Self = Self {
        layers: "encoder.layer",
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        intermediate: "intermediate.dense",
        output: "output.dense",
        output_norm: "output.LayerNorm",
    };
    /// Names in DistilBERT.
    pub(super) const DISTILBERT: Self = Self {
        layers: "transformer.layer",
        query: "attention.q_lin",
        key: "attention.k_lin",
        value: "attention.v_lin",
        attention_output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        intermediate: "ffn.lin1",
        output: "ffn.lin2",
        output_norm: "output_layer_norm",
    };
    /// Names in MPNet.
    pub(super) const MPNET: Self = Self {
        query: "attention.attn.q",
        key: "attention.attn.k",
        value: "attention.attn.v",
        attention_output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..Self::BERT
    };

    pub(super) fn of(family: Family) -> Self {
        match family {
            Family::Bert | Family::Roberta | Family::XlmRoberta => Self::BERT,
            Family::DistilBert => Self::DISTILBERT,
            Family::Mpnet => Self::MPNET,
        }
    }

    /// Returns every part, in the same order for all families.
    #[cfg(test)]
    pub(super) const fn parts(&self) -> [&'static str; 8] {
        [
            self.query,
            self.key,
            self.value,
            self.attention_output,
            self.attention_norm,
            self.intermediate,
            self.output,
            self.output_norm,
        ]
    }
}

/// A required tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequiredTensor {
    /// Canonical name.
    pub(super) name: String,
    /// Shape; a matrix is `[out, in]`.
    pub(super) shape: Vec<usize>,
}

impl RequiredTensor {
    pub(super) fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
    }
}

fn linear(name: &str, out: usize, input: usize) -> [RequiredTensor; 2] {
    [
        RequiredTensor::new(format!("{name}.weight"), [out, input]),
        RequiredTensor::new(format!("{name}.bias"), [out]),
    ]
}

fn layer_norm(name: &str, length: usize) -> [RequiredTensor; 2] {
    ["weight", "bias"].map(|part| RequiredTensor::new(format!("{name}.{part}"), [length]))
}

/// Returns the tensors of an encoder.
///
/// The iterator is lazy, so a configuration with an absurd number of layers costs nothing: the
/// caller stops at the first missing tensor.
pub(super) fn encoder_tensors(config: &EncoderConfig) -> impl Iterator<Item = RequiredTensor> {
    let names = LayerNames::of(config.family);
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let mut tables = vec![
        RequiredTensor::new("embeddings.word_embeddings.weight", [config.vocab_size, hidden]),
        RequiredTensor::new(
            "embeddings.position_embeddings.weight",
            [config.max_position_embeddings, hidden],
        ),
    ];
    if config.type_vocab_size > 0 {
        let shape = [config.type_vocab_size, hidden];
        tables.push(RequiredTensor::new("embeddings.token_type_embeddings.weight", shape));
    }
    if config.family == Family::Mpnet {
        let shape = [MPNET_BUCKETS as usize, config.heads];
        tables.push(RequiredTensor::new("encoder.relative_attention_bias.weight", shape));
    }
    let layers = (0..config.layers).flat_map(move |index| {
        let full = |part| format!("{}.{index}.{part}", names.layers);
        [
            linear(&full(names.query), hidden, hidden),
            linear(&full(names.key), hidden, hidden),
            linear(&full(names.value), hidden, hidden),
            linear(&full(names.attention_output), hidden, hidden),
            layer_norm(&full(names.attention_norm), hidden),
            linear(&full(names.intermediate), intermediate, hidden),
            linear(&full(names.output), hidden, intermediate),
            layer_norm(&full(names.output_norm), hidden),
        ]
        .into_iter()
        .flatten()
    });
    tables.into_iter().chain(layer_norm("embeddings.LayerNorm", hidden)).chain(layers)
}

/// Returns the canonical name of the tensor that a checkpoint calls `name`, or `None` for tensors
/// that checkpoints contain but a sentence encoder does not use.
pub(super) fn canonical(family: Family, name: &str) -> Option<String> {
    let prefix = match family {
        Family::Bert => "bert.",
        Family::DistilBert => "distilbert.",
        Family::Mpnet => "mpnet.",
        Family::Roberta | Family::XlmRoberta => "roberta.",
    };
    let name = name.strip_prefix(prefix).unwrap_or(name);
    // The pooler serves only BERT's sentence-pair objective, and the position ids are the constants
    // 0, 1, 2, ….
    if name == "embeddings.position_ids" || name.starts_with("pooler.") {
        return None;
    }
    // Checkpoints that were converted from TensorFlow keep its names.
    for (old, new) in
        [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")]
    {
        if let Some(module) = name.strip_suffix(old) {
            return Some(format!("{module}{new}"));
        }
    }
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names_are_canonicalized() {
        let cases = [
            (Family::Bert, "bert.embeddings.LayerNorm.gamma", Some("embeddings.LayerNorm.weight")),
            (Family::Bert, "embeddings.LayerNorm.beta", Some("embeddings.LayerNorm.bias")),
            (Family::XlmRoberta, "roberta.encoder.x", Some("encoder.x")),
            (Family::DistilBert, "distilbert.transformer.x", Some("transformer.x")),
            (Family::Mpnet, "mpnet.encoder.x.weight.scale", Some("encoder.x.weight.scale")),
            (Family::Mpnet, "bert.encoder.x", Some("bert.encoder.x")),
            (Family::Bert, "bert.pooler.dense.weight", None),
            (Family::Roberta, "embeddings.position_ids", None),
        ];
        for (family, name, expected) in cases {
            assert_eq!(canonical(family, name).as_deref(), expected, "{name}");
        }
    }
}
