//! Tests of the configuration files, the active settings and the last good configuration: `check
//! --diff`, `cat-config`, restarts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Daemon, Root, cli};

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Configuration with a value for every kind of key.
const ODD: &str = r#"
socket: { mode: "0600", group: ~, admins: { users: [root, 1001] }, drain_timeout: 1m 30s }
memory:
  memory_limit: 3000MiB
  model_cache: { max_size_gb: 0.3, bundled_models_only: true }
models: { "1.0": { max_idle_time: 90s }, a@2: { pinned: true } }
aliases: { spare: { model: "7", canary: { model: m, percent: 3 } } }
tenants: [{ name: "9", users: [b, 3], allowed_models: [m, spare] }]
log: { level: warn }
"#;

/// Writes [`ODD`] to a file. Returns its directory, its path and the output of `cat-config`.
fn cat_odd() -> (TempDir, PathBuf, String) {
    let place = tempfile::tempdir().unwrap();
    let odd = place.path().join("odd.yaml");
    fs::write(&odd, ODD).unwrap();
    let (code, text, stderr) = run(cli().arg("cat-config").arg("--config").arg(&odd));
    assert_eq!(code, 0, "{stderr}");
    (place, odd, text)
}

#[test]
fn cat_config_names_the_origin_of_values() {
    let (_place, odd, text) = cat_odd();
    let odd_name = odd.display();
    for line in [
        format!("# {odd_name}\n"),
        format!("  mode: \"0600\"  # {odd_name}:2:17\n"),
        format!("    max_size_gb: 0.3  # {odd_name}:5:31\n"),
        format!("    bundled_only: true  # {odd_name}:5:57\n"),
        "  path: /run/caxton/caxton.sock  # default\n".to_owned(),
        "  backend: embedded  # the only value\n".to_owned(),
        format!(
            "  \"1.0\":\n    memory_priority: 3  # default\n    max_idle_time: 1m 30s  # {odd_name}:6:35\n"
        ),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn cat_config_output_is_an_equivalent_configuration() {
    let (place, odd, text) = cat_odd();
    let printed = place.path().join("printed.yaml");
    fs::write(&printed, &text).unwrap();
    let (code, checked, stderr) = run(cli().arg("check").arg("--config").arg(&printed));
    assert_eq!((code, checked), (0, format!("ok: {}\n", printed.display())), "{stderr}");

    // Compare the values themselves, independently of the output of `check`.
    let values = |config: &PathBuf| {
        let (code, text, _) = run(cli().args(["cat-config", "--json", "--config"]).arg(config));
        assert_eq!(code, 0);
        let listed: Value = serde_json::from_str(&text).unwrap();
        let values = listed["values"].as_array().unwrap().clone();
        assert_eq!(listed["files"], json!([{ "path": config, "state": "applied" }]));
        values.iter().map(|v| (v["key"].clone(), v["value"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(values(&odd), values(&printed));
    let (code, difference, _) =
        run(cli().args(["check", "--diff", "--socket", "/nowhere", "--defaults"]).arg(&printed));
    assert_eq!(code, 0);
    assert!(difference.contains("socket.drain_timeout: 20s → 1m 30s"), "{difference}");
}

#[test]
fn invalid_configuration_prints_problems_instead_of_values() {
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("bad.yaml");
    fs::write(&config, "log: { level: loud }\nsockets: {}\n").unwrap();
    for arguments in [&["cat-config"][..], &["cat-config", "--json"], &["check", "--diff"]] {
        let (code, stdout, stderr) = run(cli().args(arguments).arg("--config").arg(&config));
        assert_eq!((code, stdout.as_str()), (78, ""), "{stderr}");
        assert!(stderr.contains("bad.yaml:1:15: log.level") && stderr.contains("bad.yaml:2:1:"));
    }
}

#[test]
fn check_diff_lists_changes_and_marks_restarts() {
    let daemon = Root::new().start();
    let mut changed: Value = serde_json::from_slice(&fs::read(daemon.config()).unwrap()).unwrap();
    let (code, same, _) = run(daemon.cli().args(["check", "--diff"]));
    assert_eq!(code, 0);
    assert!(same.ends_with("compared with the running daemon:\nno differences\n"), "{same}");

    changed["socket"]["mode"] = json!("0600");
    changed["embedding"] = json!({ "queue_size": 3 });
    changed["models"] = json!({ "a.b": { "pinned": true } });
    let other = daemon.path().join("other.yaml");
    fs::write(&other, changed.to_string()).unwrap();
    let (code, text, stderr) = run(daemon.cli().args(["check", "--diff"]).arg(&other));
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<_> = text.lines().skip(2).collect();
    assert_eq!(lines.len(), 3, "{text}");
    let column = |of: &str| changed.to_string().find(of).unwrap() + of.len() + 1;
    let other = other.display();
    assert_eq!(
        lines,
        [
            format!(
                "socket.mode: \"0660\" → \"0600\" ({other}:1:{}) [restart]",
                column("\"mode\":")
            ),
            format!("embedding.queue_size: 1000 → 3 ({other}:1:{})", column("\"queue_size\":")),
            format!("models.a.b.pinned: false → true ({other}:1:{})", column("\"pinned\":")),
        ]
    );
    daemon.stop();
}

#[test]
fn value_waiting_for_restart_stays_a_difference() {
    let mut daemon = Root::new().start();
    // The change is applied, but this key needs a restart to take effect.
    daemon.root_mut().set("socket.mode", json!("0600"));
    daemon.wait_event_with(Message::ConfigurationRestartNeeded, &["socket.mode"]);
    daemon.wait_event(Message::ConfigurationApplied);
    let (_, text, _) = run(daemon.cli().args(["check", "--diff"]));
    assert!(
        text.contains("socket.mode: \"0660\" → \"0600\"") && text.contains("[restart]"),
        "{text}"
    );
    let running = daemon.get("/api/configuration").json();
    let mode = running["values"].as_array().unwrap().iter().find(|v| v["key"] == "socket.mode");
    assert_eq!(mode.unwrap()["value"], "\"0660\"");
    daemon.stop();
}

#[test]
fn check_diff_without_daemon_compares_with_defaults() {
    let root = Root::new();
    let (code, text, stderr) = run(root.cli().args(["check", "--diff"]));
    assert_eq!(code, 0);
    assert!(stderr.contains("no daemon listens on"), "{stderr}");
    assert!(
        text.contains("compared with the defaults:\nsocket.path: /run/caxton/caxton.sock → "),
        "{text}"
    );
}

/// Starts the daemon with a state directory, as systemd does.
fn spawn_kept(root: Root) -> Daemon {
    let directory = kept(&root).parent().unwrap().to_owned();
    caxton::files::create_directory(&directory).unwrap();
    root.spawn_with(|program| {
        program.env("STATE_DIRECTORY", directory);
    })
}

fn kept(root: &Root) -> PathBuf {
    root.path().join("kept/last-good.yaml")
}

/// Waits until the last good configuration on disk satisfies `is_expected`.
fn until_kept(daemon: &Daemon, is_expected: impl Fn(&str) -> bool) {
    daemon.until("the last good configuration on disk", || {
        let text = fs::read_to_string(kept(daemon)).ok()?;
        is_expected(&text).then_some(())
    });
}

/// Starts a daemon and waits until it has kept a configuration with a queue size of 8.
fn with_last_good() -> Daemon {
    let mut daemon = spawn_kept(Root::new().with("embedding", json!({ "queue_size": 7 })));
    daemon.wait_notified("READY=1");
    until_kept(&daemon, |text| text.contains("queue_size: 7"));
    daemon.root_mut().set("embedding.queue_size", json!(8));
    until_kept(&daemon, |text| text.contains("queue_size: 8"));
    daemon
}

const BAD: &str = "memory: { embeding_model: x }\nembedding: { queue_size: 0 }\n";

/// Starts a daemon with invalid files and a last good configuration, after one was killed that had
/// rejected these files. Returns the content of the last good configuration, too.
fn start_with_bad_files() -> (Daemon, String) {
    let daemon = with_last_good();
    let good = fs::read_to_string(kept(&daemon)).unwrap();
    daemon.write_config(BAD);
    daemon.wait_notified("configuration was rejected");
    let root = daemon.kill();
    assert_eq!(fs::read_to_string(kept(&root)).unwrap(), good, "invalid files were kept");
    let daemon = spawn_kept(root);
    daemon.wait_notified("READY=1");
    (daemon, good)
}

#[test]
fn invalid_files_fall_back_to_last_good() {
    let (daemon, good) = start_with_bad_files();
    let ready = daemon.wait_notified("READY=1");
    assert!(
        ready.contains("the configuration files have errors, the last good configuration is used"),
        "{ready}"
    );
    for (kind, fragment) in [
        (Message::ConfigurationProblem, "embeding_model"),
        (Message::ConfigurationProblem, "embedding.queue_size"),
        (Message::LastGoodUsed, "last-good.yaml"),
    ] {
        let line = daemon.wait_event_with(kind, &[fragment]);
        assert!(line.contains("ERROR"), "{line}");
    }
    daemon.embed(json!("a text"));
    let status = daemon.status();
    assert_eq!(status["queue_size"], 8);
    let configuration = &status["configuration"];
    assert_eq!(configuration["last_good"], true);
    assert_eq!(configuration["files"], json!([kept(&daemon)]));
    assert_eq!(configuration["problems"].as_array().unwrap().len(), 2);
    let (_, text, _) = run(cli().arg("status").arg("--socket").arg(daemon.socket()));
    assert!(text.contains("last good    used from disk"), "{text}");
    assert_eq!(fs::read_to_string(kept(&daemon)).unwrap(), good);
    daemon.stop();
}

#[test]
fn corrected_files_are_applied_at_once() {
    let (mut daemon, good) = start_with_bad_files();
    // Keys that need a restart are compared with the settings of the start.
    daemon.root_mut().set("socket.mode", json!("0600"));
    daemon.wait_event_with(Message::ConfigurationRestartNeeded, &["socket.mode"]);
    daemon.wait_event(Message::ConfigurationApplied);
    until_kept(&daemon, |text| text != good);
    let configuration = daemon.status()["configuration"].clone();
    assert_eq!(configuration["last_good"], false);
    assert_eq!(configuration["problems"], json!([]));
    assert_eq!(configuration["restart_needed"], json!(["socket.mode"]));
    daemon.stop();
}

#[test]
fn edited_last_good_fails_startup() {
    let root = with_last_good().stop();
    root.write_config(BAD);
    let good = fs::read_to_string(kept(&root)).unwrap();
    fs::write(kept(&root), good.replace("queue_size: 8", "queue_size: 9")).unwrap();
    let daemon = spawn_kept(root);
    daemon.wait_event_with(Message::ConfigurationProblem, &["embeding_model"]);
    let line =
        daemon.wait_event_with(Message::ConfigurationRefused, &["last-good.yaml", "damaged"]);
    assert!(line.contains("ERROR"), "{line}");
    assert_eq!(daemon.wait_exit().0, 78);
}

#[test]
fn invalid_files_without_last_good_fail_startup() {
    let root = Root::new();
    root.write_config(BAD);
    let daemon = spawn_kept(root);
    daemon.wait_event(Message::ConfigurationRefused);
    let (code, root) = daemon.wait_exit();
    assert_eq!((code, kept(&root).exists()), (78, false));
}

#[test]
fn valid_files_replace_damaged_last_good() {
    let root = with_last_good().stop();
    let good = fs::read_to_string(kept(&root)).unwrap();
    fs::write(kept(&root), "").unwrap();
    let daemon = spawn_kept(root);
    daemon.wait_notified("READY=1");
    until_kept(&daemon, |text| text == good);
    daemon.stop();
}

#[test]
fn missing_state_directory_only_logs_a_warning() {
    let root = Root::new();
    let nowhere = root.path().join("no/such");
    let daemon = root.spawn_with(|program| {
        program.env("STATE_DIRECTORY", nowhere);
    });
    let line = daemon.wait_event_with(Message::LastGoodNotKept, &["no/such"]);
    assert!(line.contains("WARN"), "{line}");
    daemon.embed(json!("a text"));
    daemon.stop();
}
