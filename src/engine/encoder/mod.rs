//! The encoder: computes token vectors from token ids.
//!
//! The families differ in the steps of a layer, which [`Layer`] lists: where it normalizes, whether
//! it rotates queries and keys, which keys a query reaches, and whether the feed-forward layer is
//! gated or has experts. One loop over these steps computes all of them.
//!
//! The tokens of many texts are concatenated without padding between them. The residual stream is
//! f32 in every precision. Products are computed in the format of the weights; LayerNorm, softmax
//! and activations are computed in f32.
//!
//! The encoder holds the weights. It knows neither threads nor pooling.
//!
//! Invariant: the vectors of a text depend only on its ids, to the last bit.

mod experts;
mod feed_forward;
mod per_layer;
mod rotation;
mod together;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::EngineError;
use super::WeightsFile;
use super::attention::{AttentionHeads, AttentionOutput, DistanceTerms, Reach};
use super::buffer::Buffer;
use super::config::{EncoderConfig, RelativeBias};
use super::layer::disentangled::{self, DistanceRows, DistanceTables};
use super::layer::{FeedForward, HeadPart, Layer, Norm, Packing, tensor};
use super::linear::{KernelSession, Linear, Operand, OperandFormat};
use super::position_bias;
use super::scratch::{BLOCK, RowShape, ThreadScratch};
use super::simd::{PANEL_WIDTH, rowwise};
use super::tensor_names::{self, EmbeddingNames, LayerNames};
use super::token_type::id_and_type;
use super::weights::{self, Header, MappedTable, Tensor, Tensors};
use crate::base::quantization;
use rotation::Rotations;
pub(super) use rotation::TextStarts;
pub(super) use together::ThreadTeam;

/// Weights of an encoder.
pub(super) struct Encoder {
    packing: Packing,
    shape: RowShape,
    hidden: usize,
    pub(super) words: MappedTable,
    /// Factor of the word embeddings.
    word_scale: f32,
    /// Position embeddings plus the embedding of the first token type, `[positions, hidden]`.
    /// Without position embeddings, one row for all positions, or none.
    positions: Vec<f32>,
    /// Difference between the embeddings of the second and the first token type, `[hidden]`. Empty
    /// in a model with fewer types.
    second_type: Vec<f32>,
    /// Whether `positions` has a row for each position.
    has_positions: bool,
    /// Id of the padding token, for families whose positions begin after this id. A padding token
    /// has its own id as its position. `None`: positions begin at 0.
    padding_id: Option<u32>,
    /// Normalization of the embeddings.
    norm: Option<Norm>,
    /// Normalization after the last layer.
    final_norm: Option<Norm>,
    /// Product of the token vectors after that, and the number of its outputs.
    projection: Option<(Linear, usize)>,
    epsilon: f32,
    /// Whether the norm after a product applies to the product alone and not to its sum with the
    /// residual stream.
    normalizes_products: bool,
    relative_bias: Option<Vec<Vec<f32>>>,
    /// Rows of the tables of distances that the layers have.
    distances: Option<DistanceRows>,
    rotations: Rotations,
    layers: Vec<Layer>,
}

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
    pub(super) fn read(
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
    pub(super) fn bytes(&self) -> u64 {
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
    pub(super) fn bytes_of(
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

    /// Returns the format of the operands of the linear layers.
    pub(super) fn format(&self) -> OperandFormat {
        self.packing.format
    }

    /// Returns the number of values of a token vector that the encoder returns.
    pub(super) fn outputs(&self) -> usize {
        self.projection.as_ref().map_or(self.hidden, |(_, outputs)| *outputs)
    }

    /// Returns the distance between two rows of the residual stream, in values.
    pub(super) fn row(&self) -> usize {
        self.hidden.next_multiple_of(PANEL_WIDTH)
    }

    /// Returns the layers in their order.
    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the sizes and formats of a row in a forward pass.
    pub(super) fn shape(&self) -> &RowShape {
        &self.shape
    }

    /// Writes the embeddings of `text` to rows of `x`. All ids must be in the vocabulary, and may
    /// have a [token type](super::token_type).
    pub(super) fn embed(
        &self,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        text: &[u32],
        x: &mut [f32],
    ) {
        let (row, hidden) = (self.row(), self.hidden);
        // Position ids begin after the padding id and do not count padding tokens:
        // https://github.com/huggingface/transformers/blob/87b236ba2be8b3e48a7d0c8ca6513302736d2886/src/transformers/models/roberta/modeling_roberta.py
        let mut next = self.padding_id.map_or(0, |id| id as usize + 1);
        let x = &mut x[..text.len() * row];
        for (x, &token) in x.chunks_exact_mut(row).zip(text) {
            let (id, is_second) = id_and_type(token);
            self.words.read_row(id as usize, x);
            if self.word_scale != 1.0 {
                x[..hidden].iter_mut().for_each(|value| *value *= self.word_scale);
            }
            let position = if self.padding_id == Some(id) {
                id as usize
            } else {
                next += 1;
                next - 1
            };
            let position = if self.has_positions { position } else { 0 };
            let position = self.positions.get(position * hidden..).unwrap_or_default();
            x[..hidden].iter_mut().zip(position).for_each(|(value, other)| *value += other);
            if is_second {
                let second = &self.second_type;
                x[..hidden].iter_mut().zip(second).for_each(|(value, other)| *value += other);
            }
            // Clear the padding: the buffer may contain values of an earlier pass.
            x[hidden..].fill(0.0);
        }
        if let Some(norm) = &self.norm {
            norm.apply(session, x, row, self.epsilon);
        }
        // Int8 weights expect the channels in the packed order; the norm above used the natural
        // order.
        if matches!(self.packing.format, OperandFormat::Int8(_)) {
            scratch.block.reserve(hidden);
            let natural = &mut scratch.block.f32s_mut()[..hidden];
            for x in x.chunks_exact_mut(row) {
                natural.copy_from_slice(&x[..hidden]);
                for (value, &channel) in x.iter_mut().zip(&self.packing.order) {
                    *value = natural[channel];
                }
            }
        }
    }

    /// Copies the token vectors from rows of `x` to `vectors`, `[rows, outputs]`, with the channels
    /// in their natural order, or multiplies them with the last product. Returns them.
    pub(super) fn token_vectors<'a>(
        &self,
        session: &KernelSession,
        x: &[f32],
        block: &mut Buffer,
        vectors: &'a mut Buffer,
    ) -> &'a [f32] {
        let (row, outputs) = (self.row(), self.outputs());
        let values = x.len() / row * outputs;
        vectors.reserve(values);
        let vectors = &mut vectors.f32s_mut()[..values];
        if let Some((linear, _)) = &self.projection {
            block.reserve(self.shape.block());
            let blocks = x.chunks(BLOCK * row).zip(vectors.chunks_mut(BLOCK * outputs));
            for (x, vectors) in blocks {
                let operand = Operand::floats(bytemuck::cast_slice(x), row, x.len() / row);
                linear.for_each_panel(session, operand, block.f32s_mut(), |panel, results, _| {
                    let first = panel * PANEL_WIDTH;
                    let width = PANEL_WIDTH.min(outputs - first);
                    for (result, vector) in results.iter().zip(vectors.chunks_mut(outputs)) {
                        vector[first..][..width].copy_from_slice(&result[..width]);
                    }
                });
            }
            return vectors;
        }
        for (x, vector) in x.chunks_exact(row).zip(vectors.chunks_exact_mut(outputs)) {
            match self.packing.format {
                OperandFormat::F32 | OperandFormat::Bf16 => vector.copy_from_slice(&x[..outputs]),
                OperandFormat::Int8(_) => {
                    for (&value, &channel) in x.iter().zip(&self.packing.order) {
                        vector[channel] = value;
                    }
                }
            }
        }
        vectors
    }

    /// Writes the queries, keys and values of the rows of `x` to `heads`, for `layer`. `texts` are
    /// the texts of the pass.
    pub(super) fn project(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        x: &[f32],
        texts: &TextStarts,
        heads: &mut [u32],
    ) {
        let count = texts.rows();
        let stride = self.shape.head_stride(&layer.dims, count);
        let ThreadScratch { inputs, block, head, normed, .. } = scratch;
        block.reserve(self.shape.block());
        head.reserve(self.shape.head_block());
        normed.reserve(self.shape.normed());
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let x = &x[first * self.row()..];
            let norm = layer.input_norm.as_ref();
            let x = self.normalized(session, norm, x, rows, normed.f32s_mut());
            let operand = inputs.operand(session, &layer.states, x, self.row(), rows);
            for (index, states) in heads.chunks_mut(stride).take(layer.dims.all_heads()).enumerate()
            {
                let scratch = (block.f32s_mut(), head.f32s_mut());
                let head = (index, states);
                self.project_head(layer, session, operand, scratch, (texts, first), head);
            }
        }
    }

    /// Computes head `index` of the queries, keys and values for the rows of `operand`, which are
    /// the rows from `first` on of `texts`. Writes them to the same rows of `states`. `block` and
    /// `head` are memory for a block of results and for a block of the head.
    fn project_head(
        &self,
        layer: &Layer,
        session: &KernelSession,
        operand: Operand<'_>,
        (block, head): (&mut [f32], &mut [f32]),
        (texts, first): (&TextStarts, usize),
        (index, states): (usize, &mut [u32]),
    ) {
        let width = layer.dims.padded_head;
        let panels = width / PANEL_WIDTH;
        let part = layer.dims.part_of(index);
        let groups = self.shape.head_groups(&layer.dims);
        let states = &mut states[first * groups..];
        let direct = layer.heads.is_identity(part);
        for panel in 0..panels {
            let of_all = index * panels + panel;
            let results = layer.states.multiply_panel(session, operand, block, of_all, of_all + 1);
            if direct {
                store(session, self.shape.attention, states, groups, panel, results);
            } else {
                store(
                    session,
                    OperandFormat::F32,
                    bytemuck::cast_slice_mut(head),
                    width,
                    panel,
                    results,
                );
            }
        }
        if direct {
            return;
        }
        let head = &mut head[..operand.rows * width];
        if let Some(norm) = layer.heads.norm(part) {
            norm.apply(session, head, width, self.epsilon);
        }
        if part != HeadPart::Value
            && let Some(rope) = &layer.heads.rope
        {
            let rope = (rope, layer.dims.head);
            self.rotations.rotate(session, rope, head, width, (texts, first));
        }
        match self.shape.attention {
            OperandFormat::Bf16 => {
                rowwise::to_bf16(session.isa, head, bytemuck::cast_slice_mut(states));
            }
            _ => states[..head.len()].copy_from_slice(bytemuck::cast_slice(head)),
        }
    }

    /// Returns `rows` rows of `x`, normalized into `normed` if there is a `norm`.
    fn normalized<'a>(
        &self,
        session: &KernelSession,
        norm: Option<&Norm>,
        x: &'a [f32],
        rows: usize,
        normed: &'a mut [f32],
    ) -> &'a [f32] {
        let Some(norm) = norm else { return x };
        let row = self.row();
        normed[..rows * row].copy_from_slice(&x[..rows * row]);
        norm.apply(session, &mut normed[..rows * row], row, self.epsilon);
        normed
    }

    /// Returns the heads of a text of `length` tokens in a pass of `rows` rows. `states` begins at
    /// the first row of the text.
    fn heads<'a>(
        &'a self,
        layer: &'a Layer,
        states: &'a [u32],
        (rows, length): (usize, usize),
    ) -> AttentionHeads<'a> {
        AttentionHeads {
            format: self.shape.attention,
            heads: layer.dims.heads,
            kv_heads: layer.dims.kv_heads,
            width: layer.dims.padded_head,
            states,
            stride: self.shape.head_stride(&layer.dims, rows),
            length,
            reach: Reach { window: layer.window, causal: layer.causal },
            bias: self.relative_bias.as_deref(),
            distances: self
                .distances
                .as_ref()
                .zip(layer.distances.as_ref())
                .map(|(rows, tables)| DistanceTerms { tables, rows }),
        }
    }

    /// Computes the attention of the texts of a pass in `layer`, from the `states` of its rows, to
    /// `attended`.
    pub(super) fn attend(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        states: &[u32],
        texts: &TextStarts,
        attended: &mut [u32],
    ) {
        let inner = layer.dims.inner();
        let groups = self.shape.head_groups(&layer.dims);
        let stride = self.shape.attended_stride(&layer.dims);
        for text in texts.iter() {
            let states = &states[text.start * groups..];
            let attended = &mut attended[text.start * stride..];
            let heads = self.heads(layer, states, (texts.rows(), text.len()));
            for head in 0..heads.heads {
                let start = head * heads.width;
                let mut attended = match self.packing.format {
                    OperandFormat::Bf16 => {
                        AttentionOutput::Bf16(&mut bytemuck::cast_slice_mut(attended)[start..])
                    }
                    OperandFormat::F32 | OperandFormat::Int8(_) => {
                        AttentionOutput::F32(&mut bytemuck::cast_slice_mut(attended)[start..])
                    }
                };
                let memory = &mut scratch.attention;
                heads.attend(session, memory, head, 0..text.len(), &mut attended, inner);
            }
        }
    }

    /// Computes the part of `layer` after attention, in place, for `count` rows of `x`, whose
    /// `embeddings` are empty if the layers do not read them.
    pub(super) fn finish(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        (attended, embeddings): (&[u32], &[f32]),
        count: usize,
        x: &mut [f32],
    ) {
        let (row, stride) = (self.row(), self.shape.attended_stride(&layer.dims));
        scratch.block.reserve(self.shape.block());
        scratch.normed.reserve(self.shape.normed());
        for first in (0..count).step_by(BLOCK) {
            let count = BLOCK.min(count - first);
            let (attended, x) = (&attended[first * stride..], &mut x[first * row..]);
            self.finish_block(layer, session, scratch, attended, count, x);
            if let Some(step) = &layer.per_layer {
                let embeddings = &embeddings[first * row..];
                self.add_per_layer(layer, step, session, scratch, embeddings, (x, count));
            }
        }
    }

    fn finish_block(
        &self,
        layer: &Layer,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        attended: &[u32],
        count: usize,
        x: &mut [f32],
    ) {
        let ThreadScratch { inputs, wide, block, normed, .. } = scratch;
        let (block, normed) = (block.f32s_mut(), normed.f32s_mut());
        let operand = match self.packing.format {
            OperandFormat::Bf16 => {
                Operand::floats(attended, self.shape.attended_stride(&layer.dims), count)
            }
            _ => {
                let values = bytemuck::cast_slice(attended);
                inputs.operand(session, &layer.attended, values, layer.dims.inner(), count)
            }
        };
        let norm = layer.attended_norm.as_ref();
        self.add_product(session, (&layer.attended, norm), operand, block, normed, x);

        let products = match &layer.feed_forward {
            FeedForward::Dense(products) => products,
            FeedForward::Experts(experts) => {
                return self.add_experts((layer, experts), session, scratch, (x, count));
            }
        };
        wide.reserve(self.shape.wide());
        let norm = layer.wide_norm.as_ref();
        let input = self.normalized(session, norm, x, count, normed);
        let memory = (inputs, wide, &mut *block);
        let operand = self.between_products((layer, products), session, memory, (input, count));
        let norm = layer.norm.as_ref();
        self.add_product(session, (&products.narrow, norm), operand, block, normed, x);
    }

    /// Adds the product of `operand` with a linear layer to the rows of `x`. The `norm` of the
    /// layer applies to the sum, or to the product if the layers also normalize their input.
    /// `block` and `normed` are memory for a block of results and of rows.
    fn add_product(
        &self,
        session: &KernelSession,
        (linear, norm): (&Linear, Option<&Norm>),
        operand: Operand<'_>,
        block: &mut [f32],
        normed: &mut [f32],
        x: &mut [f32],
    ) {
        let (row, rows) = (self.row(), operand.rows);
        let x = &mut x[..rows * row];
        if let Some(norm) = norm.filter(|_| self.normalizes_products) {
            let products = &mut normed[..rows * row];
            linear.for_each_panel(session, operand, block, |panel, results, bias| {
                let out = &mut products[panel * PANEL_WIDTH..];
                rowwise::store_f32(session.isa, results, bias, None, out, row);
            });
            norm.apply(session, products, row, self.epsilon);
            rowwise::add_rows(session.isa, x, products);
            return;
        }
        linear.for_each_panel(session, operand, block, |panel, results, bias| {
            rowwise::add_f32(session.isa, results, bias, &mut x[panel * PANEL_WIDTH..], row);
        });
        if let Some(norm) = norm {
            norm.apply(session, x, row, self.epsilon);
        }
    }

    /// Applies the norm after the last layer to the rows of `x`.
    pub(super) fn complete(&self, session: &KernelSession, x: &mut [f32]) {
        if let Some(norm) = &self.final_norm {
            norm.apply(session, x, self.row(), self.epsilon);
        }
    }
}

/// Stores the results of a panel, with bias, to `rows`, `stride` lane groups apart.
fn store(
    session: &KernelSession,
    format: OperandFormat,
    rows: &mut [u32],
    stride: usize,
    panel: usize,
    (results, bias): (&[[f32; PANEL_WIDTH]], &[f32; PANEL_WIDTH]),
) {
    if format == OperandFormat::Bf16 {
        let halves: &mut [u16] = bytemuck::cast_slice_mut(rows);
        let out = &mut halves[panel * PANEL_WIDTH..];
        rowwise::store_bf16(session.isa, results, bias, None, out, stride * 2);
    } else {
        let out = &mut bytemuck::cast_slice_mut(rows)[panel * PANEL_WIDTH..];
        rowwise::store_f32(session.isa, results, bias, None, out, stride);
    }
}
