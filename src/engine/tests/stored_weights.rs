//! Tests: weights that stay in a mapped file, and weights in integers.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::{OPTIONS, constant_bert, golden_file, golden_spec};
use crate::base::int4::Int4Block;
use crate::engine::weights::tests::{f32s, file};
use crate::engine::{
    Architecture, EngineOptions, FileSizes, ModelFiles, Precision, WeightsFile, WeightsFormat,
    footprint, load,
};

/// A file that looks like a mapped one, and records the ranges that are released and forgotten.
struct Mapped(Vec<u8>, Arc<Mutex<(Ranges, Ranges)>>);

type Ranges = Vec<Range<usize>>;

impl WeightsFile for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn release(&self, range: Range<usize>) {
        self.1.lock().unwrap().0.push(range);
    }

    fn forget(&self, range: Range<usize>) {
        self.1.lock().unwrap().1.push(range);
    }

    fn anonymous_bytes(&self) -> u64 {
        0
    }
}

#[test]
fn only_word_embeddings_stay_mapped() {
    let (spec, files) = constant_bert(0.5);
    let in_memory = load(&spec, files, OPTIONS).unwrap().embedder;
    let (_, files) = constant_bert(0.5);
    let noted = Arc::default();
    let file = Mapped(files.weights.bytes().to_vec(), Arc::clone(&noted));
    let length = file.0.len();
    let tensors = safetensors::SafeTensors::deserialize(&file.0).unwrap().len();
    let files: ModelFiles = ModelFiles { weights: Box::new(file), ..files };
    let embedder = load(&spec, files, OPTIONS).unwrap().embedder;
    // The word embedding table: five words of eight values.
    assert_eq!((embedder.mapped_bytes(), in_memory.mapped_bytes()), (5 * 8 * 4, 0));
    assert_eq!(embedder.weight_bytes(), in_memory.weight_bytes() - length as u64);
    let (released, forgotten) = &*noted.lock().unwrap();
    // Each tensor is released after its check. Six matrices are forgotten after packing, and at the
    // end the parts of the file before and after the word embedding table.
    assert_eq!((released.len(), forgotten.len()), (tensors, 6 + 2));
    let [before, after] = forgotten.last_chunk().unwrap();
    assert_eq!((before.start, after.end, after.start - before.end), (0, length, 5 * 8 * 4));
    assert_eq!(embedder.embed(&[&[1, 2]]).unwrap().len(), 8);
}

/// Quantizes the matrices of the safetensors file `original` to int8. `blocks` is the number of
/// column blocks with their own scales. The scale of block `b` is `1 + b` times as large as
/// necessary.
fn quantized(original: &[u8], blocks: usize) -> Vec<u8> {
    let tensors = safetensors::SafeTensors::deserialize(original).unwrap();
    let mut quantized = Vec::new();
    for (name, view) in tensors.iter() {
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let &[rows, columns] = view.shape() else {
            quantized.push((name.to_owned(), view.dtype(), view.shape().to_vec(), f32s(&values)));
            continue;
        };
        let (mut integers, mut scales) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(columns) {
            let largest = row.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
            let of_block = |block| scale * (1 + block) as f32;
            scales.extend((0..blocks).map(of_block));
            #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
            integers.extend(row.iter().enumerate().map(|(column, value)| {
                ((value / of_block(column % blocks)).round() as i8).to_le_bytes()[0]
            }));
        }
        let shape = if blocks == 1 { vec![rows] } else { vec![rows, blocks] };
        quantized.push((name.to_owned(), safetensors::Dtype::I8, vec![rows, columns], integers));
        quantized.push((format!("{name}.scale"), safetensors::Dtype::F32, shape, f32s(&scales)));
        if blocks > 1 {
            let block = |column| u32::try_from(column % blocks).unwrap().to_le_bytes();
            let data = (0..columns).flat_map(block).collect();
            quantized.push((format!("{name}.block"), safetensors::Dtype::U32, vec![columns], data));
        }
    }
    let quantized: Vec<_> = quantized
        .iter()
        .map(|(name, dtype, shape, data)| (&name[..], *dtype, &shape[..], data.clone()))
        .collect();
    file(&quantized)
}

#[test]
fn int8_vectors_are_close_to_f32() {
    let original = golden_file("tiny-bert-mean", "model.safetensors");
    let text: &[u32] = &[2, 220, 512, 449, 288, 465, 480, 3];
    let embed = |weights: Vec<u8>, precision| {
        let files: ModelFiles = ModelFiles {
            config: golden_file("tiny-bert-mean", "config.json"),
            tokenizer: golden_file("tiny-bert-mean", "tokenizer.json"),
            weights: Box::new(weights),
            dense: Vec::new(),
        };
        let spec = golden_spec("tiny-bert-mean", Architecture::Bert);
        let options = EngineOptions { precision, ..OPTIONS };
        load(&spec, files, options).unwrap().embedder.embed(&[text]).unwrap()
    };
    let exact = embed(original.clone(), Precision::F32);
    for precision in [Precision::F32, Precision::Int8] {
        // If there are two blocks, the columns alternate between them. So these blocks differ from
        // the engine's own blocks, each of which gets columns of both.
        for blocks in [1, 2] {
            let near = embed(quantized(&original, blocks), precision);
            let cosine: f32 = exact.iter().zip(&near).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.999 && exact != near, "{precision} {blocks}: {cosine}");
        }
    }
}

/// Stores the table of words of the safetensors file `original` in 4 bits.
fn with_int4_words(original: &[u8]) -> Vec<u8> {
    const WORDS: &str = "embeddings.word_embeddings.weight";
    let tensors = safetensors::SafeTensors::deserialize(original).unwrap();
    let mut stored = Vec::new();
    for (name, view) in tensors.iter() {
        if name != WORDS {
            stored.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            continue;
        }
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let blocks: Vec<_> = values.as_chunks().0.iter().map(Int4Block::round).collect();
        let integers = blocks.iter().flat_map(|block| block.bytes).collect();
        let scales = blocks.iter().flat_map(|block| block.scale.to_le_bytes()).collect();
        let [rows, columns] = [view.shape()[0], view.shape()[1]];
        stored.push((WORDS, safetensors::Dtype::U8, vec![rows, columns / 2], integers));
        let scale = "embeddings.word_embeddings.weight.scale";
        stored.push((scale, safetensors::Dtype::F16, vec![rows, columns / 32], scales));
    }
    let stored: Vec<_> = stored
        .iter()
        .map(|(name, dtype, shape, data)| (*name, *dtype, &shape[..], data.clone()))
        .collect();
    file(&stored)
}

#[test]
fn words_in_four_bits_stay_in_the_file() {
    let original = golden_file("tiny-bert-mean", "model.safetensors");
    let weights = with_int4_words(&original);
    let spec = golden_spec("tiny-bert-mean", Architecture::Bert);
    let files = |weights: Box<dyn WeightsFile>| ModelFiles {
        config: golden_file("tiny-bert-mean", "config.json"),
        tokenizer: golden_file("tiny-bert-mean", "tokenizer.json"),
        weights,
        dense: Vec::new(),
    };
    let exact = load(&spec, files(Box::new(original)), OPTIONS).unwrap().embedder;
    let noted = Arc::default();
    let length = weights.len();
    let mapped = Mapped(weights, Arc::clone(&noted));
    let embedder = load(&spec, files(Box::new(mapped)), OPTIONS).unwrap().embedder;

    let stored = WeightsFormat::Int4Table;
    let sizes = FileSizes { tokenizer: 0, weights: length as u64, dense: 0, stored };
    let config = golden_file("tiny-bert-mean", "config.json");
    let estimate = footprint(&spec, &config, None, sizes, OPTIONS).unwrap();
    // A row of 64 values has 32 bytes and two scales.
    assert_eq!((embedder.mapped_bytes(), estimate.mapped_bytes), (540 * 36, 540 * 36));
    // Without the file, both models take the same memory.
    let original = golden_file("tiny-bert-mean", "model.safetensors").len() as u64;
    assert_eq!(embedder.weight_bytes(), exact.weight_bytes() - original);
    let (_, forgotten) = &*noted.lock().unwrap();
    let [before, between, after] = forgotten.last_chunk().unwrap();
    assert_eq!((before.start, after.end), (0, length));
    let kept = (between.start - before.end) + (after.start - between.end);
    assert_eq!(kept, 540 * 36);

    let text: &[u32] = &[2, 220, 512, 449, 288, 465, 480, 3];
    let [exact, near] = [exact, embedder].map(|model| model.embed(&[text]).unwrap());
    let cosine: f32 = exact.iter().zip(&near).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.997 && exact != near, "{cosine}");
}
