//! Errors of the engine.

/// Failure to load a model or to compute a batch.
///
/// `Display` names the file or tensor and the problem; `source` gives the library's own message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file of the model is not readable in its expected format.
    #[error("{file} cannot be read")]
    File {
        /// Name of the file in the package.
        file: String,
        /// Cause, as reported by the library.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the model contradicts the manifest or another file.
    #[error("{0}")]
    Mismatch(String),
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary} tokens")]
    TokenOutOfRange {
        /// Invalid id.
        id: u32,
        /// Number of tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A text has fewer or more tokens than the model accepts.
    #[error("the text has {tokens} tokens, and the model accepts {min} to {max}")]
    Length {
        /// Number of tokens of the text.
        tokens: usize,
        /// The smallest number allowed.
        min: usize,
        /// The largest number allowed.
        max: usize,
    },
    /// The tokenizer has no tokens for a text.
    #[error("the text cannot be tokenized")]
    Tokenize(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A text is too long to tokenize whole, and has too few word boundaries to be cut first.
    #[error(
        "the first {most} of the text's {bytes} bytes have too few words to fill the model's length; send the text in \
         parts"
    )]
    Endless {
        /// Length of the text.
        bytes: usize,
        /// Maximum number of bytes that were tokenized.
        most: usize,
    },
    /// Token states were requested from a model that has none.
    #[error("a model of static embeddings has no token states")]
    NoTokenStates,
    /// Scores of a pair of texts were requested from a model of vectors.
    #[error("the model computes vectors of texts and no scores of pairs; choose a reranker")]
    NoScores,
    /// An output of a head for tokens was requested from a model without this head.
    #[error("the model has no {head} head")]
    NoTokenHead {
        /// Name of the head.
        head: &'static str,
    },
    /// The operating system refused to start the engine's threads.
    #[error("cannot start the {threads} threads of the engine")]
    Threads {
        /// Number of requested threads.
        threads: usize,
        /// Cause, as reported by the operating system or the thread pool.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The library that computes the forward pass failed.
    #[error("the forward pass failed")]
    Forward(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The forward pass produced NaN or infinity.
    #[error(
        "the model computed a vector that is not finite; its weights are damaged or unsuited to {precision}"
    )]
    NotFinite {
        /// Precision of the computation.
        precision: &'static str,
    },
}
