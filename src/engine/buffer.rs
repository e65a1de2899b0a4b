//! Aligned memory for operands and results of products.
//!
//! Every operand is a sequence of four-byte lane groups, whatever its elements are: one f32, two
//! bf16 or four int8. So one buffer type, one stride and one packed layout work for every
//! precision.

/// Size of a cache line in bytes. A vector that crosses the boundary of two lines costs double.
const ALIGNMENT: usize = 64;
const ALIGNMENT_GROUPS: usize = ALIGNMENT / size_of::<u32>();

/// Lane groups, initially zero, aligned to a cache line. A buffer grows and never shrinks.
#[derive(Default)]
pub(super) struct Buffer {
    // The allocation has a spare cache line for the alignment. The buffer is
    // `memory[start..][..len]`.
    memory: Vec<u32>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Returns `len` lane groups of zeros.
    pub(super) fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT_GROUPS];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT_GROUPS);
        Self { memory, start, len }
    }

    /// Grows the buffer to at least `len` lane groups. If it grows, its contents are replaced by
    /// zeros.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }

    pub(super) fn groups(&self) -> &[u32] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(super) fn groups_mut(&mut self) -> &mut [u32] {
        &mut self.memory[self.start..self.start + self.len]
    }

    pub(super) fn f32s(&self) -> &[f32] {
        bytemuck::cast_slice(self.groups())
    }

    pub(super) fn f32s_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.groups_mut())
    }

    pub(super) fn bytes(&self) -> u64 {
        Self::bytes_of(self.len)
    }

    /// Returns the memory of `len` lane groups, in bytes.
    pub(super) const fn bytes_of(len: usize) -> u64 {
        (len * size_of::<u32>()) as u64
    }
}
