//! Weights that were verified, in memory or mapped from the store.
//!
//! Owns nothing but the choice between the two: whoever reads them need not know it.

use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;

/// The verified bytes of `model.safetensors`. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Weights {
    /// In this process's memory: what was just packed.
    Memory(Arc<Vec<u8>>),
    /// In a file of the store.
    Mapped(Arc<Mapping>),
}

impl Weights {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(mapping) => mapping.bytes(),
        }
    }

    /// Says that `range` will not be read for a while, so that it need not be resident. It stays
    /// readable, and unchanged.
    ///
    /// # Panics
    /// When `range` reaches beyond the bytes.
    pub fn release(&self, range: Range<usize>) {
        match self {
            Self::Memory(_) => {}
            Self::Mapped(mapping) => mapping.release(range),
        }
    }

    /// Says that `range` will not be read again, so that the system need not keep it. It stays readable,
    /// and unchanged.
    ///
    /// # Panics
    /// When `range` reaches beyond the bytes.
    pub fn forget(&self, range: Range<usize>) {
        match self {
            Self::Memory(_) => {}
            Self::Mapped(mapping) => mapping.forget(range),
        }
    }

    /// Memory of this process that they take and nobody else can give back, in bytes: all of them
    /// or none.
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
