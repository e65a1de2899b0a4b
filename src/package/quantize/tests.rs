//! Tests of `quantize`.

use std::path::Path;

use proptest::prelude::*;

use super::super::directory_fixture::{Values, safetensors};
use super::*;

/// Number of hidden channels in tests that need one.
const CHANNELS: usize = 200;

fn convert(weights: &[u8], precision: Precision) -> Result<Vec<u8>, QuantizeError> {
    super::convert(weights, precision, CHANNELS)
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    values("test", tensor).unwrap()
}

/// Returns a safetensors file with one tensor of `dtype`.
fn file(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
    ::safetensors::serialize([(name, view)], None).unwrap()
}

#[test]
fn int8_matches_known_matrix() {
    let mut matrix = vec![0.0; MIN_INT8_ROWS * 2];
    matrix[..6].copy_from_slice(&[127.0, -64.6, 0.0, 0.0, 1e-40, 0.0]);
    let weights = safetensors(&[
        ("m", vec![MIN_INT8_ROWS, 2], matrix),
        ("bias", vec![2], vec![0.1, 0.2]),
        ("small", vec![1, 2], vec![0.3, 0.4]),
    ]);
    let packed = convert(&weights, Precision::Int8).unwrap();
    let packed = SafeTensors::deserialize(&packed).unwrap();
    let mut names = packed.names();
    names.sort_unstable();
    assert_eq!(names, ["bias", "m", "m.scale", "small"]);
    let matrix = packed.tensor("m").unwrap();
    assert_eq!((matrix.dtype(), matrix.shape()), (Dtype::I8, &[MIN_INT8_ROWS, 2][..]));
    assert_eq!(matrix.data()[..6], [127, 191, 0, 0, 0, 0]);
    let scales = packed.tensor("m.scale").unwrap();
    assert_eq!((scales.dtype(), scales.shape()), (Dtype::F32, &[MIN_INT8_ROWS][..]));
    assert_eq!(floats(&scales), [1.0; MIN_INT8_ROWS]);
    assert_eq!(floats(&packed.tensor("bias").unwrap()), [0.1, 0.2]);
    assert_eq!(floats(&packed.tensor("small").unwrap()), [0.3, 0.4]);
}

#[test]
fn linear_columns_are_rounded_in_engine_blocks() {
    let value = |index: usize| ((index * 7919 % 2003) as f32 / 1001.0 - 1.0).powi(3);
    let linear: Vec<f32> = (0..MIN_INT8_ROWS * 200).map(value).collect();
    let weight: Vec<f32> = (0..200).map(|at| if at % 13 == 5 { 20.0 } else { 1.0 }).collect();
    let weights = safetensors(&[
        ("x.dense.weight", vec![MIN_INT8_ROWS, 200], linear.clone()),
        ("x.embeddings.weight", vec![MIN_INT8_ROWS, 200], linear.clone()),
        ("x.LayerNorm.gamma", vec![200], weight.clone()),
        ("x.LayerNorm.beta", vec![200], vec![0.0; 200]),
    ]);
    let packed = convert(&weights, Precision::Int8).unwrap();
    let packed = SafeTensors::deserialize(&packed).unwrap();
    let order = channel_order(&[[weight, vec![0.0; 200]]], 200);
    assert_eq!(order[..3], [5, 18, 31]);
    let ends = input_blocks("x.dense.weight", 200, 200);
    let blocks = packed.tensor("x.dense.weight.block").unwrap();
    assert_eq!((blocks.dtype(), blocks.shape()), (Dtype::U32, &[200][..]));
    let (blocks, _) = blocks.data().as_chunks();
    let blocks: Vec<u32> = blocks.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let scales = packed.tensor("x.dense.weight.scale").unwrap();
    assert_eq!(scales.shape(), [MIN_INT8_ROWS, ends.len()]);
    let scales = floats(&scales);
    let integers = packed.tensor("x.dense.weight").unwrap();
    for (row, values) in linear.chunks(200).enumerate() {
        let ordered: Vec<f32> = order.iter().map(|&column| values[column]).collect();
        let expected = QuantizedRow::round_to(quantization::STEPS, &ordered, &ends);
        assert_eq!(scales[row * ends.len()..][..ends.len()], expected.scales);
        for (place, &column) in order.iter().enumerate() {
            let block = ends.partition_point(|&end| end <= place);
            assert_eq!(blocks[column] as usize, block);
            let integer = integers.data()[row * 200 + column];
            assert_eq!(integer, expected.integers[place].to_le_bytes()[0]);
        }
    }
    let table = packed.tensor("x.embeddings.weight.scale").unwrap();
    assert_eq!(table.shape(), [MIN_INT8_ROWS]);
    assert!(packed.tensor("x.embeddings.weight.block").is_err());
}

#[test]
fn channels_are_ordered_by_norms_without_bias() {
    let size = |large: usize| move |at| if at == large { 20.0 } else { 1.0 };
    let norm = |large| (0..CHANNELS).map(size(large)).collect::<Vec<f32>>();
    let matrix = |columns: usize| vec![0.5; MIN_INT8_ROWS * columns];
    let weights = safetensors(&[
        ("layers.0.mlp.up_proj.weight", vec![MIN_INT8_ROWS, CHANNELS], matrix(CHANNELS)),
        ("layers.0.self_attn.o_proj.weight", vec![MIN_INT8_ROWS, 256], matrix(256)),
        ("layers.0.input_layernorm.weight", vec![CHANNELS], norm(150)),
        ("layers.0.post_attention_layernorm.weight", vec![CHANNELS], norm(170)),
        // Neither the norm of a head nor a bias orders the channels.
        ("layers.0.self_attn.q_norm.weight", vec![64], vec![9.0; 64]),
        ("layers.0.mlp.up_proj.bias", vec![CHANNELS], norm(190)),
    ]);
    let blocks = |channels: usize, name: &str| -> Option<Vec<u32>> {
        let packed = super::convert(&weights, Precision::Int8, channels).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        let tensor = packed.tensor(&format!("{name}.block")).ok()?;
        let (words, _) = tensor.data().as_chunks();
        Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    };
    let up = blocks(CHANNELS, "layers.0.mlp.up_proj.weight").unwrap();
    let first: Vec<usize> = (0..CHANNELS).filter(|&channel| up[channel] == 0).collect();
    assert_eq!(first, (0..14).chain([150, 170]).collect::<Vec<_>>());
    assert_eq!(blocks(CHANNELS, "layers.0.self_attn.o_proj.weight"), None);
    // A number of channels that no norm has orders nothing and takes no memory.
    let natural = blocks(usize::MAX, "layers.0.mlp.up_proj.weight").unwrap();
    assert!(natural.is_sorted());
}

/// Encoders of `tests/golden`, at least one of each family, with 64 hidden channels.
const ENCODERS: [&str; 20] = [
    "tiny-bert-f16",
    "tiny-bert-mean",
    "tiny-camembert",
    "tiny-deberta-v2-cross-encoder",
    "tiny-distilbert",
    "tiny-embedding-gemma2",
    "tiny-eurobert",
    "tiny-gemma3-bidirectional",
    "tiny-gemma3-causal",
    "tiny-gte",
    "tiny-gte-en",
    "tiny-modernbert",
    "tiny-modernbert-gelu",
    "tiny-modernbert-silu",
    "tiny-mpnet",
    "tiny-nomic-bert",
    "tiny-qwen3",
    "tiny-qwen3-bidirectional",
    "tiny-roberta",
    "tiny-xlm-roberta",
];

#[test]
fn exactly_the_large_matrices_of_each_family_become_integers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in ENCODERS {
        let weights = std::fs::read(golden.join(name).join("model.safetensors")).unwrap();
        let is_reranker = name.ends_with("cross-encoder");
        let convert = if is_reranker { convert_classifier } else { super::convert };
        let packed = convert(&weights, Precision::Int8, 64).unwrap();
        let (weights, packed) = (
            SafeTensors::deserialize(&weights).unwrap(),
            SafeTensors::deserialize(&packed).unwrap(),
        );
        let mut expected = BTreeSet::new();
        for (tensor, view) in weights.iter() {
            if is_unused(tensor) && !is_reranker {
                assert!(packed.tensor(tensor).is_err(), "{name} {tensor}");
                continue;
            }
            let found = packed.tensor(tensor).unwrap();
            assert_eq!(found.shape(), view.shape(), "{name} {tensor}");
            expected.insert(tensor.to_owned());
            match view.shape() {
                &[rows, columns] if rows >= MIN_INT8_ROWS && !is_head(tensor) => {
                    assert_eq!(found.dtype(), Dtype::I8, "{name} {tensor}");
                    let blocks = input_blocks(tensor, columns, 64).len();
                    let scales = packed.tensor(&format!("{tensor}.scale")).unwrap();
                    assert_eq!(scales.shape().iter().product::<usize>(), rows * blocks, "{tensor}");
                    expected.insert(format!("{tensor}.scale"));
                    let is_divided = packed.tensor(&format!("{tensor}.block")).is_ok();
                    assert_eq!(is_divided, blocks > 1, "{name} {tensor}");
                    expected.insert(format!("{tensor}.block"));
                    expected
                        .extend(["index", "value"].map(|part| format!("{tensor}.outlier.{part}")));
                }
                _ => {
                    assert_eq!(found.dtype(), Dtype::F32, "{name} {tensor}");
                    assert_eq!(floats(&found), floats(&view), "{name} {tensor}");
                }
            }
        }
        let other = packed.names().into_iter().find(|found| !expected.contains(*found));
        assert_eq!(other, None, "{name}");
    }
}

#[test]
fn outliers_are_stored_exactly() {
    let mut matrix = vec![0.5; MIN_INT8_ROWS * 3];
    (matrix[4], matrix[6]) = (-6.25, 3.5);
    let weights = safetensors(&[("m", vec![MIN_INT8_ROWS, 3], matrix)]);
    let packed = convert(&weights, Precision::Int8).unwrap();
    let packed = SafeTensors::deserialize(&packed).unwrap();
    let index = packed.tensor("m.outlier.index").unwrap();
    assert_eq!((index.dtype(), index.shape()), (Dtype::U32, &[2][..]));
    assert_eq!(index.data(), [4, 0, 0, 0, 6, 0, 0, 0]);
    assert_eq!(floats(&packed.tensor("m.outlier.value").unwrap()), [-6.25, 3.5]);
    let quantized = packed.tensor("m").unwrap();
    assert_eq!((quantized.data()[4], quantized.data()[6]), (0, 0));
    assert!((floats(&packed.tensor("m.scale").unwrap())[1] - 0.5 / 127.0).abs() < 4e-5);
}

#[test]
fn only_matrices_are_stored_below_f32() {
    let numbers = [0.5_f32, -1.25, 3.0, 0.0];
    let sources: [(Dtype, Vec<u8>); 3] = [
        (Dtype::F32, numbers.iter().flat_map(|number| number.to_le_bytes()).collect()),
        (
            Dtype::F16,
            numbers.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect(),
        ),
        (
            Dtype::BF16,
            numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect(),
        ),
    ];
    for (dtype, data) in &sources {
        for (shape, precision, expected) in [
            (&[2, 2][..], Precision::F32, Dtype::F32),
            (&[2, 2], Precision::F16, Dtype::F16),
            (&[4], Precision::F16, Dtype::F32),
            (&[4], Precision::Int8, Dtype::F32),
            (&[1, 2, 2], Precision::Int8, Dtype::F32),
        ] {
            let packed = convert(&file("t", *dtype, shape, data), precision).unwrap();
            let packed = SafeTensors::deserialize(&packed).unwrap();
            let tensor = packed.tensor("t").unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (expected, shape), "{dtype:?}");
            assert_eq!(floats(&tensor), numbers, "{dtype:?} {precision:?}");
        }
    }
}

#[test]
fn router_of_experts_stays_f32() {
    let shape = vec![MIN_INT8_ROWS, 2];
    let router = ("x.mlp.router.layer.weight", shape.clone(), vec![0.1; 2 * MIN_INT8_ROWS]);
    let expert = ("x.mlp.experts.0.fc1.weight", shape, vec![0.1; 2 * MIN_INT8_ROWS]);
    let weights = safetensors(&[router, expert]);
    for (precision, dtype) in [(Precision::F16, Dtype::F16), (Precision::Int8, Dtype::I8)] {
        let packed = convert(&weights, precision).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        let dtypes = ["x.mlp.router.layer.weight", "x.mlp.experts.0.fc1.weight"]
            .map(|name| packed.tensor(name).unwrap().dtype());
        assert_eq!(dtypes, [Dtype::F32, dtype]);
    }
}

#[test]
fn matrix_without_columns_gets_no_scales() {
    let shape = [usize::MAX / 8, 0];
    let packed = convert(&file("empty.weight", Dtype::F32, &shape, &[]), Precision::Int8);
    let packed = packed.unwrap();
    let tensors = SafeTensors::deserialize(&packed).unwrap();
    assert_eq!(tensors.names(), ["empty.weight"]);
    assert_eq!(tensors.tensor("empty.weight").unwrap().shape(), shape);
}

#[test]
fn native_precision_is_lossless() {
    for (dtype, expected) in
        [(Dtype::F32, Precision::F32), (Dtype::F16, Precision::F16), (Dtype::BF16, Precision::F32)]
    {
        let data = vec![0; dtype.bitsize() / 8 * 2];
        let weights = file("t", dtype, &[1, 2], &data);
        assert_eq!(native_precision(&weights).unwrap(), expected, "{dtype:?}");
    }
    assert!(native_precision(b"pickle").is_err());
}

#[test]
fn int4_table_has_only_its_words_in_four_bits() {
    let value = |index: usize| (index * 7919 % 2003) as f32 / 1001.0 - 1.0;
    let matrix: Vec<f32> = (0..MIN_INT8_ROWS * 64).map(value).collect();
    for words in ["bert.embeddings.word_embeddings.weight", "model.embed_tokens.weight"] {
        let weights = safetensors(&[
            // A table of words has 4 bits for any number of rows.
            (words, vec![3, 64], matrix[..3 * 64].to_vec()),
            ("embeddings.position_embeddings.weight", vec![MIN_INT8_ROWS, 64], matrix.clone()),
            ("query.weight", vec![MIN_INT8_ROWS, 64], matrix.clone()),
            ("query.bias", vec![2], vec![0.1, 0.2]),
        ]);
        let [int4, int8] = [Precision::Int4Table, Precision::Int8]
            .map(|precision| super::convert(&weights, precision, 64).unwrap());
        let int4 = SafeTensors::deserialize(&int4).unwrap();
        let int8 = SafeTensors::deserialize(&int8).unwrap();
        for (name, tensor) in int8.iter().filter(|(name, _)| *name != words) {
            assert_eq!(int4.tensor(name).unwrap(), tensor, "{name}");
        }
        assert_eq!(int4.len(), int8.len() + 1);
        let (integers, scales) =
            (int4.tensor(words).unwrap(), int4.tensor(&format!("{words}.scale")).unwrap());
        assert_eq!((integers.dtype(), integers.shape()), (Dtype::U8, &[3, 32][..]));
        assert_eq!((scales.dtype(), scales.shape()), (Dtype::F16, &[3, 2][..]));
        let (blocks, _) = integers.data().as_chunks();
        let rows = blocks.iter().zip(floats(&scales)).zip(matrix.as_chunks::<32>().0);
        for ((block, scale), values) in rows {
            let mut decoded = [0.0; int4::BLOCK];
            int4::decode(block, scale, &mut decoded);
            let errors = values.iter().zip(&decoded).map(|(value, near)| (value - near).powi(2));
            let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert!(errors.sum::<f32>() <= 32.0 * (largest / 13.9).powi(2));
        }
    }
}

#[test]
fn buffers_and_pooler_are_omitted() {
    let weights = safetensors(&[
        ("pooler.dense.weight", vec![1, 1], vec![f32::NAN]),
        ("bert.pooler.dense.bias", vec![1], vec![1.0]),
        ("embeddings.position_ids", vec![1, 1], vec![1.0]),
        ("lm_head.weight", vec![1, 1], vec![1.0]),
        ("cls.predictions.bias", vec![1], vec![1.0]),
        ("model.vision_tower.layers.0.norm.weight", vec![1], vec![1.0]),
        ("embeddings.position_embeddings.weight", vec![1, 1], vec![1.0]),
    ]);
    let packed = convert(&weights, Precision::F32).unwrap();
    let packed = SafeTensors::deserialize(&packed).unwrap();
    assert_eq!(packed.names(), ["embeddings.position_embeddings.weight"]);
}

#[test]
fn head_of_a_reranker_stays_in_f32() {
    let matrix = vec![0.5; MIN_INT8_ROWS * CHANNELS];
    let norm: Vec<f32> = (0..CHANNELS).map(|at| if at == 150 { 20.0 } else { 1.0 }).collect();
    let weights = safetensors(&[
        ("bert.encoder.query.weight", vec![MIN_INT8_ROWS, CHANNELS], matrix.clone()),
        ("bert.encoder.LayerNorm.weight", vec![CHANNELS], vec![1.0; CHANNELS]),
        ("bert.pooler.dense.weight", vec![MIN_INT8_ROWS, CHANNELS], matrix.clone()),
        ("classifier.weight", vec![1, CHANNELS], vec![0.5; CHANNELS]),
        ("head.norm.weight", vec![CHANNELS], norm),
        ("cls.predictions.bias", vec![1], vec![1.0]),
    ]);
    let packed = convert_classifier(&weights, Precision::Int8, CHANNELS).unwrap();
    let packed = SafeTensors::deserialize(&packed).unwrap();
    for name in ["bert.pooler.dense.weight", "classifier.weight", "head.norm.weight"] {
        assert_eq!(packed.tensor(name).unwrap().dtype(), Dtype::F32, "{name}");
    }
    assert_eq!(packed.tensor("bert.encoder.query.weight").unwrap().dtype(), Dtype::I8);
    assert!(packed.tensor("cls.predictions.bias").is_err());
    // The norm of the head does not order the channels of the encoder.
    let blocks = packed.tensor("bert.encoder.query.weight.block").unwrap();
    let (words, _) = blocks.data().as_chunks();
    assert!(words.iter().map(|word| u32::from_le_bytes(*word)).is_sorted());
    let packed = convert(&weights, Precision::F32).unwrap();
    assert!(SafeTensors::deserialize(&packed).unwrap().tensor("bert.pooler.dense.weight").is_err());
}

#[test]
fn unconvertible_tensor_is_refused_by_name() {
    let floats = |value| safetensors(&[("bad", vec![1, 2], vec![0.0, value])]);
    let cases = [
        (b"not safetensors".to_vec(), Precision::F32, "safetensors format"),
        (file("bad", Dtype::I64, &[1], &[0; 8]), Precision::F32, "tensor bad has the type I64"),
        (file("bad", Dtype::I8, &[1, 1], &[0]), Precision::Int8, "tensor bad has the type I8"),
        (floats(f32::NAN), Precision::F32, "tensor bad holds NaN"),
        (floats(f32::INFINITY), Precision::Int8, "tensor bad holds inf"),
        (floats(f32::NEG_INFINITY), Precision::F16, "tensor bad holds -inf"),
        (floats(65_520.0), Precision::F16, "pack it as f32 or int8"),
        (
            safetensors(&[
                ("m", vec![MIN_INT8_ROWS, 1], vec![1.0; MIN_INT8_ROWS]),
                ("m.scale", vec![1], vec![1.0]),
            ]),
            Precision::Int8,
            "tensor m.scale",
        ),
        (
            safetensors(&[("word_embeddings.weight", vec![1, 48], vec![1.0; 48])]),
            Precision::Int4Table,
            "word_embeddings.weight has 48 columns, and int4-table needs a multiple of 32; pack \
             it as int8",
        ),
        (
            file("embed_tokens.weight", Dtype::F32, &[1 << 40, 0], &[]),
            Precision::Int4Table,
            "embed_tokens.weight has 0 columns",
        ),
        (
            safetensors(&[("word_embeddings.weight", vec![1, 32], vec![-1e6; 32])]),
            Precision::Int4Table,
            "holds -1000000, which int4-table cannot represent; pack it as int8",
        ),
        (
            safetensors(&[
                ("word_embeddings.weight", vec![1, 32], vec![1.0; 32]),
                ("word_embeddings.weight.scale", vec![1], vec![1.0]),
            ]),
            Precision::Int4Table,
            "tensor word_embeddings.weight.scale",
        ),
        // A static embedding has its table under another name.
        (
            safetensors(&[("embedding.weight", vec![1, 32], vec![1.0; 32])]),
            Precision::Int4Table,
            "no table of words of an encoder",
        ),
    ];
    for (weights, precision, part) in cases {
        let message = convert(&weights, precision).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert!(convert(&floats(65_504.0), Precision::F16).is_ok());
}

#[test]
fn dense_layer_has_exactly_its_tensors() {
    let layer =
        |bias| DenseLayer { in_features: 2, out_features: 1, bias, activation: "tanh".to_owned() };
    let weight: Values<'_> = ("linear.weight", vec![1, 2], vec![1.0; 2]);
    let bias: Values<'_> = ("linear.bias", vec![1], vec![1.0]);
    let both = safetensors(&[weight.clone(), bias]);
    assert_eq!(convert_dense(&both, &layer(true)).unwrap(), both);
    let alone = safetensors(&[weight]);
    assert!(convert_dense(&alone, &layer(false)).is_ok());
    let transposed = safetensors(&[("linear.weight", vec![2, 1], vec![1.0; 2])]);
    for (weights, bias) in [(&both, false), (&alone, true), (&transposed, false)] {
        let message = convert_dense(weights, &layer(bias)).unwrap_err().to_string();
        assert!(message.starts_with("expected linear."), "{message}");
    }
}

#[test]
fn conversion_is_independent_of_tensor_order() {
    let tensors: [Values<'_>; 3] = [
        ("b", vec![1, 2], vec![1.0, 2.0]),
        ("a", vec![2], vec![3.0, 4.0]),
        ("c", vec![2, 1], vec![5.0, 6.0]),
    ];
    // The writer sorts too: only different types change the order of the tensors.
    let mixed = |first: Dtype| {
        let half: Vec<u8> =
            [1.0, 2.0].iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect();
        let single: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|n| n.to_le_bytes()).collect();
        let of = |dtype| if dtype == Dtype::F16 { &half } else { &single };
        let other = if first == Dtype::F16 { Dtype::F32 } else { Dtype::F16 };
        let view = |dtype| TensorView::new(dtype, vec![1, 2], of(dtype)).unwrap();
        ::safetensors::serialize([("x", view(first)), ("y", view(other))], None).unwrap()
    };
    for precision in [Precision::F32, Precision::F16, Precision::Int8] {
        let once = convert(&safetensors(&tensors), precision).unwrap();
        assert_eq!(once, convert(&safetensors(&tensors), precision).unwrap());
        let [a, b] = [Dtype::F16, Dtype::F32].map(|first| convert(&mixed(first), precision));
        assert_eq!(a.unwrap(), b.unwrap());
    }
}

proptest! {
    #[test]
    fn int8_error_is_within_half_a_step(
        columns in 1_usize..300,
        magnitude in -30_i32..30,
        seed in prop::collection::vec(-1.0_f32..1.0, 200),
    ) {
        let rows = MIN_INT8_ROWS;
        let scale = 2.0_f32.powi(magnitude);
        let original: Vec<f32> =
            seed.iter().cycle().take(rows * columns).map(|value| value * scale).collect();
        let weights = safetensors(&[("m", vec![rows, columns], original.clone())]);
        let packed = convert(&weights, Precision::Int8).unwrap();
        let packed = SafeTensors::deserialize(&packed).unwrap();
        let scales = floats(&packed.tensor("m.scale").unwrap());
        let words = |name: &str| -> Vec<usize> {
            packed.tensor(name).map_or_else(|_none| Vec::new(), |tensor| {
                let (words, _) = tensor.data().as_chunks();
                words.iter().map(|word| u32::from_le_bytes(*word) as usize).collect()
            })
        };
        let mut blocks = words("m.block");
        prop_assert_eq!(blocks.is_empty(), columns <= 128);
        blocks.resize(columns, 0);
        let count = scales.len() / rows;
        prop_assert_eq!(count, columns.div_ceil(128));
        let quantized = packed.tensor("m").unwrap();
        let mut left = original.clone();
        words("m.outlier.index").into_iter().for_each(|index| left[index] = 0.0);
        let mut largest = vec![0.0_f32; scales.len()];
        for (index, (value, byte)) in left.iter().zip(quantized.data()).enumerate() {
            let block = index / columns * count + blocks[index % columns];
            let step = scales[block];
            let quantized = i8::from_le_bytes([*byte]);
            prop_assert!(quantized != i8::MIN);
            let error = (f32::from(quantized) * step - value).abs();
            prop_assert!(error <= step * 0.5 * (1.0 + 1e-4), "{value} {step} {error}");
            largest[block] = largest[block].max(value.abs());
        }
        // The largest value of a block uses the range: the step is at most 1 % larger than
        // necessary.
        for (largest, step) in largest.into_iter().zip(scales) {
            let exact = largest / 127.0;
            prop_assert!(!exact.is_normal() || (exact..=exact * 1.01).contains(&step));
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(convert(&bytes, Precision::Int8).is_err());
    }
}
