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
use super::super::layer::{FeedForward, Layer, LayerDims, Norm};
use super::super::linear::{Backend, KernelSession, Linear, Operand, ROWS};
use super::super::scratch::{BLOCK, PassBuffers, PreparedRows, SharedScratch, ThreadScratch};
use super::super::simd::{PANEL_WIDTH, rowwise};
use super::feed_forward::{multiply_wide, wide_panels};
use super::{Encoder, TextStarts};

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
    pub(super) fn for_each<T: Send>(
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
    pub(super) fn rows_each(&self, count: usize) -> usize {
        count.div_ceil(ITEMS * self.scratches.len()).max(LEAST_ROWS)
    }

    /// Returns the number of rows of an item, a multiple of [`ROWS`], for a step over `rows` rows
    /// that is also divided into `others` parts. Together these make enough items for all threads.
    fn rows_of_part(&self, rows: usize, others: usize) -> usize {
        let parts = (ITEMS * self.scratches.len()).div_ceil(others.max(1));
        rows.div_ceil(parts).next_multiple_of(ROWS)
    }

    /// Divides a product with `panels` panels of outputs into items, and calls `run` for each: with
    /// the panel, the part of `operand`, and the rows of `results` for it. `results` are
    /// `[panels, padded rows, 32]`.
    fn for_each_panel(
        &mut self,
        operand: &Operand<'_>,
        panels: usize,
        results: &mut [f32],
        run: impl Fn(&KernelSession, &mut ThreadScratch, usize, Operand<'_>, &mut [f32]) + Sync,
    ) {
        let padded = operand.rows.next_multiple_of(ROWS);
        let step = self.rows_of_part(padded, panels);
        let of_panels = results[..panels * padded * PANEL_WIDTH].chunks_mut(padded * PANEL_WIDTH);
        let items: Vec<_> = of_panels
            .enumerate()
            .flat_map(|(panel, results)| {
                let parts =
                    results.chunks_mut(step * PANEL_WIDTH).zip((0..operand.rows).step_by(step));
                parts.map(move |(results, first)| (panel, first, results))
            })
            .collect();
        self.for_each(items.into_iter(), |session, scratch, (panel, first, results)| {
            let operand = operand.part(first, step.min(operand.rows - first));
            run(session, scratch, panel, operand, results);
        });
    }

    /// Multiplies with every panel of `linear`. Writes the results without bias to `results`,
    /// `[panels, padded rows, 32]`.
    fn multiply(&mut self, linear: &Linear, operand: &Operand<'_>, results: &mut [f32]) {
        let panels = linear.panels();
        self.for_each_panel(operand, panels, results, |session, _, panel, operand, results| {
            linear.multiply_panel(session, operand, results, panel, panel + 1);
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

/// Rows of a block of the residual stream.
struct BlockRows<'a> {
    /// Token vectors with the padding rows.
    x: &'a mut [f32],
    /// Number of rows without padding.
    rows: usize,
}

/// Product whose inputs are token vectors, and the norm that applies to them before.
#[derive(Clone, Copy)]
struct HiddenInput<'a> {
    linear: &'a Linear,
    norm: Option<&'a Norm>,
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
        let rows = TextStarts::new(texts.iter().map(|text| text.len()));
        let count = rows.rows();
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
        states.keep_embeddings(count * self.row());
        for layer in &self.layers {
            self.project_together(team, layer, &rows, states, shared);
            self.attend_together(team, layer, &rows, states);
            for first in (0..count).step_by(BLOCK) {
                let block = first..count.min(first + BLOCK);
                self.finish_together(team, layer, count, block, states, shared);
            }
        }
        if self.final_norm.is_some() {
            let each = team.rows_each(count) * self.row();
            let x = states.x.f32s_mut()[..count * self.row()].chunks_mut(each);
            team.for_each(x, |session, _, x| self.complete(session, x));
        }
    }

    /// Prepares `rows` rows of `x` as an operand of `input`: normalizes them into `normed` if the
    /// input has a norm, and converts or quantizes them, on all threads.
    fn operand_together<'a>(
        &self,
        team: &mut ThreadTeam<'_>,
        input: HiddenInput<'_>,
        (x, rows): (&'a [f32], usize),
        normed: &'a mut [f32],
        inputs: &'a mut PreparedRows,
    ) -> Operand<'a> {
        let HiddenInput { linear, norm } = input;
        let row = self.row();
        let each = team.rows_each(rows);
        let prepared = inputs.rows_mut(linear, row, rows, each);
        let items = prepared.into_iter().zip(x[..rows * row].chunks(each * row));
        let Some(norm) = norm else {
            team.for_each(items, |session, _, (prepared, x)| {
                prepared.fill(session, linear, x, row);
            });
            return inputs.prepared(linear, x, row, rows);
        };
        let items = items.zip(normed[..rows * row].chunks_mut(each * row));
        team.for_each(items, |session, _, ((prepared, x), normed)| {
            normed.copy_from_slice(x);
            norm.apply(session, normed, row, self.epsilon);
            prepared.fill(session, linear, normed, row);
        });
        inputs.prepared(linear, normed, row, rows)
    }

    /// Writes the queries, keys and values of the rows of `texts`.
    fn project_together(
        &self,
        team: &mut ThreadTeam<'_>,
        layer: &Layer,
        texts: &TextStarts,
        states: &mut PassBuffers,
        shared: &mut SharedScratch,
    ) {
        let count = texts.rows();
        let stride = self.shape.head_stride(&layer.dims, count);
        let SharedScratch { normed, inputs, .. } = shared;
        let input = HiddenInput { linear: &layer.states, norm: layer.input_norm.as_ref() };
        for first in (0..count).step_by(BLOCK) {
            let rows = BLOCK.min(count - first);
            let x = &states.x.f32s()[first * self.row()..];
            let operand = self.operand_together(team, input, (x, rows), normed.f32s_mut(), inputs);
            let heads = states.heads.groups_mut().chunks_mut(stride);
            let heads = heads.take(layer.dims.all_heads()).enumerate();
            team.for_each(heads, |session, scratch, states| {
                let ThreadScratch { block, head, .. } = scratch;
                block.reserve(self.shape.block());
                head.reserve(self.shape.head_block());
                let scratch = (block.f32s_mut(), head.f32s_mut());
                self.project_head(layer, session, operand, scratch, (texts, first), states);
            });
        }
    }

    /// Computes the attention of all texts. Writes the values to `[heads, count, width]`, in f32.
    fn attend_together(
        &self,
        team: &mut ThreadTeam<'_>,
        layer: &Layer,
        texts: &TextStarts,
        states: &mut PassBuffers,
    ) {
        let LayerDims { heads, padded_head: width, .. } = layer.dims;
        let (count, number) = (texts.rows(), texts.iter().count());
        let groups = self.shape.head_groups(&layer.dims);
        let attended = states.attended.f32s_mut().chunks_mut(count * width).take(heads);
        let mut items = Vec::new();
        for (head, mut attended) in attended.enumerate() {
            for text in texts.iter() {
                let step = team.rows_of_part(text.len(), heads * number);
                for query in (0..text.len()).step_by(step) {
                    let queries = query..text.len().min(query + step);
                    let out = attended.split_off_mut(..queries.len() * width).unwrap_or_default();
                    items.push((head, text.clone(), queries, out));
                }
            }
        }
        let states = states.heads.groups();
        team.for_each(items.into_iter(), |session, scratch, (head, text, queries, out)| {
            let heads = self.heads(layer, &states[text.start * groups..], (count, text.len()));
            let memory = &mut scratch.attention;
            heads.attend(session, memory, head, queries, &mut AttentionOutput::F32(out), width);
        });
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
        let LayerDims { padded_head, padded_intermediate, .. } = layer.dims;
        let (row, inner) = (self.row(), layer.dims.inner());
        let SharedScratch { results, gathered, normed, inputs } = shared;
        let (first, rows) = (block.start, block.len());
        let padded = rows.next_multiple_of(ROWS);
        let x = &mut states.x.f32s_mut()[first * row..][..padded * row];
        let (results, normed) = (results.f32s_mut(), normed.f32s_mut());

        let attended = &states.attended.f32s()[first * padded_head..];
        let gathered = gathered.f32s_mut();
        let source = (attended, count * padded_head, padded_head);
        let operand =
            gather_together(team, &layer.attended, source, gathered, (inner, rows), inputs);
        team.multiply(&layer.attended, &operand, results);
        let norm = layer.attended_norm.as_ref();
        let add = ResidualAddend { linear: &layer.attended, norm, results };
        let products = match &layer.feed_forward {
            FeedForward::Dense(products) => products,
            FeedForward::Experts(experts) => {
                self.add_together(team, &add, BlockRows { x: &mut *x, rows }, normed, None);
                return self.add_experts_together(team, (layer, experts), (x, rows), results);
            }
        };
        let input = HiddenInput { linear: &products.wide, norm: layer.wide_norm.as_ref() };
        let next = Some((input, &mut *inputs));
        self.add_together(team, &add, BlockRows { x: &mut *x, rows }, normed, next);

        let values = if input.norm.is_some() { &*normed } else { &*x };
        let operand = inputs.prepared(input.linear, values, row, rows);
        let panels = wide_panels(layer);
        team.for_each_panel(&operand, panels, results, |session, scratch, panel, operand, out| {
            scratch.block.reserve(self.shape.block());
            let block = scratch.block.f32s_mut();
            let results = multiply_wide((layer, input.linear), session, operand, block, panel);
            results.store_f32(session, layer.activation, out, PANEL_WIDTH);
        });
        let source = (&*results, padded * PANEL_WIDTH, PANEL_WIDTH);
        let (narrow, width) = (&products.narrow, padded_intermediate);
        let operand = gather_together(team, narrow, source, gathered, (width, rows), inputs);
        team.multiply(narrow, &operand, results);
        let add = ResidualAddend { linear: narrow, norm: layer.norm.as_ref(), results };
        self.add_together(team, &add, BlockRows { x: &mut *x, rows }, normed, None);

        let Some(step) = &layer.per_layer else { return };
        let each = team.rows_each(rows).next_multiple_of(ROWS) * row;
        let embeddings = &states.embeddings.f32s()[first * row..][..padded * row];
        let items = x.chunks_mut(each).zip(embeddings.chunks(each)).enumerate();
        team.for_each(items, |session, scratch, (index, (x, embeddings))| {
            let count = rows.saturating_sub(index * each / row).min(each / row);
            self.add_per_layer(layer, step, session, scratch, embeddings, (x, count));
        });
    }

    /// Adds the results of a product to the rows of `block`, applies the norm of the product, and
    /// prepares the rows for the next product, if there is one. `normed` has the rows of the block;
    /// it receives the normalized rows that the next product reads, if its input has a norm.
    fn add_together(
        &self,
        team: &mut ThreadTeam<'_>,
        added: &ResidualAddend<'_>,
        block: BlockRows<'_>,
        normed: &mut [f32],
        next: Option<(HiddenInput<'_>, &mut PreparedRows)>,
    ) {
        let BlockRows { x, rows } = block;
        let row = self.row();
        let each = team.rows_each(rows);
        let padded = rows.next_multiple_of(ROWS);
        let (results, _) = added.results.as_chunks::<PANEL_WIDTH>();
        let (next, inputs) = match next {
            Some((next, inputs)) => (Some(next), inputs.rows_mut(next.linear, row, rows, each)),
            None => (None, Vec::new()),
        };
        let inputs = inputs.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        // Models that need no normalized rows have no memory for them.
        let normed = normed.chunks_mut(each * row).map(Some);
        let normed = normed.chain(std::iter::repeat_with(|| None));
        let items: Vec<_> =
            x[..rows * row].chunks_mut(each * row).zip(inputs).zip(normed).enumerate().collect();
        team.for_each(items.into_iter(), |session, _, (index, ((x, inputs), normed))| {
            let normed = normed.map_or(&mut [][..], |normed| &mut normed[..x.len()]);
            let (first, count) = (index * each, x.len() / row);
            let of_panel = |panel: usize| &results[panel * padded + first..][..count];
            self.add_results(session, added, of_panel, x, normed);
            let Some((HiddenInput { linear, norm }, inputs)) = next.zip(inputs) else { return };
            let x = self.normalized(session, norm, x, count, normed);
            inputs.fill(session, linear, x, row);
        });
    }
}

impl Encoder {
    /// Adds the results of a product to the rows of `x` and applies the norm of the product, as
    /// [`Encoder::add_product`] does. `of_panel` returns the results of a panel for these rows.
    /// `normed` has as many rows as `x`, or none if no norm applies to a product alone.
    fn add_results<'r>(
        &self,
        session: &KernelSession,
        added: &ResidualAddend<'_>,
        of_panel: impl Fn(usize) -> &'r [[f32; PANEL_WIDTH]],
        x: &mut [f32],
        normed: &mut [f32],
    ) {
        let row = self.row();
        let ResidualAddend { linear, norm, .. } = *added;
        if let Some(norm) = norm.filter(|_| self.normalizes_products) {
            for panel in 0..linear.panels() {
                let out = &mut normed[panel * PANEL_WIDTH..];
                let results = of_panel(panel);
                rowwise::store_f32(session.isa, results, linear.bias(panel), None, out, row);
            }
            norm.apply(session, normed, row, self.epsilon);
            rowwise::add_rows(session.isa, x, normed);
            return;
        }
        for panel in 0..linear.panels() {
            let out = &mut x[panel * PANEL_WIDTH..];
            rowwise::add_f32(session.isa, of_panel(panel), linear.bias(panel), out, row);
        }
        if let Some(norm) = norm {
            norm.apply(session, x, row, self.epsilon);
        }
    }
}

/// Results that are added to the residual stream.
struct ResidualAddend<'a> {
    linear: &'a Linear,
    /// Norm of the product.
    norm: Option<&'a Norm>,
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
