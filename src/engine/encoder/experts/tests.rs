//! Tests: a model with experts compared with its definition, which computes one value after another
//! in f64.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::*;
use crate::engine::config::tests::{fused, nomic_experts, spec};
use crate::engine::linear::OperandFormat;
use crate::engine::simd::Int8RowFormat;
use crate::engine::tensor_names::encoder_tensors;
use crate::engine::tests::{opened, tokenizer};
use crate::engine::weights::tests::{f32s, file};
use crate::engine::{
    Architecture, Embedder, EngineOptions, ModelFiles, ModelSpec, Output, Precision, load,
};

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const EXPERTS: usize = 4;

/// Texts of which no token is near a change of its experts: its second and third score differ by
/// more than 0.4. Together the texts use every expert.
const TEXTS: [&[u32]; 3] = [&[7], &[1, 2, 3, 4, 5], &[39, 20, 11, 30, 5, 9]];

/// Shape and values of each tensor.
type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn model_spec() -> ModelSpec {
    ModelSpec { dimensions: HIDDEN, max_sequence_length: 200, ..spec(Architecture::NomicBert) }
}

/// Returns the weights of the model of [`nomic_experts`]. [`TEXTS`] depends on the first state of
/// the generator.
fn weights() -> Weights {
    let mut state = 393_u64;
    let mut value = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The 24 highest bits, as a number from -0.5 to 0.5.
        (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
    };
    let config = fused(nomic_experts().to_string().as_bytes(), &model_spec()).unwrap();
    let tensors = encoder_tensors(&config).map(|tensor| {
        let is_norm = tensor.shape.len() == 1 && tensor.name.ends_with(".weight");
        let count: usize = tensor.shape.iter().product();
        let values = (0..count).map(|_| if is_norm { 1.0 + value() } else { 0.5 * value() });
        (tensor.name, (tensor.shape, values.collect()))
    });
    tensors.collect()
}

/// Returns the weights as a safetensors file.
fn weights_file() -> Vec<u8> {
    let weights = weights();
    let tensors = weights
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), Dtype::F32, shape.as_slice(), f32s(values)));
    file(&tensors.collect::<Vec<_>>())
}

fn embedder(precision: Precision, threads: usize) -> Box<dyn Embedder> {
    let files: ModelFiles = ModelFiles {
        config: nomic_experts().to_string().into_bytes(),
        tokenizer: tokenizer(40),
        weights: Box::new(weights_file()),
        dense: Vec::new(),
    };
    let options = EngineOptions { threads, batch_tokens: 1024, precision };
    load(&model_spec(), files, options).unwrap().embedder
}

/// The definition of the model.
struct Definition(Weights);

type Rows = Vec<Vec<f64>>;

impl Definition {
    fn values(&self, name: &str) -> Vec<f64> {
        self.0[name].1.iter().copied().map(f64::from).collect()
    }

    /// Multiplies each of `rows` with the matrix `name` and adds its bias, if it has one.
    fn linear(&self, name: &str, rows: &Rows) -> Rows {
        let matrix = self.values(&format!("{name}.weight"));
        let bias = format!("{name}.bias");
        let bias = self.0.contains_key(&bias).then(|| self.values(&bias));
        let product = |row: &Vec<f64>| {
            let outputs = matrix.chunks_exact(row.len()).enumerate().map(|(output, weights)| {
                let bias = bias.as_ref().map_or(0.0, |bias| bias[output]);
                weights.iter().zip(row).map(|(weight, value)| weight * value).sum::<f64>() + bias
            });
            outputs.collect()
        };
        rows.iter().map(product).collect()
    }

    /// Normalizes the sum of `rows` and `others`.
    fn norm(&self, name: &str, rows: &Rows, others: &Rows) -> Rows {
        let [weight, bias] = ["weight", "bias"].map(|part| self.values(&format!("{name}.{part}")));
        let normalized = |(row, other): (&Vec<f64>, &Vec<f64>)| {
            let sum: Vec<f64> = row.iter().zip(other).map(|(a, b)| a + b).collect();
            let mean = sum.iter().sum::<f64>() / HIDDEN as f64;
            let variance = sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / HIDDEN as f64;
            let values = sum.iter().enumerate().map(|(channel, value)| {
                (value - mean) / (variance + 1e-5).sqrt() * weight[channel] + bias[channel]
            });
            values.collect()
        };
        rows.iter().zip(others).map(normalized).collect()
    }

    fn attention(&self, layer: &str, x: &Rows) -> Rows {
        const WIDTH: usize = HIDDEN / HEADS;
        let states = self.linear(&format!("{layer}.attn.Wqkv"), x);
        let part = |part: usize, head: usize| -> Rows {
            let start = part * HIDDEN + head * WIDTH;
            states.iter().map(|row| row[start..][..WIDTH].to_vec()).collect()
        };
        let mut attended = vec![Vec::new(); x.len()];
        for head in 0..HEADS {
            let [queries, keys] = [0, 1].map(|index| rotated(&part(index, head)));
            let values = part(2, head);
            for (query, attended) in queries.iter().zip(&mut attended) {
                let score = |key: &Vec<f64>| {
                    query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (WIDTH as f64).sqrt()
                };
                let weights = probabilities(&keys.iter().map(score).collect::<Vec<_>>());
                attended.extend((0..WIDTH).map(|channel| {
                    let of_tokens = weights.iter().zip(&values);
                    of_tokens.map(|(weight, value)| weight * value[channel]).sum::<f64>()
                }));
            }
        }
        self.linear(&format!("{layer}.attn.out_proj"), &attended)
    }

    fn feed_forward(&self, layer: &str, x: &Rows) -> Rows {
        let products = |parts: [&str; 2], x: &Rows| {
            let mut wide = self.linear(&format!("{layer}.mlp.{}", parts[0]), x);
            wide.iter_mut().flatten().for_each(|value| *value = gelu(*value));
            self.linear(&format!("{layer}.mlp.{}", parts[1]), &wide)
        };
        if !self.0.contains_key(&format!("{layer}.mlp.router.layer.weight")) {
            return products(["fc1", "fc2"], x);
        }
        let bias = self.values(&format!("{layer}.mlp.experts.bias"));
        let of_token = |(row, scores): (&Vec<f64>, Vec<f64>)| {
            let weights = probabilities(&scores);
            let mut order: Vec<usize> = (0..EXPERTS).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            assert!(scores[order[1]] - scores[order[2]] > 0.4, "{scores:?}");
            let mut sum = bias.clone();
            for expert in &order[..2] {
                let parts = ["fc1", "fc2"].map(|part| format!("experts.{expert}.{part}"));
                let output = products(parts.each_ref().map(String::as_str), &vec![row.clone()]);
                for (sum, output) in sum.iter_mut().zip(&output[0]) {
                    *sum += weights[*expert] * output;
                }
            }
            sum
        };
        let scores = self.linear(&format!("{layer}.mlp.router.layer"), x);
        x.iter().zip(scores).map(of_token).collect()
    }

    /// Returns the token vectors of `text`.
    fn token_states(&self, text: &[u32]) -> Vec<f64> {
        let words = self.values("embeddings.word_embeddings.weight");
        let word = |&id: &u32| words[id as usize * HIDDEN..][..HIDDEN].to_vec();
        let types = vec![self.values("embeddings.token_type_embeddings.weight"); text.len()];
        let mut x = self.norm("emb_ln", &text.iter().map(word).collect(), &types);
        for layer in ["encoder.layers.0", "encoder.layers.1"] {
            x = self.norm(&format!("{layer}.norm1"), &x, &self.attention(layer, &x));
            x = self.norm(&format!("{layer}.norm2"), &x, &self.feed_forward(layer, &x));
        }
        x.concat()
    }
}

/// Rotates each row of a head by its position.
fn rotated(rows: &Rows) -> Rows {
    let rotate = |(position, row): (usize, &Vec<f64>)| {
        let half = row.len() / 2;
        let mut rotated = row.clone();
        for pair in 0..half {
            let frequency = 10_000_f64.powf(-(pair as f64) / half as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            rotated[pair] = row[pair] * cos - row[pair + half] * sin;
            rotated[pair + half] = row[pair + half] * cos + row[pair] * sin;
        }
        rotated
    };
    rows.iter().enumerate().map(rotate).collect()
}

fn probabilities(scores: &[f64]) -> Vec<f64> {
    let sum: f64 = scores.iter().map(|score| score.exp()).sum();
    scores.iter().map(|score| score.exp() / sum).collect()
}

/// Computes `x·Φ(x)` with the Taylor series of the error function.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut power, mut sum) = (z, z);
    for n in (1..200_u32).map(f64::from) {
        power *= -z * z / n;
        sum += power / (2.0 * n + 1.0);
    }
    0.5 * x * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
}

/// Returns the lowest cosine of the token vectors `found` and `expected`.
fn lowest_cosine(found: &[f32], expected: &[f64]) -> f64 {
    let tokens = found.chunks_exact(HIDDEN).zip(expected.chunks_exact(HIDDEN));
    let cosines = tokens.map(|(found, expected)| {
        let found: Vec<f64> = found.iter().copied().map(f64::from).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&found, expected) / (dot(&found, &found) * dot(expected, expected)).sqrt()
    });
    cosines.fold(1.0, f64::min)
}

#[test]
fn token_vectors_match_their_definition() {
    let definition = Definition(weights());
    let expected: Vec<f64> = TEXTS.iter().flat_map(|text| definition.token_states(text)).collect();
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for threads in [1, 2] {
        let found = embedder(Precision::F32, threads).compute(&TEXTS, Output::TokenStates).unwrap();
        assert_eq!(found.len(), expected.len());
        let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
        let error = errors.fold(0.0, f64::max) / largest;
        assert!(error < 2e-5, "{error}");
        for (precision, least) in [(Precision::Bf16, 0.9995), (Precision::Int8, 0.995)] {
            let found = embedder(precision, threads).compute(&TEXTS, Output::TokenStates).unwrap();
            let cosine = lowest_cosine(&found, &expected);
            assert!(cosine > least, "{precision:?}: {cosine}");
        }
    }
}

#[test]
fn vectors_do_not_depend_on_batch_or_threads() {
    // Longer than a block of rows.
    let long: Vec<u32> = (0..150).map(|index| index * 7 % 40).collect();
    let texts: Vec<&[u32]> = std::iter::once(long.as_slice()).chain(TEXTS).collect();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let one = embedder(precision, 1);
        let expected = one.compute(&texts, Output::TokenStates).unwrap();
        for threads in [1, 2, 3] {
            let embedder = embedder(precision, threads);
            let batch = embedder.compute(&texts, Output::TokenStates).unwrap();
            assert!(batch == expected, "{precision:?} with {threads} threads");
            let single = texts
                .iter()
                .flat_map(|text| embedder.compute(&[text], Output::TokenStates).unwrap());
            assert!(single.eq(expected.iter().copied()), "{precision:?}: single texts");
        }
    }
}

#[test]
fn memory_of_experts_is_known_in_advance() {
    let spec = model_spec();
    let config = fused(nomic_experts().to_string().as_bytes(), &spec).unwrap();
    let longest = spec.max_sequence_length;
    for format in
        [OperandFormat::F32, OperandFormat::Bf16, OperandFormat::Int8(Int8RowFormat::Unsigned)]
    {
        let file = opened(Box::new(weights_file()), &config);
        let formats = (format, OperandFormat::F32);
        let encoder = Encoder::read(&config, longest, file, formats).unwrap();
        let found = encoder.bytes() - encoder.words.bytes();
        assert_eq!(found, Encoder::bytes_of(&config, longest, formats), "{format:?}");
    }
}

#[test]
fn rows_are_grouped_by_their_experts() {
    let mut scores = [0.0, 3.0, 1.0, 2.0, 5.0, 0.0, 0.0, 4.0];
    let routes = Routes::new(&mut scores, 4, 2);
    let found: Vec<_> = routes.of_rows.iter().map(|route| (route.expert, route.output)).collect();
    assert_eq!(found, [(1, 1), (3, 2), (0, 0), (3, 3)]);
    let groups: Vec<_> = routes.of_experts().collect();
    assert_eq!(groups, [(0, &[1][..]), (1, &[0][..]), (3, &[0, 1][..])]);
    // The factors are probabilities among all experts, and do not sum to 1.
    let sum = 1.0 + 1_f32.exp() + 2_f32.exp() + 3_f32.exp();
    for (route, score) in routes.of_rows.iter().zip([3_f32, 2.0]) {
        assert!((route.weight - score.exp() / sum).abs() < 1e-6, "{route:?}");
    }
}

#[test]
fn scores_without_order_select_experts() {
    let mut scores = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, 1.0, 1.0];
    let routes = Routes::new(&mut scores, 3, 2);
    assert_eq!(routes.of_rows.len(), 4);
    // Of equal scores, those of the first experts count.
    assert_eq!([routes.of_rows[2].expert, routes.of_rows[3].expert], [0, 1]);
    assert_eq!(routes.rows.len(), 4);
}
