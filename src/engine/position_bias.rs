//! Computes relative position biases: the values that are added to the attention score of two
//! tokens according to their distance.
//!
//! MPNet reads them from a table of buckets, as `MPNetEncoder` of transformers does. With ALiBi,
//! they are proportional to the distance.
//! <https://github.com/huggingface/transformers/blob/00099b9f15ad8bea330364709453fc49cbba90e5/src/transformers/models/mpnet/modeling_mpnet.py>

use super::config::MPNET_BUCKETS;

/// Number of buckets for one direction.
const HALF: u32 = MPNET_BUCKETS / 2;
/// Smaller distances have one bucket each; larger ones share logarithmic buckets.
const EXACT: u32 = HALF / 2;

/// Returns the bucket of the distance from the token at `query` to the token at `key`.
///
/// The computation uses integers only. For distances of at least 8, `8 + ⌊ln(distance / 8) / ln(128
/// / 8) · 8⌋` equals `⌊log₂ distance²⌋ + 2`. The integer form is exact where the f32 logarithm
/// would have to hit a whole number.
pub(super) fn bucket(query: u32, key: u32) -> u32 {
    let ahead = if key > query { HALF } else { 0 };
    let distance = query.abs_diff(key);
    if distance < EXACT {
        return ahead + distance;
    }
    let log = (u64::from(distance) * u64::from(distance)).ilog2();
    ahead + (log + 2).min(HALF - 1)
}

/// Returns, for each of `heads`, the biases of the distances `1 − max_positions` to `max_positions
/// − 1`, in this order.
///
/// `table` is `[buckets, heads]`.
pub(super) fn by_distance(table: &[f32], heads: usize, max_positions: usize) -> Vec<Vec<f32>> {
    let max_positions = u32::try_from(max_positions).unwrap_or(u32::MAX);
    let behind = (1..max_positions).rev().map(|distance| bucket(distance, 0));
    let buckets: Vec<u32> =
        behind.chain((0..max_positions).map(|distance| bucket(0, distance))).collect();
    let of_head =
        |head| buckets.iter().map(|&bucket| table[bucket as usize * heads + head]).collect();
    (0..heads).map(of_head).collect()
}

/// Returns the biases of ALiBi in the form of [`by_distance`]: the negative distance times the
/// slope of the head.
pub(super) fn alibi(heads: usize, max_positions: usize) -> Vec<Vec<f32>> {
    let distances = (1..max_positions).rev().chain(0..max_positions);
    let of_head = |slope: f32| {
        #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
        let biases = distances.clone().map(|distance| -slope * distance as f32);
        biases.collect()
    };
    slopes(heads).into_iter().map(of_head).collect()
}

/// Returns the slope of each of `heads`: powers of 2 for a power of 2 of heads. Other numbers take
/// those of the next smaller power of 2, followed by every second slope of the next larger one:
/// <https://github.com/ofirpress/attention_with_linear_biases/blob/4b92f28a005ead2567abe2359f633e73e08f3833/fairseq/models/transformer.py>
fn slopes(heads: usize) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "a model has few heads")]
    let of_power =
        |count: usize| (1..=count).map(move |head| (-8.0 * head as f32 / count as f32).exp2());
    let smaller = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    of_power(smaller).chain(of_power(2 * smaller).step_by(2)).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_buckets_are_logarithmic() {
        for distance in 0..600 {
            let near = f64::from(distance);
            let expected = if distance < 8 {
                distance
            } else {
                // The floating-point quotient can fall just below a whole number because of
                // rounding, so add a small value before the floor.
                let log = ((near / 8.0).ln() / 16_f64.ln()).mul_add(8.0, 1e-9);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a floor"
                )]
                let log = log as u32;
                (8 + log).min(15)
            };
            assert_eq!(bucket(distance, 0), expected, "{distance} behind");
            let ahead = if distance == 0 { 0 } else { 16 };
            assert_eq!(bucket(0, distance), expected + ahead, "{distance} ahead");
        }
    }

    #[test]
    fn alibi_slopes_match_published_values() {
        assert_eq!(
            slopes(8),
            [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]
        );
        let twelve = slopes(12);
        assert_eq!(twelve[..8], slopes(8));
        let expected = [1, 3, 5, 7].map(|head| (-0.5 * f64::from(head)).exp2());
        for (slope, expected) in twelve[8..].iter().zip(expected) {
            assert!((f64::from(*slope) - expected).abs() < 1e-7);
        }
        let biases = alibi(8, 3);
        assert_eq!(biases[1], [-0.5, -0.25, 0.0, -0.25, -0.5]);
    }
}
