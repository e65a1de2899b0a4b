//! Converts the result of a validation into its wire type.

use super::wire::validation::{FileReport, ValidationReport};
use crate::base::errors::chain;
use crate::models::ingest::install::{InstallError, Validation};
use crate::models::residency::load::LoadError;
use crate::package::{FileCheck, Manifest};

impl ValidationReport {
    /// Creates the report of `validation`. The fields about the package file stay empty.
    pub(crate) fn new(manifest: Option<&Manifest>, validation: &Validation) -> Self {
        let Validation { files, tested, fault } = validation;
        let mut report = Self {
            id: manifest.map(|manifest| manifest.id.to_string()),
            version: manifest.map(|manifest| manifest.version.to_string()),
            dimensions: manifest.map(|manifest| manifest.dimensions),
            files: files.iter().map(file).collect(),
            faults: fault.iter().map(|fault| chain(fault)).collect(),
            ..Self::default()
        };
        report.faults.extend(files.iter().filter_map(|file| file.fault.clone()));
        match tested {
            None => report.can_load = Some(false),
            Some(Ok(measured)) => {
                let figures = &measured.figures;
                report.can_load = Some(true);
                report.self_test_cosine = Some(figures.cosine);
                report.precision = Some(figures.precision.name().to_owned());
                report.load_ms = Some(figures.load.as_micros() as f64 / 1e3);
                report.weight_bytes = Some(figures.weight_bytes);
                report.peak_bytes = Some(measured.footprint.peak_bytes());
            }
            Some(Err(error)) => {
                report.faults.push(chain(error));
                report.can_load = match error {
                    InstallError::Load(LoadError::SelfTest { cosine, precision }) => {
                        report.self_test_cosine = Some(*cosine);
                        report.precision = Some(precision.name().to_owned());
                        Some(true)
                    }
                    InstallError::Load(_)
                    | InstallError::Crashed(_)
                    | InstallError::SelfTestPanicked => Some(false),
                    // The self-test did not run.
                    _ => None,
                };
            }
        }
        report.valid = report.faults.is_empty() && matches!(tested, Some(Ok(_)));
        report
    }
}

fn file(check: &FileCheck) -> FileReport {
    let expected = &check.expected;
    FileReport {
        name: expected.path.to_string(),
        size: check.size,
        expected_size: expected.size,
        sha256: check.sha256.map(|digest| digest.to_string()),
        expected_sha256: expected.sha256.to_string(),
        status: check.status.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Precision;
    use crate::package::fixture;

    #[test]
    fn wrong_vector_loads_but_is_invalid() {
        let manifest = fixture::manifest("m", "1", &[("config.json", b"{}")]);
        let files = Vec::from_iter(manifest.files.iter().map(FileCheck::valid));
        let error = LoadError::SelfTest { cosine: 0.25, precision: Precision::F32 };
        let tested = Some(Err(InstallError::from(error)));
        let report =
            ValidationReport::new(Some(&manifest), &Validation { files, tested, fault: None });
        assert_eq!((report.valid, report.can_load), (false, Some(true)));
        assert_eq!(report.self_test_cosine, Some(0.25));
        assert_eq!(report.files[0].status, "valid");
        assert_eq!(report.faults.len(), 1, "{:?}", report.faults);
    }
}
