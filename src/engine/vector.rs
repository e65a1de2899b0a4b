//! Arithmetic of single vectors after the last layer: products and lengths.

/// Number of sums that [`dot`] keeps side by side.
const LANES: usize = 16;

/// Lower bound of the norm by which [`normalize`] divides; the default of
/// `torch.nn.functional.normalize`.
const MIN_NORM: f32 = 1e-12;

/// Returns the dot product of two vectors of the same length. The sums side by side compile to
/// vector instructions.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Scales `vector` to length 1. Like `torch.nn.functional.normalize`, leaves a zero vector
/// unchanged.
pub(super) fn normalize(vector: &mut [f32]) {
    // The order of this sum must stay: packages store vectors that a self-test compares.
    let squares: f32 = vector.iter().map(|value| value * value).sum();
    let norm = squares.sqrt().max(MIN_NORM);
    vector.iter_mut().for_each(|value| *value /= norm);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dot_product_covers_every_length() {
        for length in 0..40_u8 {
            let values: Vec<f32> = (0..length).map(f32::from).collect();
            let expected: f32 = values.iter().map(|value| value * value).sum();
            assert_eq!(dot(&values, &values), expected, "{length}");
        }
    }

    proptest! {
        #[test]
        fn normalized_vector_has_length_one(
            mut vector in prop::collection::vec(-1e3_f32..1e3, 1..40),
        ) {
            prop_assume!(vector.iter().any(|value| value.abs() > 1e-3));
            normalize(&mut vector);
            prop_assert!((dot(&vector, &vector).sqrt() - 1.0).abs() < 1e-5);
        }
    }
}
