//! Conversion of the names in a checkpoint to the canonical ones.

use crate::engine::spec::Family;

/// Returns the canonical name of the tensor that a checkpoint calls `name`, or `None` for tensors
/// that checkpoints contain but a sentence encoder does not use.
pub(in crate::engine) fn canonical(family: Family, name: &str) -> Option<String> {
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
pub(in crate::engine) fn without_prefix(family: Family, name: &str) -> &str {
    prefixes(family).iter().fold(name, |name, prefix| name.strip_prefix(prefix).unwrap_or(name))
}

/// Returns the prefixes that a checkpoint of a task model has before the names of its encoder, in
/// this order.
pub(super) const fn prefixes(family: Family) -> &'static [&'static str] {
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
