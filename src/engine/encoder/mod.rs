//! The encoder: computes token vectors from token ids, for the layers that BERT, DistilBERT, MPNet,
//! RoBERTa and XLM-RoBERTa have in common.
//!
//! The tokens of many texts are concatenated without padding between them. The residual stream is
//! f32 in every precision. Products are computed in the format of the weights; LayerNorm, softmax
//! and activations are computed in f32.
//!
//! The encoder holds the weights. It knows neither threads nor pooling.
//!
//! Invariant: the vectors of a text depend only on its ids, to the last bit.

mod together;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::EngineError;
use super::WeightsFile;
use super::attention::{AttentionHeads, AttentionOutput};
use super::buffer::Buffer;
use super::config::{EncoderConfig, HiddenActivation};
use super::layer::{Layer, LayerDims, LayerNorm, Packing, tensor};
use super::linear::{KernelSession, Operand, OperandFormat};
use super::position_bias;
use super::scratch::{BLOCK, RowShape, ThreadScratch};
use super::simd::{PANEL_WIDTH, rowwise};
use super::spec::Family;
use super::tensor_names::{self, LayerNames};
use super::weights::{self, Header, MappedTable, Tensors};
use crate::base::quantization;
pub(super) use together::ThreadTeam;

/// Weights of an encoder.
pub(super) struct Encoder {
    packing: Packing,
    shape: RowShape,
    pub(super) words: MappedTable,
    /// Position embeddings plus the embedding of the first token type, `[positions, hidden]`.
    positions: Vec<f32>,
    /// Id of the padding token, for families whose positions begin after this id. A padding token
    /// has its own id as its position. `None`: positions begin at 0.
    padding_id: Option<u32>,
    norm: LayerNorm,
    epsilon: f32,
    activation: HiddenActivation,
    relative_bias: Option<Vec<Vec<f32>>>,
    layers: Vec<Layer>,
}

/// Returns the position embeddings plus the embedding of the first token type.
fn positions(tensors: &Tensors<'_>, hidden: usize) -> Result<Vec<f32>, EngineError> {
    let mut positions = tensor(tensors, "embeddings.position_embeddings.weight")?.values();
    if let Some(types) = tensors.get("embeddings.token_type_embeddings.weight") {
        let mut first = vec![0.0; hidden];
        types.read_row(0, &mut first);
        for position in positions.chunks_exact_mut(hidden) {
            position.iter_mut().zip(&first).for_each(|(value, other)| *value += other);
        }
    }
    Ok(positions)
}

/// Returns the order of the hidden channels for int8: large channels, which need a scale of their
/// own, come first.
fn channel_order(tensors: &Tensors<'_>, channels: usize) -> Vec<usize> {
    let mut norms: Vec<[Vec<f32>; 2]> = Vec::new();
    for (name, weight) in tensors {
        // In an encoder, only LayerNorms have a one-dimensional tensor with this suffix.
        let Some(norm) = name.strip_suffix(".weight").filter(|_| weight.shape.len() == 1) else {
            continue;
        };
        if let Some(bias) = tensors.get(&format!("{norm}.bias")) {
            norms.push([weight.values(), bias.values()]);
        }
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
        let natural: Vec<usize> = (0..config.hidden_size).collect();
        let norm = LayerNorm::read(&tensors, "embeddings.LayerNorm", &natural)?;
        let order = match format {
            OperandFormat::Int8(_) => channel_order(&tensors, config.hidden_size),
            OperandFormat::F32 | OperandFormat::Bf16 => natural,
        };
        let dims = LayerDims::new(config);
        let packing = Packing { format, dims, order };
        let layers = (0..config.layers)
            .into_par_iter()
            .map(|index| Layer::read(&tensors, &names, index, &packing))
            .collect::<Result<Vec<_>, _>>()?;
        let relative_bias = tensors.get("encoder.relative_attention_bias.weight").map(|table| {
            let max_positions = u32::try_from(max_positions).unwrap_or(u32::MAX);
            position_bias::by_distance(&table.values(), config.heads, max_positions)
        });
        let positions = positions(&tensors, config.hidden_size)?;
        let words = tensor(&tensors, "embeddings.word_embeddings.weight")?;
        let words = words.location();
        drop(tensors);
        #[expect(clippy::cast_possible_truncation, reason = "LayerNorm computes in f32")]
        let epsilon = config.layer_norm_eps as f32;
        Ok(Self {
            packing,
            shape: RowShape { dims, format, attention },
            words: MappedTable::new(file, words),
            positions,
            padding_id: match config.family {
                Family::Bert | Family::DistilBert => None,
                Family::Mpnet | Family::Roberta | Family::XlmRoberta => Some(config.padding_id),
            },
            norm,
            epsilon,
            activation: config.activation,
            relative_bias,
            layers,
        })
    }

    /// Returns the memory of the weights, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let bias = self.relative_bias.iter().flatten().map(Vec::len).sum::<usize>();
        let floats = self.positions.len() + self.norm.len() + bias;
        let layers = self.layers.iter().map(Layer::bytes).sum::<u64>();
        self.words.bytes() + (floats * size_of::<f32>()) as u64 + layers
    }

    /// Returns the memory that the weights of `config` will take, in bytes, without the table of
    /// words and without outliers.
    pub(super) fn bytes_of(
        config: &EncoderConfig,
        max_positions: usize,
        format: OperandFormat,
    ) -> u64 {
        let bias = match config.family {
            Family::Mpnet => config.heads * (2 * max_positions).saturating_sub(1),
            Family::Bert | Family::DistilBert | Family::Roberta | Family::XlmRoberta => 0,
        };
        let floats = (config.max_position_embeddings + 2) * config.hidden_size + bias;
        let layers = config.layers as u64 * Layer::bytes_of(format, &LayerDims::new(config));
        (floats * size_of::<f32>()) as u64 + layers
    }

    /// Returns the format of the operands of the linear layers.
    pub(super) fn format(&self) -> OperandFormat {
        self.packing.format
    }

    /// Returns the number of values of a token vector.
    pub(super) fn hidden(&self) -> usize {
        self.packing.dims.hidden
    }

    /// Returns the distance between two rows of the residual stream, in values.
    pub(super) fn row(&self) -> usize {
        self.packing.dims.row
    }

    pub(super) fn layers(&self) -> std::ops::Range<usize> {
        0..self.layers.len()
    }

    /// Returns the sizes and formats of a row in a forward pass.
    pub(super) fn shape(&self) -> &RowShape {
        &self.shape
    }

    /// Returns the number of lane groups in a row of attended values.
    pub(super) fn attended_stride(&self) -> usize {
        self.shape.attended_stride()
    }

    /// Writes the embeddings of `text` to rows of `x`. All ids must be in the vocabulary.
    pub(super) fn embed(
        &self,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        text: &[u32],
        x: &mut [f32],
    ) {
        let LayerDims { row, hidden, .. } = self.packing.dims;
        // Position ids begin after the padding id and do not count padding tokens:
        // https://github.com/huggingface/transformers/blob/87b236ba2be8b3e48a7d0c8ca6513302736d2886/src/transformers/models/roberta/modeling_roberta.py
        let mut next = self.padding_id.map_or(0, |id| id as usize + 1);
        let x = &mut x[..text.len() * row];
        for (x, &id) in x.chunks_exact_mut(row).zip(text) {
            self.words.read_row(id as usize, x);
            let position = if self.padding_id == Some(id) {
                id as usize
            } else {
                next += 1;
                next - 1
            };
            let position = &self.positions[position * hidden..][..hidden];
            x.iter_mut().zip(position).for_each(|(value, other)| *value += other);
            // Clear the padding: the buffer may contain values of an earlier pass.
            x[hidden..].fill(0.0);
        }
        self.norm.apply(session, x, row, self.epsilon);
        // Int8 weights expect the channels in the packed order; LayerNorm above used the natural
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

    /// Copies the token vectors from rows of `x` to `vectors`, `[rows, hidden]`, with the
    /// channels in their natural order. Returns them.
    pub(super) fn token_vectors<'a>(&self, x: &[f32], vectors: &'a mut Buffer) -> &'a [f32] {
        let LayerDims { row, hidden, .. } = self.packing.dims;
        let values = x.len() / row * hidden;
        vectors.reserve(values);
        let vectors = &mut vectors.f32s_mut()[..values];
        for (x, vector) in x.chunks_exact(row).zip(vectors.chunks_exact_mut(hidden)) {
            match self.packing.format {
                OperandFormat::F32 | OperandFormat::Bf16 => vector.copy_from_slice(&x[..hidden]),
                OperandFormat::Int8(_) => {
                    for (&value, &channel) in x.iter().zip(&self.packing.order) {
                        vector[channel] = value;
                    }
                }
            }
        }
        vectors
    }

    /// Writes the queries, keys and values of `count` rows of `x` to `heads`, for layer `layer`.
    pub(super) fn project(
        &self,
        layer: usize,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        x: &[f32],
        count: usize,
        heads: &mut [u32],
    ) {
        let stride = self.shape.head_stride(count);
        let row = self.packing.dims.row;
        scratch.block.reserve(BLOCK * PANEL_WIDTH);
        for first in (0..count).step_by(BLOCK) {
            let count = BLOCK.min(count - first);
            let x = &x[first * row..];
            let states = &self.layers[layer].states;
            let operand = scratch.inputs.operand(session, states, x, row, count);
            let block = scratch.block.f32s_mut();
            states.for_each_panel(session, operand, block, |panel, results, bias| {
                let (head, panel) = self.states_offset(panel);
                let heads = &mut heads[head * stride..];
                self.store_states(session, heads, first, panel, (results, bias));
            });
        }
    }

    /// Returns the head to which panel `panel` of the product for queries, keys and values belongs,
    /// counted over all three, and the panel's index within the head.
    fn states_offset(&self, panel: usize) -> (usize, usize) {
        let panels = self.packing.dims.padded_head / PANEL_WIDTH;
        (panel / panels, panel % panels)
    }

    /// Stores the results of a panel of queries, keys or values to the rows of its head from
    /// `first` on.
    fn store_states(
        &self,
        session: &KernelSession,
        head: &mut [u32],
        first: usize,
        panel: usize,
        results: (&[[f32; PANEL_WIDTH]], &[f32; PANEL_WIDTH]),
    ) {
        let groups = self.shape.head_groups();
        let head = &mut head[first * groups..];
        store(session, self.shape.attention, head, groups, panel, results, None);
    }

    /// Returns the heads of a text of `length` tokens in a pass of `rows` rows. `states` begins at
    /// the first row of the text.
    fn heads<'a>(&'a self, states: &'a [u32], rows: usize, length: usize) -> AttentionHeads<'a> {
        AttentionHeads {
            format: self.shape.attention,
            heads: self.packing.dims.heads,
            width: self.packing.dims.padded_head,
            states,
            stride: self.shape.head_stride(rows),
            length,
            bias: self.relative_bias.as_deref(),
        }
    }

    /// Computes the attention of a text of `length` tokens in a pass of `rows` rows. `states` are
    /// queries, keys and values from the text's first row on. `attended` receives the text's rows.
    pub(super) fn attend(
        &self,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        states: &[u32],
        (rows, length): (usize, usize),
        attended: &mut [u32],
    ) {
        let heads = self.heads(states, rows, length);
        let inner = self.packing.dims.inner();
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
            heads.attend(session, memory, head, 0..length, &mut attended, inner);
        }
    }

    /// Computes the part of layer `layer` after attention, in place, for `count` rows of `x`.
    pub(super) fn finish(
        &self,
        layer: usize,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        attended: &[u32],
        count: usize,
        x: &mut [f32],
    ) {
        let (row, stride) = (self.packing.dims.row, self.attended_stride());
        scratch.block.reserve(BLOCK * PANEL_WIDTH);
        for first in (0..count).step_by(BLOCK) {
            let count = BLOCK.min(count - first);
            let attended = &attended[first * stride..];
            self.finish_block(layer, session, scratch, attended, count, &mut x[first * row..]);
        }
    }

    fn finish_block(
        &self,
        layer: usize,
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        attended: &[u32],
        count: usize,
        x: &mut [f32],
    ) {
        let layer = &self.layers[layer];
        let row = self.packing.dims.row;
        let inner = self.packing.dims.inner();
        let ThreadScratch { inputs, wide, block, .. } = scratch;
        let block = block.f32s_mut();
        let attended = match self.packing.format {
            OperandFormat::Bf16 => Operand::floats(attended, self.attended_stride(), count),
            _ => {
                let values = bytemuck::cast_slice(attended);
                inputs.operand(session, &layer.attended, values, inner, count)
            }
        };
        layer.attended.for_each_panel(session, attended, block, |panel, results, bias| {
            rowwise::add_f32(session.isa, results, bias, &mut x[panel * PANEL_WIDTH..], row);
        });
        layer.attended_norm.apply(session, &mut x[..count * row], row, self.epsilon);

        let (between, stride) = self.shape.intermediate();
        wide.reserve(BLOCK * stride);
        let operand = inputs.operand(session, &layer.wide, x, row, count);
        let activation = Some(self.activation);
        let wide_rows = wide.groups_mut();
        layer.wide.for_each_panel(session, operand, block, |panel, results, bias| {
            store(session, between, wide_rows, stride, panel, (results, bias), activation);
        });
        let operand = match self.packing.format {
            OperandFormat::Bf16 => Operand::floats(wide.groups(), stride, count),
            _ => inputs.operand(session, &layer.narrow, wide.f32s(), stride, count),
        };
        layer.narrow.for_each_panel(session, operand, block, |panel, results, bias| {
            rowwise::add_f32(session.isa, results, bias, &mut x[panel * PANEL_WIDTH..], row);
        });
        layer.norm.apply(session, &mut x[..count * row], row, self.epsilon);
    }
}

/// Stores the results of a panel, with bias and activation, to `rows`, `stride` lane groups apart.
fn store(
    session: &KernelSession,
    format: OperandFormat,
    rows: &mut [u32],
    stride: usize,
    panel: usize,
    (results, bias): (&[[f32; PANEL_WIDTH]], &[f32; PANEL_WIDTH]),
    activation: Option<HiddenActivation>,
) {
    if format == OperandFormat::Bf16 {
        let halves: &mut [u16] = bytemuck::cast_slice_mut(rows);
        let out = &mut halves[panel * PANEL_WIDTH..];
        rowwise::store_bf16(session.isa, results, bias, activation, out, stride * 2);
    } else {
        let out = &mut bytemuck::cast_slice_mut(rows)[panel * PANEL_WIDTH..];
        rowwise::store_f32(session.isa, results, bias, activation, out, stride);
    }
}
