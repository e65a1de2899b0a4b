//! Tests of the reported precision of a model: in answers, in the log and on the terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::{Daemon, Root, cli, golden, is_event, skipped};

/// Returns the arithmetic of the default model, and checks that the daemon reports it equally
/// everywhere.
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

    let record = daemon.wait_event_with(Message::ModelLoaded, &["model=bundled-mini@"]);
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
fn precision_is_reported_only_while_resident() {
    let daemon = Root::with_other().start();
    arithmetic(&daemon);
    let absent = daemon.package("other");
    assert_eq!(absent["residency"], "absent");
    assert_eq!(absent.get("arithmetic"), Some(&Value::Null), "{absent}");
    assert_eq!(daemon.get("/api/packages/other").json().get("arithmetic"), Some(&Value::Null));
    daemon.stop();
}

#[test]
fn configured_precision_is_used() {
    for (wanted, reason) in [("f32", "exact"), ("int8", "requested")] {
        let daemon = Root::new().with("embedding.precision", json!(wanted)).start();
        let found = arithmetic(&daemon);
        assert_eq!(found["precision"], wanted, "{found}");
        // A missing feature of the processor may be named after it.
        assert!(found["reason"].as_str().unwrap().starts_with(reason), "{found}");
        daemon.stop();
    }
}

#[test]
fn auto_precision_of_int8_package_is_explained() {
    const PACKAGE: &str = "bundled-mini-1.0.0.model.tar.zst";
    let root = Root::without_bundled();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundled-models").join(PACKAGE);
    fs::copy(bundled, root.bundled().join(PACKAGE)).unwrap();
    let daemon = root.start();
    assert_eq!(daemon.package("bundled-mini")["precision"], "int8");
    let found = arithmetic(&daemon);
    let isa = found["isa"].as_str().unwrap();
    let reason = match found["precision"].as_str().unwrap() {
        "bf16" if isa == "amx-bf16" => "which multiplies bf16 in tiles",
        // Every processor with SSE4.2 or NEON multiplies bytes.
        "int8" if isa != "scalar" => "the package has int8 weights",
        "f32" if isa == "scalar" => "exact; ",
        _ => panic!("{found}"),
    };
    assert!(found["reason"].as_str().unwrap().contains(reason), "{found}");
    daemon.stop();
}

/// Changes every value of the f32 tensors in `weights`, a safetensors file, whose name ends with
/// `suffix`.
fn change(weights: &mut [u8], suffix: &str, value: impl Fn(f32) -> f32) {
    let (length, rest) = weights.split_at_mut(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()).try_into().unwrap();
    let (header, data) = rest.split_at_mut(length);
    let header: Value = serde_json::from_slice(header).unwrap();
    for (_, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| name.ends_with(suffix))
    {
        let at = |end: usize| tensor["data_offsets"][end].as_u64().unwrap().try_into().unwrap();
        let words: &mut [u8] = &mut data[at(0)..at(1)];
        for word in words.as_chunks_mut::<4>().0 {
            *word = value(f32::from_le_bytes(*word)).to_le_bytes();
        }
    }
}

/// Makes the vectors of an int8 package of `weights` correct in f32 only. The change adds 64 times
/// the sum of its inputs to each output of a feed-forward layer. After a LayerNorm with weight 1
/// and bias 0 this sum is 0, unless the inputs are rounded.
fn make_fragile(weights: &mut [u8]) {
    change(weights, "attention.output.LayerNorm.weight", |_| 1.0);
    change(weights, "attention.output.LayerNorm.bias", |_| 0.0);
    change(weights, "intermediate.dense.weight", |weight| weight + 64.0);
}

/// Returns an int8 package of a tiny model whose weights are changed first.
fn integers(id: &str, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("model");
    let copied = Command::new("cp").arg("-r").arg(golden("tiny-bert-mean")).arg(&source).status();
    assert!(copied.unwrap().success());
    let path = source.join("model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    change(&mut weights);
    fs::write(path, weights).unwrap();
    let output = place.path().join("packed.model.tar.zst");
    let packed = cli()
        .args(["model", "pack", "--model-id", id, "--model-version", "1"])
        .args(["--precision", "int8", "--source"])
        .arg(source)
        .arg("--output")
        .arg(&output)
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    fs::read(output).unwrap()
}

#[test]
fn failed_self_test_falls_back_to_f32() {
    let daemon = Root::new().start();
    let precision = |id: &str, package: &[u8]| {
        let installed = daemon.connect().request("POST", "/api/packages", &[], package);
        assert_eq!(installed.status, 200, "{installed:?}");
        assert_eq!(daemon.embeddings(&json!({ "input": "a text", "model": id })).status, 200);
        daemon.package(id)["arithmetic"]["precision"].as_str().unwrap().to_owned()
    };
    let picked = precision("sound", &integers("sound", |_| {}));
    if picked == "f32" {
        let needs = "a processor that multiplies integers of 8 bits";
        skipped("failed_self_test_falls_back_to_f32", needs);
        return;
    }
    assert_eq!(precision("fragile", &integers("fragile", make_fragile)), "f32");
    let log = daemon.log();
    let replaced = log.iter().filter(|line| {
        is_event(line, Message::PrecisionReplaced)
            && line.contains(&picked)
            && line.contains("model=fragile@1")
    });
    // The fallback is logged when the package is installed and when the model is loaded.
    assert_eq!(replaced.count(), 2, "{log:#?}");
    daemon.stop();
}
