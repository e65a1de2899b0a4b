//! Texts for packages on their way, which several commands show.

use super::events::time;
use crate::api::wire::DaemonStatus;
use crate::api::wire::intake::{IncomingPackage, PackageDirectory};
use crate::base::units::Bytes;

/// Formats a package on its way in one line: its file, state, progress, next attempt, directory and
/// reason.
pub(super) fn describe(package: &IncomingPackage) -> String {
    let IncomingPackage { file, directory, state, bytes, expected_bytes, reason, .. } = package;
    let mut line = format!("{file}: {}", state.replace('_', " "));
    match (bytes, expected_bytes) {
        (Some(bytes), Some(expected)) => {
            line.push_str(&format!(", {} of {}", Bytes(*bytes), Bytes(*expected)));
        }
        (Some(bytes), None) => line.push_str(&format!(", {}", Bytes(*bytes))),
        (None, _) => {}
    }
    // A file that settles is read within a second.
    if let Some(seconds) = package.retry_in_seconds.filter(|_| state == "failed") {
        line.push_str(&format!(", retried in {}", time(seconds)));
    }
    line.push_str(&format!(", in {directory}"));
    if let Some(reason) = reason {
        line.push_str(&format!(": {reason}"));
    }
    line
}

/// Formats a directory of packages that cannot be used; `None` for one that can.
pub(super) fn describe_directory(directory: &PackageDirectory) -> Option<String> {
    let PackageDirectory { path, state, reason } = directory;
    if matches!(state.as_str(), "present" | "unknown") {
        return None;
    }
    let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    Some(format!("{path} is {state}{reason}"))
}

/// Returns the lines for `caxton status`, none of which is needed when nothing is on its way.
pub(super) fn lines(status: &DaemonStatus) -> Vec<String> {
    let directories = status.package_directories.iter().filter_map(describe_directory);
    let mut lines = Vec::from_iter(directories.chain(status.intake.iter().map(describe)));
    if status.intake_omitted > 0 {
        lines.push(format!("and {} more files", status.intake_omitted));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(state: &str) -> IncomingPackage {
        IncomingPackage {
            file: "m.model.tar.zst".to_owned(),
            directory: "/drop".to_owned(),
            state: state.to_owned(),
            bytes: Some(3 << 20),
            ..IncomingPackage::default()
        }
    }

    #[test]
    fn package_is_one_line_with_its_next_attempt() {
        let reading = IncomingPackage { expected_bytes: Some(4 << 20), ..package("reading") };
        assert_eq!(describe(&reading), "m.model.tar.zst: reading, 3.0 MiB of 4.0 MiB, in /drop");
        let reason = Some("full".to_owned());
        let failed = IncomingPackage { reason, retry_in_seconds: Some(75), ..package("failed") };
        let expected = "m.model.tar.zst: failed, 3.0 MiB, retried in 1m 15s, in /drop: full";
        assert_eq!(describe(&failed), expected);
        let kept_out = IncomingPackage { bytes: None, ..package("kept_out") };
        assert_eq!(describe(&kept_out), "m.model.tar.zst: kept out, in /drop");
    }

    #[test]
    fn only_unusable_directories_are_shown() {
        let directory = |state: &str, reason: Option<&str>| PackageDirectory {
            path: "/stick".to_owned(),
            state: state.to_owned(),
            reason: reason.map(str::to_owned),
        };
        assert_eq!(describe_directory(&directory("present", None)), None);
        assert_eq!(describe_directory(&directory("unknown", None)), None);
        let absent = describe_directory(&directory("absent", Some("no disk")));
        assert_eq!(absent.as_deref(), Some("/stick is absent: no disk"));
    }
}
