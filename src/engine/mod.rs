//! The engine: converts texts to token ids, and token ids to vectors or scores.
//!
//! The engine contains only the mathematics. It knows no sockets, no async runtime, no packages and
//! no paths: the caller passes verified bytes ([`ModelFiles`]) and receives vectors.
//!
//! | [`Architecture`] | runtime behind one [`Embedder`] |
//! | --- | --- |
//! | every encoder | [`fused`]: own kernels, every [`Precision`] |
//! | static embeddings | [`static_embedding`]: lookup in a table that stays in its stored format |
//!
//! Invariants:
//! 1. A vector equals the result of sentence-transformers for the same text and weights, within the
//!    bounds of `tests/golden/README.md`. Otherwise the engine returns an error; it never
//!    approximates silently.
//! 2. No input causes a panic: ids are range-checked before they index a table, and shapes are
//!    checked when a model is loaded.

#[cfg_attr(not(target_arch = "x86_64"), path = "amx_unsupported.rs")]
mod amx;
mod attention;
mod buffer;
mod classifier;
mod config;
mod encoder;
mod error;
mod footprint;
mod fused;
mod input_limits;
#[cfg(feature = "bench-kernels")]
#[doc(hidden)]
pub mod kernels;
mod layer;
mod linear;
mod output;
mod peak_rate;
mod pooling;
mod position_bias;
mod precision;
mod quote;
#[cfg(test)]
mod reference;
mod scratch;
mod simd;
mod spec;
mod static_embedding;
mod tensor_names;
#[cfg(test)]
mod tests;
mod threads;
mod token_heads;
mod token_type;
mod tokenize;
mod vector;
mod weights;

pub use error::EngineError;
pub use footprint::{COUNTED_BYTES, FileSizes, Footprint, WeightsFormat, footprint};
pub use output::Output;
pub use precision::{Precision, PrecisionReport};
pub use spec::{
    Activation, Architecture, DenseSpec, ModelFiles, ModelSpec, Pooling, TokenHeads, UnknownName,
    WeightsFile,
};
pub use token_heads::max_sim;
pub use tokenize::{TokenSpan, Tokenizer, Tokens, Truncation};

use std::{io, panic, thread};

use classifier::ClassifierLayout;
use config::EncoderConfig;
use fused::FusedEmbedder;
use pooling::PoolingHead;
use spec::Runtime;
use static_embedding::{StaticConfig, StaticEmbedder};
use weights::{Header, WEIGHTS};

/// A loaded model that converts token ids to vectors.
///
/// One thread owns it. Several threads may call it concurrently; the calls share its thread pool.
pub trait Embedder: Send + Sync {
    /// Computes `output` for each of `texts` and concatenates the results in order, row-major:
    /// `[texts.len(), dimensions]` for vectors, `[tokens of all texts, hidden]` for token states,
    /// `[texts.len(), labels]` for the scores of a classifier, and a row for each token for the
    /// heads of tokens.
    ///
    /// Blocks for the duration of the forward pass. Each text is a sequence of token ids, special
    /// tokens included, with at least one id unless the model is [`Architecture::Static`]. For a
    /// classifier, it is a pair of texts as [`Tokenizer::join`] returns it.
    ///
    /// # Errors
    /// Returns an error if an id is outside the vocabulary, a text is empty or too long, the model
    /// does not support `output`, or the result is not finite.
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError>;

    /// Computes the vectors of `texts`, `[texts.len(), dimensions]`. This is [`Embedder::compute`]
    /// for [`Output::Vector`].
    ///
    /// # Errors
    /// Returns the errors of [`Embedder::compute`].
    fn embed(&self, texts: &[&[u32]]) -> Result<Vec<f32>, EngineError> {
        self.compute(texts, Output::Vector)
    }

    /// Returns the length of one vector.
    fn dimensions(&self) -> usize;

    /// Returns the memory of this process that the weights occupy, in bytes. The count excludes
    /// weights that are read in place from a mapped file: see [`Embedder::mapped_bytes`].
    fn weight_bytes(&self) -> u64;

    /// Returns the number of bytes that are read in place from a mapped file: the most that can be
    /// resident in addition to [`Embedder::weight_bytes`]. Only the rows of words that have
    /// occurred are resident, and the system reclaims them when memory is short.
    fn mapped_bytes(&self) -> u64;

    /// Sets the maximum number of tokens of a forward pass, in place of
    /// [`EngineOptions::batch_tokens`]. Does nothing in a model whose passes the caller divides.
    fn set_batch_tokens(&self, _tokens: usize) {}

    /// Frees the memory that passes need in addition to the weights, which is as much as the
    /// largest pass so far needed. The next pass allocates its memory again.
    ///
    /// Blocks until the running passes end.
    fn release_scratch(&self);

    /// Measures the peak rate of the products on the embedder's threads, in operations per second,
    /// with operands in the first-level cache.
    ///
    /// Blocks for a quarter of a second.
    ///
    /// # Errors
    /// Returns an error if the system cannot start the threads.
    fn matrix_peak(&self) -> io::Result<f64>;

    /// Returns the precision and the instructions that the model runs in, with the reason.
    fn report(&self) -> &PrecisionReport;

    /// Returns the number of multiplications and additions in the matrix products for one text of
    /// `tokens` tokens. The count follows from the model's shapes, without padding, and does not
    /// depend on the precision.
    fn matrix_operations(&self, tokens: usize) -> u64;
}

/// Settings for running a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Number of engine threads; 0 counts as 1.
    pub threads: usize,
    /// Maximum number of tokens of one forward pass; a longer text gets a pass of its own.
    pub batch_tokens: usize,
    /// Requested arithmetic of the products.
    pub precision: Precision,
}

/// Tokenizer and embedder of a loaded model.
pub struct LoadedModel {
    /// Tokenizer, which any thread may use.
    pub tokenizer: Tokenizer,
    /// Embedder, which belongs to the thread that owns the model.
    pub embedder: Box<dyn Embedder>,
}

/// Returns the arithmetic that a model with the requested precision `wanted` would get on this
/// processor. `integers` states whether its weights are stored as integers. A model of static
/// embeddings differs, because it has no products.
///
/// Requests the AMX permission from the kernel where `wanted` may use AMX, as loading does.
pub fn choose_arithmetic(wanted: Precision, integers: bool) -> PrecisionReport {
    precision::choose_arithmetic(wanted, integers).report
}

/// Returns the extensions of this processor for which the engine has a kernel.
pub fn processor_extensions() -> Vec<&'static str> {
    simd::extensions()
}

/// Loads the model that `spec` describes from `files`.
///
/// Blocks until the weights are packed. No second copy of the weights exists during packing: each
/// tensor is packed row by row, and its bytes are released afterwards. The table of word embeddings
/// is read in place for the lifetime of the model.
///
/// # Errors
/// Returns an error if a file is not readable, or contradicts `spec` or another file. The message
/// names the file, and the tensor or both values.
pub fn load(
    spec: &ModelSpec,
    files: ModelFiles,
    options: EngineOptions,
) -> Result<LoadedModel, EngineError> {
    let ModelFiles { config, tokenizer, weights, dense } = files;
    let weights = || Ok(weights);
    load_with(spec, ModelFiles { config, tokenizer, weights, dense }, options)
}

/// Loads a model like [`load`], with the weights that the closure `files.weights` returns.
///
/// The closure is called at most once, on the calling thread, while another thread reads the
/// tokenizer. So the work that it does, such as verification of the weights, overlaps with that
/// read.
///
/// # Errors
/// Returns the errors of [`load`], and the error of `files.weights`.
pub fn load_with<E: From<EngineError>>(
    spec: &ModelSpec,
    files: ModelFiles<impl FnOnce() -> Result<Box<dyn WeightsFile>, E>>,
    options: EngineOptions,
) -> Result<LoadedModel, E> {
    let ModelFiles { config, tokenizer, weights, dense } = files;
    let head = PoolingHead::read(spec, &dense)?;
    let length = spec.max_sequence_length;
    let tokenizer = &tokenizer;
    match spec.architecture.runtime() {
        Runtime::Fused(family) => {
            let encoder = EncoderConfig::read(&config, family, spec)?;
            let family = (encoder.family, encoder.embeddings.types);
            let classifier = ClassifierLayout::read(&config, family, spec)?;
            let (rows, has_types) = (encoder.vocab_size, spec.token_types);
            let is_classifier = classifier.is_some();
            let tokenizer = || match is_classifier {
                true => Tokenizer::for_pairs(tokenizer, length, rows, has_types),
                false => Tokenizer::for_rows(tokenizer, length, rows),
            };
            load_both(tokenizer, weights, |weights| {
                let tensors = tensor_names::encoder_tensors(&encoder);
                let header = Header::read(WEIGHTS, weights.bytes(), tensors)?;
                let classifier = classifier.map(|layout| layout.load(&header, &*weights));
                let head = head.with_classifier(classifier.transpose()?);
                let states = encoder.output_size();
                let token_heads = spec.token_heads.load(states, &header, &*weights)?;
                let head = head.with_token_heads(token_heads);
                let choice = precision::choose_arithmetic(options.precision, header.has_integers());
                FusedEmbedder::new(spec, encoder, (weights, header), head, choice, options)
            })
        }
        Runtime::Static => {
            classifier::refuse_labels(spec)?;
            token_heads::refuse_token_heads(spec)?;
            let config = StaticConfig::read(&config, spec)?;
            let rows = config.vocab_size;
            let tokenizer = || Tokenizer::without_special_tokens(tokenizer, length, rows);
            load_both(tokenizer, weights, |weights| {
                StaticEmbedder::new(spec, config, weights, head)
            })
        }
    }
}

/// Reads a tokenizer and an embedder concurrently.
///
/// The tokenizer takes half of the load time of a small model. Meanwhile this thread verifies and
/// reads the weights, before all threads of the engine pack them. An error of `weights` is returned
/// in preference to an error of the tokenizer or the embedder.
fn load_both<M: Embedder + 'static, E: From<EngineError>>(
    tokenizer: impl FnOnce() -> Result<Tokenizer, EngineError> + Send,
    weights: impl FnOnce() -> Result<Box<dyn WeightsFile>, E>,
    embedder: impl FnOnce(Box<dyn WeightsFile>) -> Result<M, EngineError>,
) -> Result<LoadedModel, E> {
    let (tokenizer, embedder) = thread::scope(|scope| {
        let tokenizer = thread::Builder::new()
            .name("tokenizer".to_owned())
            .spawn_scoped(scope, tokenizer)
            .map_err(|source| EngineError::Threads { threads: 1, source: source.into() })?;
        let embedder = embedder(weights()?);
        let tokenizer = tokenizer.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        Ok::<_, E>((tokenizer, embedder))
    })?;
    Ok(LoadedModel { tokenizer: tokenizer?, embedder: Box::new(embedder?) })
}
