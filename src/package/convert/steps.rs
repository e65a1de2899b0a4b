//! Determines the pooling and the normalization of a directory without `modules.json`, such as
//! transformers writes it.
//!
//! The files of such a directory do not state the two steps. They come from the caller or from the
//! registry. A wrong step gives plausible vectors of poor quality, so nothing is guessed.

use std::path::Path;

use super::file::{ModelDirectoryError, unsupported};
use crate::package::registry::KnownModel;

/// File that lists the modules in the layout of sentence-transformers.
pub(super) const MODULES: &str = "modules.json";

/// Directories that sentence-transformers writes for the steps after the encoder.
const STEP_DIRECTORIES: [&str; 4] = ["1_Pooling", "2_Dense", "2_Normalize", "3_Normalize"];

/// Steps that the caller states for a directory.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::package) struct StatedSteps {
    pub(in crate::package) pooling: Option<&'static str>,
    pub(in crate::package) normalize: Option<bool>,
}

impl StatedSteps {
    /// Checks that the steps in `modules.json` do not contradict the stated ones.
    ///
    /// # Errors
    /// When they do. The error names the option.
    pub(super) fn check(
        self,
        directory: &Path,
        pooling: &str,
        normalize: bool,
    ) -> Result<(), ModelDirectoryError> {
        let refuse = |option: &str, found: &str, stated: &str| {
            let reason = format!(
                "its {option} is {found}, but --{option} is {stated}; leave out --{option}"
            );
            Err(unsupported(&directory.join(MODULES), reason))
        };
        match self {
            Self { pooling: Some(stated), .. } if stated != pooling => {
                refuse("pooling", pooling, stated)
            }
            Self { normalize: Some(stated), .. } if stated != normalize => {
                refuse("normalize", &normalize.to_string(), &stated.to_string())
            }
            _ => Ok(()),
        }
    }

    /// Returns the pooling and the normalization of a directory without `modules.json`.
    ///
    /// # Errors
    /// When neither the caller nor the registry states them, the two contradict each other, or the
    /// directory is an incomplete copy of one with `modules.json`.
    pub(super) fn of_plain_directory(
        self,
        directory: &Path,
        known: Option<&KnownModel>,
    ) -> Result<(&'static str, bool), ModelDirectoryError> {
        let refuse = |reason: String| Err(unsupported(&directory.join(MODULES), reason));
        if let Some(name) = STEP_DIRECTORIES.iter().find(|name| directory.join(name).exists()) {
            return refuse(format!(
                "it is missing, but {name} exists, so the copy of the directory is incomplete; \
                 copy {MODULES} too"
            ));
        }
        if let Some(known) = known {
            let facts = [
                ("pooling", self.pooling.map(str::to_owned), known.pooling.to_owned()),
                (
                    "normalize",
                    self.normalize.map(|stated| stated.to_string()),
                    known.normalize.to_string(),
                ),
            ];
            for (option, stated, published) in facts {
                if let Some(stated) = stated.filter(|stated| *stated != published) {
                    return refuse(format!(
                        "it is missing, and --{option} is {stated}, but {} has {published}; leave \
                         out --{option}, or choose another id with --model-id",
                        known.id
                    ));
                }
            }
            return Ok((known.pooling, known.normalize));
        }
        match self {
            Self { pooling: Some(pooling), normalize: Some(normalize) } => Ok((pooling, normalize)),
            _ => refuse(
                "it is missing, so the directory does not state its pooling and normalization; \
                 name the known model with --original (`caxton model known` lists them), or give \
                 both --pooling mean|cls|max|mean_sqrt_len and --normalize true|false"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::super::ModelDirectory;
    use super::*;
    use crate::package::directory_fixture::{Layout, model_directory};
    use crate::package::find_known_model;

    /// Creates a directory as transformers writes it.
    fn plain_directory() -> TempDir {
        let directory = model_directory(Layout::Two);
        fs::remove_file(directory.path().join(MODULES)).unwrap();
        for name in ["1_Pooling", "2_Dense"] {
            fs::remove_dir_all(directory.path().join(name)).unwrap();
        }
        directory
    }

    fn steps(
        directory: &TempDir,
        pooling: Option<&'static str>,
        normalize: Option<bool>,
        known: Option<&str>,
    ) -> Result<(&'static str, bool), String> {
        let known = known.map(|name| find_known_model(name).unwrap());
        ModelDirectory::read(directory.path(), StatedSteps { pooling, normalize }, known)
            .map(|source| (source.pooling, source.normalize))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn missing_steps_come_from_caller_or_registry() {
        let directory = plain_directory();
        let mini = Some("all-MiniLM-L6-v2");
        assert_eq!(steps(&directory, None, None, mini), Ok(("mean", true)));
        assert_eq!(steps(&directory, Some("mean"), Some(true), mini), Ok(("mean", true)));
        assert_eq!(steps(&directory, Some("cls"), Some(false), None), Ok(("cls", false)));
        for (pooling, normalize) in [(None, None), (Some("cls"), None), (None, Some(true))] {
            let message = steps(&directory, pooling, normalize, None).unwrap_err();
            let pooling_option = "--pooling mean|cls|max|mean_sqrt_len";
            for part in [MODULES, "--original", pooling_option, "--normalize true|false"] {
                assert!(message.contains(part), "{message}");
            }
        }
        for (pooling, normalize, part) in [
            (Some("cls"), None, "--pooling is cls, but all-MiniLM-L6-v2 has mean"),
            (None, Some(false), "--normalize is false, but all-MiniLM-L6-v2 has true"),
        ] {
            let message = steps(&directory, pooling, normalize, mini).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn incomplete_copy_without_modules_is_refused() {
        let directory = plain_directory();
        fs::create_dir(directory.path().join("2_Dense")).unwrap();
        let message = steps(&directory, Some("mean"), Some(true), None).unwrap_err();
        assert!(message.contains("2_Dense exists"), "{message}");
    }

    #[test]
    fn options_must_agree_with_modules() {
        let directory = model_directory(Layout::Two);
        assert_eq!(steps(&directory, Some("mean"), Some(true), None), Ok(("mean", true)));
        for (pooling, normalize, part) in [
            (Some("cls"), None, "its pooling is mean, but --pooling is cls"),
            (None, Some(false), "its normalize is true, but --normalize is false"),
        ] {
            let message = steps(&directory, pooling, normalize, None).unwrap_err();
            assert!(message.contains(MODULES) && message.contains(part), "{message}");
        }
    }
}
