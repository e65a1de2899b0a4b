//! Names of the linear layers and normalizations of an encoder layer, for each family.

use crate::engine::config::{AttentionConfig, FeedForwardConfig};
use crate::engine::spec::Family;

/// Rows of a matrix that are one linear layer, from `first_row` on. The matrix has the name of a
/// part of a layer; its bias has the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Place {
    pub(in crate::engine) tensor: &'static str,
    pub(in crate::engine) first_row: usize,
}

impl Place {
    const fn whole(tensor: &'static str) -> Self {
        Self { tensor, first_row: 0 }
    }
}

/// Names of the linear layers and normalizations of one encoder layer. A name that the family does
/// not have is empty, and no configuration of the family asks for it.
pub(in crate::engine) struct LayerNames {
    /// Prefix before the number of the layer.
    pub(in crate::engine) layers: &'static str,
    /// Normalization before attention.
    pub(in crate::engine) input_norm: &'static str,
    pub(super) states: States,
    pub(in crate::engine) query_norm: &'static str,
    pub(in crate::engine) key_norm: &'static str,
    pub(in crate::engine) attention_output: &'static str,
    /// Normalization after attention.
    pub(in crate::engine) attention_norm: &'static str,
    /// Normalization before the feed-forward layer.
    pub(in crate::engine) feed_forward_norm: &'static str,
    pub(super) wide: Wide,
    /// Second product of the feed-forward layer.
    pub(in crate::engine) output: &'static str,
    /// Normalization after the feed-forward layer.
    pub(in crate::engine) output_norm: &'static str,
}

/// Matrices for queries, keys and values.
#[derive(Clone, Copy)]
pub(super) enum States {
    /// One matrix each, in this order.
    Separate([&'static str; 3]),
    /// One matrix with all rows in this order.
    Packed(&'static str),
}

/// Matrices for the first product of a feed-forward layer. The gate is the factor that is
/// activated.
#[derive(Clone, Copy)]
pub(super) enum Wide {
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
    pub(in crate::engine) const BERT: Self = Self {
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
    pub(in crate::engine) const DISTILBERT: Self = Self {
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
    pub(in crate::engine) const MPNET: Self = Self {
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

    pub(in crate::engine) const fn of(family: Family) -> Self {
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
    pub(in crate::engine) fn states(&self, attention: &AttentionConfig) -> [Place; 3] {
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
    pub(in crate::engine) fn separate_states(&self) -> [&'static str; 3] {
        match self.states {
            States::Separate(names) => names,
            States::Packed(name) => panic!("{name} has queries, keys and values"),
        }
    }

    /// Returns the name of the first product of a feed-forward layer without a gate.
    #[cfg(test)]
    pub(in crate::engine) fn plain_wide(&self) -> &'static str {
        match self.wide {
            Wide::Plain(name) => name,
            _ => panic!("the feed-forward layer is gated"),
        }
    }

    /// Returns the places of the factors of the feed-forward layer: the one that is activated, if
    /// there are two, and the other one.
    pub(in crate::engine) fn wide(&self, feed_forward: &FeedForwardConfig) -> [Option<Place>; 2] {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::golden;

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
}
