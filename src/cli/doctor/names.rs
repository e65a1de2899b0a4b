//! Checks of the names of models in the configuration.
//!
//! Pure: they turn facts into verdicts.

use super::super::model_names;
use super::Check;
use super::contents::OTHER_SOCKET;
use crate::api::wire;
use crate::config::{KeyValue, Settings};

/// Most findings that a check prints.
const MOST_FINDINGS: usize = 5;

/// Settings of the configuration and their origins; `None` when the configuration has problems, or
/// is not that of the daemon.
type Configured<'a> = Option<(&'a Settings, &'a [KeyValue])>;

/// Checks that every model that the configuration names is installed and can be used.
pub(super) fn names(status: Option<&wire::DaemonStatus>, configured: Configured<'_>) -> Check {
    const NAME: &str = "names";
    let Some((settings, values)) = configured else { return Check::skipped(NAME, OTHER_SOCKET) };
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let (count, problems) = model_names::problems(settings, values, &status.packages);
    let Some(first) = problems.first() else {
        return Check::pass(NAME, format!("all {count} names of models mean usable models"));
    };
    let found = problems.iter().map(|problem| problem.found.as_str());
    Check::warn(NAME, shorten(found.collect()), &first.action)
}

/// Checks that every fallback of the configuration can answer for another model.
pub(super) fn fallbacks(status: Option<&wire::DaemonStatus>, configured: Configured<'_>) -> Check {
    const NAME: &str = "fallbacks";
    let Some((settings, values)) = configured else { return Check::skipped(NAME, OTHER_SOCKET) };
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let notes = model_names::fallback_notes(settings, values, &status.packages);
    if notes.is_empty() {
        return Check::pass(NAME, "no fallback is excluded by the configuration");
    }
    Check::warn(
        NAME,
        shorten(notes.iter().map(String::as_str).collect()),
        "remove it from memory.fallback_models, or permit such vectors with memory.allow_fallback \
         and memory.allow_dimension_mismatch",
    )
}

fn shorten(mut findings: Vec<&str>) -> String {
    let more = findings.len().saturating_sub(MOST_FINDINGS);
    findings.truncate(MOST_FINDINGS);
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    format!("{}{more}", findings.join("; "))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Pass, Skipped, Warn};
    use super::super::fixture::{answers, assert};
    use super::*;
    use crate::config::{ConfigSource, Provenance, explain};

    fn explained(yaml: &str) -> Provenance {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("caxton.yaml");
        std::fs::write(&file, yaml).unwrap();
        explain(&ConfigSource::File(file)).unwrap()
    }

    #[test]
    fn names_without_model_are_warnings() {
        let status = answers(&[("a", "resident", 1)]).status;
        let judge = |yaml: &str| {
            let Provenance { loaded, values, .. } = explained(yaml);
            names(Some(&status), Some((&loaded.settings, &values)))
        };
        let good = "memory: { embedding_model: a, preload_models: [a] }";
        assert(&judge(good), Pass, "all 2 names", None);
        let bad = "memory: { embedding_model: a, preload_models: [b, c, d, e, f, g] }";
        let check = judge(bad);
        assert(&check, Warn, "caxton.yaml:1:47", Some("model install"));
        assert(&check, Warn, "; f is not installed", Some("correct memory.preload_models in "));
        assert(&check, Warn, " (and 1 more)", Some("caxton.yaml:1:47"));
        assert(&names(Some(&status), None), Skipped, "--config", None);
        let Provenance { loaded, values, .. } = explained("");
        let skipped = names(None, Some((&loaded.settings, &values)));
        assert(&skipped, Skipped, "does not answer", None);
    }

    #[test]
    fn excluded_fallback_is_a_warning() {
        let mut status = answers(&[("a", "resident", 1), ("b", "absent", 1)]).status;
        status.packages[1].embedding_space = "other".to_owned();
        let judge = |yaml: &str| {
            let Provenance { loaded, values, .. } = explained(yaml);
            fallbacks(Some(&status), Some((&loaded.settings, &values)))
        };
        assert(&judge("memory: { embedding_model: a }"), Pass, "no fallback", None);
        let check = judge("memory: { embedding_model: a, fallback_models: [b] }");
        assert(&check, Warn, "b has another embedding space", Some("memory.allow_fallback"));
        assert(&fallbacks(Some(&status), None), Skipped, "--config", None);
    }
}
