//! A temporary store, in which a package file is verified without installing it.
//!
//! The checks of an installation are in [`crate::models::ingest::install`].

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use crate::config::Settings;
use crate::files;
use crate::models::ingest::install::{InstallError, InstallRules, Installation, verify_and_store};
use crate::package::{Origin, PackageBytes, Sidecars, Store};

/// A store in a temporary directory, which is removed on drop.
pub(super) struct TempStore {
    /// The store.
    pub(super) store: Store,
    /// Rules for its packages.
    pub(super) rules: InstallRules,
    _directory: TempDir,
}

impl TempStore {
    /// Creates an empty store with the rules of `settings`, except that packages that are not
    /// bundled are always accepted.
    pub(super) fn create(settings: &Settings) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        let store = Store::volatile(directory.path())?;
        // The store is empty, so that no id is taken.
        let bundled_directory = directory.path().join("bundled");
        let rules =
            InstallRules { bundled_only: false, bundled_directory, ..InstallRules::from(settings) };
        Ok(Self { store, rules, _directory: directory })
    }

    /// Verifies `package` like an installation does, and unpacks it. The self-test does not run.
    pub(super) fn verify(&self, package: PackageFile) -> anyhow::Result<Installation> {
        let PackageFile { file, sidecars } = package;
        Ok(verify_and_store(&self.store, file, &sidecars, Origin::Installed, &self.rules, |_| {
            Ok(())
        })?)
    }
}

/// An open package file from the command line, with its sidecars.
pub(super) struct PackageFile {
    /// The package.
    pub(super) file: PackageBytes<File>,
    /// Contents of its digest and signature files.
    pub(super) sidecars: Sidecars,
}

impl PackageFile {
    /// Opens the package at `path` with the rights of the caller.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = PackageBytes::of(files::open_regular(path)?);
        let sidecars = Sidecars::read(path).map_err(InstallError::from)?;
        Ok(Self { file, sidecars })
    }
}
