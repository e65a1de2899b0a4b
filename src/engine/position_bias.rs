//! Computes MPNet's relative position bias: the value that is added to the attention score of two
//! tokens according to their distance.
//!
//! Follows `MPNetEncoder` of transformers:
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
pub(super) fn by_distance(table: &[f32], heads: usize, max_positions: u32) -> Vec<Vec<f32>> {
    let behind = (1..max_positions).rev().map(|distance| bucket(distance, 0));
    let buckets: Vec<u32> =
        behind.chain((0..max_positions).map(|distance| bucket(0, distance))).collect();
    let of_head =
        |head| buckets.iter().map(|&bucket| table[bucket as usize * heads + head]).collect();
    (0..heads).map(of_head).collect()
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
}
