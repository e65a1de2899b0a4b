//! Lists the tensors of a checkpoint of each [`Family`], by name and shape.
//!
//! The names are those of transformers without the prefix of the model type; [`canonical`] converts
//! the names in older checkpoints. This module is pure and knows no file format.

use super::config::{
    AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, MPNET_BUCKETS, NormKind,
    RelativeBias,
};
use super::spec::Family;

/// Rows of a matrix that are one linear layer, from `first_row` on. The matrix has the name of a
/// part of a layer; its bias has the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tensor: &'static str,
    pub(super) first_row: usize,
}

impl Place {
    const fn whole(tensor: &'static str) -> Self {
        Self { tensor, first_row: 0 }
    }
}

/// Names of the linear layers and normalizations of one encoder layer. A name that the family does
/// not have is empty, and no configuration of the family asks for it.
pub(super) struct LayerNames {
    /// Prefix before the number of the layer.
    pub(super) layers: &'static str,
    /// Normalization before attention.
    pub(super) input_norm: &'static str,
    states: States,
    pub(super) query_norm: &'static str,
    pub(super) key_norm: &'static str,
    pub(super) attention_output: &'static str,
    /// Normalization after attention.
    pub(super) attention_norm: &'static str,
    /// Normalization before the feed-forward layer.
    pub(super) feed_forward_norm: &'static str,
    wide: Wide,
    /// Second product of the feed-forward layer.
    pub(super) output: &'static str,
    /// Normalization after the feed-forward layer.
    pub(super) output_norm: &'static str,
}

/// Matrices for queries, keys and values.
#[derive(Clone, Copy)]
enum States {
    /// One matrix each, in this order.
    Separate([&'static str; 3]),
    /// One matrix with all rows in this order.
    Packed(&'static str),
}

/// Matrices for the first product of a feed-forward layer. The gate is the factor that is
/// activated.
#[derive(Clone, Copy)]
enum Wide {
    /// One matrix without a gate.
    Plain(&'static str),
    /// Matrix of the gate and matrix of the other factor; in a layer without a gate, the matrix
    /// `plain`.
    Separate { gate: &'static str, up: &'static str, plain: &'static str },
    /// One matrix, first with the rows of the gate.
    GateFirst(&'static str),
    /// One matrix, last with the rows of the gate.
    GateLast(&'static str),
}

impl LayerNames {
    /// Names in BERT, RoBERTa and XLM-RoBERTa.
    pub(super) const BERT: Self = Self {
        layers: "encoder.layer",
        input_norm: "",
        states: States::Separate([
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
        ]),
        query_norm: "",
        key_norm: "",
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        feed_forward_norm: "",
        wide: Wide::Plain("intermediate.dense"),
        output: "output.dense",
        output_norm: "output.LayerNorm",
    };
    /// Names in DeBERTa.
    const DEBERTA: Self = Self {
        states: States::Separate([
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
        ]),
        ..Self::BERT
    };
    /// Names in DistilBERT.
    pub(super) const DISTILBERT: Self = Self {
        layers: "transformer.layer",
        states: States::Separate(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
        attention_output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        wide: Wide::Plain("ffn.lin1"),
        output: "ffn.lin2",
        output_norm: "output_layer_norm",
        ..Self::BERT
    };
    /// Names in MPNet.
    pub(super) const MPNET: Self = Self {
        states: States::Separate(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
        attention_output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..Self::BERT
    };
    /// Names in version 2 of jina-bert.
    const JINA_BERT: Self = Self {
        wide: Wide::GateFirst("mlp.gated_layers"),
        output: "mlp.wo",
        output_norm: "mlp.layernorm",
        ..Self::BERT
    };
    /// Names in ModernBERT.
    const MODERNBERT: Self = Self {
        layers: "layers",
        input_norm: "attn_norm",
        states: States::Packed("attn.Wqkv"),
        query_norm: "",
        key_norm: "",
        attention_output: "attn.Wo",
        attention_norm: "",
        feed_forward_norm: "mlp_norm",
        wide: Wide::GateFirst("mlp.Wi"),
        output: "mlp.Wo",
        output_norm: "",
    };
    /// Names in nomic-bert.
    const NOMIC_BERT: Self = Self {
        layers: "encoder.layers",
        states: States::Packed("attn.Wqkv"),
        attention_output: "attn.out_proj",
        attention_norm: "norm1",
        wide: Wide::Separate { gate: "mlp.fc12", up: "mlp.fc11", plain: "mlp.fc1" },
        output: "mlp.fc2",
        output_norm: "norm2",
        ..Self::BERT
    };
    /// Names in GTE.
    const GTE: Self = Self {
        states: States::Packed("attention.qkv_proj"),
        attention_output: "attention.o_proj",
        attention_norm: "attn_ln",
        wide: Wide::GateLast("mlp.up_gate_proj"),
        output: "mlp.down_proj",
        output_norm: "mlp_ln",
        ..Self::BERT
    };
    /// Names in Qwen3 and EuroBERT.
    const DECODER: Self = Self {
        layers: "layers",
        input_norm: "input_layernorm",
        states: States::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        attention_output: "self_attn.o_proj",
        attention_norm: "",
        feed_forward_norm: "post_attention_layernorm",
        wide: Wide::Separate { gate: "mlp.gate_proj", up: "mlp.up_proj", plain: "" },
        output: "mlp.down_proj",
        output_norm: "",
    };
    /// Names in Gemma 3 and EmbeddingGemma 2.
    const GEMMA: Self = Self {
        attention_norm: "post_attention_layernorm",
        feed_forward_norm: "pre_feedforward_layernorm",
        output_norm: "post_feedforward_layernorm",
        ..Self::DECODER
    };

    pub(super) const fn of(family: Family) -> Self {
        match family {
            Family::Bert | Family::Roberta | Family::XlmRoberta => Self::BERT,
            Family::DebertaV2 => Self::DEBERTA,
            Family::DistilBert => Self::DISTILBERT,
            Family::EmbeddingGemma2 | Family::Gemma3 => Self::GEMMA,
            Family::EuroBert | Family::Qwen3 => Self::DECODER,
            Family::Gte => Self::GTE,
            Family::JinaBert => Self::JINA_BERT,
            Family::ModernBert => Self::MODERNBERT,
            Family::Mpnet => Self::MPNET,
            Family::NomicBert => Self::NOMIC_BERT,
        }
    }

    /// Returns the places of queries, keys and values.
    pub(super) fn states(&self, attention: &AttentionConfig) -> [Place; 3] {
        match self.states {
            States::Separate(names) => names.map(Place::whole),
            States::Packed(tensor) => {
                let queries = attention.heads * attention.head;
                let keys = attention.kv_heads * attention.head;
                [0, queries, queries + keys].map(|first_row| Place { tensor, first_row })
            }
        }
    }

    /// Returns the names of queries, keys and values of a family that has a matrix for each.
    #[cfg(test)]
    pub(super) fn separate_states(&self) -> [&'static str; 3] {
        match self.states {
            States::Separate(names) => names,
            States::Packed(name) => panic!("{name} has queries, keys and values"),
        }
    }

    /// Returns the name of the first product of a feed-forward layer without a gate.
    #[cfg(test)]
    pub(super) fn plain_wide(&self) -> &'static str {
        match self.wide {
            Wide::Plain(name) => name,
            _ => panic!("the feed-forward layer is gated"),
        }
    }

    /// Returns the places of the factors of the feed-forward layer: the one that is activated, if
    /// there are two, and the other one.
    pub(super) fn wide(&self, feed_forward: &FeedForwardConfig) -> [Option<Place>; 2] {
        let second = |tensor| Place { tensor, first_row: feed_forward.intermediate };
        match self.wide {
            Wide::Plain(name) => [None, Some(Place::whole(name))],
            Wide::Separate { plain, .. } if !feed_forward.gated => {
                [None, Some(Place::whole(plain))]
            }
            Wide::Separate { gate, up, .. } => [Some(Place::whole(gate)), Some(Place::whole(up))],
            Wide::GateFirst(name) => [Some(Place::whole(name)), Some(second(name))],
            Wide::GateLast(name) => [Some(second(name)), Some(Place::whole(name))],
        }
    }
}

/// Names of the tensors outside the layers. A name that the family does not have is empty, and no
/// configuration of the family asks for it.
pub(super) struct EmbeddingNames {
    /// Tensor of the word embeddings.
    pub(super) words: &'static str,
    /// Tensor of the position embeddings.
    pub(super) positions: &'static str,
    /// Tensor of the token type embeddings.
    pub(super) types: &'static str,
    /// Normalization of the sum of the embeddings, without `.weight` and `.bias`.
    pub(super) norm: &'static str,
    /// Normalization after the last layer, without `.weight`.
    pub(super) final_norm: &'static str,
    /// Tensor of the relative position bias, or of the vectors of distances.
    pub(super) relative_bias: &'static str,
}

impl EmbeddingNames {
    const BERT: Self = Self {
        words: "embeddings.word_embeddings.weight",
        positions: "embeddings.position_embeddings.weight",
        types: "embeddings.token_type_embeddings.weight",
        norm: "embeddings.LayerNorm",
        final_norm: "",
        relative_bias: "encoder.relative_attention_bias.weight",
    };

    pub(super) const fn of(family: Family) -> Self {
        match family {
            Family::Bert
            | Family::DistilBert
            | Family::Gte
            | Family::JinaBert
            | Family::Mpnet
            | Family::Roberta
            | Family::XlmRoberta => Self::BERT,
            Family::DebertaV2 => {
                Self { relative_bias: "encoder.rel_embeddings.weight", ..Self::BERT }
            }
            Family::NomicBert => Self { norm: "emb_ln", ..Self::BERT },
            Family::ModernBert => Self {
                words: "embeddings.tok_embeddings.weight",
                norm: "embeddings.norm",
                final_norm: "final_norm",
                ..Self::BERT
            },
            Family::EmbeddingGemma2 | Family::EuroBert | Family::Gemma3 | Family::Qwen3 => {
                Self { words: "embed_tokens.weight", final_norm: "norm", ..Self::BERT }
            }
        }
    }
}

/// Normalization of the vectors of distances, without `.weight` and `.bias`.
pub(super) const DISTANCE_NORM: &str = "encoder.LayerNorm";

/// Matrix of EmbeddingGemma 2 after the last layer.
pub(super) const PROJECTION: &str = "embedding_projection.weight";

/// Names of the tensors of EmbeddingGemma 2 for the second vector of each token and layer.
pub(super) struct PerLayerNames;

impl PerLayerNames {
    /// Matrix from the word embedding to the second vectors of all layers.
    pub(super) const INPUTS: &str = "ple.per_layer_model_projection.weight";
    /// Normalization of a second vector, without `.weight`.
    pub(super) const INPUT_NORM: &str = "ple.per_layer_projection_norm";
    /// Matrix from the token vector to the factor of the second vector, in a layer.
    pub(super) const GATE: &str = "ple_block.per_layer_input_gate";
    /// Matrix from the product back to the token vector, in a layer.
    pub(super) const OUTPUT: &str = "ple_block.per_layer_projection";
    /// Normalization of the result, in a layer.
    pub(super) const NORM: &str = "ple_block.post_per_layer_input_norm";
    /// Factor of the token vectors at the end of a layer: a tensor with one value.
    pub(super) const SCALAR: &str = "layer_scalar";
}

/// Names of the tensors of a feed-forward layer with experts, in a layer. Packages have two
/// matrices for each expert; the published file has two for all of them, of which the second is
/// transposed.
pub(super) struct ExpertNames;

impl ExpertNames {
    /// Matrix from a token vector to a score for each expert.
    pub(super) const ROUTER: &str = "mlp.router.layer.weight";
    /// Bias of the sum of the experts' outputs.
    pub(super) const BIAS: &str = "mlp.experts.bias";

    /// Returns the name of the first product of `expert`.
    pub(super) fn wide(expert: usize) -> String {
        format!("mlp.experts.{expert}.fc1")
    }

    /// Returns the name of the second product of `expert`.
    pub(super) fn output(expert: usize) -> String {
        format!("mlp.experts.{expert}.fc2")
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
pub(super) fn encoder_tensors(config: &EncoderConfig) -> impl Iterator<Item = RequiredTensor> {
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

/// Returns the canonical name of the tensor that a checkpoint calls `name`, or `None` for tensors
/// that checkpoints contain but a sentence encoder does not use.
pub(super) fn canonical(family: Family, name: &str) -> Option<String> {
    let name = without_prefix(family, name);
    // The frequencies of rotations and the position ids 0, 1, 2, … are constants.
    let constant = name == "embeddings.position_ids" || name.ends_with("rotary_emb.inv_freq");
    if constant || TASK_MODULES.iter().any(|module| name.starts_with(module)) {
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

/// Returns `name` without the prefixes that a checkpoint of a task model has before it.
pub(super) fn without_prefix(family: Family, name: &str) -> &str {
    prefixes(family).iter().fold(name, |name, prefix| name.strip_prefix(prefix).unwrap_or(name))
}

/// Returns the prefixes that a checkpoint of a task model has before the names of its encoder, in
/// this order.
const fn prefixes(family: Family) -> &'static [&'static str] {
    match family {
        Family::Bert | Family::JinaBert | Family::NomicBert => &["bert."],
        Family::DebertaV2 => &["deberta."],
        Family::DistilBert => &["distilbert."],
        Family::EmbeddingGemma2 => &["model.", "language_model."],
        Family::EuroBert | Family::Gemma3 | Family::ModernBert | Family::Qwen3 => &["model."],
        Family::Gte => &["new."],
        Family::Mpnet => &["mpnet."],
        Family::Roberta | Family::XlmRoberta => &["roberta."],
    }
}

/// Prefixes of the tensors outside an encoder of texts: heads that predict words, labels or spans,
/// heads for tokens, and encoders of images and sounds.
const TASK_MODULES: [&str; 19] = [
    "audio_tower.",
    "classifier.",
    "cls.",
    "colbert_linear.",
    "decoder.",
    "embed_audio.",
    "embed_vision.",
    "head.",
    "lm_head.",
    "pooler.",
    "pre_classifier.",
    "qa_outputs.",
    "score.",
    "sparse_linear.",
    "vision_embedder.",
    "vision_tower.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "vocab_transform.",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::base::quantization::{
        even_blocks, hidden_blocks, input_blocks, is_word_table, reads_hidden,
    };
    use crate::engine::Architecture;
    use crate::engine::config::ExpertsConfig;
    use crate::engine::config::tests::{GOLDEN, golden, golden_file};
    use crate::engine::spec::Runtime;

    #[test]
    fn golden_checkpoints_have_exactly_the_required_tensors() {
        for (name, architecture, _) in GOLDEN {
            let config = golden(name, architecture);
            let file = golden_file(name, "model.safetensors");
            let file = safetensors::SafeTensors::deserialize(&file).unwrap();
            let required: BTreeSet<_> =
                encoder_tensors(&config).map(|tensor| (tensor.name, tensor.shape)).collect();
            assert_eq!(required.len(), encoder_tensors(&config).count(), "{name}");
            assert!(is_word_table(EmbeddingNames::of(config.family).words), "{name}");
            let prefix = prefixes(config.family).concat();
            // A classifier's file has the prefix, except before the names of its head.
            let has_prefix = file.names().iter().any(|name| name.starts_with(&prefix));
            for added in ["", &prefix].into_iter().take(if has_prefix { 1 } else { 2 }) {
                let present = file.iter().filter_map(|(name, view)| {
                    let name = canonical(config.family, &format!("{added}{name}"))?;
                    Some((name, view.shape().to_vec()))
                });
                assert_eq!(present.collect::<BTreeSet<_>>(), required, "{name} {added}");
            }
        }
    }

    #[test]
    fn matrices_are_divided_in_the_order_of_their_family() {
        let place = |tensor, first_row| Place { tensor, first_row };
        let of = |name, architecture| {
            let config = golden(name, architecture);
            let names = LayerNames::of(config.family);
            let layer = &config.layers[1];
            (names.states(&layer.attention), names.wide(&layer.feed_forward))
        };
        let (states, wide) = of("tiny-gte", Architecture::Gte);
        assert_eq!(states, [0, 64, 128].map(|row| place("attention.qkv_proj", row)));
        // The gate is the second half.
        let [gate, up] = [96, 0].map(|row| Some(place("mlp.up_gate_proj", row)));
        assert_eq!(wide, [gate, up]);
        let (states, wide) = of("tiny-modernbert-gelu", Architecture::ModernBert);
        assert_eq!(states, [0, 64, 128].map(|row| place("attn.Wqkv", row)));
        assert_eq!(wide, [0, 96].map(|row| Some(place("mlp.Wi", row))));
        let (_, wide) = of("tiny-nomic-bert", Architecture::NomicBert);
        assert_eq!(wide, ["mlp.fc12", "mlp.fc11"].map(|name| Some(place(name, 0))));
        let (states, wide) = of("tiny-qwen3", Architecture::Qwen3);
        let names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        assert_eq!(states, names.map(|name| place(name, 0)));
        assert_eq!(wide, ["mlp.gate_proj", "mlp.up_proj"].map(|name| Some(place(name, 0))));
        let (_, wide) = of("tiny-bert-mean", Architecture::Bert);
        assert_eq!(wide, [None, Some(place("intermediate.dense", 0))]);
        let jina = LayerNames::of(Family::JinaBert);
        let feed_forward = golden("tiny-gte", Architecture::Gte).layers[0].feed_forward.clone();
        let rows = [0, 96].map(|row| Some(place("mlp.gated_layers", row)));
        assert_eq!(jina.wide(&feed_forward), rows);
    }

    /// Returns a configuration of each family, in which all matrices have `width` inputs.
    fn families(width: usize) -> Vec<EncoderConfig> {
        let mut configs: Vec<EncoderConfig> =
            GOLDEN.iter().map(|(name, architecture, _)| golden(name, *architecture)).collect();
        let jina = golden("tiny-bert-mean", Architecture::Bert);
        configs.push(EncoderConfig { family: Family::JinaBert, ..jina });
        let mut experts = golden("tiny-nomic-bert", Architecture::NomicBert);
        experts.layers[1].feed_forward.experts = Some(ExpertsConfig { count: 2, used: 1 });
        configs.push(experts);
        for config in &mut configs {
            config.hidden_size = width;
            config.per_layer_input = config.per_layer_input.map(|_length| width);
            for LayerConfig { attention, feed_forward, .. } in &mut config.layers {
                attention.head = width / attention.heads;
                feed_forward.intermediate = width;
            }
        }
        configs
    }

    #[test]
    fn inputs_of_int8_matrices_are_divided_by_their_kind() {
        const WIDTH: usize = 480;
        let configs = families(WIDTH);
        for architecture in Architecture::ALL {
            if let Runtime::Fused(family) = architecture.runtime() {
                assert!(configs.iter().any(|config| config.family == family), "{architecture}");
            }
        }
        for config in configs {
            let names = LayerNames::of(config.family);
            let outer = EmbeddingNames::of(config.family);
            let (mut from_hidden, mut from_heads, mut from_inner) =
                (vec![], vec![], vec![PerLayerNames::OUTPUT.to_owned()]);
            for LayerConfig { attention, feed_forward, .. } in &config.layers {
                let wide = names.wide(feed_forward).into_iter().flatten();
                let places = names.states(attention).into_iter().chain(wide);
                from_hidden.extend(places.map(|place| place.tensor.to_owned()));
                from_heads.push(names.attention_output.to_owned());
                from_inner.push(names.output.to_owned());
            }
            from_hidden.push(PerLayerNames::GATE.to_owned());
            from_hidden.extend([0, 1].map(ExpertNames::wide));
            from_inner.extend([0, 1].map(ExpertNames::output));
            let outer_hidden = [PerLayerNames::INPUTS, PROJECTION];
            let tables = [outer.words, outer.positions, outer.types, outer.relative_bias];
            for RequiredTensor { name, shape } in encoder_tensors(&config) {
                let &[_, inputs] = shape.as_slice() else { continue };
                let part = name
                    .strip_prefix(names.layers)
                    .and_then(|rest| rest.strip_suffix(".weight")?.splitn(3, '.').nth(2))
                    .map(str::to_owned);
                let is_part_of = |parts: &[String]| part.iter().any(|part| parts.contains(part));
                let expected = if is_part_of(&from_hidden) || outer_hidden.contains(&&*name) {
                    hidden_blocks(WIDTH)
                } else if is_part_of(&from_inner) {
                    even_blocks(WIDTH)
                } else if is_part_of(&from_heads) || tables.contains(&&*name) {
                    vec![inputs]
                } else {
                    // Packages have it in f32.
                    assert!(name.ends_with(ExpertNames::ROUTER), "{name}");
                    continue;
                };
                assert_eq!(input_blocks(&name, inputs, WIDTH), expected, "{name}");
                let hidden = expected == hidden_blocks(WIDTH);
                assert_eq!(reads_hidden(&name, inputs, WIDTH), hidden, "{name}");
                assert_eq!(is_word_table(&name), name == outer.words, "{name}");
            }
        }
    }

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
            (Family::Gte, "new.encoder.x", Some("encoder.x")),
            (Family::ModernBert, "model.layers.0.attn.Wo.weight", Some("layers.0.attn.Wo.weight")),
            (Family::ModernBert, "head.dense.weight", None),
            (Family::ModernBert, "decoder.bias", None),
            (Family::Qwen3, "lm_head.weight", None),
            (Family::EuroBert, "model.layers.0.self_attn.rotary_emb.inv_freq", None),
            (Family::EmbeddingGemma2, "language_model.norm.weight", Some("norm.weight")),
            (Family::EmbeddingGemma2, "model.language_model.norm.weight", Some("norm.weight")),
            (Family::EmbeddingGemma2, "vision_tower.x", None),
            (Family::EmbeddingGemma2, "model.embed_audio.x", None),
        ];
        for (family, name, expected) in cases {
            assert_eq!(canonical(family, name).as_deref(), expected, "{name}");
        }
    }
}
