//! The first product of a feed-forward layer, plain or gated.

use super::super::buffer::Buffer;
use super::super::config::HiddenActivation;
use super::super::layer::{Layer, Products};
use super::super::linear::{KernelSession, Linear, Operand, OperandFormat};
use super::super::scratch::{BLOCK, PreparedRows};
use super::super::simd::{PANEL_WIDTH, rowwise};
use super::Encoder;

/// Results of a panel, `[rows, 32]`, without bias, and the bias.
type PanelResults<'a> = (&'a [[f32; PANEL_WIDTH]], &'a [f32; PANEL_WIDTH]);

/// Results of the first product for a panel of its outputs.
pub(super) enum WideResults<'a> {
    Plain(PanelResults<'a>),
    /// The factor that is activated, and the other factor.
    Gated(PanelResults<'a>, PanelResults<'a>),
}

impl WideResults<'_> {
    /// Stores the activated results as panel `panel` of `rows`, `stride` lane groups apart.
    pub(super) fn store(
        self,
        session: &KernelSession,
        activation: HiddenActivation,
        format: OperandFormat,
        rows: &mut [u32],
        stride: usize,
        panel: usize,
    ) {
        let first = panel * PANEL_WIDTH;
        if format == OperandFormat::Bf16 {
            let halves: &mut [u16] = bytemuck::cast_slice_mut(rows);
            let (out, stride) = (&mut halves[first..], stride * 2);
            match self {
                Self::Plain((results, bias)) => {
                    let activation = Some(activation);
                    rowwise::store_bf16(session.isa, results, bias, activation, out, stride);
                }
                Self::Gated(gate, up) => {
                    rowwise::gate_bf16(session.isa, gate, up, activation, out, stride);
                }
            }
        } else {
            let out = &mut bytemuck::cast_slice_mut(rows)[first..];
            self.store_f32(session, activation, out, stride);
        }
    }

    /// Stores the activated results to the rows of `out`, `stride` values apart.
    pub(super) fn store_f32(
        self,
        session: &KernelSession,
        activation: HiddenActivation,
        out: &mut [f32],
        stride: usize,
    ) {
        match self {
            Self::Plain((results, bias)) => {
                let activation = Some(activation);
                rowwise::store_f32(session.isa, results, bias, activation, out, stride);
            }
            Self::Gated(gate, up) => {
                rowwise::gate_f32(session.isa, gate, up, activation, out, stride);
            }
        }
    }
}

/// Returns the number of panels between the products of the feed-forward layer of `layer`.
pub(super) fn wide_panels(layer: &Layer) -> usize {
    layer.dims.padded_intermediate / PANEL_WIDTH
}

/// Computes panel `panel` of `linear`, the first product of the feed-forward layer of `layer`,
/// without bias and activation. `block` is memory for one block of results, or for two in a gated
/// layer.
pub(super) fn multiply_wide<'a>(
    (layer, linear): (&Layer, &'a Linear),
    session: &KernelSession,
    operand: Operand<'_>,
    block: &'a mut [f32],
    panel: usize,
) -> WideResults<'a> {
    if !layer.dims.gated {
        return WideResults::Plain(linear.multiply_panel(
            session,
            operand,
            block,
            panel,
            panel + 1,
        ));
    }
    // The panels of the two factors alternate.
    let (gate, up) = block.split_at_mut(BLOCK * PANEL_WIDTH);
    let first = 2 * panel;
    WideResults::Gated(
        linear.multiply_panel(session, operand, gate, first, first + 1),
        linear.multiply_panel(session, operand, up, first + 1, first + 2),
    )
}

impl Encoder {
    /// Computes the first product of `products`, which belong to `layer`, for `count` rows of `x`,
    /// at most [`BLOCK`]. Returns the activated results as the operand of the second product.
    /// `memory` has room for the operands, for a block between the products, and for a block of
    /// results.
    pub(super) fn between_products<'a>(
        &self,
        (layer, products): (&Layer, &Products),
        session: &KernelSession,
        memory: (&'a mut PreparedRows, &'a mut Buffer, &mut [f32]),
        (x, count): (&[f32], usize),
    ) -> Operand<'a> {
        let (inputs, wide, block) = memory;
        let (between, stride) = self.shape.intermediate(layer.dims.padded_intermediate);
        let operand = inputs.operand(session, &products.wide, x, self.row(), count);
        for panel in 0..wide_panels(layer) {
            let results = multiply_wide((layer, &products.wide), session, operand, block, panel);
            results.store(session, layer.activation, between, wide.groups_mut(), stride, panel);
        }
        let wide: &'a Buffer = wide;
        match self.packing.format {
            OperandFormat::Bf16 => Operand::floats(wide.groups(), stride, count),
            _ => inputs.operand(session, &products.narrow, wide.f32s(), stride, count),
        }
    }
}
