//! The kinds of output that can be requested for a text.
//!
//! Pure data. Each runtime decides which kinds it supports.

/// Result of an [`Embedder`](super::Embedder) for one text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Output {
    /// Final vector, `[dimensions]`; scaled to length 1 if the model normalizes.
    #[default]
    Vector,
    /// Vector before normalization, `[dimensions]`; equal to [`Output::Vector`] if the model does
    /// not normalize.
    Unnormalized,
    /// States of all tokens after the last layer, special tokens included: `[tokens, hidden]`.
    /// `hidden` is the hidden size of the encoder, which may differ from `dimensions` if dense
    /// layers follow.
    TokenStates,
    /// Scores of a classifier before their activation, `[labels]`. The text is a pair, as
    /// [`Tokenizer::join`](super::Tokenizer::join) returns it.
    Logits,
    /// Weights of all tokens from the sparse head, at least 0, special tokens included: `[tokens]`.
    TokenWeights,
    /// Vectors of all tokens from the multi-vector head, of length 1, special tokens included:
    /// `[tokens, length]`.
    TokenVectors,
}

impl Output {
    /// Returns whether the result has a row for each token. Otherwise it has one for each text.
    pub const fn is_per_token(self) -> bool {
        matches!(self, Self::TokenStates | Self::TokenWeights | Self::TokenVectors)
    }
}
