//! Verified weights of a model, in memory or mapped from the store.
//!
//! The enum hides this difference from code that reads the weights.

use std::ops::Range;
use std::sync::Arc;

use super::mapping::MappedFile;

/// Verified bytes of `model.safetensors`. Clones are cheap and share the bytes.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Bytes in this process's memory: weights that were just packed.
    Memory(Arc<Vec<u8>>),
    /// Mapped file of the store.
    Mapped(Arc<MappedFile>),
}

impl Weights {
    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(mapping) => mapping.bytes(),
        }
    }

    /// Advises the system that `range` will not be read for a while, so that it does not stay
    /// resident. The bytes stay readable and unchanged.
    ///
    /// # Panics
    /// When `range` reaches beyond the bytes.
    pub fn release(&self, range: Range<usize>) {
        match self {
            Self::Memory(_) => {}
            Self::Mapped(mapping) => mapping.release(range),
        }
    }

    /// Advises the system that `range` will not be read again, so that it does not stay in the page
    /// cache. The bytes stay readable and unchanged.
    ///
    /// # Panics
    /// When `range` reaches beyond the bytes.
    pub fn forget(&self, range: Range<usize>) {
        match self {
            Self::Memory(_) => {}
            Self::Mapped(mapping) => mapping.forget(range),
        }
    }

    /// Returns the size in bytes of the process's own memory that holds the weights.
    ///
    /// The kernel cannot reclaim this memory. The result is zero for mapped weights, whose pages
    /// the kernel can reclaim, and otherwise the length of the weights.
    pub fn anonymous_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Mapped(_) => 0,
        }
    }
}

impl From<Vec<u8>> for Weights {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(Arc::new(bytes))
    }
}
