//! Tests of the systemd units: systemd accepts them, and they agree with the code.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use caxton::base::exit::Exit;
use caxton::config::{self, ConfigSource, Settings};
use tempfile::TempDir;

use crate::support::skipped;

/// Threshold in tenths of the exposure level, which ranges up to 10.0.
const THRESHOLD: &str = "--threshold=5";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

fn unit(name: &str) -> String {
    fs::read_to_string(packaging().join("systemd").join(name)).unwrap()
}

/// Returns the values of `key` in a unit, in their order.
fn values(unit: &str, key: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

/// Returns the only value of `key`.
fn value(unit: &str, key: &str) -> String {
    let mut values = values(unit, key);
    assert_eq!(values.len(), 1, "{key}: {values:?}");
    values.remove(0)
}

fn seconds(text: &str) -> Duration {
    let digits = text.strip_suffix('s').expect("a time in seconds");
    Duration::from_secs(digits.parse().unwrap())
}

fn shipped() -> Settings {
    let file = packaging().with_file_name("etc/caxton/caxton.yaml");
    config::load(&ConfigSource::File(file)).unwrap().settings
}

fn analyze(arguments: &[&str]) -> Option<Output> {
    Command::new("systemd-analyze").args(arguments).output().ok()
}

/// Creates a root with all files that the units name, and with the service as changed by `change`.
fn installed(change: impl Fn(String) -> String) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for program in ["usr/bin/caxtond", "usr/bin/caxton", "bin/sh"] {
        let path = root.path().join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let units = root.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    for name in ["caxton.socket", "caxton.slice"] {
        fs::write(units.join(name), unit(name)).unwrap();
    }
    fs::write(units.join("caxton.service"), change(unit("caxton.service"))).unwrap();
    // Create the targets that the units depend on, as every system has them.
    for target in ["sysinit", "basic", "multi-user", "sockets", "shutdown", "network"] {
        let text = format!("[Unit]\nDescription={target}\n");
        fs::write(units.join(format!("{target}.target")), text).unwrap();
    }
    root
}

/// Returns the output of `systemd-analyze verify`.
fn verify(root: &TempDir) -> Option<String> {
    let at = format!("--root={}", root.path().display());
    let names = ["caxton.service", "caxton.socket", "caxton.slice"];
    let output = analyze(&[&["verify", "--man=no", &at][..], &names].concat())?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn systemd_accepts_the_units() {
    let Some(said) = verify(&installed(|service| service)) else {
        return skipped("systemd_accepts_the_units", "systemd-analyze");
    };
    assert_eq!(said, "");
    // Check that a mistake would be found.
    let wrong = installed(|service| service.replace("NotifyAccess=main", "NotifyAcess=main"));
    let said = verify(&wrong).unwrap();
    assert!(said.contains("NotifyAcess"), "{said}");
}

#[test]
fn service_exposure_is_within_threshold() {
    let of = |root: &TempDir| {
        let service = root.path().join("usr/lib/systemd/system/caxton.service");
        analyze(&["security", "--offline=true", THRESHOLD, service.to_str().unwrap()])
    };
    let Some(output) = of(&installed(|service| service)) else {
        return skipped("service_exposure_is_within_threshold", "systemd-analyze");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let open = installed(|service| service.replace("PrivateNetwork=yes", "PrivateUsers=no"));
    assert!(!of(&open).unwrap().status.success(), "a weaker unit exceeds the threshold");
}

#[test]
fn units_match_the_code() {
    let (service, socket) = (unit("caxton.service"), unit("caxton.socket"));
    let settings = shipped();
    assert_eq!(value(&socket, "ListenStream"), settings.socket.path.display().to_string());
    assert_eq!(value(&socket, "SocketMode"), format!("{:04o}", settings.socket.mode));
    assert_eq!(Some(value(&socket, "SocketGroup")), settings.socket.group);
    // The daemon accepts only this name; see tests/it/activation.rs.
    assert_eq!(value(&socket, "FileDescriptorName"), "caxton.socket");
    let prevent = value(&service, "RestartPreventExitStatus");
    assert_eq!(prevent, (Exit::Config as u8).to_string());
    // The stop takes ten seconds for models after the drain, and five for the rest.
    let longest = settings.socket.drain_timeout + Duration::from_secs(15);
    assert!(seconds(&value(&service, "TimeoutStopSec")) > longest);
    let state = Path::new("/var/lib").join(value(&service, "StateDirectory"));
    assert_eq!(settings.memory.model_cache.directory, state);
    assert!(settings.packages.drop_directory.starts_with(&state));
    // The packages install the program and its command line there.
    assert_eq!(value(&service, "ExecStart"), "/usr/bin/caxtond");
    assert_eq!(values(&service, "ExecReload")[0], "/usr/bin/caxton check");
}

#[test]
fn socket_group_is_static_and_not_the_user() {
    let (service, socket) = (unit("caxton.service"), unit("caxton.socket"));
    let group = value(&socket, "SocketGroup");
    let made = fs::read_to_string(packaging().join("sysusers.d/caxton.conf")).unwrap();
    assert!(made.lines().any(|line| line == format!("g {group} -")), "{made}");
    // A dynamic user comes with a group of the same name, which must differ from this one.
    assert_eq!(value(&service, "DynamicUser"), "yes");
    assert_ne!(value(&service, "User"), group);
    // A runtime directory of a dynamic user would lie in /run/private, which clients cannot enter.
    assert!(values(&service, "RuntimeDirectory").is_empty());
}

#[test]
fn service_filter_allows_sandbox_calls_and_denies_bypasses() {
    let filters = values(&unit("caxton.service"), "SystemCallFilter");
    let [allowed, denied] = filters.as_slice() else { panic!("{filters:?}") };
    for call in
        ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp"]
    {
        assert!(allowed.split(' ').any(|word| word == call), "{call}");
    }
    let denied = denied.strip_prefix('~').expect("a list of what is denied");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "@mount"] {
        assert!(denied.split(' ').any(|word| word == call), "{call}");
    }
}

#[test]
fn preset_enables_units_and_examples_are_drop_ins() {
    let preset = fs::read_to_string(packaging().join("preset/90-caxton.preset")).unwrap();
    assert_eq!(preset, "enable caxton.socket\nenable caxton.service\n");
    let examples = fs::read_dir(packaging().join("systemd/examples")).unwrap();
    let mut count = 0;
    for example in examples {
        let path = example.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# For ") && text.contains("[Service]\n"), "{}", path.display());
        assert!(text.contains("caxton.service.d/"), "{}", path.display());
        count += 1;
    }
    assert!(count > 0);
}
