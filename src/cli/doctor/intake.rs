//! Checks of the packages on their way, and of the further drop directories.
//!
//! Pure: they turn facts into verdicts.

use super::super::intake::{describe, describe_directory};
use super::Check;
use crate::api::wire;

/// States of a file that need no action.
const NORMAL: [&str; 4] = ["settling", "reading", "verifying", "incomplete"];

/// Checks for packages that could not be installed, and for files that are not packages.
pub(super) fn incoming(status: Option<&wire::DaemonStatus>) -> Check {
    const NAME: &str = "incoming";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    if status.package_directories.is_empty() {
        return Check::skipped(NAME, "the daemon does not report packages on their way");
    }
    let is_normal = |state: &str| NORMAL.contains(&state);
    let Some(first) = status.intake.iter().find(|package| !is_normal(&package.state)) else {
        return match status.intake.first() {
            None => Check::pass(NAME, "no package waits to be installed"),
            Some(first) => {
                let more = more(status.intake.len() + status.intake_omitted - 1);
                Check::pass(NAME, format!("{}{more}", describe(first)))
            }
        };
    };
    let others = status.intake.iter().filter(|package| !is_normal(&package.state)).count() - 1;
    let action = match first.state.as_str() {
        "failed" => "remove the cause; the daemon tries again by itself: caxton status",
        "kept_out" => "remove the file, or set memory.model_cache.bundled_only to false",
        "not_a_package" => {
            "remove the file, or make a package of its model with: caxton model pack"
        }
        _ => "replace the file by a good package, or remove it",
    };
    Check::warn(NAME, format!("{}{}", describe(first), more(others)), action)
}

/// Checks the directories of packages. A further drop directory may be absent.
pub(super) fn directories(status: Option<&wire::DaemonStatus>) -> Check {
    const NAME: &str = "directories";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let unusable = |state: Option<&str>| {
        let matching = status
            .package_directories
            .iter()
            .filter(move |directory| state.is_none_or(|state| directory.state == state));
        Vec::from_iter(matching.filter_map(describe_directory)).join("; ")
    };
    let (unreadable, all) = (unusable(Some("unreadable")), unusable(None));
    match (unreadable.is_empty(), all.is_empty()) {
        (false, _) => Check::warn(
            NAME,
            unreadable,
            "give the daemon the right to read it; if it did not exist when the daemon started: \
             sudo systemctl restart caxton",
        ),
        (true, false) => Check::pass(NAME, all),
        (true, true) if status.package_directories.is_empty() => {
            Check::skipped(NAME, "the daemon does not report its directories")
        }
        (true, true) => Check::pass(NAME, "all directories of packages are present"),
    }
}

fn more(count: usize) -> String {
    if count > 0 { format!(" (and {count} more)") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Pass, Skipped, Warn};
    use super::super::fixture::{answers, assert};
    use super::*;
    use crate::api::wire::intake::{IncomingPackage, PackageDirectory};

    fn status(states: &[&str], directory: &str) -> wire::DaemonStatus {
        let mut status = answers(&[]).status;
        status.intake = states
            .iter()
            .map(|state| IncomingPackage {
                file: "m.model.tar.zst".to_owned(),
                state: (*state).to_owned(),
                ..IncomingPackage::default()
            })
            .collect();
        status.package_directories = vec![PackageDirectory {
            path: "/stick".to_owned(),
            state: directory.to_owned(),
            reason: None,
        }];
        status
    }

    #[test]
    fn packages_that_need_an_operator_are_warnings() {
        let check = |states: &[&str]| incoming(Some(&status(states, "present")));
        assert(&check(&[]), Pass, "no package waits", None);
        assert(&check(&["reading", "settling"]), Pass, " (and 1 more)", None);
        assert(&check(&["reading", "failed"]), Warn, "failed", Some("tries again"));
        let kept_out = check(&["kept_out", "refused"]);
        assert(&kept_out, Warn, "kept out, in  (and 1 more)", Some("bundled_only"));
        assert(&check(&["not_a_package"]), Warn, "not a package", Some("model pack"));
        assert(&check(&["refused"]), Warn, "refused", Some("good package"));
        assert(&incoming(Some(&answers(&[]).status)), Skipped, "does not report", None);
        assert(&incoming(None), Skipped, "does not answer", None);
    }

    #[test]
    fn absent_directory_is_shown_and_unreadable_one_warned_of() {
        let check = |state: &str| directories(Some(&status(&[], state)));
        assert(&check("present"), Pass, "are present", None);
        assert(&check("absent"), Pass, "/stick is absent", None);
        assert(&check("unreadable"), Warn, "/stick is unreadable", Some("restart"));
        assert(&directories(Some(&answers(&[]).status)), Skipped, "does not report", None);
    }
}
