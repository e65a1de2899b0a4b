//! Parsing of the file, and the checks that several families need.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{FILE, MAX_LAYERS, MAX_SIZE};
use crate::engine::quote::{escape, quote};
use crate::engine::{EngineError, ModelSpec};

pub(super) fn mismatch(what: impl std::fmt::Display) -> EngineError {
    EngineError::Mismatch(format!("{FILE}: {what}"))
}

/// Parses the JSON in `bytes` and checks that its `model_type` is one of the architecture of
/// `spec`.
///
/// # Errors
/// Returns an error if the JSON is malformed or describes another architecture. The message names
/// the field.
pub(in crate::engine) fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    spec: &ModelSpec,
) -> Result<T, EngineError> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    let kind: Kind = parse_json(bytes)?;
    let architecture = spec.architecture;
    if kind.model_type != architecture.name()
        && Some(&*kind.model_type) != architecture.second_model_type()
    {
        return Err(mismatch(format!(
            "model_type is {}, but the manifest has the architecture \"{}\"",
            quote(&kind.model_type),
            architecture
        )));
    }
    parse_json(bytes)
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EngineError> {
    let unreadable = |message: String| EngineError::File {
        file: FILE.to_owned(),
        source: escape(message).into(),
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    // The error of a missing field has no path, and its message has the name of the field.
    let value =
        serde_path_to_error::deserialize(&mut json).map_err(|e| unreadable(e.to_string()))?;
    json.end().map_err(|error| unreadable(error.to_string()))?;
    Ok(value)
}

/// Checks that each of `sizes`, given with its name, is greater than zero.
pub(in crate::engine) fn check_not_zero(sizes: &[(&str, usize)]) -> Result<(), EngineError> {
    match sizes.iter().find(|size| size.1 == 0) {
        Some((name, _)) => Err(mismatch(format!("{name} is 0"))),
        None => Ok(()),
    }
}

/// Checks that each of `sizes`, given with its name, is from 1 to [`MAX_SIZE`].
pub(super) fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), EngineError> {
    check_not_zero(sizes)?;
    sizes.iter().try_for_each(|&(name, size)| check_at_most(name, size, MAX_SIZE))
}

pub(super) fn check_at_most(name: &str, size: usize, most: usize) -> Result<(), EngineError> {
    if size <= most {
        return Ok(());
    }
    Err(mismatch(format!("{name} is {size}, above the limit {most}")))
}

/// Returns `value` if it is finite and above 0, also in f32.
pub(in crate::engine) fn positive(name: &str, value: f64) -> Result<f64, EngineError> {
    #[expect(clippy::cast_possible_truncation, reason = "the engine computes in f32")]
    let rounded = value as f32;
    if rounded.is_finite() && rounded > 0.0 {
        return Ok(value);
    }
    Err(mismatch(format!("{name} is {value}, expected above 0 and in the range of f32")))
}

/// Returns the width of a head: `hidden_size` divided by the number of heads, which must divide it
/// and must not be 0.
pub(super) fn head_width(hidden_size: usize, heads: usize) -> Result<usize, EngineError> {
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    Err(mismatch(format!(
        "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
    )))
}

/// Returns the usual factor of the scores: one divided by the square root of the width of a head.
pub(super) fn score_scale(head: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "at most MAX_SIZE, which f32 represents")]
    let width = head as f32;
    1.0 / width.sqrt()
}

pub(super) fn check_layer_count(count: usize) -> Result<(), EngineError> {
    check_not_zero(&[("num_hidden_layers", count)])?;
    check_at_most("num_hidden_layers", count, MAX_LAYERS)
}

/// Checks that `positions`, which come from `field`, suffice for the longest text of `spec`.
pub(super) fn check_positions(
    spec: &ModelSpec,
    field: &str,
    positions: usize,
) -> Result<(), EngineError> {
    if spec.max_sequence_length <= positions {
        return Ok(());
    }
    Err(mismatch(format!(
        "{field} allows {positions} positions, fewer than max_sequence_length {}",
        spec.max_sequence_length
    )))
}

/// Checks that the steps of `spec` after the encoder fit together, given token vectors of length
/// `hidden_size`.
pub(in crate::engine) fn check_lengths(
    spec: &ModelSpec,
    hidden_size: usize,
) -> Result<(), EngineError> {
    let mut length = hidden_size;
    for (index, dense) in spec.dense.iter().enumerate() {
        if dense.in_features != length {
            return Err(EngineError::Mismatch(format!(
                "dense layer {index} takes vectors of length {}, and gets {length}",
                dense.in_features
            )));
        }
        length = dense.out_features;
    }
    if spec.dimensions != length {
        return Err(EngineError::Mismatch(format!(
            "the vectors have {length} dimensions, but the manifest has {}",
            spec.dimensions
        )));
    }
    Ok(())
}
