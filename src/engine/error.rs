//! What can go wrong in the engine.

/// A model that cannot be loaded or a batch that cannot be computed.
///
/// `Display` names the file or tensor and what is wrong with it; `source` has the library's own
/// words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file of the model cannot be read as what it should be.
    #[error("{file} cannot be read")]
    File {
        /// Its name in the package.
        file: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the model contradicts the manifest or another file.
    #[error("{0}")]
    Mismatch(String),
    /// A token id that the vocabulary does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary} tokens")]
    TokenOutOfRange {
        /// The offending id.
        id: u32,
        /// Number of tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A text that has fewer or more tokens than the model takes.
    #[error("a text of {tokens} tokens; this model takes {min} to {max}")]
    Length {
        /// Its number of tokens.
        tokens: usize,
        /// The smallest number allowed.
        min: usize,
        /// The largest number allowed.
        max: usize,
    },
    /// A text could not be turned into tokens.
    #[error("the text cannot be tokenized")]
    Tokenize(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A text is too long and has too few words to be cut before it is turned into tokens.
    #[error(
        "the text has {bytes} bytes, and too few words in {most} of them to fill the model's length: it is no text, or \
         has to be sent in parts"
    )]
    Endless {
        /// Its length.
        bytes: usize,
        /// How much of it was looked at, at most.
        most: usize,
    },
    /// Token states were asked of a model that has none.
    #[error("static embeddings have no token states: nothing is computed for a token")]
    NoTokenStates,
    /// The operating system gave the engine no threads.
    #[error("the engine's {threads} threads cannot be started")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The library that computes the forward pass gave up.
    #[error("the forward pass failed")]
    Forward(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The forward pass gave a value that is not a number.
    #[error(
        "the model gave a vector that is not finite; its weights are damaged or unsuited to {precision}"
    )]
    NotFinite {
        /// The precision that was computed in.
        precision: &'static str,
    },
}
