//! What a model is computed in, as an operator reads it: in the answers, in the journal, on the terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Daemon, Root};

/// What the daemon says that its default model is computed in: the same wherever it says so.
fn arithmetic(daemon: &Daemon) -> Value {
    let found = daemon.package("bundled-mini")["arithmetic"].clone();
    let field = |name: &str| found[name].as_str().unwrap();
    let (precision, isa, reason) = (field("precision"), field("isa"), field("reason"));
    assert_eq!(found.as_object().unwrap().len(), 3, "{found}");
    assert!(["f32", "int8", "bf16"].contains(&precision), "{found}");
    assert!(!isa.is_empty() && !reason.is_empty(), "{found}");

    let packages = daemon.get("/api/packages").json();
    assert_eq!(packages["packages"][0]["id"], "bundled-mini");
    assert_eq!(packages["packages"][0]["arithmetic"], found);
    assert_eq!(daemon.get("/api/packages/bundled-mini").json()["arithmetic"], found);

    let record = daemon.wait_log("loaded model=bundled-mini@");
    for part in
        [format!("precision={precision} "), format!("isa={isa:?} "), format!("reason={reason:?}")]
    {
        assert!(record.contains(&part), "{part}: {record}");
    }

    let status = daemon.cli().arg("status").output().unwrap();
    let shown = String::from_utf8(status.stdout).unwrap();
    let line = format!("bundled-mini: computed in {precision} with {isa}: {reason}");
    assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    found
}

#[test]
fn a_model_says_what_it_is_computed_in_while_it_is_in_memory() {
    let daemon = Root::with_other().start();
    arithmetic(&daemon);
    let absent = daemon.package("other");
    assert_eq!(absent["residency"], "absent");
    assert_eq!(absent.get("arithmetic"), Some(&Value::Null), "{absent}");
    assert_eq!(daemon.get("/api/packages/other").json().get("arithmetic"), Some(&Value::Null));
    daemon.stop();
}

#[test]
fn the_precision_of_the_configuration_is_obeyed() {
    for (wanted, reason) in [("f32", "exact"), ("int8", "asked for")] {
        let daemon = Root::new().with("embedding.precision", json!(wanted)).start();
        let found = arithmetic(&daemon);
        assert_eq!(found["precision"], wanted, "{found}");
        // What the processor lacks may follow.
        assert!(found["reason"].as_str().unwrap().starts_with(reason), "{found}");
        daemon.stop();
    }
}

#[test]
fn an_int8_package_under_auto_says_which_precision_was_picked_and_why() {
    const PACKAGE: &str = "bundled-mini-1.0.0.model.tar.zst";
    let root = Root::without_bundled();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundled-models").join(PACKAGE);
    fs::copy(bundled, root.bundled().join(PACKAGE)).unwrap();
    let daemon = root.start();
    assert_eq!(daemon.package("bundled-mini")["precision"], "int8");
    let found = arithmetic(&daemon);
    let (isa, reason) = match found["precision"].as_str().unwrap() {
        "bf16" => ("amx-bf16", "the processor multiplies bf16"),
        "int8" => ("vnni", "the package has integers"),
        _ => ("", "exact; "),
    };
    assert!(found["isa"].as_str().unwrap().contains(isa), "{found}");
    assert!(found["reason"].as_str().unwrap().contains(reason), "{found}");
    daemon.stop();
}
