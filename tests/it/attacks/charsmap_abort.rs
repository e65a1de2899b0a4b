//! Attack: a charsmap declares four gigabytes for its array. The library that reads it reserved
//! twice as much, and the daemon aborted on every machine with less memory.

use std::fs;

use serde_json::{Value, json};

use crate::support::Root;
use crate::support::tokenizers::tokenizer_refused;

#[test]
fn charsmap_with_false_length_is_rejected() {
    let daemon = Root::new().start();
    let reason = tokenizer_refused(&daemon, "charsmap", |tokenizer: &mut Value| {
        tokenizer["normalizer"] =
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="});
    });
    assert!(
        reason.contains("tokenizer.json: the charsmap declares 4294967295 bytes for its array"),
        "{reason}"
    );
    // No file remains that a restart would try again.
    let root = daemon.stop();
    assert_eq!(fs::read_dir(root.state().join("models")).unwrap().count(), 1);
    let daemon = root.start();
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.stop();
}
