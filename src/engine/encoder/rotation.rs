//! Rotation of queries and keys by their position (RoPE).
//!
//! A head's first half and second half are the coordinates of planes. Each plane is rotated by the
//! position times its frequency. Follows `rotate_half` of transformers, with angles in f32:
//! <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/modernbert/modeling_modernbert.py>

use std::ops::Range;

use super::super::config::{EncoderConfig, RopeConfig};
use super::super::linear::KernelSession;
use super::super::simd::rowwise;

/// Rows of the texts of a pass.
pub(in crate::engine) struct TextStarts {
    /// First row of each text, and the number of rows of the pass.
    starts: Vec<usize>,
}

impl TextStarts {
    /// Creates the rows of adjacent texts of `lengths` tokens.
    pub(in crate::engine) fn new(lengths: impl Iterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        starts.extend(lengths.map(|length| {
            end += length;
            end
        }));
        Self { starts }
    }

    /// Returns the number of rows of all texts.
    pub(in crate::engine) fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Returns the rows of each text.
    pub(in crate::engine) fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// Returns the parts of the texts within `rows`: their rows, and the position of the first one
    /// in its text.
    fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let first = self.starts.partition_point(|&start| start <= rows.start).saturating_sub(1);
        let texts = self.starts[first..].windows(2).map(|pair| pair[0]..pair[1]);
        texts.take_while(move |text| text.start < rows.end).map(move |text| {
            let start = text.start.max(rows.start);
            (start..text.end.min(rows.end), start - text.start)
        })
    }
}

/// Cosines and sines of all rotations of a model.
pub(super) struct Rotations {
    /// A table for each kind of rotation, `[positions, head]`: for each position, the cosines of
    /// the angles of the planes, then their sines.
    tables: Vec<(RopeConfig, usize, Vec<f32>)>,
}

/// Returns the different rotations of a model, each with the width of its heads.
fn kinds(config: &EncoderConfig) -> Vec<(&RopeConfig, usize)> {
    let mut kinds = Vec::new();
    for attention in config.layers.iter().map(|layer| &layer.attention) {
        let Some(rope) = &attention.rope else { continue };
        let kind = (rope, attention.head);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

impl Rotations {
    /// Computes the tables of `config` for `positions` positions.
    pub(super) fn new(config: &EncoderConfig, positions: usize) -> Self {
        let tables = kinds(config)
            .into_iter()
            .map(|(rope, width)| (rope.clone(), width, table(rope, width, positions)));
        Self { tables: tables.collect() }
    }

    /// Returns the number of values of all tables.
    pub(super) fn len(&self) -> usize {
        self.tables.iter().map(|(.., table)| table.len()).sum()
    }

    /// Returns the number of values of the tables of `config` for `positions` positions.
    pub(super) fn len_of(config: &EncoderConfig, positions: usize) -> usize {
        kinds(config).iter().map(|(_, width)| width * positions).sum()
    }

    /// Rotates the first `width` values of each row of `head`, `stride` values apart. The rows are
    /// those of `texts` from `first` on.
    pub(super) fn rotate(
        &self,
        session: &KernelSession,
        (rope, width): (&RopeConfig, usize),
        head: &mut [f32],
        stride: usize,
        (texts, first): (&TextStarts, usize),
    ) {
        let kind = |(known, known_width, _): &&(RopeConfig, usize, Vec<f32>)| {
            (known, *known_width) == (rope, width)
        };
        let Some((.., table)) = self.tables.iter().find(kind) else { return };
        for (rows, position) in texts.parts(first..first + head.len() / stride) {
            let head = &mut head[(rows.start - first) * stride..(rows.end - first) * stride];
            rowwise::rotate(session.isa, head, stride, &table[position * width..], width);
        }
    }
}

/// Computes the cosines and sines of `rope` for heads of `width` values, `[positions, width]`.
fn table(rope: &RopeConfig, width: usize, positions: usize) -> Vec<f32> {
    let planes = width / 2;
    let frequencies: Vec<f32> = (0..planes).map(|plane| frequency(rope, plane, width)).collect();
    let mut table = vec![0.0; positions * width];
    for (position, row) in table.chunks_exact_mut(width.max(1)).enumerate() {
        let (cosines, sines) = row.split_at_mut(planes);
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
            #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
            // transformers rounds the angle to f32, so a more exact angle would differ from it.
            let angle = f64::from(position as f32 * frequency);
            #[expect(clippy::cast_possible_truncation, reason = "the kernels compute in f32")]
            {
                (*cosine, *sine) = (angle.cos() as f32, angle.sin() as f32);
            }
        }
    }
    table
}

/// Returns the angle between two adjacent positions in plane `plane` of a head of `width` values.
fn frequency(rope: &RopeConfig, plane: usize, width: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
    let exponent = (2 * plane) as f64 / width as f64;
    #[expect(clippy::cast_possible_truncation, reason = "transformers computes in f32")]
    let frequency = (1.0 / rope.theta.powf(exponent) / rope.divisor) as f32;
    frequency
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(texts: &TextStarts, rows: Range<usize>) -> Vec<(Range<usize>, usize)> {
        texts.parts(rows).collect()
    }

    #[test]
    fn rows_are_assigned_to_texts_and_positions() {
        let texts = TextStarts::new([3, 1, 4].into_iter());
        assert_eq!(texts.rows(), 8);
        assert_eq!(texts.iter().collect::<Vec<_>>(), [0..3, 3..4, 4..8]);
        assert_eq!(parts(&texts, 0..8), [(0..3, 0), (3..4, 0), (4..8, 0)]);
        assert_eq!(parts(&texts, 2..6), [(2..3, 2), (3..4, 0), (4..6, 0)]);
        assert_eq!(parts(&texts, 5..7), [(5..7, 1)]);
        assert_eq!(parts(&TextStarts::new(std::iter::empty()), 0..0), []);
    }

    #[test]
    fn table_has_angles_of_positions() {
        let rope = RopeConfig { theta: 100.0, divisor: 2.0 };
        let table = table(&rope, 4, 3);
        // The planes of a head of 4 values turn by 1/2 and 1/20 at each position.
        let expected = [1.0_f64, 0.1].map(|angle| (angle.cos(), angle.sin()));
        for (plane, (cosine, sine)) in expected.into_iter().enumerate() {
            assert!((f64::from(table[8 + plane]) - cosine).abs() < 1e-6);
            assert!((f64::from(table[10 + plane]) - sine).abs() < 1e-6);
        }
    }
}
