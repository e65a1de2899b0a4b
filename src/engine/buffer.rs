//! Aligned memory for operands and results of products.
//!
//! Every operand is a sequence of four-byte groups, whatever its element: one f32, two bf16 or four
//! bytes. So one buffer, one stride and one packed layout serve every precision.

/// Bytes of a cache line; vectors that lie across two cost double.
const ALIGNMENT: usize = 64;
const ALIGNMENT_GROUPS: usize = ALIGNMENT / size_of::<u32>();

/// Zeroed groups, the first on a cache line's boundary. Grows and never shrinks.
#[derive(Default)]
pub(super) struct Buffer {
    memory: Vec<u32>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` groups of zeros.
    pub(super) fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT_GROUPS];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT_GROUPS);
        Self { memory, start, len }
    }

    /// Makes room for `len` groups. Contents stay only when there was room already.
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

    /// Memory of `len` groups, in bytes.
    pub(super) const fn bytes_of(len: usize) -> u64 {
        (len * size_of::<u32>()) as u64
    }
}
