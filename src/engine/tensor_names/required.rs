//! The tensors that an encoder requires.

use super::layer_names::{LayerNames, States, Wide};
use super::{
    DISTANCE_NORM, EmbeddingNames, ExpertNames, PROJECTION, PerLayerNames, RequiredTensor,
};
use crate::engine::config::{EncoderConfig, LayerConfig, MPNET_BUCKETS, NormKind, RelativeBias};

/// List of required tensors.
struct TensorList {
    /// Prefix of the names.
    prefix: String,
    norm: NormKind,
    tensors: Vec<RequiredTensor>,
}

impl TensorList {
    fn new(prefix: String, norm: NormKind) -> Self {
        Self { prefix, norm, tensors: Vec::new() }
    }

    fn push(&mut self, name: &str, shape: &[usize]) {
        self.tensors.push(RequiredTensor::new(format!("{}{name}", self.prefix), shape));
    }

    fn linear(&mut self, name: &str, [out, input]: [usize; 2], bias: bool) {
        self.push(&format!("{name}.weight"), &[out, input]);
        if bias {
            self.push(&format!("{name}.bias"), &[out]);
        }
    }

    /// Adds a normalization of `length` values if the encoder has it.
    fn norm(&mut self, exists: bool, name: &str, length: usize) {
        if !exists {
            return;
        }
        self.push(&format!("{name}.weight"), &[length]);
        if self.norm == NormKind::LayerNorm {
            self.push(&format!("{name}.bias"), &[length]);
        }
    }
}

/// Returns the tensors of an encoder. The iterator lists a layer when the caller reaches it.
pub(in crate::engine) fn encoder_tensors(
    config: &EncoderConfig,
) -> impl Iterator<Item = RequiredTensor> {
    let layers = config.layers.iter().enumerate();
    outer_tensors(config)
        .into_iter()
        .chain(layers.flat_map(move |(index, layer)| layer_tensors(config, index, layer)))
}

/// Returns the tensors of an encoder outside its layers.
fn outer_tensors(config: &EncoderConfig) -> Vec<RequiredTensor> {
    let names = EmbeddingNames::of(config.family);
    let hidden = config.hidden_size;
    let mut list = TensorList::new(String::new(), config.norm);
    list.push(names.words, &[config.vocab_size, hidden]);
    for (name, rows) in
        [(names.positions, config.embeddings.positions), (names.types, config.embeddings.types)]
    {
        if rows > 0 {
            list.push(name, &[rows, hidden]);
        }
    }
    match config.relative_bias {
        None | Some(RelativeBias::Alibi) => {}
        Some(RelativeBias::Buckets) => {
            list.push(names.relative_bias, &[MPNET_BUCKETS as usize, config.heads()]);
        }
        Some(RelativeBias::Disentangled(buckets)) => {
            list.push(names.relative_bias, &[buckets.rows(), hidden]);
            list.norm(true, DISTANCE_NORM, hidden);
        }
    }
    list.norm(config.embeddings.norm, names.norm, hidden);
    list.norm(config.final_norm, names.final_norm, hidden);
    if let Some(length) = config.per_layer_input {
        list.push(PerLayerNames::INPUTS, &[config.layers.len() * length, hidden]);
        list.norm(true, PerLayerNames::INPUT_NORM, length);
    }
    if let Some(length) = config.projection {
        list.push(PROJECTION, &[length, hidden]);
    }
    list.tensors
}

/// Returns the tensors of layer `index`.
fn layer_tensors(config: &EncoderConfig, index: usize, layer: &LayerConfig) -> Vec<RequiredTensor> {
    let names = LayerNames::of(config.family);
    let LayerConfig { input_norm, attention, feed_forward } = layer;
    let hidden = config.hidden_size;
    let [queries, keys] = [attention.heads, attention.kv_heads].map(|heads| heads * attention.head);
    let wide = feed_forward.intermediate;
    let (before, after) = (config.placement.is_before(), config.placement.is_after());
    let mut list = TensorList::new(format!("{}.{index}.", names.layers), config.norm);
    list.norm(*input_norm, names.input_norm, hidden);
    match names.states {
        States::Separate(parts) => {
            for (name, rows) in parts.into_iter().zip([queries, keys, keys]) {
                list.linear(name, [rows, hidden], attention.bias);
            }
        }
        States::Packed(name) => list.linear(name, [queries + 2 * keys, hidden], attention.bias),
    }
    list.norm(attention.qk_norm, names.query_norm, attention.head);
    list.norm(attention.qk_norm, names.key_norm, attention.head);
    list.linear(names.attention_output, [hidden, queries], attention.output_bias);
    list.norm(after, names.attention_norm, hidden);
    list.norm(before, names.feed_forward_norm, hidden);
    if let Some(experts) = feed_forward.experts {
        list.push(ExpertNames::ROUTER, &[experts.count, hidden]);
        for expert in 0..experts.count {
            list.linear(&ExpertNames::wide(expert), [wide, hidden], false);
            list.linear(&ExpertNames::output(expert), [hidden, wide], false);
        }
        list.push(ExpertNames::BIAS, &[hidden]);
    } else {
        let first: &[(&str, usize)] = match names.wide {
            Wide::Plain(name) => &[(name, wide)],
            Wide::Separate { plain, .. } if !feed_forward.gated => &[(plain, wide)],
            Wide::Separate { gate, up, .. } => &[(gate, wide), (up, wide)],
            Wide::GateFirst(name) | Wide::GateLast(name) => &[(name, 2 * wide)],
        };
        for &(name, rows) in first {
            list.linear(name, [rows, hidden], feed_forward.bias);
        }
        list.linear(names.output, [hidden, wide], feed_forward.output_bias);
    }
    list.norm(after, names.output_norm, hidden);
    if let Some(length) = config.per_layer_input {
        list.linear(PerLayerNames::GATE, [length, hidden], false);
        list.linear(PerLayerNames::OUTPUT, [hidden, length], false);
        list.norm(true, PerLayerNames::NORM, hidden);
        list.push(PerLayerNames::SCALAR, &[1]);
    }
    list.tensors
}
