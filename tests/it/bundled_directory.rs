//! Tests of the bundled directory: its packages change with the appliance, and an appliance may
//! accept no others.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use caxton::telemetry::log::Message;
use serde_json::json;

use crate::support::packages::{
    ask, dropped, file_name, flip_a_bit_of, names, stored, until_answers, until_looked,
};
use crate::support::{Daemon, Root, pack};

/// File of the default model in the bundled directory.
const MINI: &str = "bundled-mini-1.model.tar.zst";

/// Creates a root with a second bundled package, `two`.
fn root_with_two() -> Root {
    let root = Root::new();
    fs::write(root.bundled().join(file_name("two")), pack("tiny-bert-cls", "two", "1")).unwrap();
    root
}

#[test]
fn bundled_packages_are_installed_at_start() {
    let daemon = root_with_two().start();
    for id in ["bundled-mini", "two"] {
        assert_eq!(daemon.package(id)["origin"], "bundled");
        assert_eq!(ask(&daemon, id).status, 200);
    }
    daemon.stop();
}

#[test]
fn invalid_bundled_package_is_logged_and_stays() {
    let root = Root::new();
    fs::write(root.bundled().join(file_name("bad")), "not a package").unwrap();
    let before = names(&root.bundled());
    let daemon = root.start();
    daemon.wait_event_with(Message::PackageRefused, &[&file_name("bad")]);
    assert_eq!(ask(&daemon, "bundled-mini").status, 200);
    assert_eq!(names(&daemon.bundled()), before);
    daemon.stop();
}

#[test]
fn upgrade_replaces_and_removes_bundled_models() {
    let root = root_with_two().start().stop();
    // The upgrade brings another version in the same file, and no package of `two`.
    fs::write(root.bundled().join(MINI), pack("tiny-bert-mean", "bundled-mini", "2")).unwrap();
    fs::remove_file(root.bundled().join(file_name("two"))).unwrap();
    let daemon = root.start();
    assert_eq!(daemon.package("bundled-mini")["version"], "2");
    assert_eq!(stored(&daemon).len(), 1);
    daemon.stop();
}

#[test]
fn installed_model_survives_damaged_upgrade() {
    let root = Root::new().start().stop();
    flip_a_bit_of(&root.bundled().join(MINI));
    let daemon = root.start();
    daemon.wait_event_with(Message::PackageRefused, &[MINI]);
    daemon.embed(json!("a text"));
    daemon.stop();
}

/// Starts a daemon with `bundled_only` and two other packages: `before` was installed earlier, and
/// `after` was dropped while no daemon ran.
fn start_bundled_only() -> Daemon {
    let daemon = Root::new().start();
    until_looked(&daemon, "before");
    let mut root = daemon.stop();
    root.set("memory.model_cache.bundled_only", json!(true));
    fs::write(dropped(&root, "after"), pack("tiny-bert-mean", "after", "1")).unwrap();
    root.start()
}

#[test]
fn bundled_only_excludes_and_logs_other_packages() {
    let daemon = start_bundled_only();
    for id in ["before", "after"] {
        daemon.wait_event_with(Message::PackageKeptOut, &[&file_name(id)]);
        assert_eq!(ask(&daemon, id).status, 404);
    }
    let message = ask(&daemon, "before").error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("bundled_only"), "{message}");
    let models = daemon.get("/v1/models").json()["data"].to_string();
    assert!(models.contains("bundled-mini") && !models.contains("before"), "{models}");
    assert!(dropped(&daemon, "after").exists());
    daemon.embed(json!("a text"));
    daemon.stop();
}

#[test]
fn bundled_only_rejects_installation_by_command() {
    let daemon = Root::new().with("memory.model_cache.bundled_only", json!(true)).start();
    fs::write(dropped(&daemon, "after"), pack("tiny-bert-mean", "after", "1")).unwrap();
    let installed =
        daemon.cli().args(["model", "install"]).arg(dropped(&daemon, "after")).output().unwrap();
    assert!(String::from_utf8_lossy(&installed.stderr).contains("bundled_only"));
    daemon.embed(json!("a text"));
    daemon.stop();
}

#[test]
fn excluded_packages_are_installed_once_allowed() {
    let daemon = start_bundled_only();
    let config = fs::read_to_string(daemon.config()).unwrap();
    let open = config.replace("\"bundled_only\": true", "\"bundled_only\": false");
    assert_ne!(open, config);
    daemon.write_config(&open);
    until_answers(&daemon, "before");
    until_answers(&daemon, "after");
    daemon.stop();
}
