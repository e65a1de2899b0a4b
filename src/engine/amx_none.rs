//! AMX where there is none: types without values, so that callers need no second form.

use super::simd::dense::Product;

/// Never exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amx {}

impl Amx {
    /// # Errors
    /// Always.
    pub(super) fn request() -> Result<Self, &'static str> {
        Err("the processor has no AMX")
    }

    pub(super) fn tiles(self) -> Tiles {
        match self {}
    }
}

/// Never exists.
pub(super) enum Tiles {}

impl Tiles {
    pub(super) fn bf16(&self, _product: &mut Product<'_>) {
        match *self {}
    }

    pub(super) fn multiply(&self, _rounds: usize) -> usize {
        match *self {}
    }
}
