//! Tests of `caxton doctor` with real daemons: healthy, absent, inaccessible to the caller, with a
//! rejected package, and with a damaged model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::support::packages::{
    ask, dropped, entry, flip_a_bit, flip_a_bit_of, until_answers, until_quarantined,
};
use crate::support::{Root, STRANGER, pack, skipped};

/// Runs `doctor` with `--json` and returns its exit code and its report.
pub(crate) fn report(doctor: &mut Command) -> (i32, Value) {
    let Output { status, stdout, stderr } = doctor.args(["doctor", "--json"]).output().unwrap();
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    (status.code().unwrap(), serde_json::from_slice(&stdout).unwrap())
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or(&Value::Null)
}

pub(crate) fn assert_check(report: &Value, name: &str, verdict: &str, found: &str) {
    let check = check(report, name);
    assert_eq!(check["verdict"], verdict, "{report:#}");
    assert!(check["found"].as_str().unwrap().contains(found), "{found}: {check}");
}

#[test]
fn healthy_daemon_fails_no_check() {
    let daemon = Root::new().start();
    let (code, healthy) = report(&mut daemon.cli());
    // The machine of the tests may have warnings of its own, for example about its journal.
    assert_eq!((code, &healthy["healthy"]), (0, &json!(true)), "{healthy:#}");
    for (name, found) in [
        ("configuration", "caxton.yaml"),
        ("socket", "caxton.sock"),
        ("daemon", "is ready"),
        ("embedding", "bundled-mini computed "),
        ("models", "1 installed, 1 in memory"),
        ("names", "mean usable models"),
        ("fallbacks", "no fallback is excluded"),
        ("integrity", "the files were hashed: bundled-mini@1 "),
        ("packages", "no package was rejected"),
        ("drop directory", "can read and write"),
    ] {
        assert_check(&healthy, name, "pass", found);
    }
    let output = daemon.cli().arg("doctor").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let checks = healthy["checks"].as_array().unwrap();
    for check in checks {
        let name = check["name"].as_str().unwrap();
        assert!(text.lines().any(|line| line.contains(&format!("  {name} "))), "{name}: {text}");
    }
    assert!(text.contains(&format!("{} checks: ", checks.len())), "{text}");
    daemon.stop();
}

#[test]
fn missing_daemon_is_reported_with_start_command() {
    let root = Root::new();
    let (code, report) = report(&mut root.cli());
    assert_eq!((code, &report["healthy"]), (1, &json!(false)));
    assert_check(&report, "socket", "fail", "does not exist");
    let start = format!("caxtond --config {}", root.config().display());
    assert_eq!(check(&report, "daemon")["action"], start);
    for name in
        ["embedding", "models", "names", "fallbacks", "integrity", "packages", "memory", "sandbox"]
    {
        assert_check(&report, name, "skipped", "does not answer");
    }
    assert_check(
        &report,
        "processor",
        check(&report, "processor")["verdict"].as_str().unwrap(),
        " with ",
    );
}

#[test]
fn invalid_configuration_is_reported_with_location() {
    let root = Root::new();
    root.write_config("memory: { min_free: 12 }\n");
    let (code, report) = report(&mut root.cli());
    assert_eq!(code, 1);
    assert_check(&report, "configuration", "fail", "caxton.yaml:1:21: memory.min_free");
    assert_eq!(check(&report, "configuration")["action"], "caxton check");
}

#[test]
fn user_outside_group_is_advised_to_join() {
    let test = "user_outside_group_is_advised_to_join";
    if !geteuid().is_root() {
        return skipped(test, "root");
    }
    let daemon = Root::new().with("socket.group", json!("0")).start();
    // The caller may enter the directories, but may not use the socket or the drop directory.
    for (path, mode) in [(daemon.path().to_owned(), 0o755), (daemon.drop_directory(), 0o700)] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut doctor = daemon.cli();
    let (code, report) = report(doctor.current_dir("/").uid(STRANGER).gid(STRANGER));
    assert_eq!(code, 1);
    assert_check(&report, "group", "fail", "may not connect");
    let action = check(&report, "group")["action"].as_str().unwrap();
    assert!(action.starts_with("sudo usermod -aG root "), "{action}");
    assert_check(&report, "daemon", "fail", "may not connect");
    daemon.stop();
}

#[test]
fn rejected_package_is_a_warning_with_reason() {
    let daemon = Root::new().start();
    let mut flipped = pack("tiny-bert-mean", "m", "1");
    flip_a_bit(&mut flipped);
    fs::write(dropped(&daemon, "m"), flipped).unwrap();
    let reason = until_quarantined(&daemon, "m");
    assert_eq!(
        daemon.status()["quarantine"],
        json!([{ "file": "m.model.tar.zst", "reason": reason.trim_end() }])
    );
    let (code, report) = report(&mut daemon.cli());
    assert_eq!(code, 0);
    assert_check(&report, "packages", "warn", "1 rejected, last m.model.tar.zst: ");
    let action = check(&report, "packages")["action"].as_str().unwrap();
    assert!(action.contains("drop/quarantine/m.model.tar.zst*"), "{action}");
    daemon.stop();
}

#[test]
fn corrupt_model_is_repaired_as_suggested() {
    // Without `strict`, another model with the same weights would answer instead.
    let daemon = Root::new().with("memory.fallback_strategy", json!("strict")).start();
    let package = dropped(&daemon, "m");
    fs::write(&package, pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    let answer = daemon.connect().request("DELETE", "/api/memory/models/m", &[], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    flip_a_bit_of(&entry(&daemon, "m").join("model.safetensors"));
    assert_eq!(ask(&daemon, "m").status, 503);
    let (code, damaged) = report(&mut daemon.cli());
    assert_eq!(code, 1);
    assert_check(&damaged, "models", "fail", "m@1: ");
    let action = check(&damaged, "models")["action"].as_str().unwrap();
    assert!(action.contains("copy its package there again"), "{action}");
    fs::write(&package, pack("tiny-bert-mean", "m", "1")).unwrap();
    until_answers(&daemon, "m");
    let (code, report) = report(&mut daemon.cli());
    assert_eq!(code, 0, "{report:#}");
    daemon.stop();
}

#[test]
fn custom_socket_skips_checks_of_system_configuration() {
    let daemon = Root::new().start();
    let mut doctor = crate::support::cli();
    let (_, report) = report(doctor.env("CAXTON_SOCKET", daemon.socket()));
    assert_check(&report, "daemon", "pass", "is ready");
    assert_check(&report, "drop directory", "skipped", "--config");
    assert_check(&report, "disk", "skipped", "--config");
    assert_check(&report, "names", "skipped", "--config");
    assert_check(&report, "embedding", "pass", "bundled-mini computed ");
    daemon.stop();
}

#[test]
fn configured_names_without_model_are_warnings() {
    let aliases = json!({ "spare": { "model": "missing" }, "mini": { "model": "bundled-mini" } });
    let daemon = Root::new().with("aliases", aliases).start();
    let (code, report) = report(&mut daemon.cli());
    assert_eq!(code, 0, "{report:#}");
    assert_check(&report, "names", "warn", "missing is not installed (aliases.spare.model in ");
    let found = check(&report, "names")["found"].as_str().unwrap();
    assert!(found.contains("caxton.yaml:") && !found.contains("bundled-mini"), "{found}");
    let action = check(&report, "names")["action"].as_str().unwrap();
    assert!(action.contains("sudo caxton model install "), "{action}");
    daemon.stop();
}

#[test]
fn fallback_that_nobody_gets_is_noted() {
    let daemon = Root::with_other().with("memory.fallback_models", json!(["other"])).start();
    let note = "memory.fallback_models in ";
    let notes = || {
        let output = daemon.cli().arg("check").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let stderr = notes();
    assert!(stderr.starts_with(&format!("note: {note}")), "{stderr}");
    assert!(stderr.contains("memory.allow_fallback is false"), "{stderr}");
    let (code, warned) = report(&mut daemon.cli());
    assert_eq!(code, 0, "{warned:#}");
    assert_check(&warned, "fallbacks", "warn", note);
    let settings = fs::read_to_string(daemon.config()).unwrap();
    let allowed = "\"allow_fallback\": true, \"fallback_models\"";
    daemon.write_config(&settings.replace("\"fallback_models\"", allowed));
    assert_eq!(notes(), "");
    daemon.stop();
}
