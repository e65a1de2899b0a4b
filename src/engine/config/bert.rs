//! Configurations of BERT and of the families that differ from it in names, positions and biases.

use serde::Deserialize;

use super::{
    AttentionConfig, EmbeddingConfig, EncoderConfig, FeedForwardConfig, HiddenActivation,
    LayerConfig, MPNET_BUCKETS, NormKind, NormPlacement, RelativeBias, check_positions,
    check_sizes, layers, mismatch, parse, positive,
};
use crate::engine::quote::quote;
use crate::engine::spec::Family;
use crate::engine::{EngineError, ModelSpec};

/// Padding id of MPNet's positions. MPNet fixes it and ignores its `config.json`:
/// <https://github.com/huggingface/transformers/blob/00099b9f15ad8bea330364709453fc49cbba90e5/src/transformers/models/mpnet/modeling_mpnet.py>
const MPNET_PADDING_ID: u32 = 1;

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
    /// Version 2 of jina-bert: kind of feed-forward layer.
    feed_forward_type: Option<String>,
    /// Version 2 of jina-bert: repository of the code.
    #[serde(rename = "_name_or_path")]
    name_or_path: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

/// Reads the configuration of an encoder of `family`.
pub(super) fn read(
    bytes: &[u8],
    family: Family,
    spec: &ModelSpec,
) -> Result<EncoderConfig, EngineError> {
    let file: ConfigFile = parse(bytes, spec)?;
    file.check_arithmetic(family)?;
    let alibi = file.has_alibi();
    let family = if alibi { Family::JinaBert } else { family };
    let types = match family {
        Family::DistilBert | Family::Mpnet => None,
        Family::Roberta | Family::XlmRoberta => Some(file.type_vocab_size.unwrap_or(1)),
        _ => Some(file.type_vocab_size.unwrap_or(2)),
    };
    check_sizes(&[
        ("vocab_size", file.vocab_size),
        ("hidden_size", file.hidden_size),
        ("num_attention_heads", file.num_attention_heads),
        ("intermediate_size", file.intermediate_size),
        ("max_position_embeddings", file.max_position_embeddings),
        ("type_vocab_size", types.unwrap_or(1)),
    ])?;
    let padding_id = file.padding_id(family)?;
    // Positions begin behind the padding id:
    // https://github.com/huggingface/transformers/blob/87b236ba2be8b3e48a7d0c8ca6513302736d2886/src/transformers/models/roberta/modeling_roberta.py
    let unused = padding_id.map_or(0, |id| id as usize + 1);
    let positions = file.max_position_embeddings.saturating_sub(unused);
    check_positions(spec, "max_position_embeddings", positions)?;
    let attention = AttentionConfig::bidirectional(file.hidden_size, file.num_attention_heads)?;
    let feed_forward = FeedForwardConfig {
        intermediate: file.intermediate_size,
        activation: file.activation()?,
        gated: alibi,
        experts: None,
        bias: !alibi,
        output_bias: true,
    };
    // 1e-12 is the default of every architecture here. DistilBERT fixes this value and ignores its
    // file.
    let norm_epsilon = match family {
        Family::DistilBert => 1e-12,
        _ => positive("layer_norm_eps", file.layer_norm_eps.unwrap_or(1e-12))?,
    };
    Ok(EncoderConfig {
        family,
        vocab_size: file.vocab_size,
        hidden_size: file.hidden_size,
        norm: NormKind::LayerNorm,
        norm_epsilon,
        placement: NormPlacement::Post,
        embeddings: EmbeddingConfig {
            positions: if alibi { 0 } else { file.max_position_embeddings },
            types: types.unwrap_or(0),
            norm: true,
            scale: 1.0,
            padding_id,
        },
        layers: layers(file.num_hidden_layers, |_| {
            Ok(LayerConfig {
                input_norm: false,
                attention: attention.clone(),
                feed_forward: feed_forward.clone(),
            })
        })?,
        final_norm: false,
        relative_bias: match family {
            Family::JinaBert => Some(RelativeBias::Alibi),
            Family::Mpnet => Some(RelativeBias::Buckets),
            _ => None,
        },
        per_layer_input: None,
        projection: None,
    })
}

impl ConfigFile {
    /// Returns whether the file describes version 2 of jina-bert, whose `model_type` is that of
    /// BERT.
    fn has_alibi(&self) -> bool {
        self.position_embedding_type.as_deref() == Some("alibi")
    }

    /// Returns the token id from which the positions of an encoder of `family` count, if they do.
    fn padding_id(&self, family: Family) -> Result<Option<u32>, EngineError> {
        let id = match family {
            Family::Mpnet => MPNET_PADDING_ID,
            Family::Roberta | Family::XlmRoberta => self.pad_token_id.unwrap_or(1),
            _ => return Ok(None),
        };
        let rows = self.vocab_size;
        if id as usize >= rows {
            return Err(mismatch(format!("pad_token_id {id} is outside vocab_size {rows}")));
        }
        Ok(Some(id))
    }

    /// Returns the activation of the feed-forward layers. In jina-bert, their kind decides.
    fn activation(&self) -> Result<HiddenActivation, EngineError> {
        match self.feed_forward_type.as_deref() {
            Some("geglu") => Ok(HiddenActivation::Gelu),
            Some("reglu") => Ok(HiddenActivation::Relu),
            _ => HiddenActivation::parse("hidden_act", &self.hidden_act),
        }
    }

    /// Checks the settings that select arithmetic that the encoder does not implement.
    fn check_arithmetic(&self, family: Family) -> Result<(), EngineError> {
        let known = self.position_embedding_type.as_deref().unwrap_or("absolute");
        if known != "absolute" && !(self.has_alibi() && family == Family::Bert) {
            let other = quote(known);
            return Err(mismatch(format!("position_embedding_type {other} is not supported")));
        }
        let supported: &[&str] = if self.has_alibi() { &["geglu", "reglu"] } else { &["original"] };
        let kind = self.feed_forward_type.as_deref().unwrap_or("original");
        if !supported.contains(&kind) {
            return Err(mismatch(format!(
                "feed_forward_type {} is not supported with position_embedding_type {}",
                quote(kind),
                quote(known)
            )));
        }
        // The code of jina-embeddings-v2-base-code normalizes queries and keys.
        if let Some(path) = self.name_or_path.as_ref().filter(|p| p.ends_with("qk-post-norm")) {
            return Err(mismatch(format!("_name_or_path {} is not supported", quote(path))));
        }
        if self.is_decoder {
            return Err(mismatch("is_decoder is true; only encoders are supported"));
        }
        if let Some(buckets) = self.relative_attention_num_buckets.filter(|&n| n != MPNET_BUCKETS) {
            return Err(mismatch(format!(
                "relative_attention_num_buckets is {buckets}; MPNet has {MPNET_BUCKETS}"
            )));
        }
        Ok(())
    }
}
