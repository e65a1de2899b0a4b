//! Tests of store files that change while the daemon runs: they are never used, they are logged,
//! and they are repaired from their package.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::path::Path;

use caxton::telemetry::log::Message;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::support::packages::{
    ask, entry, file_name, flip_a_bit_of, stored, until_answers, until_looked,
};
use crate::support::{Daemon, Root, pack};

type Damage = fn(&Path);

/// Ways in which an installed file can change without the daemon.
const DAMAGES: [(&str, Damage); 4] = [
    ("flipped", flip_a_bit_of),
    ("truncated", |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }),
    ("removed", |path| fs::remove_file(path).unwrap()),
    ("fifo", |path| {
        fs::remove_file(path).unwrap();
        mkfifo(path, Mode::S_IRWXU).unwrap();
    }),
];

/// Writes the bundled package of each of [`DAMAGES`].
fn write_packages(root: &Root) {
    for (id, _) in DAMAGES {
        fs::write(root.bundled().join(file_name(id)), pack("tiny-bert-mean", id, "1")).unwrap();
    }
}

/// Damages the model of each of [`DAMAGES`] and removes its package, so that the daemon cannot
/// repair it.
fn damage_all(root: &Root) {
    for (id, damage) in DAMAGES {
        damage(&entry(root, id).join("model.safetensors"));
        fs::remove_file(root.bundled().join(file_name(id))).unwrap();
    }
}

/// Checks that the model `id` is answered with an error, because it is corrupt.
fn assert_corrupt(daemon: &Daemon, id: &str) {
    let answer = ask(daemon, id);
    let error = answer.error();
    assert_eq!((answer.status, &error["code"]), (503, &json!("model_corrupt")), "{id}");
    assert!(error["message"].as_str().unwrap().contains("model.safetensors"), "{error}");
}

/// Creates a root with a bundled package for each of [`DAMAGES`], none of which is loaded at start.
fn root_to_damage() -> Root {
    let root = Root::new().with("memory.fallback_strategy", json!("strict"));
    write_packages(&root);
    root.with("memory.model_cache.validation_on_startup", json!(false))
        .with("memory.max_loaded_models", json!(1 + DAMAGES.len()))
}

#[test]
fn corrupt_model_gets_503_and_is_logged() {
    let daemon = root_to_damage().start();
    damage_all(&daemon);
    for (id, _) in DAMAGES {
        // The answer is the same each time.
        for _ in 0..3 {
            assert_corrupt(&daemon, id);
        }
        let line = daemon.wait_event_with(Message::IntegrityFailure, &[&format!("{id}@1")]);
        assert!(line.contains("ERROR"), "{line}");
        assert_eq!(daemon.package(id)["status"], "corrupt");
        daemon.embed(json!("the daemon lives"));
    }
    daemon.stop();
}

#[test]
fn reinstallation_repairs_corrupt_model_at_once() {
    let daemon = root_to_damage().start();
    damage_all(&daemon);
    let (id, _) = DAMAGES[0];
    assert_corrupt(&daemon, id);
    write_packages(&daemon);
    let installed = daemon
        .cli()
        .args(["model", "install"])
        .arg(daemon.bundled().join(file_name(id)))
        .output()
        .unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    assert_eq!(ask(&daemon, id).status, 200);
    daemon.stop();
}

#[test]
fn restart_repairs_corrupt_models_from_packages() {
    let daemon = root_to_damage().start();
    damage_all(&daemon);
    for (id, _) in DAMAGES {
        assert_corrupt(&daemon, id);
    }
    write_packages(&daemon);
    let daemon = daemon.stop().start();
    for (id, _) in DAMAGES {
        assert_eq!(ask(&daemon, id).status, 200, "{id}");
        assert_eq!(daemon.package(id)["status"], "available");
    }
    assert_eq!(stored(&daemon).len(), 1 + DAMAGES.len());
    daemon.stop();
}

#[test]
fn verify_detects_and_repairs_a_corrupt_file() {
    let daemon = root_to_damage().start();
    until_looked(&daemon, "m");
    // The model in memory is intact, while its file on disk is damaged.
    assert_eq!(daemon.package("m")["residency"], "resident");
    flip_a_bit_of(&entry(&daemon, "m").join("model.safetensors"));
    assert_eq!(ask(&daemon, "m").status, 200);
    let verified = daemon.connect().request("POST", "/api/packages/m/verify", &[], b"");
    assert_eq!((verified.status, &verified.error()["code"]), (409, &json!("model_corrupt")));
    until_answers(&daemon, "m");
    daemon.until("the repair", || (daemon.package("m")["status"] == "available").then_some(()));
    daemon.stop();
}

#[test]
fn validate_marks_corrupt_model_and_counts_it_once() {
    let daemon = root_to_damage().start();
    damage_all(&daemon);
    for (id, _) in DAMAGES {
        let path = format!("/api/packages/{id}/validate");
        let report = daemon.connect().request("POST", &path, &[], b"").json();
        assert_eq!((&report["valid"], &report["can_load"]), (&json!(false), &json!(false)));
        assert_eq!(report["faults"].as_array().unwrap().len(), 1, "{report}");
        assert_eq!(daemon.package(id)["status"], "corrupt");
        let line = daemon.wait_event_with(Message::IntegrityFailure, &[&format!("{id}@1")]);
        assert!(line.contains("model.safetensors"), "{line}");
        let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let count = format!(
            "caxton_model_validation_failures_total{{model_id=\"{id}\",version=\"1\",\
             failure_type=\"corrupt\"}} 1\n"
        );
        assert!(metrics.contains(&count), "{count}");
    }
    daemon.stop();
}

#[test]
fn validation_on_startup_repairs_models_from_packages() {
    let daemon = root_to_damage().start();
    until_looked(&daemon, "m");
    let ids = || DAMAGES.into_iter().map(|(id, _)| id).chain(["m"]);
    let mut root = daemon.stop();
    for (id, damage) in DAMAGES {
        damage(&entry(&root, id).join("model.safetensors"));
    }
    root.set("memory.model_cache.validation_on_startup", json!(true));
    let daemon = root.start();
    for id in ids() {
        until_answers(&daemon, id);
        assert_eq!(daemon.package(id)["status"], "available");
    }
    assert_eq!(stored(&daemon).len(), 1 + ids().count());
    daemon.stop();
}
