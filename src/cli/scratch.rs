//! A package file verified without being installed: in a store that is thrown away.
//!
//! Owns that store and nothing else; what an installation checks is in [`crate::models::install`].

use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use crate::config::Settings;
use crate::files::{self, ReadOnce};
use crate::models::install::{InstallError, Installed, Rules, admit};
use crate::package::{Origin, Sidecars, Store};

/// A store in a temporary directory, gone when this is dropped.
pub(super) struct Scratch {
    /// The store.
    pub(super) store: Store,
    /// What its packages are held to.
    pub(super) rules: Rules,
    _directory: TempDir,
}

impl Scratch {
    /// An empty store that is held to `settings`, except that any package may be looked at.
    pub(super) fn create(settings: &Settings) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        let store = Store::volatile(directory.path())?;
        let rules = Rules { bundled_only: false, ..Rules::from(settings) };
        Ok(Self { store, rules, _directory: directory })
    }

    /// Verifies the package at `path` with what stands beside it, as an installation does, and
    /// unpacks it; its model is not tried.
    pub(super) fn admit(&self, path: &Path) -> anyhow::Result<Installed> {
        let file = ReadOnce::new(files::open_regular(path)?);
        let sidecars = Sidecars::read(path).map_err(InstallError::from)?;
        Ok(admit(&self.store, file, &sidecars, Origin::Installed, &self.rules)?)
    }
}
