//! `caxton model known`: lists the models whose names, prompts and licences are built in.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::{print_json, print_table};
use crate::package::{KnownModel, known_models};

/// List the known models.
#[derive(Debug, Args)]
pub(super) struct Known {
    /// Print all facts about the models in JSON.
    #[arg(long)]
    json: bool,
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct KnownModels {
    models: Vec<KnownFacts>,
}

/// Facts about one known model.
#[derive(Debug, Serialize)]
struct KnownFacts {
    id: &'static str,
    other_names: &'static [&'static str],
    /// Repository on huggingface.co, as `owner/name`.
    repository: &'static str,
    architecture: &'static str,
    dimensions: usize,
    /// Longest text in tokens; `null` if the repository does not state it.
    max_sequence_length: Option<usize>,
    pooling: &'static str,
    normalize: bool,
    /// BCP 47 tags; `mul` for many.
    languages: &'static [&'static str],
    tasks: Vec<&'static str>,
    /// `fast`, `balanced` or `quality`.
    tier: &'static str,
    prompts: BTreeMap<&'static str, &'static str>,
    /// SPDX expression.
    license: Option<&'static str>,
    /// Approximate size of the weights, which is about the memory that they take.
    f32_bytes: u64,
    int8_bytes: u64,
    description: &'static str,
}

impl From<&'static KnownModel> for KnownFacts {
    fn from(model: &'static KnownModel) -> Self {
        Self {
            id: model.id,
            other_names: model.other_names,
            repository: model.repository,
            architecture: model.architecture,
            dimensions: model.dimensions,
            max_sequence_length: model.max_sequence_length,
            pooling: model.pooling,
            normalize: model.normalize,
            languages: model.languages,
            tasks: model.tasks.iter().map(|task| task.name()).collect(),
            tier: model.tier.name(),
            prompts: model.prompts.iter().copied().collect(),
            license: model.license,
            f32_bytes: model.f32_size.0,
            int8_bytes: model.int8_size.0,
            description: model.description,
        }
    }
}

impl Known {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        if self.json {
            let models = known_models().iter().map(KnownFacts::from).collect();
            return print_json(&KnownModels { models });
        }
        let rows = Vec::from_iter(known_models().iter().map(row));
        let headings = [
            "MODEL",
            "OTHER NAMES",
            "TIER",
            "TASKS",
            "LANGUAGES",
            "DIMENSIONS",
            "TOKENS",
            "F32",
            "INT8",
            "LICENSE",
            "DESCRIPTION",
        ];
        Ok(print_table(&headings, &rows)?)
    }
}

fn row(model: &'static KnownModel) -> Vec<String> {
    let dash = || "-".to_owned();
    let tasks = Vec::from_iter(model.tasks.iter().map(|task| task.name()));
    vec![
        model.id.to_owned(),
        match model.other_names {
            [] => dash(),
            names => names.join(", "),
        },
        model.tier.name().to_owned(),
        tasks.join(", "),
        match model.languages {
            [] => dash(),
            // The description has the number of many languages.
            [one] => (*one).to_owned(),
            several => format!("{} languages", several.len()),
        },
        model.dimensions.to_string(),
        model.max_sequence_length.map_or_else(dash, |length| length.to_string()),
        model.f32_size.to_string(),
        model.int8_size.to_string(),
        model.license.unwrap_or("unknown").to_owned(),
        model.description.to_owned(),
    ]
}
