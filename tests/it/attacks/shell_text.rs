//! Attack: the name of a dropped file becomes part of a command that Caxton suggests to the
//! administrator.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::Root;

/// Returns the advice of `caxton doctor` about refused packages.
fn advised_action(root: &Root) -> String {
    let output = root.cli().args(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "packages").unwrap();
    check["action"].as_str().unwrap().to_owned()
}

/// Runs the suggested command, as an administrator would, but without `sudo`.
fn obey(action: &str, place: &Path) {
    let (_words, command) = action.split_once("sudo ").unwrap();
    let status = Command::new("sh").args(["-c", command]).current_dir(place).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn suggested_command_only_removes_the_file() {
    for name in ["x;touch pwned;", "$(touch pwned)", "`touch pwned`", "a b'c\"d\\", "-rf *", "~"] {
        let daemon = Root::new().start();
        let file = format!("{name}.model.tar.zst");
        fs::write(daemon.drop_directory().join(&file), "no package").unwrap();
        let quarantine = daemon.drop_directory().join("quarantine");
        let reason = quarantine.join(format!("{file}.reason"));
        let beside = quarantine.join("other.txt");
        daemon.until("the quarantine", || reason.exists().then_some(()));
        fs::write(&beside, "stays").unwrap();
        let action = daemon.until("the doctor to know", || {
            let action = advised_action(&daemon);
            action.contains("sudo rm").then_some(action)
        });
        let place = tempfile::tempdir().unwrap();
        obey(&action, place.path());
        assert!(!quarantine.join(&file).exists() && !reason.exists(), "{action}");
        assert!(
            beside.exists() && fs::read_dir(place.path()).unwrap().next().is_none(),
            "{action}"
        );
        daemon.stop();
    }
}
