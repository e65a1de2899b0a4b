//! Determines the pooling and the normalization of a directory without `modules.json`, such as
//! transformers writes it.
//!
//! The files of such a directory do not state the two steps. They come from the caller or from the
//! registry, and for a family whose published encoders all have the same step, from the family. A
//! wrong step gives plausible vectors of poor quality, so nothing is guessed.

use std::path::Path;

use super::encoder::Encoder;
use super::file::{ModelDirectoryError, unsupported};
use crate::package::registry::KnownModel;

/// File that lists the modules in the layout of sentence-transformers.
pub(super) const MODULES: &str = "modules.json";

/// Directories that sentence-transformers writes for the steps after the encoder.
const STEP_DIRECTORIES: [&str; 6] =
    ["1_Pooling", "2_Dense", "2_Normalize", "3_Dense", "3_Normalize", "4_Normalize"];

/// Families whose published encoders for texts all have the same pooling, each with it and, if it
/// is the same too, with the normalization.
const FAMILY_STEPS: [(&str, &str, Option<bool>); 3] =
    [("embedding_gemma2", "mean", Some(true)), ("gte", "cls", None), ("nomic_bert", "mean", None)];

/// Families whose models are mostly language models, of which few were trained to embed texts.
const LANGUAGE_MODELS: [&str; 2] = ["gemma3_text", "qwen3"];

/// Steps that the caller states for a directory.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::package) struct StatedSteps {
    pub(in crate::package) pooling: Option<&'static str>,
    pub(in crate::package) normalize: Option<bool>,
}

impl StatedSteps {
    /// Returns whether the caller states no step.
    pub(super) fn is_empty(self) -> bool {
        self.pooling.is_none() && self.normalize.is_none()
    }

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

    /// Returns the pooling and the normalization of a directory without `modules.json`, which
    /// contains `encoder`.
    ///
    /// # Errors
    /// When neither the caller nor the registry nor the family states them, the first two
    /// contradict each other, or the directory is an incomplete copy of one with `modules.json`.
    pub(super) fn of_plain_directory(
        self,
        directory: &Path,
        encoder: &Encoder,
        known: Option<&KnownModel>,
    ) -> Result<(&'static str, bool), ModelDirectoryError> {
        let refuse = |reason: String| Err(unsupported(&directory.join(MODULES), reason));
        if let Some(name) = STEP_DIRECTORIES.iter().find(|name| directory.join(name).exists()) {
            return refuse(format!(
                "it is missing, but {name} exists, so the copy of the directory is incomplete; \
                 copy {MODULES} too"
            ));
        }
        let mut steps = self;
        if let Some(known) = known {
            let normalize = known.normalize.map(|published| published.to_string());
            let facts = [
                ("pooling", self.pooling.map(str::to_owned), known.pooling.map(str::to_owned)),
                ("normalize", self.normalize.map(|stated| stated.to_string()), normalize),
            ];
            for (option, stated, published) in facts {
                if let (Some(stated), Some(published)) = (stated, published)
                    && stated != published
                {
                    return refuse(format!(
                        "it is missing, and --{option} is {stated}, but {} has {published}; leave \
                         out --{option}, or choose another id with --model-id",
                        known.id
                    ));
                }
            }
            steps.pooling = self.pooling.or(known.pooling);
            steps.normalize = self.normalize.or(known.normalize);
        }
        let Self { pooling, normalize } = steps.or_those_of(encoder);
        if let (Some(pooling), Some(normalize)) = (pooling, normalize) {
            return Ok((pooling, normalize));
        }
        let architecture = encoder.architecture;
        let nature = if LANGUAGE_MODELS.contains(&architecture) {
            format!(
                ", and most models with model_type {architecture} are language models, whose \
                 vectors are useless without training for it"
            )
        } else {
            String::new()
        };
        refuse(format!(
            "it is missing, so the directory does not state its pooling and normalization{nature}; \
             name the known model with --original (`caxton model known` lists them), or give both \
             --pooling mean|cls|max|mean_sqrt_len|lasttoken and --normalize true|false"
        ))
    }

    /// Fills in the missing steps with those of the family of `encoder`. A model with a head for
    /// another task is not one of the published encoders.
    fn or_those_of(self, encoder: &Encoder) -> Self {
        let family = FAMILY_STEPS.iter().find(|(name, ..)| *name == encoder.architecture);
        match family.filter(|_| encoder.is_bare) {
            Some(&(_, pooling, normalize)) => Self {
                pooling: self.pooling.or(Some(pooling)),
                normalize: self.normalize.or(normalize),
            },
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use tempfile::TempDir;

    use super::super::ModelDirectory;
    use super::*;
    use crate::package::directory_fixture::{Layout, model_directory, write_json};
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
            let pooling_option = "--pooling mean|cls|max|mean_sqrt_len|lasttoken";
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
    fn missing_steps_come_from_family() {
        let directory = plain_directory();
        let steps_of = |model_type: &str, class: &str, pooling, normalize| {
            let config = json!({
                "model_type": model_type, "architectures": [class], "hidden_size": 4,
                "max_position_embeddings": 64,
            });
            write_json(directory.path(), "config.json", &config);
            steps(&directory, pooling, normalize, None)
        };
        assert_eq!(steps_of("new", "NewModel", None, Some(true)), Ok(("cls", true)));
        assert_eq!(steps_of("gte", "GteModel", Some("mean"), Some(false)), Ok(("mean", false)));
        assert_eq!(steps_of("nomic_bert", "NomicBertModel", None, Some(true)), Ok(("mean", true)));
        let text_encoder = "EmbeddingGemma2TextModel";
        let found = steps_of("embedding_gemma2_text", text_encoder, None, None);
        assert_eq!(found, Ok(("mean", true)));
        // The family states only the pooling, the weights have a head for another task, or the
        // family has encoders of several kinds.
        for (model_type, class, part) in [
            ("nomic_bert", "NomicBertModel", "does not state its pooling and normalization; name"),
            ("new", "NewForSequenceClassification", "--pooling mean|cls"),
            ("eurobert", "EuroBertModel", "--pooling mean|cls"),
            ("qwen3", "Qwen3ForCausalLM", "model_type qwen3 are language models"),
            ("gemma3_text", "Gemma3ForCausalLM", "model_type gemma3_text are language models"),
        ] {
            let message = steps_of(model_type, class, None, None).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let stated = steps_of("qwen3", "Qwen3Model", Some("lasttoken"), Some(true));
        assert_eq!(stated, Ok(("lasttoken", true)));
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
