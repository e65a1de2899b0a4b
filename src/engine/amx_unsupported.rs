//! Substitute for AMX on other architectures: types without values, so that callers need only one
//! form.

use super::simd::product::Product;

/// Permission that cannot exist on this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amx {}

impl Amx {
    /// Returns an error: this architecture has no AMX.
    ///
    /// # Errors
    /// Returns an error in every call.
    pub(super) fn request() -> Result<Self, &'static str> {
        Err("the processor has no AMX")
    }

    pub(super) fn tiles(self) -> Tiles {
        match self {}
    }
}

/// Tiles that cannot exist on this architecture.
pub(super) enum Tiles {}

impl Tiles {
    pub(super) fn bf16(&self, _product: &mut Product<'_>) {
        match *self {}
    }

    pub(super) fn multiply(&self, _rounds: usize) -> usize {
        match *self {}
    }
}
