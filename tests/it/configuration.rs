//! Tests of the configuration files, the active settings and the last good configuration: `check
//! --diff`, `cat-config`, restarts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

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

#[test]
fn cat_config_output_is_an_equivalent_configuration() {
    let place = tempfile::tempdir().unwrap();
    let (odd, printed) = (place.path().join("odd.yaml"), place.path().join("printed.yaml"));
    fs::write(&odd, ODD).unwrap();
    let (code, text, stderr) = run(cli().arg("cat-config").arg("--config").arg(&odd));
    assert_eq!(code, 0, "{stderr}");
    fs::write(&printed, &text).unwrap();
    let (code, checked, stderr) = run(cli().arg("check").arg("--config").arg(&printed));
    assert_eq!((code, checked), (0, format!("ok: {}\n", printed.display())), "{stderr}");

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

    // Compare the values themselves, independently of the output of `check`.
    let values = |config: &PathBuf| {
        let (code, text, _) = run(cli().args(["cat-config", "--json", "--config"]).arg(config));
        assert_eq!(code, 0);
        let told: Value = serde_json::from_str(&text).unwrap();
        let values = told["values"].as_array().unwrap().clone();
        assert_eq!(told["files"], json!([{ "path": config, "state": "applied" }]));
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
fn check_diff_compares_with_daemon_and_marks_restarts() {
    let mut daemon = Root::new().start();
    let mut changed: Value = serde_json::from_slice(&fs::read(daemon.config()).unwrap()).unwrap();
    let (code, same, _) = run(daemon.cli().args(["check", "--diff"]));
    assert_eq!(code, 0);
    assert!(same.ends_with("compared with what is in force:\nno difference\n"), "{same}");

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

    // The change is applied, but this key needs a restart to take effect.
    daemon.root_mut().set("socket.mode", json!("0600"));
    daemon.wait_log("needs a restart");
    daemon.wait_log("configuration applied");
    let (_, text, _) = run(daemon.cli().args(["check", "--diff"]));
    assert!(
        text.contains("socket.mode: \"0660\" → \"0600\"") && text.contains("[restart]"),
        "{text}"
    );
    let in_force = daemon.get("/api/configuration").json();
    let mode = in_force["values"].as_array().unwrap().iter().find(|v| v["key"] == "socket.mode");
    assert_eq!(mode.unwrap()["value"], "\"0660\"");

    let root = daemon.stop();
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

/// Starts a daemon and waits until it has kept a configuration with a queue size of 8.
fn with_last_good() -> Daemon {
    let mut daemon = spawn_kept(Root::new().with("embedding", json!({ "queue_size": 7 })));
    daemon.wait_notified("READY=1");
    daemon.wait_log("the configuration is kept");
    let before = daemon.log().len();
    daemon.root_mut().set("embedding.queue_size", json!(8));
    daemon.wait_log_after(before, "the configuration is kept");
    daemon
}

const BAD: &str = "memory: { embeding_model: x }\nembedding: { queue_size: 0 }\n";

#[test]
fn invalid_files_fall_back_to_last_good_configuration() {
    let daemon = with_last_good();
    let good = fs::read(kept(&daemon)).unwrap();
    daemon.write_config(BAD);
    daemon.wait_notified("the configuration was rejected");
    let root = daemon.kill();
    assert_eq!(fs::read(kept(&root)).unwrap(), good, "a wrong configuration is never kept");

    let mut daemon = spawn_kept(root);
    let ready = daemon.wait_notified("READY=1");
    assert!(
        ready.contains("the configuration is wrong, the last good one of the disk is in force"),
        "{ready}"
    );
    for line in [
        "unknown key \"embeding_model\"",
        "embedding.queue_size: expected 1 to",
        "started with the last good one",
    ] {
        let line = daemon.wait_log(line);
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
    assert!(text.contains("last good    kept on disk"), "{text}");
    assert_eq!(fs::read(kept(&daemon)).unwrap(), good);

    // A corrected file is applied at once. Keys that need a restart are compared with the settings
    // of the start.
    daemon.root_mut().set("socket.mode", json!("0600"));
    daemon.wait_log("needs a restart");
    daemon.wait_log("configuration applied");
    daemon.wait_log("the configuration is kept");
    let configuration = daemon.status()["configuration"].clone();
    assert_eq!(configuration["last_good"], false);
    assert_eq!(configuration["problems"], json!([]));
    assert_eq!(configuration["restart_needed"], json!(["socket.mode"]));
    assert_ne!(fs::read(kept(&daemon)).unwrap(), good);
    daemon.stop();
}

#[test]
fn invalid_files_without_last_good_fail_startup() {
    let root = with_last_good().stop();
    root.write_config(BAD);
    let good = fs::read_to_string(kept(&root)).unwrap();
    fs::write(kept(&root), good.replace("queue_size: 8", "queue_size: 9")).unwrap();
    let daemon = spawn_kept(root);
    daemon.wait_log("unknown key");
    let line = daemon.wait_log("the last good one cannot be used");
    assert!(
        line.contains("ERROR") && line.contains("last-good.yaml is damaged or was edited"),
        "{line}"
    );
    let (code, root) = daemon.wait_exit();
    assert_eq!(code, 78);

    fs::remove_file(kept(&root)).unwrap();
    let (code, root) = spawn_kept(root).wait_exit();
    assert_eq!(code, 78);
    // A damaged last good configuration does not matter while the files are valid, and is replaced.
    fs::write(kept(&root), "").unwrap();
    root.write_settings();
    let daemon = spawn_kept(root);
    daemon.wait_notified("READY=1");
    daemon.wait_log("the configuration is kept");
    assert_eq!(fs::read_to_string(kept(&daemon)).unwrap(), good);
    daemon.stop();
}

#[test]
fn missing_state_directory_only_logs_a_warning() {
    let root = Root::new();
    let nowhere = root.path().join("no/such");
    let daemon = root.spawn_with(|program| {
        program.env("STATE_DIRECTORY", nowhere);
    });
    let line = daemon.wait_log("the configuration is not kept on disk");
    assert!(line.contains("WARN") && line.contains("no/such"), "{line}");
    daemon.embed(json!("a text"));
    daemon.stop();
}
