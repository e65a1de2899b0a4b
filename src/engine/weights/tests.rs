//! Tests: files that are read, and files that are refused.

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::engine::tensor_names::RequiredTensor;

/// Builds a safetensors file.
pub(in crate::engine) fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

pub(in crate::engine) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn i8s(values: &[i8]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn read_a(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Result<Vec<f32>, String> {
    let expected = [RequiredTensor::new("a", [2, 2])].into_iter();
    let canonical = |name: &str| (name != "ignored").then(|| name.replace("old", "a"));
    match read("m.safetensors", &file(tensors), canonical, expected) {
        Ok(weights) => Ok(weights["a"].values()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn every_stored_type_reads_as_f32() {
    let values = [1.0, -2.5, 0.0, 384.0];
    let halves = |bits: fn(f32) -> [u8; 2]| values.into_iter().flat_map(bits).collect();
    let cases: [(Dtype, Vec<u8>); 3] = [
        (Dtype::F32, f32s(&values)),
        (Dtype::F16, halves(|value| f16::from_f32(value).to_le_bytes())),
        (Dtype::BF16, halves(|value| bf16::from_f32(value).to_le_bytes())),
    ];
    for (dtype, data) in cases {
        assert_eq!(read_a(&[("a", dtype, &[2, 2], data)]), Ok(values.to_vec()), "{dtype:?}");
    }
}

#[test]
fn int8_outliers_are_placed_by_index() {
    let with = |dtype: Dtype, index: &[u32], values: &[f32]| {
        let data = index.iter().flat_map(|index| index.to_le_bytes()).collect();
        read_a(&[
            ("a", Dtype::I8, &[2, 2], i8s(&[1, 2, 3, 4])),
            ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 1.0])),
            ("a.outlier.index", dtype, &[index.len()], data),
            ("a.outlier.value", Dtype::F32, &[values.len()], f32s(values)),
        ])
    };
    assert_eq!(with(Dtype::U32, &[1, 2], &[9.5, -7.0]), Ok(vec![1.0, 9.5, -7.0, 4.0]));
    for (dtype, index, values, expected) in [
        (Dtype::U32, &[4][..], &[1.0][..], "\"a.outlier.index\" points at 4"),
        (Dtype::U32, &[1, 1], &[1.0, 2.0], "points at 1 twice"),
        (Dtype::F32, &[1], &[1.0], "has type F32, expected U32"),
        (Dtype::U32, &[1], &[1.0, 2.0], "has shape [2], expected [1]"),
        (Dtype::U32, &[1], &[f32::NAN], "has NaN"),
    ] {
        let message = with(dtype, index, values).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn int8_is_scaled_by_row() {
    let values = read_a(&[
        ("a", Dtype::I8, &[2, 2], i8s(&[127, -128, 3, 0])),
        ("a.scale", Dtype::F32, &[2], f32s(&[0.5, 2.0])),
    ]);
    assert_eq!(values, Ok(vec![63.5, -64.0, 6.0, 0.0]));
}

#[test]
fn int8_columns_use_their_block_scales() {
    let with = |dtype: Dtype, blocks: &[u32], scales: &[usize]| {
        let data = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
        let values: Vec<f32> = (0..scales.iter().product()).map(|at| 1.0 + at as f32).collect();
        read_a(&[
            ("a", Dtype::I8, &[2, 2], i8s(&[10, 20, 30, 40])),
            ("a.scale", Dtype::F32, scales, f32s(&values)),
            ("a.block", dtype, &[blocks.len()], data),
        ])
    };
    assert_eq!(with(Dtype::U32, &[1, 0], &[2, 2]), Ok(vec![20.0, 20.0, 120.0, 120.0]));
    assert_eq!(with(Dtype::U32, &[0, 0], &[2, 1]), Ok(vec![10.0, 20.0, 60.0, 80.0]));
    for (dtype, blocks, scales, expected) in [
        (Dtype::U32, &[0, 1][..], &[2][..], "\"a.scale\" has shape [2], expected [2, 2]"),
        (Dtype::U32, &[0, 1], &[2, 3], "\"a.scale\" has shape [2, 3], expected [2, 2]"),
        (Dtype::U32, &[0, 2], &[2, 3], "\"a.block\" has block 2, expected less than 2"),
        (Dtype::U32, &[0, u32::MAX], &[2, 2], "has block 4294967295"),
        (Dtype::U32, &[0], &[2, 1], "\"a.block\" has type U32 and shape [1], expected U32 and [2]"),
        (
            Dtype::F32,
            &[0, 1],
            &[2, 2],
            "\"a.block\" has type F32 and shape [2], expected U32 and [2]",
        ),
    ] {
        let message = with(dtype, blocks, scales).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

/// Returns two rows of 64 columns in 4 bits, all of them 1 and 3 above 0 in turn, and their
/// scales.
fn int4_table() -> (Vec<u8>, Vec<u8>) {
    let scales = [0.5_f32, -1.0, 0.0, 2.0].map(|scale| f16::from_f32(scale).to_le_bytes());
    (vec![0xb9; 2 * 32], scales.concat())
}

#[test]
fn int4_table_is_decoded_in_place() {
    const NAME: &str = "x.word_embeddings.weight";
    let (integers, scales) = int4_table();
    let bytes = file(&[
        (NAME, Dtype::U8, &[2, 32], integers),
        (&format!("{NAME}.scale"), Dtype::F16, &[2, 2], scales),
        ("another", Dtype::F32, &[1], f32s(&[7.0])),
    ]);
    let expected = [RequiredTensor::new(NAME, [2, 64]), RequiredTensor::new("another", [1])];
    let tensors = read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected.into_iter());
    let table = tensors.unwrap().remove(NAME).unwrap();
    let row = |first: f32, second: f32| {
        let block = |scale: f32| [[scale; 16], [3.0 * scale; 16]].concat();
        [block(first), block(second)].concat()
    };
    assert_eq!(table.values(), [row(0.5, -1.0), row(0.0, 2.0)].concat());
    assert!(table.integers(0).is_none() && table.block(0).is_none());
    let table = MappedTable::new(Box::new(bytes.clone()), table.location());
    let mut found = vec![0.0; 64];
    table.read_row(1, &mut found);
    assert_eq!(found, row(0.0, 2.0));
    // A file in memory counts as memory, and nothing is decoded in addition.
    assert_eq!((table.bytes(), table.mapped_bytes()), (bytes.len() as u64, 0));
}

#[test]
fn wrong_int4_tables_are_refused() {
    const NAME: &str = "word_embeddings.weight";
    let scale_name = format!("{NAME}.scale");
    let read = |name: &str, columns, scale: Option<(Dtype, &[usize], Vec<u8>)>| {
        let mut tensors = vec![(name, Dtype::U8, &[2, 32][..], int4_table().0)];
        tensors.extend(scale.map(|(dtype, shape, data)| (&*scale_name, dtype, shape, data)));
        let expected = [RequiredTensor::new(name, [2, columns])].into_iter();
        let bytes = file(&tensors);
        let read = read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected);
        read.err().unwrap().to_string()
    };
    let scales = int4_table().1;
    let infinite = [scales[2..].to_vec(), f16::INFINITY.to_le_bytes().to_vec()].concat();
    for (found, expected) in [
        (read(NAME, 64, None), "weight.scale\" [2, 2] is missing"),
        (read(NAME, 66, None), "has shape [2, 32], expected [2, 33]"),
        (read(NAME, 65, None), "shape [2, 65]; in 4 bits, a row is a multiple of 32 values"),
        (
            read(NAME, 64, Some((Dtype::F32, &[2, 1], scales.clone()))),
            "weight.scale\" has type F32, expected F16",
        ),
        (
            read(NAME, 64, Some((Dtype::F16, &[4], scales))),
            "weight.scale\" has shape [4], expected [2, 2]",
        ),
        (
            read(NAME, 64, Some((Dtype::F16, &[2, 2], infinite))),
            "weight.scale\" has inf at index 3",
        ),
        // A linear layer cannot be stored in 4 bits.
        (read("query.weight", 64, None), "\"query.weight\" has shape [2, 32], expected [2, 64]"),
        (read("query.weight", 32, None), "has type U8; supported types are F32, F16, BF16 and I8"),
    ] {
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn ignored_tensor_is_not_read() {
    let a = ("a", Dtype::F32, [2, 2].as_slice(), f32s(&[1.0; 4]));
    let ignored = ("ignored", Dtype::I64, [1].as_slice(), vec![0; 8]);
    assert_eq!(read_a(&[a, ignored]), Ok(vec![1.0; 4]));
}

#[test]
fn every_refusal_names_the_tensor() {
    let good = || f32s(&[1.0; 4]);
    let quantized = || i8s(&[1; 4]);
    type Tensors<'a> = Vec<(&'a str, Dtype, &'a [usize], Vec<u8>)>;
    let cases: Vec<(Tensors<'_>, &str)> = vec![
        (vec![], "\"a\" [2, 2] is missing"),
        (vec![("a", Dtype::F32, &[4], good())], "\"a\" has shape [4], expected [2, 2]"),
        (
            vec![("a", Dtype::F32, &[2, 2], good()), ("b", Dtype::F32, &[1], f32s(&[1.0]))],
            "\"b\" [1] is not part of this model",
        ),
        (
            vec![("a", Dtype::F32, &[2, 2], good()), ("old", Dtype::F32, &[2, 2], good())],
            "\"a\" is present twice, under two names",
        ),
        (
            vec![("a", Dtype::F32, &[2, 2], f32s(&[0.0, 1.0, f32::NAN, 0.0]))],
            "\"a\" has NaN at index 2",
        ),
        (
            vec![("a", Dtype::F32, &[2, 2], f32s(&[f32::INFINITY, 1.0, 0.0, 0.0]))],
            "\"a\" has inf at index 0",
        ),
        (
            vec![("a", Dtype::F64, &[2, 2], vec![0; 32])],
            "\"a\" has type F64; supported types are F32, F16, BF16 and I8",
        ),
        (vec![("a", Dtype::I8, &[2, 2], quantized())], "\"a.scale\" [2] is missing"),
        (
            vec![
                ("a", Dtype::I8, &[2, 2], quantized()),
                ("a.scale", Dtype::F32, &[1], f32s(&[1.0])),
            ],
            "\"a.scale\" has shape [1], expected [2]",
        ),
        (
            vec![("a", Dtype::I8, &[2, 2], quantized()), ("a.scale", Dtype::F16, &[2], vec![0; 4])],
            "\"a.scale\" has type F16, expected F32",
        ),
        (
            vec![
                ("a", Dtype::I8, &[2, 2], quantized()),
                ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 0.0])),
            ],
            "\"a.scale\" is 0 for row 1, expected above 0",
        ),
        (
            vec![
                ("a", Dtype::I8, &[2, 2], quantized()),
                ("a.scale", Dtype::F32, &[2], f32s(&[f32::NAN, 1.0])),
            ],
            "\"a.scale\" has NaN at index 0",
        ),
        (
            vec![
                ("a", Dtype::I8, &[2, 2], i8s(&[1, 1, 1, 127])),
                ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 1e38])),
            ],
            "\"a\" overflows f32 at index 3",
        ),
        (
            vec![
                ("a", Dtype::F32, &[2, 2], good()),
                ("a.scale", Dtype::F32, &[2], f32s(&[1.0, 1.0])),
            ],
            "\"a.scale\" [2] is not part of this model",
        ),
    ];
    for (tensors, message) in cases {
        let error = read_a(&tensors).unwrap_err();
        assert_eq!(error, format!("m.safetensors: tensor {message}"));
    }
}

#[test]
fn an_int8_vector_is_refused() {
    let bytes = file(&[("a", Dtype::I8, &[2], i8s(&[1, 1]))]);
    let expected = [RequiredTensor::new("a", [2])].into_iter();
    let error =
        read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected).err().unwrap();
    let message = "m.safetensors: tensor \"a\" has type I8 and shape [2]; only a matrix may have \
                   type I8";
    assert_eq!(error.to_string(), message);
}

#[test]
fn oversized_header_is_refused() {
    let with = |padding: usize, tensors: usize| {
        let names: Vec<String> = (0..tensors).map(|index| format!("t{index}")).collect();
        let all: Vec<(&str, Dtype, &[usize], Vec<u8>)> = names
            .iter()
            .map(|name| (name.as_str(), Dtype::F32, [1].as_slice(), f32s(&[1.0])))
            .collect();
        let mut bytes = file(&all);
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        bytes[..8].copy_from_slice(&(length + padding as u64).to_le_bytes());
        let end = usize::try_from(8 + length).unwrap();
        bytes.splice(end..end, std::iter::repeat_n(b' ', padding));
        let expected = (0..tensors).map(|index| RequiredTensor::new(format!("t{index}"), [1]));
        let read = read("m.safetensors", &bytes, |name| Some(name.to_owned()), expected);
        read.map(|tensors| tensors.len()).map_err(|error| crate::base::errors::chain(&error))
    };
    assert_eq!(with(0, 3), Ok(3));
    assert_eq!(with(64 << 10, 3), Ok(3));
    assert_eq!(with((64 << 10) + 2 * 1024, 3), Ok(3));
    let error = with((64 << 10) + 3 * 1024, 3).unwrap_err();
    assert_eq!(
        error,
        "m.safetensors cannot be read: its header is larger than 3 tensors need, which is \
         68608 bytes at most"
    );
    assert!(with(10 << 20, 3).unwrap_err().contains("larger than 3 tensors need"));
}

#[test]
fn tensor_name_in_error_is_escaped() {
    let evil = format!("\u{1b}[2J{}", "x".repeat(2000));
    let error = read_a(&[
        ("a", Dtype::F32, &[2, 2], f32s(&[1.0; 4])),
        (&evil, Dtype::F32, &[1], f32s(&[1.0])),
    ])
    .unwrap_err();
    assert!(error.starts_with("m.safetensors: tensor \"\\u{1b}[2Jxxx"), "{error}");
    assert!(error.ends_with("xxx…\" [1] is not part of this model"), "{error}");
    assert!(error.len() < 250, "{error}");
}

#[test]
fn invalid_safetensors_error_names_the_file() {
    for bytes in [&b""[..], &[255; 16], b"\x08\0\0\0\0\0\0\0{\"a\": 1}"] {
        let bytes = bytes.to_vec();
        let error = read("m.safetensors", &bytes, |_| None, std::iter::empty()).err().unwrap();
        assert_eq!(error.to_string(), "m.safetensors cannot be read");
    }
}
