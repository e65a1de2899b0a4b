//! Reading and packing of the weights of an encoder, and their memory.

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::Encoder;
use super::rotation::Rotations;
use crate::base::quantization;
use crate::engine::config::{EncoderConfig, RelativeBias};
use crate::engine::layer::disentangled::{self, DistanceRows, DistanceTables};
use crate::engine::layer::{Layer, Norm, Packing, tensor};
use crate::engine::linear::{Linear, OperandFormat};
use crate::engine::scratch::RowShape;
use crate::engine::tensor_names::{self, EmbeddingNames, LayerNames};
use crate::engine::weights::{self, Header, MappedTable, Tensor, Tensors};
use crate::engine::{EngineError, WeightsFile, position_bias};

/// Returns the position embeddings plus the embedding of the first token type. Returns one row, or
/// none, if the model has no position embeddings.
fn positions(
    tensors: &Tensors<'_>,
    names: &EmbeddingNames,
    config: &EncoderConfig,
) -> Result<Vec<f32>, EngineError> {
    let hidden = config.hidden_size;
    let mut positions = match config.embeddings.positions {
        0 => vec![0.0; if config.embeddings.types > 0 { hidden } else { 0 }],
        _ => tensor(tensors, names.positions)?.values(),
    };
    if config.embeddings.types > 0 {
        let mut first = vec![0.0; hidden];
        tensor(tensors, names.types)?.read_row(0, &mut first);
        for position in positions.chunks_exact_mut(hidden) {
            position.iter_mut().zip(&first).for_each(|(value, other)| *value += other);
        }
    }
    Ok(positions)
}

/// Returns the difference between the embeddings of the second and the first token type; nothing if
/// the model has fewer types.
fn second_type(
    tensors: &Tensors<'_>,
    names: &EmbeddingNames,
    config: &EncoderConfig,
) -> Result<Vec<f32>, EngineError> {
    if config.embeddings.types < 2 {
        return Ok(Vec::new());
    }
    let types = tensor(tensors, names.types)?;
    let [mut first, mut second] = [0, 1].map(|_| vec![0.0; config.hidden_size]);
    types.read_row(0, &mut first);
    types.read_row(1, &mut second);
    second.iter_mut().zip(&first).for_each(|(value, first)| *value -= first);
    Ok(second)
}

/// Returns the biases of each head by distance, for texts of at most `max_positions` tokens, if the
/// encoder adds them to its scores.
fn relative_bias(
    tensors: &Tensors<'_>,
    names: &EmbeddingNames,
    config: &EncoderConfig,
    max_positions: usize,
) -> Result<Option<Vec<Vec<f32>>>, EngineError> {
    Ok(match config.relative_bias {
        None | Some(RelativeBias::Disentangled(_)) => None,
        Some(RelativeBias::Buckets) => {
            let table = tensor(tensors, names.relative_bias)?.values();
            Some(position_bias::by_distance(&table, config.heads(), max_positions))
        }
        Some(RelativeBias::Alibi) => Some(position_bias::alibi(config.heads(), max_positions)),
    })
}

/// Returns the order of the hidden channels for int8: large channels, which need a scale of their
/// own, come first.
fn channel_order(tensors: &Tensors<'_>, channels: usize) -> Vec<usize> {
    let mut norms: Vec<[Vec<f32>; 2]> = Vec::new();
    for (name, weight) in tensors {
        // In an encoder, only norms have a one-dimensional tensor with this suffix. Those of a head
        // have another length.
        let is_norm = weight.shape == [channels];
        let Some(norm) = name.strip_suffix(".weight").filter(|_| is_norm) else { continue };
        let bias = tensors.get(&format!("{norm}.bias"));
        let bias = bias.map_or_else(|| vec![0.0; channels], Tensor::values);
        norms.push([weight.values(), bias]);
    }
    quantization::channel_order(&norms, channels)
}

impl Encoder {
    /// Reads and packs the encoder of `config` for texts of at most `max_positions` tokens. The
    /// weights are in the safetensors `file` with its `header`. The formats are those of the linear
    /// layers and of attention.
    ///
    /// Packs on the rayon pool of the caller, and releases the stored weights after packing. `file`
    /// is kept for the table of words.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if a tensor is missing, unknown, of another shape or not
    /// finite.
    pub(in crate::engine) fn read(
        config: &EncoderConfig,
        max_positions: usize,
        (file, header): (Box<dyn WeightsFile>, Header),
        (format, attention): (OperandFormat, OperandFormat),
    ) -> Result<Self, EngineError> {
        let tensors = weights::read_with(
            &header,
            weights::WEIGHTS,
            &*file,
            |name| tensor_names::canonical(config.family, name),
            tensor_names::encoder_tensors(config),
        )?;
        let names = LayerNames::of(config.family);
        let embeddings = EmbeddingNames::of(config.family);
        let natural: Vec<usize> = (0..config.hidden_size).collect();
        let read_norm = |name, order: &[usize]| Norm::read(&tensors, name, order, config.norm);
        let norm = config.embeddings.norm.then(|| read_norm(embeddings.norm, &natural));
        let order = match format {
            OperandFormat::Int8(_) => channel_order(&tensors, config.hidden_size),
            OperandFormat::F32 | OperandFormat::Bf16 => natural,
        };
        let final_norm = config.final_norm.then(|| read_norm(embeddings.final_norm, &order));
        let packing = Packing { format, order };
        let (distances, vectors) = match config.relative_bias {
            Some(RelativeBias::Disentangled(buckets)) => (
                Some(DistanceRows::new(buckets, max_positions)),
                Some(disentangled::read_vectors(&tensors, config)?),
            ),
            None | Some(RelativeBias::Alibi | RelativeBias::Buckets) => (None, None),
        };
        let layers = (0..config.layers.len())
            .into_par_iter()
            .map(|index| {
                // Read the tables first, because a layer releases the stored weights.
                let read = |vectors: &Vec<f32>| {
                    DistanceTables::read(&tensors, config, index, vectors, attention)
                };
                let distances = vectors.as_ref().map(read).transpose()?;
                let layer = Layer::read(&tensors, &names, index, config, &packing)?;
                Ok(Layer { distances, ..layer })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let relative_bias = relative_bias(&tensors, &embeddings, config, max_positions)?;
        let positions = positions(&tensors, &embeddings, config)?;
        let second_type = second_type(&tensors, &embeddings, config)?;
        let (norm, final_norm) = (norm.transpose()?, final_norm.transpose()?);
        let projection = match config.projection {
            Some(outputs) => {
                Some((packing.projection(&tensors, tensor_names::PROJECTION, outputs)?, outputs))
            }
            None => None,
        };
        let words = tensor(&tensors, embeddings.words)?.location();
        drop(tensors);
        #[expect(clippy::cast_possible_truncation, reason = "norms compute in f32")]
        let epsilon = config.norm_epsilon as f32;
        Ok(Self {
            packing,
            shape: RowShape::new(config, format, attention),
            hidden: config.hidden_size,
            words: MappedTable::new(file, words),
            word_scale: config.embeddings.scale,
            positions,
            second_type,
            has_positions: config.embeddings.positions > 0,
            padding_id: config.embeddings.padding_id,
            norm,
            final_norm,
            projection,
            epsilon,
            normalizes_products: config.placement.is_before(),
            relative_bias,
            distances,
            rotations: Rotations::new(config, max_positions),
            layers,
        })
    }

    /// Returns the memory of the weights, in bytes.
    pub(in crate::engine) fn bytes(&self) -> u64 {
        let bias = self.relative_bias.iter().flatten().map(Vec::len).sum::<usize>();
        let norms = [&self.norm, &self.final_norm].into_iter().flatten().map(Norm::len);
        let floats = self.positions.len()
            + self.second_type.len()
            + norms.sum::<usize>()
            + bias
            + self.distances.as_ref().map_or(0, DistanceRows::len)
            + self.rotations.len();
        let layers = self.layers.iter().map(Layer::bytes).sum::<u64>();
        let projection = self.projection.as_ref().map_or(0, |(linear, _)| linear.bytes());
        self.words.bytes() + (floats * size_of::<f32>()) as u64 + layers + projection
    }

    /// Returns the memory that the weights of `config` will take, in bytes, without the table of
    /// words and without outliers.
    pub(in crate::engine) fn bytes_of(
        config: &EncoderConfig,
        max_positions: usize,
        (format, attention): (OperandFormat, OperandFormat),
    ) -> u64 {
        let (bias, tables) = match config.relative_bias {
            Some(RelativeBias::Alibi | RelativeBias::Buckets) => {
                (config.heads() * DistanceRows::len_of(max_positions), 0)
            }
            Some(RelativeBias::Disentangled(buckets)) => (
                DistanceRows::len_of(max_positions),
                DistanceTables::bytes_of(config, buckets, attention),
            ),
            None => (0, 0),
        };
        let hidden = config.hidden_size;
        let positions = match config.embeddings.positions {
            0 => usize::from(config.embeddings.types > 0),
            positions => positions,
        };
        let norms = usize::from(config.embeddings.norm) + usize::from(config.final_norm);
        let second_type = usize::from(config.embeddings.types > 1);
        let floats = (positions + second_type) * hidden
            + norms * Norm::len_of(config.norm, hidden)
            + bias
            + Rotations::len_of(config, max_positions);
        let layers = config.layers.iter().map(|layer| Layer::bytes_of(format, config, layer));
        let projection = config
            .projection
            .map_or(0, |outputs| Linear::bytes_of(OperandFormat::F32, outputs, &[hidden]));
        let layers = layers.sum::<u64>().saturating_add(tables);
        (floats * size_of::<f32>()) as u64 + layers + projection
    }
}
