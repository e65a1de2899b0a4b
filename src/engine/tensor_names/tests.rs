//! Tests: the tensors of the golden models, and the blocks of their int8 matrices.

use std::collections::BTreeSet;

use super::conversion::prefixes;
use super::*;
use crate::base::quantization::{
    even_blocks, hidden_blocks, input_blocks, is_word_table, reads_hidden,
};
use crate::engine::Architecture;
use crate::engine::config::tests::{GOLDEN, golden, golden_file};
use crate::engine::config::{EncoderConfig, ExpertsConfig, LayerConfig};
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
