//! The sizes of a layer, and the places of its channels in packed rows.

use crate::base::quantization;
use crate::engine::config::LayerConfig;
use crate::engine::simd::PANEL_WIDTH;

/// Sizes of the rows of one layer, in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct LayerDims {
    /// Width of a token vector.
    pub(in crate::engine) hidden: usize,
    /// Width of a token vector with its padding.
    pub(in crate::engine) row: usize,
    /// Number of heads of the queries.
    pub(in crate::engine) heads: usize,
    /// Number of heads of the keys, and of the values; divides `heads`.
    pub(in crate::engine) kv_heads: usize,
    /// Width of a head.
    pub(in crate::engine) head: usize,
    /// Width of a head with its padding.
    pub(in crate::engine) padded_head: usize,
    /// Width between the products of a feed-forward layer.
    intermediate: usize,
    /// Width between the products of a feed-forward layer, with its padding.
    pub(in crate::engine) padded_intermediate: usize,
    /// Whether the first product of the feed-forward layer has two factors.
    pub(in crate::engine) gated: bool,
}

impl LayerDims {
    pub(in crate::engine) fn new(hidden: usize, layer: &LayerConfig) -> Self {
        let LayerConfig { attention, feed_forward, .. } = layer;
        Self {
            hidden,
            row: hidden.next_multiple_of(PANEL_WIDTH),
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head: attention.head,
            padded_head: attention.head.next_multiple_of(PANEL_WIDTH),
            intermediate: feed_forward.intermediate,
            padded_intermediate: feed_forward.intermediate.next_multiple_of(PANEL_WIDTH),
            gated: feed_forward.gated,
        }
    }

    /// Returns the shapes of the linear layers of [`Layer`](super::Layer), in its order: the number
    /// of outputs, and the ends of the blocks of inputs.
    pub(in crate::engine) fn linears(&self) -> [(usize, Vec<usize>); 4] {
        let hidden = quantization::hidden_blocks(self.hidden);
        let wide = if self.gated { 2 * self.padded_intermediate } else { self.intermediate };
        [
            // Queries, keys and values are one product.
            (self.all_heads() * self.padded_head, hidden.clone()),
            // All channels of the heads have a similar magnitude, so they are one block.
            (self.hidden, vec![self.inner()]),
            (wide, hidden),
            (self.hidden, quantization::even_blocks(self.intermediate)),
        ]
    }

    /// Returns the width of all heads of the queries with their padding.
    pub(in crate::engine) const fn inner(&self) -> usize {
        self.heads * self.padded_head
    }

    /// Returns the number of heads of queries, keys and values together.
    pub(in crate::engine) const fn all_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Returns the part to which head `head` of [`LayerDims::all_heads`] belongs.
    pub(in crate::engine) const fn part_of(&self, head: usize) -> HeadPart {
        if head < self.heads {
            HeadPart::Query
        } else if head < self.heads + self.kv_heads {
            HeadPart::Key
        } else {
            HeadPart::Value
        }
    }

    /// Returns the stored channel between the products of a feed-forward layer of each packed
    /// index.
    pub(super) fn intermediate_places(&self) -> Vec<Option<usize>> {
        (0..self.intermediate).map(Some).collect()
    }

    /// Returns the stored channel of `heads` heads of each packed index, with each head padded to
    /// whole panels. Padding is `None`.
    pub(super) fn head_places(&self, heads: usize) -> Vec<Option<usize>> {
        let Self { head, padded_head, .. } = *self;
        let place = |head_index, place| (place < head).then_some(head_index * head + place);
        let heads = (0..heads).flat_map(|index| (0..padded_head).map(move |at| place(index, at)));
        heads.collect()
    }
}

/// Parts of the product for queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum HeadPart {
    Query,
    Key,
    Value,
}
