//! Integers in place of values: how rows of weights and of activations are rounded, and which channels
//! share a scale.
//!
//! A weight is `integer · scale` of its output and block of inputs, but for the few that are far larger
//! than the others, which are kept as they are. An activation is `(byte − zero) · scale`; a token has such a pair for
//! each block of its channels, so that a large channel costs those of its own block their steps and no
//! others.
//!
//! Pure. Knows nothing of the packed form.

/// Most outliers of one output.
const OUTLIERS: usize = 4;
/// How much larger than the next an outlier is.
const OUTLIER_RATIO: f32 = 2.0;
/// Channels of a block at most.
const BLOCK: usize = 128;
/// Hidden channels in the block of the large ones.
const LARGE: usize = 16;

/// The weights of one output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct IntegerRow {
    /// One for each input; 0 for an outlier.
    pub(super) integers: Vec<i8>,
    /// Of each block of inputs.
    pub(super) scales: Vec<f32>,
    /// Input and weight of what is kept as it is.
    pub(super) outliers: Vec<(usize, f32)>,
}

impl IntegerRow {
    /// Rounds `weights`, in blocks of inputs that end at `ends`.
    pub(super) fn round(weights: &[f32], ends: &[usize]) -> Self {
        let mut inliers = weights.to_vec();
        let mut outliers = Vec::new();
        for input in outlier_inputs(weights) {
            outliers.push((input, std::mem::take(&mut inliers[input])));
        }
        let mut row = Self { integers: vec![0; weights.len()], scales: Vec::new(), outliers };
        let mut start = 0;
        for &end in ends {
            let block = &inliers[start..end];
            let largest = block.iter().fold(0.0_f32, |max, weight| max.max(weight.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            for (integer, weight) in row.integers[start..end].iter_mut().zip(block) {
                #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
                {
                    *integer = (weight / scale).round_ties_even() as i8;
                }
            }
            row.scales.push(scale);
            start = end;
        }
        row
    }
}

/// The inputs of the outliers among the weights of one output: as few as leave none that stands out.
fn outlier_inputs(weights: &[f32]) -> Vec<usize> {
    let mut largest: Vec<usize> = Vec::with_capacity(OUTLIERS + 2);
    for (input, weight) in weights.iter().enumerate() {
        let place = largest.partition_point(|&other| weights[other].abs() >= weight.abs());
        if place <= OUTLIERS {
            largest.insert(place, input);
            largest.truncate(OUTLIERS + 1);
        }
    }
    // Of a row with a single value, or of zeros, nothing is gained.
    let stands_out = |pair: &[usize]| {
        let [larger, next] = [weights[pair[0]].abs(), weights[pair[1]].abs()];
        next > 0.0 && larger >= OUTLIER_RATIO * next
    };
    largest.truncate(largest.windows(2).position(stands_out).map_or(0, |first| first + 1));
    largest
}

/// The hidden channels, those first that some LayerNorm makes large: its output is `weight · z + bias`
/// with `z` seldom beyond 3.
///
/// A LayerNorm is given as weight and bias, each one value a channel.
pub(super) fn channel_order(norms: &[(&[f32], &[f32])], channels: usize) -> Vec<usize> {
    let mut sizes = vec![0.0_f32; channels];
    for (weight, bias) in norms {
        let of_norm: Vec<f32> = weight
            .iter()
            .zip(*bias)
            .map(|(weight, bias)| 3.0 * weight.abs() + bias.abs())
            .collect();
        let mut sorted = of_norm.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let median = sorted.get(channels / 2).copied().unwrap_or(1.0).max(f32::MIN_POSITIVE);
        for (size, value) in sizes.iter_mut().zip(of_norm) {
            *size = size.max(value / median);
        }
    }
    let mut order: Vec<usize> = (0..channels).collect();
    order.sort_by(|&a, &b| sizes[b].total_cmp(&sizes[a]));
    // The others keep their order.
    order[LARGE.min(channels)..].sort_unstable();
    order
}

/// Ends of the blocks of hidden channels in the order of [`channel_order`].
pub(super) fn hidden_blocks(channels: usize) -> Vec<usize> {
    let large = LARGE.min(channels);
    let mut ends = vec![large];
    ends.extend(even_blocks(channels - large).into_iter().map(|end| large + end));
    ends
}

/// Ends of blocks of nearly one size, each a multiple of 4 but for the last.
pub(super) fn even_blocks(channels: usize) -> Vec<usize> {
    let blocks = channels.div_ceil(BLOCK);
    (1..=blocks)
        .map(|block| (channels * block / blocks).next_multiple_of(4).min(channels))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_rounded_by_blocks_but_for_its_outliers() {
        let row = IntegerRow::round(&[0.5, -1.27, 0.0, 9.0, 2.54, -0.02], &[4, 6]);
        assert_eq!(row.integers, [50, -127, 0, 0, 127, -1]);
        assert_eq!(row.outliers, [(3, 9.0)]);
        assert!((row.scales[0] - 0.01).abs() < 1e-6 && (row.scales[1] - 0.02).abs() < 1e-6);
        let zeros = IntegerRow::round(&[0.0; 3], &[3]);
        assert_eq!(
            (zeros.integers.as_slice(), zeros.scales.as_slice()),
            (&[0, 0, 0][..], &[1.0][..])
        );
        assert!(IntegerRow::round(&[], &[]).integers.is_empty());
    }

    #[test]
    fn large_channels_come_first_and_the_others_stay_in_order() {
        let weight: Vec<f32> =
            (0..40).map(|channel| if channel == 30 { 9.0 } else { 1.0 }).collect();
        let bias: Vec<f32> =
            (0..40).map(|channel| if channel == 20 { -90.0 } else { 0.0 }).collect();
        let order = channel_order(&[(&weight, &bias)], 40);
        assert_eq!(order[..4], [20, 30, 0, 1]);
        assert!(order[LARGE..].is_sorted());
        let mut all = order;
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
        assert_eq!(channel_order(&[], 3), [0, 1, 2]);
    }

    #[test]
    fn blocks_end_where_the_channels_do() {
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
