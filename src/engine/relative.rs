//! MPNet's relative position bias: what is added to the score of two tokens for their distance.
//!
//! Follows `MPNetEncoder` of transformers:
//! <https://github.com/huggingface/transformers/blob/00099b9f15ad8bea330364709453fc49cbba90e5/src/transformers/models/mpnet/modeling_mpnet.py>

use super::config::MPNET_BUCKETS;

/// Buckets for one direction.
const HALF: u32 = MPNET_BUCKETS / 2;
/// Distances below it have a bucket each.
const EXACT: u32 = HALF / 2;

/// The bucket of the distance from the token at `query` to the one at `key`.
///
/// In integers: for distances of at least 8, `8 + ⌊ln(distance / 8) / ln(128 / 8) · 8⌋` is
/// `⌊log₂ distance²⌋ + 2`, and exact where the logarithm in f32 has to hit a whole number.
pub(super) fn bucket(query: u32, key: u32) -> u32 {
    let ahead = if key > query { HALF } else { 0 };
    let distance = query.abs_diff(key);
    if distance < EXACT {
        return ahead + distance;
    }
    let log = (u64::from(distance) * u64::from(distance)).ilog2();
    ahead + (log + 2).min(HALF - 1)
}

/// For each of `heads`, the bias of the distances `1 − reach` to `reach − 1`, in this order.
///
/// `table` is `[buckets, heads]`.
pub(super) fn by_distance(table: &[f32], heads: usize, reach: u32) -> Vec<Vec<f32>> {
    let behind = (1..reach).rev().map(|distance| bucket(distance, 0));
    let buckets: Vec<u32> = behind.chain((0..reach).map(|distance| bucket(0, distance))).collect();
    let of_head =
        |head| buckets.iter().map(|&bucket| table[bucket as usize * heads + head]).collect();
    (0..heads).map(of_head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_logarithm() {
        for distance in 0..600 {
            let near = f64::from(distance);
            let expected = if distance < 8 {
                distance
            } else {
                // Nudged over whole numbers, which the quotient misses by a rounding error.
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
