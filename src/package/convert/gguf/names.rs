//! Maps the tensor names of GGUF files to those of transformers.
//!
//! The names are those of
//! <https://github.com/ggml-org/llama.cpp/blob/b6500/gguf-py/gguf/tensor_mapping.py>.

/// Names of one family: each name in GGUF files with the one in transformers, both without
/// `.weight` and `.bias`.
pub(super) struct Names {
    /// Prefix of the names in a layer, before the number of the layer.
    layers: &'static str,
    layer: &'static [(&'static str, &'static str)],
    outside: &'static [(&'static str, &'static str)],
}

/// Prefix of the names in a layer, before the number of the layer, in GGUF files.
const LAYERS: &str = "blk.";

/// Tensors that a vector does not depend on: heads for labels and for words.
const UNUSED: [&str; 4] = ["cls", "cls.norm", "cls.output", "output"];

const OUTSIDE_BERT: &[(&str, &str)] = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("position_embd", POSITIONS),
    ("token_types", "embeddings.token_type_embeddings"),
    ("token_embd_norm", "embeddings.LayerNorm"),
];

const OUTSIDE_DECODER: &[(&str, &str)] = &[("token_embd", "embed_tokens"), ("output_norm", "norm")];

/// Name of the table of positions, without `.weight`.
pub(super) const POSITIONS: &str = "embeddings.position_embeddings";

impl Names {
    pub(super) const BERT: Self = Self {
        layers: "encoder.layer.",
        layer: &[
            ("attn_q", "attention.self.query"),
            ("attn_k", "attention.self.key"),
            ("attn_v", "attention.self.value"),
            ("attn_output", "attention.output.dense"),
            ("attn_output_norm", "attention.output.LayerNorm"),
            ("ffn_up", "intermediate.dense"),
            ("ffn_down", "output.dense"),
            ("layer_output_norm", "output.LayerNorm"),
        ],
        outside: OUTSIDE_BERT,
    };
    pub(super) const DISTILBERT: Self = Self {
        layers: "transformer.layer.",
        layer: &[
            ("attn_q", "attention.q_lin"),
            ("attn_k", "attention.k_lin"),
            ("attn_v", "attention.v_lin"),
            ("attn_output", "attention.out_lin"),
            ("attn_output_norm", "sa_layer_norm"),
            ("ffn_up", "ffn.lin1"),
            ("ffn_down", "ffn.lin2"),
            ("layer_output_norm", "output_layer_norm"),
        ],
        outside: OUTSIDE_BERT,
    };
    pub(super) const JINA_BERT: Self = Self {
        layers: "encoder.layer.",
        layer: &[
            ("attn_q", "attention.self.query"),
            ("attn_k", "attention.self.key"),
            ("attn_v", "attention.self.value"),
            ("attn_output", "attention.output.dense"),
            ("attn_output_norm", "attention.output.LayerNorm"),
            ("ffn_up", "mlp.gated_layers"),
            ("ffn_down", "mlp.wo"),
            ("layer_output_norm", "mlp.layernorm"),
        ],
        outside: OUTSIDE_BERT,
    };
    pub(super) const NOMIC_BERT: Self = Self {
        layers: "encoder.layers.",
        layer: &[
            ("attn_qkv", "attn.Wqkv"),
            ("attn_output", "attn.out_proj"),
            ("attn_output_norm", "norm1"),
            ("ffn_up", "mlp.fc11"),
            ("ffn_gate", "mlp.fc12"),
            ("ffn_down", "mlp.fc2"),
            ("layer_output_norm", "norm2"),
        ],
        outside: &[
            ("token_embd", "embeddings.word_embeddings"),
            ("token_types", "embeddings.token_type_embeddings"),
            ("token_embd_norm", "emb_ln"),
        ],
    };
    pub(super) const MODERN_BERT: Self = Self {
        layers: "layers.",
        layer: &[
            ("attn_norm", "attn_norm"),
            ("attn_qkv", "attn.Wqkv"),
            ("attn_output", "attn.Wo"),
            ("ffn_norm", "mlp_norm"),
            ("ffn_up", "mlp.Wi"),
            ("ffn_down", "mlp.Wo"),
        ],
        outside: &[
            ("token_embd", "embeddings.tok_embeddings"),
            ("token_embd_norm", "embeddings.norm"),
            ("output_norm", "final_norm"),
        ],
    };
    /// Names of Qwen3 and EuroBERT.
    pub(super) const DECODER: Self = Self {
        layers: "layers.",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        outside: OUTSIDE_DECODER,
    };
    pub(super) const GEMMA: Self = Self {
        layers: "layers.",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("attn_output", "self_attn.o_proj"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        outside: OUTSIDE_DECODER,
    };

    /// Returns the name in transformers of the tensor `name`, or `None` if the family has no such
    /// tensor.
    pub(super) fn original(&self, name: &str) -> Option<String> {
        let (module, suffix) = name.rsplit_once('.')?;
        if !["weight", "bias"].contains(&suffix) {
            return None;
        }
        let find = |list: &[(&str, &'static str)], module: &str| {
            list.iter().find(|(known, _)| *known == module).map(|(_, original)| *original)
        };
        let Some(inner) = module.strip_prefix(LAYERS) else {
            return Some(format!("{}.{suffix}", find(self.outside, module)?));
        };
        let (index, part) = inner.split_once('.')?;
        let part = find(self.layer, part)?;
        let is_number = index.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| format!("{}{index}.{part}.{suffix}", self.layers))
    }
}

/// Returns whether a vector does not depend on the tensor `name`.
pub(super) fn is_unused(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(module, _)| UNUSED.contains(&module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_mapped_inside_and_outside_layers() {
        for (names, name, expected) in [
            (Names::BERT, "token_embd.weight", Some("embeddings.word_embeddings.weight")),
            (Names::BERT, "blk.11.ffn_up.bias", Some("encoder.layer.11.intermediate.dense.bias")),
            (Names::NOMIC_BERT, "blk.0.ffn_gate.weight", Some("encoder.layers.0.mlp.fc12.weight")),
            (Names::DECODER, "output_norm.weight", Some("norm.weight")),
            (
                Names::GEMMA,
                "blk.3.post_ffw_norm.weight",
                Some("layers.3.post_feedforward_layernorm.weight"),
            ),
            (Names::BERT, "blk.x.ffn_up.bias", None),
            (Names::BERT, "blk.1.ffn_gate.weight", None),
            (Names::BERT, "blk.1.ffn_up.scale", None),
            (Names::BERT, "rope_freqs.weight", None),
            (Names::BERT, "weight", None),
        ] {
            assert_eq!(names.original(name).as_deref(), expected, "{name}");
        }
        assert!(is_unused("cls.output.bias") && is_unused("output.weight"));
        assert!(!is_unused("output_norm.weight"));
    }
}
