//! Converts the weights in an ONNX file to a safetensors file. The graph is not run: the engine
//! computes the model, and takes from the graph only the names of the weights.
//!
//! `torch.onnx.export` and optimum keep the name of a parameter, except for the matrix of a linear
//! layer. Its transpose gets a name such as `onnx::MatMul_123`, and the only trace of the parameter
//! is the name of the node that uses it: `/encoder/layer.0/attention/self/query/MatMul`. Of
//! parameters with equal values, one is stored, and `Identity` nodes name the others.
//!
//! The format is that of <https://github.com/onnx/onnx/blob/v1.19.0/onnx/onnx.proto>, a message of
//! Protocol Buffers. Only the fields that matter here are read.
//!
//! Invariants:
//! 1. Nothing is copied before the checks: names and values are parts of the file. Numbers of nodes
//!    and tensors are limited.
//! 2. All tensors together are at most [`SHARING`] times as long as the file, so a small file
//!    cannot describe large weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::computed_tensor::{ComputedTensor, serialize, transpose};
use super::file::{ModelDirectoryError, quoted, read_file, unsupported};

/// Description of a fault of the file, to be printed after its name.
type Fault = String;

/// Maximum number of nodes of a graph. An encoder with 100 layers has 10,000.
const MAX_NODES: usize = 1 << 17;
/// Maximum number of tensors. An encoder with 100 layers has 2,000.
const MAX_TENSORS: usize = 1 << 16;
/// Maximum number of axes of a tensor.
const MAX_AXES: usize = 8;
/// Maximum factor between the length of the tensors and that of the file.
const SHARING: u64 = 4;

/// Numbers of types of values.
const FLOAT: u64 = 1;
const UINT8: u64 = 2;
const INT8: u64 = 3;
const FLOAT16: u64 = 10;
const BFLOAT16: u64 = 16;

/// Operators of quantized graphs.
const QUANTIZED: [&str; 6] = [
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulNBits",
    "QLinearMatMul",
];
/// Operators that onnxruntime writes for several of the exported ones. They have joined or renamed
/// weights.
const FUSED: [&str; 5] = [
    "Attention",
    "EmbedLayerNormalization",
    "FusedMatMul",
    "MultiHeadAttention",
    "SkipLayerNormalization",
];

/// Reads the weights of the file at `path`, at most `limit` bytes, as a safetensors file.
///
/// Holds the input and the output in memory at the same time.
///
/// # Errors
/// When the file cannot be read, is damaged, or its weights are quantized, fused or in other files.
pub(super) fn read_as_safetensors(path: &Path, limit: u64) -> Result<Vec<u8>, ModelDirectoryError> {
    let bytes = read_file(path, limit)?;
    convert(&bytes, limit).map_err(|reason| unsupported(path, reason))
}

fn convert(bytes: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
    let graph = Graph::parse(bytes)?;
    let tensors = graph.named_tensors()?;
    if tensors.is_empty() {
        return Err("it contains no weights with names".to_owned());
    }
    let longest = (bytes.len() as u64).saturating_mul(SHARING);
    serialize(&tensors, limit.min(longest))
}

fn damaged() -> Fault {
    "it is not an ONNX file, or damaged or incomplete: copy the file again".to_owned()
}

/// Value of a field of a message.
#[derive(Clone, Copy)]
enum Field<'f> {
    Number(u64),
    Bytes(&'f [u8]),
}

impl<'f> Field<'f> {
    fn number(self) -> Result<u64, Fault> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(damaged()),
        }
    }

    fn bytes(self) -> Result<&'f [u8], Fault> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(damaged()),
        }
    }

    fn text(self) -> Result<&'f str, Fault> {
        str::from_utf8(self.bytes()?).map_err(|_invalid| damaged())
    }
}

/// Unread fields of a message. Fields with numbers of a fixed size are left out.
struct Message<'f> {
    rest: &'f [u8],
}

impl<'f> Message<'f> {
    /// Returns the number and the value of the next field.
    fn next(&mut self) -> Result<Option<(u64, Field<'f>)>, Fault> {
        while !self.rest.is_empty() {
            let tag = self.varint()?;
            let value = match tag & 7 {
                0 => Field::Number(self.varint()?),
                1 => {
                    self.take(8)?;
                    continue;
                }
                2 => {
                    let length = usize::try_from(self.varint()?).map_err(|_too_large| damaged())?;
                    Field::Bytes(self.take(length)?)
                }
                5 => {
                    self.take(4)?;
                    continue;
                }
                _ => return Err(damaged()),
            };
            return Ok(Some((tag >> 3, value)));
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Result<&'f [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Reads a number of at most 64 bits, seven bits a byte.
    fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or_else(damaged)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(damaged())
    }
}

/// Calls `field` with each field of the message `bytes`.
fn each<'f>(
    bytes: &'f [u8],
    mut field: impl FnMut(u64, Field<'f>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut message = Message { rest: bytes };
    while let Some((number, value)) = message.next()? {
        field(number, value)?;
    }
    Ok(())
}

/// Tensor that is stored in the file.
#[derive(Clone, Debug, Default)]
struct Tensor<'f> {
    name: &'f str,
    shape: Vec<usize>,
    kind: u64,
    /// Values; `None` if they are elsewhere.
    values: Option<&'f [u8]>,
}

impl<'f> Tensor<'f> {
    fn parse(bytes: &'f [u8]) -> Result<Self, Fault> {
        let mut tensor = Self::default();
        each(bytes, |number, field| {
            match (number, field) {
                (1, Field::Number(length)) => tensor.add_axis(length)?,
                // Several numbers together.
                (1, Field::Bytes(lengths)) => {
                    let mut lengths = Message { rest: lengths };
                    while !lengths.rest.is_empty() {
                        tensor.add_axis(lengths.varint()?)?;
                    }
                }
                (2, field) => tensor.kind = field.number()?,
                (8, field) => tensor.name = field.text()?,
                (9, field) => tensor.values = Some(field.bytes()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(tensor)
    }

    fn add_axis(&mut self, length: u64) -> Result<(), Fault> {
        if self.shape.len() == MAX_AXES {
            return Err(format!("tensor {} has more than {MAX_AXES} axes", quoted(self.name)));
        }
        self.shape.push(usize::try_from(length).map_err(|_too_large| damaged())?);
        Ok(())
    }

    /// Returns the type in safetensors of a tensor that can be a weight.
    fn dtype(&self) -> Option<Dtype> {
        match self.kind {
            FLOAT => Some(Dtype::F32),
            FLOAT16 => Some(Dtype::F16),
            BFLOAT16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// Returns the tensor, or its transpose.
    fn computed(&self, dtype: Dtype, is_transposed: bool) -> Result<ComputedTensor<'f>, Fault> {
        let refuse =
            |reason: &str| format!("tensor {} {:?} {reason}", quoted(self.name), self.shape);
        let values = self.values.ok_or_else(|| {
            refuse(
                "has its values in another file or as a list; export the model again as one file",
            )
        })?;
        let size = dtype.bitsize() / 8;
        let computed = match *self.shape.as_slice() {
            [rows, columns] if is_transposed => {
                let transposed = move || Cow::Owned(transpose(values, columns, size));
                ComputedTensor::new(dtype, vec![columns, rows], transposed)
            }
            _ => ComputedTensor::new(dtype, self.shape.clone(), move || Cow::Borrowed(values)),
        };
        computed
            .filter(|tensor| tensor.bytes() == values.len())
            .ok_or_else(|| refuse("has another number of values than its shape"))
    }
}

/// Node of a graph: an operator, the names of the first inputs and of the first output.
#[derive(Clone, Copy, Debug, Default)]
struct Node<'f> {
    name: &'f str,
    operator: &'f str,
    inputs: [&'f str; 2],
    output: &'f str,
}

impl<'f> Node<'f> {
    fn parse(bytes: &'f [u8]) -> Result<Self, Fault> {
        let mut node = Self::default();
        let (mut inputs, mut outputs) = (0, 0);
        each(bytes, |number, field| {
            match number {
                1 => {
                    let input = field.text()?;
                    if let Some(place) = node.inputs.get_mut(inputs) {
                        *place = input;
                    }
                    inputs += 1;
                }
                2 => {
                    let output = field.text()?;
                    if outputs == 0 {
                        node.output = output;
                    }
                    outputs += 1;
                }
                3 => node.name = field.text()?,
                4 => node.operator = field.text()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(node)
    }

    /// Returns the name of the weight of the module that the node belongs to.
    fn weight_name(&self) -> Option<String> {
        let (module, _operator) = self.name.strip_prefix('/')?.rsplit_once('/')?;
        Some(format!("{}.weight", module.replace('/', ".")))
    }
}

/// Tensors of a graph and the nodes that use or name them.
struct Graph<'f> {
    tensors: BTreeMap<&'f str, Tensor<'f>>,
    nodes: Vec<Node<'f>>,
}

impl<'f> Graph<'f> {
    fn parse(bytes: &'f [u8]) -> Result<Self, Fault> {
        let mut graph = None;
        each(bytes, |number, field| {
            if number == 7 {
                graph = Some(field.bytes()?);
            }
            Ok(())
        })?;
        let mut parsed = Self { tensors: BTreeMap::new(), nodes: Vec::new() };
        each(graph.ok_or_else(damaged)?, |number, field| match number {
            1 => parsed.add_node(Node::parse(field.bytes()?)?),
            5 => parsed.add_tensor(Tensor::parse(field.bytes()?)?),
            _ => Ok(()),
        })?;
        Ok(parsed)
    }

    fn add_node(&mut self, node: Node<'f>) -> Result<(), Fault> {
        let operator = node.operator;
        if QUANTIZED.contains(&operator) {
            return Err(quantized(&format!("the operator {operator}")));
        }
        if FUSED.contains(&operator) {
            return Err(format!(
                "it has the operator {operator}, which onnxruntime made of several others; take \
                 the file before this optimization, or model.safetensors of the same repository"
            ));
        }
        if !["MatMul", "Identity"].contains(&operator) {
            return Ok(());
        }
        if self.nodes.len() == MAX_NODES {
            return Err(format!("it has more than {MAX_NODES} nodes"));
        }
        self.nodes.push(node);
        Ok(())
    }

    fn add_tensor(&mut self, tensor: Tensor<'f>) -> Result<(), Fault> {
        if [INT8, UINT8].contains(&tensor.kind) && tensor.shape.len() > 1 {
            return Err(quantized(&format!("the tensor {} of bytes", quoted(tensor.name))));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(format!("it has more than {MAX_TENSORS} tensors"));
        }
        let name = tensor.name;
        match self.tensors.insert(name, tensor) {
            Some(_) => Err(format!("the tensor {} appears twice", quoted(name))),
            None => Ok(()),
        }
    }

    /// Returns the weights by the names of the parameters.
    fn named_tensors(&self) -> Result<BTreeMap<String, ComputedTensor<'f>>, Fault> {
        let mut named = BTreeMap::new();
        let mut insert = |name: String, tensor: ComputedTensor<'f>| {
            let quoted = quoted(&name);
            match named.insert(name, tensor) {
                Some(_) => Err(format!("two tensors are the parameter {quoted}")),
                None => Ok(()),
            }
        };
        let mut multiplied = BTreeMap::new();
        for node in &self.nodes {
            let is_product = node.operator == "MatMul";
            let input = node.inputs[usize::from(is_product)];
            let Some(tensor) = self.tensors.get(input) else { continue };
            let Some(dtype) = tensor.dtype() else { continue };
            if !is_product {
                if is_parameter(node.output) {
                    insert(node.output.to_owned(), tensor.computed(dtype, false)?)?;
                }
                continue;
            }
            // The product has the matrix on its right, so it is the transpose of the parameter.
            let name = match is_parameter(input) {
                true => Some(input.to_owned()),
                false => node.weight_name(),
            };
            if let Some(name) = name.filter(|_| tensor.shape.len() == 2)
                && multiplied.insert(name.clone(), input) != Some(input)
            {
                insert(name, tensor.computed(dtype, true)?)?;
            }
        }
        for (name, tensor) in &self.tensors {
            if let Some(dtype) = tensor.dtype()
                && is_parameter(name)
                && !multiplied.contains_key(*name)
            {
                insert((*name).to_owned(), tensor.computed(dtype, false)?)?;
            }
        }
        Ok(named)
    }
}

/// Returns whether `name` is that of a parameter, and not one that the exporter made.
fn is_parameter(name: &str) -> bool {
    [".weight", ".bias"].iter().any(|end| name.ends_with(end)) && !name.contains(['/', ':'])
}

fn quantized(what: &str) -> Fault {
    format!(
        "it has {what}, so its weights are quantized; take onnx/model.onnx or model.safetensors of \
         the same repository"
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    /// Returns a field with bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![(number << 3) | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            field.push(((length & 0x7f) | 0x80).to_le_bytes()[0]);
            length >>= 7;
        }
        field.push(length.to_le_bytes()[0]);
        field.extend(bytes);
        field
    }

    fn node(operator: &str, name: &str, inputs: &[&str], output: &str) -> Vec<u8> {
        let mut node: Vec<u8> =
            inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
        node.extend(field(2, output.as_bytes()));
        node.extend(field(3, name.as_bytes()));
        node.extend(field(4, operator.as_bytes()));
        field(1, &node)
    }

    fn tensor(name: &str, kind: u8, shape: &[u8], values: &[u8]) -> Vec<u8> {
        let mut tensor: Vec<u8> = shape.iter().flat_map(|length| [1 << 3, *length]).collect();
        tensor.extend([2 << 3, kind]);
        tensor.extend(field(8, name.as_bytes()));
        tensor.extend(field(9, values));
        field(5, &tensor)
    }

    fn model(parts: &[Vec<u8>]) -> Vec<u8> {
        field(7, &parts.concat())
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn matrices_get_their_names_and_shapes_back() {
        let matrix = f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let bytes = model(&[
            node("MatMul", "/layer.0/query/MatMul", &["x", "onnx::MatMul_7"], "y"),
            node("MatMul", "/layer.0/MatMul", &["y", "x"], "z"),
            node("Identity", "Identity_3", &["layer.0.query.bias"], "layer.1.query.bias"),
            tensor("onnx::MatMul_7", 1, &[2, 3], &matrix),
            tensor("layer.0.query.bias", 1, &[3], &f32s(&[7.0; 3])),
            tensor("onnx::Mul_9", 1, &[1], &f32s(&[1.0])),
            tensor("ids.weight", 7, &[1], &[0; 8]),
        ]);
        let converted = convert(&bytes, LIMIT).unwrap();
        let converted = SafeTensors::deserialize(&converted).unwrap();
        let query = converted.tensor("layer.0.query.weight").unwrap();
        assert_eq!(query.shape(), [3, 2]);
        assert_eq!(query.data(), f32s(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(converted.tensor("layer.1.query.bias").unwrap().data(), f32s(&[7.0; 3]));
        assert_eq!(converted.len(), 3);
    }

    #[test]
    fn other_graphs_are_refused_by_name() {
        let weight = || tensor("a.weight", 1, &[1], &[0; 4]);
        let external = field(5, &[field(8, b"a.weight"), vec![1 << 3, 1, 2 << 3, 1]].concat());
        let mut shared = vec![tensor("a.weight", 1, &[4, 100], &[0; 1600])];
        let alias = |n: usize| node("Identity", "", &["a.weight"], &format!("{n}.weight"));
        shared.extend((0..99).map(alias));
        for (bytes, part) in [
            (Vec::new(), "it is not an ONNX file"),
            (b"GGUF, not ONNX".to_vec(), "it is not an ONNX file"),
            (vec![0xff; 11], "it is not an ONNX file"),
            (field(7, &[0x0a, 0x7f]), "damaged or incomplete"),
            (model(&[node("MatMulInteger", "", &[], "")]), "its weights are quantized"),
            (model(&[node("DequantizeLinear", "", &[], "")]), "its weights are quantized"),
            (model(&[tensor("a_quantized", 3, &[2, 2], &[0; 4])]), "its weights are quantized"),
            (model(&[node("Attention", "", &[], "")]), "the operator Attention, which onnxruntime"),
            (model(&[external]), "values in another file"),
            (model(&[weight(), weight()]), "\"a.weight\" appears twice"),
            (model(&[tensor("a.weight", 1, &[2], &[0; 4])]), "another number of values"),
            (model(&[tensor("a.weight", 1, &[1; 9], &[0; 4])]), "more than 8 axes"),
            (model(&[tensor("onnx::Mul_9", 1, &[1], &[0; 4])]), "no weights with names"),
            (model(&shared), "take more than"),
        ] {
            let message = convert(&bytes, LIMIT).unwrap_err();
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/conversion/tiny-bert-mean.onnx")
    }

    #[test]
    fn exported_model_has_the_tensors_of_the_original() {
        let exported = read_as_safetensors(&golden(), LIMIT).unwrap();
        let exported = SafeTensors::deserialize(&exported).unwrap();
        let original = golden().with_file_name("../tiny-bert-mean/model.safetensors");
        let original = std::fs::read(original).unwrap();
        let original = SafeTensors::deserialize(&original).unwrap();
        let encoder = original.iter().filter(|(name, _)| !name.starts_with("pooler."));
        for (name, view) in encoder {
            let found = exported.tensor(name).unwrap();
            assert_eq!((found.shape(), found.data()), (view.shape(), view.data()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_of_onnx_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = std::fs::read(golden()).unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            drop(convert(&bytes, LIMIT));
            drop(convert(&bytes[..length.index(bytes.len())], LIMIT));
        }
    }
}
