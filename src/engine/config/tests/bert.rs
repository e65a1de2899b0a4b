//! Tests: BERT and the families with absolute positions or biases of distances.

use serde_json::{Value, json};

use super::{bert, check_refusals, golden, golden_json, golden_spec, jina_bert, read, spec};
use crate::engine::Architecture;
use crate::engine::config::{
    DistanceBuckets, EmbeddingConfig, HiddenActivation, LayerConfig, RelativeBias,
};
use crate::engine::spec::Family;

#[test]
fn distilbert_configuration_keys_are_read() {
    let file = json!({
        "model_type": "distilbert", "vocab_size": 5, "dim": 8, "n_layers": 1, "n_heads": 2,
        "hidden_dim": 4, "activation": "relu", "max_position_embeddings": 10,
        "layer_norm_eps": 0.5,
    });
    let config = read(&file, &spec(Architecture::DistilBert)).unwrap();
    assert_eq!((config.hidden_size, config.layers.len(), config.heads()), (8, 1, 2));
    let feed_forward = &config.layers[0].feed_forward;
    assert_eq!((feed_forward.intermediate, config.embeddings.types), (4, 0));
    assert_eq!(feed_forward.activation, HiddenActivation::Relu);
    // transformers computes with this value and ignores the file.
    assert!((config.norm_epsilon - 1e-12).abs() < f64::EPSILON * 1e-12);
}

#[test]
fn bert_families_differ_in_their_embeddings() {
    let of = |name, architecture| golden(name, architecture).embeddings;
    let bert = of("tiny-bert-mean", Architecture::Bert);
    assert_eq!((bert.positions, bert.types, bert.padding_id, bert.norm), (64, 2, None, true));
    let camembert = of("tiny-camembert", Architecture::Camembert);
    assert_eq!((camembert.positions, camembert.types, camembert.padding_id), (98, 1, Some(1)));
    let mpnet = golden("tiny-mpnet", Architecture::Mpnet);
    assert_eq!(mpnet.relative_bias, Some(RelativeBias::Buckets));
    assert_eq!((mpnet.embeddings.types, mpnet.embeddings.padding_id), (0, Some(1)));
    assert_eq!(of("tiny-distilbert", Architecture::DistilBert).types, 0);
}

#[test]
fn jina_bert_is_recognized_in_a_bert() {
    let config = read(&jina_bert(), &spec(Architecture::Bert)).unwrap();
    assert_eq!(
        (config.family, config.relative_bias),
        (Family::JinaBert, Some(RelativeBias::Alibi))
    );
    assert_eq!((config.embeddings.positions, config.embeddings.types), (0, 2));
    let LayerConfig { attention, feed_forward, .. } = &config.layers[0];
    assert!(attention.bias && attention.output_bias && feed_forward.output_bias);
    assert!(feed_forward.gated && !feed_forward.bias);
    assert_eq!(feed_forward.activation, HiddenActivation::Gelu);
    let mut file = jina_bert();
    file["feed_forward_type"] = "reglu".into();
    let config = read(&file, &spec(Architecture::Bert)).unwrap();
    assert_eq!(config.layers[0].feed_forward.activation, HiddenActivation::Relu);
}

#[test]
fn contradictory_bert_is_refused() {
    let kinds = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish";
    let cases = [
        (json!({ "hidden_act": "mish" }), format!("hidden_act is \"mish\"; known: {kinds}")),
        (
            json!({ "model_type": "t5" }),
            "model_type is \"t5\", but the manifest has the architecture \"bert\"".to_owned(),
        ),
        (
            json!({ "max_position_embeddings": 9 }),
            "max_position_embeddings allows 9 positions, fewer than max_sequence_length 10"
                .to_owned(),
        ),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0".to_owned()),
        (
            json!({ "num_attention_heads": 3 }),
            "hidden_size 8 is not a multiple of num_attention_heads 3".to_owned(),
        ),
        (json!({ "type_vocab_size": 0 }), "type_vocab_size is 0".to_owned()),
        (
            json!({ "num_hidden_layers": 513 }),
            "num_hidden_layers is 513, above the limit 512".to_owned(),
        ),
        (
            json!({ "layer_norm_eps": -1e-12 }),
            "layer_norm_eps is -0.000000000001, expected above 0 and in the range of f32"
                .to_owned(),
        ),
        (
            json!({ "position_embedding_type": "relative_key" }),
            "position_embedding_type \"relative_key\" is not supported".to_owned(),
        ),
        (
            json!({ "position_embedding_type": "alibi" }),
            "feed_forward_type \"original\" is not supported with position_embedding_type \
             \"alibi\""
                .to_owned(),
        ),
        (
            json!({ "_name_or_path": "jinaai/jina-bert-v2-qk-post-norm" }),
            "_name_or_path \"jinaai/jina-bert-v2-qk-post-norm\" is not supported".to_owned(),
        ),
        (
            json!({ "is_decoder": true }),
            "is_decoder is true; only encoders are supported".to_owned(),
        ),
    ];
    check_refusals(&bert(), &spec(Architecture::Bert), &cases);
}

#[test]
fn deberta_has_tables_of_distances() {
    let name = "tiny-deberta-v2-cross-encoder";
    let deberta = golden(name, Architecture::DebertaV2);
    let buckets = DistanceBuckets { count: 8, farthest: 128 };
    assert_eq!(deberta.relative_bias, Some(RelativeBias::Disentangled(buckets)));
    assert!((deberta.layers[0].attention.scale - 1.0 / 48_f32.sqrt()).abs() < 1e-7);
    let EmbeddingConfig { positions, types, .. } = deberta.embeddings;
    assert_eq!((positions, types), (0, 0));
    let spec = golden_spec(name, Architecture::DebertaV2);
    let with = |fields: Value| {
        let mut file = golden_json(name, "config.json");
        for (key, value) in fields.as_object().unwrap() {
            file[key] = value.clone();
        }
        read(&file, &spec)
    };
    // Published files have one text.
    assert_eq!(with(json!({ "pos_att_type": "c2p|p2c" })), Ok(deberta));
    let positions = with(json!({ "position_biased_input": true, "type_vocab_size": 2 })).unwrap();
    assert_eq!((positions.embeddings.positions, positions.embeddings.types), (128, 2));
    for (fields, expected) in [
        (json!({ "relative_attention": false }), "relative_attention is false; only true"),
        (json!({ "share_att_key": false }), "share_att_key is false; only true is supported"),
        (json!({ "pos_att_type": ["c2p"] }), "pos_att_type is \"c2p\"; only \"c2p|p2c\""),
        (json!({ "pos_att_type": null }), "pos_att_type is \"\"; only \"c2p|p2c\""),
        (json!({ "norm_rel_ebd": "none" }), "norm_rel_ebd is \"none\"; only \"layer_norm\""),
        (json!({ "conv_kernel_size": 3 }), "conv_kernel_size is 3; layers with a convolution"),
        (json!({ "embedding_size": 32 }), "embedding_size is 32; only hidden_size 64"),
        (json!({ "attention_head_size": 8 }), "attention_head_size is 8, expected 16"),
        (json!({ "position_buckets": -1 }), "position_buckets is -1; expected at least 2, and"),
        (json!({ "position_buckets": 254 }), "less than twice the largest distance 128"),
    ] {
        let error = with(fields).unwrap_err();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn padding_id_reduces_roberta_and_mpnet_positions() {
    for (architecture, padding_id, positions) in [
        (Architecture::Camembert, 1, 10),
        (Architecture::Roberta, 1, 10),
        (Architecture::XlmRoberta, 3, 8),
        (Architecture::Mpnet, 3, 10),
    ] {
        let mut file = bert();
        file["model_type"] = architecture.name().into();
        file["pad_token_id"] = padding_id.into();
        file["max_position_embeddings"] = 12.into();
        let mut spec = spec(architecture);
        spec.max_sequence_length = positions;
        assert!(read(&file, &spec).is_ok(), "{architecture}");
        spec.max_sequence_length += 1;
        let error = read(&file, &spec).unwrap_err();
        let max = positions + 1;
        let message = format!(
            "max_position_embeddings allows {positions} positions, fewer than max_sequence_length \
             {max}"
        );
        assert_eq!(error, format!("config.json: {message}"), "{architecture}");
    }
    let mut file = bert();
    file["model_type"] = "roberta".into();
    file["pad_token_id"] = 5.into();
    let error = read(&file, &spec(Architecture::Roberta)).unwrap_err();
    assert_eq!(error, "config.json: pad_token_id 5 is outside vocab_size 5");
}

#[test]
fn mpnet_with_other_buckets_is_refused() {
    let mut file = bert();
    file["model_type"] = "mpnet".into();
    file["max_position_embeddings"] = 12.into();
    file["relative_attention_num_buckets"] = 64.into();
    let error = read(&file, &spec(Architecture::Mpnet)).unwrap_err();
    assert_eq!(error, "config.json: relative_attention_num_buckets is 64; MPNet has 32");
}
