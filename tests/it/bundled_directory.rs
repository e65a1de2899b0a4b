//! Tests of the bundled directory: its packages change with the appliance, and an appliance may
//! accept no others.

use std::fs;

use serde_json::json;

use crate::support::packages::{
    ask, dropped, file_name, flip_a_bit_of, names, stored, until_answers, until_looked,
};
use crate::support::{Root, pack};

#[test]
fn bundled_packages_follow_appliance_upgrades() {
    let root = Root::new();
    fs::write(root.bundled().join("two.model.tar.zst"), pack("tiny-bert-cls", "two", "1")).unwrap();
    fs::write(root.bundled().join("bad.model.tar.zst"), "not a package").unwrap();
    let before = names(&root.bundled());
    let daemon = root.start();
    for id in ["bundled-mini", "two"] {
        assert_eq!(daemon.package(id)["origin"], "bundled");
        assert_eq!(ask(&daemon, id).status, 200);
    }
    assert!(daemon.wait_log("a bundled package was refused").contains("bad.model.tar.zst"));
    assert_eq!(names(&daemon.bundled()), before);

    // The upgrade brings another version in the same file and drops one package.
    let root = daemon.stop();
    let mini = pack("tiny-bert-mean", "bundled-mini", "2");
    fs::write(root.bundled().join("bundled-mini-1.model.tar.zst"), mini).unwrap();
    fs::remove_file(root.bundled().join("two.model.tar.zst")).unwrap();
    let daemon = root.start();
    assert_eq!(daemon.package("bundled-mini")["version"], "2");
    assert_eq!(stored(&daemon).len(), 1);

    // The installed model stays after a failed upgrade.
    let root = daemon.stop();
    flip_a_bit_of(&root.bundled().join("bundled-mini-1.model.tar.zst"));
    let daemon = root.start();
    daemon.wait_log("a bundled package was refused");
    daemon.embed(json!("a text"));
}

#[test]
fn bundled_only_excludes_and_logs_other_packages() {
    let daemon = Root::new().start();
    until_looked(&daemon, "before");
    let mut root = daemon.stop();
    root.set("memory.model_cache.bundled_only", json!(true));
    fs::write(dropped(&root, "after"), pack("tiny-bert-mean", "after", "1")).unwrap();
    let daemon = root.start();
    for id in ["before", "after"] {
        let name = file_name(id);
        daemon.until(&format!("a word on {name}"), || {
            let said = |line: &String| line.contains("bundled_only") && line.contains(&name);
            daemon.log().iter().any(said).then_some(())
        });
        assert_eq!(ask(&daemon, id).status, 404);
    }
    let message = ask(&daemon, "before").error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("bundled_only"), "{message}");
    let models = daemon.get("/v1/models").json()["data"].to_string();
    assert!(models.contains("bundled-mini") && !models.contains("before"), "{models}");
    assert!(dropped(&daemon, "after").exists());
    let installed =
        daemon.cli().args(["model", "install"]).arg(dropped(&daemon, "after")).output().unwrap();
    assert!(String::from_utf8_lossy(&installed.stderr).contains("bundled_only"));
    daemon.embed(json!("a text"));

    let config = fs::read_to_string(daemon.config()).unwrap();
    let open = config.replace("\"bundled_only\": true", "\"bundled_only\": false");
    assert_ne!(open, config);
    daemon.write_config(&open);
    until_answers(&daemon, "before");
    until_answers(&daemon, "after");
}
