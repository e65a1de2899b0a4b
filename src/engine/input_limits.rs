//! Checks inputs and outputs of every embedder, independent of its runtime.

use super::EngineError;
use super::token_type::id_and_type;

/// Limits for the texts of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputLimits {
    /// Number of tokens in the vocabulary; every id must be smaller.
    pub(super) vocabulary: usize,
    /// Whether an id may have a [token type](super::token_type).
    pub(super) has_types: bool,
    /// Minimum number of tokens in a text.
    pub(super) min: usize,
    /// Maximum number of tokens in a text.
    pub(super) max: usize,
}

impl InputLimits {
    /// Checks the length and the token ids of each of `texts`.
    pub(super) fn check(&self, texts: &[&[u32]]) -> Result<(), EngineError> {
        let Self { vocabulary, has_types, min, max } = *self;
        let id_of = |token: u32| if has_types { id_and_type(token).0 } else { token };
        for text in texts {
            if !(min..=max).contains(&text.len()) {
                return Err(EngineError::Length { tokens: text.len(), min, max });
            }
            let mut ids = text.iter().map(|&token| id_of(token));
            if let Some(id) = ids.find(|&id| id as usize >= vocabulary) {
                return Err(EngineError::TokenOutOfRange { id, vocabulary });
            }
        }
        Ok(())
    }
}

/// Returns `vectors`, or [`EngineError::NotFinite`] if a value is NaN or infinite. The error names
/// the `precision` of the computation.
pub(super) fn check_finite(
    vectors: Vec<f32>,
    precision: &'static str,
) -> Result<Vec<f32>, EngineError> {
    if vectors.iter().all(|value| value.is_finite()) {
        Ok(vectors)
    } else {
        Err(EngineError::NotFinite { precision })
    }
}
