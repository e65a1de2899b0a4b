//! Reference encoders in candle, in f32, one text at a time.
//!
//! BERT and RoBERTa run in candle-transformers. DistilBERT runs there as an equivalent BERT, under
//! BERT's tensor names and with token types of zero, because candle-transformers' own DistilBERT
//! uses the approximate GELU and the model uses the exact one. MPNet is in [`mpnet`].
//!
//! The module is compiled only for tests, which compare the fused encoder with it. It panics if
//! tensors do not fit.

mod mpnet;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, xlm_roberta};

use self::mpnet::Mpnet;
use super::WeightsFile;
use super::config::{EncoderConfig, HiddenActivation};
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
    Roberta(xlm_roberta::XLMRobertaModel),
    Mpnet(Mpnet),
}

impl Encoder {
    /// Loads an encoder. The `weights` of a DistilBERT must have been renamed by
    /// [`under_bert_names`].
    fn load(config: &EncoderConfig, weights: Weights) -> candle_core::Result<Self> {
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        match config.family {
            Family::Bert | Family::DistilBert => {
                bert::BertModel::load(vb, &bert_config(config)).map(Self::Bert)
            }
            Family::Roberta | Family::XlmRoberta => {
                xlm_roberta::XLMRobertaModel::new(&roberta_config(config), vb).map(Self::Roberta)
            }
            Family::Mpnet => {
                Mpnet::load(config, activation(config.activation), &vb).map(Self::Mpnet)
            }
        }
    }

    /// Computes the token vectors `[b, s, h]` of `ids`, u32 `[b, s]`. `mask` is 1 for a token and 0
    /// for padding, f32 `[b, s]`.
    fn forward(&self, ids: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Bert(model) => model.forward(ids, &ids.zeros_like()?, Some(mask)),
            Self::Roberta(model) => model.forward(ids, mask, &ids.zeros_like()?, None, None, None),
            Self::Mpnet(model) => model.forward(ids, mask),
        }
    }
}

fn activation(activation: HiddenActivation) -> candle_nn::Activation {
    match activation {
        HiddenActivation::Gelu => candle_nn::Activation::Gelu,
        HiddenActivation::GeluTanh => candle_nn::Activation::NewGelu,
        HiddenActivation::Relu => candle_nn::Activation::Relu,
    }
}

fn bert_config(config: &EncoderConfig) -> bert::Config {
    bert::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        intermediate_size: config.intermediate_size,
        hidden_act: match config.activation {
            HiddenActivation::Gelu => bert::HiddenAct::Gelu,
            HiddenActivation::GeluTanh => bert::HiddenAct::GeluApproximate,
            HiddenActivation::Relu => bert::HiddenAct::Relu,
        },
        max_position_embeddings: config.max_position_embeddings,
        // DistilBERT gets a token type table with one row of zeros.
        type_vocab_size: config.type_vocab_size.max(1),
        layer_norm_eps: config.layer_norm_eps,
        pad_token_id: config.padding_id as usize,
        ..bert::Config::default()
    }
}

fn roberta_config(config: &EncoderConfig) -> xlm_roberta::Config {
    xlm_roberta::Config {
        hidden_size: config.hidden_size,
        layer_norm_eps: config.layer_norm_eps,
        attention_probs_dropout_prob: 0.0,
        hidden_dropout_prob: 0.0,
        num_attention_heads: config.heads,
        position_embedding_type: "absolute".to_owned(),
        intermediate_size: config.intermediate_size,
        hidden_act: activation(config.activation),
        num_hidden_layers: config.layers,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        type_vocab_size: config.type_vocab_size,
        pad_token_id: config.padding_id,
    }
}

/// Renames the weights of a DistilBERT to those of the BERT that computes the same.
fn under_bert_names(weights: Weights, hidden: usize) -> Weights {
    let (from, to) = (LayerNames::DISTILBERT, LayerNames::BERT);
    let parts: Vec<_> = from.parts().into_iter().zip(to.parts()).collect();
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
