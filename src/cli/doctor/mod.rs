//! `caxton doctor`: reports faults of the installation, and how to repair them.
//!
//! This module defines the order of the checks, their output and the exit code. Facts are gathered
//! in [`facts`] and judged in [`access`], [`contents`], [`names`], [`intake`], [`health`] and
//! [`machine`], which are pure. The doctor changes no file and starts no program, and needs neither a daemon nor
//! systemd nor root. It asks a running daemon for one vector, for which the daemon may load the
//! default model. Checks without access to their facts are skipped with the reason.

mod access;
mod contents;
mod facts;
#[cfg(test)]
mod fixture;
mod health;
mod intake;
mod machine;
mod names;

use std::io::Write;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{Connection, print_json, terminal};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::engine;
use crate::models::residency::load::options;
use facts::Facts;

/// Find the problems of this machine, and show how to repair them.
///
/// No file is changed. A running daemon is asked for the vector of one text, and may load the
/// default model for this.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print the results in JSON.
    #[arg(long)]
    json: bool,
}

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// The object is in order.
    Pass,
    /// The object works, but not as well as it could, or not for long.
    Warn,
    /// The object does not work.
    Fail,
    /// The object could not be examined.
    Skipped,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Pass, Self::Warn, Self::Fail, Self::Skipped];

    const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
        }
    }
}

/// A check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// Finding; for a skipped check, the reason.
    found: String,
    /// Repair, most often a command; `None` when there is nothing to repair.
    action: Option<String>,
}

impl Check {
    fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Pass, found: found.into(), action: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, action: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), action: Some(action.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, action: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), action: Some(action.into()) }
    }

    fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Skipped, found: why.into(), action: None }
    }

    /// Returns a skipped check that needs an answer of the daemon.
    fn needs_daemon(name: &'static str) -> Self {
        Self::skipped(name, "the daemon does not answer")
    }
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct DoctorReport {
    /// Version of this program.
    version: &'static str,
    /// Whether no check failed.
    healthy: bool,
    checks: Vec<Check>,
}

impl Doctor {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let mut facts = Facts::gather(Path::new("/"), connection).await;
        facts.examine_store();
        let checks = judge(&facts);
        let healthy = checks.iter().all(|check| check.verdict != Verdict::Fail);
        if self.json {
            print_json(&DoctorReport { version: env!("CARGO_PKG_VERSION"), healthy, checks })?;
        } else {
            terminal::out().write_all(screen(&checks).as_bytes())?;
        }
        Ok(if healthy { Exit::Ok } else { Exit::Failure })
    }
}

/// Runs all checks. A fault may be the cause of later ones, so the first fault must be repaired
/// first.
fn judge(facts: &Facts) -> Vec<Check> {
    let answers = facts.answers.as_ref().ok();
    let status = answers.map(|answers| &answers.status);
    let settings = &facts.settings;
    let configured = facts.values.as_deref().map(|values| (settings, values));
    let cache = &settings.memory.model_cache;
    let precision = options(settings).precision;
    let arithmetic = [false, true].map(|integers| engine::choose_arithmetic(precision, integers));
    vec![
        access::configuration(&facts.config, status.map(|status| &status.configuration)),
        access::units(facts.units.as_ref(), facts.process.as_ref()),
        access::socket(&facts.socket, &facts.start),
        access::group(&facts.socket, facts.group.as_ref(), &facts.caller),
        access::daemon(&facts.answers, &facts.start),
        contents::condition(status),
        health::embedding(answers),
        contents::models(status),
        names::names(status, configured),
        names::fallbacks(status, configured),
        health::integrity(status, cache.validation_interval, facts.clock),
        contents::store(facts.store.as_ref(), &facts.caller),
        contents::signatures(status),
        contents::quarantine(status, &settings.packages.drop_directory),
        intake::incoming(status),
        intake::directories(status),
        contents::drop_directory(facts.drop_directory.as_ref(), facts.process.as_ref()),
        contents::disk(
            facts.disk.as_ref(),
            cache.max_size,
            status.map(|status| &status.packages[..]),
        ),
        machine::memory(answers),
        machine::pressure(&facts.pressure, status.map(|status| &*status.memory_pressure_source)),
        machine::sandbox(answers.map(|answers| answers.sandbox.as_ref())),
        machine::processor(&arithmetic, &engine::processor_extensions()),
        machine::journal(&facts.journal),
        machine::clock(facts.clock, facts.built),
        machine::inotify(&facts.inotify),
    ]
}

/// Formats one line for each check, one more with its repair, and the count of each verdict.
fn screen(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, verdict, found, action } in checks {
        let (verdict, found) = (verdict.name(), printable::line(found));
        text.push_str(&format!("{verdict:7}  {name:width$}  {found}\n"));
        if let Some(action) = action.as_deref().map(printable::line) {
            text.push_str(&format!("{:7}  {:width$}  action: {action}\n", "", ""));
        }
    }
    let counts = Verdict::ALL.map(|verdict| {
        let count = checks.iter().filter(|check| check.verdict == verdict).count();
        format!("{count} {}", verdict.name())
    });
    text.push_str(&format!("{} checks: {}\n", checks.len(), counts.join(", ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_line_per_check_and_remedy() {
        let checks = [Check::pass("socket", "here"), Check::fail("group", "no member", "join")];
        assert_eq!(
            screen(&checks),
            "pass     socket  here\nfail     group   no member\n                 action: join\n\
             2 checks: 1 pass, 0 warn, 1 fail, 0 skipped\n"
        );
    }

    #[test]
    fn failures_have_remedies_and_names_are_unique() {
        let place = tempfile::tempdir().unwrap();
        let connection = Connection { socket: Some(place.path().join("no.sock")), config: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let checks = judge(&runtime.block_on(Facts::gather(place.path(), &connection)));
        let mut names = Vec::from_iter(checks.iter().map(|check| check.name));
        for check in &checks {
            let needs = matches!(check.verdict, Verdict::Warn | Verdict::Fail);
            assert_eq!(check.action.is_some(), needs, "{check:?}");
            assert!(!check.found.is_empty() && !check.found.contains('\n'), "{check:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len());
    }
}
