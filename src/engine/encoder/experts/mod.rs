//! Feed-forward layers with experts.
//!
//! The rows of a block are grouped by expert: each expert computes its rows with one pair of
//! products, so its weights are read once for all of them. Then each row adds up the outputs of its
//! experts in the order of their numbers, so the sum does not depend on the other rows.
//!
//! Only families that normalize after the sum have experts.

#[cfg(test)]
mod tests;

use super::super::buffer::Buffer;
use super::super::layer::{Experts, Layer, Products};
use super::super::linear::{KernelSession, Operand};
use super::super::scratch::ThreadScratch;
use super::super::simd::{PANEL_WIDTH, rowwise};
use super::Encoder;
use super::together::ThreadTeam;

/// An expert that computes a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Route {
    expert: usize,
    /// Probability of the expert, which is the factor of its output.
    weight: f32,
    /// Index of the output among the outputs of all experts.
    output: usize,
}

/// Experts of the rows of a block, and rows of the experts.
#[derive(Debug, Default, PartialEq)]
struct Routes {
    /// Experts of each row, `[rows, used]`, in the order of their numbers.
    of_rows: Vec<Route>,
    /// Number of experts of a row.
    used: usize,
    /// Rows of all experts, one expert after another, in the order of the outputs.
    rows: Vec<usize>,
    /// End of the rows of each expert.
    ends: Vec<usize>,
}

impl Routes {
    /// Selects the `used` experts with the largest probabilities for each row of `scores`,
    /// `[rows, experts]`. Replaces the scores by the probabilities.
    fn new(scores: &mut [f32], experts: usize, used: usize) -> Self {
        let mut of_rows = Vec::with_capacity(scores.len() / experts * used);
        for scores in scores.chunks_exact_mut(experts) {
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(used);
            order.sort_unstable();
            softmax(scores);
            let route = |expert: usize| Route { expert, weight: scores[expert], output: 0 };
            of_rows.extend(order.into_iter().map(route));
        }
        let mut rows = Vec::with_capacity(of_rows.len());
        let mut ends = Vec::with_capacity(experts);
        for expert in 0..experts {
            let routes = of_rows.iter_mut().enumerate();
            for (index, route) in routes.filter(|(_, route)| route.expert == expert) {
                route.output = rows.len();
                rows.push(index / used);
            }
            ends.push(rows.len());
        }
        Self { of_rows, used, rows, ends }
    }

    /// Returns each expert that computes a row, with its rows.
    fn of_experts(&self) -> impl Iterator<Item = (usize, &[usize])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let of_experts = starts.zip(&self.ends).map(|(start, &end)| &self.rows[start..end]);
        of_experts.enumerate().filter(|(_, rows)| !rows.is_empty())
    }
}

/// Replaces `scores` by `e^score`, divided by the sum of all of them.
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

impl Encoder {
    /// Adds the outputs of the experts of `layer` to the first `count` rows of `x`, at most a
    /// block, and normalizes the sums. `x` also has the padding rows.
    pub(super) fn add_experts(
        &self,
        (layer, experts): (&Layer, &Experts),
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        (x, count): (&mut [f32], usize),
    ) {
        let row = self.row();
        let routes = self.route(experts, session, &mut scratch.block, (x, count));
        let mut buffer = std::mem::take(&mut scratch.expert_outputs);
        buffer.reserve(self.shape.expert_outputs());
        let mut rest = buffer.f32s_mut();
        for (expert, rows) in routes.of_experts() {
            let outputs = rest.split_off_mut(..rows.len() * row).unwrap_or_default();
            let products = &experts.products[expert];
            self.run_expert((layer, products), session, scratch, (x, rows), outputs);
        }
        let x = &mut x[..count * row];
        self.add_outputs((layer, experts), session, (&routes, buffer.f32s()), 0, x);
        scratch.expert_outputs = buffer;
    }

    /// Adds the outputs of the experts of `layer` like [`Encoder::add_experts`], on all threads.
    /// The threads share the experts, and then the rows. `results` is memory for the outputs.
    pub(super) fn add_experts_together(
        &self,
        team: &mut ThreadTeam<'_>,
        (layer, experts): (&Layer, &Experts),
        (x, count): (&mut [f32], usize),
        results: &mut [f32],
    ) {
        let row = self.row();
        let mut routes = Routes::default();
        let inputs = &*x;
        team.for_each(std::iter::once(&mut routes), |session, scratch, routes| {
            *routes = self.route(experts, session, &mut scratch.block, (inputs, count));
        });
        let mut rest = &mut *results;
        let items: Vec<_> = routes
            .of_experts()
            .map(|(expert, rows)| {
                let outputs = rest.split_off_mut(..rows.len() * row).unwrap_or_default();
                (&experts.products[expert], rows, outputs)
            })
            .collect();
        team.for_each(items.into_iter(), |session, scratch, (products, rows, outputs)| {
            self.run_expert((layer, products), session, scratch, (inputs, rows), outputs);
        });
        let each = team.rows_each(count);
        let (routes, outputs) = (&routes, &*results);
        let items = x[..count * row].chunks_mut(each * row).enumerate();
        team.for_each(items, |session, _, (index, x)| {
            self.add_outputs((layer, experts), session, (routes, outputs), index * each, x);
        });
    }

    /// Selects the experts of the first `count` rows of `x`.
    fn route(
        &self,
        experts: &Experts,
        session: &KernelSession,
        block: &mut Buffer,
        (x, count): (&[f32], usize),
    ) -> Routes {
        block.reserve(self.shape.block());
        let number = experts.products.len();
        let mut scores = vec![0.0; count * number];
        let operand = Operand::floats(bytemuck::cast_slice(x), self.row(), count);
        experts.router.for_each_panel(session, operand, block.f32s_mut(), |panel, results, _| {
            let first = panel * PANEL_WIDTH;
            let width = PANEL_WIDTH.min(number - first);
            for (results, scores) in results.iter().zip(scores.chunks_mut(number)) {
                scores[first..][..width].copy_from_slice(&results[..width]);
            }
        });
        Routes::new(&mut scores, number, experts.used)
    }

    /// Computes `products`, those of an expert of `layer`, for `rows` of `x`. Writes `outputs`,
    /// `[rows, row]`.
    fn run_expert(
        &self,
        (layer, products): (&Layer, &Products),
        session: &KernelSession,
        scratch: &mut ThreadScratch,
        (x, rows): (&[f32], &[usize]),
        outputs: &mut [f32],
    ) {
        let row = self.row();
        let ThreadScratch { inputs, wide, block, gathered, .. } = scratch;
        wide.reserve(self.shape.wide());
        block.reserve(self.shape.block());
        gathered.reserve(self.shape.gathered());
        let (block, gathered) = (block.f32s_mut(), gathered.f32s_mut());
        for (&from, to) in rows.iter().zip(gathered.chunks_exact_mut(row)) {
            to.copy_from_slice(&x[from * row..][..row]);
        }
        let memory = (inputs, wide, &mut *block);
        let input = (&*gathered, rows.len());
        let operand = self.between_products((layer, products), session, memory, input);
        products.narrow.for_each_panel(session, operand, block, |panel, results, bias| {
            let out = &mut outputs[panel * PANEL_WIDTH..];
            rowwise::store_f32(session.isa, results, bias, None, out, row);
        });
    }

    /// Adds the `outputs` of the experts and the bias of their sum to rows of `x`, of which the
    /// first is row `first` of `routes`, and normalizes the sums.
    fn add_outputs(
        &self,
        (layer, experts): (&Layer, &Experts),
        session: &KernelSession,
        (routes, outputs): (&Routes, &[f32]),
        first: usize,
        x: &mut [f32],
    ) {
        let row = self.row();
        let of_rows = routes.of_rows[first * routes.used..].chunks_exact(routes.used);
        for (x, routes) in x.chunks_exact_mut(row).zip(of_rows) {
            x.iter_mut().zip(&experts.bias).for_each(|(value, bias)| *value += bias);
            for route in routes {
                let output = &outputs[route.output * row..][..row];
                let values = x.iter_mut().zip(output);
                values.for_each(|(value, output)| *value += route.weight * output);
            }
        }
        if let Some(norm) = &layer.norm {
            norm.apply(session, x, row, self.epsilon);
        }
    }
}
