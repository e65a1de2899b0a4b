//! Reference encoders in candle, in f32, one text at a time.
//!
//! BERT, RoBERTa and ModernBERT run in candle-transformers. DistilBERT runs there as an equivalent
//! BERT, under BERT's tensor names and with token types of zero, because candle-transformers' own
//! DistilBERT uses the approximate GELU and the model uses the exact one. MPNet is in [`mpnet`].
//! The other families have no reference in candle; their vectors are compared with those in
//! `tests/golden`.
//!
//! The module is compiled only for tests, which compare the fused encoder with it. It panics if
//! tensors do not fit.

mod mpnet;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, modernbert, xlm_roberta};

use self::mpnet::Mpnet;
use super::WeightsFile;
use super::config::{AttentionConfig, EncoderConfig, HiddenActivation, LayerConfig};
use super::spec::Family;
use super::tensor_names::{self, LayerNames};
use super::weights;

/// Tensors by canonical name.
type Weights = HashMap<String, Tensor>;

/// A loaded model.
pub(super) struct Reference {
    encoder: Encoder,
}

impl Reference {
    /// Reads the encoder of `config` from the weights in the safetensors `file`.
    pub(super) fn read(config: &EncoderConfig, file: &dyn WeightsFile) -> Self {
        let tensors = weights::read(
            "model.safetensors",
            file,
            |name| tensor_names::canonical(config.family, name),
            tensor_names::encoder_tensors(config),
        )
        .unwrap();
        let weights = tensors
            .into_iter()
            .map(|(name, tensor)| {
                let values = tensor.values();
                (name, Tensor::from_vec(values, tensor.shape, &Device::Cpu).unwrap())
            })
            .collect();
        let weights = match config.family {
            Family::DistilBert => under_bert_names(weights, config.hidden_size),
            // candle-transformers uses the tensor names of the masked language model, which have
            // this prefix.
            Family::ModernBert => weights
                .into_iter()
                .map(|(name, weight)| (format!("model.{name}"), weight))
                .collect(),
            _ => weights,
        };
        Self { encoder: Encoder::load(config, weights).unwrap() }
    }

    /// Computes the token vectors of `text`, `[tokens, hidden]` row-major.
    pub(super) fn states(&self, text: &[u32]) -> Vec<f32> {
        let shape = (1, text.len());
        let ids = Tensor::from_vec(text.to_vec(), shape, &Device::Cpu).unwrap();
        let mask = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        self.encoder.forward(&ids, &mask).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// Encoders, grouped by the code that runs them.
enum Encoder {
    Bert(bert::BertModel),
    ModernBert(modernbert::ModernBert),
    Roberta(xlm_roberta::XLMRobertaModel),
    Mpnet(Mpnet),
}

impl Encoder {
    /// Loads an encoder. The `weights` must have the names of the code that runs it.
    fn load(config: &EncoderConfig, weights: Weights) -> candle_core::Result<Self> {
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        match config.family {
            Family::Bert | Family::DistilBert => {
                bert::BertModel::load(vb, &bert_config(config)).map(Self::Bert)
            }
            Family::Roberta | Family::XlmRoberta => {
                xlm_roberta::XLMRobertaModel::new(&roberta_config(config), vb).map(Self::Roberta)
            }
            Family::Mpnet => Mpnet::load(config, &vb).map(Self::Mpnet),
            Family::ModernBert => {
                modernbert::ModernBert::load(vb, &modernbert_config(config)).map(Self::ModernBert)
            }
            family => panic!("{family:?} has no reference in candle"),
        }
    }

    /// Computes the token vectors `[b, s, h]` of `ids`, u32 `[b, s]`. `mask` is 1 for a token and 0
    /// for padding, f32 `[b, s]`.
    fn forward(&self, ids: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Bert(model) => model.forward(ids, &ids.zeros_like()?, Some(mask)),
            Self::Roberta(model) => model.forward(ids, mask, &ids.zeros_like()?, None, None, None),
            Self::ModernBert(model) => model.forward(ids, mask),
            Self::Mpnet(model) => model.forward(ids, mask),
        }
    }
}

fn activation(activation: HiddenActivation) -> candle_nn::Activation {
    match activation {
        HiddenActivation::Gelu => candle_nn::Activation::Gelu,
        HiddenActivation::GeluTanh => candle_nn::Activation::NewGelu,
        HiddenActivation::Relu => candle_nn::Activation::Relu,
        HiddenActivation::Silu => candle_nn::Activation::Silu,
    }
}

fn bert_config(config: &EncoderConfig) -> bert::Config {
    let LayerConfig { attention, feed_forward, .. } = &config.layers[0];
    bert::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.layers.len(),
        num_attention_heads: attention.heads,
        intermediate_size: feed_forward.intermediate,
        hidden_act: match feed_forward.activation {
            HiddenActivation::Gelu => bert::HiddenAct::Gelu,
            HiddenActivation::GeluTanh => bert::HiddenAct::GeluApproximate,
            HiddenActivation::Relu => bert::HiddenAct::Relu,
            HiddenActivation::Silu => panic!("candle's BERT has no SiLU"),
        },
        max_position_embeddings: config.embeddings.positions,
        // DistilBERT gets a token type table with one row of zeros.
        type_vocab_size: config.embeddings.types.max(1),
        layer_norm_eps: config.norm_epsilon,
        ..bert::Config::default()
    }
}

fn roberta_config(config: &EncoderConfig) -> xlm_roberta::Config {
    let LayerConfig { attention, feed_forward, .. } = &config.layers[0];
    xlm_roberta::Config {
        hidden_size: config.hidden_size,
        layer_norm_eps: config.norm_epsilon,
        attention_probs_dropout_prob: 0.0,
        hidden_dropout_prob: 0.0,
        num_attention_heads: attention.heads,
        position_embedding_type: "absolute".to_owned(),
        intermediate_size: feed_forward.intermediate,
        hidden_act: activation(feed_forward.activation),
        num_hidden_layers: config.layers.len(),
        vocab_size: config.vocab_size,
        max_position_embeddings: config.embeddings.positions,
        type_vocab_size: config.embeddings.types,
        pad_token_id: config.embeddings.padding_id.unwrap(),
    }
}

/// Returns the configuration of a ModernBERT, which candle computes only with the exact GELU and
/// with full attention at regular distances from the first layer on.
fn modernbert_config(config: &EncoderConfig) -> modernbert::Config {
    let LayerConfig { attention, feed_forward, .. } = &config.layers[0];
    assert_eq!(feed_forward.activation, HiddenActivation::Gelu);
    let is_full = |index: usize| config.layers[index].attention.window.is_none();
    let count = config.layers.len();
    let every = (1..count).find(|&index| is_full(index)).unwrap_or(count);
    assert!((0..count).all(|index| is_full(index) == index.is_multiple_of(every)));
    let local = config.layers.iter().find(|layer| layer.attention.window.is_some());
    let local = &local.map_or(attention, |layer| &layer.attention);
    let theta = |attention: &AttentionConfig| attention.rope.as_ref().unwrap().theta;
    modernbert::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: count,
        num_attention_heads: attention.heads,
        intermediate_size: feed_forward.intermediate,
        // The number of rotations that candle computes in advance.
        max_position_embeddings: 512,
        layer_norm_eps: config.norm_epsilon,
        // The value does not matter, because texts are never padded.
        pad_token_id: 0,
        global_attn_every_n_layers: every,
        global_rope_theta: theta(attention),
        local_attention: 2 * local.window.unwrap_or(0),
        local_rope_theta: theta(local),
        classifier_config: None,
    }
}

/// Renames the weights of a DistilBERT to those of the BERT that computes the same.
fn under_bert_names(weights: Weights, hidden: usize) -> Weights {
    let (from, to) = (LayerNames::DISTILBERT, LayerNames::BERT);
    let parts: Vec<_> = parts(&from).into_iter().zip(parts(&to)).collect();
    let rename = |name: String| {
        let layer = name.strip_prefix(from.layers).and_then(|rest| rest.strip_prefix('.'));
        let Some((index, rest)) = layer.and_then(|layer| layer.split_once('.')) else {
            return name;
        };
        let part = parts.iter().find_map(|(from, to)| Some((rest.strip_prefix(from)?, to)));
        part.map_or(name.clone(), |(kind, part)| format!("{}.{index}.{part}{kind}", to.layers))
    };
    let mut weights: Weights =
        weights.into_iter().map(|(name, weight)| (rename(name), weight)).collect();
    let types = Tensor::zeros((1, hidden), DType::F32, &Device::Cpu).unwrap();
    weights.insert("embeddings.token_type_embeddings.weight".to_owned(), types);
    weights
}

/// Returns every part of a layer of a BERT, in the same order for all families.
fn parts(names: &LayerNames) -> Vec<&'static str> {
    let [query, key, value] = names.separate_states();
    let wide = names.plain_wide();
    let LayerNames { attention_output, attention_norm, output, output_norm, .. } = *names;
    vec![query, key, value, attention_output, attention_norm, wide, output, output_norm]
}
