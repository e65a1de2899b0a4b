//! `caxton doctor`: what is right, what is not, and how to mend it.
//!
//! Owns the order of the checks, what they look like, and the exit code. Facts are gathered in [`facts`] and judged in
//! [`access`], [`contents`] and [`machine`], which are pure. It looks and asks; it changes nothing, starts no program,
//! and needs neither a daemon nor systemd nor root: what cannot be seen is skipped, and says why.

mod access;
mod contents;
mod facts;
#[cfg(test)]
mod fixture;
mod machine;

use std::io::Write;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{Connection, print_json, terminal};
use crate::engine;
use crate::exit::Exit;
use crate::models::load::options;
use crate::printable;
use facts::Facts;

/// What the doctor prints, and for whom.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It is as it should be.
    Pass,
    /// It works, but not as well as it could, or not for long.
    Warn,
    /// Something does not work.
    Fail,
    /// It could not be looked at.
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

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found; for a skipped one, why nothing was.
    found: String,
    /// What to do, most often a command; `None` when there is nothing to.
    mend: Option<String>,
}

impl Check {
    fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Pass, found: found.into(), mend: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), mend: Some(mend.into()) }
    }

    fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Skipped, found: why.into(), mend: None }
    }

    /// A check for which the daemon would have to answer.
    fn needs_daemon(name: &'static str) -> Self {
        Self::skipped(name, "the daemon does not answer")
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Of this program.
    version: &'static str,
    /// Whether nothing failed.
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
            print_json(&Report { version: env!("CARGO_PKG_VERSION"), healthy, checks })?;
        } else {
            terminal::out().write_all(screen(&checks).as_bytes())?;
        }
        Ok(if healthy { Exit::Ok } else { Exit::Failure })
    }
}

/// Every check, in the order in which faults explain each other: what is wrong first is to be mended first.
fn judge(facts: &Facts) -> Vec<Check> {
    let told = facts.told.as_ref().ok();
    let status = told.map(|told| &told.status);
    let settings = &facts.settings;
    let cache = &settings.memory.model_cache;
    let precision = options(settings).precision;
    let arithmetic = [false, true].map(|integers| engine::arithmetic(precision, integers));
    vec![
        access::configuration(&facts.config, status.map(|status| &status.configuration)),
        access::units(facts.units.as_ref(), facts.process.as_ref()),
        access::socket(&facts.socket, &facts.start),
        access::group(&facts.socket, facts.group.as_ref(), &facts.caller),
        access::daemon(&facts.told, &facts.start),
        contents::condition(status),
        contents::models(status),
        contents::store(facts.store.as_ref(), &facts.caller),
        contents::signatures(status),
        contents::quarantine(status, &settings.packages.drop_directory),
        contents::drop_directory(facts.drop_directory.as_ref(), facts.process.as_ref()),
        contents::disk(
            facts.disk.as_ref(),
            cache.max_size,
            status.map(|status| &status.packages[..]),
        ),
        machine::memory(told),
        machine::pressure(&facts.pressure, status.map(|status| &*status.memory_pressure_source)),
        machine::sandbox(told.map(|told| told.sandbox.as_ref())),
        machine::processor(&arithmetic, &engine::processor_extensions()),
        machine::journal(&facts.journal),
        machine::clock(facts.clock, facts.built),
        machine::inotify(&facts.inotify),
    ]
}

/// A line for each check, a second one for what to do, and how many there are of each kind.
fn screen(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, verdict, found, mend } in checks {
        let (verdict, found) = (verdict.name(), printable::line(found));
        text.push_str(&format!("{verdict:7}  {name:width$}  {found}\n"));
        if let Some(mend) = mend.as_deref().map(printable::line) {
            text.push_str(&format!("{:7}  {:width$}  mend: {mend}\n", "", ""));
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
    fn the_screen_has_a_line_a_check_and_one_for_what_to_do() {
        let checks = [Check::pass("socket", "here"), Check::fail("group", "no member", "join")];
        assert_eq!(
            screen(&checks),
            "pass     socket  here\nfail     group   no member\n                 mend: join\n\
             2 checks: 1 pass, 0 warn, 1 fail, 0 skipped\n"
        );
    }

    #[test]
    fn what_fails_or_warns_says_how_to_mend_it_and_names_differ() {
        let place = tempfile::tempdir().unwrap();
        let connection = Connection { socket: Some(place.path().join("no.sock")), config: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let checks = judge(&runtime.block_on(Facts::gather(place.path(), &connection)));
        let mut names = Vec::from_iter(checks.iter().map(|check| check.name));
        for check in &checks {
            let needs = matches!(check.verdict, Verdict::Warn | Verdict::Fail);
            assert_eq!(check.mend.is_some(), needs, "{check:?}");
            assert!(!check.found.is_empty() && !check.found.contains('\n'), "{check:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), checks.len());
    }
}
