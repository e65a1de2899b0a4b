//! Disentangled attention, as `DisentangledSelfAttention` of DeBERTa computes it: the score of two
//! tokens depends on their distance through two more products.
//!
//! A table has a vector for each bucket of distances. The query product of a layer makes a query of
//! each vector, and the key product a key. The score of two tokens has the product of the query of
//! the one with the key of the distance, and the product of the key of the other with the query of
//! the distance. Both are products with a matrix that is packed as keys are, from which each pair
//! of tokens takes one result.
//! <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/deberta_v2/modeling_deberta_v2.py>

use std::ops::Range;

use super::{LayerDims, tensor};
use crate::engine::EngineError;
use crate::engine::buffer::Buffer;
use crate::engine::config::{AttentionConfig, DistanceBuckets, EncoderConfig, RelativeBias};
use crate::engine::linear::OperandFormat;
use crate::engine::simd::{Isa, PANEL_WIDTH, elementwise, rowwise};
use crate::engine::tensor_names::{DISTANCE_NORM, EmbeddingNames, LayerNames, Place};
use crate::engine::vector::dot;
use crate::engine::weights::{Tensor, Tensors};

impl DistanceBuckets {
    /// Returns the row of the table for a query that is `distance` tokens behind its key.
    ///
    /// Small distances have a row each, and larger ones share logarithmic buckets.
    fn row(&self, distance: i64) -> usize {
        let half = self.count / 2;
        let magnitude = usize::try_from(distance.unsigned_abs()).unwrap_or(usize::MAX);
        let bucket = if magnitude <= half {
            magnitude
        } else {
            #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
            let [magnitude, first, last] = [magnitude, half, self.farthest - 1].map(|n| n as f64);
            #[expect(clippy::cast_precision_loss, reason = "a model has few buckets")]
            let steps = (half - 1) as f64;
            let log = ((magnitude / first).ln() / (last / first).ln() * steps).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive number, and a larger one means the last bucket"
            )]
            let log = log as usize;
            half.saturating_add(log)
        };
        match distance < 0 {
            true => self.count.saturating_sub(bucket),
            false => self.count.saturating_add(bucket).min(self.rows() - 1),
        }
    }
}

/// Row of the table for each distance of two tokens of a text.
pub(in crate::engine) struct DistanceRows {
    /// Rows by the position of the key minus that of the query, from `1 − max_positions` on.
    rows: Vec<u32>,
}

impl DistanceRows {
    /// Computes the rows for texts of at most `max_positions` tokens.
    pub(in crate::engine) fn new(buckets: DistanceBuckets, max_positions: usize) -> Self {
        let last = i64::try_from(max_positions).unwrap_or(i64::MAX).saturating_sub(1);
        let row = |ahead: i64| u32::try_from(buckets.row(-ahead)).unwrap_or(u32::MAX);
        Self { rows: (-last..=last).map(row).collect() }
    }

    /// Returns the rows for `query` with `key` and with each key after it.
    pub(in crate::engine) fn from(&self, query: usize, key: usize) -> &[u32] {
        &self.rows[self.rows.len() / 2 + key - query..]
    }

    /// Returns the panels with the rows of all distances in a text of `length` tokens.
    pub(in crate::engine) fn panels(&self, length: usize) -> Range<usize> {
        let farthest = length.saturating_sub(1).min(self.rows.len() / 2);
        let middle = self.rows.len() / 2;
        // A key far ahead has the first row.
        let [first, last] = [middle + farthest, middle - farthest].map(|at| self.rows[at] as usize);
        first / PANEL_WIDTH..last / PANEL_WIDTH + 1
    }

    /// Returns the number of distances.
    pub(in crate::engine) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the number of distances in texts of at most `max_positions` tokens.
    pub(in crate::engine) const fn len_of(max_positions: usize) -> usize {
        (2 * max_positions).saturating_sub(1)
    }
}

/// Reads the table of distances of an encoder, normalized, `[rows, hidden]`.
///
/// # Errors
/// Returns [`EngineError::Mismatch`] if a tensor is missing.
pub(in crate::engine) fn read_vectors(
    tensors: &Tensors<'_>,
    config: &EncoderConfig,
) -> Result<Vec<f32>, EngineError> {
    let mut vectors = tensor(tensors, EmbeddingNames::of(config.family).relative_bias)?.values();
    let norm =
        |part| Ok::<_, EngineError>(tensor(tensors, &format!("{DISTANCE_NORM}.{part}"))?.values());
    #[expect(clippy::cast_possible_truncation, reason = "norms compute in f32")]
    let epsilon = config.norm_epsilon as f32;
    let (weight, bias) = (norm("weight")?, norm("bias")?);
    rowwise::layer_norm(Isa::detect(), &mut vectors, config.hidden_size, &weight, &bias, epsilon);
    Ok(vectors)
}

/// Returns the memory of the result of [`read_vectors`], in bytes; 0 for an encoder without these
/// vectors. Only loading needs them.
pub(in crate::engine) fn vector_bytes(config: &EncoderConfig) -> u64 {
    match config.relative_bias {
        Some(RelativeBias::Disentangled(buckets)) => {
            let values = (buckets.rows() as u64).saturating_mul(config.hidden_size as u64);
            values.saturating_mul(size_of::<f32>() as u64)
        }
        None | Some(RelativeBias::Alibi | RelativeBias::Buckets) => 0,
    }
}

/// Queries and keys of the distances in one layer.
pub(in crate::engine) struct DistanceTables {
    /// Keys, packed as those of a text: `[heads, panels, groups, 32]`.
    keys: Buffer,
    /// Queries, times the factor of the scores, packed in the same way.
    queries: Buffer,
    /// Lane groups of one head.
    head: usize,
    /// Lane groups of one panel.
    panel: usize,
}

/// Shape of the packed tables of a layer.
struct TableShape {
    format: OperandFormat,
    dims: LayerDims,
    /// Lane groups of a key.
    groups: usize,
    panels: usize,
}

impl TableShape {
    fn new(config: &EncoderConfig, index: usize, rows: usize, format: OperandFormat) -> Self {
        let dims = LayerDims::new(config.hidden_size, &config.layers[index]);
        let groups = format.lane_groups(dims.padded_head);
        Self { format, dims, groups, panels: rows.div_ceil(PANEL_WIDTH) }
    }

    const fn panel(&self) -> usize {
        self.groups * PANEL_WIDTH
    }

    const fn head(&self) -> usize {
        self.panels * self.panel()
    }

    const fn len(&self) -> usize {
        self.dims.heads * self.head()
    }

    /// Writes `value` of `channel` of the vector in `row` to the packed table of its head.
    fn put(&self, head: &mut [u32], row: usize, channel: usize, value: f32) {
        let per_group = self.format.weights_per_lane_group();
        let group = row / PANEL_WIDTH * self.groups + channel / per_group;
        let packed = &mut head[group * PANEL_WIDTH + row % PANEL_WIDTH];
        match self.format {
            // A lane group has two adjacent channels.
            OperandFormat::Bf16 => {
                *packed |= u32::from(elementwise::bf16(value)) << (16 * (channel % per_group));
            }
            _ => *packed = value.to_bits(),
        }
    }
}

impl DistanceTables {
    /// Computes the tables of layer `index` from the `vectors` of [`read_vectors`], for attention
    /// in `format`: F32 or Bf16.
    ///
    /// # Errors
    /// Returns [`EngineError::Mismatch`] if a tensor is missing.
    pub(in crate::engine) fn read(
        tensors: &Tensors<'_>,
        config: &EncoderConfig,
        index: usize,
        vectors: &[f32],
        format: OperandFormat,
    ) -> Result<Self, EngineError> {
        let names = LayerNames::of(config.family);
        let hidden = config.hidden_size;
        let attention: &AttentionConfig = &config.layers[index].attention;
        let shape = TableShape::new(config, index, vectors.len() / hidden, format);
        let width = attention.head;
        let packed = |place: Place, factor: f32| {
            let name = format!("{}.{index}.{}", names.layers, place.tensor);
            let weight = tensor(tensors, &format!("{name}.weight"))?;
            let bias = tensors.get(&format!("{name}.bias")).map(Tensor::values);
            let mut packed = Buffer::zeroed(shape.len());
            let mut weights = vec![0.0; hidden];
            for output in 0..attention.heads * width {
                weight.read_row(place.first_row + output, &mut weights);
                let bias = bias.as_ref().map_or(0.0, |bias| bias[place.first_row + output]);
                let head = &mut packed.groups_mut()[output / width * shape.head()..];
                for (row, vector) in vectors.chunks_exact(hidden).enumerate() {
                    let value = (dot(&weights, vector) + bias) * factor;
                    shape.put(head, row, output % width, value);
                }
            }
            Ok::<_, EngineError>(packed)
        };
        let [query, key, _] = names.states(attention);
        Ok(Self {
            keys: packed(key, 1.0)?,
            queries: packed(query, attention.scale)?,
            head: shape.head(),
            panel: shape.panel(),
        })
    }

    /// Returns the packed keys of head `head` in `panels`.
    pub(in crate::engine) fn keys(
        &self,
        head: usize,
        panels: &Range<usize>,
    ) -> &[[u32; PANEL_WIDTH]] {
        self.part(&self.keys, head, panels)
    }

    /// Returns the packed queries of head `head` in `panels`.
    pub(in crate::engine) fn queries(
        &self,
        head: usize,
        panels: &Range<usize>,
    ) -> &[[u32; PANEL_WIDTH]] {
        self.part(&self.queries, head, panels)
    }

    fn part<'a>(
        &self,
        table: &'a Buffer,
        head: usize,
        panels: &Range<usize>,
    ) -> &'a [[u32; PANEL_WIDTH]] {
        let start = head * self.head + panels.start * self.panel;
        table.groups()[start..][..panels.len() * self.panel].as_chunks().0
    }

    /// Returns the number of rows of a table, padded to whole panels.
    pub(in crate::engine) const fn padded_rows(&self) -> usize {
        self.head / self.panel * PANEL_WIDTH
    }

    /// Returns the memory of the tables, in bytes.
    pub(in crate::engine) fn bytes(&self) -> u64 {
        self.keys.bytes() + self.queries.bytes()
    }

    /// Returns the memory of the tables of all layers of `config`, in bytes, for attention in
    /// `format`.
    pub(in crate::engine) fn bytes_of(
        config: &EncoderConfig,
        buckets: DistanceBuckets,
        format: OperandFormat,
    ) -> u64 {
        let of_layer = |index| {
            2 * Buffer::bytes_of(TableShape::new(config, index, buckets.rows(), format).len())
        };
        (0..config.layers.len()).map(of_layer).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::golden;

    /// Buckets of the published models.
    const PUBLISHED: DistanceBuckets = DistanceBuckets { count: 256, farthest: 512 };

    #[test]
    fn near_distances_have_rows_of_their_own() {
        for distance in -128..=128 {
            assert_eq!(PUBLISHED.row(distance), usize::try_from(256 + distance).unwrap());
        }
        // Values of `make_log_bucket_position` of transformers.
        for (distance, bucket) in
            [(129, 129), (130, 130), (200, 169), (300, 207), (400, 233), (510, 255), (511, 255)]
        {
            assert_eq!(PUBLISHED.row(distance), 256 + bucket, "{distance}");
            assert_eq!(PUBLISHED.row(-distance), 256 - bucket, "{distance}");
        }
        // A distance beyond those of the model has the last row.
        assert_eq!((PUBLISHED.row(5_000), PUBLISHED.row(-5_000)), (511, 0));
        let few = DistanceBuckets { count: 8, farthest: 128 };
        let rows = [0, 4, 5, 12, 13, 40, 41, 90].map(|distance| few.row(distance));
        assert_eq!(rows, [8, 12, 13, 13, 14, 14, 15, 15]);
    }

    #[test]
    fn rows_of_a_text_are_in_its_panels() {
        let rows = DistanceRows::new(PUBLISHED, 300);
        assert_eq!((rows.len(), DistanceRows::len_of(300)), (599, 599));
        // A key ahead of its query has a smaller row.
        assert_eq!(rows.from(0, 0)[..3], [256, 255, 254]);
        assert_eq!(rows.from(2, 0)[..4], [258, 257, 256, 255]);
        for length in [1, 2, 31, 33, 64, 200, 300] {
            let panels = rows.panels(length);
            for query in 0..length {
                for &row in &rows.from(query, 0)[..length] {
                    assert!(panels.contains(&(row as usize / PANEL_WIDTH)), "{row} {length}");
                }
            }
        }
        assert_eq!(rows.panels(1), 8..9);
        assert_eq!(rows.panels(33), 7..10);
    }

    #[test]
    fn packed_values_lie_in_lane_groups() {
        let config = golden("tiny-bert-mean", Architecture::Bert);
        let mut shape = TableShape::new(&config, 0, 40, OperandFormat::F32);
        let mut head = vec![0; shape.head()];
        shape.put(&mut head, 33, 3, 1.5);
        assert_eq!(f32::from_bits(head[shape.panel() + 3 * PANEL_WIDTH + 1]), 1.5);
        shape = TableShape::new(&config, 0, 40, OperandFormat::Bf16);
        head = vec![0; shape.head()];
        shape.put(&mut head, 33, 2, 1.5);
        shape.put(&mut head, 33, 3, -1.5);
        let group = head[shape.panel() + PANEL_WIDTH + 1];
        assert_eq!((f32::from_bits(group << 16), f32::from_bits(group & 0xffff_0000)), (1.5, -1.5));
    }
}
