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
}
