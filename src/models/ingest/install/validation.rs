//! Validates an installed model completely: every file, and a load with the self-test.

use super::driver::{InstallDriver, MeasuredModel};
use super::{InstallError, Installation};
use crate::package::{EntryKey, FileCheck, FileStatus, PackageCheck};

/// Result of a complete validation.
#[derive(Debug)]
pub struct Validation {
    /// Comparison of each file with the manifest.
    pub files: Vec<FileCheck>,
    /// Result of the load and the self-test; `None` if a file is not valid, so that the model was
    /// not loaded.
    pub tested: Option<Result<MeasuredModel, InstallError>>,
    /// Fault of the package as a whole, for example a wrong signature.
    pub fault: Option<InstallError>,
}

impl Validation {
    /// Returns the result for a package that was rejected with `fault`. `check` lists its files.
    pub fn rejected(fault: InstallError, check: Option<PackageCheck>) -> Self {
        let (files, end) = check.map_or_else(Default::default, |check| (check.files, check.fault));
        let has_faulty_file = files.iter().any(|file| file.status != FileStatus::Valid);
        let fault = match end {
            // The whole package was read, so the fault is that of a listed file.
            None if has_faulty_file => None,
            Some(end) => Some(end.into()),
            None => Some(fault),
        };
        Self { files, tested: None, fault }
    }

    /// Returns whether the size and the digest of every file match the manifest.
    pub fn has_valid_files(&self) -> bool {
        self.fault.is_none() && self.files.iter().all(|file| file.status == FileStatus::Valid)
    }
}

impl InstallDriver<'_> {
    /// Hashes every file of an entry. If all are valid, loads the model and runs its self-test.
    /// Calls `progress` with the number of bytes hashed so far. The entry stays as it is.
    ///
    /// # Errors
    /// When there is no such entry. Faults of the model are in the result.
    pub fn validate(
        &self,
        key: &EntryKey,
        progress: impl FnMut(u64),
    ) -> Result<Validation, InstallError> {
        let files = self.store().check_files(key, progress)?;
        let mut validation = Validation { files, tested: None, fault: None };
        if validation.has_valid_files() {
            validation.tested = Some(self.measure(key));
        }
        Ok(validation)
    }

    /// Returns the validation of a package that was verified and unpacked a moment ago, so that its
    /// files need no second look.
    pub fn validate_unpacked(&self, installation: &Installation) -> Validation {
        let entry = &installation.entry;
        Validation {
            files: entry.manifest.files.iter().map(FileCheck::valid).collect(),
            tested: Some(self.measure(&entry.key)),
            fault: None,
        }
    }
}
