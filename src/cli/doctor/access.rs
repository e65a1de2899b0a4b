//! Checks of the caller's access to the daemon: configuration, units, socket, group, answer.
//!
//! Pure: they turn facts into verdicts.

use super::super::shell::quote;
use super::Check;
use super::facts::{
    Caller, DaemonAnswers, NamedGroup, NoAnswer, PathState, Process, SERVICE, SOCKET, SocketFile,
    Units,
};
use crate::api::wire;
use crate::config::{ConfigError, LoadedConfig};

/// Checks the configuration: the files as they are now, and the settings of the daemon.
pub(super) fn configuration(
    config: &Result<LoadedConfig, ConfigError>,
    in_force: Option<&wire::Configuration>,
) -> Check {
    const NAME: &str = "configuration";
    let loaded = match config {
        Ok(loaded) => loaded,
        Err(error) => {
            let count = error.problems.len();
            let first = error.problems.first().map(ToString::to_string).unwrap_or_default();
            let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
            return Check::fail(NAME, format!("{first}{more}"), "caxton check");
        }
    };
    if let Some(first) = in_force.and_then(|in_force| in_force.problems.first()) {
        let found =
            format!("the daemon rejected the files and uses an older configuration: {first}");
        return Check::warn(NAME, found, "sudo systemctl reload caxton");
    }
    let waiting = in_force.map(|in_force| in_force.restart_needed.join(", ")).unwrap_or_default();
    if !waiting.is_empty() {
        let found = format!("changed keys need a restart: {waiting}");
        return Check::warn(NAME, found, "sudo systemctl restart caxton");
    }
    let files = Vec::from_iter(loaded.files.iter().map(|file| file.display().to_string()));
    Check::pass(
        NAME,
        if files.is_empty() { "no files; the defaults apply".into() } else { files.join(", ") },
    )
}

/// Checks the units, and that the daemon that answers is the one that systemd runs.
pub(super) fn units(units: Option<&Units>, process: Option<&Process>) -> Check {
    const NAME: &str = "units";
    let Some(units) = units else {
        return Check::skipped(NAME, "systemd does not run here");
    };
    if !units.installed {
        return Check::skipped(NAME, format!("{SERVICE} is not installed"));
    }
    if units.masked {
        let action = format!("sudo systemctl unmask {SOCKET} {SERVICE}");
        return Check::fail(NAME, "masked, so the daemon cannot start", action);
    }
    if !units.enabled {
        let action = format!("sudo systemctl enable --now {SOCKET} {SERVICE}");
        return Check::warn(NAME, format!("{SOCKET} does not start at boot"), action);
    }
    match process {
        Some(process) if !process.is_service() => Check::warn(
            NAME,
            format!(
                "the running daemon is not {SERVICE}, so it lacks the limits and the sandbox of the unit"
            ),
            format!("stop that daemon, then sudo systemctl restart {SOCKET} {SERVICE}"),
        ),
        Some(_) => Check::pass(NAME, format!("enabled, and the daemon runs as {SERVICE}")),
        None => Check::pass(NAME, "installed and enabled"),
    }
}

/// Checks the file at the socket's path.
pub(super) fn socket(file: &SocketFile, start: &str) -> Check {
    const NAME: &str = "socket";
    let path = file.path.display();
    match &file.found {
        PathState::Nothing => Check::fail(NAME, format!("{path} does not exist"), start),
        PathState::Hidden(why) => Check::fail(
            NAME,
            format!("cannot examine {path}: {why}"),
            "sudo chmod a+x DIRECTORY, for each directory above it",
        ),
        PathState::Other => Check::fail(
            NAME,
            format!("{path} is not a socket"),
            format!("move that file, then {start}"),
        ),
        PathState::Socket { mode, gid, group, .. } => {
            let group = group.clone().unwrap_or_else(|| gid.to_string());
            let who = match (mode & 0o006 == 0o006, mode & 0o060 == 0o060) {
                (true, _) => "all users".to_owned(),
                (false, true) => format!("root and members of {group}"),
                (false, false) => "root and its owner".to_owned(),
            };
            Check::pass(NAME, format!("{path}, mode {mode:04o}: {who} may connect"))
        }
    }
}

/// Checks that this caller may connect. To connect, a process needs write permission on the
/// socket's file: unix(7). `configured` is the group in the configuration, which is used when the
/// socket does not exist.
pub(super) fn group(file: &SocketFile, configured: Option<&NamedGroup>, caller: &Caller) -> Check {
    const NAME: &str = "group";
    let user = caller.name.clone().unwrap_or_else(|| caller.uid.to_string());
    let (mode, owner, gid, group) = match (&file.found, configured) {
        (PathState::Socket { mode, owner, gid, group }, _) => {
            (*mode, Some(*owner), *gid, group.clone().unwrap_or_else(|| gid.to_string()))
        }
        // The units create the socket with this mode.
        (_, Some(NamedGroup { name, gid: Some(gid) })) => (0o660, None, *gid, name.clone()),
        (_, Some(NamedGroup { name, gid: None })) => {
            let found = format!("the group {name} of socket.group does not exist");
            return Check::fail(NAME, found, "sudo systemd-sysusers");
        }
        (_, None) => return Check::skipped(NAME, "the socket does not exist"),
    };
    if caller.uid == 0 {
        return Check::pass(NAME, "root may always connect");
    }
    if mode & 0o002 != 0 {
        return Check::pass(NAME, format!("all users may connect, also {user}"));
    }
    if owner == Some(caller.uid) {
        return Check::pass(NAME, format!("{user} owns the socket"));
    }
    if mode & 0o020 == 0 {
        let found = format!("only root and the owner may connect (mode {mode:04o})");
        return Check::fail(NAME, found, "set socket.mode to \"0660\", then restart the daemon");
    }
    if caller.groups.contains(&gid) {
        return Check::pass(NAME, format!("{user} is in {group}"));
    }
    if caller.database.contains(&gid) {
        let found = format!("{user} joined {group} after this login");
        return Check::fail(NAME, found, format!("log in again, or: newgrp {}", quote(&group)));
    }
    let (to, who) = (quote(&group), quote(&user));
    let action = format!("sudo usermod -aG {to} {who}  (then log in again)");
    Check::fail(NAME, format!("{user} is not in {group} and may not connect"), action)
}

/// Checks that a daemon answers, is ready, and has the version of this program.
pub(super) fn daemon(answers: &Result<DaemonAnswers, NoAnswer>, start: &str) -> Check {
    const NAME: &str = "daemon";
    let answers = match answers {
        Ok(answers) => answers,
        Err(NoAnswer::Absent) => {
            return Check::fail(NAME, "no daemon listens on the socket", start);
        }
        Err(NoAnswer::Denied) => {
            return Check::fail(NAME, "this user may not connect", "see the check \"group\"");
        }
        Err(NoAnswer::Broken(why)) => {
            return Check::fail(
                NAME,
                why,
                "journalctl -u caxton -e; sudo systemctl restart caxton",
            );
        }
    };
    let (theirs, ours) = (&answers.status.version, env!("CARGO_PKG_VERSION"));
    if let Some(why) = &answers.unready {
        return Check::fail(
            NAME,
            format!("the daemon is not ready: {why}"),
            "caxton status; journalctl -u caxton -e",
        );
    }
    if theirs != ours {
        let found = format!("the daemon has version {theirs}, this program has {ours}");
        return Check::warn(NAME, found, "sudo systemctl restart caxton");
    }
    Check::pass(NAME, format!("version {theirs} (pid {}) is ready", answers.status.pid))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Verdict::{Fail, Pass, Skipped, Warn};
    use super::super::fixture::{answers, assert};
    use super::*;
    use crate::config::{Problem, Settings};

    #[test]
    fn configuration_is_invalid_pending_or_applied() {
        let good = |files: &[&str]| {
            Ok(LoadedConfig {
                settings: Settings::default(),
                files: files.iter().map(PathBuf::from).collect(),
            })
        };
        let problem = |line: &str| Problem {
            file: line.into(),
            position: None,
            key: String::new(),
            message: "wrong".to_owned(),
        };
        let bad = Err(ConfigError { problems: vec![problem("a.yaml"), problem("b.yaml")] });
        let check = configuration(&bad, None);
        assert(&check, Fail, "a.yaml: wrong (and 1 more)", Some("caxton check"));
        let mut in_force = wire::Configuration::default();
        assert(&configuration(&good(&[]), Some(&in_force)), Pass, "defaults", None);
        assert(&configuration(&good(&["a", "b"]), None), Pass, "a, b", None);
        in_force.restart_needed = vec!["socket.path".to_owned()];
        let check = configuration(&good(&["a"]), Some(&in_force));
        assert(&check, Warn, "socket.path", Some("restart"));
        in_force.problems = vec!["b.yaml: wrong".to_owned()];
        let check = configuration(&good(&["a"]), Some(&in_force));
        assert(&check, Warn, "b.yaml", Some("reload"));
    }

    #[test]
    fn units_are_checked_only_under_systemd() {
        let process = |cgroup: &str| Process {
            uid: 1,
            groups: Vec::new(),
            cgroup: format!("0::/{cgroup}\n"),
        };
        let all = Units { installed: true, masked: false, enabled: true };
        let ours = process("caxton.slice/caxton.service");
        let cases = [
            (None, None, Skipped, "systemd", None),
            (Some(Units::default()), None, Skipped, "not installed", None),
            (Some(Units { masked: true, ..all.clone() }), None, Fail, "masked", Some("unmask")),
            (Some(Units { enabled: false, ..all.clone() }), None, Warn, "boot", Some("enable")),
            (Some(all.clone()), Some(process("user.slice")), Warn, "sandbox", Some("restart")),
            (Some(all.clone()), Some(ours), Pass, "runs as", None),
            (Some(all), None, Pass, "enabled", None),
        ];
        for (facts, process, verdict, found, action) in cases {
            assert(&units(facts.as_ref(), process.as_ref()), verdict, found, action);
        }
    }

    fn file(found: PathState) -> SocketFile {
        SocketFile { path: "/run/c.sock".into(), found }
    }

    fn owned_by(mode: u32) -> SocketFile {
        file(PathState::Socket { mode, owner: 7, gid: 8, group: Some("caxton".to_owned()) })
    }

    #[test]
    fn socket_check_reports_allowed_users() {
        let cases = [
            (file(PathState::Nothing), Fail, "/run/c.sock does not exist", Some("start it")),
            (file(PathState::Other), Fail, "not a socket", Some("move that file")),
            (file(PathState::Hidden("denied".to_owned())), Fail, "denied", Some("chmod")),
            (owned_by(0o660), Pass, "0660: root and members of caxton", None),
            (owned_by(0o666), Pass, "all users", None),
            (owned_by(0o600), Pass, "root and its owner", None),
        ];
        for (file, verdict, found, action) in cases {
            assert(&socket(&file, "start it"), verdict, found, action);
        }
    }

    #[test]
    fn group_check_explains_how_to_join() {
        let caller = |uid, groups: &[u32], database: &[u32]| Caller {
            uid,
            name: Some("alice".to_owned()),
            groups: groups.to_vec(),
            database: database.to_vec(),
        };
        let cases = [
            (0o660, caller(0, &[], &[]), Pass, "root", None),
            (0o660, caller(7, &[], &[]), Pass, "owns", None),
            (0o660, caller(1, &[8], &[8]), Pass, "alice is in caxton", None),
            (0o666, caller(1, &[], &[]), Pass, "all users", None),
            (0o660, caller(1, &[2], &[2, 8]), Fail, "after this login", Some("newgrp caxton")),
            (0o660, caller(1, &[2], &[2]), Fail, "not in", Some("usermod -aG caxton alice")),
            (0o600, caller(1, &[8], &[8]), Fail, "only root and the owner", Some("socket.mode")),
        ];
        for (mode, caller, verdict, found, action) in cases {
            assert(&group(&owned_by(mode), None, &caller), verdict, found, action);
        }
        let caller = caller(1, &[2], &[2]);
        let nothing = file(PathState::Nothing);
        assert(&group(&nothing, None, &caller), Skipped, "does not exist", None);
        let configured = |gid| NamedGroup { name: "lab".to_owned(), gid };
        let check = group(&nothing, Some(&configured(Some(8))), &caller);
        assert(&check, Fail, "not in lab", Some("usermod"));
        let check = group(&nothing, Some(&configured(None)), &caller);
        assert(&check, Fail, "the group lab", Some("systemd-sysusers"));
    }

    #[test]
    fn unreachable_daemon_gets_matching_remedy() {
        let broken = NoAnswer::Broken("reset".to_owned());
        for (silence, found, action) in [
            (NoAnswer::Absent, "no daemon listens", "start it"),
            (NoAnswer::Denied, "may not connect", "group"),
            (broken, "reset", "journalctl"),
        ] {
            assert(&daemon(&Err(silence), "start it"), Fail, found, Some(action));
        }
        let mut here = answers(&[]);
        here.status.version = "0.0.1".to_owned();
        assert(&daemon(&Ok(here), ""), Warn, "has version 0.0.1", Some("restart"));
        let mut here = answers(&[]);
        here.unready = Some("no such model".to_owned());
        assert(&daemon(&Ok(here), ""), Fail, "no such model", Some("caxton status"));
        assert(&daemon(&Ok(answers(&[])), ""), Pass, "is ready", None);
    }
}
