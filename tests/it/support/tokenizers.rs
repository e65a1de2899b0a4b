//! Packages with a `tokenizer.json` made by an attacker.

use std::fs;

use caxton::package::{PackRequest, pack};
use serde_json::{Value, json};

use super::packages::{dropped, until_quarantined};
use super::{Daemon, golden};

/// Regular expression that takes hours for a text of small letters, because it backtracks through
/// every way to match them.
pub(crate) const HANG: &str = r"(?:(([a-z ]|[a-z ]){18})\2*#|(?s:.))";

pub(crate) fn split_by(expression: &str) -> Value {
    json!({
        "type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false,
    })
}

/// Drops a package with a changed `tokenizer.json` and a self-test that was never run. Returns the
/// reason for its rejection.
pub(crate) fn tokenizer_refused(
    daemon: &Daemon,
    id: &str,
    change: impl FnOnce(&mut Value),
) -> String {
    let place = tempfile::tempdir().unwrap();
    let source = golden("tiny-bert-mean");
    fs::create_dir(place.path().join("1_Pooling")).unwrap();
    fs::create_dir(place.path().join("2_Normalize")).unwrap();
    for name in ["config.json", "modules.json", "1_Pooling/config.json", "model.safetensors"] {
        fs::copy(source.join(name), place.path().join(name)).unwrap();
    }
    let mut tokenizer =
        serde_json::from_slice(&fs::read(source.join("tokenizer.json")).unwrap()).unwrap();
    change(&mut tokenizer);
    fs::write(place.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let request = PackRequest {
        source: place.path().to_owned(),
        id: Some(id.parse().unwrap()),
        ..PackRequest::default()
    };
    let mut package = Vec::new();
    let vector = |manifest: &caxton::package::Manifest, _: &_| Ok(vec![0.125; manifest.dimensions]);
    pack(&request, &vector, &|_, _| {}, &mut package).unwrap();
    fs::write(dropped(daemon, id), package).unwrap();
    let reason = until_quarantined(daemon, id);
    assert_eq!(daemon.get("/livez").status, 200);
    reason
}
