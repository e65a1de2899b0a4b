//! Tests of the daemon's lifecycle: readiness, reload, stop, and its notifications to systemd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use caxton::telemetry::log::Message;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Daemon, Root, is_event, pack, skipped, tiny_package};

#[test]
fn readiness_and_stop_are_notified_to_systemd() {
    let daemon = Root::new().start();
    let ready = daemon.wait_notified("READY=1");
    assert!(ready.contains("STATUS=bundled-mini ready, 1 model installed"), "{ready}");
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.signal(Signal::SIGTERM);
    let stopping = daemon.wait_notified("STOPPING=1");
    assert!(stopping.contains("STATUS=draining"), "{stopping}");
    assert_eq!(daemon.wait_exit().0, 0);
}

#[test]
fn missing_default_model_is_reported_until_installed() {
    let daemon = Root::without_bundled().start();
    let ready = daemon.wait_notified("READY=1");
    assert!(ready.contains("STATUS=bundled-mini not installed, 0 models installed"), "{ready}");
    let answer = daemon.get("/readyz");
    assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("not_ready")));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(daemon.get("/livez").status, 200);
    fs::write(daemon.drop_directory().join("a.model.tar.zst"), tiny_package()).unwrap();
    // The status is sent without any request.
    daemon.wait_notified("STATUS=bundled-mini ready, 1 model installed");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.embed(json!("a")).len(), 1);
    let count = daemon.notifications().len();
    fs::remove_file(daemon.drop_directory().join("a.model.tar.zst")).unwrap();
    daemon.wait_notified_after(count, "STATUS=bundled-mini not installed, 0 models installed");
    assert_eq!(daemon.get("/readyz").status, 503);
    daemon.stop();
}

#[test]
fn request_in_progress_is_answered_during_drain() {
    let daemon = Root::new().start();
    let mut connection = daemon.connect();
    // Send the head and half of the body, signal the stop, then send the rest.
    let body = json!({ "input": "a" }).to_string();
    let (first, rest) = body.split_at(5);
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{first}",
        body.len()
    );
    connection.send(head.as_bytes());
    // The daemon has read the first half of the request when it answers this later connection.
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_event(Message::Stopping);
    connection.send(rest.as_bytes());
    assert_eq!(connection.answer().status, 200);
    let (code, root) = daemon.wait_exit();
    assert_eq!(code, 0);
    assert!(!root.socket().exists());
}

#[test]
fn sigterm_during_startup_exits_with_0() {
    let daemon = Root::new().spawn();
    // The daemon does not serve yet, or has just begun to.
    daemon.until("the socket", || daemon.socket().exists().then_some(()));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_exit().0, 0);
}

#[test]
fn drain_is_cut_off_at_reloaded_timeout() {
    let mut daemon = Root::new().with("socket.drain_timeout", json!("10m")).start();
    daemon.root_mut().set("socket.drain_timeout", json!("100ms"));
    daemon.write_settings();
    daemon.wait_event(Message::ConfigurationApplied);
    let mut connection = daemon.connect();
    connection.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{");
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_event_with(Message::DrainTimeout, &["cut="]);
    assert_eq!(daemon.wait_exit().0, 0);
}

#[test]
fn second_daemon_on_same_store_or_socket_fails() {
    let daemon = Root::new().start();
    let second = |change: &str| {
        let text = fs::read_to_string(daemon.config()).unwrap();
        let mut settings: serde_json::Value = serde_json::from_str(&text).unwrap();
        if change == "socket" {
            settings["memory"]["model_cache"]["directory"] = json!(daemon.path().join("other"));
        } else {
            settings["socket"]["path"] = json!(daemon.path().join("other.sock"));
        }
        let config = daemon.path().join("second.yaml");
        fs::write(&config, settings.to_string()).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_caxtond"));
        let output = program.arg("--config").arg(config).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, log) = second("store");
    assert!(code == 69 && log.contains("in use by another process"), "{code}: {log}");
    let (code, log) = second("socket");
    assert!(code == 71 && log.contains("another daemon listens on"), "{code}: {log}");
    daemon.stop();
}

#[test]
fn stale_socket_of_killed_daemon_is_replaced() {
    let root = Root::new().start().kill();
    assert!(root.socket().exists());
    UnixStream::connect(root.socket()).unwrap_err();
    let daemon = root.start();
    assert_eq!(daemon.embed(json!("a")).len(), 1);
    daemon.stop();
}

#[test]
fn socket_has_configured_mode_and_group() {
    let group = nix::unistd::getegid().as_raw();
    let root = Root::new()
        .with("socket.mode", json!("0606"))
        .with("socket.group", json!(group.to_string()));
    let daemon = root.start();
    let metadata = fs::metadata(daemon.socket()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o606);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), group);
    daemon.stop();
}

#[test]
fn socket_passed_by_systemd_is_served_and_kept() {
    let test = "socket_passed_by_systemd_is_served_and_kept";
    let activate = "systemd-socket-activate";
    if Command::new(activate).arg("--version").output().is_err() {
        return skipped(test, activate);
    }
    let root = Root::new();
    let passed = root.path().join("passed.sock");
    let mut program = Command::new(activate);
    program
        .arg("--listen")
        .arg(&passed)
        .args(["--setenv=NOTIFY_SOCKET", env!("CARGO_BIN_EXE_caxtond")]);
    let daemon = Daemon::spawn(root, program);
    // The first connection starts the daemon, and waits in the kernel until it is served.
    let stream = daemon.until("the passed socket", || UnixStream::connect(&passed).ok());
    drop(stream);
    daemon.wait_notified("READY=1");
    let output = Command::new(env!("CARGO_BIN_EXE_caxton"))
        .args(["embed", "a text", "--socket"])
        .arg(&passed)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!daemon.socket().exists());
    daemon.signal(Signal::SIGTERM);
    let (code, _root) = daemon.wait_exit();
    assert_eq!(code, 0);
    assert!(passed.exists());
}

/// Creates a root with a second bundled model, `other`.
fn root_with_bundled_other() -> Root {
    let root = Root::new();
    fs::write(root.bundled().join("other.model.tar.zst"), pack("tiny-bert-cls", "other", "1"))
        .unwrap();
    root
}

/// Configuration with two problems.
const INVALID: &str = "memory: { embeding_model: x }\nsocket: { mode: 0660 }\n";

#[test]
fn valid_reload_is_applied() {
    let mut daemon = root_with_bundled_other().start();
    daemon.root_mut().set("memory.embedding_model", json!("other"));
    daemon.wait_event(Message::ConfigurationApplied);
    let answer = daemon.post("/v1/embeddings", &json!({ "input": "a" }));
    assert_eq!(answer.json()["model"], "other");
    daemon.stop();
}

#[test]
fn invalid_reload_is_reported_and_changes_nothing() {
    let root = root_with_bundled_other().with("memory.embedding_model", json!("other"));
    let daemon = root.start();
    let count = daemon.notifications().len();
    daemon.write_config(INVALID);
    daemon.wait_event(Message::ConfigurationRefused);
    let problem = ["caxton.yaml:1:11:", "embeding_model", "embedding_model"];
    daemon.wait_event_with(Message::ConfigurationProblem, &problem);
    let reloading = daemon.wait_notified_after(count, "RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = daemon.wait_notified_after(count, "READY=1");
    assert!(ready.contains("configuration was rejected"), "{ready}");
    let problems = daemon.status()["configuration"]["problems"].as_array().unwrap().len();
    assert_eq!(problems, 2);
    assert_eq!(daemon.post("/v1/embeddings", &json!({ "input": "a" })).json()["model"], "other");
    daemon.stop();
}

#[test]
fn sighup_reload_names_keys_that_need_restart() {
    let daemon = Root::new().start();
    let config = fs::read_to_string(daemon.config()).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&config).unwrap();
    daemon.write_config(INVALID);
    daemon.wait_event(Message::ConfigurationRefused);
    settings["socket"]["mode"] = json!("0600");
    let count = daemon.log().len();
    fs::write(daemon.config(), settings.to_string()).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_event_after(count, Message::ConfigurationRestartNeeded, &["socket.mode"]);
    daemon.wait_event_after(count, Message::ConfigurationApplied, &[]);
    let configuration = daemon.status()["configuration"].clone();
    assert_eq!(configuration["problems"], json!([]));
    assert_eq!(configuration["restart_needed"], json!(["socket.mode"]));
    daemon.stop();
}

#[test]
fn malformed_configuration_exits_with_78() {
    let root = Root::new();
    root.write_config(
        "memory: { model_cache: { auto_download: true, max_modles: 3 }, download: { enabled: true } }\nsocket: {",
    );
    assert_eq!(root.spawn().wait_exit().0, 78);
}

#[test]
fn invalid_configuration_logs_all_problems_at_start() {
    let root = Root::new();
    root.write_config(
        "memory: { model_cache: { auto_download: true, max_modles: 3 }, download: { enabled: true } }\n",
    );
    let daemon = root.spawn();
    for problem in [
        &["caxton.yaml:1:41: memory.model_cache.auto_download: ", "never downloads"][..],
        &["max_modles", "max_models"],
        &["memory.download.enabled: ", "never downloads"],
    ] {
        daemon.wait_event_with(Message::ConfigurationProblem, problem);
    }
    assert_eq!(daemon.wait_exit().0, 78);
}

#[test]
fn regular_file_at_socket_path_is_kept() {
    let root = Root::new();
    fs::write(root.socket(), "precious").unwrap();
    let (code, root) = root.spawn().wait_exit();
    assert_eq!((code, fs::read_to_string(root.socket()).unwrap()), (71, "precious".to_owned()));
}

#[test]
fn socket_without_listener_is_replaced() {
    let root = Root::new();
    drop(UnixListener::bind(root.socket()).unwrap());
    root.start().stop();
}

#[test]
fn changed_default_model_is_loaded_without_request() {
    let root = Root::new().with("memory.embedding_model", json!("m"));
    let mut daemon = root.with("packages.replace_embedding_space", json!(true)).start();
    for (version, model, installed) in [("1", "tiny-bert-mean", 2), ("2", "tiny-e5", 3)] {
        let newer = pack(model, "m", version);
        let file = daemon.drop_directory().join(format!("m-{version}.model.tar.zst"));
        fs::write(file, newer).unwrap();
        daemon.wait_notified(&format!("STATUS=m ready, {installed} models installed"));
        let answer = daemon.post("/v1/embeddings", &json!({ "input": "a" }));
        assert_eq!(answer.header("x-caxton-model"), Some(&*format!("m@{version}")));
    }

    let other = pack("tiny-e5", "other", "1");
    fs::write(daemon.drop_directory().join("other.model.tar.zst"), other).unwrap();
    daemon.wait_notified("STATUS=m ready, 4 models installed");
    assert_eq!(daemon.package("other")["residency"], "absent");
    daemon.root_mut().set("memory.embedding_model", json!("other"));
    daemon.wait_notified("STATUS=other ready, 4 models installed");
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.stop();
}

#[test]
fn queued_requests_are_answered_before_exit() {
    let daemon = Root::new().start();
    let body = json!({ "input": vec![vec![5; 48]; 512] }).to_string();
    let mut connections: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection.ask("POST", "/v1/embeddings", &[], body.as_bytes());
    }
    // One request is being computed then. Connections are accepted in their order, so all earlier
    // ones were accepted when the status request was answered.
    daemon.until("waiting requests", || {
        daemon.package("bundled-mini")["waiting"].as_u64().filter(|waiting| *waiting > 0)
    });
    daemon.signal(Signal::SIGTERM);
    for connection in &mut connections {
        let answer = connection.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.vectors().len(), 512);
    }
    assert_eq!(daemon.wait_exit().0, 0);
}

#[test]
fn drain_closes_idle_and_refuses_new_connections() {
    let daemon = Root::new().start();
    let mut idle = daemon.connect();
    assert_eq!(idle.request("GET", "/livez", &[], b"").status, 200);
    // The daemon has begun to read this request, because it asks for the body.
    let mut request = daemon.connect();
    request.send(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 13\r\n\r\n",
    );
    assert_eq!(request.answer().status, 100);
    daemon.signal(Signal::SIGINT);
    daemon.wait_notified("STOPPING=1");
    daemon.until("new connections refused", || UnixStream::connect(daemon.socket()).err());
    assert_eq!(idle.until_closed(), b"");
    request.send(b"{\"input\":\"a\"}");
    assert_eq!(request.answer().status, 200);
    assert_eq!(daemon.wait_exit().0, 0);
}

#[test]
fn log_level_follows_the_configuration() {
    let mut daemon = Root::new().with("log.level", json!("info")).start();
    let malformed = |daemon: &Daemon| {
        let mut connection = daemon.connect();
        connection.send(b"GET / HTTP/9\r\n\r\n");
        connection.until_closed();
    };
    // A connection that breaks is logged with the process of its client, at the level debug.
    let broken = |daemon: &Daemon| {
        let is_of_connection = |line: &&String| line.contains("DEBUG") && line.contains(" pid=");
        daemon.log().iter().filter(is_of_connection).count()
    };
    malformed(&daemon);
    daemon.root_mut().set("log.level", json!("debug"));
    daemon.wait_event(Message::ConfigurationApplied);
    malformed(&daemon);
    daemon.until("a debug record", || (broken(&daemon) > 0).then_some(()));
    daemon.root_mut().set("log.level", json!("warn"));
    // The log has the info records from before, and none about this change.
    daemon.until("the third generation", || {
        (daemon.status()["configuration"]["generation"] == 3).then_some(())
    });
    let is_applied = |line: &&String| is_event(line, Message::ConfigurationApplied);
    let applied = daemon.log().iter().filter(is_applied).count();
    assert_eq!((broken(&daemon), applied), (1, 1));
    daemon.stop();
}

#[test]
fn restored_file_clears_configuration_problems() {
    let daemon = Root::new().start();
    daemon.write_config("log: { level: loud }\n");
    daemon.wait_notified("configuration was rejected");
    let count = daemon.notifications().len();
    daemon.write_settings();
    let ready = daemon.wait_notified_after(count, "READY=1");
    assert!(ready.contains("bundled-mini ready") && !ready.contains("rejected"), "{ready}");
    assert_eq!(daemon.status()["configuration"]["problems"], json!([]));
    daemon.stop();
}

#[test]
fn missing_configuration_exits_with_78() {
    let root = Root::new();
    fs::remove_file(root.config()).unwrap();
    let daemon = root.spawn();
    let problem = ["caxton.yaml", "No such file or directory"];
    daemon.wait_event_with(Message::ConfigurationProblem, &problem);
    assert_eq!(daemon.wait_exit().0, 78);
}

#[test]
fn missing_socket_directory_exits_with_71() {
    let root = Root::new();
    let nowhere = root.path().join("no/such/caxton.sock");
    let daemon = root.with("socket.path", json!(nowhere)).spawn();
    daemon.wait_event_with(Message::StartFailed, &["socket.path", "no/such"]);
    assert_eq!(daemon.wait_exit().0, 71);
}

#[test]
fn unknown_option_exits_with_64() {
    let output = Command::new(env!("CARGO_BIN_EXE_caxtond")).arg("--nope").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn restart_installs_nothing_and_leaves_no_stray_files() {
    let root = Root::new().start().stop();
    let mut names: Vec<_> = fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected =
        ["bundled", "caxton.sock.lock", "caxton.yaml", "drop", "keys.d", "notify", "state"];
    assert_eq!(names, expected);
    let daemon = root.start();
    let is_accepted = |line: &String| is_event(line, Message::PackageAccepted);
    assert!(!daemon.log().iter().any(is_accepted), "{:#?}", daemon.log());
    daemon.stop();
}
