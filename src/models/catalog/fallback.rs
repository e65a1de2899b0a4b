//! Fallbacks: the models that may answer for one that is not available, and the log of their use.
//! Pure except for the log.
//!
//! Invariants:
//! 1. Vectors of another embedding space are returned only to clients that allowed it, those of
//!    another length only if `memory.allow_dimension_mismatch` is set. Neither applies to vectors
//!    that are compared only within one answer.
//! 2. A client that names a model that is not installed gets an error, never a fallback.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::base::errors::chain;
use crate::config::FallbackStrategy;
use crate::models::catalog::Catalog;
use crate::models::error::ModelError;
use crate::package::{EntryKey, StoreEntry};
use crate::telemetry::log::Message;

/// Kind of fallback that a request accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The vectors are returned to the client. A model with the same embedding space gives the same
    /// vectors and may answer. A model with another space may answer only if this value, or else
    /// the settings, allow it. `Some(false)` allows no fallback at all.
    Vectors(Option<bool>),
    /// The vectors are compared only within the answer: any model may answer, unless this is
    /// `Some(false)`.
    Comparison(Option<bool>),
}

/// The model that a fallback answers for, and the reason.
#[derive(Debug)]
pub struct FallbackFor {
    /// Name in the request.
    pub requested: String,
    /// Error of the wanted model.
    pub error: ModelError,
}

/// Returns whether a fallback may answer after `error`. If the client `named` a model that is not
/// installed, this is the client's mistake. If the settings chose the model, the client cannot
/// correct it, and a fallback answers.
pub(in crate::models) fn is_eligible(error: &ModelError, named: bool) -> bool {
    match error {
        ModelError::Unknown { .. } | ModelError::BundledOnly(_) => !named,
        ModelError::Corrupt { .. }
        | ModelError::Disabled { .. }
        | ModelError::NotApproved(_)
        | ModelError::Failed { .. }
        | ModelError::MemoryLimit { .. }
        | ModelError::Evicted { .. }
        | ModelError::Pressure { .. }
        | ModelError::Loading { .. }
        | ModelError::Ended(_) => true,
        ModelError::Pinned(_)
        | ModelError::StillDraining { .. }
        | ModelError::Overloaded { .. }
        | ModelError::Timeout(_)
        | ModelError::Draining
        | ModelError::Engine(_) => false,
    }
}

/// Returns the candidates for a fallback for `wanted`, the best first: models of its embedding
/// space, then models of its vector length in the order of `memory.fallback_models`, then the
/// others of that list. Models for which `is_allowed` returns false are left out.
pub(in crate::models) fn candidates(
    catalog: &Catalog,
    wanted: &str,
    allowed: Fallback,
    is_allowed: impl Fn(&StoreEntry) -> bool,
) -> Vec<EntryKey> {
    let memory = catalog.memory();
    let (Fallback::Vectors(requested) | Fallback::Comparison(requested)) = allowed;
    if memory.fallback_strategy == FallbackStrategy::Strict || requested == Some(false) {
        return Vec::new();
    }
    let (other_space, other_length) = match allowed {
        Fallback::Vectors(allowed) => {
            (allowed.unwrap_or(memory.allow_fallback), memory.allow_dimension_mismatch)
        }
        Fallback::Comparison(_) => (true, true),
    };
    let preferred = catalog.entries().resolve(wanted);
    // A reranker computes no vectors, and answers only for another reranker.
    let wants_reranker = preferred.is_some_and(|entry| entry.manifest.is_reranker());
    if wants_reranker && matches!(allowed, Fallback::Vectors(_)) {
        return Vec::new();
    }
    let space = preferred.map(|entry| entry.manifest.space());
    let dimensions = preferred.map(|entry| entry.manifest.dimensions);
    let listed = catalog.fallback_models();
    let rank = |entry: &StoreEntry| -> Option<(u8, usize, EntryKey)> {
        let position =
            listed.iter().position(|other| other.is_some_and(|other| other.key == entry.key));
        let position_or_last = position.unwrap_or(usize::MAX);
        let same_space = space == Some(entry.manifest.space());
        let same_length = dimensions == Some(entry.manifest.dimensions);
        let may = match memory.fallback_strategy {
            FallbackStrategy::Auto => true,
            FallbackStrategy::Manual => position.is_some(),
            FallbackStrategy::Strict => false,
        };
        let rank = if same_space {
            0
        } else if same_length && other_space {
            1
        } else if other_space
            && other_length
            && (position.is_some() || entry.record.origin.is_bundled())
        {
            2
        } else {
            return None;
        };
        may.then(|| (rank, position_or_last, entry.key.clone()))
    };
    let mut ranked: Vec<_> = catalog
        .entries()
        .iter()
        .filter(|entry| entry.is_usable() && !entry.record.awaits_approval)
        .filter(|entry| preferred.is_none_or(|preferred| preferred.key != entry.key))
        .filter(|entry| wants_reranker || !entry.manifest.is_reranker())
        .filter(|entry| catalog.is_served(entry))
        .filter(|entry| is_allowed(entry))
        .filter_map(rank)
        .collect();
    ranked.sort();
    ranked.into_iter().map(|(_, _, key)| key).collect()
}

/// Fallbacks that are in use and were logged, by the wanted model: a change is logged once, not
/// with each request.
#[derive(Debug, Default)]
pub(in crate::models) struct FallbackLog(Mutex<BTreeMap<String, String>>);

impl FallbackLog {
    /// Records that `used` answers for `wanted` because of `error`, and logs a change. Returns
    /// whether it was a change.
    pub(in crate::models) fn record_fallback(
        &self,
        wanted: &str,
        used: &str,
        error: &ModelError,
    ) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = logged.get(wanted).is_none_or(|before| before != used);
        if is_new {
            logged.insert(wanted.to_owned(), used.to_owned());
            tracing::warn!(
                name: Message::Fallback.name(),
                model = wanted, fallback = used, error = chain(error),
                "fallback answers for the model"
            );
        }
        is_new
    }

    /// Records that `wanted` answers for itself, and logs the end of a fallback.
    pub(in crate::models) fn record_recovery(&self, wanted: &str) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !logged.is_empty() && logged.remove(wanted).is_some() {
            tracing::info!(
                name: Message::FallbackEnded.name(),
                model = wanted,
                "model answers again without a fallback"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::{AliasSettings, MemorySettings, Settings};
    use crate::package::fixture::entry;
    use crate::package::{Classifier, Entries, Manifest, ScoreActivation};

    fn memory(strategy: FallbackStrategy, listed: &[&str]) -> MemorySettings {
        MemorySettings {
            fallback_strategy: strategy,
            fallback_models: listed.iter().map(ToString::to_string).collect(),
            ..Settings::default().memory
        }
    }

    /// Returns the candidates without any aliases.
    fn found(
        wanted: &str,
        entries: &Entries,
        allowed: Fallback,
        memory: &MemorySettings,
    ) -> Vec<String> {
        names(candidates(&catalog(entries, memory, BTreeMap::new()), wanted, allowed, |_| true))
    }

    fn catalog(
        entries: &Entries,
        memory: &MemorySettings,
        aliases: BTreeMap<String, AliasSettings>,
    ) -> Catalog {
        let settings = Settings { memory: memory.clone(), aliases, ..Settings::default() };
        Catalog::new(entries.clone(), Arc::new(settings))
    }

    fn names(keys: Vec<EntryKey>) -> Vec<String> {
        keys.iter().map(|key| key.name().to_owned()).collect()
    }

    /// Returns models with different names, versions, dimensions and embedding spaces.
    fn entries() -> Entries {
        Entries::from_iter([
            entry("wanted", "1", 384, "a"),
            entry("wanted", "0.9", 384, "a"),
            entry("other", "1", 384, "b"),
            entry("listed", "1", 384, "c"),
            entry("wide", "1", 768, "d"),
        ])
    }

    #[test]
    fn same_space_precedes_same_length_precedes_list() {
        let entries = entries();
        let mut memory = memory(FallbackStrategy::Auto, &["wide", "listed"]);
        let find = |allowed, memory: &MemorySettings| found("wanted", &entries, allowed, memory);
        assert_eq!(find(Fallback::Vectors(None), &memory), ["wanted@0.9"]);
        let all_of_its_length = ["wanted@0.9", "listed@1", "other@1"];
        assert_eq!(find(Fallback::Vectors(Some(true)), &memory), all_of_its_length);
        memory.allow_fallback = true;
        assert_eq!(find(Fallback::Vectors(None), &memory), all_of_its_length);
        assert!(find(Fallback::Vectors(Some(false)), &memory).is_empty());
        memory.allow_dimension_mismatch = true;
        let all = ["wanted@0.9", "listed@1", "other@1", "wide@1"];
        assert_eq!(find(Fallback::Vectors(None), &memory), all);
    }

    #[test]
    fn comparison_may_use_any_fallback() {
        let entries = entries();
        let memory = memory(FallbackStrategy::Auto, &["wide"]);
        let find = |allowed| found("wanted", &entries, allowed, &memory);
        let all = ["wanted@0.9", "listed@1", "other@1", "wide@1"];
        assert_eq!(find(Fallback::Comparison(None)), all);
        assert!(find(Fallback::Comparison(Some(false))).is_empty());
    }

    #[test]
    fn reranker_answers_only_for_a_reranker() {
        let entries = Entries::from_iter(entries().iter().cloned().map(|mut entry| {
            if ["other@1", "listed@1"].contains(&entry.key.name()) {
                let mut manifest = Manifest::clone(&entry.manifest);
                let activation = ScoreActivation::Sigmoid;
                manifest.classifier =
                    Some(Classifier { labels: 1, activation, token_types: false });
                entry.manifest = Arc::new(manifest);
            }
            entry
        }));
        let memory = MemorySettings {
            allow_dimension_mismatch: true,
            ..memory(FallbackStrategy::Auto, &["wide", "listed", "wanted"])
        };
        let find = |wanted, allowed| found(wanted, &entries, allowed, &memory);
        let vectors = Fallback::Vectors(Some(true));
        assert_eq!(find("wanted", vectors), ["wanted@0.9", "wide@1"]);
        assert_eq!(find("wanted", Fallback::Comparison(None)), ["wanted@0.9", "wide@1"]);
        assert!(find("other", vectors).is_empty());
        let comparison = find("other", Fallback::Comparison(None));
        assert!(comparison.contains(&"listed@1".to_owned()), "{comparison:?}");
        assert!(comparison.contains(&"wide@1".to_owned()), "{comparison:?}");
    }

    #[test]
    fn version_that_awaits_approval_is_no_fallback() {
        let all = entries();
        let entries = Entries::from_iter(all.iter().cloned().map(|mut entry| {
            entry.record.awaits_approval = entry.key.name() == "wanted@0.9";
            entry
        }));
        let memory = memory(FallbackStrategy::Auto, &[]);
        assert!(found("wanted", &entries, Fallback::Vectors(None), &memory).is_empty());
    }

    #[test]
    fn manual_uses_only_list_and_strict_nothing() {
        let entries = entries();
        let allowed = Fallback::Vectors(Some(true));
        let manual = memory(FallbackStrategy::Manual, &["wide", "listed"]);
        assert_eq!(found("wanted", &entries, allowed, &manual), ["listed@1"]);
        let strict = memory(FallbackStrategy::Strict, &["wide", "listed"]);
        assert!(found("wanted", &entries, allowed, &strict).is_empty());
    }

    #[test]
    fn fallback_list_may_name_aliases() {
        let entries = entries();
        let alias = |model: &str, revision: Option<&str>| AliasSettings {
            model: model.to_owned(),
            revision: revision.map(str::to_owned),
            ..AliasSettings::default()
        };
        let aliases = BTreeMap::from([
            ("spare".to_owned(), alias("listed", None)),
            ("old".to_owned(), alias("wanted", Some("0.9"))),
            ("nothing".to_owned(), alias("nowhere", None)),
        ]);
        let manual = memory(FallbackStrategy::Manual, &["nothing", "spare", "old"]);
        let allowed = Fallback::Vectors(Some(true));
        let find = |aliases| {
            let catalog = catalog(&entries, &manual, aliases);
            names(candidates(&catalog, "wanted", allowed, |_| true))
        };
        assert_eq!(find(aliases), ["wanted@0.9", "listed@1"]);
        assert!(find(BTreeMap::new()).is_empty());
    }

    #[test]
    fn unknown_length_needs_allowed_dimension_mismatch() {
        let entries = entries();
        let mut memory = memory(FallbackStrategy::Auto, &["listed"]);
        let allowed = Fallback::Vectors(Some(true));
        assert!(found("nowhere", &entries, allowed, &memory).is_empty());
        memory.allow_dimension_mismatch = true;
        assert_eq!(found("nowhere", &entries, allowed, &memory), ["listed@1"]);
    }

    #[test]
    fn unknown_requested_name_gets_no_fallback() {
        let unknown = ModelError::Unknown { name: "a".to_owned(), known: Vec::new() };
        assert!(!is_eligible(&unknown, true));
        assert!(is_eligible(&unknown, false));
        let evicted =
            ModelError::Evicted { name: "a".to_owned(), retry_after: Duration::from_secs(1) };
        assert!(is_eligible(&evicted, true));
        assert!(!is_eligible(&ModelError::Draining, false));
    }
}
