//! The engine: texts become token ids, token ids become vectors.
//!
//! Owns the mathematics and nothing else. It knows no sockets, no runtime, no packages and no
//! paths: bytes that somebody else verified come in ([`ModelFiles`]), vectors go out.
//!
//! | [`Architecture`] | what runs it, behind one [`Embedder`] |
//! | --- | --- |
//! | BERT, DistilBERT, MPNet, RoBERTa, XLM-RoBERTa | [`fused`]: own kernels, in every [`Precision`] |
//! | ModernBERT | [`candle_runtime`]: candle-transformers, in f32 |
//! | static embeddings | [`static_embedding`]: a look-up in a table that stays as it is stored |
//!
//! Invariants:
//! 1. A vector is what sentence-transformers gives for the same text and weights, within the bounds
//!    of `tests/golden/README.md`, or an error is returned; never a silent approximation.
//! 2. No input panics: ids are range-checked before they index a table, shapes when a model is
//!    loaded.

#[cfg_attr(not(target_arch = "x86_64"), path = "amx_none.rs")]
mod amx;
mod attention;
mod buffer;
mod candle_runtime;
mod config;
mod encoder;
mod error;
mod footprint;
mod fused;
#[cfg(feature = "bench-kernels")]
#[doc(hidden)]
pub mod kernels;
mod layer;
mod layout;
mod limits;
mod linear;
mod output;
mod peak;
mod pool;
mod precision;
mod quote;
#[cfg(test)]
mod reference;
mod relative;
mod scratch;
mod simd;
mod spec;
mod static_embedding;
#[cfg(test)]
mod tests;
mod threads;
mod tokenize;
mod weights;

pub use error::EngineError;
pub use footprint::{COUNTED_BYTES, FileSizes, Footprint, Stored, footprint};
pub use output::Output;
pub use precision::{Precision, Report};
pub use spec::{
    Activation, Architecture, Dense, ModelFiles, ModelSpec, Pooling, UnknownName, WeightsFile,
};
pub use tokenize::{Piece, Tokenizer, Tokens, Truncation};

use std::{io, panic, thread};

use candle_runtime::{CandleEmbedder, ModernBertConfig};
use config::EncoderConfig;
use fused::Fused;
use pool::Head;
use spec::Runtime;
use static_embedding::{StaticConfig, StaticEmbedder};
use weights::{Header, WEIGHTS};

/// A loaded encoder: token ids in, vectors out.
///
/// One thread owns it; several may compute with it at a time, and share its threads.
pub trait Embedder: Send + Sync {
    /// What is wanted of each of `texts`, one behind the other in their order: `[texts.len(),
    /// dimensions]` for vectors, `[tokens of all texts, hidden]` for token states; row-major.
    ///
    /// Blocks for as long as the forward pass takes. Each text is a sequence of token ids with its
    /// special tokens, at least one id long unless the model is [`Architecture::Static`].
    ///
    /// # Errors
    /// When an id is outside the vocabulary, a text is empty or too long, the model has nothing of the
    /// kind, or the arithmetic fails.
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError>;

    /// The vectors of `texts`, `[texts.len(), dimensions]`: [`Embedder::compute`] for what a model is for.
    ///
    /// # Errors
    /// Those of [`Embedder::compute`].
    fn embed(&self, texts: &[&[u32]]) -> Result<Vec<f32>, EngineError> {
        self.compute(texts, Output::Vector)
    }

    /// Length of one vector.
    fn dimensions(&self) -> usize;

    /// Memory of this process that the weights take, in bytes. What is read in place from a mapped
    /// file is not counted: see [`Embedder::mapped_bytes`].
    fn weight_bytes(&self) -> u64;

    /// Bytes that are read in place from a mapped file: the most that can be resident beside
    /// [`Embedder::weight_bytes`]. Only the rows of words that were seen are, and the system takes
    /// them back when memory is short.
    fn mapped_bytes(&self) -> u64;

    /// Gives back the memory that passes need beside the weights, which is as much as the longest pass
    /// so far took. The next pass allocates what it needs.
    ///
    /// Waits for the passes that run.
    fn release_scratch(&self);

    /// Operations a second of its products on its threads when operands are in the first cache.
    ///
    /// Blocks for a quarter of a second.
    ///
    /// # Errors
    /// When the system gives no threads.
    fn matrix_peak(&self) -> io::Result<f64>;

    /// What it runs in.
    fn report(&self) -> &Report;

    /// Multiplications and additions in the matrix products for one text of `tokens` tokens: the
    /// work of the model's shapes, without padding, whatever the precision.
    fn matrix_operations(&self, tokens: usize) -> u64;
}

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads of the engine; 0 is taken as 1.
    pub threads: usize,
    /// Tokens of one forward pass; a longer text goes through alone.
    pub batch_tokens: usize,
    /// The arithmetic of its products.
    pub precision: Precision,
}

/// A model ready for use.
pub struct Loaded {
    /// Makes token ids of texts, on any thread.
    pub tokenizer: Tokenizer,
    /// Makes vectors of token ids, on the thread that owns it.
    pub embedder: Box<dyn Embedder>,
}

/// What a model asked to run in `wanted` would run in on this processor; `integers` is whether its weights are stored
/// so. Models that [`load`] gives to another library may differ.
///
/// Asks the kernel for the permission that AMX needs, as loading does.
pub fn arithmetic(wanted: Precision, integers: bool) -> Report {
    precision::choose(wanted, integers).report
}

/// The extensions of this processor that some kernel here is made for.
pub fn processor_extensions() -> Vec<&'static str> {
    simd::extensions()
}

/// Loads the model that `spec` describes from `files`.
///
/// Blocks for as long as packing the weights takes. No second copy of them is made: a tensor is
/// packed row by row, and its bytes are released when it is done with. The table of words is read in
/// place for as long as the model lives.
///
/// # Errors
/// When a file cannot be read, or contradicts `spec` or another file: the message names the file,
/// and the tensor or both values.
pub fn load(spec: &ModelSpec, files: ModelFiles, options: Options) -> Result<Loaded, EngineError> {
    let ModelFiles { config, tokenizer, weights, dense } = files;
    let weights = || Ok(weights);
    load_with(spec, ModelFiles { config, tokenizer, weights, dense }, options)
}

/// [`load`] with the weights that `files.weights` gives: it is called at most once, on this thread, while another reads
/// the tokenizer, so that what has to be done before they can be given costs no time of its own.
///
/// # Errors
/// Those of [`load`], and that of `files.weights`.
pub fn load_with<E: From<EngineError>>(
    spec: &ModelSpec,
    files: ModelFiles<impl FnOnce() -> Result<Box<dyn WeightsFile>, E>>,
    options: Options,
) -> Result<Loaded, E> {
    let ModelFiles { config, tokenizer, weights, dense } = files;
    let head = Head::read(spec, &dense)?;
    let length = spec.max_sequence_length;
    let tokenizer = &tokenizer;
    match spec.architecture.runtime() {
        Runtime::Fused(family) => {
            let config = EncoderConfig::read(&config, family, spec)?;
            let rows = config.vocab_size;
            let tokenizer = || Tokenizer::for_rows(tokenizer, length, rows);
            load_both(tokenizer, weights, |weights| {
                let tensors = layout::encoder_tensors(&config);
                let header = Header::read(WEIGHTS, weights.bytes(), tensors)?;
                let choice = precision::choose(options.precision, header.has_integers());
                Fused::new(spec, config, (weights, header), head, choice, options)
            })
        }
        Runtime::ModernBert => {
            let config = ModernBertConfig::read(&config, spec)?;
            let rows = config.vocab_size();
            let tokenizer = || Tokenizer::for_rows(tokenizer, length, rows);
            load_both(tokenizer, weights, |weights| {
                CandleEmbedder::new(spec, config, &*weights, head, options)
            })
        }
        Runtime::Static => {
            let config = StaticConfig::read(&config, spec)?;
            let rows = config.vocab_size;
            let tokenizer = || Tokenizer::without_special_tokens(tokenizer, length, rows);
            load_both(tokenizer, weights, |weights| {
                StaticEmbedder::new(spec, config, weights, head)
            })
        }
    }
}

/// A tokenizer and an embedder, read side by side: the tokenizer
/// takes half of the time of a small model's load, and the weights are verified and read by one thread before as
/// many as there are pack them. What keeps the weights away is told before all else.
fn load_both<M: Embedder + 'static, E: From<EngineError>>(
    tokenizer: impl FnOnce() -> Result<Tokenizer, EngineError> + Send,
    weights: impl FnOnce() -> Result<Box<dyn WeightsFile>, E>,
    embedder: impl FnOnce(Box<dyn WeightsFile>) -> Result<M, EngineError>,
) -> Result<Loaded, E> {
    let (tokenizer, embedder) = thread::scope(|scope| {
        let tokenizer = thread::Builder::new()
            .name("tokenizer".to_owned())
            .spawn_scoped(scope, tokenizer)
            .map_err(|source| EngineError::Threads { threads: 1, source: source.into() })?;
        let embedder = embedder(weights()?);
        let tokenizer = tokenizer.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        Ok::<_, E>((tokenizer, embedder))
    })?;
    Ok(Loaded { tokenizer: tokenizer?, embedder: Box::new(embedder?) })
}
