//! Rounds weights to 8-bit integers: the rounding of a row, and the channels that share a scale.
//!
//! A weight is `integer · scale`, where the scale belongs to one output and one block of inputs.
//! The few weights that are far larger than the others of their output are outliers and stay exact.
//! The engine quantizes its activations in the same blocks, so that a large channel makes the steps
//! of its own block coarser and of no other block.
//!
//! The engine rounds weights that are stored as floats by the same rules as `caxton model pack`, so
//! that both give the same integers. This module is pure: it knows neither files nor the packed
//! form.

/// Largest magnitude of an integer: the range of an `i8` that is symmetric about 0.
pub(crate) const STEPS: f32 = 127.0;
/// Maximum number of outliers of one output.
const OUTLIERS: usize = 4;
/// Smallest ratio of an outlier to the weight that is next in magnitude.
const OUTLIER_RATIO: f32 = 2.0;
/// Maximum number of channels in a block.
const BLOCK: usize = 128;
/// Number of hidden channels in the first block, which holds the large ones.
const LARGE: usize = 16;

/// Weights that [`find_outliers`] compares at once.
const LANES: usize = 16;
/// The number 1.5 · 2²³. Adjacent f32 values of this magnitude differ by 1, so adding it to a small
/// float rounds that float to the nearest integer and leaves the integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Quantized weights of one output.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QuantizedRow {
    /// One integer for each input; 0 for an outlier.
    pub(crate) integers: Vec<i8>,
    /// One scale for each block of inputs.
    pub(crate) scales: Vec<f32>,
    /// Input and exact weight of each outlier, the largest first.
    pub(crate) outliers: Vec<(usize, f32)>,
}

impl QuantizedRow {
    /// Rounds `weights`, which must be finite, in blocks of inputs that end at `ends`. The largest
    /// weight of a block becomes at most `steps`, which must be at most [`STEPS`].
    pub(crate) fn round_to(steps: f32, weights: &[f32], ends: &[usize]) -> Self {
        let mut row = Self::default();
        row.round(steps, &mut weights.to_vec(), ends);
        row
    }

    /// Rounds like [`round_to`](Self::round_to) and reuses the memory of this row. Sets outliers to
    /// 0 in `weights`.
    pub(crate) fn round(&mut self, steps: f32, weights: &mut [f32], ends: &[usize]) {
        find_outliers(weights, &mut self.outliers);
        for &(input, _) in &self.outliers {
            weights[input] = 0.0;
        }
        self.integers.resize(weights.len(), 0);
        self.scales.clear();
        let mut start = 0;
        for &end in ends {
            let block = &weights[start..end];
            let scale = step(block, steps);
            for (integer, weight) in self.integers[start..end].iter_mut().zip(block) {
                let [lowest, ..] = (weight / scale + ROUND).to_bits().to_le_bytes();
                *integer = lowest.cast_signed();
            }
            self.scales.push(scale);
            start = end;
        }
    }
}

/// Returns the scale of `block`, the step between two adjacent integers. The largest magnitude in
/// the block is at most `steps` times the scale.
///
/// The scale is rounded up to a bf16, so that its two zero bytes compress well. This saves 0.5 % of
/// a package of all-MiniLM-L6-v2 and raises the relative error of its matrices from 0.00879 to
/// 0.00882.
fn step(block: &[f32], steps: f32) -> f32 {
    const DROPPED: u32 = (1 << 16) - 1;
    // Positive floats sort like their bits, so the fold may compare bits. In the rounding below, a
    // carry out of the mantissa correctly increments the exponent.
    let largest = block.iter().fold(0, |largest, weight| weight.abs().to_bits().max(largest));
    let step = f32::from_bits(largest) / steps;
    // The block is zero, or so small that a subnormal scale would lose bits. A scale of 1 rounds it
    // to zeros.
    if !step.is_normal() {
        return 1.0;
    }
    f32::from_bits((step.to_bits() + DROPPED) & !DROPPED)
}

/// Finds the outliers among the weights of one output, the largest first.
///
/// The outliers are the weights above the first gap: sorted by magnitude, the first weight that is
/// at least [`OUTLIER_RATIO`] times the next one is the last outlier. At most [`OUTLIERS`] weights
/// qualify.
fn find_outliers(weights: &[f32], largest: &mut Vec<(usize, f32)>) {
    largest.clear();
    for (part, of_part) in weights.chunks(LANES).enumerate() {
        // Skip a part in which no weight exceeds the fifth largest so far. After the first parts,
        // this test skips most of them, and it compiles to vector instructions.
        let least = largest.get(OUTLIERS).map_or(-1.0, |(_, weight)| weight.abs());
        if !of_part.iter().fold(false, |larger, weight| larger | (weight.abs() > least)) {
            continue;
        }
        for (input, &weight) in (part * LANES..).zip(of_part) {
            let place = largest.partition_point(|(_, other)| other.abs() >= weight.abs());
            if place <= OUTLIERS {
                largest.insert(place, (input, weight));
                largest.truncate(OUTLIERS + 1);
            }
        }
    }
    // Do not extract an outlier when the next weight is 0: the scale of the block represents a
    // single value exactly, so an outlier saves nothing.
    let stands_out = |pair: &[(usize, f32)]| {
        let [larger, next] = [pair[0].1.abs(), pair[1].1.abs()];
        next > 0.0 && larger >= OUTLIER_RATIO * next
    };
    largest.truncate(largest.windows(2).position(stands_out).map_or(0, |first| first + 1));
}

/// Returns the order of the hidden channels: first the [`LARGE`] channels that some LayerNorm makes
/// largest, then the others in their original order.
///
/// The output of a LayerNorm is `weight · z + bias`, where `z` rarely exceeds 3 in magnitude. Each
/// item of `norms` is the weight and the bias of one LayerNorm, both of length `channels`.
pub(crate) fn channel_order(norms: &[[Vec<f32>; 2]], channels: usize) -> Vec<usize> {
    let mut sizes = vec![0.0_f32; channels];
    for [weight, bias] in norms {
        let of_norm: Vec<f32> =
            weight.iter().zip(bias).map(|(weight, bias)| 3.0 * weight.abs() + bias.abs()).collect();
        let mut sorted = of_norm.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let median = sorted.get(channels / 2).copied().unwrap_or(1.0).max(f32::MIN_POSITIVE);
        for (size, value) in sizes.iter_mut().zip(of_norm) {
            *size = size.max(value / median);
        }
    }
    let mut order: Vec<usize> = (0..channels).collect();
    order.sort_by(|&a, &b| sizes[b].total_cmp(&sizes[a]));
    // Channels outside the first block keep their original order.
    order[LARGE.min(channels)..].sort_unstable();
    order
}

/// Returns whether the matrix `name` multiplies rows of the `channels` hidden channels, which are
/// in the order of [`channel_order`].
///
/// Any matrix with `channels` inputs counts, except an embedding table, whose rows are read one at
/// a time, the output product of attention, whose inputs come from the heads, and the second
/// product of a feed-forward layer.
pub(crate) fn reads_hidden(name: &str, inputs: usize, channels: usize) -> bool {
    inputs == channels && !is_table(name) && !reads_heads(name) && !reads_intermediate(name)
}

/// Returns the ends of the blocks of inputs that share a scale in the matrix `name` of an encoder
/// with `channels` hidden channels.
pub(crate) fn input_blocks(name: &str, inputs: usize, channels: usize) -> Vec<usize> {
    if is_table(name) || reads_heads(name) {
        vec![inputs]
    } else if reads_hidden(name, inputs, channels) {
        hidden_blocks(inputs)
    } else {
        even_blocks(inputs)
    }
}

/// Returns whether the matrix is the table of word embeddings of an encoder, which may be stored in
/// 4 bits. The suffixes are the tensor names of all families.
pub(crate) fn is_word_table(name: &str) -> bool {
    ["word_embeddings.weight", "tok_embeddings.weight", "embed_tokens.weight"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// Returns whether the matrix is a table, of which rows are read one at a time.
fn is_table(name: &str) -> bool {
    name.ends_with("embed_tokens.weight")
        || name.contains("embedding") && !name.ends_with("embedding_projection.weight")
}

/// Returns whether the matrix multiplies the output of the attention heads, whose channels all have
/// a similar magnitude. The suffixes are the tensor names of all families.
fn reads_heads(name: &str) -> bool {
    [
        "attention.output.dense.weight",
        "out_lin.weight",
        "attn.o.weight",
        "attn.Wo.weight",
        "attn.out_proj.weight",
        "o_proj.weight",
    ]
    .iter()
    .any(|suffix| name.ends_with(suffix))
}

/// Returns whether the matrix multiplies the vectors between two products of a feed-forward layer,
/// or the second vectors of EmbeddingGemma 2, which may be as long as the token vectors.
fn reads_intermediate(name: &str) -> bool {
    [
        "output.dense.weight",
        "lin2.weight",
        "fc2.weight",
        "mlp.wo.weight",
        "mlp.Wo.weight",
        "down_proj.weight",
        "per_layer_projection.weight",
    ]
    .iter()
    .any(|suffix| name.ends_with(suffix))
}

/// Returns the ends of the blocks of hidden channels in the order of [`channel_order`].
pub(crate) fn hidden_blocks(channels: usize) -> Vec<usize> {
    let large = LARGE.min(channels);
    let mut ends = vec![large];
    ends.extend(even_blocks(channels - large).into_iter().map(|end| large + end));
    ends
}

/// Returns the ends of blocks of nearly equal size. Each end except the last is a multiple of 4.
pub(crate) fn even_blocks(channels: usize) -> Vec<usize> {
    let blocks = channels.div_ceil(BLOCK);
    (1..=blocks)
        .map(|block| (channels * block / blocks).next_multiple_of(4).min(channels))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rounds value by value, by the definition in the module documentation.
    fn defined(steps: f32, weights: &[f32], ends: &[usize]) -> QuantizedRow {
        let mut inputs: Vec<usize> = (0..weights.len()).collect();
        inputs.sort_by(|&a, &b| weights[b].abs().total_cmp(&weights[a].abs()));
        inputs.truncate(OUTLIERS + 1);
        let stands_out = |pair: &[usize]| {
            let next = weights[pair[1]].abs();
            next > 0.0 && weights[pair[0]].abs() >= OUTLIER_RATIO * next
        };
        let outliers = inputs.windows(2).position(stands_out).map_or(0, |first| first + 1);
        let mut row = QuantizedRow::default();
        row.outliers.extend(inputs[..outliers].iter().map(|&input| (input, weights[input])));
        let mut start = 0;
        for &end in ends {
            let inlier = |input: usize| {
                if inputs[..outliers].contains(&input) { 0.0 } else { weights[input] }
            };
            let block: Vec<f32> = (start..end).map(inlier).collect();
            let largest = block.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
            let mut scale = largest / steps;
            if scale.is_normal() {
                let cut = scale.to_bits() & 0xffff_0000;
                let above = if cut == scale.to_bits() { cut } else { cut + 0x1_0000 };
                scale = f32::from_bits(above);
            } else {
                scale = 1.0;
            }
            row.scales.push(scale);
            #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
            row.integers.extend(block.iter().map(|w| (w / scale).round_ties_even() as i8));
            start = end;
        }
        row
    }

    /// Returns a strategy for rows of weights: ordinary values, multiples of 0.5 that produce ties
    /// and equal values, and values at the limits of f32.
    fn weights() -> impl Strategy<Value = Vec<f32>> {
        let weight = prop_oneof![
            8 => -1.0_f32..1.0,
            4 => (-8_i8..8).prop_map(|half| f32::from(half) * 0.5),
            1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        ];
        let even = (-254_i16..=254).prop_map(|half| f32::from(half) * 0.5);
        prop_oneof![
            prop::collection::vec(weight, 0..200),
            prop::collection::vec(even, 1..200),
            prop::collection::vec(-1e-36_f32..1e-36, 1..100),
        ]
    }

    proptest! {
        #[test]
        fn rounding_matches_its_definition(
            rows in prop::collection::vec(weights(), 1..4),
            steps in prop_oneof![Just(STEPS), Just(31.0_f32)],
            block in 1_usize..20,
        ) {
            // Each row reuses the memory of the row before it.
            let mut row = QuantizedRow::default();
            for mut weights in rows {
                let inputs = weights.len();
                let ends: Vec<usize> =
                    (0..inputs).step_by(4 * block).map(|s| (s + 4 * block).min(inputs)).collect();
                let expected = defined(steps, &weights, &ends);
                row.round(steps, &mut weights, &ends);
                prop_assert_eq!(&row, &expected);
            }
        }
    }

    #[test]
    fn row_is_rounded_by_blocks_without_outliers() {
        let row = QuantizedRow::round_to(STEPS, &[0.5, -1.27, 0.0, 9.0, 2.54, -0.02], &[4, 6]);
        assert_eq!(row.integers, [50, -127, 0, 0, 127, -1]);
        assert_eq!(row.outliers, [(3, 9.0)]);
        // The exact scales are 0.01 and 0.02; the expected ones are the next bf16 values above.
        assert_eq!(row.scales.iter().map(|scale| scale.to_bits() & 0xffff).max(), Some(0));
        assert!((0.01..0.010_04).contains(&row.scales[0]), "{:?}", row.scales);
        assert!((0.02..0.020_08).contains(&row.scales[1]), "{:?}", row.scales);
        let zeros = QuantizedRow::round_to(STEPS, &[0.0; 3], &[3]);
        assert_eq!(
            (zeros.integers.as_slice(), zeros.scales.as_slice()),
            (&[0, 0, 0][..], &[1.0][..])
        );
        assert!(QuantizedRow::round_to(STEPS, &[], &[]).integers.is_empty());
    }

    #[test]
    fn outliers_are_the_weights_above_first_gap() {
        let cases: [(&[f32], &[usize]); 8] = [
            (&[0.1, 6.0, -0.2, 0.15], &[1]),
            (&[0.1, 6.0, -0.2, -5.0], &[1, 3]),
            (&[1.0, 0.6, -0.9, 0.55], &[]),
            (&[1.0, 0.5], &[0]),
            (&[7.0, 0.0, 0.0], &[]),
            (&[7.0], &[]),
            (&[], &[]),
            // Five equal weights are not outliers: they set the magnitude of the row.
            (&[9.0, 9.0, 9.0, 9.0, 9.0, 0.1], &[]),
        ];
        for (row, expected) in cases {
            let mut found = Vec::new();
            find_outliers(row, &mut found);
            let mut found: Vec<usize> = found.into_iter().map(|(input, _)| input).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{row:?}");
        }
    }

    #[test]
    fn large_channels_come_first() {
        let weight: Vec<f32> =
            (0..40).map(|channel| if channel == 30 { 9.0 } else { 1.0 }).collect();
        let bias: Vec<f32> =
            (0..40).map(|channel| if channel == 20 { -90.0 } else { 0.0 }).collect();
        let order = channel_order(&[[weight, bias]], 40);
        assert_eq!(order[..4], [20, 30, 0, 1]);
        assert!(order[LARGE..].is_sorted());
        let mut all = order;
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
        assert_eq!(channel_order(&[], 3), [0, 1, 2]);
    }

    #[test]
    fn input_blocks_follow_name_and_count() {
        for (name, inputs, expected) in [
            ("encoder.layer.0.attention.self.query.weight", 384, hidden_blocks(384)),
            ("encoder.layer.0.output.dense.weight", 1536, even_blocks(1536)),
            // Vectors of another kind may be as long as the token vectors.
            ("encoder.layer.0.output.dense.weight", 384, even_blocks(384)),
            ("transformer.layer.0.ffn.lin2.weight", 384, even_blocks(384)),
            ("encoder.layer.0.mlp.down_proj.weight", 384, even_blocks(384)),
            ("encoder.layer.0.mlp.wo.weight", 384, even_blocks(384)),
            ("encoder.layers.0.mlp.fc2.weight", 384, even_blocks(384)),
            ("encoder.layers.1.mlp.experts.0.fc2.weight", 384, even_blocks(384)),
            ("encoder.layers.1.mlp.experts.0.fc1.weight", 384, hidden_blocks(384)),
            ("layers.0.ple_block.per_layer_projection.weight", 384, even_blocks(384)),
            ("layers.0.ple_block.per_layer_input_gate.weight", 384, hidden_blocks(384)),
            ("ple.per_layer_model_projection.weight", 384, hidden_blocks(384)),
            ("encoder.layer.0.attention.output.dense.weight", 384, vec![384]),
            ("transformer.layer.0.attention.out_lin.weight", 384, vec![384]),
            ("encoder.layer.0.attention.attn.o.weight", 384, vec![384]),
            ("encoder.layer.0.attention.qkv_proj.weight", 384, hidden_blocks(384)),
            ("encoder.layer.0.attention.o_proj.weight", 384, vec![384]),
            ("encoder.layers.0.attn.out_proj.weight", 384, vec![384]),
            ("layers.0.attn.Wo.weight", 384, vec![384]),
            ("layers.0.mlp.Wi.weight", 384, hidden_blocks(384)),
            ("layers.0.mlp.Wo.weight", 1152, even_blocks(1152)),
            // The heads together may be wider than the hidden channels.
            ("model.layers.0.self_attn.o_proj.weight", 2048, vec![2048]),
            ("model.embed_tokens.weight", 384, vec![384]),
            ("embeddings.tok_embeddings.weight", 384, vec![384]),
            ("embedding_projection.weight", 384, hidden_blocks(384)),
            ("embeddings.word_embeddings.weight", 384, vec![384]),
            ("embedding.weight", 256, vec![256]),
            ("embeddings", 256, vec![256]),
        ] {
            assert_eq!(input_blocks(name, inputs, 384), expected, "{name}");
            let hidden = reads_hidden(name, inputs, 384);
            assert_eq!(hidden, expected == hidden_blocks(384), "{name}");
        }
    }

    #[test]
    fn blocks_end_at_the_channel_count() {
        assert_eq!(hidden_blocks(384), [16, 140, 264, 384]);
        assert_eq!(hidden_blocks(60), [16, 60]);
        assert_eq!(hidden_blocks(8), [8]);
        assert_eq!(even_blocks(1536), (1..=12).map(|block| block * 128).collect::<Vec<_>>());
        assert_eq!(even_blocks(100), [100]);
        for channels in 1..800 {
            for ends in [hidden_blocks(channels), even_blocks(channels)] {
                assert_eq!(ends.last(), Some(&channels));
                let starts = std::iter::once(0).chain(ends.iter().copied());
                assert!(starts.zip(&ends).all(|(start, &end)| start < end && start % 4 == 0));
            }
        }
    }
}
