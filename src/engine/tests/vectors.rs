//! Tests: vectors against their definition, and in other passes, threads and precisions.

use proptest::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::opened;
use super::{OPTIONS, golden_file, golden_spec};
#[cfg(target_arch = "x86_64")]
use crate::engine::amx;
use crate::engine::config::tests::fused;
#[cfg(target_arch = "x86_64")]
use crate::engine::fused::FusedEmbedder;
use crate::engine::pooling::PoolingHead;
#[cfg(target_arch = "x86_64")]
use crate::engine::precision;
use crate::engine::reference::Reference;
#[cfg(target_arch = "x86_64")]
use crate::engine::simd::Isa;
use crate::engine::{Architecture, Embedder, EngineOptions, ModelFiles, Output, Precision, load};

fn golden(name: &str, architecture: Architecture) -> Box<dyn Embedder> {
    golden_with(name, architecture, OPTIONS)
}

fn golden_with(
    name: &str,
    architecture: Architecture,
    options: EngineOptions,
) -> Box<dyn Embedder> {
    let files: ModelFiles = ModelFiles {
        config: golden_file(name, "config.json"),
        tokenizer: golden_file(name, "tokenizer.json"),
        weights: Box::new(golden_file(name, "model.safetensors")),
        dense: Vec::new(),
    };
    load(&golden_spec(name, architecture), files, options).unwrap().embedder
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tiled_vectors_are_accurate_and_independent_of_batch() {
    let amx = amx::tests::tiles();
    precision::check_amx(amx).unwrap();
    // The lengths cover one row, rows that two threads share, and more than one tile.
    let texts: Vec<Vec<u32>> = [1_u32, 3, 16, 31, 33, 40]
        .map(|length| (0..length).map(|token| (token * 37 + length) % 240).collect())
        .into();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for (name, architecture) in FUSED {
        let spec = golden_spec(name, architecture);
        let config = fused(&golden_file(name, "config.json"), &spec).unwrap();
        let choice = precision::choose_for(Precision::Bf16, false, Isa::detect(), Ok(amx));
        assert_eq!(choice.report.isa, "amx-bf16");
        let weights = opened(Box::new(golden_file(name, "model.safetensors")), &config);
        let head = PoolingHead::read(&spec, &[]).unwrap();
        let tiled = FusedEmbedder::new(&spec, config, weights, head, choice, OPTIONS).unwrap();
        let exact = golden(name, architecture);
        let together = tiled.embed(&texts).unwrap();
        let mut cosines = Vec::new();
        for (text, found) in texts.iter().zip(together.chunks(spec.dimensions)) {
            assert_eq!(tiled.embed(&[text]).unwrap(), found, "{name}: {} tokens", text.len());
            let expected = exact.embed(&[text]).unwrap();
            cosines.push(found.iter().zip(&expected).map(|(a, b)| a * b).sum::<f32>());
        }
        assert!(cosines.iter().all(|cosine| *cosine >= 0.9995), "{name}: {cosines:?}");
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn vector_is_normalized_mean_of_token_states() {
    let text: &[u32] = &[2, 220, 100, 49, 188, 65, 180, 3];
    // `golden_spec` sets mean pooling for every model.
    for (name, architecture) in FUSED.into_iter().chain(NEWER) {
        let embedder = golden(name, architecture);
        let compute = |output| embedder.compute(&[text], output).unwrap();
        let (vector, raw) = (compute(Output::Vector), compute(Output::Unnormalized));
        let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() > 1e-2, "{name}: {length}");
        let unit: Vec<f32> = raw.iter().map(|value| value / length).collect();
        assert!(largest_difference(&unit, &vector) < 1e-6, "{name}");
        let states = compute(Output::TokenStates);
        let width = raw.len();
        assert_eq!(states.len(), text.len() * width, "{name}");
        let mean = |at: usize| states.iter().skip(at).step_by(width).sum::<f32>() / 8.0;
        let means: Vec<f32> = (0..width).map(mean).collect();
        assert!(largest_difference(&means, &raw) < 1e-5, "{name}");
    }
}

/// Golden models that the fused encoder runs.
const FUSED: [(&str, Architecture); 6] = [
    ("tiny-bert-mean", Architecture::Bert),
    ("tiny-bert-odd", Architecture::Bert),
    ("tiny-distilbert", Architecture::DistilBert),
    ("tiny-roberta", Architecture::Roberta),
    ("tiny-xlm-roberta", Architecture::XlmRoberta),
    ("tiny-mpnet", Architecture::Mpnet),
];

/// Golden models whose layers have other steps than those of BERT.
const NEWER: [(&str, Architecture); 10] = [
    ("tiny-modernbert", Architecture::ModernBert),
    ("tiny-modernbert-silu", Architecture::ModernBert),
    ("tiny-nomic-bert", Architecture::NomicBert),
    ("tiny-gte", Architecture::Gte),
    ("tiny-eurobert", Architecture::EuroBert),
    ("tiny-qwen3", Architecture::Qwen3),
    ("tiny-qwen3-bidirectional", Architecture::Qwen3),
    ("tiny-gemma3-bidirectional", Architecture::Gemma3Text),
    ("tiny-gemma3-causal", Architecture::Gemma3Text),
    ("tiny-embedding-gemma2", Architecture::EmbeddingGemma2),
];

#[test]
fn thread_count_does_not_change_results() {
    // The cases have fewer rows than threads, rows that no step divides evenly, and more rows than
    // one block.
    let lengths: [&[usize]; 5] = [&[1], &[5], &[40], &[23, 2, 9], &[40, 39, 40, 38, 40, 37, 40]];
    for (name, architecture) in FUSED.into_iter().chain(NEWER) {
        for precision in [Precision::F32, Precision::Int8, Precision::Bf16] {
            let [one, three] = [1, 3].map(|threads| {
                golden_with(
                    name,
                    architecture,
                    EngineOptions { threads, batch_tokens: 300, precision },
                )
            });
            for lengths in lengths {
                let texts: Vec<Vec<u32>> = (1..)
                    .zip(lengths)
                    .map(|(text, &length)| {
                        (0_u32..).take(length).map(|id| (id * text * 7) % 240).collect()
                    })
                    .collect();
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                let expected = one.compute(&texts, Output::TokenStates).unwrap();
                let found = three.compute(&texts, Output::TokenStates).unwrap();
                assert!(found == expected, "{name} {precision} {lengths:?}");
            }
        }
    }
}

proptest! {
    // Use few cases, because each one loads every model.
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn vector_is_independent_of_batch(
        texts in prop::collection::vec(prop::collection::vec(0_u32..240, 1..40), 1..12),
    ) {
        for (name, architecture) in FUSED.into_iter().chain(NEWER) {
            let embedder = golden(name, architecture);
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            for output in [Output::Vector, Output::Unnormalized, Output::TokenStates] {
                let together = embedder.compute(&texts, output).unwrap();
                let mut rest = together.as_slice();
                for text in &texts {
                    let alone = embedder.compute(&[text], output).unwrap();
                    let (own, others) = rest.split_at(alone.len());
                    prop_assert_eq!(&alone, own, "{} {:?}", name, output);
                    rest = others;
                }
                prop_assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn vectors_match_the_reference(
        texts in prop::collection::vec(prop::collection::vec(0_u32..240, 1..40), 1..6),
    ) {
        for (name, architecture) in FUSED {
            let embedder = golden(name, architecture);
            let spec = golden_spec(name, architecture);
            let config = fused(&golden_file(name, "config.json"), &spec).unwrap();
            let reference = Reference::read(&config, &golden_file(name, "model.safetensors"));
            let head = PoolingHead::read(&spec, &[]).unwrap();
            for text in &texts {
                let found = embedder.embed(&[text]).unwrap();
                let states = reference.states(text);
                let expected = head.apply(&states, config.hidden_size, Output::Vector);
                let difference = largest_difference(&found, &expected);
                prop_assert!(difference <= 2e-5, "{} differs by {}", name, difference);
                // The tolerance is larger, because LayerNorm scales a state to a length of √hidden.
                let found = embedder.compute(&[text], Output::TokenStates).unwrap();
                let difference = largest_difference(&found, &states);
                prop_assert!(difference <= 2e-4, "{} states differ by {}", name, difference);
            }
        }
    }
}
