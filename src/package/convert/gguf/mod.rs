//! Reads a model from a GGUF file, the format of llama.cpp.
//!
//! One file contains the tensors, the settings of the encoder, the pooling and the words of the
//! tokenizer. This module makes of them what a directory of transformers would contain: the tensors
//! under their original names, `config.json` and `tokenizer.json`. It undoes the changes of the
//! converter of llama.cpp:
//! - It adds the rows of the position table that RoBERTa does not use.
//! - It subtracts the 1 that the weights of the normalizations of Gemma contain.
//! - It joins the two halves of the first product of jina-bert, which older files separate.
//!
//! Tensors in f32, f16 and bf16 keep their values. Blocks of integers become f32, exactly.
//!
//! Invariant: the memory is that of the file and of the converted weights, of which each has at
//! most [`MAX_WEIGHTS`] bytes, and of a tokenizer with at most [`MAX_TOKENIZER`] bytes of words.

mod blocks;
mod config;
mod names;
mod reader;
mod tokenizer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;

use self::blocks::BlockFormat;
use self::config::{Family, Shape, UNUSED_POSITIONS};
use self::names::POSITIONS;
use self::reader::{Fault, Gguf, StoredTensor};
use super::computed_tensor::{ComputedTensor, serialize};
use super::file::{ModelDirectoryError, quoted, read_file, unsupported};
use super::modules::DenseFile;
use super::token_heads::TokenHeads;
use super::{MAX_WEIGHTS, ModelDirectory, StatedSteps};
use crate::package::manifest::{DenseLayer, MAX_DENSE, MAX_TOKENIZER, Precision};
use crate::package::registry::KnownModel;

/// Extension of the files.
const EXTENSION: &str = "gguf";

/// Dense layers after the pooling, in order. Only Gemma has them.
const DENSE: [&str; 2] = ["dense_2.weight", "dense_3.weight"];

/// Returns whether `path` is a file with the extension of the format.
pub(in crate::package) fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION))
        && fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir())
}

/// Reads the model in the file `path`.
///
/// `stated` and the registry's facts about `known` supply the pooling if the file has none.
/// Vectors get length 1 unless these say otherwise: the format does not state the normalization,
/// and the programs of llama.cpp normalize every vector.
///
/// # Errors
/// When the file cannot be read, is damaged, contains a model that is not supported or has a format
/// of tensors that is not supported, or when its pooling is unknown or contradicts `stated`.
pub(super) fn read(
    path: &Path,
    stated: StatedSteps,
    known: Option<&KnownModel>,
) -> Result<ModelDirectory, ModelDirectoryError> {
    let bytes = read_file(path, MAX_WEIGHTS)?;
    let convert = || {
        let file = Gguf::parse(&bytes)?;
        convert(&file, path, stated, known)
    };
    convert().map_err(|reason: Fault| unsupported(path, reason))
}

fn convert(
    file: &Gguf<'_>,
    path: &Path,
    stated: StatedSteps,
    known: Option<&KnownModel>,
) -> Result<ModelDirectory, Fault> {
    let shape = Shape::read(file)?;
    let pooling = pooling(shape.pooling, stated, known)?;
    let mut dimensions = shape.hidden_size;
    let mut dense = Vec::new();
    if shape.family == Family::Gemma3 {
        for tensor in DENSE.iter().filter_map(|name| file.tensors.get(name)) {
            let layer = dense_layer(tensor, dimensions, path)?;
            dimensions = layer.layer.out_features;
            dense.push(layer);
        }
    }
    Ok(ModelDirectory {
        architecture: shape.family.name(),
        hidden_size: shape.hidden_size,
        dimensions,
        matryoshka_dimensions: Vec::new(),
        max_sequence_length: shape.max_sequence_length,
        pooling,
        dense,
        normalize: stated.normalize.or(known.and_then(|known| known.normalize)).unwrap_or(true),
        classifier: None,
        token_heads: TokenHeads::default(),
        prompts: BTreeMap::new(),
        default_prompt: None,
        config: shape.config.to_string().into_bytes(),
        tokenizer: tokenizer::build(file, shape.family)?,
        weights: serialize(&tensors(file, shape.family)?, MAX_WEIGHTS)?,
        weights_path: path.to_owned(),
        precision: default_precision(file),
    })
}

/// Returns the pooling with the number `number` in llama.cpp, or the stated or known one if the
/// file has none.
fn pooling(
    number: Option<u64>,
    stated: StatedSteps,
    known: Option<&KnownModel>,
) -> Result<&'static str, Fault> {
    let found = match number {
        None | Some(0) => None,
        Some(1) => Some("mean"),
        Some(2) => Some("cls"),
        Some(3) => Some("lasttoken"),
        Some(4) => {
            return Err(
                "it is a reranker; take model.safetensors, config.json and tokenizer.json \
                        of the repository from which it was converted"
                    .to_owned(),
            );
        }
        Some(other) => return Err(format!("its pooling_type {other} is unknown")),
    };
    match (found, stated.pooling) {
        (Some(found), Some(stated)) if found != stated => {
            Err(format!("its pooling is {found}, but --pooling is {stated}; leave out --pooling"))
        }
        _ => found.or(stated.pooling).or(known.and_then(|known| known.pooling)).ok_or_else(|| {
            "it does not state its pooling; name the known model with --original (`caxton model \
             known` lists them), or give --pooling mean|cls|max|mean_sqrt_len|lasttoken"
                .to_owned()
        }),
    }
}

/// Returns the precision by default: f16 if the file has matrices of 16 bits or fewer, but not
/// bf16, which has a wider range.
fn default_precision(file: &Gguf<'_>) -> Option<Precision> {
    let is_short =
        |tensor: &StoredTensor<'_>| !matches!(tensor.format, BlockFormat::F32 | BlockFormat::Bf16);
    file.tensors.values().any(is_short).then_some(Precision::F16)
}

/// Returns the dense layer with the matrix `tensor`, for vectors of length `in_features`.
fn dense_layer(
    tensor: &StoredTensor<'_>,
    in_features: usize,
    path: &Path,
) -> Result<DenseFile, Fault> {
    let &[out_features, columns] = tensor.shape.as_slice() else {
        return Err(format!("a dense layer has the shape {:?}", tensor.shape));
    };
    if columns != in_features {
        return Err(format!("a dense layer has {columns} inputs, expected {in_features}"));
    }
    let matrix = BTreeMap::from([("linear.weight".to_owned(), plain(tensor)?)]);
    Ok(DenseFile {
        layer: DenseLayer { in_features, out_features, bias: false, activation: "identity".into() },
        path: path.to_owned(),
        weights: serialize(&matrix, MAX_DENSE)?,
    })
}

/// Returns the tensors of the encoder under their original names.
fn tensors<'a>(
    file: &'a Gguf<'_>,
    family: Family,
) -> Result<BTreeMap<String, ComputedTensor<'a>>, Fault> {
    let names = family.names();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &file.tensors {
        if names::is_unused(name) || (family == Family::Gemma3 && DENSE.contains(name)) {
            continue;
        }
        if family == Family::JinaBert && name.ends_with(".ffn_gate.weight") {
            // A part of the tensor ffn_up.
            continue;
        }
        let original = names.original(name).ok_or_else(|| {
            let (name, family) = (quoted(name), family.name());
            format!("tensor {name} is not one of the tensors of {family} that Caxton reads")
        })?;
        let computed = if family == Family::Gemma3 && name.ends_with("norm.weight") {
            changed(tensor, tensor.shape.clone(), |values| {
                values.iter_mut().for_each(|value| *value -= 1.0);
            })
        } else if family.counts_from_padding()
            && original.strip_suffix(".weight") == Some(POSITIONS)
        {
            behind_padding(tensor)
        } else if let Some(gate) = gate_of(file, family, name) {
            joined(gate, tensor)
        } else {
            plain(tensor)
        }?;
        tensors.insert(original, computed);
    }
    Ok(tensors)
}

/// Returns the gate that belongs to the tensor `name` of an older file of jina-bert.
fn gate_of<'a, 'f>(file: &'a Gguf<'f>, family: Family, name: &str) -> Option<&'a StoredTensor<'f>> {
    let layer = name.strip_suffix(".ffn_up.weight").filter(|_| family == Family::JinaBert)?;
    file.tensors.get(format!("{layer}.ffn_gate.weight").as_str())
}

/// Returns the tensor with its values as they are stored; those of blocks as f32.
fn plain<'a>(tensor: &'a StoredTensor<'_>) -> Result<ComputedTensor<'a>, Fault> {
    let dtype = match tensor.format {
        BlockFormat::F32 => Dtype::F32,
        BlockFormat::F16 => Dtype::F16,
        BlockFormat::Bf16 => Dtype::BF16,
        _ => return changed(tensor, tensor.shape.clone(), |_values| {}),
    };
    let bytes = tensor.bytes;
    sized(ComputedTensor::new(dtype, tensor.shape.clone(), move || Cow::Borrowed(bytes)))
}

/// Returns the tensor with the given shape, in f32 and after `change`.
fn changed<'a>(
    tensor: &'a StoredTensor<'_>,
    shape: Vec<usize>,
    change: impl Fn(&mut Vec<f32>) + 'a,
) -> Result<ComputedTensor<'a>, Fault> {
    let values = move || {
        let mut values = decoded(tensor);
        change(&mut values);
        let mut bytes = Vec::with_capacity(4 * values.len());
        for value in values {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        Cow::Owned(bytes)
    };
    sized(ComputedTensor::new(Dtype::F32, shape, values))
}

/// Returns the table of positions with rows of zeros for those that no token uses.
fn behind_padding<'a>(tensor: &'a StoredTensor<'_>) -> Result<ComputedTensor<'a>, Fault> {
    let &[rows, columns] = tensor.shape.as_slice() else {
        return Err(format!("the table of positions has the shape {:?}", tensor.shape));
    };
    // The table has at least one row of this length, so the product fits.
    let shape = vec![rows.saturating_add(UNUSED_POSITIONS), columns];
    if rows == 0 {
        return Err("the table of positions is empty".to_owned());
    }
    changed(tensor, shape, move |values| {
        values.splice(0..0, std::iter::repeat_n(0.0, UNUSED_POSITIONS * columns));
    })
}

/// Returns one matrix with the rows of `gate` and then those of `up`.
fn joined<'a>(
    gate: &'a StoredTensor<'_>,
    up: &'a StoredTensor<'_>,
) -> Result<ComputedTensor<'a>, Fault> {
    let (&[first, columns], &[second, other]) = (gate.shape.as_slice(), up.shape.as_slice()) else {
        return Err("the tensors ffn_gate and ffn_up are not matrices".to_owned());
    };
    if columns != other {
        return Err(format!("ffn_gate has {columns} columns, but ffn_up has {other}"));
    }
    changed(up, vec![first.saturating_add(second), columns], |values| {
        values.splice(0..0, decoded(gate));
    })
}

fn decoded(tensor: &StoredTensor<'_>) -> Vec<f32> {
    let mut values = Vec::new();
    tensor.format.decode(tensor.bytes, &mut values);
    values
}

fn sized(tensor: Option<ComputedTensor<'_>>) -> Result<ComputedTensor<'_>, Fault> {
    tensor.ok_or_else(|| "a tensor is larger than the memory".to_owned())
}
