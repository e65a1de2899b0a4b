//! Which installed model to use for what. Pure.
//!
//! A manifest states neither a task nor a quality. What a model was made for comes from the table of known models, by
//! the model's id or source, or from the names of its prompts; its [`Tier`] from its size. What is not known of a
//! model does not speak against it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::package::{Key, KnownModel, Manifest, Precision, Task, Tier, WEIGHTS, known};

/// What vectors are wanted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskType {
    /// Anything; no model is preferred for it.
    #[default]
    Embedding,
    /// Comparing texts with each other.
    Similarity,
    /// Finding the passages that answer a query; `retrieval` means the same.
    Search,
    /// Features of a classifier.
    Classification,
    /// Finding groups of like texts.
    Clustering,
    /// Finding code by a description of what it does.
    CodeSearch,
}

impl TaskType {
    /// The names that are read.
    pub const NAMES: [&str; 7] = [
        "embedding",
        "similarity",
        "search",
        "retrieval",
        "classification",
        "clustering",
        "code_search",
    ];

    fn purpose(self) -> &'static str {
        match self {
            Self::Embedding => "any task",
            Self::Similarity => "similarity",
            Self::Search => "search",
            Self::Classification => "classification",
            Self::Clustering => "clustering",
            Self::CodeSearch => "code search",
        }
    }

    /// What the table of known models calls it. Groups and classes are told by which texts are alike.
    fn task(self) -> Option<Task> {
        match self {
            Self::Embedding => None,
            Self::Similarity | Self::Classification | Self::Clustering => Some(Task::Similarity),
            Self::Search => Some(Task::Search),
            Self::CodeSearch => Some(Task::CodeSearch),
        }
    }

    /// Parts of the names that models give to their prompts for it, as here:
    /// <https://huggingface.co/nomic-ai/nomic-embed-text-v2-moe/blob/11920f9629c6db4e60eac546b0b6e1743613aeac/config_sentence_transformers.json>.
    fn prompts(self) -> &'static [&'static str] {
        match self {
            Self::Embedding => &[],
            Self::Similarity => &["similarity", "sts"],
            Self::Search => &["query", "passage", "document", "search", "retrieval"],
            Self::Classification => &["classification"],
            Self::Clustering => &["clustering"],
            Self::CodeSearch => &["code"],
        }
    }
}

/// How hard the texts are to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complexity {
    /// Short and plain: [`Tier::Fast`] will do.
    Low,
    /// [`Tier::Balanced`].
    Medium,
    /// Long, or near each other in meaning: [`Tier::Quality`].
    High,
}

impl Complexity {
    /// The names that are read.
    pub const NAMES: [&str; 3] = ["low", "medium", "high"];

    fn tier(self) -> Tier {
        match self {
            Self::Low => Tier::Fast,
            Self::Medium => Tier::Balanced,
            Self::High => Tier::Quality,
        }
    }
}

/// A word that is none of those that are read.
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
            _ => Err(UnknownWord(&Self::NAMES)),
        }
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// What for.
    pub task_type: TaskType,
    /// Which tier; without it none is preferred.
    pub complexity: Option<Complexity>,
    /// Models that are known to be slower than this, at the 95th percentile, are left out.
    pub max_latency: Option<Duration>,
}

/// Whether a model can answer with the memory that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// It is in memory.
    Resident,
    /// There is room for it.
    Fits,
    /// There is none; another model would have to leave.
    DoesNotFit,
}

impl Memory {
    /// The name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Fits => "fits",
            Self::DoesNotFit => "does_not_fit",
        }
    }
}

/// A model that may be recommended.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The model.
    pub key: &'a Key,
    /// What it says of itself.
    pub manifest: &'a Manifest,
    /// The 95th percentile of its latest latencies; none before it was used.
    pub p95: Option<Duration>,
    /// Whether it can answer now.
    pub memory: Memory,
}

/// A model, why, and how well it fits. The first of several is the best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recommendation {
    /// The model.
    pub key: Key,
    /// What it trades for what.
    pub tier: Tier,
    /// What is known of its use for the task.
    pub suitability: Suitability,
    /// The 95th percentile of its latest latencies; none before it was used: then it may be slower than was asked.
    pub p95: Option<Duration>,
    /// Whether it can answer now.
    pub memory: Memory,
    /// All that in a sentence.
    pub reason: String,
}

/// What is known of a model's use for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suitability {
    /// It was made for it, or the task is any.
    Made,
    /// Nothing is known.
    Unknown,
    /// It was made for something else.
    Other,
}

impl Suitability {
    /// The name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Made => "made_for_it",
            Self::Unknown => "unknown",
            Self::Other => "made_for_another",
        }
    }
}

/// The candidates that `query` allows, the best first.
///
/// In this order: those that are in memory or fit; when there is a longest latency, those that were measured and keep
/// it; what they were made for; the nearness of the tier, of two equally near the smaller; those in memory; the
/// quickest; the smallest.
pub fn recommend(query: Query, candidates: &[Candidate<'_>]) -> Vec<Recommendation> {
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
            candidate.memory == Memory::DoesNotFit,
            unmeasured,
            suitability,
            distance,
            candidate.memory,
            // None would be the quickest.
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

/// What a model trades for what, from its size.
///
/// Fast are tables (static embeddings) and encoders of less than 30 million parameters, such as 6 layers of 384; of
/// quality those of 100 million and more whose vectors have 768 dimensions and more, as 12 layers of 768 have; the rest
/// is balanced, with it small encoders of many languages, most of which is their table of words.
pub fn tier(manifest: &Manifest) -> Tier {
    let weights = manifest.files.iter().find(|file| file.path.as_str() == WEIGHTS);
    let bytes_each = match manifest.precision {
        Precision::F32 => 4,
        Precision::F16 => 2,
        Precision::Int8 => 1,
    };
    let parameters = weights.map_or(0, |file| file.size) / bytes_each;
    tier_of(&manifest.architecture, parameters, manifest.dimensions)
}

fn tier_of(architecture: &str, parameters: u64, dimensions: usize) -> Tier {
    if architecture == "static" || parameters < 30_000_000 {
        Tier::Fast
    } else if parameters >= 100_000_000 && dimensions >= 768 {
        Tier::Quality
    } else {
        Tier::Balanced
    }
}

fn rank(tier: Tier) -> u8 {
    match tier {
        Tier::Fast => 0,
        Tier::Balanced => 1,
        Tier::Quality => 2,
    }
}

fn suitability(task_type: TaskType, manifest: &Manifest) -> Suitability {
    let Some(task) = task_type.task() else { return Suitability::Made };
    // An empty prompt is what sentence-transformers writes for models that have none.
    let prompted = manifest.prompts.iter().filter(|(_, text)| !text.is_empty()).any(|(name, _)| {
        let name = name.to_ascii_lowercase();
        task_type.prompts().iter().any(|part| name.contains(part))
    });
    match known_model(manifest) {
        Some(model) if prompted || model.tasks.contains(&task) => Suitability::Made,
        Some(_) => Suitability::Other,
        None if prompted => Suitability::Made,
        None => Suitability::Unknown,
    }
}

/// The known model that `manifest` describes: by its id, or as what it was packed from.
fn known_model(manifest: &Manifest) -> Option<&'static KnownModel> {
    let repository = manifest.source.as_deref().and_then(|source| {
        let path = source.strip_prefix("https://huggingface.co/")?;
        known(path.trim_end_matches('/'))
    });
    repository.or_else(|| known(manifest.id.as_str()))
}

fn reason(query: Query, candidate: &Candidate<'_>, tier: Tier, suitability: Suitability) -> String {
    let purpose = query.task_type.purpose();
    let made = match suitability {
        Suitability::Made => format!("serves {purpose}"),
        Suitability::Unknown => format!("does not say whether it was made for {purpose}"),
        Suitability::Other => format!("was made for something else than {purpose}"),
    };
    let wanted = match query.complexity.map(Complexity::tier) {
        None => String::new(),
        Some(wanted) if wanted == tier => " as wanted".to_owned(),
        Some(wanted) => format!(" where {} is wanted", wanted.name()),
    };
    let measured = match candidate.p95 {
        Some(p95) => format!("answers 95 of 100 requests within {}", Millis(p95)),
        None => "is not measured yet".to_owned(),
    };
    let memory = match candidate.memory {
        Memory::Resident => "is in memory",
        Memory::Fits => "fits into memory",
        Memory::DoesNotFit => "does not fit into memory now",
    };
    format!("It {made}, is of the {} tier{wanted}, {measured}, and {memory}.", tier.name())
}

/// Milliseconds, with as many digits as a measurement has.
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
    use crate::package::fixture;
    use crate::package::known_models;

    const MS: Duration = Duration::from_millis(1);

    fn key(id: &str) -> Key {
        format!("{id}@1+0123456789ab").parse().unwrap()
    }

    /// A model of `parameters` in int8.
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

    /// Ids in the order in which they are recommended.
    fn ranked(query: Query, models: &[(Manifest, Option<Duration>, Memory)]) -> Vec<String> {
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
    fn sizes_give_the_tiers_of_the_known_models() {
        for known in known_models() {
            // A parameter of int8 is a byte.
            let derived = tier_of(known.architecture, known.int8_size.0, known.dimensions);
            assert_eq!(derived, known.tier, "{}", known.id);
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
    fn what_a_model_was_made_for_is_known_by_name_source_or_prompts() {
        use Suitability::{Made, Other, Unknown};
        let mut renamed = model("mini", 384, 23_000_000);
        renamed.source =
            Some("https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2".to_owned());
        let searching = model("msmarco-distilbert-base-v4", 768, 66_000_000);
        let code = model("st-codesearch-distilroberta-base", 768, 82_000_000);
        let e5 = prompted("own-e5", &[("query", "query: "), ("passage", "passage: ")]);
        let silent = prompted("silent", &[("query", ""), ("document", "")]);
        let tasks = prompted("tasks", &[("STS", "a: "), ("Clustering", "b: ")]);
        for (manifest, task_type, expected) in [
            (&renamed, TaskType::Search, Made),
            (&renamed, TaskType::Classification, Made),
            (&renamed, TaskType::CodeSearch, Other),
            (&searching, TaskType::Search, Made),
            (&searching, TaskType::Similarity, Other),
            (&searching, TaskType::Embedding, Made),
            (&code, TaskType::CodeSearch, Made),
            (&code, TaskType::Search, Other),
            (&e5, TaskType::Search, Made),
            (&e5, TaskType::Clustering, Unknown),
            (&silent, TaskType::Search, Unknown),
            (&silent, TaskType::Embedding, Made),
            (&tasks, TaskType::Similarity, Made),
            (&tasks, TaskType::Clustering, Made),
            (&tasks, TaskType::Classification, Unknown),
        ] {
            assert_eq!(suitability(task_type, manifest), expected, "{} {task_type:?}", manifest.id);
        }
    }

    #[test]
    fn each_rule_decides_when_those_before_it_do_not() {
        let fast = || model("fast", 384, 23_000_000);
        let balanced = || model("balanced", 384, 60_000_000);
        let quality = || model("quality", 768, 110_000_000);
        let search = || prompted("search", &[("query", "query: ")]);
        let plain = Query::default();
        let for_search = Query { task_type: TaskType::Search, ..plain };
        let tier = |complexity| Query { complexity: Some(complexity), ..plain };
        let within = |max| Query { max_latency: Some(max), ..for_search };
        use Memory::{DoesNotFit, Fits, Resident};
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
            // Too slow, not measured, quick enough.
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
    fn the_reason_is_a_sentence_with_what_decided() {
        let manifest = prompted("e5", &[("query", "query: ")]);
        let query = Query {
            task_type: TaskType::Search,
            complexity: Some(Complexity::High),
            max_latency: None,
        };
        let key = key("e5");
        let mut candidate = Candidate {
            key: &key,
            manifest: &manifest,
            p95: Some(7 * MS),
            memory: Memory::Resident,
        };
        assert_eq!(
            recommend(query, &[candidate])[0].reason,
            "It serves search, is of the fast tier where quality is wanted, answers 95 of 100 requests within \
             7.0 ms, and is in memory."
        );
        (candidate.p95, candidate.memory) = (None, Memory::DoesNotFit);
        assert_eq!(
            recommend(Query::default(), &[candidate])[0].reason,
            "It serves any task, is of the fast tier, is not measured yet, and does not fit into memory now."
        );
    }

    #[test]
    fn every_name_is_read_and_others_are_refused_with_all_of_them() {
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
                "expected low, medium, high"
            );
        }
    }
}
