//! Arithmetic with vectors.

/// Scales `vector` to length 1. Returns `None` for a vector of zeros, which static embeddings give
/// for a text without tokens.
pub(super) fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let norm = length(vector);
    (norm != 0.0).then(|| vector.iter().map(|value| value / norm).collect())
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn length(vector: &[f32]) -> f32 {
    dot(vector, vector).sqrt()
}

/// Returns the cosine of two vectors that are not zero.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(&unit(a).unwrap(), &unit(b).unwrap())
}

pub(super) fn mean_and_least(cosines: &[f32]) -> (f32, f32) {
    #[expect(clippy::cast_precision_loss, reason = "a hundred texts")]
    let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
    (mean, cosines.iter().copied().fold(1.0, f32::min))
}

pub(crate) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
