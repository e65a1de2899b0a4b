//! Recommends installed models for a task. Pure.
//!
//! A manifest declares neither a task nor a quality. The task of a model comes from the table of
//! known models, by the id or the source of the model, or from the names of its prompts. Its
//! [`Tier`] comes from its size. Missing knowledge does not count against a model.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::package::{EntryKey, Manifest, Precision, Task, Tier, WEIGHTS, known_model_of};

/// Task for which vectors are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskType {
    /// Any task. No model is preferred.
    #[default]
    Embedding,
    /// Comparison of texts with each other.
    Similarity,
    /// Search for the passages that answer a query. The name `retrieval` is an alias.
    Search,
    /// Input features of a classifier.
    Classification,
    /// Search for groups of similar texts.
    Clustering,
    /// Search for code by a description of its function.
    CodeSearch,
    /// Scores of documents for a query, by a model that reads both together.
    Rerank,
}

impl TaskType {
    /// Accepted names.
    pub const NAMES: [&str; 8] = [
        "embedding",
        "similarity",
        "search",
        "retrieval",
        "classification",
        "clustering",
        "code_search",
        "rerank",
    ];

    fn purpose(self) -> &'static str {
        match self {
            Self::Embedding => "any task",
            Self::Similarity => "similarity",
            Self::Search => "search",
            Self::Classification => "classification",
            Self::Clustering => "clustering",
            Self::CodeSearch => "code search",
            Self::Rerank => "reranking",
        }
    }

    /// Returns the task in the terms of the table of known models. Classification and clustering
    /// depend on the similarity of texts.
    fn task(self) -> Option<Task> {
        match self {
            Self::Embedding => None,
            Self::Similarity | Self::Classification | Self::Clustering => Some(Task::Similarity),
            Self::Search => Some(Task::Search),
            Self::CodeSearch => Some(Task::CodeSearch),
            Self::Rerank => Some(Task::Rerank),
        }
    }

    /// Returns parts of the prompt names that models use for this task, as in
    /// <https://huggingface.co/nomic-ai/nomic-embed-text-v2-moe/blob/11920f9629c6db4e60eac546b0b6e1743613aeac/config_sentence_transformers.json>.
    fn prompts(self) -> &'static [&'static str] {
        match self {
            Self::Embedding | Self::Rerank => &[],
            Self::Similarity => &["similarity", "sts"],
            Self::Search => &["query", "passage", "document", "search", "retrieval"],
            Self::Classification => &["classification"],
            Self::Clustering => &["clustering"],
            Self::CodeSearch => &["code"],
        }
    }
}

/// Difficulty of telling the texts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complexity {
    /// Short and plain texts: [`Tier::Fast`] suffices.
    Low,
    /// Ordinary texts: [`Tier::Balanced`].
    Medium,
    /// Long texts, or texts of similar meaning: [`Tier::Quality`].
    High,
}

impl Complexity {
    /// Accepted names.
    pub const NAMES: [&str; 3] = ["low", "medium", "high"];
    /// Accepted names, and the other form of the value, for an error.
    const ACCEPTED: [&str; 4] = ["low", "medium", "high", "a number from 0 to 1"];

    fn tier(self) -> Tier {
        match self {
            Self::Low => Tier::Fast,
            Self::Medium => Tier::Balanced,
            Self::High => Tier::Quality,
        }
    }
}

/// Error of a name that is not among the accepted ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", .0.join(", "))]
pub struct UnknownWord(&'static [&'static str]);

impl FromStr for TaskType {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "embedding" => Ok(Self::Embedding),
            "similarity" => Ok(Self::Similarity),
            "search" | "retrieval" => Ok(Self::Search),
            "classification" => Ok(Self::Classification),
            "clustering" => Ok(Self::Clustering),
            "code_search" => Ok(Self::CodeSearch),
            "rerank" => Ok(Self::Rerank),
            _ => Err(UnknownWord(&Self::NAMES)),
        }
    }
}

impl FromStr for Complexity {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "low" => Ok(Self::Low),
            "medium" => Ok(Self::Medium),
            "high" => Ok(Self::High),
            // A number is divided into thirds.
            _ => match text.parse::<f64>() {
                Ok(share) if (0.0..1.0 / 3.0).contains(&share) => Ok(Self::Low),
                Ok(share) if (1.0 / 3.0..2.0 / 3.0).contains(&share) => Ok(Self::Medium),
                Ok(share) if (2.0 / 3.0..=1.0).contains(&share) => Ok(Self::High),
                _ => Err(UnknownWord(&Self::ACCEPTED)),
            },
        }
    }
}

/// Criteria of a recommendation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecommendationQuery {
    /// Wanted task.
    pub task_type: TaskType,
    /// Difficulty, which selects the preferred tier. Without it, no tier is preferred.
    pub complexity: Option<Complexity>,
    /// Largest 95th percentile of latency. Models that are known to be slower are excluded.
    pub max_latency: Option<Duration>,
}

/// Availability of memory for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryFit {
    /// The model is in memory.
    Resident,
    /// The model fits into memory.
    Fits,
    /// The model does not fit: another one would have to be evicted.
    DoesNotFit,
}

impl MemoryFit {
    /// Returns the name used in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Fits => "fits",
            Self::DoesNotFit => "does_not_fit",
        }
    }
}

/// Model that may be recommended.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Key of the model.
    pub key: &'a EntryKey,
    /// Manifest of the model.
    pub manifest: &'a Manifest,
    /// 95th percentile of its recent latencies. `None` before its first use.
    pub p95: Option<Duration>,
    /// Availability of memory for it.
    pub memory: MemoryFit,
}

/// Recommended model, with the reason. In a list, the first one is the best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recommendation {
    /// Key of the model.
    pub key: EntryKey,
    /// Tier: a compromise between speed and quality.
    pub tier: Tier,
    /// Suitability for the task.
    pub suitability: Suitability,
    /// 95th percentile of its recent latencies. `None` before its first use: then it may be slower
    /// than the query allows.
    pub p95: Option<Duration>,
    /// Availability of memory for it.
    pub memory: MemoryFit,
    /// Summary of these facts in one sentence.
    pub reason: String,
}

/// Suitability of a model for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suitability {
    /// The model was made for the task, or any task is wanted.
    Intended,
    /// The purpose of the model is unknown.
    Unknown,
    /// The model was made for another task.
    OtherTask,
}

impl Suitability {
    /// Returns the name used in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intended => "made_for_it",
            Self::Unknown => "unknown",
            Self::OtherTask => "made_for_another",
        }
    }
}

/// Returns the candidates that `query` allows, the best first.
///
/// The criteria, in this order: the model is resident or fits; its latency is measured, if the
/// query limits latency; its suitability; the distance of its tier from the wanted one (of two
/// equal distances, the lower tier); it is resident; its latency; its size.
pub fn recommend(query: RecommendationQuery, candidates: &[Candidate<'_>]) -> Vec<Recommendation> {
    let allowed = candidates.iter().filter(|candidate| match (candidate.p95, query.max_latency) {
        (Some(p95), Some(max)) => p95 <= max,
        _ => true,
    });
    let mut ranked = Vec::from_iter(allowed.map(|candidate| {
        let tier = tier(candidate.manifest);
        let suitability = suitability(query.task_type, candidate.manifest);
        let unmeasured = query.max_latency.is_some() && candidate.p95.is_none();
        let distance =
            query.complexity.map(|wanted| (rank(wanted.tier()).abs_diff(rank(tier)), rank(tier)));
        let order = (
            candidate.memory == MemoryFit::DoesNotFit,
            unmeasured,
            suitability,
            distance,
            candidate.memory,
            // `None` would sort before every latency.
            candidate.p95.unwrap_or(Duration::MAX),
            candidate.manifest.total_size(),
            candidate.key,
        );
        let recommendation = Recommendation {
            key: candidate.key.clone(),
            tier,
            suitability,
            p95: candidate.p95,
            memory: candidate.memory,
            reason: reason(query, candidate, tier, suitability),
        };
        (order, recommendation)
    }));
    ranked.sort_by_key(|(order, _)| *order);
    ranked.into_iter().map(|(_, recommendation)| recommendation).collect()
}

/// Derives the tier of a model from the size of its weights.
pub fn tier(manifest: &Manifest) -> Tier {
    let weights = manifest.files.iter().find(|file| file.path.as_str() == WEIGHTS);
    let bytes_each = match manifest.precision {
        Precision::F32 => 4,
        Precision::F16 => 2,
        // In int4-table, the result lacks half of the table of words.
        Precision::Int8 | Precision::Int4Table => 1,
    };
    let parameters = weights.map_or(0, |file| file.size) / bytes_each;
    Tier::of_size(&manifest.architecture, parameters, Some(manifest.dimensions))
}

fn rank(tier: Tier) -> u8 {
    match tier {
        Tier::Fast => 0,
        Tier::Balanced => 1,
        Tier::Quality => 2,
    }
}

fn suitability(task_type: TaskType, manifest: &Manifest) -> Suitability {
    // The manifest states whether a model computes vectors or scores.
    match (manifest.is_reranker(), task_type == TaskType::Rerank) {
        (true, true) => return Suitability::Intended,
        (true, false) | (false, true) => return Suitability::OtherTask,
        (false, false) => {}
    }
    let Some(task) = task_type.task() else { return Suitability::Intended };
    // sentence-transformers writes an empty prompt for a model without prompts.
    let prompted = manifest.prompts.iter().filter(|(_, text)| !text.is_empty()).any(|(name, _)| {
        let name = name.to_ascii_lowercase();
        task_type.prompts().iter().any(|part| name.contains(part))
    });
    match known_model_of(manifest) {
        Some(model) if prompted || model.tasks.contains(&task) => Suitability::Intended,
        Some(_) => Suitability::OtherTask,
        None if prompted => Suitability::Intended,
        None => Suitability::Unknown,
    }
}

fn reason(
    query: RecommendationQuery,
    candidate: &Candidate<'_>,
    tier: Tier,
    suitability: Suitability,
) -> String {
    let purpose = query.task_type.purpose();
    let made = match suitability {
        Suitability::Intended => format!("suits {purpose}"),
        Suitability::Unknown => format!("does not state whether it suits {purpose}"),
        Suitability::OtherTask => format!("was made for a task other than {purpose}"),
    };
    let wanted = match query.complexity.map(Complexity::tier) {
        None => String::new(),
        Some(wanted) if wanted == tier => " as requested".to_owned(),
        Some(wanted) => format!(" ({} was requested)", wanted.name()),
    };
    let measured = match candidate.p95 {
        Some(p95) => format!("answers 95 of 100 requests within {}", Millis(p95)),
        None => "has no measured latency yet".to_owned(),
    };
    let memory = match candidate.memory {
        MemoryFit::Resident => "is in memory",
        MemoryFit::Fits => "fits into memory",
        MemoryFit::DoesNotFit => "does not fit into memory now",
    };
    format!("It {made}, is in the {} tier{wanted}, {measured}, and {memory}.", tier.name())
}

/// Duration that is printed in milliseconds, with one decimal below 10 ms.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_secs_f64() * 1e3;
        if millis < 10.0 { write!(f, "{millis:.1} ms") } else { write!(f, "{millis:.0} ms") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::{Classifier, ScoreActivation, fixture};

    const MS: Duration = Duration::from_millis(1);

    fn key(id: &str) -> EntryKey {
        format!("{id}@1+0123456789ab").parse().unwrap()
    }

    /// Returns a model with `parameters` parameters in int8.
    fn model(id: &str, dimensions: usize, parameters: u64) -> Manifest {
        let mut manifest = fixture::manifest(id, "1", &[(WEIGHTS, b"")]);
        manifest.precision = Precision::Int8;
        manifest.dimensions = dimensions;
        manifest.prompts.clear();
        manifest.files[0].size = parameters;
        manifest
    }

    fn prompted(id: &str, prompts: &[(&str, &str)]) -> Manifest {
        let mut manifest = model(id, 384, 23_000_000);
        manifest.prompts =
            prompts.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        manifest
    }

    /// Returns the ids in the order of recommendation.
    fn ranked(
        query: RecommendationQuery,
        models: &[(Manifest, Option<Duration>, MemoryFit)],
    ) -> Vec<String> {
        let keys = Vec::from_iter(models.iter().map(|(manifest, ..)| key(manifest.id.as_str())));
        let candidates = models.iter().zip(&keys).map(|((manifest, p95, memory), key)| Candidate {
            key,
            manifest,
            p95: *p95,
            memory: *memory,
        });
        let found = recommend(query, &Vec::from_iter(candidates));
        found.into_iter().map(|found| found.key.parts().0.to_owned()).collect()
    }

    #[test]
    fn tiers_follow_model_size() {
        for (dimensions, parameters, expected) in [
            (384, 22_713_216, Tier::Fast),
            (384, 117_653_760, Tier::Balanced),
            (768, 66_362_880, Tier::Balanced),
            (768, 109_486_464, Tier::Quality),
        ] {
            assert_eq!(tier(&model("model", dimensions, parameters)), expected, "{parameters}");
        }
        let mut table = model("table", 1024, 500_000_000);
        table.architecture = "static".to_owned();
        assert_eq!(tier(&table), Tier::Fast);
        let mut halves = model("halves", 768, 218_000_000);
        assert_eq!(tier(&halves), Tier::Quality);
        halves.precision = Precision::F16;
        halves.files[0].size = 66_000_000;
        assert_eq!(tier(&halves), Tier::Balanced);
    }

    #[test]
    fn suitability_follows_name_source_or_prompts() {
        use Suitability::{Intended, OtherTask, Unknown};
        let mut renamed = model("mini", 384, 23_000_000);
        renamed.source =
            Some("https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2".to_owned());
        let searching = model("msmarco-distilbert-base-v4", 768, 66_000_000);
        let code = model("st-codesearch-distilroberta-base", 768, 82_000_000);
        let e5 = prompted("own-e5", &[("query", "query: "), ("passage", "passage: ")]);
        let silent = prompted("silent", &[("query", ""), ("document", "")]);
        let tasks = prompted("tasks", &[("STS", "a: "), ("Clustering", "b: ")]);
        let mut reranker = prompted("reranker", &[("query", "query: ")]);
        let activation = ScoreActivation::Sigmoid;
        reranker.classifier = Some(Classifier { labels: 1, activation, token_types: true });
        for (manifest, task_type, expected) in [
            (&renamed, TaskType::Search, Intended),
            (&renamed, TaskType::Classification, Intended),
            (&renamed, TaskType::CodeSearch, OtherTask),
            (&searching, TaskType::Search, Intended),
            (&searching, TaskType::Similarity, OtherTask),
            (&searching, TaskType::Embedding, Intended),
            (&code, TaskType::CodeSearch, Intended),
            (&code, TaskType::Search, OtherTask),
            (&e5, TaskType::Search, Intended),
            (&e5, TaskType::Clustering, Unknown),
            (&silent, TaskType::Search, Unknown),
            (&silent, TaskType::Embedding, Intended),
            (&tasks, TaskType::Similarity, Intended),
            (&tasks, TaskType::Clustering, Intended),
            (&tasks, TaskType::Classification, Unknown),
            (&tasks, TaskType::Rerank, OtherTask),
            (&reranker, TaskType::Rerank, Intended),
            (&reranker, TaskType::Search, OtherTask),
            (&reranker, TaskType::Embedding, OtherTask),
        ] {
            assert_eq!(suitability(task_type, manifest), expected, "{} {task_type:?}", manifest.id);
        }
    }

    #[test]
    fn earlier_ranking_rules_take_precedence() {
        let fast = || model("fast", 384, 23_000_000);
        let balanced = || model("balanced", 384, 60_000_000);
        let quality = || model("quality", 768, 110_000_000);
        let search = || prompted("search", &[("query", "query: ")]);
        let plain = RecommendationQuery::default();
        let for_search = RecommendationQuery { task_type: TaskType::Search, ..plain };
        let tier = |complexity| RecommendationQuery { complexity: Some(complexity), ..plain };
        let within = |max| RecommendationQuery { max_latency: Some(max), ..for_search };
        use MemoryFit::{DoesNotFit, Fits, Resident};
        for (query, models, expected) in [
            (plain, vec![], vec![]),
            (plain, vec![(quality(), None, Fits), (fast(), None, Fits)], vec!["fast", "quality"]),
            (
                plain,
                vec![(fast(), None, Fits), (quality(), Some(MS), Fits)],
                vec!["quality", "fast"],
            ),
            (
                plain,
                vec![(fast(), Some(MS), Fits), (quality(), None, Resident)],
                vec!["quality", "fast"],
            ),
            (
                tier(Complexity::High),
                vec![(fast(), None, Resident), (balanced(), None, Fits), (quality(), None, Fits)],
                vec!["quality", "balanced", "fast"],
            ),
            (
                tier(Complexity::Medium),
                vec![(quality(), None, Resident), (fast(), None, Fits), (balanced(), None, Fits)],
                vec!["balanced", "fast", "quality"],
            ),
            (
                tier(Complexity::Low),
                vec![(quality(), None, Resident), (fast(), None, Fits)],
                vec!["fast", "quality"],
            ),
            (
                for_search,
                vec![(fast(), Some(MS), Resident), (search(), None, Fits)],
                vec!["search", "fast"],
            ),
            (
                for_search,
                vec![(fast(), Some(MS), Resident), (search(), None, DoesNotFit)],
                vec!["fast", "search"],
            ),
            // A model that is too slow, one that is not measured, and one that is fast enough.
            (
                within(10 * MS),
                vec![
                    (quality(), Some(11 * MS), Resident),
                    (search(), None, Fits),
                    (fast(), Some(10 * MS), Fits),
                ],
                vec!["fast", "search"],
            ),
        ] {
            assert_eq!(ranked(query, &models), expected, "{query:?}");
            let reversed = Vec::from_iter(models.into_iter().rev());
            assert_eq!(ranked(query, &reversed), expected, "{query:?} reversed");
        }
    }

    #[test]
    fn reason_lists_deciding_facts() {
        let manifest = prompted("e5", &[("query", "query: ")]);
        let query = RecommendationQuery {
            task_type: TaskType::Search,
            complexity: Some(Complexity::High),
            max_latency: None,
        };
        let key = key("e5");
        let mut candidate = Candidate {
            key: &key,
            manifest: &manifest,
            p95: Some(7 * MS),
            memory: MemoryFit::Resident,
        };
        assert_eq!(
            recommend(query, &[candidate])[0].reason,
            "It suits search, is in the fast tier (quality was requested), answers 95 of 100 \
             requests within 7.0 ms, and is in memory."
        );
        (candidate.p95, candidate.memory) = (None, MemoryFit::DoesNotFit);
        assert_eq!(
            recommend(RecommendationQuery::default(), &[candidate])[0].reason,
            "It suits any task, is in the fast tier, has no measured latency yet, and does not fit \
             into memory now."
        );
    }

    #[test]
    fn unknown_name_error_lists_all_names() {
        for name in TaskType::NAMES {
            assert!(name.parse::<TaskType>().is_ok(), "{name}");
        }
        for name in Complexity::NAMES {
            assert!(name.parse::<Complexity>().is_ok(), "{name}");
        }
        for bad in ["", "Search", "translation"] {
            let error = bad.parse::<TaskType>().unwrap_err().to_string();
            assert!(TaskType::NAMES.iter().all(|name| error.contains(name)), "{error}");
            assert_eq!(
                bad.parse::<Complexity>().unwrap_err().to_string(),
                "expected low, medium, high, a number from 0 to 1"
            );
        }
    }

    #[test]
    fn complexity_number_is_divided_into_thirds() {
        for (text, expected) in [
            ("0", Complexity::Low),
            ("0.3", Complexity::Low),
            ("0.34", Complexity::Medium),
            ("0.66", Complexity::Medium),
            ("0.67", Complexity::High),
            ("1", Complexity::High),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for bad in ["-0.1", "1.01", "NaN", "inf"] {
            assert!(bad.parse::<Complexity>().is_err(), "{bad}");
        }
    }
}
