//! A package file verified without being installed: in a store that is thrown away.
//!
//! Owns that store and nothing else; what an installation checks is in [`crate::models::install`].

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use crate::config::Settings;
use crate::files;
use crate::models::install::{InstallError, Installed, Rules, admit};
use crate::package::{Origin, PackageBytes, Sidecars, Store};

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
        // Nothing is installed, so that no id is taken.
        let bundled_directory = directory.path().join("bundled");
        let rules = Rules { bundled_only: false, bundled_directory, ..Rules::from(settings) };
        Ok(Self { store, rules, _directory: directory })
    }

    /// Verifies `package`, as an installation does, and unpacks it; its model is not tried.
    pub(super) fn admit(&self, package: Given) -> anyhow::Result<Installed> {
        let Given { file, sidecars } = package;
        Ok(admit(&self.store, file, &sidecars, Origin::Installed, &self.rules, |_| Ok(()))?)
    }
}

/// A package file that was given on the command line, open, with what stands beside it.
pub(super) struct Given {
    /// The package.
    pub(super) file: PackageBytes<File>,
    /// What its digest and signature files say.
    pub(super) sidecars: Sidecars,
}

impl Given {
    /// Opens the package at `path`, with the rights of the caller.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = PackageBytes::of(files::open_regular(path)?);
        let sidecars = Sidecars::read(path).map_err(InstallError::from)?;
        Ok(Self { file, sidecars })
    }
}
