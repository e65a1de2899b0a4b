//! What is wanted of a text: its vector, or what the vector is made of.
//!
//! Pure data. Which runtime has which is the runtimes' business.

/// What an [`Embedder`](super::Embedder) gives for a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Output {
    /// Its vector, of length 1 if the model is said to normalise: `[dimensions]`.
    #[default]
    Vector,
    /// Its vector before it is normalised, `[dimensions]`; the same for a model that does not normalise.
    Unnormalized,
    /// The states of all its tokens after the last layer, special tokens included: `[tokens, hidden]`.
    /// `hidden` is the encoder's, which is not `dimensions` where dense layers follow.
    TokenStates,
}
