//! From the verified contents of a package to a loaded engine, and the self-test of what came out.
//!
//! The only place that sees both a manifest and the engine.

use crate::config::{self, Settings};
use crate::engine::{
    self, Dense, EngineError, Loaded, ModelFiles, ModelSpec, Options, Precision, UnknownName,
};
use crate::package::{Contents, Manifest};

/// Least cosine between the vector of a self-test and the one that this machine computes: in f32
/// processors round differently (about 1e-6), the others lose what they may lose of any text; a wrong
/// tokenizer, pooling or weight shows far below.
const fn min_cosine(precision: Precision) -> f64 {
    match precision {
        Precision::Int8 => 0.998,
        Precision::Bf16 | Precision::Auto | Precision::F32 => 0.9995,
    }
}

/// Why a package's contents are no working model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The manifest names something that this version does not have.
    #[error("the manifest asks for what this version does not have")]
    Unsupported(#[from] UnknownName),
    /// The files are no model.
    #[error("the files are not a model that can be loaded")]
    Engine(#[from] EngineError),
    /// The model gives another vector for the self-test's text.
    #[error(
        "the self-test failed in {precision}: cosine {cosine:.6} to the manifest's vector, at least {} \
         expected",
        min_cosine(*precision)
    )]
    SelfTest {
        /// What was measured.
        cosine: f64,
        /// What the model was run in.
        precision: Precision,
    },
}

/// What the engine needs to know of the model that `manifest` describes.
///
/// # Errors
/// When it names an architecture, pooling or activation that the engine does not have.
pub fn spec(manifest: &Manifest) -> Result<ModelSpec, UnknownName> {
    let dense = manifest.dense.iter().map(|layer| {
        Ok(Dense {
            in_features: layer.in_features,
            out_features: layer.out_features,
            bias: layer.bias,
            activation: layer.activation.parse()?,
        })
    });
    Ok(ModelSpec {
        architecture: manifest.architecture.parse()?,
        dimensions: manifest.dimensions,
        max_sequence_length: manifest.max_sequence_length,
        pooling: manifest.pooling.parse()?,
        dense: dense.collect::<Result<_, UnknownName>>()?,
        normalize: manifest.normalize,
    })
}

/// How models are run under `settings`: with as many threads as processors may be used, unless they say otherwise.
pub fn options(settings: &Settings) -> Options {
    // Affinity and the cgroup's quota are counted by the standard library.
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    Options {
        threads: settings.embedding.threads.unwrap_or_else(available),
        batch_tokens: settings.embedding.batch_tokens,
        precision: match settings.embedding.precision {
            config::Precision::Auto => Precision::Auto,
            config::Precision::F32 => Precision::F32,
            config::Precision::Int8 => Precision::Int8,
            config::Precision::Bf16 => Precision::Bf16,
        },
    }
}

/// Loads a model. Blocks for as long as that takes and holds the files and the weights at once.
///
/// # Errors
/// When the manifest or a file does not describe a model that this version can run.
pub fn load(
    manifest: &Manifest,
    contents: Contents,
    options: Options,
) -> Result<Loaded, LoadError> {
    let Contents { config, tokenizer, weights, dense } = contents;
    let files = ModelFiles { config, tokenizer, weights, dense };
    Ok(engine::load(&spec(manifest)?, files, options)?)
}

/// The vector of `text` without any prompt, `[dimensions]`.
///
/// # Errors
/// When the model cannot compute it.
pub fn embed_plain(model: &mut Loaded, text: &str) -> Result<Vec<f32>, EngineError> {
    let tokens = model.tokenizer.encode("", text)?;
    model.embedder.embed(&[&tokens.ids])
}

/// Checks that a model gives the vector that its manifest promises.
///
/// # Errors
/// When it gives another one or none.
pub fn self_test(manifest: &Manifest, model: &mut Loaded) -> Result<(), LoadError> {
    let vector = embed_plain(model, &manifest.self_test.text)?;
    let cosine = cosine(&vector, &manifest.self_test.vector);
    let precision = model.embedder.report().precision;
    if cosine >= min_cosine(precision) {
        Ok(())
    } else {
        Err(LoadError::SelfTest { cosine, precision })
    }
}

/// The cosine between two vectors; 0 when one of them has no direction or their lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if a.len() == b.len() && norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_of_odd_vectors() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[1.0], &[-1.0]), -1.0);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), 0.0);
    }
}
