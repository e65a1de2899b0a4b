//! What every embedder takes and gives, whatever runs it.

use super::EngineError;

/// The texts that a model takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Every id is below it.
    pub(super) vocabulary: usize,
    /// The fewest tokens of a text.
    pub(super) min: usize,
    /// The most tokens of a text.
    pub(super) max: usize,
}

impl Limits {
    /// Refuses `texts` of which one is too short or too long, or has an id that is no token.
    pub(super) fn check(&self, texts: &[&[u32]]) -> Result<(), EngineError> {
        let Self { vocabulary, min, max } = *self;
        for text in texts {
            if !(min..=max).contains(&text.len()) {
                return Err(EngineError::Length { tokens: text.len(), min, max });
            }
            if let Some(&id) = text.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(EngineError::TokenOutOfRange { id, vocabulary });
            }
        }
        Ok(())
    }
}

/// `vectors`, computed in `precision`, unless one of their values is no number.
pub(super) fn finite(vectors: Vec<f32>, precision: &'static str) -> Result<Vec<f32>, EngineError> {
    if vectors.iter().all(|value| value.is_finite()) {
        Ok(vectors)
    } else {
        Err(EngineError::NotFinite { precision })
    }
}
