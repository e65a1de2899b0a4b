//! Divides the matrices of a mixture of experts.
//!
//! The published file of nomic-embed-text-v2-moe has two matrices for all experts of a layer, with
//! the rows of one expert after those of another. The second matrix is transposed. A package has
//! two matrices `[out, in]` for each expert, so they are rounded, read and packed like all others.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;

use super::computed_tensor::{ComputedTensor, serialize, transpose};
use super::file::{ModelDirectoryError, parse, quoted, unsupported};
use super::{MAX_WEIGHTS, ModelDirectory};
use crate::package::manifest::CONFIG;

/// Maximum number of experts, which is that of the engine.
const MAX_EXPERTS: usize = 64;
/// Maximum number of tensors after the division. nomic-embed-text-v2-moe has fewer than 300.
const MAX_TENSORS: usize = 1 << 16;
/// Maximum length of the name of a tensor in bytes. The division repeats a name for each expert.
const MAX_NAME: usize = 256;
/// Matrices of a layer: the end of the name in the published file, the end of the name of a matrix
/// in a package, and whether the published one is transposed.
const MATRICES: [(&str, &str, bool); 2] =
    [("experts.mlp.w1", "fc1.weight", false), ("experts.mlp.w2", "fc2.weight", true)];

#[derive(Deserialize)]
struct Config {
    num_experts: Option<usize>,
}

impl ModelDirectory {
    /// Divides the matrices of experts in the weights, if there are any. Needs memory for the
    /// weights again.
    ///
    /// # Errors
    /// When a matrix does not have the rows of all experts, or the result would be too large.
    pub(in crate::package) fn divide_experts(&mut self) -> Result<(), ModelDirectoryError> {
        if self.architecture != "nomic_bert" {
            return Ok(());
        }
        let config: Config = parse(&self.weights_path.with_file_name(CONFIG), &self.config)?;
        let divided = divide(&self.weights, config.num_experts.unwrap_or(0))
            .map_err(|reason| unsupported(&self.weights_path, reason))?;
        if let Some(divided) = divided {
            self.weights = divided;
        }
        Ok(())
    }
}

/// Returns the safetensors file `weights` with matrices for each of `experts` experts; `None` if no
/// matrix has the rows of experts.
fn divide(weights: &[u8], experts: usize) -> Result<Option<Vec<u8>>, String> {
    let file = SafeTensors::deserialize(weights)
        .map_err(|error| format!("it is not a safetensors file: {error}"))?;
    if !file.iter().any(|(name, _)| matrix_of(name).is_some()) {
        return Ok(None);
    }
    if !(1..=MAX_EXPERTS).contains(&experts) {
        return Err(format!(
            "it has experts, but num_experts of {CONFIG} is {experts}; expected 1 to {MAX_EXPERTS}"
        ));
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let Some((module, part, is_transposed)) = matrix_of(name) else {
            let data = view.data();
            let values = move || Cow::Borrowed(data);
            insert(
                &mut tensors,
                name.to_owned(),
                ComputedTensor::new(view.dtype(), view.shape().to_vec(), values),
            )?;
            continue;
        };
        let matrix = ExpertMatrix::new(&view, experts)
            .map_err(|reason| format!("tensor {} has {reason}", quoted(name)))?;
        for expert in 0..experts {
            let name = format!("{module}experts.{expert}.{part}");
            insert(&mut tensors, name, matrix.tensor(expert, is_transposed))?;
        }
    }
    serialize(&tensors, MAX_WEIGHTS).map(Some)
}

/// Inserts `tensor`, which is `None` if it is too large, as `name`.
///
/// # Errors
/// When there is another tensor with this name, or a limit is reached.
fn insert<'a>(
    tensors: &mut BTreeMap<String, ComputedTensor<'a>>,
    name: String,
    tensor: Option<ComputedTensor<'a>>,
) -> Result<(), String> {
    let quoted = quoted(&name);
    let tensor = tensor.ok_or_else(|| format!("tensor {quoted} is too large"))?;
    if name.len() > MAX_NAME {
        return Err(format!("the name {quoted} has more than {MAX_NAME} bytes"));
    }
    if tensors.len() == MAX_TENSORS {
        return Err(format!("it has more than {MAX_TENSORS} tensors"));
    }
    match tensors.insert(name, tensor) {
        Some(_) => Err(format!("two tensors have the name {quoted}")),
        None => Ok(()),
    }
}

/// Returns the start of the name of a matrix of all experts, before `experts`, the end of the names
/// of the matrices of single experts, and whether the matrix is transposed.
fn matrix_of(name: &str) -> Option<(&str, &'static str, bool)> {
    MATRICES.iter().find_map(|&(end, part, is_transposed)| {
        Some((name.strip_suffix(end)?, part, is_transposed))
    })
}

/// Matrix with the rows of all experts.
struct ExpertMatrix<'a> {
    view: TensorView<'a>,
    /// Rows of an expert.
    rows: usize,
    columns: usize,
    /// Size of a value in bytes.
    size: usize,
}

impl<'a> ExpertMatrix<'a> {
    /// Returns the matrix in `view`, or what is wrong with it.
    fn new(view: &TensorView<'a>, experts: usize) -> Result<Self, String> {
        let shape = view.shape();
        let &[rows, columns] = shape else { return Err(format!("the shape {shape:?}")) };
        if !rows.is_multiple_of(experts) {
            return Err(format!("{rows} rows, which num_experts {experts} does not divide"));
        }
        let bits = view.dtype().bitsize();
        if !bits.is_multiple_of(8) {
            return Err(format!("the type {:?}", view.dtype()));
        }
        Ok(Self { view: view.clone(), rows: rows / experts, columns, size: bits / 8 })
    }

    /// Returns the matrix of `expert`, or its transpose.
    fn tensor(&self, expert: usize, is_transposed: bool) -> Option<ComputedTensor<'a>> {
        let Self { view, rows, columns, size } = self;
        let (rows, columns, size) = (*rows, *columns, *size);
        let bytes = rows * columns * size;
        let data = &view.data()[expert * bytes..][..bytes];
        if is_transposed {
            let values = move || Cow::Owned(transpose(data, columns, size));
            ComputedTensor::new(view.dtype(), vec![columns, rows], values)
        } else {
            ComputedTensor::new(view.dtype(), vec![rows, columns], move || Cow::Borrowed(data))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::directory_fixture::{Values, safetensors};

    /// Returns a layer with two experts of 3 rows and 2 columns, and a bias.
    fn layer() -> [Values<'static>; 3] {
        let values = |first: u8| (first..first + 12).map(f32::from).collect();
        [
            ("layers.1.mlp.experts.mlp.w1", vec![6, 2], values(0)),
            ("layers.1.mlp.experts.mlp.w2", vec![6, 2], values(20)),
            ("layers.1.mlp.experts.bias", vec![2], vec![0.5, 0.25]),
        ]
    }

    #[test]
    fn experts_get_matrices_of_their_own() {
        let expected = safetensors(&[
            ("layers.1.mlp.experts.0.fc1.weight", vec![3, 2], vec![0., 1., 2., 3., 4., 5.]),
            ("layers.1.mlp.experts.0.fc2.weight", vec![2, 3], vec![20., 22., 24., 21., 23., 25.]),
            ("layers.1.mlp.experts.1.fc1.weight", vec![3, 2], vec![6., 7., 8., 9., 10., 11.]),
            ("layers.1.mlp.experts.1.fc2.weight", vec![2, 3], vec![26., 28., 30., 27., 29., 31.]),
            ("layers.1.mlp.experts.bias", vec![2], vec![0.5, 0.25]),
        ]);
        assert_eq!(divide(&safetensors(&layer()), 2).unwrap(), Some(expected));
    }

    #[test]
    fn file_without_experts_stays() {
        let [_, _, bias] = layer();
        assert_eq!(divide(&safetensors(&[bias]), 0).unwrap(), None);
    }

    #[test]
    fn impossible_experts_are_refused() {
        let file = safetensors(&layer());
        let count = "it has experts, but num_experts of config.json is";
        for (experts, expected) in [
            (0, format!("{count} 0; expected 1 to 64")),
            (usize::MAX, format!("{count} {}; expected 1 to 64", usize::MAX)),
            (
                4,
                "tensor \"layers.1.mlp.experts.mlp.w1\" has 6 rows, which num_experts 4 does not \
                 divide"
                    .to_owned(),
            ),
        ] {
            let [first, _, bias] = layer();
            let file = if experts == 4 { safetensors(&[first, bias]) } else { file.clone() };
            assert_eq!(divide(&file, experts).unwrap_err(), expected);
        }
        let flat = safetensors(&[("experts.mlp.w2", vec![4], vec![1.0; 4])]);
        let message = "tensor \"experts.mlp.w2\" has the shape [4]";
        assert_eq!(divide(&flat, 2).unwrap_err(), message);
        let [first, _, _] = layer();
        let other = ("layers.1.mlp.experts.0.fc1.weight", vec![1], vec![1.0]);
        let message = "two tensors have the name \"layers.1.mlp.experts.0.fc1.weight\"";
        assert_eq!(divide(&safetensors(&[first, other]), 2).unwrap_err(), message);
        let name = format!("{}.experts.mlp.w1", "x".repeat(MAX_NAME));
        let message =
            divide(&safetensors(&[(name.as_str(), vec![2, 1], vec![1.0; 2])]), 2).unwrap_err();
        assert!(message.ends_with("has more than 256 bytes"), "{message}");
        let names: Vec<String> =
            (0..=MAX_TENSORS / 64).map(|n| format!("{n}.experts.mlp.w1")).collect();
        let many: Vec<Values<'_>> =
            names.iter().map(|name| (name.as_str(), vec![0, 1], Vec::new())).collect();
        let message = divide(&safetensors(&many), MAX_EXPERTS).unwrap_err();
        assert_eq!(message, "it has more than 65536 tensors");
        for shape in [vec![4, 0], vec![0, 1 << 60]] {
            let empty = safetensors(&[("experts.mlp.w2", shape, Vec::new())]);
            assert!(divide(&empty, 2).unwrap().is_some());
        }
    }
}
