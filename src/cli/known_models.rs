//! `caxton model known`: lists the models whose names, prompts and licences are built in, or shows
//! all facts about one of them.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{print_error, print_json, print_table, terminal};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::base::units::Bytes;
use crate::engine::Architecture;
use crate::package::{KnownModel, Precision, Task, find_known_model, known_models};

/// List the known models.
#[derive(Debug, Args)]
pub(super) struct Known {
    /// Model to show with all facts: its id, its repository as OWNER/NAME, or its name in Ollama.
    #[arg(
        value_name = "NAME",
        conflicts_with_all = [
            "language", "task", "license", "max_size", "max_memory", "family", "runs", "sort",
        ]
    )]
    name: Option<String>,
    /// Only models for this language, such as de. Models for many languages are listed too.
    #[arg(long, value_name = "TAG")]
    language: Option<String>,
    /// Only models that were trained for this task.
    #[arg(long, value_enum, value_name = "TASK")]
    task: Option<TaskArgument>,
    /// Only models with one of these licences, such as Apache-2.0,MIT.
    #[arg(long, value_name = "SPDX", value_delimiter = ',')]
    license: Vec<String>,
    /// Only models whose weights have at most this size in int8, such as 100MiB.
    #[arg(long, value_name = "SIZE")]
    max_size: Option<Bytes>,
    /// Only models that take at most this memory in int8, such as 500MiB.
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Bytes>,
    /// Only models of this family, such as bge.
    #[arg(long, value_name = "FAMILY")]
    family: Option<String>,
    /// Only models that this version of Caxton can run.
    #[arg(long)]
    runs: bool,
    /// Order of the list [default: related models together].
    #[arg(long, value_enum, value_name = "KEY")]
    sort: Option<SortKey>,
    /// Print all facts about the models in JSON.
    #[arg(long)]
    json: bool,
}

/// Order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortKey {
    Size,
    Memory,
    Name,
    Dimensions,
}

/// Task of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TaskArgument {
    Similarity,
    Search,
    CodeSearch,
    Rerank,
}

impl TaskArgument {
    fn task(self) -> Task {
        match self {
            Self::Similarity => Task::Similarity,
            Self::Search => Task::Search,
            Self::CodeSearch => Task::CodeSearch,
            Self::Rerank => Task::Rerank,
        }
    }
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct KnownModels {
    models: Vec<KnownFacts>,
}

/// Facts about one known model. `null` is a fact that the repository does not state clearly.
#[derive(Debug, Serialize)]
struct KnownFacts {
    id: &'static str,
    other_names: &'static [&'static str],
    /// Repository on huggingface.co, as `owner/name`.
    repository: &'static str,
    /// Commit of the repository that the facts describe.
    revision: Option<&'static str>,
    family: &'static str,
    architecture: &'static str,
    /// Whether this version of Caxton can run the model.
    runs: bool,
    /// Part that this version does not compute, although it has the architecture.
    obstacle: Option<&'static str>,
    /// `null` for a model that scores pairs of texts.
    dimensions: Option<usize>,
    matryoshka_dimensions: &'static [usize],
    /// Longest text in tokens.
    max_sequence_length: Option<usize>,
    pooling: Option<&'static str>,
    normalize: Option<bool>,
    /// BCP 47 tags; `mul` for many.
    languages: &'static [&'static str],
    tasks: Vec<&'static str>,
    /// `fast`, `balanced` or `quality`.
    tier: &'static str,
    prompts: BTreeMap<&'static str, &'static str>,
    /// SPDX expression.
    license: Option<&'static str>,
    parameters: u64,
    /// Number of words of the tokenizer.
    words: u64,
    /// Approximate size of the weights.
    f32_bytes: u64,
    f16_bytes: u64,
    int8_bytes: u64,
    /// `null` for a model whose table of words cannot be stored in 4 bits.
    int4_table_bytes: Option<u64>,
    /// Approximate memory of the weights and the tokenizer.
    f32_memory_bytes: u64,
    f16_memory_bytes: u64,
    int8_memory_bytes: u64,
    int4_table_memory_bytes: Option<u64>,
    /// SHA-256 of the published `model.safetensors`.
    weights_sha256: Option<&'static str>,
    /// Later model of the publisher that replaces this one.
    successor: Option<&'static str>,
    description: &'static str,
}

impl From<&'static KnownModel> for KnownFacts {
    fn from(model: &'static KnownModel) -> Self {
        let size = |precision| model.weights_size(precision).0;
        let memory = |precision| model.memory(precision).0;
        let has_int4 = model.allows_int4_table();
        Self {
            id: model.id,
            other_names: model.other_names,
            repository: model.repository,
            revision: model.revision,
            family: model.family,
            architecture: model.architecture,
            runs: runs(model),
            obstacle: model.obstacle,
            dimensions: model.dimensions,
            matryoshka_dimensions: model.matryoshka_dimensions,
            max_sequence_length: model.max_sequence_length,
            pooling: model.pooling,
            normalize: model.normalize,
            languages: model.languages,
            tasks: model.tasks.iter().map(|task| task.name()).collect(),
            tier: model.tier().name(),
            prompts: model.prompts.iter().copied().collect(),
            license: model.license,
            parameters: model.parameters,
            words: model.words,
            f32_bytes: size(Precision::F32),
            f16_bytes: size(Precision::F16),
            int8_bytes: size(Precision::Int8),
            int4_table_bytes: has_int4.then(|| size(Precision::Int4Table)),
            f32_memory_bytes: memory(Precision::F32),
            f16_memory_bytes: memory(Precision::F16),
            int8_memory_bytes: memory(Precision::Int8),
            int4_table_memory_bytes: has_int4.then(|| memory(Precision::Int4Table)),
            weights_sha256: model.weights_sha256,
            successor: model.successor,
            description: model.description,
        }
    }
}

/// Returns whether the engine computes all parts of `model`.
fn runs(model: &KnownModel) -> bool {
    model.architecture.parse::<Architecture>().is_ok() && model.obstacle.is_none()
}

impl Known {
    pub(super) fn run(&self) -> anyhow::Result<Exit> {
        if let Some(name) = &self.name {
            return show(name, self.json).map(|()| Exit::Ok);
        }
        let models = self.selected();
        if self.json {
            let models = models.into_iter().map(KnownFacts::from).collect();
            print_json(&KnownModels { models })?;
            return Ok(Exit::Ok);
        }
        if models.is_empty() {
            print_error("caxton: no known model matches; leave out one of the options");
            return Ok(Exit::Failure);
        }
        let rows = Vec::from_iter(models.into_iter().map(row));
        print_table(&["MODEL", "TASK", "LANG", "DIMS", "TOKENS", "INT8"], &rows)?;
        Ok(Exit::Ok)
    }

    /// Returns the models that the options select, in the order that they request.
    fn selected(&self) -> Vec<&'static KnownModel> {
        let mut models = Vec::from_iter(known_models().filter(|model| self.selects(model)));
        match self.sort {
            None => {}
            Some(SortKey::Size) => models.sort_by_key(|it| it.weights_size(Precision::Int8)),
            Some(SortKey::Memory) => models.sort_by_key(|it| it.memory(Precision::Int8)),
            Some(SortKey::Name) => models.sort_by_key(|it| it.id.to_ascii_lowercase()),
            Some(SortKey::Dimensions) => models.sort_by_key(|it| it.dimensions),
        }
        models
    }

    fn selects(&self, model: &KnownModel) -> bool {
        let is_in = |wanted: &String| {
            model.license.is_some_and(|license| license.eq_ignore_ascii_case(wanted))
        };
        self.language.as_deref().is_none_or(|language| speaks(model, language))
            && self.task.is_none_or(|task| model.tasks.contains(&task.task()))
            && (self.license.is_empty() || self.license.iter().any(is_in))
            && self.max_size.is_none_or(|most| model.weights_size(Precision::Int8) <= most)
            && self.max_memory.is_none_or(|most| model.memory(Precision::Int8) <= most)
            && self.family.as_ref().is_none_or(|name| model.family.eq_ignore_ascii_case(name))
            && (!self.runs || runs(model))
    }
}

/// Returns whether `model` is for the language with the tag `wanted`. Its region and script do not
/// count, because the table has neither.
fn speaks(model: &KnownModel, wanted: &str) -> bool {
    let wanted = wanted.split(['-', '_']).next().unwrap_or_default();
    model.languages.iter().any(|tag| *tag == "mul" || tag.eq_ignore_ascii_case(wanted))
}

fn row(model: &'static KnownModel) -> Vec<String> {
    let number = |fact: Option<usize>| fact.map_or_else(|| "-".to_owned(), |it| it.to_string());
    vec![
        model.id.to_owned(),
        model.tasks.first().map_or("-", |task| task.name()).to_owned(),
        match model.languages {
            [] => "-".to_owned(),
            [one] => (*one).to_owned(),
            several => several.len().to_string(),
        },
        number(model.dimensions),
        number(model.max_sequence_length),
        format!("{} MiB", model.weights_size(Precision::Int8).0.div_ceil(1 << 20)),
    ]
}

/// Prints all facts about the model that `name` means, under their names in JSON.
fn show(name: &str, json: bool) -> anyhow::Result<()> {
    let Some(model) = find_known_model(name) else {
        bail!("{} is not a known model; `caxton model known` lists them", printable::line(name));
    };
    let facts = KnownFacts::from(model);
    if json {
        return print_json(&facts);
    }
    let fields = serde_json::to_value(&facts)?;
    let mut out = terminal::out();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        writeln!(out, "{name:24} {}", printable::line(&text))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        known: Known,
    }

    /// Returns the ids that the command lists with `arguments`.
    fn ids(arguments: &[&str]) -> Vec<&'static str> {
        let all = ["known"].into_iter().chain(arguments.iter().copied());
        let command = Command::try_parse_from(all).unwrap();
        command.known.selected().into_iter().map(|model| model.id).collect()
    }

    #[test]
    fn filters_select_models() {
        let all = ids(&[]);
        assert_eq!(all.len(), known_models().count());
        let german = ids(&["--language", "de-AT"]);
        assert!(german.contains(&"granite-embedding-278m-multilingual"), "{german:?}");
        assert!(german.contains(&"bge-m3") && !german.contains(&"all-MiniLM-L6-v2"), "{german:?}");
        let rerankers = ids(&["--task", "rerank", "--license", "mit"]);
        assert_eq!(rerankers, ["bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3"]);
        let small = ids(&["--max-size", "10MB", "--family", "POTION"]);
        assert_eq!(small, ["potion-base-8M"]);
        let code = ids(&["--task", "code-search", "--license", "MIT,Apache-2.0"]);
        assert!(code.contains(&"potion-code-16M-v2"), "{code:?}");
        assert!(!code.contains(&"st-codesearch-distilroberta-base"), "{code:?}");
        assert_eq!(ids(&["--language", "xx", "--family", "ruri"]), [""; 0]);
    }

    #[test]
    fn memory_includes_the_tokenizer() {
        // 250,037 words with 1,000 bytes each.
        let small = ids(&["--max-memory", "200MB", "--family", "multilingual-e5"]);
        assert_eq!(small, [""; 0]);
        let size = ids(&["--max-size", "200MB", "--family", "multilingual-e5"]);
        assert_eq!(size, ["multilingual-e5-small"]);
    }

    #[test]
    fn runnable_models_have_a_known_architecture() {
        let runnable = ids(&["--runs"]);
        let all = ids(&[]);
        let rest: Vec<_> = all.into_iter().filter(|id| !runnable.contains(id)).collect();
        // The engine has their architectures, but not a part of each.
        let expected = [
            "jina-embeddings-v2-base-code",
            "voyage-4-nano",
            "ettin-reranker-17m-v1",
            "ettin-reranker-32m-v1",
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn lists_are_sorted() {
        let by = |key: &str| {
            ids(&["--sort", key]).into_iter().map(|id| find_known_model(id).unwrap()).collect()
        };
        let models: Vec<&KnownModel> = by("size");
        assert_eq!(models[0].id, "ms-marco-TinyBERT-L2-v2");
        assert!(models.is_sorted_by_key(|model| model.weights_size(Precision::Int8)));
        let models: Vec<&KnownModel> = by("memory");
        assert!(models.is_sorted_by_key(|model| model.memory(Precision::Int8)));
        let models: Vec<&KnownModel> = by("name");
        assert!(models.is_sorted_by_key(|model| model.id.to_ascii_lowercase()));
        let models: Vec<&KnownModel> = by("dimensions");
        assert!(models.is_sorted_by_key(|model| model.dimensions));
    }

    #[test]
    fn table_fits_eighty_columns() {
        let rows = Vec::from_iter(known_models().map(row));
        let headings = ["MODEL", "TASK", "LANG", "DIMS", "TOKENS", "INT8"];
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].len()]).max().unwrap()
        };
        let widths: usize = (0..headings.len()).map(width).sum();
        assert!(widths + 2 * (headings.len() - 1) <= 80, "{widths}");
    }

    #[test]
    fn name_and_filters_exclude_each_other() {
        assert!(Command::try_parse_from(["known", "bge-m3", "--runs"]).is_err());
        assert!(Command::try_parse_from(["known", "bge-m3", "--json"]).is_ok());
        let message = show("nobody/nothing", true).unwrap_err().to_string();
        assert!(message.contains("nobody/nothing is not a known model"), "{message}");
    }
}
