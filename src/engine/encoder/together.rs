//! A pass that all threads compute together.
//!
//! Each step of a layer is divided into items, and the threads take the next item when they are
//! ready, so a thread on a slow core takes fewer. A product is divided by outputs, so that each
//! weight is read once, by one thread, for all rows. Attention is divided by heads and queries, and
//! every other step by rows.
//!
//! The threads write the results of a product panel by panel. A step that is divided by rows
//! gathers them first.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::super::attention::AttentionOutput;
use super::super::config::HiddenActivation;
use super::super::layer::{Layer, LayerDims, LayerNorm};
use super::super::linear::{Backend, KernelSession, Linear, Operand, ROWS};
use super::super::scratch::{BLOCK, PassBuffers, PreparedRows, SharedScratch, ThreadScratch};
use super::super::simd::{PANEL_WIDTH, rowwise};
use super::Encoder;

/// Minimum number of rows of an item. A thread needs about as long to compute them as to fetch the
/// item.
const LEAST_ROWS: usize = 8;
/// Minimum number of items for each thread, if there are enough, so that all threads finish a step
/// at about the same time.
const ITEMS: usize = 3;

/// Threads of a pass, each with its memory.
pub(in crate::engine) struct ThreadTeam<'a> {
    pub(in crate::engine) backend: &'a Backend,
    /// Memory of each thread. The first one is that of the caller.
    pub(in crate::engine) scratches: Vec<&'a mut ThreadScratch>,
}

impl ThreadTeam<'_> {
    /// Calls `run` for each of `items`, on all threads. Returns when all items are done. A thread
    /// that is busy elsewhere and starts late does not delay the return.
    fn for_each<T: Send>(
        &mut self,
        items: impl ExactSizeIterator<Item = T> + Send,
        run: impl Fn(&KernelSession, &mut ThreadScratch, T) + Sync,
    ) {
        let threads = self.scratches.len();
        let Some((own, others)) = self.scratches.split_first_mut() else { return };
        if others.is_empty() || items.len() <= 1 {
            let session = self.backend.session();
            return items.for_each(|item| run(&session, own, item));
        }
        let items = Mutex::new(items);
        // Take many items at first, so that the lock is taken rarely, and single ones at the end,
        // so that all threads finish at about the same time.
        let take = || {
            let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
            let count = (items.len() / (2 * threads)).max(1);
            items.by_ref().take(count).collect::<Vec<T>>()
        };
        let member = |scratch: &mut ThreadScratch| {
            let session = self.backend.session();
            loop {
                let taken = take();
                if taken.is_empty() {
                    break;
                }
                taken.into_iter().for_each(|item| run(&session, scratch, item));
            }
        };
        rayon::scope(|scope| {
            for scratch in others {
                scope.spawn(|_| member(scratch));
            }
            member(own);
        });
    }

    /// Returns the number of rows of an item, for a step over `count` rows.
    fn rows_each(&self, count: usize) -> usize {
        count.div_ceil(ITEMS * self.scratches.len()).max(LEAST_ROWS)
    }

    /// Returns the number of rows of an item, a multiple of [`ROWS`], for a step over `rows` rows
    /// that is also divided into `others` parts. Together these make enough items for all threads.
    fn rows_of_part(&self, rows: usize, others: usize) -> usize {
        let parts = (ITEMS * self.scratches.len()).div_ceil(others.max(1));
        rows.div_ceil(parts).next_multiple_of(ROWS)
    }

    /// Prepares `values` as an operand of `linear`: converts or quantizes its rows on all threads.
    fn operand<'a>(
        &mut self,
        linear: &Linear,
        values: &'a [f32],
        stride: usize,
        count: usize,
        inputs: &'a mut PreparedRows,
    ) -> Operand<'a> {
        let each = self.rows_each(count);
        let rows = inputs.rows_mut(linear, stride, count, each);
        let items = rows.into_iter().zip(values[..count * stride].chunks(each * stride));
        self.for_each(items, |session, _, (rows, values)| {
            rows.fill(session, linear, values, stride)
        });
        inputs.prepared(linear, values, stride, count)
    }

    /// Multiplies with every panel of `linear`. Writes the results to `results`,
    /// `[panels, padded rows, 32]`. Applies bias and activation if there is an `activation`;
    /// otherwise the results are without bias.
    fn multiply(
        &mut self,
        linear: &Linear,
        operand: &Operand<'_>,
        results: &mut [f32],
        activation: Option<HiddenActivation>,
    ) {
        let padded = operand.rows.next_multiple_of(ROWS);
        let step = self.rows_of_part(padded, linear.panels());
        let panels =
            results[..linear.panels() * padded * PANEL_WIDTH].chunks_mut(padded * PANEL_WIDTH);
        let items: Vec<_> = panels
            .enumerate()
            .flat_map(|(panel, results)| {
                let parts =
                    results.chunks_mut(step * PANEL_WIDTH).zip((0..operand.rows).step_by(step));
                parts.map(move |(results, first)| (panel, first, results))
            })
            .collect();
        self.for_each(items.into_iter(), |session, scratch, (panel, first, results)| {
            let operand = operand.part(first, step.min(operand.rows - first));
            match activation {
                None => {
                    linear.multiply_panel(session, operand, results, panel, panel + 1);
                }
                Some(_) => {
                    scratch.block.reserve(BLOCK * PANEL_WIDTH);
                    let block = scratch.block.f32s_mut();
                    let (block, bias) =
                        linear.multiply_panel(session, operand, block, panel, panel + 1);
                    rowwise::store_f32(session.isa, block, bias, activation, results, PANEL_WIDTH);
                }
            }
        });
    }
}

/// Copies `rows` of `parts`, `[parts, stride, width]`, to rows of `out`, `[rows, parts, width]`.
fn gather(parts: &[f32], stride: usize, width: usize, rows: Range<usize>, out: &mut [f32]) {
    let count = out.len() / rows.len() / width;
    for (row, out) in rows.zip(out.chunks_exact_mut(count * width)) {
        for (part, out) in out.chunks_exact_mut(width).enumerate() {
            out.copy_from_slice(&parts[part * stride + row * width..][..width]);
        }
    }
}

impl Encoder {
    /// Computes the token vectors of `texts`, concatenated, in the residual stream of `states`.
    ///
    /// The caller runs on a thread of the pool that also has the other threads of `team`.
    pub(in crate::engine) fn run_together(
        &self,
        team: &mut ThreadTeam<'_>,
        texts: &[&[u32]],
        states: &mut PassBuffers,
        shared: &mut SharedScratch,
    ) {
        let count = texts.iter().map(|text| text.len()).sum();
        states.reserve(&self.shape, count);
        shared.reserve(&self.shape);
        let mut x = states.x.f32s_mut();
        let texts_x: Vec<_> = texts
            .iter()
            .map(|&text| (text, x.split_off_mut(..text.len() * self.row()).unwrap_or_default()))
            .collect();
        team.for_each(texts_x.into_iter(), |session, scratch, (text, x)| {
            self.embed(session, scratch, text, x);
        });
        for layer in &self.layers {
            self.project_together(team, layer, count, states, &mut shared.inputs);
            self.attend_together(team, texts, count, states);
            for first in (0..count).step_by(BLOCK) {
                let block = first..count.min(first + BLOCK);
                self.finish_together(team, layer, count, block, states, shared);
            }
        }
    }

    /// Writes the queries, keys and values of `count` rows.
    fn project_together(
        &self,
        team: &mut ThreadTeam<'_>,
        layer: &Layer,
        count: usize,
        states: &mut PassBuffers,
        inputs: &mut PreparedRows,
    ) {
        let row = self.row();
        let stride = self.shape.head_stride(count);
        let panels = self.packing.dims.padded_head / PANEL_WIDTH;
        let linear = &layer.states;
        for first in (0..count).step_by(BLOCK) {
            let block_rows = BLOCK.min(count - first);
            let x = &states.x.f32s()[first * row..];
            let operand = team.operand(linear, x, row, block_rows, inputs);
            let heads = states.heads.groups_mut().chunks_mut(stride);
            let heads = heads.take(3 * self.packing.dims.heads).enumerate();
            team.for_each(heads, |session, scratch, (head, states)| {
                scratch.block.reserve(BLOCK * PANEL_WIDTH);
                for panel in 0..panels {
                    let of_all = head * panels + panel;
                    let block = scratch.block.f32s_mut();
                    let results =
                        linear.multiply_panel(session, operand, block, of_all, of_all + 1);
                    self.store_states(session, states, first, panel, results);
                }
            });
        }
    }

    /// Computes the attention of all texts. Writes the values to `[heads, count, width]`, in f32.
    fn attend_together(
        &self,
        team: &mut ThreadTeam<'_>,
        texts: &[&[u32]],
        count: usize,
        states: &mut PassBuffers,
    ) {
        let LayerDims { heads, padded_head: width, .. } = self.packing.dims;
        let groups = self.shape.head_groups();
        let attended = states.attended.f32s_mut().chunks_mut(count * width).take(heads);
        let mut items = Vec::new();
        for (head, mut attended) in attended.enumerate() {
            let mut first = 0;
            for text in texts {
                let step = team.rows_of_part(text.len(), heads * texts.len());
                for query in (0..text.len()).step_by(step) {
                    let queries = query..text.len().min(query + step);
                    let out = attended.split_off_mut(..queries.len() * width).unwrap_or_default();
                    items.push((head, first, text.len(), queries, out));
                }
                first += text.len();
            }
        }
        let states = states.heads.groups();
        team.for_each(
            items.into_iter(),
            |session, scratch, (head, first, length, queries, out)| {
                let heads = self.heads(&states[first * groups..], count, length);
                let memory = &mut scratch.attention;
                heads.attend(session, memory, head, queries, &mut AttentionOutput::F32(out), width);
            },
        );
    }

    /// Computes the part of a layer after attention for the rows of `block`, in place.
    fn finish_together(
        &self,
        team: &mut ThreadTeam<'_>,
        layer: &Layer,
        count: usize,
        block: Range<usize>,
        states: &mut PassBuffers,
        shared: &mut SharedScratch,
    ) {
        let LayerDims { row, padded_head, padded_intermediate, .. } = self.packing.dims;
        let inner = self.packing.dims.inner();
        let SharedScratch { results, gathered, inputs } = shared;
        let (first, rows) = (block.start, block.len());
        let padded = rows.next_multiple_of(ROWS);
        let x = &mut states.x.f32s_mut()[first * row..][..padded * row];
        let results = results.f32s_mut();

        let attended = &states.attended.f32s()[first * padded_head..];
        let gathered = gathered.f32s_mut();
        let source = (attended, count * padded_head, padded_head);
        let operand =
            gather_together(team, &layer.attended, source, gathered, (inner, rows), inputs);
        team.multiply(&layer.attended, &operand, results, None);
        let add = ResidualAddend { linear: &layer.attended, norm: &layer.attended_norm, results };
        self.add_together(team, &add, x, rows, Some((&layer.wide, inputs)));

        let operand = inputs.prepared(&layer.wide, x, row, rows);
        team.multiply(&layer.wide, &operand, results, Some(self.activation));
        let source = (&*results, padded * PANEL_WIDTH, PANEL_WIDTH);
        let width = padded_intermediate;
        let operand = gather_together(team, &layer.narrow, source, gathered, (width, rows), inputs);
        team.multiply(&layer.narrow, &operand, results, None);
        let add = ResidualAddend { linear: &layer.narrow, norm: &layer.norm, results };
        self.add_together(team, &add, x, rows, None);
    }

    /// Adds the results of a product to `rows` rows of `x`, applies LayerNorm, and prepares the
    /// rows for the next product, if there is one.
    fn add_together(
        &self,
        team: &mut ThreadTeam<'_>,
        added: &ResidualAddend<'_>,
        x: &mut [f32],
        rows: usize,
        next: Option<(&Linear, &mut PreparedRows)>,
    ) {
        let row = self.row();
        let each = team.rows_each(rows);
        let padded = rows.next_multiple_of(ROWS);
        let (results, _) = added.results.as_chunks::<PANEL_WIDTH>();
        let (linear, inputs) = match next {
            Some((linear, inputs)) => (Some(linear), inputs.rows_mut(linear, row, rows, each)),
            None => (None, Vec::new()),
        };
        let inputs = inputs.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let items: Vec<_> =
            x[..rows * row].chunks_mut(each * row).zip(inputs).enumerate().collect();
        team.for_each(items.into_iter(), |session, _, (index, (x, inputs))| {
            let (first, count) = (index * each, x.len() / row);
            for panel in 0..added.linear.panels() {
                let results = &results[panel * padded + first..][..count];
                let bias = added.linear.bias(panel);
                rowwise::add_f32(session.isa, results, bias, &mut x[panel * PANEL_WIDTH..], row);
            }
            added.norm.apply(session, x, row, self.epsilon);
            if let (Some(linear), Some(inputs)) = (linear, inputs) {
                inputs.fill(session, linear, x, row);
            }
        });
    }
}

/// Results that are added to the residual stream.
struct ResidualAddend<'a> {
    linear: &'a Linear,
    /// LayerNorm that is applied to the sum.
    norm: &'a LayerNorm,
    /// Results without bias, `[panels, padded rows, 32]`.
    results: &'a [f32],
}

/// Gathers `rows` rows of `parts`, `stride` values apart and `part` wide, into `gathered`, rows of
/// `width` values. Prepares them as an operand of `linear`.
fn gather_together<'a>(
    team: &mut ThreadTeam<'_>,
    linear: &Linear,
    (parts, stride, part): (&[f32], usize, usize),
    gathered: &'a mut [f32],
    (width, rows): (usize, usize),
    inputs: &'a mut PreparedRows,
) -> Operand<'a> {
    let each = team.rows_each(rows);
    let inputs_rows = inputs.rows_mut(linear, width, rows, each);
    let items = gathered[..rows * width].chunks_mut(each * width).zip(inputs_rows).enumerate();
    team.for_each(items, |session, _, (index, (out, inputs))| {
        let first = index * each;
        gather(parts, stride, part, first..first + out.len() / width, out);
        inputs.fill(session, linear, out, width);
    });
    inputs.prepared(linear, gathered, width, rows)
}
